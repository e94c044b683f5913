"""The pure functions, against loops and float64, and the sums block by block."""

import keras
import numpy as np
import pytest
from backends import COMPILERS, array, compiled
from keras import ops

from keras_sq.core import compilation
from keras_sq.quantizers import filter_functions


def normal(shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def two_terms(weights, limit, scale):
    """|w| above a limit per filter, and the squared difference to a scalar."""
    size = ops.abs(weights)
    return ops.where(size > limit, size, ops.zeros((), "float32")), ops.square(
        weights - scale
    )


def two_sums(kernel, limit, scale):
    """The same in float64."""
    rows = kernel.astype("float64").reshape(-1, kernel.shape[-1])
    size = np.abs(rows)
    return np.where(size > limit, size, 0).sum(0), np.square(rows - scale).sum(0)


# The bounds of the two paths (65,536 weights; blocks of 16,384, rows joined up to
# 4,096 columns), remainders, odd numbers of rows and filters, fewer rows than a
# block, more filters than a block has weights.
SHAPES = [
    (65535, 1),
    (65536, 1),
    (65537, 1),
    (1023, 64),
    (1024, 64),
    (1025, 64),
    (1056, 64),
    (1279, 64),
    (33, 4096),
    (34, 2048),
    (70, 2049),
    (257, 257),
    (9363, 7),
    (3, 3, 57, 129),
    (2, 5, 7, 11, 101),
    (2, 40000),
    (5, 20011),
    (1, 70001),
    (4, 16384),
    (4, 16385),
    (8, 8193),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filter_sums_by_block_equal_plain(shape, monkeypatch):
    kernel = normal(shape)
    limit = np.linspace(0.1, 1.0, shape[-1], dtype="float32")
    arguments = (ops.array(kernel), ops.array(limit), ops.array(0.25))
    plain = filter_functions.filter_sums(two_terms, *arguments)
    seen = []

    def watched(block, *rest):
        seen.append(tuple(block.shape))
        return two_terms(block, *rest)

    monkeypatch.setattr(compilation, "inside_fused", lambda: True)
    by_block = filter_functions.filter_sums(watched, *arguments)
    for expected, one, other in zip(
        two_sums(kernel, limit, 0.25), plain, by_block, strict=True
    ):
        assert one.dtype == other.dtype == "float32"
        assert one.shape == other.shape == (shape[-1],)
        np.testing.assert_allclose(one, expected, rtol=3e-5)
        np.testing.assert_allclose(other, expected, rtol=3e-5)
    if kernel.size < filter_functions.BLOCKWISE_MIN_SIZE:
        assert seen == [(kernel.size // shape[-1], shape[-1])]
    else:
        largest = max(filter_functions.BLOCK_SIZE, shape[-1])
        assert max(rows * columns for rows, columns in seen) <= largest


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(300, 17), (1030, 64), (3, 20011)], ids=str)
def test_filter_sums_of_candidates(shape, fused, monkeypatch):
    kernel = normal(shape)
    factors = np.linspace(0.5, 2.0, 5, dtype="float32")
    limits = factors[:, None, None] * np.linspace(0.1, 1, shape[-1], dtype="float32")
    seen = []

    def terms(block, limit, factor):
        seen.append(int(np.prod(block.shape)))
        above = ops.where(ops.abs(block) > limit, block, 0.0)
        return above, factor * ops.square(above)

    monkeypatch.setattr(compilation, "inside_fused", lambda: fused)
    monkeypatch.setattr(filter_functions, "UNFUSED_MAX_SIZE", 2**15)
    found = filter_functions.filter_sums(
        terms, ops.array(kernel), ops.array(limits), ops.array(0.25), candidates=5
    )
    above = np.where(np.abs(kernel) > limits, kernel, 0).astype("float64")
    expected = above.sum(1), 0.25 * np.square(above).sum(1)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_allclose(one, other, rtol=3e-5, atol=1e-4)
    # What is written out for all candidates does not grow with the kernel.
    size = filter_functions.BLOCK_SIZE if fused else filter_functions.UNFUSED_MAX_SIZE
    if kernel.size > 2**15:
        assert max(seen) <= max(size / 5, shape[-1])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1025, 64), "float32"),
        ((1056, 64), "float16"),
        ((257, 257), "bfloat16"),
        ((5, 20011), "float32"),
    ],
)
def test_filter_sums_fused_equal_plain(shape, dtype):
    kernel = ops.cast(normal(shape), dtype)
    limit = ops.full((shape[-1],), 0.5)
    plain = filter_functions.filter_sums(two_terms, kernel, limit, ops.array(0.25))
    fused = compilation.fused(
        lambda w, a, b: filter_functions.filter_sums(two_terms, w, a, b)
    )(kernel, limit, ops.array(0.25))
    wide = ops.convert_to_numpy(ops.cast(kernel, "float32"))
    for expected, one, other in zip(
        two_sums(wide, 0.5, 0.25), plain, fused, strict=True
    ):
        np.testing.assert_allclose(one, expected, rtol=3e-5)
        np.testing.assert_allclose(other, expected, rtol=3e-5)


