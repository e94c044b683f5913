"""Conformance of the quantizers: one row of `TABLE` brings all tests.

The oracles are written from the formulas of the papers in plain Python, weight by
weight, in float64. An oracle takes the rows of a kernel `(weights, filters)` and
returns the scale of each filter and the code of each weight.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
from backends import BACKEND, COMPILERS, JIT_COMPILE, array
from backends import compiled as backend_compiled
from keras import ops

import keras_sq
from keras_sq import quantizers
from keras_sq.core import compilation
from keras_sq.quantizers import (
    BinaryQuantizer,
    Quantizer,
    SignQuantizer,
    TernaryQuantizer,
    UniformQuantizer,
)
from keras_sq.quantizers.uniform import gaussian_scale


@quantizers.register
class PowerOfTwoQuantizer(Quantizer):
    """A user's own: ±2^k or 0, the threshold a fraction of the largest weight."""

    def __init__(self, fraction: float = 0.25) -> None:
        self.fraction = fraction

    @property
    def max_code(self):
        return 1

    def fit(self, kernel):
        wide = ops.abs(ops.cast(kernel, "float32"))
        largest = ops.max(ops.reshape(wide, (-1, kernel.shape[-1])), axis=0)
        exponent = ops.floor(ops.log2(ops.where(largest > 0, largest, 1.0)))
        scale = ops.where(largest > 0, 2.0**exponent, ops.cast(largest, "float32"))
        return scale, self.fraction * largest

    def encode(self, kernel, *fitted):
        above = ops.abs(ops.cast(kernel, "float32")) > fitted[1]
        return ops.where(above, ops.sign(kernel), ops.zeros((), kernel.dtype))

    def get_config(self):
        return {"fraction": self.fraction}


# Oracles.


def columns(rows):
    return [[row[i] for row in rows] for i in range(len(rows[0]))]


def mean(values):
    return sum(values) / len(values)


def sign(value):
    return (value > 0) - (value < 0)


def binary(rows):
    """BWN: α_i = mean|W_i|, w >= 0 -> +1."""
    scales = [mean([abs(w) for w in column]) for column in columns(rows)]
    return scales, [[1 if w >= 0 else -1 for w in row] for row in rows]


def signs(rows):
    return [1.0] * len(rows[0]), binary(rows)[1]


def ternary_with(rows, thresholds):
    scales = []
    for column, threshold in zip(columns(rows), thresholds, strict=True):
        above = [abs(w) for w in column if abs(w) > threshold]
        scales.append(mean(above) if above else 0.0)
    codes = [
        [sign(w) * (abs(w) > t) for w, t in zip(row, thresholds, strict=True)]
        for row in rows
    ]
    return scales, codes


def ternary_layer(factor):
    """TWN: Δ = 0.7·mean|W| over the layer."""

    def oracle(rows):
        threshold = factor * mean([abs(w) for row in rows for w in row])
        return ternary_with(rows, [threshold] * len(rows[0]))

    return oracle


def ternary_released(factor):
    """The released code: Δ = 0.7·mean|W − mean(W)|, W itself compared."""

    def oracle(rows):
        every = [w for row in rows for w in row]
        centre = mean(every)
        threshold = factor * mean([abs(w - centre) for w in every])
        return ternary_with(rows, [threshold] * len(rows[0]))

    return oracle


def ternary_filter(factor):
    def oracle(rows):
        thresholds = [factor * mean([abs(w) for w in c]) for c in columns(rows)]
        return ternary_with(rows, thresholds)

    return oracle


def uniform_codes(rows, scales, n):
    return [
        [
            0 if s == 0 else max(-n, min(n, round(w / s)))  # Halves to even.
            for w, s in zip(row, scales, strict=True)
        ]
        for row in rows
    ]


def uniform_max(bits):
    def oracle(rows):
        n = 2 ** (bits - 1) - 1
        scales = largest_scales(rows, n)
        return scales, uniform_codes(rows, scales, n)

    return oracle


GAUSSIAN = (1.224, 0.651, 0.353, 0.193, 0.105, 0.0573, 0.0309)


def gaussian(bits):
    return dict(zip(range(2, 9), GAUSSIAN, strict=True))[bits]


def uniform_least_squares(bits):
    return least_squares(2 ** (bits - 1) - 1, gaussian(bits))


def uniform_output_error(bits):
    return output_error(2 ** (bits - 1) - 1, gaussian(bits))


