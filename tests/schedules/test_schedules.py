"""Ratio schedules against tables written by hand and a plain-Python oracle."""

import fractions
import json
import math
import warnings

import keras
import numpy as np
import pytest
from backends import BACKEND, COMPILERS, array, compiled, tensor

from keras_sq import schedules
from keras_sq.schedules import Continuous, RatioSchedule, Stages

HUGE = (2**31 - 1, 2**31, 2**40)

# The largest step in a tensor: JAX has int32.
LARGEST = {"tensorflow": 2**63 - 1, "jax": 2**31 - 1}[BACKEND]


def bind(schedule, total_steps=None, steps_per_epoch=None):
    return schedule.bind(total_steps=total_steps, steps_per_epoch=steps_per_epoch)


# One row per schedule: name, schedule, bind arguments, ratios written by hand for
# steps 0, 1, 2, ... (the last one holds ever after), stage starts, end step.
TABLE = [
    (
        "exponential",
        schedules.exponential(),
        dict(total_steps=8),
        [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1, 1],
        (0, 2, 4, 6),
        6,
    ),
    (
        "exponential rounds the boundaries",  # 2.5, 5, 7.5
        schedules.exponential(),
        dict(total_steps=10),
        [0.5, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 0.875, 1, 1],
        (0, 3, 5, 8),
        8,
    ),
    (
        "exponential, short ramp",
        schedules.exponential(ramp=0.3),
        dict(total_steps=10),
        [0.5, 0.75, 0.875, 1, 1],
        (0, 1, 2, 3),
        3,
    ),
    (
        "exponential, ramp in steps that does not divide",  # 3.33, 6.67, 10
        schedules.exponential(ramp=10, unit="steps"),
        {},
        [0.5] * 3 + [0.75] * 4 + [0.875] * 3 + [1],
        (0, 3, 7, 10),
        10,
    ),
    (
        "exponential, ramp in epochs",
        schedules.exponential(3, 0.2, ramp=3, unit="epochs"),
        dict(steps_per_epoch=2),
        [0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 1],
        (0, 3, 6),
        6,
    ),
    ("exponential, one stage", schedules.exponential(1), {}, [1], (0,), 0),
    (
        "exponential from zero, own lengths",
        schedules.exponential(3, 0.0, lengths=[1, 2], unit="steps"),
        {},
        [0, 0.5, 0.5, 1],
        (0, 1, 3),
        3,
    ),
    (
        "average",
        schedules.average(),
        dict(total_steps=10),
        [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1],
        (0, 2, 4, 6, 8),
        8,
    ),
    (
        "average, short ramp",
        schedules.average(2, ramp=0.2),
        dict(total_steps=10),
        [0.5, 0.5, 1],
        (0, 2),
        2,
    ),
    (
        "finetune",
        schedules.finetune(),
        dict(total_steps=4),
        [0.5, 0.75, 0.875, 1],
        (0, 1, 2, 3),
        3,
    ),
    ("constant", schedules.constant(), {}, [1, 1], (0,), 0),
    (
        "constant, partial",
        schedules.constant(0.25, allow_partial=True),
        {},
        [0.25, 0.25],
        (0,),
        0,
    ),
    (
        "stages in steps",
        Stages([0.1, 0.1, 1.0], [2, 1, 4], "steps"),
        {},
        [0.1, 0.1, 0.1, 1, 1],
        (0, 2, 3),
        3,
    ),
    (
        "stages in half epochs",
        Stages([0.0, 0.3, 1.0], [0.5, 1.5, None], "epochs"),
        dict(steps_per_epoch=3),  # 1.5 and 6
        [0, 0, 0.3, 0.3, 0.3, 0.3, 1],
        (0, 2, 6),
        6,
    ),
    (
        "stages in fractions that do not add up to 1",
        Stages([0.5, 1.0], [0.25, 0.25]),
        dict(total_steps=8),
        [0.5, 0.5, 1],
        (0, 2),
        2,
    ),
    (
        "the end step is where the final ratio begins",
        Stages([0.5, 1.0, 1.0], [2, 2, 2], "steps"),
        {},
        [0.5, 0.5, 1, 1, 1],
        (0, 2, 4),
        2,
    ),
    (
        "linear",
        schedules.linear(length=5, unit="steps"),
        {},
        [0, 0.2, 0.4, 0.6, 0.8, 1, 1],
        (0,),
        5,
    ),
    (
        "linear, three quarters by default",
        schedules.linear(),
        dict(total_steps=8),
        [0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1, 1],
        (0,),
        6,
    ),
    (
        "linear over all of the run ends on its last step",
        schedules.linear(length=1.0),
        dict(total_steps=5),
        [0, 0.25, 0.5, 0.75, 1],
        (0,),
        4,
    ),
    (
        "linear, delayed, in epochs",
        schedules.linear(start=0.5, begin=1, length=2, unit="epochs"),
        dict(steps_per_epoch=2),
        [0.5, 0.5, 0.5, 0.625, 0.75, 0.875, 1],
        (0,),
        6,
    ),
    (
        "linear, delayed, default length",
        schedules.linear(begin=4, unit="steps"),
        dict(total_steps=8),
        [0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1],
        (0,),
        7,
    ),
    (
        "linear to less than 1",
        schedules.linear(end=0.4, length=2, unit="steps", allow_partial=True),
        {},
        [0, 0.2, 0.4, 0.4],
        (0,),
        2,
    ),
    (
        "a jump",
        schedules.linear(start=0.3, begin=2, length=0, unit="steps"),
        {},
        [0.3, 0.3, 1],
        (0,),
        2,
    ),
    (
        "cosine",
        schedules.cosine(length=4, unit="steps"),
        {},
        [0, 0.1464466, 0.5, 0.8535534, 1],
        (0,),
        4,
    ),
    (
        "cubic",
        schedules.cubic(begin=0.2, length=0.4),
        dict(total_steps=10),
        [0, 0, 0, 0.015625, 0.125, 0.421875, 1],
        (0,),
        6,
    ),
]
TABLE_IDS = [row[0] for row in TABLE]


