"""Masks: their exact distribution, exact counts, and every way of selecting.

A draw without replacement is sequential: one entry after the other, each with
its probability among the entries that are left. `subset_probabilities` goes
through all of them in float64; 20,000 masks of each case are compared with it by
a chi-square test whose bound a right sampler exceeds once in a million.
"""

import functools
import itertools
import json
import math

import keras
import numpy as np
import pytest
from backends import COMPILERS, array, compiled
from keras import ops
from mask_distribution import (
    EPSILON,
    VECTORS,
    chi_square_bound,
    count_subsets,
    draw_masks,
    drawn_subsets,
    exact_number,
    fits,
    log_weights,
    subset_probabilities,
)

from keras_sq import layers
from keras_sq.layers import masks, ranking, selection
from keras_sq.layers.selection import Selection, SoftRefresh

WAYS = [
    ("constant", "paper"),
    ("linear", "paper"),
    ("softmax", "paper"),
    ("sigmoid", "paper"),
    ("linear", "released"),
]

DRAWS = 20_000


# The exact distribution.


def test_oracle_against_all_orders():
    # Once more, as the sum over all orders of drawing.
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = {}
    for order in itertools.permutations(range(4), 2):
        chance, left = 1.0, 1.0
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        key = frozenset(order)
        expected[key] = expected.get(key, 0.0) + chance
    result = drawn_subsets([math.log(w) for w in weights], 2)
    assert result.keys() == expected.keys()
    for key, chance in expected.items():
        assert result[key] == pytest.approx(chance, rel=1e-12)


# The chi-square test.


def test_chi_square_bound():
    # Quantiles of 1 - 1e-6; the approximation is generous where there are few.
    for freedom, quantile in [(1, 23.93), (5, 35.89), (19, 63.68)]:
        assert 1.0 <= chi_square_bound(freedom) / quantile < 1.15


def test_fits_finds_a_difference_of_a_few_percent():
    exact = {frozenset("a"): 0.25, frozenset("b"): 0.75}
    assert fits({frozenset("a"): 5000, frozenset("b"): 15000}, exact)
    assert fits({frozenset("a"): 5250, frozenset("b"): 14750}, exact)
    assert not fits({frozenset("a"): 5400, frozenset("b"): 14600}, exact)
    impossible = {frozenset("a"): 4999, frozenset("b"): 15000, frozenset("c"): 1}
    assert not fits(impossible, exact)


# Drawing many masks.