def guesses(rows, best):
    """The scale of least squared error for N(0, 1), if it had this mean of |w|."""
    return [
        best * (np.pi / 2) ** 0.5 * mean([abs(w) for w in c]) for c in columns(rows)
    ]


def largest_scales(rows, n):
    return [max(abs(w) for w in column) / n for column in columns(rows)]


def expected_output_error(column, scale, n):
    """E (Σ (q - w) x)² for independent x, each what ReLU leaves of N(0, 1)."""
    errors = [w - scale * max(-n, min(n, round(w / scale))) for w in column]
    x_mean, x_square = 1 / (2 * np.pi) ** 0.5, 0.5
    variance = x_square - x_mean**2
    if n == 1:  # Three levels, which are trained: as if x had no mean.
        x_mean = 0
    return variance * sum(e * e for e in errors) + x_mean**2 * sum(errors) ** 2


def output_error(n, best):
    """The best of eight scales, from the guess to the one that clips nothing."""

    def oracle(rows):
        scales = []
        for column, guess, top in zip(
            columns(rows), guesses(rows, best), largest_scales(rows, n), strict=True
        ):
            if not top:
                scales.append(0.0)
                continue
            least = min(0.7, max(1e-3, guess / top))
            tried = [top * least ** (i / 7) for i in range(8)]
            unit = [w / top for w in column]  # So that no square is beyond floats.
            errors = [expected_output_error(unit, s / top, n) for s in tried]
            # The first of those that are about as good as the best.
            good = [error <= 1.001 * min(errors) for error in errors]
            scales.append(tried[good.index(True)])
        return scales, uniform_codes(rows, scales, n)

    return oracle


def least_squares(n, best):
    """The rule of networks that earlier versions trained."""

    def oracle(rows):
        # The Gaussian guess, or the scale that clips nothing.
        scales = [
            min(pair)
            for pair in zip(guesses(rows, best), largest_scales(rows, n), strict=True)
        ]
        for _ in range(4):
            codes = columns(uniform_codes(rows, scales, n))
            squares = [sum(c * c for c in code) for code in codes]
            products = [
                sum(w * c for w, c in zip(column, code, strict=True))
                for column, code in zip(columns(rows), codes, strict=True)
            ]
            scales = [
                p / s if s else 0.0 for p, s in zip(products, squares, strict=True)
            ]
        return scales, uniform_codes(rows, scales, n)

    return oracle


def power_of_two(rows):
    scales, thresholds = [], []
    for column in columns(rows):
        largest = max(abs(w) for w in column)
        scales.append(2.0 ** np.floor(np.log2(largest)) if largest else 0.0)
        thresholds.append(0.25 * largest)
    return scales, ternary_with(rows, thresholds)[1]


@dataclasses.dataclass
class Row:
    name: str
    make: Callable[[], Quantizer]
    oracle: Callable
    num_levels: int
    alias: str | None = None
    """Its name for `quantizers.get`."""
    by_layer: bool = False
    """Whether filters are fitted together, so that NaN spreads."""
    xla: bool = True
    """False for what differs from another row by a number only: XLA takes its time."""


def _uniform(bits):
    return Row(
        f"uniform-{bits}",
        lambda: UniformQuantizer(bits),
        uniform_output_error(bits) if bits <= 6 else uniform_max(bits),
        2**bits - 1,
        f"uniform-{bits}",
        xla=bits == 4,
    )


def _other_scale(bits, scale):
    """What `uniform-…` has not."""
    oracle = {
        "output_error": uniform_output_error,
        "max": uniform_max,
        "least_squares": uniform_least_squares,
    }[scale]
    return Row(
        f"uniform-{bits} {scale}".replace("_", " "),
        lambda: UniformQuantizer(bits, scale),
        oracle(bits),
        2**bits - 1,
        xla=bits == 4,
    )


