"""Soft refresh: exact counts, the exact distribution of what follows a mask.

The oracle goes through every set of released entries, in float64, and draws what is
left with the oracle of `mask_distribution.py`.
"""

import itertools
import json
import math

import keras
import numpy as np
import pytest
from backends import array, compiled
from keras import ops
from mask_distribution import (
    VECTORS,
    count_subsets,
    draw_masks,
    drawn_subsets,
    exact_number,
    fits,
    log_weights,
    subset_probabilities,
)

import keras_sq
from keras_sq import layers, schedules
from keras_sq.layers import masks, ranking
from keras_sq.layers.selection import Selection, SoftRefresh, get_way


def masks_of(layer):
    return array(layer.mask()).reshape(-1)


def element_layer(shape=(20, 15), rate=0.1, seed=0, **settings):
    settings = {"granularity": "element", "probability": "constant"} | settings
    layer = layers.SQDense(
        shape[1], selection=SoftRefresh(rate), mask_seed=seed, **settings
    )
    layer.build((None, shape[0]))
    return layer


def drawn_often(layer, ratio, draws):
    """Returns masks drawn one after the other, a row each."""

    draw = compiled(
        lambda: masks.update_masks([layer], ops.array(ratio), ops.array(True)),
        variables=masks.variables_of([layer]),
    )
    rows = []
    for _ in range(draws):
        draw()
        rows.append(masks_of(layer))
    return np.array(rows)


# The distribution.


def after(held, number, rate, logs, draw):
    """{subset: probability} of the mask that follows `held`."""
    every = frozenset(range(len(logs)))
    found = {}

    def add(subset, chance):
        found[subset] = found.get(subset, 0.0) + chance

    for size in range(len(held) + 1):
        for released in map(frozenset, itertools.combinations(sorted(held), size)):
            chance = rate**size * (1 - rate) ** (len(held) - size)
            stays = held - released
            if len(stays) >= number:
                kept = list(itertools.combinations(sorted(stays), number))
                for subset in kept:
                    add(frozenset(subset), chance / len(kept))
            elif draw == "paper":
                for more, share in drawn_subsets(
                    logs, number - len(stays), every - stays
                ).items():
                    add(stays | more, chance * share)
            else:
                for real, share in drawn_subsets(
                    logs, len(logs) - number, every - stays
                ).items():
                    add(every - real, chance * share)
    return found


@pytest.mark.parametrize(
    ("probability", "draw", "rate"),
    [
        ("constant", "paper", 0.3),
        ("linear", "paper", 0.3),
        ("softmax", "paper", 0.0),
        ("linear", "released", 0.3),
    ],
)
def test_distribution(probability, draw, rate):
    chosen = Selection("filter", probability, SoftRefresh(rate), draw)
    vectors = [e for e in VECTORS if len(e) == 6]
    now, chain = None, [{} for _ in vectors]
    # From a new mask; the same ratio, a larger one, a smaller one.
    for seed, number in enumerate((3, 3, 4, 2)):
        cases = [(errors, number) for errors in vectors]
        now = draw_masks(chosen, cases, 3000, seed, now)
        for index, errors in enumerate(vectors):
            assert (now[index].sum(1) == number).all()
            if seed == 0:  # Nothing to keep: the roulette.
                chain[index] = subset_probabilities(errors, number, probability, draw)
            else:
                logs = log_weights(errors, probability, draw)
                total = {}
                for held, chance in chain[index].items():
                    following = after(held, number, rate, logs, draw)
                    for subset, share in following.items():
                        total[subset] = total.get(subset, 0.0) + chance * share
                chain[index] = total
            assert sum(chain[index].values()) == pytest.approx(1.0)
            assert fits(count_subsets(now[index]), chain[index]), (errors, number)


