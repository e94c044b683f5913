"""Weights as digits of int16 numbers, and the operators that unfold them.

A filter of `L` different values needs `log2(L)` bits a weight. Stock runtimes
have no such type, but they have GATHER: an int16 index `i` into a table whose row
`i` holds the `g` base-`L` digits of `i` stands for `g` weights, where `g` is the
largest with `L**g <= 2**15`:

| levels | 2 | 3 | 4 | 5 | 6, 7, 8 | 9 ... 13 | 14 ... 32 |
|---|---|---|---|---|---|---|---|
| digits an index | 15 | 9 | 7 | 6 | 5 | 4 | 3 |
| bits a weight | 1.07 | 1.78 | 2.29 | 2.67 | 3.2 | 4 | 5.33 |

Here is the arithmetic, that of INT4 and INT2 too; `forms.py` puts it into a file.

Design note: **the table is not in the file.** For two levels it would take 480
KiB. Rows of `a + b` digits are all pairs of a row of `a` digits and one of `b`,
which GATHER (by zeros: it repeats) and CONCATENATION make of two small tables.
"""

import numpy as np

from keras_sq.core.types import Array

NUM_INDICES = 2**15
"""How many indices an int16 holds that are not negative."""

MAX_LEVELS = 32
"""Beyond, an index holds two digits, or one, and int8 codes take no more. Only levels
that have no codes are packed there."""


def digits_per_index(num_levels: int) -> int:
    """Returns the largest `g` with `num_levels**g <= 2**15`."""
    digits, size = 0, num_levels
    while size <= NUM_INDICES:
        digits, size = digits + 1, size * num_levels
    return digits


def pack_digits(digits: Array, num_levels: int) -> Array:
    """Returns digits packed into int16 indices, the first digit highest.

    Args:
        digits: Uint8 array `(weights,)`, below `num_levels`.
        num_levels: The base, 2 to `MAX_LEVELS`.
    """
    group = digits_per_index(num_levels)
    padded = np.pad(digits, (0, -len(digits) % group)).reshape(-1, group)
    packed = np.zeros(len(padded), np.int16)
    for place in range(group):
        packed *= np.int16(num_levels)
        packed += padded[:, place]
    return packed


def pack_bits(values: Array, bits: int) -> Array:
    """Returns integers packed into bytes, the first in the lowest bits.

    Args:
        values: Int8 array of values that `bits` bits hold in two's complement.
        bits: 2 or 4.
    """
    per_byte = 8 // bits
    flat = values.reshape(-1).astype(np.uint8) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    packed = np.zeros(len(flat), np.uint8)
    for place in range(per_byte):
        packed |= flat[:, place] << np.uint8(place * bits)
    return packed


def unpack_bits(data: Array, bits: int, count: int) -> Array:
    """Returns the int8 values of `pack_bits`.

    Raises:
        ValueError: If `data` does not hold `count` values.
    """
    per_byte = 8 // bits
    if len(data) != -(-count // per_byte):
        raise ValueError(f"{len(data)} bytes do not hold {count} {bits}-bit values.")
    values = np.empty((len(data), per_byte), np.int8)
    for place in range(per_byte):
        # To the top of the byte and back, which extends the sign.
        shifted = (data << np.uint8(8 - bits - place * bits)).view(np.int8)
        values[:, place] = shifted >> np.int8(8 - bits)
    return values.reshape(-1)[:count]


def digit_rows(num_levels: int, digits: int) -> Array:
    """Returns the table of all rows of digits, in the order of their numbers.

    Args:
        num_levels: The base.
        digits: How many a row has.

    Returns:
        Int array `(num_levels**digits, digits)`.
    """
    numbers = np.arange(num_levels**digits)[:, np.newaxis]
    return numbers // num_levels ** np.arange(digits)[::-1] % num_levels


def packed_bytes(weights: int, num_levels: int) -> int:
    """Returns how many bytes the packed indices of so many weights take."""
    return 2 * -(-weights // digits_per_index(num_levels))
