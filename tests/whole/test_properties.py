"""What must hold for any kernel, ratio and model, on thousands of random ones.

The cases are the same at every run. For a longer search with new ones:

    PROPERTY_CASES=20 python -m pytest tests/whole/test_properties.py

makes twenty times as many.
"""

import math
import os

import keras
import numpy as np
from backends import BACKEND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_sq
from keras_sq import quantizers, schedules
from keras_sq.layers import quantized_layers
from keras_sq.layers.selection import Selection

FACTOR = int(os.environ.get("PROPERTY_CASES", "1"))

SHARE = {"tensorflow": 1, "jax": 20}[BACKEND]
"""On JAX each operation is compiled for each shape: a part of the cases."""


def cases(count):
    """Returns the decorator for a property that is tried `count` times."""
    return settings(
        max_examples=max(count * FACTOR // SHARE, 1),
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor), "float64")


SEEDS = st.integers(0, 2**31 - 1)
NAMES = st.sampled_from([n for n in quantizers.names() if not n.startswith("lq-")])
LEARNED = st.sampled_from(["lq-1", "lq-2", "lq-3", "lq-5"])
"""Found by iteration, a hundred times slower: fewer cases."""


@st.composite
def kernels(draw, lowest=-20, highest=20):
    """A kernel `(..., filters)` of any rank and scale, some filters of it odd."""
    rank = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 5)) for _ in range(rank)] + [draw(st.integers(1, 6))]
    rng = np.random.default_rng(draw(SEEDS))
    shapes = {
        "normal": lambda: rng.normal(size=shape),
        "laplace": lambda: rng.laplace(size=shape),
        "uniform": lambda: rng.random(shape),
        "few": lambda: rng.integers(-2, 3, shape).astype("float64"),
        "outlier": lambda: rng.normal(size=shape) ** 7,
    }
    kernel = shapes[draw(st.sampled_from(sorted(shapes)))]()
    kernel *= 10.0 ** draw(st.integers(lowest, highest))
    if draw(st.booleans()):
        kernel[..., 0] = 0.0
    if draw(st.booleans()):
        kernel[..., -1] = kernel[..., -1].flat[0]
    return kernel.astype("float32")


# Quantizers.


@cases(500)
@given(kernels(), NAMES)
def test_quantized_filter_has_few_values_and_its_error_is_exact(kernel, name):
    check_values_and_errors(kernel, name)


@cases(20)
@given(kernels(), LEARNED)
def test_learned_filter_has_few_values_and_its_error_is_exact(kernel, name):
    check_values_and_errors(kernel, name)


def check_values_and_errors(kernel, name):
    quantizer = quantizers.get(name)
    quantized = numpy(quantizer(ops.convert_to_tensor(kernel)))
    assert quantized.shape == kernel.shape
    assert np.isfinite(quantized).all()
    columns = quantized.reshape(-1, kernel.shape[-1])
    for column in columns.T:
        assert len(np.unique(column)) <= quantizer.num_levels
    errors = numpy(quantizer.filter_errors(ops.convert_to_tensor(kernel)))
    assert errors.shape == (kernel.shape[-1],)
    assert np.isfinite(errors).all() and (errors >= 0).all()
    weights = kernel.astype("float64").reshape(columns.shape)
    norms = np.abs(weights).sum(0)
    differences = np.abs(weights - columns).sum(0)
    expected = np.divide(differences, norms, out=np.zeros_like(norms), where=norms > 0)
    np.testing.assert_allclose(errors, expected, rtol=2e-3, atol=2e-5)


@cases(400)
@given(kernels(-6, 6), NAMES, st.integers(-10, 10))
def test_a_kernel_twice_as_large_is_quantized_to_twice_as_much(kernel, name, power):
    if name == "sign":
        return
    quantizer = quantizers.get(name)
    once = numpy(quantizer(ops.convert_to_tensor(kernel)))
    scaled = numpy(quantizer(ops.convert_to_tensor(kernel * np.float32(2.0**power))))
    np.testing.assert_array_equal(scaled, once * 2.0**power)


@cases(300)
@given(kernels(-6, 6), NAMES, SEEDS)
def test_order_of_filters_does_not_matter(kernel, name, seed):
    order = np.random.default_rng(seed).permutation(kernel.shape[-1])
    quantizer = quantizers.get(name)
    quantized = numpy(quantizer(ops.convert_to_tensor(kernel)))
    moved = numpy(quantizer(ops.convert_to_tensor(kernel[..., order])))
    # Sums over the layer may round in another way, and a weight lie between two
    # levels: then it takes either.
    agree = np.isclose(moved, quantized[..., order], rtol=1e-5, atol=0)
    assert agree.mean() > 0.8


@cases(300)
@given(kernels(-3, 3), NAMES, st.sampled_from(["float16", "bfloat16"]))
def test_half_precision_is_quantized_as_its_float32_values(kernel, name, dtype):
    half = ops.cast(ops.convert_to_tensor(kernel), dtype)
    wide = ops.cast(half, "float32")
    if not np.isfinite(numpy(wide)).all():
        return
    quantizer = quantizers.get(name)
    np.testing.assert_allclose(
        numpy(quantizer.filter_errors(half)),
        numpy(quantizer.filter_errors(wide)),
        rtol=1e-5,
        atol=1e-6,
    )
    assert keras.backend.standardize_dtype(quantizer(half).dtype) == dtype


