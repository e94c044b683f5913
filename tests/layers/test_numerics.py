"""Kernels at the ends of what floats can hold: finite in, finite out; else, named."""

import itertools

import numpy as np
import pytest
from backends import gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_sq import layers, quantizers
from keras_sq.layers import masks
from keras_sq.layers.selection import (
    DRAWS,
    PROBABILITIES,
    SELECTIONS,
    Selection,
    log_probability,
)
from keras_sq.quantizers import filter_functions

QUANTIZERS = {
    **{name: quantizers.get(name) for name in ("binary", "ternary", "sign")},
    **{name: quantizers.get(name) for name in ("uniform-2", "uniform-8")},
    **{name: quantizers.get(name) for name in ("lq-1", "lq-2", "lq-3", "lq-5")},
    "ternary, released": quantizers.TernaryQuantizer("released"),
    "ternary, filter": quantizers.TernaryQuantizer("filter"),
    "uniform-8, output error": quantizers.UniformQuantizer(8, "output_error"),
    "uniform-3, least squares": quantizers.UniformQuantizer(3, "least_squares"),
}

SELECTED = [
    Selection("filter", probability, way, draw)
    for probability, way, draw in itertools.product(PROBABILITIES, SELECTIONS, DRAWS)
    if draw == "paper" or probability == "linear"
]

# Smallest and largest power of ten of a weight. Sums over a filter are float32: a
# filter of 64 weights of 1e36 has one, one of 3e38 has not (and is refused).
POWERS = {"float32": (-45, 36), "bfloat16": (-45, 36), "float16": (-8, 4)}


def numpy(tensor):
    return np.array(ops.convert_to_numpy(ops.cast(tensor, "float32")), "float64")


def kernel_of(dtype, kind, seed=0, shape=(64, 6)):
    """A kernel with a filter of zeros, and one of a single weight that is none."""
    rng = np.random.default_rng(seed)
    low, high = POWERS[dtype]
    powers = {
        "tiny": np.full(shape, low),
        "small": np.full(shape, low + 7),
        "huge": np.full(shape, high),
        "filters": np.broadcast_to(rng.uniform(low, high, shape[-1]), shape),
        "weights": rng.uniform(low, high, shape),
        "ends": rng.choice([low, high], shape),
    }[kind]
    kernel = np.clip(rng.normal(size=shape), -5, 5) * 10.0**powers
    kernel[..., 0] = 0.0
    kernel[1:, 1] = 0.0
    return ops.cast(ops.convert_to_tensor(kernel.astype("float32")), dtype)


KINDS = ("tiny", "small", "huge", "filters", "weights", "ends")


def check(quantizer, kernel):
    """Checks all that a quantizer computes of a finite kernel."""
    assert np.isfinite(numpy(kernel)).all()
    # Fitted once: learned codebooks take their time, without a graph.
    fits = [quantizer.fit(kernel)]
    if quantizer.state_size:
        state = quantizer.initial_state(64, int(kernel.shape[-1]))
        for step in range(3):
            state = quantizer.update(kernel, state, ops.convert_to_tensor(float(step)))
        fits.append((state,))
    for fitted in fits:
        assert all(np.isfinite(numpy(x)).all() for x in fitted)
        assert np.isfinite(numpy(quantizer.quantize(kernel, *fitted))).all()
        state = fitted if quantizer.state_size else ()
        for errors in (
            quantizer.filter_errors(kernel, *state),
            quantizer.element_errors(kernel, *state),
        ):
            values = numpy(errors)
            assert np.isfinite(values).all() and (values >= 0).all()
        codes = numpy(quantizer.encode(kernel, *fitted))
        np.testing.assert_array_equal(codes, np.round(codes))
        assert np.abs(codes).max() <= quantizer.max_code


@pytest.mark.parametrize("dtype", POWERS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_finite_kernel_gives_finite_results(name, dtype):
    kernels = [kernel_of(dtype, kind) for kind in KINDS]
    if name.startswith("lq-"):  # Filter by filter, and slow: all at once.
        kernels = [ops.concatenate(kernels, axis=-1)]
    for kernel in kernels:
        check(QUANTIZERS[name], kernel)


@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.sampled_from([name for name in QUANTIZERS if not name.startswith("lq-")]),
    st.sampled_from(sorted(POWERS)),
    st.sampled_from(KINDS),
    st.integers(0, 2**31 - 1),
    st.sampled_from([(1, 2), (7, 3), (3, 3, 2, 5), (200, 4)]),
)
def test_any_finite_kernel_gives_finite_results(name, dtype, kind, seed, shape):
    check(QUANTIZERS[name], kernel_of(dtype, kind, seed, shape))


