"""How often the symbols of a block occur: choosing a table, and its bytes.

A table has a frequency for each of 256 symbols, with the sum 4096. Its bytes are
numbers of 7 bits a byte (`number`): a base, which all symbols have at least, and what
each symbol has beyond it, in their order and to the sum 4096; 0 is followed by how many
more zeros there are. So a table of a few symbols, and one of many that are alike, take
a few bytes.
"""

import numpy as np

from keras_sq.core.types import Array

SCALE_BITS = 12
SCALE = 2**SCALE_BITS
"""Sum of the frequencies of a table."""

EVEN_TABLE = np.full(256, SCALE // 256, np.int64)
"""The table of symbols that are alike."""

_IMPOSSIBLE = 1e12
_HEAVY = (0, 4, 8, 16, 32, 64, 128)  # How many symbols stand out of the others.


class Damaged(ValueError):
    """A packed file that is damaged; the message begins with "it"."""


def best_table(counts: Array) -> Array:
    """Returns the table with which symbols, and the table itself, take fewest bytes.

    Args:
        counts: Int array `(256,)`: how often each symbol occurs. If all are 0, symbol 0
            stands in.

    Returns:
        Int64 array `(256,)` with the sum `SCALE`; at least 1 where `counts` is not 0.
    """
    if not np.any(counts):
        counts = np.eye(1, 256, dtype=np.int64)[0]
    options = [_frequencies(counts, SCALE)]
    if np.count_nonzero(counts) > 16:
        order = np.argsort(-counts, kind="stable")
        options += [_with_base(counts, order[:heavy]) for heavy in _HEAVY]
    return min(options, key=lambda table: total_bits(counts, table))


def _with_base(counts: Array, heavy: Array) -> Array:
    """Returns a table in which all symbols but the heavy ones are alike."""
    others = counts.copy()
    others[heavy] = 0
    base = max(1, round(SCALE * others.sum() / counts.sum() / (256 - len(heavy))))
    if not len(heavy):
        base = SCALE // 256
    table = np.full(256, min(base, SCALE // 256), np.int64)
    beyond = SCALE - table.sum()
    if beyond:
        wanted = np.zeros(256)
        wanted[heavy] = np.maximum(counts[heavy] / counts.sum() * SCALE - table[0], 0.1)
        table += _frequencies(wanted, beyond)
    return table


def _frequencies(counts: Array, total: int) -> Array:
    """Returns integers in proportion to counts with the sum `total`, 1 at least."""
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    table = np.where(present, np.maximum(np.rint(counts / counts.sum() * total), 1), 0)
    while (missing := int(total - table.sum())) != 0:
        step = 1 if missing > 0 else -1
        allowed = present & (table + step >= 1)
        new = np.where(allowed, table + step, 1)
        # Bits that a step costs, negative if it saves some.
        change = counts * (np.log2(np.where(present, table, 1)) - np.log2(new))
        table[np.argmin(np.where(allowed, change, np.inf))] += step
    return table.astype(np.int64)


def symbol_bits(table: Array) -> Array:
    """Returns the bits that each symbol takes, very many if it has no code."""
    return np.where(table, SCALE_BITS - np.log2(np.maximum(table, 1)), _IMPOSSIBLE)


def total_bits(counts: Array, table: Array) -> float:
    """Returns the bits that symbols and their table take.

    Args:
        counts: Int array `(256,)`: how often each symbol occurs.
        table: A table.
    """
    return float(counts @ symbol_bits(table)) + 8 * len(table_bytes(table))


# Bytes.


def number(value: int) -> bytes:
    """Returns the bytes of a number, 7 bits each, the lowest first.

    The highest bit is set in all bytes but the last.
    """
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


class Numbers:
    """The numbers that bytes stand for, handed out in their order.

    Args:
        content: The bytes.

    Raises:
        Damaged: If a number is too large or not complete.
    """

    def __init__(self, content: bytes) -> None:
        self._values: list[int] = []
        self._place = 0
        value = shift = 0
        for byte in content:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                self._values.append(value)
                value = shift = 0
            elif shift > 28:
                raise Damaged("it is damaged: a number of its description is too large")
        if shift:
            raise Damaged("it is damaged: its description is not complete")

    def next(self) -> int:
        """Returns the next number.

        Raises:
            Damaged: If none is left.
        """
        if self._place == len(self._values):
            raise Damaged("it is damaged: its description is too short")
        self._place += 1
        return self._values[self._place - 1]

    def check_end(self) -> None:
        """Checks that all numbers were handed out.

        Raises:
            Damaged: If some are left.
        """
        if self._place != len(self._values):
            raise Damaged("it is damaged: its description is too long")


def table_bytes(table: Array) -> bytes:
    """Returns the bytes of a table."""
    base = int(table.min())
    parts, place, total = [number(base)], 0, 256 * base
    while total < SCALE:
        value = int(table[place]) - base
        parts.append(number(value))
        total, place = total + value, place + 1
        if not value:
            more = int(np.argmax(table[place:] > base))
            parts.append(number(more))
            place += more
    return b"".join(parts)


def read_table(numbers: Numbers) -> Array:
    """Returns the next table.

    Args:
        numbers: The numbers of a description.

    Raises:
        Damaged: If it is none.
    """
    base = numbers.next()
    if base > SCALE // 256:
        raise Damaged("it is damaged: a table is wrong")
    table = np.full(256, base, np.int64)
    missing, place = SCALE - 256 * base, 0
    while missing > 0 and place < 256:
        value = numbers.next()
        table[place] += value
        missing -= value
        place += 1 if value else 1 + numbers.next()
    if missing:
        raise Damaged("it is damaged: a table is wrong")
    return table