# Selection.

WAYS = st.sampled_from(["roulette", "deterministic", "fixed"])


CHANCES = st.sampled_from(
    [(name, "paper") for name in ("constant", "linear", "softmax", "sigmoid")]
    + [("linear", "released")]
)


@cases(500)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0.0, 1.0, width=32),
    WAYS,
    CHANCES,
    SEEDS,
)
def test_number_of_quantized_entries_is_exact(sizes, ratio, way, chances, seed):
    rng = np.random.default_rng(seed)
    errors = [rng.choice([0.0, 1.0, rng.random()], size) for size in sizes]
    errors = [ops.convert_to_tensor(e.astype("float32")) for e in errors]
    noise = [ops.convert_to_tensor(rng.random(s).astype("float32")) for s in sizes]
    before = [ops.convert_to_tensor(rng.random(size) < 0.5) for size in sizes]
    selection = Selection("filter", chances[0], way, chances[1])
    value = ops.convert_to_tensor(ratio, "float32")
    masks = selection.masks(errors, value, noise, before)
    for mask, size in zip(masks, sizes, strict=True):
        # What stays float is rounded down; a product that float32 cannot tell from
        # the integer above it counts as that.
        product = (1.0 - ratio) * size
        kept = {math.floor(product), math.floor(product + size * 2.0**-22)}
        assert size - int(numpy(mask).sum()) in kept


# Schedules.


@cases(300)
@given(
    st.sampled_from(["exponential", "average", "linear", "cosine", "cubic"]),
    st.floats(0.05, 0.95),
    st.integers(200, 10**6),
)
def test_ratio_grows_to_one_and_stays(name, ramp, total):
    staged = name in ("exponential", "average")
    arguments = {"ramp": ramp} if staged else {"length": ramp}
    schedule = getattr(schedules, name)(**arguments)
    bound = schedule.bind(total_steps=total, steps_per_epoch=None)
    steps = np.unique(np.linspace(0, total - 1, 50).astype("int64"))
    ratios = numpy(bound(ops.convert_to_tensor(steps)))
    assert (np.diff(ratios) >= 0).all()
    assert (ratios >= 0).all() and ratios[-1] == 1.0
    assert numpy(bound(10 * total)) == 1.0
    assert ratios[steps >= math.ceil(ramp * total) + 1].min() == 1.0


# Conversion.

BLOCKS = st.lists(
    st.tuples(
        st.sampled_from(
            ["conv", "dense", "depthwise", "norm", "relu", "separable", "transpose"]
        ),
        st.integers(1, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def model_of(image, blocks, seed):
    """Returns a small model of these layers, with random weights."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 2) if image else (7,))
    x = layers.Dense(3)(x)
    for kind, size, residual in blocks:
        y = layer_of(kind if image or kind in ("norm", "relu") else "dense", size)(x)
        x = layers.Add()([x, y]) if residual and y.shape == x.shape else y
    return keras.Model(inputs, x)


def layer_of(kind, size):
    return {
        "conv": lambda: layers.Conv2D(size, 3, padding="same"),
        "dense": lambda: layers.Dense(size),
        "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same"),
        "norm": layers.BatchNormalization,
        "relu": layers.ReLU,
        "separable": lambda: layers.SeparableConv2D(size, 2, padding="same"),
        "transpose": lambda: layers.Conv2DTranspose(size, 2),
    }[kind]()


@cases(40)
@given(
    st.booleans(),
    BLOCKS,
    st.sampled_from(["binary", "ternary", "uniform-3", "lq-2"]),
    st.sampled_from(["filter", "element"]),
    st.floats(0.0, 1.0),
    SEEDS,
)
def test_copies_and_stripped_model_compute_the_same(
    image, blocks, name, granularity, ratio, seed
):
    model = model_of(image, blocks, seed)
    x = np.random.default_rng(seed).normal(size=(2, *model.input_shape[1:]))
    x = x.astype("float32")
    before = model.get_weights()
    quantized = keras_sq.quantize_model(
        model, name, granularity=granularity, seed=seed, overrides={}
    )
    keras_sq.set_ratio(quantized, ratio)
    expected = numpy(quantized(x))
    plain = keras_sq.strip_quantization(quantized)
    np.testing.assert_allclose(numpy(plain(x)), expected, rtol=1e-5, atol=1e-6)
    again = quantized.__class__.from_config(quantized.get_config())
    again.set_weights(quantized.get_weights())
    np.testing.assert_array_equal(numpy(again(x)), expected)
    for (_, ours), (_, theirs) in zip(
        quantized_layers(quantized), quantized_layers(again), strict=True
    ):
        for weight in ours.quantized_weights:
            np.testing.assert_array_equal(
                numpy(ours.mask(weight)), numpy(theirs.mask(weight))
            )
        np.testing.assert_array_equal(numpy(ours.ratio), numpy(theirs.ratio))
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
