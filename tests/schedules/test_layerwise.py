"""Layer after layer: the ratio of each at every step, orders, training."""

import json

import keras
import numpy as np
import pytest
from backends import BACKEND, compiled, two_devices
from backends import array as numpy
from keras import ops
from small_training import assert_same, data, make, state

import keras_sq
from keras_sq import schedules
from keras_sq.callbacks import StochasticQuantization
from keras_sq.layers import masks, quantized_layers
from keras_sq.schedules import Layerwise, Stages

THIRD = 1 / 3

# By hand: turns of 4, 3 and 2 steps; t = 0, 1/3, 2/3, 1 and 0, 1/2, 1 and 0, 1.
LINEAR = [
    (0, 0, 0),
    (THIRD, 0, 0),
    (2 * THIRD, 0, 0),
    (1, 0, 0),
    (1, 0, 0),
    (1, 0.5, 0),
    (1, 1, 0),
    (1, 1, 0),
    (1, 1, 1),
    (1, 1, 1),
    (1, 1, 1),
]
TABLES = {
    "linear": LINEAR,
    "cubic": [[x**3 for x in row] for row in LINEAR],
    "cosine": [[(1 - np.cos(np.pi * x)) / 2 for x in row] for row in LINEAR],
    # Halves of 2 and 2, 2 and 1 (halves round up), 1 and 1 steps.
    "stages": [
        (0.25, 0, 0),
        (0.25, 0, 0),
        (1, 0, 0),
        (1, 0, 0),
        (1, 0.25, 0),
        (1, 0.25, 0),
        (1, 1, 0),
        (1, 1, 0.25),
        (1, 1, 1),
        (1, 1, 1),
        (1, 1, 1),
    ],
}


def table(schedule, steps):
    return np.array([numpy(schedule(step)) for step in range(steps)])


def inner_of(name):
    return Stages([0.25, 1.0]) if name == "stages" else name


# The ratio at every step.


@pytest.mark.parametrize("name", TABLES)
def test_every_step_by_hand(name):
    schedule = Layerwise(inner_of(name), lengths=[4, 3, 2], unit="steps")
    np.testing.assert_allclose(table(schedule, 11), TABLES[name], atol=1e-7)
    assert schedule.starts == (0, 4, 7)
    assert schedule.end_step == 8
    assert schedule.final_ratio == 1.0
    # Exactly 1 where it should be.
    exact = np.array(TABLES[name]) == 1
    np.testing.assert_array_equal(table(schedule, 11) == 1, exact)


def test_equal_shares_of_the_run():
    # 2 layers in three quarters of 8 steps: 3 steps each, then the rest.
    schedule = Layerwise("linear")._replace(lengths=[0.375, 0.375])
    bound = schedule.bind(total_steps=8, steps_per_epoch=4)
    expected = [(0, 0), (0.5, 0), (1, 0), (1, 0), (1, 0.5), (1, 1), (1, 1), (1, 1)]
    np.testing.assert_allclose(table(bound, 8), expected)
    assert bound.stage_starts == (0, 3, 6)


def test_units_agree():
    ways = [
        {"lengths": [3, 4], "unit": "steps"},
        {"lengths": [0.75, 1], "unit": "epochs"},
        {"lengths": [0.15, 0.2], "unit": "fraction"},
    ]
    tables = [
        table(Layerwise(**way).bind(total_steps=20, steps_per_epoch=4), 20)
        for way in ways
    ]
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], tables[2])


def test_a_ramp_that_fills_the_run_ends_fully_quantized():
    schedule = Layerwise(lengths=[0.25, 0.75]).bind(total_steps=12, steps_per_epoch=3)
    assert schedule.lengths == (3, 9)
    assert numpy(schedule(10))[1] < 1
    np.testing.assert_array_equal(numpy(schedule(11)), [1, 1])
    assert schedule.end_step == 11