def test_fused_inside_a_compiled_step_equals_plain():
    kernel = ops.array(normal((600, 130)))
    fused = compilation.fused(filter_functions.absolute_sums)
    expected = np.abs(ops.convert_to_numpy(kernel)).astype("float64").sum(0)
    for how in COMPILERS:
        step = compiled(lambda w: fused(w) + 1.0, how)
        np.testing.assert_allclose(step(kernel), expected + 1.0, rtol=1e-5)


@pytest.mark.tensorflow  # On JAX a size makes no difference.
def test_fused_small_kernel_is_not_summed_by_block():
    assert not compilation.inside_fused()
    small = compilation.fused(lambda w: ops.array(compilation.inside_fused()))
    assert not bool(small(ops.ones((3, 2))))
    assert not compilation.inside_fused()


def test_absolute_sums_do_not_saturate_in_float16():
    kernel = ops.full((70000, 2), 2.0, dtype="float16")  # Sum beyond 65,504.
    np.testing.assert_allclose(filter_functions.absolute_sums(kernel), [140000.0] * 2)


def test_absolute_sums_against_loops():
    kernel = normal((2, 3, 4))
    expected = [0.0] * 4
    for i in range(2):
        for j in range(3):
            for k in range(4):
                expected[k] += abs(float(kernel[i, j, k]))
    np.testing.assert_allclose(
        filter_functions.absolute_sums(ops.array(kernel)), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "count"), [((7,), 1), ((5, 2), 5), ((3, 3, 4, 8), 36), ((0, 2), 0)]
)
def test_weights_per_filter(shape, count):
    assert filter_functions.weights_per_filter(np.zeros(shape)) == count


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_binary_codes_of_zeros_are_plus_one(dtype):
    codes = filter_functions.binary_codes(
        ops.cast(ops.array([[-2.0, -0.0, 0.0, 1e-6]]), dtype)
    )
    assert keras.backend.standardize_dtype(codes.dtype) == dtype
    assert array(ops.cast(codes, "float32")).tolist() == [[-1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ternary_codes_threshold_itself_is_zero(dtype):
    kernel = ops.cast(ops.array([[-0.75, 0.75], [-0.5, 0.5], [-0.25, 1.0]]), dtype)
    codes = filter_functions.ternary_codes(kernel, ops.array([0.5, 0.75]))
    assert keras.backend.standardize_dtype(codes.dtype) == dtype
    assert array(ops.cast(codes, "float32")).tolist() == [[-1, 0], [0, 0], [0, 1]]
    codes = filter_functions.ternary_codes(kernel, ops.array(0.5))
    assert array(ops.cast(codes, "float32")).tolist() == [[-1, 1], [0, 0], [0, 1]]


def test_ternary_codes_compare_in_float32():
    # In float16 threshold and weight would be the same number.
    weight = np.float16(0.1)
    codes = filter_functions.ternary_codes(ops.array([[weight]]), ops.array(0.09997))
    assert float(codes[0, 0]) == 1.0
    assert np.float16(0.09997) == weight


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_uniform_codes_round_half_to_even_and_clip(dtype):
    kernel = np.array([[-9.0], [-2.5], [-1.5], [-0.5], [0.5], [1.5], [2.5], [99.0]])
    codes = filter_functions.uniform_codes(ops.cast(kernel, dtype), ops.array([1.0]), 3)
    assert keras.backend.standardize_dtype(codes.dtype) == dtype
    codes = array(ops.cast(codes, "float32")).ravel().tolist()
    assert codes == [-3, -2, -2, 0, 0, 2, 2, 3]


def test_uniform_codes_scale_zero():
    kernel = ops.array([[0.0, 1.0], [-1.0, 1.0]])
    codes = filter_functions.uniform_codes(kernel, ops.array([0.0, 1.0]), 1)
    assert array(codes).tolist() == [[0, 1], [0, 1]]


def test_relative_error_of_nothing_is_zero_and_nan_stays():
    error = array(
        filter_functions.relative_error(
            ops.array([0.0, 1.0, float("nan"), float("inf")]),
            ops.array([0.0, 4.0, float("nan"), float("inf")]),
        )
    )
    assert error[:2].tolist() == [0.0, 0.25]
    assert np.isnan(error[2:]).all()
