"""Levels, codes and digits: the arithmetic below the exported forms."""

import numpy as np
import pytest

from keras_sq.export.tflite import levels, packing


def unpack_digits(packed, num_levels, count):
    """Returns the uint8 digits of `pack_digits`."""
    group = packing.digits_per_index(num_levels)
    digits = np.empty((len(packed), group), np.uint8)
    rest = packed.copy()
    for place in reversed(range(group)):
        rest, digits[:, place] = np.divmod(rest, np.int16(num_levels))
    return digits.reshape(-1)[:count]


def kernel(max_code, filters=40, size=60, seed=0):
    """Returns codes of all filters, and float32 weights as after folding."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(-max_code, max_code + 1, (filters, size))
    scale = generator.lognormal(0, 3, (filters, 1)).astype("float32")
    factor = generator.normal(0, 1, (filters, 1)).astype("float32")
    return codes, (codes.astype("float32") * scale) * factor


@pytest.mark.parametrize("max_code", [1, 2, 3, 7, 31, 127])
def test_levels_are_the_values_of_each_filter(max_code):
    _, weights = kernel(max_code)
    weights[3] = 0.0
    weights[4] = weights[4, 0]
    found = levels.filter_levels(weights, 255)
    for row, values, count in zip(weights, found.values, found.counts, strict=True):
        expected = sorted(set(row.tolist()))
        assert values[:count].tolist() == expected
        assert set(values[count:].tolist()) <= {expected[-1]}
    assert found.num_levels == found.counts.max()
    indices = found.indices(weights).astype(int)
    np.testing.assert_array_equal(
        np.take_along_axis(found.values, indices, axis=1), weights
    )
    assert (indices < found.counts[:, np.newaxis]).all()


def test_too_many_levels_are_none():
    weights = np.zeros((3, 300), "float32")
    weights[2] = np.arange(300)
    assert levels.filter_levels(weights, 255) is None
    assert levels.filter_levels(weights, 300).counts.tolist() == [1, 1, 300]
    assert levels.filter_levels(np.zeros((0, 4), "float32"), 3) is None


@pytest.mark.parametrize("max_code", [1, 2, 3, 7, 31, 127])
def test_codes_and_scales_give_the_weights(max_code):
    codes, weights = kernel(max_code, seed=1)
    weights[3] = 0.0
    found = levels.filter_levels(weights, 255)
    uniform = levels.uniform_codes(found)
    assert uniform.smallest >= -max_code
    assert uniform.largest <= max_code
    assert (uniform.scale > 0).all()
    picked = np.take_along_axis(
        uniform.codes, found.indices(weights).astype(int), axis=1
    )
    again = picked.astype("float32") * uniform.scale[:, np.newaxis]
    # Two roundings of float32.
    np.testing.assert_allclose(again, weights, rtol=2.0**-22, atol=0)
    assert uniform.largest_error <= 2.0**-22
    # The same codes, but for the sign of the factor and a common divisor.
    for row, expected in zip(
        np.delete(picked, 3, 0), np.delete(codes, 3, 0), strict=True
    ):
        ratios = row[expected != 0] / expected[expected != 0]
        assert len(set(ratios)) <= 1


def test_binary_and_ternary_codes_are_exact_to_the_bit():
    _, weights = kernel(1)
    assert levels.uniform_codes(levels.filter_levels(weights, 3)).largest_error == 0.0


@pytest.mark.parametrize(
    "values", [[-1.5, -0.5, 0.41234, 1.5], [1.0, 1.0 + 1e-5], [1e-3, 1.0, 7.77]]
)
def test_uneven_levels_have_no_codes(values):
    weights = np.array([values], "float32")
    assert levels.uniform_codes(levels.filter_levels(weights, 9)) is None


def test_filters_come_first():
    array = np.arange(24).reshape(1, 2, 3, 4)
    matrix = levels.filters_first(array, 3)
    assert matrix.shape == (4, 6)
    np.testing.assert_array_equal(matrix[1], array[..., 1].ravel())


BITS = {2: 1.07, 3: 1.78, 4: 2.29, 5: 2.67, 6: 3.2, 8: 3.2, 9: 4, 13: 4, 14: 5.33}


@pytest.mark.parametrize("num_levels", BITS)
def test_bits_a_weight(num_levels):
    size = 15 * 9 * 7 * 6 * 5 * 4  # A multiple of every number of digits.
    bits = 8 * packing.packed_bytes(size, num_levels) / size
    assert bits == pytest.approx(BITS[num_levels], abs=0.005)


@pytest.mark.parametrize("num_levels", range(2, packing.MAX_LEVELS + 1))
def test_digits_come_back(num_levels):
    generator = np.random.default_rng(num_levels)
    digits = generator.integers(0, num_levels, 1000).astype("uint8")
    packed = packing.pack_digits(digits, num_levels)
    assert packed.dtype == np.int16
    assert packed.min() >= 0
    assert packed.nbytes == packing.packed_bytes(1000, num_levels)
    group = packing.digits_per_index(num_levels)
    # An oracle of Python's integers.
    for start in range(0, 1000 - group, 7 * group):
        number = int("0")
        for digit in digits[start : start + group]:
            number = number * num_levels + int(digit)
        assert packed[start // group] == number
    np.testing.assert_array_equal(unpack_digits(packed, num_levels, 1000), digits)
    # What GATHER does with them.
    rows = packing.digit_rows(num_levels, group)
    assert rows.shape == (num_levels**group, group)
    np.testing.assert_array_equal(rows[packed].ravel()[:1000], digits)


@pytest.mark.parametrize(("bits", "count"), [(2, 1), (2, 4), (2, 1001), (4, 7)])
def test_packed_bits_come_back(bits, count):
    low = -(2 ** (bits - 1))
    values = np.random.default_rng(0).integers(low, -low, count).astype("int8")
    packed = packing.pack_bits(values, bits)
    assert packed.nbytes == -(-count * bits // 8)
    first = sum(
        (int(value) % 2**bits) << bits * place
        for place, value in enumerate(values[: 8 // bits])
    )
    assert packed[0] == first  # The first value is in the lowest bits.
    np.testing.assert_array_equal(packing.unpack_bits(packed, bits, count), values)
    with pytest.raises(ValueError, match="bytes do not hold"):
        packing.unpack_bits(packed, bits, count + 8)