CASES = [
    *((errors, len(errors) // 2) for errors in VECTORS),
    *((VECTORS[i], number) for i in (1, 6) for number in (1, len(VECTORS[i]) - 1)),
]


@functools.cache
def many_masks(probability, draw):
    chosen = Selection(probability=probability, draw=draw)
    return draw_masks(chosen, CASES, DRAWS, seed=WAYS.index((probability, draw)))


@pytest.mark.parametrize(("probability", "draw"), WAYS)
def test_distribution(probability, draw):
    wrong = []
    for (errors, number), rows in zip(
        CASES, many_masks(probability, draw), strict=True
    ):
        assert (rows.sum(1) == number).all()
        exact = subset_probabilities(errors, number, probability, draw)
        if not fits(count_subsets(rows), exact):
            wrong.append((errors, number))
    assert not wrong


def test_distributions_are_told_apart():
    # The draws of one way don't pass as those of another.
    errors, number = VECTORS[6], 3
    rows = {
        way: many_masks(*way)[CASES.index((errors, number))]
        for way in WAYS
        if way[0] != "sigmoid"  # Nearly constant for errors below 1.
    }
    for way, drawn in rows.items():
        for other in rows:
            exact = subset_probabilities(errors, number, *other)
            assert fits(count_subsets(drawn), exact) == (way == other)


def test_draws_are_independent():
    errors, number = VECTORS[0], 2
    rows = many_masks("linear", "paper")[CASES.index((errors, number))]
    exact = subset_probabilities(errors, number, "linear", "paper")
    pairs = {
        frozenset(one) | frozenset(i + 4 for i in two): p * q
        for one, p in exact.items()
        for two, q in exact.items()
    }
    assert fits(count_subsets(rows.reshape(-1, 8)), pairs)
    # Nor does one kernel's draw tell of another's in the same call.
    other = many_masks("linear", "paper")[CASES.index((VECTORS[3], 2))]
    both = np.concatenate([rows, other], axis=1)
    constant = subset_probabilities(VECTORS[3], 2, "linear", "paper")
    pairs = {
        frozenset(one) | frozenset(i + 4 for i in two): p * q
        for one, p in exact.items()
        for two, q in constant.items()
    }
    assert fits(count_subsets(both), pairs)


@pytest.mark.parametrize("how", COMPILERS)
def test_eager_graph_and_xla_draw_the_same(how):
    rng = np.random.default_rng(0)
    errors = [ops.array(e, "float32") for e in VECTORS]
    uniform = [ops.array(rng.random(len(e), dtype="float32")) for e in VECTORS]
    before = [ops.array(rng.random(len(e)) < 0.3) for e in VECTORS]
    all_ways = [
        *(Selection(probability=name) for name in selection.PROBABILITIES),
        Selection(selection="deterministic"),
        Selection(selection="fixed", probability="softmax"),
        Selection(selection="fixed", draw="released"),
    ]

    def everything(errors, ratio, uniform, before):
        return [way.masks(errors, ratio, uniform, before) for way in all_ways]

    eager = everything(errors, ops.array(0.6), uniform, before)
    other = compiled(everything, how)(errors, ops.array(0.6), uniform, before)
    for one, two in zip(sum(eager, []), sum(other, []), strict=True):
        np.testing.assert_array_equal(one, two)


def test_layer_distribution_from_its_own_random_state():
    # The whole way: kernel -> errors -> mask, random numbers from Keras.
    kernel = np.array([[0.9, 0.7, 0.2, 0.3], [1.1, -0.1, 0.9, -0.2]], "float32")
    layer = layers.SQDense(4, kernel_quantizer="binary", mask_seed=3)
    layer.build((None, 2))
    layer.latent().assign(kernel)
    twin = layers.SQDense(4, kernel_quantizer="binary", mask_seed=4)
    twin.build((None, 2))
    twin.latent().assign(kernel)

    def draw():
        masks.update_masks([layer, twin], ops.array(0.5), ops.array(True))
        return ops.concatenate([layer.mask(), twin.mask()], -1)[0]

    call = compiled(draw, variables=masks.variables_of([layer, twin]))
    rows = np.array([array(call()) for _ in range(4000)])
    q = np.abs(kernel).mean(0) * np.where(kernel >= 0, 1, -1)
    errors = np.abs(kernel - q).sum(0) / np.abs(kernel).sum(0)
    exact = subset_probabilities(errors.tolist(), 2, "linear", "paper")
    assert fits(count_subsets(rows[:, :4]), exact)
    assert fits(count_subsets(rows[:, 4:]), exact)
    same = (rows[:, :4] == rows[:, 4:]).all(1).mean()
    assert abs(same - sum(p * p for p in exact.values())) < 0.05


# e = 0 and other bounds.


@pytest.mark.parametrize("probability", selection.PROBABILITIES)
def test_log_probability_is_finite(probability):
    errors = ops.array([0.0, 1e-30, 1e-7, 0.5, 1.0, 1e6, 1e30])
    logs = array(selection.log_probability(errors, probability))
    assert np.isfinite(logs).all()
    expected = log_weights([0.0, 1e-30, 1e-7, 0.5, 1.0], probability, "paper")
    np.testing.assert_allclose(logs[:5], expected, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("how", ["eager", "xla"])
def test_gumbel_is_finite_and_increases(how):
    uniform = np.array([0.0, 2**-24, 2**-23, 0.5, 1 - 2**-23, 1 - 2**-24], "float32")
    noise = array(compiled(selection.gumbel, how)(ops.array(uniform)))
    assert np.isfinite(noise).all()
    assert (np.diff(noise) <= 0).all()
    assert noise[0] < 17
    np.testing.assert_allclose(noise[3], -math.log(math.log(2)), rtol=1e-5)


def test_gumbel_moments():
    uniform = np.random.default_rng(0).random(400_000, dtype="float32")
    noise = array(selection.gumbel(ops.array(uniform))).astype("float64")
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.02)


@pytest.mark.parametrize("how", selection.SELECTIONS)
@pytest.mark.parametrize(("probability", "draw"), WAYS)
def test_one_entry_and_none(probability, draw, how):
    chosen = Selection("filter", probability, how, draw)
    for sizes in ([1], [0], [1, 0, 3]):
        for ratio, least in [(0.0, 0), (0.5, 1), (1.0, 1)]:
            drawn = chosen.masks(
                [ops.zeros((m,)) for m in sizes],
                ratio,
                [ops.full((chosen.numbers_per_entry * m,), 0.5) for m in sizes],
                [ops.ones((m,), "bool") for m in sizes],
            )
            for size, mask in zip(sizes, drawn, strict=True):
                assert mask.shape == (size,)
                if size == 1:
                    assert int(array(mask).sum()) == least


@pytest.mark.parametrize("how", selection.SELECTIONS)
def test_not_finite_errors_do_not_disturb_other_kernels(how):
    rng = np.random.default_rng(0)
    errors = [[0.1, 0.2, 0.3], [np.nan, 0.5, np.inf, 0.2], [0.4, 0.1]]
    chosen = Selection(selection=how)
    numbers = chosen.numbers_per_entry
    uniform = [rng.random(numbers * len(e), dtype="float32") for e in errors]
    before = [np.zeros(len(e), bool) for e in errors]

    def drawn(which):
        return chosen.masks(
            [ops.array(errors[i], "float32") for i in which],
            0.5,
            [ops.array(uniform[i]) for i in which],
            [ops.array(before[i]) for i in which],
        )

    with_bad = drawn([0, 1, 2])
    np.testing.assert_array_equal(with_bad[0], drawn([0, 2])[0])
    np.testing.assert_array_equal(with_bad[2], drawn([0, 2])[1])


# Counts.

DECIMALS = [f"{i / 1000:.3f}" for i in range(1001)]
SIZES = [1, 2, 3, 4, 5, 6, 7, 10, 16, 63, 64, 100, 500, 512, 1000, 2048]


def test_number_quantized_is_exact_for_decimals():
    ratios = ops.array([float(r) for r in DECIMALS], "float32")
    for size in SIZES:
        numbers = array(selection.number_quantized(ratios, size))
        expected = [exact_number(r, size) for r in DECIMALS]
        np.testing.assert_array_equal(numbers, expected, err_msg=str(size))


@pytest.mark.parametrize("size", SIZES)
def test_number_quantized_is_exact_for_every_filter_count(size):
    ratios = [k / size for k in range(size + 1)]
    numbers = selection.number_quantized(ops.array(ratios, "float32"), size)
    np.testing.assert_array_equal(numbers, np.arange(size + 1))


@pytest.mark.parametrize(
    "size", [10_000, 131_072, 999_999, 4_000_000, 16_777_217, 102_760_448]
)
def test_number_quantized_of_many_entries(size):
    for ratio in ("0", "0.001", "0.3", "0.5", "0.875", "0.9", "0.999"):
        number = int(selection.number_quantized(float(ratio), size))
        # Float32 has 24 bits.
        assert abs(number - exact_number(ratio, size)) <= 1 + size // 2**23
    assert int(selection.number_quantized(0.0, size)) <= size // 2**24
    assert int(selection.number_quantized(1.0, size)) == size


def test_number_quantized_favours_quantizing():
    assert int(selection.number_quantized(0.5, 3)) == 2
    assert int(selection.number_quantized(0.001, 3)) == 1


def test_number_quantized_of_several():
    numbers = selection.number_quantized(
        ops.array([0.5, 0.9, 0.0]), np.array([4, 10, 7], "int32")
    )
    assert numbers.dtype == "int32"
    assert array(numbers).tolist() == [2, 9, 0]


@pytest.mark.parametrize("how", selection.SELECTIONS)
@pytest.mark.parametrize(("probability", "draw"), WAYS)
def test_every_kernel_gets_its_exact_count(probability, draw, how):
    sizes = [1, 4, 5, 6, 64, 7, 100]
    rng = np.random.default_rng(1)
    # Many equal errors, and many that are 0.
    errors = [np.round(rng.random(m), 1).astype("float32") for m in sizes]
    chosen = Selection("filter", probability, how, draw)

    masks_of = compiled(
        lambda ratio, uniform, before: chosen.masks(
            [ops.array(e) for e in errors], ratio, uniform, before
        )
    )
    before = [ops.ones((m,), "bool") for m in sizes]
    for written in ("0", "0.01", "0.2", "0.25", "0.5", "0.7", "0.875", "0.9", "1"):
        numbers = chosen.numbers_per_entry
        uniform = [ops.array(rng.random(numbers * m, dtype="float32")) for m in sizes]
        before = masks_of(ops.array(float(written), "float32"), uniform, before)
        counts = [int(array(mask).sum()) for mask in before]
        assert counts == [exact_number(written, m) for m in sizes]


# Deterministic.


@pytest.mark.parametrize(("probability", "draw"), WAYS)
def test_deterministic_takes_the_lowest_errors(probability, draw):
    chosen = Selection("filter", probability, "deterministic", draw)
    errors = [[0.5, 0.1, 0.3, 0.2], [0.0, 0.9, 0.3, 0.3, 0.3], [0.2, 0.2]]
    drawn = chosen.masks(
        [ops.array(e, "float32") for e in errors],
        0.5,
        [ops.full((len(e),), 0.9) for e in errors],
        [ops.ones((len(e),), "bool") for e in errors],
    )
    assert [array(mask).astype(int).tolist() for mask in drawn] == [
        [0, 1, 0, 1],
        [1, 0, 1, 1, 0],  # Of equal ones the earlier.
        [1, 0],
    ]


# Fixed.


def grow_cases(start, end):
    cases = [(e, (len(e) * start) // 6) for e in VECTORS if len(e) == 6]
    return cases, [(e, (len(e) * end) // 6) for e, _ in cases]


@pytest.mark.parametrize(
    ("probability", "draw"),
    [("linear", "paper"), ("softmax", "paper"), ("linear", "released")],
)
def test_fixed_is_kept_grows_and_is_redrawn(probability, draw):
    chosen = Selection("filter", probability, "fixed", draw)
    draws = 2000
    two, four = grow_cases(2, 4)
    first = draw_masks(chosen, two, draws, 1)
    again = draw_masks(chosen, two, draws, 2, first)
    grown = draw_masks(chosen, four, draws, 3, again)
    fallen = draw_masks(chosen, two, draws, 4, grown)
    logs = [log_weights(e, probability, draw) for e, _ in two]
    for case, (errors, _) in enumerate(two):
        np.testing.assert_array_equal(first[case], again[case])
        assert (grown[case] | ~first[case]).all()  # Nested.
        assert (grown[case].sum(1) == 4).all()
        assert not (grown[case] | ~fallen[case]).all()
        at_two = subset_probabilities(errors, 2, probability, draw)
        assert fits(count_subsets(first[case]), at_two)
        assert fits(count_subsets(fallen[case]), at_two)
        # What is added is drawn among those that are not quantized yet.
        exact = {}
        every = frozenset(range(6))
        for subset, chance in at_two.items():
            left = every - subset
            drawn = drawn_subsets(logs[case], 2, left)
            for part, share in drawn.items():
                quantized = subset | part if draw == "paper" else every - part
                exact[quantized] = exact.get(quantized, 0.0) + chance * share
        assert fits(count_subsets(grown[case]), exact)


def test_fixed_follows_a_whole_schedule():
    layer = layers.SQDense(40, selection="fixed", mask_seed=0)
    layer.build((None, 8))
    before = np.zeros(40, bool)
    for ratio in (0.1, 0.1, 0.25, 0.5, 0.5, 0.875, 1.0):
        masks.set_ratio(layer, ratio)
        now = layer.mask().numpy().reshape(-1)
        assert now.sum() == exact_number(str(ratio), 40)
        assert (now | ~before).all()
        before = now
    masks.set_ratio(layer, 0.5)
    once = layer.mask().numpy().copy()
    masks.set_ratio(layer, 0.25)
    masks.set_ratio(layer, 0.5)
    assert (layer.mask().numpy() != once).any()


# Largest entries, few and many.


def largest_by_sort(scores, number):
    order = np.argsort(-scores, kind="stable")
    chosen = np.zeros(scores.shape, bool)
    chosen[order[:number]] = True
    return chosen


@pytest.mark.parametrize("size", [1, 2, 1000, 2**17, 2**17 + 1])
def test_largest_equals_a_sort(size):
    scores = np.random.default_rng(size).normal(size=size).astype("float32") * 100
    for number in {0, 1, size // 3, size}:
        chosen = compiled_largest()(ops.array(scores[None]), ops.array([number]))
        np.testing.assert_array_equal(chosen[0], largest_by_sort(scores, number))


@functools.cache
def compiled_largest():
    return compiled(ranking.largest)


def hard_scores(size):
    """Scores that are hard to tell apart by halving an interval."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=size).astype("float32")
    return {
        "equal": np.ones(size, "float32"),
        "all zero": np.zeros(size, "float32"),
        "few values": np.round(noise).astype("float32"),
        "softmax": np.where(noise > 1, 1e7, noise).astype("float32"),
        "held": np.where(noise > 0, 1e9, noise).astype("float32"),
        "to keep": np.where(noise > 0, -1e9, noise).astype("float32"),
        "padded": np.where(noise > 2, -np.inf, noise).astype("float32"),
        "large": noise * np.float32(1e30),
    }


@pytest.mark.parametrize("name", hard_scores(1))
def test_largest_of_many_hard_entries(name):
    size = 140_000
    scores = hard_scores(size)[name]
    valid = int((scores > -np.inf).sum())
    for number in (0, 1, 60_000, valid - 1, valid):
        chosen = compiled_largest()(ops.array(scores[None]), ops.array([number]))[0]
        np.testing.assert_array_equal(chosen, largest_by_sort(scores, number))


def test_largest_of_many_keeps_the_count_beyond_its_resolution():
    # Differences of 1e-30 beside 1e9: the order is lost, the count is not.
    scores = np.full(140_000, -1.0, "float32")
    scores[:100] = -1e-30 * np.arange(1, 101)
    scores[100] = -1e9
    for number in (1, 50, 100, 101, 139_999, 140_000):
        chosen = compiled_largest()(ops.array(scores[None]), ops.array([number]))
        assert int(array(chosen).sum()) == number


def test_largest_of_rows_with_a_count_each():
    scores = np.random.default_rng(0).normal(size=(3, 140_000)).astype("float32")
    numbers = [10, 70_000, 139_000]
    for columns in (1000, 140_000):
        part = scores[:, :columns]
        counts = [min(number, columns - 7) for number in numbers]
        chosen = ranking.largest(ops.array(part), ops.array(counts))
        for row, number, mask in zip(part, counts, chosen, strict=True):
            np.testing.assert_array_equal(mask, largest_by_sort(row, number))


def test_largest_tie_break():
    scores = ops.array([[1e7, 1e7, 2.0, 1e7, 3.0]])
    tie_break = ops.array([[0.1, 0.5, 9.0, 0.3, 9.0]])
    chosen = ranking.largest(scores, ops.array([2]), tie_break)
    assert array(chosen).astype(int).tolist() == [[0, 1, 0, 1, 0]]


# Element-wise.


@pytest.mark.parametrize("how", selection.SELECTIONS)
@pytest.mark.parametrize("zero_at", [None, 77])
def test_many_elements(how, zero_at):
    # Beyond 131,072 entries, in one call with a smaller kernel.
    sizes = [131_073, 90_000]
    rng = np.random.default_rng(5)
    errors = [rng.random(m, dtype="float32") for m in sizes]
    chosen = Selection("element", selection=how)
    numbers = chosen.numbers_per_entry
    uniform = [rng.random(numbers * m, dtype="float32") for m in sizes]
    if zero_at is not None:  # Random numbers do come out as 0.
        for u in uniform:
            u[zero_at] = 0.0
    before = [np.zeros(m, bool) for m in sizes]

    masks_of = compiled(
        lambda ratio, before: chosen.masks(
            [ops.array(e) for e in errors],
            ratio,
            [ops.array(u) for u in uniform],
            before,
        )
    )
    for ratio in (0.25, 0.875):
        drawn = [array(m) for m in masks_of(ops.array(ratio), before)]
        for index, mask in enumerate(drawn):
            number = exact_number(str(ratio), sizes[index])
            assert abs(int(mask.sum()) - number) <= 1
            number = int(mask.sum())
            if how == "deterministic":
                scores = -errors[index]
                np.testing.assert_array_equal(mask, largest_by_sort(scores, number))
                continue
            # Another formula for the noise, in float64: rounding may swap
            # entries at the threshold.
            u, *release = np.split(uniform[index].astype("float64"), numbers)
            u += 2.0**-24
            noise = -np.log(-np.log1p(-np.minimum(u, 1 - 2.0**-24)))
            scores = noise - np.log(errors[index].astype("float64") + EPSILON)
            if how == "fixed":
                scores = np.where(before[index], 1e9, scores)
                assert (mask | ~before[index]).all()
            if how == "soft_refresh":
                stays = before[index] & (release[0] >= np.float32(0.01))
                assert (mask | ~stays).all()
                assert stays.sum() < before[index].sum() or not before[index].any()
                scores = np.where(stays, 1e9, scores)
            wrong = mask != largest_by_sort(scores, number)
            assert wrong.sum() <= 4
        before = drawn


def test_many_elements_follow_their_probability():
    # Two kinds of weights, p 4:1; half of the weights drawn. For so many, the
    # share that is drawn of each kind is s and t with s + t = 1 and
    # 1 - t = (1 - s)^(1/4): each is still there after a time of its own.
    size = 140_000
    errors = np.where(np.arange(size) % 2, 0.2, 0.8).astype("float32")
    uniform = np.random.default_rng(0).random(size, dtype="float32")
    (mask,) = Selection("element").masks(
        [ops.array(errors)], 0.5, [ops.array(uniform)], [ops.ones((size,), "bool")]
    )
    s = np.linspace(0.5, 1, 100_001)
    s = s[np.argmin(np.abs(s + 1 - (1 - s) ** 0.25 - 1))]
    counted = array(mask)[1::2].mean()
    assert counted == pytest.approx(s, abs=5 * math.sqrt(0.25 / (size / 2)))


# Selection itself.


def test_config_round_trip():
    chosen = Selection("element", "softmax", "fixed", "paper")
    assert Selection(**chosen.get_config()) == chosen
    assert hash(Selection(**chosen.get_config())) == hash(chosen)
    assert chosen != Selection()
    soft = Selection(selection=SoftRefresh(0.25))
    config = json.loads(json.dumps(soft.get_config()))
    assert Selection(**config) == soft
    assert hash(Selection(**config)) == hash(soft)
    assert soft != Selection(selection="soft_refresh")
    assert Selection(selection=SoftRefresh()) == Selection(selection="soft_refresh")


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ({}, True),
        ({"probability": "constant"}, False),
        ({"probability": "constant", "selection": "fixed"}, False),
        ({"probability": "constant", "selection": "deterministic"}, True),
        ({"probability": "constant", "selection": "soft_refresh"}, False),
        ({"selection": "soft_refresh"}, True),
        ({"draw": "released"}, True),
    ],
)
def test_needs_errors(arguments, needed):
    assert Selection(**arguments).needs_errors is needed


@pytest.mark.parametrize(
    ("argument", "known"),
    [
        ("granularity", "'filter', 'element'"),
        ("probability", "'constant', 'linear', 'softmax', 'sigmoid'"),
        ("selection", "'roulette', 'deterministic', 'fixed', 'soft_refresh'"),
        ("draw", "'paper', 'released'"),
    ],
)
@pytest.mark.parametrize("value", ["unknown", None, 1])
def test_unknown_name(argument, known, value):
    message = f"Argument `{argument}` must be one of {known}. Received: {argument}="
    with pytest.raises(ValueError, match=message):
        Selection(**{argument: value})


def test_released_draw_has_its_own_probability():
    message = r'`draw="released"` draws with p.*Received: probability=\'softmax\''
    with pytest.raises(ValueError, match=message):
        Selection(probability="softmax", draw="released")


def test_compiled_once_for_all_ratios():
    chosen = Selection()
    traces = []

    def function(ratio):
        traces.append(1)
        return chosen.masks(
            [ops.ones((4,))], ratio, [ops.full((4,), 0.5)], [ops.ones((4,), "bool")]
        )

    call = compiled(function)
    for ratio in (0.0, 0.25, 0.5, 1.0):
        (mask,) = call(keras.ops.convert_to_tensor(ratio, "float32"))
        assert int(array(mask).sum()) == 4 * ratio
    assert len(traces) == 1