def test_rate_one_is_the_roulette_bit_for_bit():
    drawn = []
    for way in ("roulette", SoftRefresh(1.0)):
        layer = layers.SQDense(50, selection=way, mask_seed=4)
        keras.utils.set_random_seed(0)
        layer.build((None, 8))
        drawn.append([])
        for ratio in (0.2, 0.5, 0.5, 0.4):
            masks.set_ratio(layer, ratio)
            drawn[-1].append(masks_of(layer))
    np.testing.assert_array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("granularity", ["filter", "element"])
def test_rate_zero_only_adds(granularity):
    layer = element_layer((12, 60), 0.0, granularity=granularity)
    size = masks_of(layer).size
    before = np.zeros(size, bool)
    for step in range(1, 40):
        masks.set_ratio(layer, step / 40)
        now = masks_of(layer)
        assert (now | ~before).all()
        assert now.sum() == exact_number(f"{step / 40:.3f}", size)
        before = now


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_overlap_of_consecutive_masks(rate):
    # At n of m entries, r of them released: r places for the released and the others
    # alike, of which each gets one with chance r / (r + m - n). So of the n entries
    # n - r + r² / (r + m - n) are the same, on average over the binomial r.
    layer = element_layer((50, 40), rate)
    m, n = 2000, 800
    exact = 0.0
    for r in range(n + 1):
        log_choose = math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)
        log_chance = log_choose + r * math.log(rate) + (n - r) * math.log(1 - rate)
        exact += math.exp(log_chance) * (n - r + (r * r / (r + m - n) if r else 0.0))
    # The number that is lost: at most that of r, and of a draw of r at the most.
    variance = n * rate * (1 - rate) + n * rate / 4
    rows, draws = drawn_often(layer, 0.4, 200), 199
    assert (rows.sum(1) == n).all()
    overlaps = (rows[1:] & rows[:-1]).sum(1)
    # Five standard deviations of the mean.
    bound = 5 * math.sqrt(variance / draws)  # Of the mean of independent draws.
    assert abs(np.mean(overlaps) - exact) < bound
    assert bound < 0.25 * (n - exact)  # It tells this rate from its neighbours.


def test_in_the_long_run_every_entry_is_quantized_equally_often():
    layer = element_layer((4, 5), 0.5)
    draws = 2000
    rows = drawn_often(layer, 0.4, draws)
    # Neighbouring draws are alike: at most as if every fourth counted.
    bound = 5 * math.sqrt(0.4 * 0.6 / (draws / 4))
    np.testing.assert_allclose(rows.mean(0), 0.4, atol=bound)


# Counts.


@pytest.mark.parametrize("granularity", ["filter", "element"])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.7, 1.0])
def test_count_is_exact_at_every_step_of_a_ramp(granularity, rate):
    layer = element_layer((9, 70), rate, granularity=granularity)
    size = masks_of(layer).size
    schedule = schedules.cubic(length=60, unit="steps")
    for step in range(0, 62, 3):
        ratio = float(schedule(step))
        masks.set_ratio(layer, ratio)
        kept = math.floor((1 - ratio) * size + min(size * 2**-23, 0.5))
        assert masks_of(layer).sum() == size - kept


def test_large_kernels_by_bisection():
    layer = element_layer((400, 400), 0.05)
    size = 160_000
    assert size > ranking._SORT_MAX_SIZE
    before = None
    for ratio in ("0.250", "0.250", "0.500", "0.125"):
        masks.set_ratio(layer, float(ratio))
        now = masks_of(layer)
        assert now.sum() == exact_number(ratio, size)
        if before is not None:
            held, gone = before.sum(), (before & ~now).sum()
            if ratio == "0.125":  # Of half only a quarter has room.
                assert not (now & ~before).any()
            else:
                # Released and not drawn again, of those that were held.
                places = now.sum() - 0.95 * held
                competing = size - 0.95 * held
                expected = 0.05 * held * (1 - places / competing)
                assert abs(gone - expected) < 5 * math.sqrt(expected)
        before = now