def oracle(schedule, step, total_steps=None, steps_per_epoch=None):
    """The ratio at a step, from the unbound config, in exact fractions."""
    config = schedule.get_config()
    size = {"fraction": total_steps, "epochs": steps_per_epoch, "steps": 1}
    size = size[config["unit"]]

    def to_step(length):
        exact = fractions.Fraction(length).limit_denominator(10**6) * (size or 1)
        nearest = math.floor(exact + fractions.Fraction(1, 2))
        if config["unit"] == "fraction" and total_steps is not None:
            nearest = min(nearest, total_steps - 1)
        return nearest

    if "ratios" in config:
        ratio = config["ratios"][0]
        for i, later in enumerate(config["ratios"][1:]):
            if step >= to_step(sum(config["lengths"][: i + 1])):
                ratio = later
        return ratio
    begin, length = to_step(config["begin"]), config["length"]
    if length is None:
        rest = fractions.Fraction(3, 4) * (total_steps - begin)
        end = begin + math.floor(rest + fractions.Fraction(1, 2))
    else:
        end = to_step(config["begin"] + length)
    if step >= end:
        return config["end"]
    t = max(step - begin, 0) / max(end - begin, 1)
    curve = {"linear": t, "cubic": t**3, "cosine": math.sin(math.pi * t / 2) ** 2}
    return config["start"] + (config["end"] - config["start"]) * curve[config["curve"]]