TABLE = [
    Row("binary", BinaryQuantizer, binary, 2, "binary"),
    Row("ternary", TernaryQuantizer, ternary_layer(0.7), 3, "ternary", True),
    Row("sign", SignQuantizer, signs, 2, "sign"),
    Row(
        "ternary factor",
        lambda: TernaryQuantizer(threshold_factor=1.25),
        ternary_layer(1.25),
        3,
        by_layer=True,
        xla=False,
    ),
    Row(
        "ternary released",
        lambda: TernaryQuantizer("released"),
        ternary_released(0.7),
        3,
        by_layer=True,
    ),
    Row("ternary filter", lambda: TernaryQuantizer("filter"), ternary_filter(0.7), 3),
    *map(_uniform, range(2, 9)),
    *(_other_scale(bits, "max") for bits in (2, 4, 5)),
    *(_other_scale(bits, "least_squares") for bits in (2, 3, 4, 8)),
    _other_scale(8, "output_error"),
    Row(
        "uniform, 13 levels",
        lambda: UniformQuantizer(4, num_levels=13),
        # Between 7 and 15 levels: a power of the largest code.
        output_error(6, 0.651 * (0.353 / 0.651) ** (np.log(6 / 3) / np.log(7 / 3))),
        13,
        xla=False,
    ),
    Row("own", PowerOfTwoQuantizer, power_of_two, 3),
]
each = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def kernel_of(shape, seed=0, factor=1.0):
    """A kernel with a mean that is not 0 and filters of different sizes."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.2, 1.5, shape[-1])
    return ((rng.normal(size=shape) * spread + 0.1) * factor).astype("float32")


def expected(row, kernel):
    """Scale, codes, quantized kernel, errors of filters and of weights."""
    rows = np.asarray(kernel, "float64").reshape(-1, kernel.shape[-1]).tolist()
    scales, codes = row.oracle(rows)
    quantized = [[c * s for c, s in zip(line, scales, strict=True)] for line in codes]
    filters, elements = [], []
    for w_column, q_column in zip(columns(rows), columns(quantized), strict=True):
        norm = sum(abs(w) for w in w_column)
        difference = sum(abs(w - q) for w, q in zip(w_column, q_column, strict=True))
        filters.append(difference / norm if norm else 0.0)
    for w_row, q_row in zip(rows, quantized, strict=True):
        elements.append(
            [
                abs(w - q) / abs(w) if w else 0.0
                for w, q in zip(w_row, q_row, strict=True)
            ]
        )
    return (
        np.array(scales),
        np.array(codes).reshape(kernel.shape),
        np.array(quantized).reshape(kernel.shape),
        np.array(filters),
        np.array(elements).reshape(kernel.shape),
    )


def computed(quantizer, kernel):
    fitted = quantizer.fit(kernel)
    return (
        fitted[0],
        quantizer.encode(kernel, *fitted),
        quantizer(kernel),
        quantizer.filter_errors(kernel),
        quantizer.element_errors(kernel),
    )


def check(row, kernel, rtol=1e-5, atol=2e-6):
    """Compares everything that a quantizer computes with its oracle."""
    quantizer = row.make()
    tensor = ops.convert_to_tensor(kernel)
    scale, codes, quantized, errors, elements = computed(quantizer, tensor)
    e_scale, e_codes, e_quantized, e_errors, e_elements = expected(row, kernel)
    np.testing.assert_allclose(scale, e_scale, rtol=rtol)
    np.testing.assert_array_equal(codes, e_codes)
    np.testing.assert_allclose(quantized, e_quantized, rtol=rtol)
    np.testing.assert_allclose(errors, e_errors, rtol=rtol, atol=atol)
    # Around a small weight the difference is a difference of rounded numbers.
    np.testing.assert_allclose(elements, e_elements, rtol=1e-4, atol=atol)
    assert quantized.shape == codes.shape == elements.shape == kernel.shape
    assert scale.shape == errors.shape == (kernel.shape[-1],)
    assert scale.dtype == errors.dtype == elements.dtype == "float32"
    np.testing.assert_array_equal(
        quantizer.decode(codes, *quantizer.fit(tensor)), quantized
    )


# Against the oracle.


@each
@pytest.mark.parametrize("shape", [(40, 6), (3, 3, 4, 5), (2, 3, 2, 2, 3)], ids=str)
def test_oracle(row, shape):
    check(row, kernel_of(shape, seed=len(shape)))


@each
def test_oracle_single_filter(row):
    check(row, kernel_of((30, 1)))


@each
def test_oracle_single_weight(row):
    check(row, kernel_of((1, 1)))


@each
def test_oracle_one_weight_per_filter(row):
    check(row, kernel_of((1, 7)))


@each
def test_oracle_zero_filter(row):
    kernel = kernel_of((20, 4))
    kernel[:, 2] = 0.0
    check(row, kernel)
    quantizer = row.make()
    zero = 1.0 if isinstance(quantizer, SignQuantizer) else 0.0
    assert (array(quantizer(kernel))[:, 2] == zero).all()
    assert float(quantizer.filter_errors(kernel)[2]) == 0.0


@each
def test_oracle_all_zero(row):
    check(row, np.zeros((5, 3), "float32"))


@each
def test_oracle_some_zero_weights(row):
    kernel = kernel_of((20, 4))
    kernel[::3] = 0.0
    check(row, kernel)


@each
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_oracle_huge_and_tiny(row, factor):
    check(row, kernel_of((20, 4), factor=factor))


@each
def test_oracle_filters_of_very_different_size(row):
    kernel = kernel_of((20, 3)) * np.array([1e-20, 1.0, 1e20], "float32")
    check(row, kernel)


@each
def test_codes_are_bounded_integers(row):
    quantizer = row.make()
    kernel = ops.array(kernel_of((200, 3)))
    codes = array(quantizer.encode(kernel, *quantizer.fit(kernel)))
    assert (codes == np.round(codes)).all()
    assert np.abs(codes).max() <= quantizer.max_code
    assert quantizer.num_levels == row.num_levels
    for i in range(3):
        assert len(np.unique(codes[:, i])) <= row.num_levels


@each
def test_quantized_kernel_does_not_change_when_quantized_by_its_own_fit(row):
    quantizer = row.make()
    kernel = ops.array(kernel_of((50, 4)))
    fitted = quantizer.fit(kernel)
    once = quantizer.quantize(kernel, *fitted)
    if isinstance(quantizer, TernaryQuantizer | PowerOfTwoQuantizer):
        assert (np.abs(once)[array(once) != 0].min()) > np.min(fitted[1])
    np.testing.assert_array_equal(quantizer.quantize(once, *fitted), once)


def test_signs_are_plus_and_minus_one_and_show_nan():
    kernel = np.array([[0.0, -0.0, 3e38], [-1e-30, np.inf, np.nan]], "float32")
    found = array(SignQuantizer()(ops.array(kernel)))
    np.testing.assert_array_equal(found, [[1, 1, 1], [-1, 1, np.nan]])
    assert SignQuantizer().numbers_per_filter == 0
    assert BinaryQuantizer().numbers_per_filter == 1


@pytest.mark.tensorflow
@pytest.mark.parametrize("target", ["small", "fast"])
def test_signs_in_a_model_and_in_a_file(target, tmp_path):
    model = keras.Sequential(
        [keras.Input((90,)), keras.layers.Dense(64, use_bias=False, name="only")]
    )
    model = keras_sq.quantize_model(model, "sign", overrides={})
    latent = model.get_layer("only").latent().numpy()
    (codes,) = keras_sq.get_codes(model).values()
    np.testing.assert_array_equal(codes.scale, np.ones((1, 64)))
    np.testing.assert_array_equal(codes.codes, np.where(latent >= 0, 1, -1))
    np.testing.assert_array_equal(codes.kernel, codes.codes)
    table = keras_sq.summary(model, print_fn=lambda text: None)
    assert table.rows[0].quantizer == "sign"
    assert table.rows[0].bits == 1.0  # No scale is kept.
    path = tmp_path / "model.tflite"
    report = keras_sq.export(model, path, target=target, allow_untrained=True)
    (kernel,) = report.kernels
    assert kernel.quantized
    assert kernel.levels == 2
    assert report.num_bytes < 0.5 * report.float_bytes


def test_binary_error_is_least_at_its_scale():
    kernel = kernel_of((50, 1)).astype("float64")
    scale = float(BinaryQuantizer().fit(ops.array(kernel, "float32"))[0][0])
    squares = [
        np.square(kernel - s * np.where(kernel >= 0, 1, -1)).sum()
        for s in (scale * 0.99, scale, scale * 1.01)
    ]
    assert squares[1] < squares[0]
    assert squares[1] < squares[2]


def test_scale_where_none_is_said():
    scales = [UniformQuantizer(bits).scale for bits in range(2, 9)]
    assert scales == ["output_error"] * 5 + ["max"] * 2
    assert UniformQuantizer(2) == UniformQuantizer(2, "output_error")
    assert UniformQuantizer(8) != UniformQuantizer(8, "output_error")


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", ["output_error", "least_squares"])
def test_other_scales_are_nearer_than_max_for_gaussian_weights(bits, scale):
    kernel = kernel_of((400, 4))
    near, far = (
        np.square(UniformQuantizer(bits, name)(kernel) - kernel).sum()
        for name in (scale, "max")
    )
    assert near < far


HEAVY_TAILS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student, 5": lambda rng, shape: rng.standard_t(5, shape),
    "Student, 3": lambda rng, shape: rng.standard_t(3, shape),
    "Student, 2": lambda rng, shape: rng.standard_t(2, shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "two values": lambda rng, shape: (
        rng.choice([-1, 1], shape) * rng.normal(1, 0.1, shape)
    ),
}
"""From all that is near the middle to all that is far from it."""


def expected_output_errors(kernel, scales, n):
    """`expected_output_error` of every filter, by NumPy, float64."""
    codes = np.clip(np.rint(kernel / scales), -n, n)
    errors = kernel - scales * codes
    squares = np.square(errors).sum(0)
    return (np.pi - 1) * squares + (n > 1) * np.square(errors.sum(0))


@pytest.mark.parametrize("weights", [9, 64, 576])
@pytest.mark.parametrize("name", HEAVY_TAILS)
def test_scale_of_output_error_is_near_the_best_of_many(name, weights):
    """Neither clipped tails nor a grid that is coarse because of them."""
    kernel = HEAVY_TAILS[name](np.random.default_rng(0), (weights, 50))
    kernel = kernel.astype("float32").astype("float64")
    worse = []
    for bits, levels in ((2, 3), (3, 7), (4, 13), (4, 15), (5, 31), (6, 63)):
        n = levels // 2
        top = np.abs(kernel).max(0) / n
        tried = [
            expected_output_errors(kernel, top * ratio, n)
            for ratio in np.geomspace(0.02, 1, 300)
        ]
        best = np.min(tried, axis=0)
        quantizer = UniformQuantizer(bits, "output_error", num_levels=levels)
        scales = array(quantizer.fit(ops.array(kernel, "float32"))[0])
        found = expected_output_errors(kernel, scales.astype("float64"), n)
        assert (found <= tried[-1] * 1.0001).all()  # That of "max".
        worse.append(found.sum() / best.sum())
        assert worse[-1] < 1.5, (levels, worse)
    assert np.mean(worse) < 1.25


def test_scale_of_output_error_keeps_a_single_large_weight():
    """Least squares began at a guess from the others, and never came back."""
    kernel = np.random.default_rng(0).normal(size=(576, 3)).astype("float32") * 0.01
    kernel[5] = [1.0, -2.0, 0.5]
    lost = []
    for bits in (3, 4, 5, 6, 8):
        found = array(UniformQuantizer(bits, "output_error")(ops.array(kernel)))
        np.testing.assert_allclose(found[5], kernel[5], rtol=0.2)
        old = array(UniformQuantizer(bits, "least_squares")(ops.array(kernel)))
        lost.append(abs(old[5, 0] - 1))
    assert max(lost) > 0.5


def digits_network():
    return keras_sq.models.get("digits_cnn", input_shape=(8, 8, 1), num_classes=10)


def test_trained_networks_of_four_bits_are_nearest_with_the_default_scale():
    """Without any training of their own. Least squares and max: 1.5 times the error."""
    with np.load(
        pathlib.Path(keras_sq.__file__).parent / "datasets/data/digits.npz"
    ) as content:
        x, y = content["images"][..., None] / np.float32(16), content["labels"]
    model = digits_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, jit_compile=JIT_COMPILE)
    kernels = [w for w in model.trainable_variables if len(w.shape) > 1]
    errors = dict.fromkeys((None, "max", "least_squares"), 0.0)
    agreement = dict.fromkeys(errors, 0.0)
    for seed in range(3):  # One network may be lucky with another scale.
        keras.utils.set_random_seed(seed)
        model.set_weights(digits_network().get_weights())
        model.fit(x[:1200], y[:1200], batch_size=64, epochs=6, verbose=0)
        logits = array(model(x[1200:]))
        weights = [array(kernel) for kernel in kernels]
        for scale, levels in itertools.product(errors, (13, 15)):
            quantizer = UniformQuantizer(4, scale, num_levels=levels)
            for kernel, value in zip(kernels, weights, strict=True):
                kernel.assign(quantizer(value))
            found = array(model(x[1200:]))
            errors[scale] += np.std(found - logits) / np.std(logits) / 6
            agreement[scale] += np.mean(found.argmax(-1) == logits.argmax(-1)) / 6
    assert errors[None] < 0.85 * min(errors["max"], errors["least_squares"]), errors
    assert agreement[None] > max(0.95, agreement["max"] - 0.01), agreement


def test_scale_of_output_error_takes_few_operations():
    """Tracing is what a short run pays for, and each candidate would cost it."""
    if BACKEND != "tensorflow":
        pytest.skip("Operations are counted in a graph of TensorFlow.")
    kernel = ops.array(kernel_of((20, 4)))
    counts = {
        scale: len(
            backend_compiled(UniformQuantizer(4, scale), "graph")
            .get_concrete_function(kernel)
            .graph.get_operations()
        )
        for scale in ("max", "output_error", "least_squares")
    }
    assert counts["output_error"] < counts["max"] + 50 < counts["least_squares"]


@pytest.mark.parametrize("num_levels", [3, 5, 7, 9, 11, 13, 15, 21, 31])
def test_scale_for_gaussian_weights_is_about_the_best(num_levels):
    weights = np.random.default_rng(0).standard_normal(100_000)
    most = num_levels // 2

    def error(scale):
        codes = np.clip(np.rint(weights / scale), -most, most)
        return np.square(weights - codes * scale).mean()

    best = min(error(scale) for scale in np.geomspace(0.05, 2, 300))
    assert error(gaussian_scale(most)) < 1.01 * best


def test_13_levels_lose_next_to_nothing_against_15():
    kernel = kernel_of((1000, 8))
    lost = [
        float(np.square(UniformQuantizer(4, num_levels=n)(kernel) - kernel).mean())
        for n in (15, 13)
    ]
    power = float(np.square(kernel).mean())
    assert lost[0] < lost[1] < lost[0] + 0.005 * power


def test_number_of_levels_is_kept():
    quantizer = UniformQuantizer(4, num_levels=13)
    assert (quantizer.num_levels, quantizer.max_code) == (13, 6)
    assert "num_levels=13" in repr(quantizer)
    assert UniformQuantizer.from_config(quantizer.get_config()) == quantizer
    assert quantizer != UniformQuantizer(4) == UniformQuantizer(4, num_levels=15)
    assert UniformQuantizer.from_config({"num_bits": 4, "scale": "max"}).max_code == 7


def test_released_threshold_looks_at_the_centred_weights():
    kernel = np.full((6, 2), 3.0, "float32")
    kernel[0] = [2.0, 2.5]
    assert TernaryQuantizer().fit(ops.array(kernel))[1] > 1.9
    assert TernaryQuantizer("released").fit(ops.array(kernel))[1] < 0.4


# Ways to run.


def used(quantizer, kernel):
    return (
        quantizer(kernel),
        quantizer.filter_errors(kernel),
        quantizer.element_errors(kernel),
    )


@functools.cache
def compiled(name, how):
    """What layers have a row compute, compiled once for all tests of the row."""
    quantizer = next(row for row in TABLE if row.name == name).make()
    return backend_compiled(lambda w: used(quantizer, w), how)


def ways_of(row):
    return [how for how in COMPILERS if row.xla or how != "xla"]


@each
def test_eager_graph_and_xla_agree(row):
    kernel = ops.array(kernel_of((20, 4), seed=3))
    eager = used(row.make(), kernel)
    for how in ways_of(row):
        other = compiled(row.name, how)(kernel)
        for one, two in zip(eager, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


METHODS = ["__call__", "filter_errors", "element_errors"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "row", [x for x in TABLE if x.make().any_shape], ids=lambda row: row.name
)
def test_traced_for_any_shape_computes_the_same_bits(row, method):
    import tensorflow as tf

    function = getattr(row.make(), method)
    traced_once = compilation.traced_once(function)
    for shape in ((27, 5), (40, 1), (7, 33)):
        kernel = kernel_of(shape, seed=sum(shape))
        kernel[:, 0] *= kernel[0, 0]
        one_shape = tf.function(function)(ops.array(kernel))
        np.testing.assert_array_equal(traced_once(ops.array(kernel)), one_shape)


def test_subclass_is_traced_for_any_shape_only_if_it_says_so():
    class LooksAtTheShape(BinaryQuantizer):
        def fit(self, kernel):
            (scale,) = super().fit(kernel)
            return (scale * float(kernel.shape[0]),)

    assert BinaryQuantizer.any_shape
    assert not LooksAtTheShape.any_shape
    layer = keras_sq.layers.SQDense(3, kernel_quantizer=LooksAtTheShape())
    layer.build((None, 4))
    keras_sq.set_ratio(layer, 1.0)
    layer.latent().assign(np.full((4, 3), 0.5))
    outputs = layer(np.ones((1, 4), "float32"), training=True)
    np.testing.assert_allclose(outputs, np.full((1, 3), 8.0))


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_has_nan_error(row, bad):
    kernel = kernel_of((20, 4))
    kernel[7, 2] = bad
    ways = [compiled(row.name, how) for how in ways_of(row)]
    for function in (lambda w: used(row.make(), w), *ways):
        _, errors, elements = function(ops.array(kernel))
        assert np.isnan(errors[2])
        assert np.isnan(elements[7, 2])
        if not row.by_layer:
            assert np.isfinite(np.delete(errors, 2)).all()


@pytest.mark.parametrize(
    "name",
    ["binary", "ternary", "ternary released", "uniform-4", "uniform-5", "sign"],
)
def test_fused_large_kernel_equals_plain(name):
    row = next(row for row in TABLE if row.name == name)
    quantizer = row.make()
    weights = kernel_of((301, 257), seed=1)
    kernel = ops.array(weights)
    both = compilation.fused(lambda w: (quantizer(w), quantizer.filter_errors(w)))
    quantized, errors = both(kernel)
    plain = array(quantizer(kernel))
    # Sums in another order move a threshold by an ulp, and a weight across it.
    close = np.isclose(quantized, plain, rtol=1e-5, atol=0)
    assert np.count_nonzero(~close) <= 2
    np.testing.assert_allclose(errors, quantizer.filter_errors(kernel), rtol=1e-4)
    rows = weights.astype("float64")
    by_numpy = np.abs(rows - plain).sum(0) / np.abs(rows).sum(0)
    np.testing.assert_allclose(errors, by_numpy, rtol=1e-4)
    for bad in (np.nan, np.inf, -np.inf):
        weights[170, 2] = bad
        errors = np.asarray(both(ops.array(weights))[1])
        assert np.isnan(errors[2])
        if not row.by_layer:
            assert np.isfinite(np.delete(errors, 2)).all()


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(row, dtype):
    quantizer = row.make()
    kernel = ops.cast(kernel_of((3, 3, 4, 5), seed=5), dtype)
    rounded = array(ops.cast(kernel, "float32"))
    scale, codes, quantized, errors, elements = computed(quantizer, kernel)
    assert scale.dtype == errors.dtype == elements.dtype == "float32"
    assert keras.backend.standardize_dtype(codes.dtype) == dtype
    assert keras.backend.standardize_dtype(quantized.dtype) == dtype
    e_scale, e_codes, e_quantized, e_errors, _ = expected(row, rounded)
    # Float16 numbers lie on a grid: the largest weights can divide to a half.
    np.testing.assert_allclose(scale, e_scale, rtol=1e-5)
    codes = ops.cast(codes, "float32")
    halves = {"tensorflow": 2, "jax": 3}[BACKEND] if row.num_levels > 3 else 0
    assert np.count_nonzero(codes != e_codes) <= halves
    step = 2.0**-10 if dtype == "float16" else 2.0**-7
    same = array(codes) == e_codes
    np.testing.assert_allclose(
        array(ops.cast(quantized, "float32"))[same], e_quantized[same], rtol=step
    )
    np.testing.assert_allclose(errors, e_errors, rtol=1e-4)


@each
def test_accepts_arrays_and_variables(row):
    quantizer = row.make()
    kernel = kernel_of((10, 3))
    from_tensor = quantizer(ops.array(kernel))
    np.testing.assert_array_equal(quantizer(kernel), from_tensor)
    np.testing.assert_array_equal(quantizer(keras.Variable(kernel)), from_tensor)


# Configuration.


@each
def test_json_round_trip(row):
    quantizer = row.make()
    config = json.loads(json.dumps(quantizers.serialize(quantizer)))
    for again in (quantizers.deserialize(config), quantizers.get(config)):
        assert type(again) is type(quantizer)
        assert again is not quantizer
        assert again == quantizer
        assert hash(again) == hash(quantizer)
        assert again.get_config() == quantizer.get_config()
    kernel = kernel_of((10, 3))
    np.testing.assert_array_equal(again(kernel), quantizer(kernel))


@each
def test_from_config(row):
    quantizer = row.make()
    assert type(quantizer).from_config(quantizer.get_config()) == quantizer


@each
def test_get(row):
    quantizer = row.make()
    assert quantizers.get(quantizer) is quantizer
    if row.alias is not None:
        assert row.alias in quantizers.names()
        assert quantizers.get(row.alias) == quantizer


@each
def test_repr_is_the_call(row):
    quantizer = row.make()
    assert eval(repr(quantizer)) == quantizer  # noqa: S307


def test_rows_differ():
    made = [row.make() for row in TABLE]
    assert len(set(made)) == len(made)
    assert all((a == b) == (a is b) for a in made for b in made)
    assert made[0] != "binary"
    assert made[0] is not None


def test_names_are_all_tested():
    # Learned codebooks have levels in place of a scale: test_learned_quantizer.py.
    learned = [f"lq-{bits}" for bits in range(1, 9)]
    aliases = [row.alias for row in TABLE if row.alias]
    assert [*aliases, *learned] == quantizers.names()


def test_subclass_is_not_its_base():
    class Other(BinaryQuantizer):
        pass

    assert Other() != BinaryQuantizer()
    assert BinaryQuantizer() != Other()


def test_numpy_arguments_serialize():
    quantizer = UniformQuantizer(np.int64(4))
    assert quantizers.get(json.loads(json.dumps(quantizers.serialize(quantizer)))) == (
        UniformQuantizer(4)
    )
    json.dumps(TernaryQuantizer("layer", np.float32(0.5)).get_config())


# Bad input.


def test_get_unknown_name_lists_the_known():
    message = (
        r"must be one of 'binary', 'ternary', 'sign', 'uniform-2',.*'lq-8'\. "
        r"Received: .*='ternery'\. Did you mean 'ternary'\?"
    )
    with pytest.raises(ValueError, match=message):
        quantizers.get("ternery")


@pytest.mark.parametrize("name", ["uniform", "uniform-1", "uniform-9", "", "Binary"])
def test_get_unknown_name(name):
    with pytest.raises(ValueError, match="must be one of 'binary'"):
        quantizers.get(name)


def test_get_class_says_pass_an_instance():
    with pytest.raises(TypeError, match=r"Pass an instance: TernaryQuantizer\(…\)"):
        quantizers.get(TernaryQuantizer)


@pytest.mark.parametrize("value", [None, 2, 1.0, ["binary"], abs])
def test_get_something_else(value):
    with pytest.raises(TypeError, match=r"A quantizer must be.*Received:.*of type"):
        quantizers.get(value)


def test_deserialize_something_else():
    config = keras.saving.serialize_keras_object(keras.regularizers.L2(0.1))
    with pytest.raises(TypeError, match="configuration of a quantizer.*a L2"):
        quantizers.deserialize(config)


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Quantizer()


def test_ternary_unknown_threshold():
    message = "Argument `threshold` must be one of 'layer', 'released', 'filter'"
    with pytest.raises(ValueError, match=message):
        TernaryQuantizer("layers")


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan")])
def test_ternary_bad_factor(factor):
    with pytest.raises(ValueError, match="`threshold_factor` must be a finite number"):
        TernaryQuantizer(threshold_factor=factor)


@pytest.mark.parametrize(("bits", "bound"), [(1, "at least 2"), (9, "at most 8")])
def test_uniform_bits_out_of_range(bits, bound):
    message = rf"Argument `num_bits` must be {bound}\. Received: num_bits={bits}"
    with pytest.raises(ValueError, match=message):
        UniformQuantizer(bits)


@pytest.mark.parametrize("bits", [4.0, "4", True, None])
def test_uniform_bits_no_integer(bits):
    with pytest.raises(TypeError, match="Argument `num_bits` must be an integer"):
        UniformQuantizer(bits)


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        (17, ValueError, "`num_levels` must be at most 15"),
        (7, ValueError, "`num_levels` must be at least 9"),
        (12, ValueError, "`num_levels` must be odd"),
        (13.0, TypeError, "`num_levels` must be an integer"),
    ],
)
def test_uniform_bad_number_of_levels(levels, error, message):
    with pytest.raises(error, match=message):
        UniformQuantizer(4, num_levels=levels)


def test_uniform_unknown_scale():
    message = "Argument `scale` must be one of 'output_error', 'max', 'least_squares'"
    with pytest.raises(ValueError, match=message):
        UniformQuantizer(4, "mean")


def test_integer_kernel_is_an_error():
    with pytest.raises(TypeError, match=r"`kernel` must be a float tensor.*int32"):
        BinaryQuantizer()(ops.array([[1, -3]], "int32"))


def test_quantizer_does_not_change():
    quantizer = TernaryQuantizer()
    with pytest.raises(AttributeError, match=r"Make a new TernaryQuantizer"):
        quantizer.threshold_factor = 0.5
    assert quantizer.threshold_factor == 0.7