@pytest.mark.parametrize("selection", SELECTED, ids=str)
def test_errors_of_any_size_give_masks_of_the_exact_count(selection):
    rng = np.random.default_rng(0)
    kinds = [
        np.zeros(16),
        np.full(16, filter_functions.LARGEST_ERROR),
        np.full(9, 1e-45),
        10.0 ** rng.uniform(-45, 37, 16),
        np.array([0.0, 1e37, *np.ones(14)]),
    ]
    errors = [ops.convert_to_tensor(kind.astype("float32")) for kind in kinds]
    sizes = [len(kind) for kind in kinds]
    noise = [
        ops.convert_to_tensor(
            rng.random(size * selection.numbers_per_entry).astype("float32")
        )
        for size in sizes
    ]
    before = [ops.convert_to_tensor(rng.random(size) < 0.3) for size in sizes]
    for ratio in (0.25, 0.5, 0.75):
        drawn = selection.masks(errors, ops.convert_to_tensor(ratio), noise, before)
        found = [int(numpy(mask).sum()) for mask in drawn]
        assert found == [size - int((1 - ratio) * size) for size in sizes]


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_log_probability_of_the_largest_error_is_finite(probability):
    errors = ops.convert_to_tensor(np.array([0, 1e-45, 1, 1e37], "float32"))
    assert np.isfinite(numpy(log_probability(errors, probability))).all()


def test_tiny_weights_beside_large_levels_do_not_stop_the_draw():
    # Their errors, 10 / 1e-38, are beyond float32.
    kernel = np.full((4, 3), 10.0, "float32")
    kernel[0] = 1.2e-38
    layer = layers.SQDense(3, kernel_quantizer="binary", granularity="element")
    layer.build((None, 4))
    layer.latent().assign(kernel)
    assert float(numpy(layer.quantization_errors()).max()) == pytest.approx(1e37)
    masks.set_ratio(layer, 0.5)
    assert numpy(layer.mask()).sum() == 6


@pytest.mark.parametrize("granularity", ["filter", "element"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_kernel_that_is_not_finite_is_named_and_nothing_is_drawn(name, granularity):
    layer = layers.SQDense(
        6, kernel_quantizer=QUANTIZERS[name], granularity=granularity, name="bad"
    )
    layer.build((None, 64))
    before = numpy(layer.mask())
    ratio, due = ops.convert_to_tensor(0.5), ops.ones((), "bool")
    for bad in (np.nan, np.inf, -np.inf):
        kernel = np.array(kernel_of("float32", "small"))
        kernel[5, 4] = bad
        layer.latent().assign(kernel)
        # Both ways of noticing: by the errors that are drawn by, and by the kernel.
        assert not numpy(masks.update_masks([layer], ratio, due)).any()
        np.testing.assert_array_equal(numpy(layer.mask()), before)
        with pytest.raises(masks.NotFiniteError, match="layer 'bad' holds NaN"):
            masks.set_ratio(layer, 0.5)


@pytest.mark.parametrize("dtype", POWERS)
def test_layers_of_extreme_kernels_compute_finite_numbers(dtype):
    """Through the layer: hybrid kernel and gradient, in the layer's own dtype."""
    for name in ("binary", "ternary", "sign", "uniform-4", "lq-2"):
        for kind in ("small", "ends"):
            layer = layers.SQDense(
                6, kernel_quantizer=name, dtype=dtype, use_bias=False
            )
            layer.build((None, 64))
            layer.latent().assign(kernel_of(dtype, kind))
            layer.ratio_is_controlled = True
            masks.set_ratio(layer, 0.5)

            def loss(layer=layer):
                kernel = layer.kernel
                return ops.sum(ops.cast(kernel, "float32") * 1e-3), kernel

            (_, kernel), (gradient,) = gradients(loss, variables=[layer.latent()])
            assert np.isfinite(numpy(kernel)).all(), (name, kind)
            assert np.isfinite(numpy(gradient)).all(), (name, kind)


@pytest.mark.parametrize("name", ["binary", "ternary", "uniform-8", "lq-1"])
def test_sum_beyond_float16_is_no_matter(name):
    kernel = ops.cast(ops.full((4096, 2), 60000.0), "float16")
    check(QUANTIZERS[name], kernel)