@pytest.mark.parametrize(
    ("schedule", "run", "ratios", "starts", "end"),
    [row[1:] for row in TABLE],
    ids=TABLE_IDS,
)
class TestEverySchedule:
    def test_ratios_equal_the_table(self, schedule, run, ratios, starts, end):
        bound = bind(schedule, **run)
        assert bound.bound
        for step, ratio in enumerate(ratios):
            assert float(bound(step)) == pytest.approx(ratio, abs=2e-7), step
        assert bound.stage_starts == starts
        assert bound.end_step == end
        assert bound.final_ratio == ratios[-1]

    def test_ratios_equal_the_oracle(self, schedule, run, ratios, starts, end):
        for total_steps, steps_per_epoch in [(97, 7), (1000, 30), (1234, 61)]:
            bound = bind(schedule, total_steps, steps_per_epoch)
            steps = np.arange(total_steps + 5)
            expected = [
                oracle(schedule, s, total_steps, steps_per_epoch) for s in steps
            ]
            np.testing.assert_allclose(bound(steps), expected, rtol=0, atol=3e-7)

    def test_final_ratio_is_exact_and_holds(self, schedule, run, ratios, starts, end):
        bound = bind(schedule, **run)
        final = np.float32(ratios[-1])
        for step in (end, end + 1, 10 * end + 100, *HUGE):
            assert array(bound(step)) == final
            if step <= LARGEST:
                assert array(bound(tensor(step, "int64"))) == final
        if end:
            assert array(bound(end - 1)) < final

    def test_never_decreases(self, schedule, run, ratios, starts, end):
        bound = bind(schedule, 5000, 100)
        values = array(bound(np.arange(5001)))
        assert np.all(np.diff(values) >= 0)
        assert values.min() >= 0
        assert values.max() <= 1

    def test_traced_equals_eager_equals_int(self, schedule, run, ratios, starts, end):
        bound = bind(schedule, **run)
        traces = {how: [] for how in COMPILERS}

        def traced(how):
            def function(step):
                traces[how].append(1)
                return bound(step)

            return compiled(function, how)

        functions = {how: traced(how) for how in COMPILERS}
        dtype = {"tensorflow": "int64", "jax": "int32"}[BACKEND]
        variable = keras.Variable(0, dtype=dtype, trainable=False)
        for step in [*range(len(ratios) + 2), *HUGE]:
            if step > LARGEST:
                continue
            variable.assign(step)
            expected = bound(step)
            assert expected.dtype == "float32"
            assert expected.shape == ()
            given = tensor(step, "int64")
            assert float(bound(given)) == float(expected)
            assert float(bound(variable)) == float(expected)
            # A compiler may fuse a multiplication and an addition, or use its own
            # cosine; stages and ends are exact everywhere.
            exact = isinstance(bound, Stages) or step >= end
            for how, function in functions.items():
                tolerance = 0 if exact else {"graph": 1e-7, "xla": 2e-7}[how]
                assert abs(float(function(given)) - float(expected)) <= tolerance
        assert all(len(times) == 1 for times in traces.values())

    def test_json_round_trip(self, schedule, run, ratios, starts, end):
        for original in (schedule, bind(schedule, **run)):
            config = json.loads(json.dumps(schedules.serialize(original)))
            restored = schedules.deserialize(config)
            assert restored == original
            assert hash(restored) == hash(original)
            assert schedules.get(config) == original
            assert type(original).from_config(original.get_config()) == original
        assert float(bind(restored, **run)(2)) == float(bind(schedule, **run)(2))

    def test_repr_makes_the_schedule_again(self, schedule, run, ratios, starts, end):
        names = {"Stages": Stages, "Continuous": Continuous}
        assert eval(repr(schedule), names) == schedule

    def test_binding_again_changes_nothing(self, schedule, run, ratios, starts, end):
        bound = bind(schedule, **run)
        assert bind(bound, 10_000, 7) is bound
        assert bind(bound) is bound


# Step: what may be given.


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_step_of_any_integer_dtype(dtype):
    schedule = bind(schedules.exponential(), 400)
    for step in (0, 99, 100, 120):
        assert float(schedule(tensor(step, dtype))) == float(schedule(step))