def test_large_kernels_that_fall_drop_at_random():
    layer = element_layer((400, 400), 0.0)
    masks.set_ratio(layer, 0.5)
    before = masks_of(layer)
    masks.set_ratio(layer, 0.25)
    now = masks_of(layer)
    halves = [now[:80_000].sum() / 80_000, now[80_000:].sum() / 80_000]
    np.testing.assert_allclose(halves, 0.25, atol=5 * math.sqrt(0.25 / 80_000))
    assert not (now & ~before).any()


# Configuration.


def test_round_trip_through_a_file(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.SQDense(8, selection=SoftRefresh(0.125), mask_seed=1),
            layers.SQDense(2),
        ]
    )
    keras_sq.set_ratio(model, 0.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    first = loaded.layers[0]
    assert first.quantization_settings.selection == SoftRefresh(0.125)
    np.testing.assert_array_equal(masks_of(first), masks_of(model.layers[0]))
    for _ in range(3):  # They go on alike, too.
        keras_sq.set_ratio(model, 0.5)
        keras_sq.set_ratio(loaded, 0.5)
        np.testing.assert_array_equal(masks_of(first), masks_of(model.layers[0]))


def test_settings_of_a_container_round_trip(tmp_path):
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.SQLSTM(4, selection=SoftRefresh(0.5))]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ((_, cell),) = layers.quantized_layers(loaded)
    assert cell.quantization_settings.selection == SoftRefresh(0.5)


def test_quantize_model_takes_a_name_an_object_and_overrides():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="one"),
            keras.layers.Dense(3, name="two"),
            keras.layers.Dense(3, name="three"),
        ]
    )
    sq_model = keras_sq.quantize_model(
        model,
        selection="soft_refresh",
        overrides={
            "two": {"selection": keras_sq.SoftRefresh(0.25)},
            "three": {"selection": "roulette"},
        },
    )
    ways = [x.quantization_settings.selection for x in sq_model.layers]
    assert ways == [SoftRefresh(0.01), SoftRefresh(0.25), "roulette"]


def test_soft_refresh_is_a_value():
    way = SoftRefresh(np.float32(0.5))
    assert way == SoftRefresh(0.5)
    assert hash(way) == hash(SoftRefresh(0.5))
    json.dumps(way.get_config())
    assert get_way(way) is way
    assert SoftRefresh.from_config(way.get_config()) == way
    numbers = [
        Selection(selection=SoftRefresh(r)).numbers_per_entry for r in (0, 0.5, 1)
    ]
    assert numbers == [1, 2, 1]


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=r"Argument `rate` must be in \[0, 1\]"):
        SoftRefresh(rate)


def test_bad_arguments():
    with pytest.raises(TypeError, match="Argument `rate` must be a number"):
        SoftRefresh("0.1")
    with pytest.raises(ValueError, match=r"Did you mean 'soft_refresh'\?"):
        layers.SQDense(2, selection="softrefresh")
    config = keras.saving.serialize_keras_object(keras.regularizers.L2(0.1))
    with pytest.raises(TypeError, match="configuration of a `SoftRefresh`.*a L2"):
        layers.SQDense(2, selection=config)


def test_masks_of_a_group_keep_their_own():
    # Kernels drawn together, as rows of one matrix of two widths.
    model = keras.Sequential(
        [
            keras.Input((6,)),
            *(
                layers.SQDense(units, selection=SoftRefresh(0.0), mask_seed=units)
                for units in (20, 24, 30)
            ),
        ]
    )
    parts = [layer for _, layer in layers.quantized_layers(model)]
    before = None
    for ratio in (0.25, 0.5, 0.75):
        masks.update_masks(parts, ops.array(ratio), ops.array(True))
        now = [masks_of(layer) for layer in parts]
        assert [m.sum() for m in now] == [exact_number(str(ratio), m.size) for m in now]
        if before is not None:
            assert all((n | ~b).all() for n, b in zip(now, before, strict=True))
        before = now