def test_global_is_the_inner_schedule_over_all_of_it():
    schedule = Layerwise("cubic", "global", ramp=0.5)
    bound = schedule.bind(total_steps=20, steps_per_epoch=None)
    expected = [min(step / 9, 1) ** 3 for step in range(20)]
    found = table(bound, 20)
    assert found.shape == (20,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert bound.stage_starts == (0, 10)


def test_stages_within_a_turn_are_stages():
    schedule = Layerwise(Stages([0.5, 1.0]), lengths=[4, 6], unit="steps")
    assert schedule.stage_starts == (0, 2, 4, 7, 10)


def test_many_turns_in_a_graph_equal_single_steps():
    lengths = [3, 4, 3, 5, 4, 3, 1]
    schedule = Layerwise("cosine", lengths=lengths, unit="steps")
    steps = sum(lengths) + 3
    every = compiled(schedule)(ops.arange(steps))
    np.testing.assert_allclose(numpy(every), table(schedule, steps), atol=1e-6)
    # Each turn is the inner schedule, in a run of its own.
    start = 0
    for turn, length in enumerate(lengths):
        inner = schedules.cosine(length=1.0).bind(
            total_steps=length, steps_per_epoch=None
        )
        np.testing.assert_allclose(
            numpy(every)[start : start + length, turn], table(inner, length), atol=1e-6
        )
        assert not numpy(every)[:start, turn].any()
        assert (numpy(every)[start + length :, turn] == 1).all()
        start += length


def test_run_too_short_warns_and_still_ends_at_one():
    schedule = Layerwise("linear", lengths=[0.25] * 4)
    with pytest.warns(UserWarning, match="2 of 4 layers get no step of their own"):
        bound = schedule.bind(total_steps=2, steps_per_epoch=None)
    # Turns of 1, 0, 1 and 0 steps: who has none is over with the one before.
    np.testing.assert_array_equal(table(bound, 3), [(1, 1, 0, 0), (1,) * 4, (1,) * 4])
    assert bound.stage_starts == (0, 1, 2)


def test_run_shorter_than_the_turns_warns():
    schedule = Layerwise(lengths=[5, 5], unit="steps")
    with pytest.warns(UserWarning, match="reaches ratio 1 at step 9.*would end at"):
        schedule.bind(total_steps=7, steps_per_epoch=None)


def test_before_it_meets_a_model_it_says_so():
    with pytest.raises(ValueError, match=r"use `schedule\.for_model\(model\)\.bind"):
        Layerwise().bind(total_steps=10, steps_per_epoch=5)
    with pytest.raises(ValueError, match="is not bound to a run yet"):
        Layerwise(lengths=[0.5, 0.5])(3)
    with pytest.raises(ValueError, match="needs `total_steps`"):
        Layerwise(lengths=[0.5, 0.5]).bind(total_steps=None, steps_per_epoch=5)


# Order.


def residual():
    """A residual block with its shortcut before it, by creation, and a nested model."""
    keras.utils.set_random_seed(0)
    kl = keras.layers
    shortcut = kl.Conv2D(4, 1, strides=2, name="shortcut")
    logits = kl.Dense(2, name="logits")
    x = keras.Input((8, 8, 3))
    stem = kl.Conv2D(3, 3, padding="same", name="stem")(x)
    y = kl.Conv2D(4, 3, strides=2, padding="same", name="conv1")(stem)
    y = kl.Conv2D(4, 3, padding="same", name="conv2")(y)
    y = kl.Add()([y, shortcut(stem)])
    inside = keras.Sequential(
        [keras.Input((4,)), kl.Dense(5, name="a"), kl.Dense(3, name="b")], name="head"
    )
    y = inside(kl.GlobalAveragePooling2D()(y))
    return keras_sq.quantize_model(
        keras.Model(x, logits(y)), "sign", seed=0, overrides={}
    )


def test_orders_of_a_residual_network():
    model = residual()
    forward = Layerwise().order_of(model)
    # By the graph: the shortcut behind the stem and before what adds it.
    assert sorted(forward) == sorted(path for path, _ in quantized_layers(model))
    place = {path: index for index, path in enumerate(forward)}
    assert place["stem"] == 0
    assert place["conv1"] < place["conv2"] < place["head/a"]
    assert place["stem"] < place["shortcut"] < place["head/a"]
    assert forward[-3:] == ["head/a", "head/b", "logits"]
    assert Layerwise(order="reverse").order_of(model) == forward[::-1]
    assert Layerwise(order="global").order_of(model) == forward


def test_order_by_names_patterns_and_holders():
    model = residual()
    order = ["logits", "head", "conv*", "*"]
    found = Layerwise(order=order).order_of(model)
    assert found[:3] == ["logits", "head/a", "head/b"]
    assert found[3:5] == ["conv1", "conv2"]
    assert sorted(found[5:]) == ["shortcut", "stem"]
    assert found[5] == "stem"


def test_order_that_does_not_fit_is_refused():
    model = residual()
    message = r"'conv3', which matches no quantized layer.*Did you mean 'conv\d'\?"
    with pytest.raises(ValueError, match=message):
        Layerwise(order=["conv3", "*"]).order_of(model)
    message = r"leaves out 'shortcut'.*Add '\*' as the last name"
    with pytest.raises(ValueError, match=message):
        Layerwise(order=["stem", "conv*", "head", "logits"]).order_of(model)
    message = r"one length for each quantized layer of model.*are 7.*Received: 2 len"
    with pytest.raises(ValueError, match=message):
        Layerwise(lengths=[0.5, 0.5]).for_model(model)


def test_for_model_shares_the_ramp():
    model = residual()
    assert Layerwise().for_model(model).lengths == (0.75 / 7,) * 7
    steps = Layerwise(ramp=20, unit="steps").for_model(model)
    assert steps.lengths == (3, 3, 3, 2, 3, 3, 3)
    assert steps.bound
    with pytest.warns(UserWarning, match="5 of 7 layers get no step of their own"):
        Layerwise(ramp=2, unit="steps").for_model(model)
    assert Layerwise(order="global", ramp=2, unit="epochs").for_model(
        model
    ).lengths == (2,)


class Holder(keras_sq.layers.SQDense):
    """A quantized layer that holds another one."""

    def build(self, input_shape):
        self.inner = keras_sq.layers.SQDense(2, name="inner", mask_seed=0)
        self.inner.build((None, 3))
        super().build(input_shape)


def test_layers_within_quantized_layers_have_a_turn():
    x = keras.Input((4,))
    y = keras_sq.layers.SQDense(3, name="first")(x)
    model = keras.Model(x, Holder(2, name="second")(y))
    assert Layerwise().order_of(model) == ["first", "second", "second/inner"]


def test_summary_shows_the_turns():
    model = residual()
    schedule = Layerwise(order="reverse")
    lines = []
    result = keras_sq.summary(model, lines.append, schedule=schedule)
    turns = {row.path: row.turn for row in result.rows if row.turn}
    for turn, path in enumerate(schedule.order_of(model), 1):
        assert turns[f"{path}/kernel"] == turn
    assert lines[0].splitlines()[0].split()[:2] == ["layer", "turn"]
    row = next(x for x in lines[0].splitlines() if "logits/kernel" in x)
    assert row.split()[:2] == ["logits/kernel", "1"]
    together = keras_sq.summary(model, lines.append, schedule=Layerwise(order="global"))
    assert {row.turn for row in together.rows if row.error is not None} == {1}
    plain = keras_sq.summary(model, lines.append, schedule=schedules.cubic())
    assert not any(row.turn for row in plain.rows)
    assert "turn" not in lines[-1]


# Configuration.


@pytest.mark.parametrize(
    "schedule",
    [
        Layerwise(),
        Layerwise("cosine", "reverse", ramp=0.5),
        Layerwise([0.5, 1.0], ["conv*", "*"], ramp=3, unit="epochs"),
        Layerwise("linear", lengths=[3, 4], unit="steps"),
        Layerwise("exponential", "global"),
    ],
    ids=repr,
)
def test_config_round_trip(schedule):
    config = json.loads(json.dumps(schedules.serialize(schedule)))
    again = schedules.deserialize(config)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert schedules.get(config) == schedule
    assert again != Layerwise("linear")
    assert eval(repr(schedule), vars(schedules)) == schedule  # noqa: S307


def test_get_by_name():
    assert schedules.get("layerwise") == Layerwise("cubic", "forward")
    # A curve fills its turn.
    assert Layerwise("cubic") == Layerwise(schedules.cubic(length=1.0))
    late = Layerwise(schedules.linear(begin=0.5))
    assert late.inner.length == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner": "cubical"}, ValueError, "Did you mean 'cubic'"),
        ({"inner": Layerwise()}, ValueError, "`inner` must be a schedule for all"),
        (
            {"inner": schedules.linear(length=3, unit="steps")},
            ValueError,
            r"fractions \(of a layer's turn\)",
        ),
        ({"order": "forwards"}, ValueError, "Did you mean 'forward'"),
        ({"order": []}, ValueError, "at least one layer"),
        ({"order": [1]}, TypeError, "list of layer names"),
        ({"order": None}, TypeError, "`order` must be one of 'forward'"),
        ({"ramp": 0.5, "lengths": [0.5]}, ValueError, "both say how long"),
        ({"unit": "epochs"}, ValueError, 'needed with `unit="epochs"`'),
        ({"unit": "hours"}, ValueError, "`unit` must be one of"),
        ({"ramp": 1.5}, ValueError, "`ramp` must be 1 or less"),
        ({"ramp": 0}, ValueError, "`ramp` must be a finite number above 0"),
        ({"ramp": 2.5, "unit": "steps"}, TypeError, "`ramp` must be an integer"),
        ({"lengths": 0.5}, ValueError, "`lengths` must be a list"),
        ({"lengths": []}, ValueError, "`lengths` must be a list"),
        ({"lengths": [0.5, 0.6]}, ValueError, "sum must be 1 or less"),
        ({"lengths": [0.5, 0]}, ValueError, r"`lengths\[1\]` must be a finite"),
        ({"lengths": [2, 2.5], "unit": "steps"}, TypeError, r"`lengths\[1\]` must be"),
        ({"lengths": [2**30] * 2, "unit": "steps"}, ValueError, "at most 2147483647"),
        (
            {"order": "global", "lengths": [0.2, 0.2]},
            ValueError,
            'one length for `order="global"`',
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Layerwise(**arguments)


# Masks, one compiled call.


def three_layers(**settings):
    keras.utils.set_random_seed(1)
    kl = keras.layers
    model = keras.Sequential(
        [
            keras.Input((10,)),
            kl.Dense(12, name="one"),
            kl.Dense(8, name="two"),
            kl.Dense(5, name="three"),
        ]
    )
    return keras_sq.quantize_model(
        model, "sign", seed=0, skip=(), **{"overrides": {}, **settings}
    )


def counts(model):
    return [int(numpy(layer.mask()).sum()) for _, layer in quantized_layers(model)]


def test_update_masks_with_a_ratio_a_layer():
    model = three_layers()
    parts = [layer for _, layer in quantized_layers(model)]
    traces = []

    def traced(ratio, due):
        traces.append(1)
        return masks.update_masks(parts, ratio, due)

    update = compiled(traced, variables=masks.variables_of(parts))
    seeds = [numpy(part.mask_seed_state) for part in parts]
    for ratios, due, expected in [
        ([1.0, 0.5, 0.0], True, [12, 4, 0]),
        ([1.0, 0.75, 0.0], False, [12, 4, 0]),
        ([0.25, 0.75, 1.0], True, [3, 6, 5]),
        ([1.0, 1.0, 0.25], True, [12, 8, 2]),
        ([1.0, 1.0, 1.0], False, [12, 8, 5]),
    ]:
        flags = update(ops.array(ratios, "float32"), ops.array(due))
        assert numpy(flags).tolist() == [True] * 3
        assert counts(model) == expected
        assert [float(numpy(part.ratio)) for part in parts] == ratios
        assert keras_sq.get_ratio(model) == min(ratios)
    assert len(traces) == 1
    # Random numbers are used where something was drawn only: 1, 2 and 1 times.
    moved = [
        numpy(part.mask_seed_state) - s for part, s in zip(parts, seeds, strict=True)
    ]
    assert moved[0].max() == moved[2].max() > 0
    assert moved[1].max() == 2 * moved[0].max()


def test_update_masks_names_the_layer_that_is_not_finite():
    model = three_layers()
    parts = [layer for _, layer in quantized_layers(model)]
    parts[1].latent().assign(np.full((12, 8), np.nan))
    flags = masks.update_masks(parts, ops.array([0.5, 0.5, 0.5]), ops.array(True))
    assert numpy(flags).tolist() == [True, False, True]
    assert counts(model) == [6, 8, 3]


# Training.


class Ratios(keras.callbacks.Callback):
    """Notes ratios, counts and momentum that each batch is trained with."""

    def __init__(self):
        super().__init__()
        self.ratios, self.counts, self.slots = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        pairs = quantized_layers(self.model)
        self.ratios.append({path: float(numpy(x.ratio)) for path, x in pairs})
        self.counts.append({path: int(numpy(x.mask()).sum()) for path, x in pairs})
        momentums = getattr(self.model.optimizer, "momentums", None) or []
        sizes = [float(np.abs(numpy(v)).max()) for v in momentums]
        self.slots.append(max(sizes, default=0.0))


def train(model, schedule, **arguments):
    noted = Ratios()
    x, y = data()
    noted.history = model.fit(
        x,
        y,
        batch_size=4,
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[StochasticQuantization(schedule, **arguments), noted],
    ).history
    return noted


# 8 steps; `hidden` has 7 filters and 35 weights, `logits` 3 and 21.
@pytest.mark.parametrize(
    ("order", "first", "second"),
    [
        ("forward", "hidden", "logits"),
        ("reverse", "logits", "hidden"),
        (["logits", "hidden"], "logits", "hidden"),
    ],
)
def test_fit_follows_the_table(order, first, second):
    model = make()
    noted = train(model, Layerwise("linear", order, lengths=[4, 3], unit="steps"))
    ratios = [(r[first], r[second]) for r in noted.ratios]
    np.testing.assert_allclose(ratios, [row[:2] for row in LINEAR[:8]], atol=1e-7)
    filters = {"hidden": 7, "logits": 3}
    for ratio, count in zip(noted.ratios, noted.counts, strict=True):
        for path, number in filters.items():
            kept = np.floor((1 - ratio[path]) * number + 1e-5)
            assert count[path] == number - kept
    assert keras_sq.get_ratio(model) == 1.0
    # The log is the part of the weights that is quantized.
    sizes = {"hidden": 35, "logits": 21}
    logged = [sum(r[p] * sizes[p] for p in r) / 56 for r in noted.ratios[3::4]]
    np.testing.assert_allclose(noted.history["quantized_ratio"], logged, rtol=1e-6)


def test_fractions_are_bound_by_the_callback():
    noted = train(make(), Layerwise("linear"))  # 6 of 8 steps, 3 each.
    found = [tuple(r.values()) for r in noted.ratios]
    assert found == [(0, 0), (0.5, 0), (1, 0), (1, 0), (1, 0.5), (1, 1), (1, 1), (1, 1)]


def test_momentum_is_cleared_when_a_turn_begins():
    schedule = Layerwise("linear", lengths=[3, 3], unit="steps")
    noted = train(make(), schedule, clear_momentum=True)
    assert [i for i, slot in enumerate(noted.slots) if slot == 0] == [0, 3, 6]


def test_global_trains_like_its_inner_schedule():
    ours, theirs = make(), make()
    train(ours, Layerwise("linear", "global", ramp=0.75))
    train(theirs, schedules.linear(length=5, unit="steps"))
    assert_same(state(ours), state(theirs))


def test_a_model_half_way_is_not_trained_to_the_end():
    model = make()
    with (
        pytest.warns(UserWarning, match="The schedule reaches ratio 1 at step 19"),
        pytest.warns(UserWarning, match="Training ended at ratio 0.0.*step 19"),
    ):
        train(model, Layerwise(lengths=[4, 16], unit="steps"))
    assert 0 < keras_sq.get_ratio(model) < 1
    ratios = [float(numpy(x.ratio)) for _, x in quantized_layers(model)]
    assert ratios[0] == 1.0
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="trained only part of the way"):
            keras_sq.export(model, "never-written.tflite", target="float")


def test_layers_before_their_turn_train_as_float_layers():
    # At ratio 0 the hidden layer of a reverse run computes with its latent kernel.
    model = make()
    x, _ = data()
    noted = []

    class Outputs(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            layer = self.model.get_layer("hidden")
            kernel, bias = numpy(layer.latent()), numpy(layer.bias)
            expected = np.maximum(x @ kernel + bias, 0)
            found = numpy(layer(x, training=True))
            noted.append(np.allclose(found, expected, atol=1e-6))

    schedule = Layerwise("linear", "reverse", lengths=[4, 2], unit="steps")
    model.fit(
        *data(),
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[StochasticQuantization(schedule), Outputs()],
    )
    assert noted == [True] * 5 + [False] * 3


STOMPP = {
    "kernel_quantizer": "sign",
    "granularity": "element",
    "probability": "constant",
    "selection": keras_sq.SoftRefresh(0.25),
    "input_quantizer": "binary",
    "input_granularity": "element",
    "quantized_gradient": "blocked",
    "full_precision": "clip",
    "skip": (),
}


def all_masks(layer):
    return {name: layer.mask(name) for name in layer.mask_names}


@pytest.mark.tensorflow
def test_replicas_have_the_same_masks_and_single_device_too():
    runs = {}
    for name in ("two", "one"):
        if name == "two":
            with two_devices() as strategy:
                model = make(**STOMPP)
        else:
            model = make(**STOMPP)
        copies = runs[name] = []

        class Replicas(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None, copies=copies):
                for _, layer in quantized_layers(self.model):
                    for mask in all_masks(layer).values():
                        values = strategy.experimental_local_results(mask.value)
                        copies.append([numpy(v) for v in values])

        model.fit(
            *data(),
            batch_size=4,
            epochs=2,
            verbose=0,
            shuffle=False,
            callbacks=[StochasticQuantization(Layerwise(ramp=1.0)), Replicas()],
        )
        runs[name].append([numpy(model(data()[0]))])
    assert len(runs["two"]) == 8 * 4 + 1
    for pair in runs["two"][:-1]:
        assert len(pair) == 2
        np.testing.assert_array_equal(*pair)
    for two, one in zip(runs["two"][:-1], runs["one"][:-1], strict=True):
        np.testing.assert_array_equal(two[0], one[0])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_follows_the_same_masks(policy):
    keras.config.set_dtype_policy(policy)
    noted = train(make(**STOMPP), Layerwise("linear"))
    found = [tuple(r.values()) for r in noted.ratios]
    assert found == [(0, 0), (0.5, 0), (1, 0), (1, 0), (1, 0.5), (1, 1), (1, 1), (1, 1)]
    assert noted.counts[1] == {"hidden": 18, "logits": 0}
    assert np.isfinite(noted.history["loss"]).all()