def test_step_may_be_a_numpy_integer_or_an_array():
    schedule = bind(schedules.exponential(), 8)
    assert float(schedule(np.int64(2))) == 0.75
    assert schedule(np.arange(8).reshape(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("step", [1.5, np.float32(2), True, np.ones(3)])
def test_step_not_an_integer_raises(step):
    with pytest.raises(TypeError, match="Argument `step` must be an integer"):
        schedules.constant()(step)


def test_step_tensor_not_an_integer_raises():
    with pytest.raises(TypeError, match="a tensor of dtype float32"):
        schedules.constant()(tensor(1.0))


def test_step_negative_raises():
    with pytest.raises(ValueError, match=r"`step` must be at least 0.*step=-1"):
        schedules.constant()(-1)


def test_steps_beyond_float32_are_told_apart():
    schedule = Stages([0.5, 1.0], [2**24 + 1], "steps")
    assert float(schedule(2**24)) == 0.5
    assert float(schedule(2**24 + 1)) == 1.0
    ramp = schedules.linear(begin=2**30, length=4, unit="steps")
    assert [float(ramp(2**30 + i)) for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_longest_schedule():
    schedule = Stages([0.5, 1.0], [2**31 - 1], "steps")
    assert float(schedule(2**31 - 2)) == 0.5
    assert float(schedule(tensor(2**31 - 2, "int64"))) == 0.5
    assert float(schedule(2**31 - 1)) == 1.0
    with pytest.raises(ValueError, match=r"`sum\(lengths\)` must be at most"):
        Stages([0.5, 0.7, 1.0], [2**31 - 1, 1], "steps")
    with pytest.raises(ValueError, match=r"`begin \+ length` must be at most"):
        schedules.linear(begin=1, length=2**31 - 1, unit="steps")


# Binding.


@pytest.mark.parametrize(
    "schedule", [schedules.exponential(), schedules.linear()], ids=repr
)
@pytest.mark.parametrize(
    "use", [lambda s: s(0), lambda s: s.stage_starts, lambda s: s.end_step]
)
def test_unbound_raises_with_the_remedy(schedule, use):
    assert not schedule.bound
    with pytest.raises(
        ValueError, match=r"not bound.*`StochasticQuantization`.*schedule\.bind\("
    ):
        use(schedule)


def test_unbound_knows_its_final_ratio():
    assert schedules.exponential().final_ratio == 1.0


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (schedules.exponential(), "total_steps"),
        (schedules.linear(), "total_steps"),
        (schedules.linear(begin=1, unit="steps"), "total_steps"),
        (schedules.linear(begin=1, unit="epochs"), "total_steps"),
        (schedules.exponential(ramp=3, unit="epochs"), "steps_per_epoch"),
        (schedules.linear(length=3, unit="epochs"), "steps_per_epoch"),
    ],
)
def test_bind_without_what_is_needed_raises(schedule, name):
    given = dict(total_steps=100, steps_per_epoch=10)
    given[name] = None
    with pytest.raises(ValueError, match=rf"needs `{name}`.*Received: {name}=None"):
        schedule.bind(**given)


@pytest.mark.parametrize("name", ["total_steps", "steps_per_epoch"])
def test_bind_bad_numbers_raise(name):
    given = dict(total_steps=100, steps_per_epoch=10)
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1"):
        schedules.exponential().bind(**(given | {name: 0}))
    with pytest.raises(TypeError, match=rf"`{name}` must be an integer"):
        schedules.exponential().bind(**(given | {name: 10.0}))


def test_bound_is_an_ordinary_schedule_in_steps():
    bound = bind(schedules.exponential(), 40)
    assert bound == Stages([0.5, 0.75, 0.875, 1.0], [10, 10, 10], "steps")
    bound = bind(schedules.cubic(start=0.1, length=1.5, unit="epochs"), None, 10)
    assert bound == Continuous("cubic", start=0.1, length=15, unit="steps")


def test_boundaries_do_not_drift():
    # 1000 stages of 1.5 steps: rounding the lengths would end at step 2000.
    schedule = Stages(np.linspace(0.001, 1, 1000), [0.15] * 999, "epochs")
    bound = bind(schedule, steps_per_epoch=10)
    assert bound.stage_starts == tuple((3 * i + 1) // 2 for i in range(1000))


@pytest.mark.parametrize("stages", range(1, 12))
def test_equal_stages_differ_by_a_step_at_most(stages):
    for total_steps in (11, 12, 13, 100, 9999, 123_457):
        bound = bind(schedules.average(stages), total_steps)
        lengths = np.diff([*bound.stage_starts, total_steps])
        assert len(lengths) == stages
        assert lengths.max() - lengths.min() <= 1


@pytest.mark.parametrize(
    ("total_steps", "ratios", "skipped"),
    [
        (1, [1], "0.5, 0.75, 0.875"),
        (2, [0.5, 1], "0.75, 0.875"),
        (3, [0.5, 0.75, 1], "0.875"),
    ],
)
def test_run_shorter_than_the_stages_warns_and_ends_at_one(
    total_steps, ratios, skipped
):
    with pytest.warns(UserWarning, match=f"too short.*skipping ratio {skipped}, "):
        bound = bind(schedules.exponential(), total_steps)
    assert [float(bound(step)) for step in range(total_steps)] == ratios
    assert bound.stage_starts == tuple(range(total_steps))


def test_stage_shorter_than_a_step_gets_one():
    schedule = Stages([0.25, 0.5, 1.0], [0.01, 1], "epochs")
    bound = bind(schedule, steps_per_epoch=10)
    assert (bound.ratios, bound.stage_starts) == ((0.25, 0.5, 1.0), (0, 1, 10))


@pytest.mark.parametrize(
    ("total_steps", "starts"),
    [(4, (0, 1, 2, 3)), (8, (0, 1, 2, 3)), (28, (0, 1, 3, 4)), (100, (0, 5, 10, 15))],
)
def test_short_ramp_has_all_stages_in_a_short_run(total_steps, starts):
    bound = bind(schedules.get("short"), total_steps)
    assert bound.ratios == (0.5, 0.75, 0.875, 1.0)
    assert bound.stage_starts == starts


def test_stages_at_the_end_of_a_short_run_move_forward():
    schedule = Stages([0.2, 0.4, 0.6, 1.0], [0.9, 0.05, 0.04, None])
    assert bind(schedule, 6).stage_starts == (0, 3, 4, 5)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.exponential(),
        schedules.linear(length=1.0),
        schedules.cosine(),
        schedules.cubic(begin=0.9, length=0.1),
    ],
    ids=repr,
)
def test_fractions_always_end_at_one(schedule):
    for total_steps in range(4, 60):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bound = bind(schedule, total_steps)
        assert float(bound(total_steps - 1)) == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine", "cubic"])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_continuous_in_a_tiny_run(name, total_steps):
    bound = bind(schedules.get(name), total_steps)
    assert float(bound(total_steps - 1)) == 1.0


# A schedule longer than the run.


@pytest.mark.parametrize(
    ("schedule", "run", "message"),
    [
        (
            schedules.exponential(lengths=[10, 10, 10], unit="epochs"),
            dict(total_steps=300, steps_per_epoch=10),
            r"ratio 1 at step 300, but the run has only 300 steps \(0 to 299\): "
            r"the network would end at ratio 0\.875",
        ),
        (
            Stages([0.5, 0.75, 1.0], [5, 10], "steps"),
            dict(total_steps=4),
            r"at step 15, .* only 4 steps .* would end at ratio 0\.5,.*shorten",
        ),
        (
            schedules.linear(length=200, unit="steps"),
            dict(total_steps=101),
            r'would end at ratio 0\.5,.*unit="fraction"',
        ),
        (
            schedules.linear(begin=10, unit="steps"),
            dict(total_steps=10),
            r"at step 10, .* would end at ratio 0,",
        ),
    ],
)
def test_schedule_longer_than_the_run_warns(schedule, run, message):
    with pytest.warns(UserWarning, match=message):
        bound = bind(schedule, **run)
    assert bound.bound


def test_check_fits_at_the_border():
    schedule = Stages([0.5, 1.0], [9], "steps")
    schedules.check_fits(schedule, 10)
    with pytest.warns(UserWarning, match="at step 9, but the run has only 9 steps"):
        schedules.check_fits(schedule, 9)


# A schedule that does not end at 1.


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: schedules.constant(0.5, **more),
        lambda **more: Stages([0.25, 0.5], **more),
        lambda **more: schedules.cubic(end=0.5, **more),
    ],
)
def test_not_ending_at_one_warns_once(make):
    with pytest.warns(UserWarning, match=r"ends at ratio 0\.5, .*`allow_partial=True`"):
        schedule = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(bind(schedule, 10)(9)) == 0.5
        assert float(bind(make(allow_partial=True), 10)(9)) == 0.5


# Bad arguments.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Stages([0.5, 1.2]), ValueError, r"\[0, 1\].*ratios\[1\]=1\.2"),
        (lambda: Stages([-0.1, 1]), ValueError, r"\[0, 1\].*ratios\[0\]=-0\.1"),
        (lambda: Stages([math.nan, 1]), ValueError, r"\[0, 1\].*ratios\[0\]=nan"),
        (lambda: Stages(["0.5", 1]), TypeError, r"`ratios\[0\]` must be a number"),
        (lambda: Stages([]), ValueError, "at least one stage"),
        (lambda: Stages(1.0), TypeError, "`ratios` must be a list of numbers"),
        (lambda: Stages("1.0"), TypeError, "`ratios` must be a list of numbers"),
        (
            lambda: Stages([0.5, 0.4, 1]),
            ValueError,
            r"must not decrease.*\[0\.5, 0\.4, 1\.0\]",
        ),
        (
            lambda: Stages([0.5, 1], unit="step"),
            ValueError,
            "`unit` must be one of 'steps', 'epochs', 'fraction'.*mean 'steps'",
        ),
        (
            lambda: Stages([0.5, 1], unit="epochs"),
            ValueError,
            r'`lengths` is needed with `unit="epochs"`',
        ),
        (
            lambda: Stages([0.5, 0.7, 1], [0.5]),
            ValueError,
            "1 lengths for 3 ratios",
        ),
        (
            lambda: Stages([0.5, 1], [1, 1, 1], "steps"),
            ValueError,
            "3 lengths for 2 ratios",
        ),
        (
            lambda: Stages([0.5, 1], [0, 1], "steps"),
            ValueError,
            r"`lengths\[0\]` must be at least 1",
        ),
        (
            lambda: Stages([0.5, 1], [1.5], "steps"),
            TypeError,
            r"`lengths\[0\]` must be an integer",
        ),
        (
            lambda: Stages([0.5, 1], [-1.0], "epochs"),
            ValueError,
            r"`lengths\[0\]` must be a finite number above 0",
        ),
        (
            lambda: Stages([0.5, 0.7, 1], [None, 1, 1], "epochs"),
            TypeError,
            r"`lengths\[0\]` must be a number",
        ),
        (
            lambda: Stages([0.5, 1], [0.5, 0.6]),
            ValueError,
            r"sum must be 1 or less.*\[0\.5, 0\.6\]",
        ),
        (lambda: Stages([0.5, 1], [1.0]), ValueError, "left for the last stage"),
        (lambda: Stages([0.5, 1], [1.0, None]), ValueError, "left for the last stage"),
        (lambda: schedules.exponential(0), ValueError, "`stages` must be at least 1"),
        (lambda: schedules.average(2.0), TypeError, "`stages` must be an integer"),
        (lambda: schedules.exponential(first=2), ValueError, r"\[0, 1\].*first=2"),
        (lambda: schedules.exponential(ramp=1.0), ValueError, "`ramp` must be below 1"),
        (lambda: schedules.exponential(ramp=0), ValueError, "`ramp` must be a finite"),
        (
            lambda: schedules.exponential(ramp=0.3, lengths=[0.1] * 3),
            ValueError,
            "`ramp` takes two or more stages and no `lengths`",
        ),
        (lambda: schedules.exponential(1, ramp=0.3), ValueError, "two or more stages"),
        (
            lambda: schedules.exponential(ramp=2, unit="steps"),
            ValueError,
            "`ramp` must be at least 3",
        ),
        (
            lambda: schedules.finetune(ramp=2, unit="days"),
            ValueError,
            "`unit` must be one of",
        ),
        (lambda: schedules.constant(1.5), ValueError, r"\[0, 1\].*ratio=1\.5"),
        (lambda: Continuous("sine"), ValueError, "'cosine', 'cubic'.*mean 'cosine'"),
        (lambda: schedules.linear(start=-1), ValueError, r"\[0, 1\].*start=-1"),
        (
            lambda: schedules.linear(start=1, end=0.5),
            ValueError,
            "`start` must not be above `end`",
        ),
        (
            lambda: schedules.linear(begin=0.5, length=0.6),
            ValueError,
            r"sum of 1 or less.*begin=0\.5, length=0\.6",
        ),
        (lambda: schedules.linear(begin=1.0), ValueError, "begin` .below 1."),
        (
            lambda: schedules.linear(begin=-1, unit="steps"),
            ValueError,
            "`begin` must be at least 0",
        ),
        (
            lambda: schedules.linear(length=0.5, unit="steps"),
            TypeError,
            "`length` must be an integer",
        ),
        (
            lambda: schedules.linear(length=-0.5),
            ValueError,
            "`length` must be a finite number above 0",
        ),
    ],
)
def test_bad_arguments_raise(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Lengths that mean the same.


def test_length_of_the_last_stage_has_no_effect():
    ratios = [0.5, 1.0]
    short = Stages(ratios, [10], "epochs")
    assert Stages(ratios, [10, 30], "epochs") == short
    assert Stages(ratios, [10.0, None], "epochs") == short
    assert Stages(ratios, [11], "epochs") != short
    assert Stages(ratios, [10], "steps") != short
    assert short != "exponential"
    assert len({short, Stages(ratios, [10, 1], "epochs")}) == 1


def test_equal_lengths_are_the_default():
    assert Stages([0.5, 1.0]) == Stages([0.5, 1.0], [0.5, 0.5])
    # A sum that exceeds 1 by rounding only.
    Stages(np.linspace(0.1, 1, 10), [0.1 + 1e-9] * 10)


# get, serialize, deserialize.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("average", Stages([0.2, 0.4, 0.6, 0.8, 1.0])),
        ("constant", Stages([1.0])),
        ("cosine", Continuous("cosine")),
        ("cubic", Continuous("cubic")),
        ("exponential", Stages([0.5, 0.75, 0.875, 1.0])),
        ("finetune", Stages([0.5, 0.75, 0.875, 1.0])),
        ("linear", Continuous("linear")),
    ],
)
def test_get_name(name, expected):
    assert schedules.get(name) == expected


def test_get_schedule_and_list():
    schedule = schedules.exponential()
    assert schedules.get(schedule) is schedule
    assert schedules.get([0.3, 1]) == Stages([0.3, 1.0])
    assert schedules.get((0.3, 1)) == Stages([0.3, 1.0])


def test_get_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError,
        match="`schedule` must be one of 'average', 'constant', 'cosine', 'cubic', "
        "'exponential', 'finetune', 'layerwise', 'linear', 'short'. Received: "
        "schedule='exponental'. Did you mean 'exponential'",
    ):
        schedules.get("exponental")


@pytest.mark.parametrize("identifier", [None, 0.5, schedules.exponential])
def test_get_something_else_raises(identifier):
    with pytest.raises(TypeError, match="a list of ratios or a serialized schedule"):
        schedules.get(identifier)


@pytest.mark.parametrize(
    "config",
    [{}, {"ratios": [1.0]}, keras.saving.serialize_keras_object(keras.losses.Hinge())],
)
def test_get_dict_of_something_else_raises(config):
    with pytest.raises(ValueError, match="must be what .*serialize` returned"):
        schedules.get(config)


@keras.saving.register_keras_serializable(package="test_schedules")
class Parabola(RatioSchedule):
    """A user's own schedule, in steps."""

    def __init__(self, length):
        self.length = length

    @property
    def end_step(self):
        return self.length

    @property
    def final_ratio(self):
        return 1.0

    def call(self, step):
        return keras.ops.square(keras.ops.cast(step, "float32") / self.length)

    def get_config(self):
        return {"length": self.length}


def test_own_subclass():
    schedule = Parabola(4)
    assert [float(schedule(i)) for i in range(6)] == [0, 0.0625, 0.25, 0.5625, 1, 1]
    assert schedule.stage_starts == (0,)
    assert bind(schedule, 10) is schedule
    assert repr(schedule) == "Parabola(length=4)"
    assert schedules.deserialize(schedules.serialize(schedule)) == schedule
    assert schedule != Parabola(5)
    with pytest.warns(UserWarning, match="only 4 steps"):
        bind(schedule, 4)


def test_own_subclass_without_resolve_raises():
    class Unbound(Parabola):
        bound = False

    with pytest.raises(NotImplementedError, match="Unbound does not define `resolve`"):
        bind(Unbound(4), 10)


def test_schedule_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        RatioSchedule()
