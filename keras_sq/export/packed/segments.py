"""How the constants of a file are coded: choosing what takes the fewest bytes.

A form turns bytes into blocks of symbols, which `entropy.py` codes:

- `BITS`: bytes, or parts of them of 4, 2 or 1 bits, the lowest bits first: codes of
  kernels, one or several a byte;
- `PLANES`: every second or fourth byte, each remainder a block: the exponents of
  numbers apart from what is random in them;
- `PALETTE`: values of 1, 2 or 4 bytes of which each channel has few: the number of the
  value among those of the channel. The values come before the segment with the rest of
  the file, `count` for each channel.

What no form makes smaller than DEFLATE stays with the rest of the file, unless it is
large and random: looking for copies there takes long and leads to nothing.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from keras_sq.core.types import Array

BITS, PLANES, PALETTE = range(3)

ALIGNMENT = 4
"""Segments begin and end at multiples of so many bytes, as the rest is coded by the
remainders of its places."""

MAX_COUNT = 64
"""Most values of a channel in a palette."""

_SMALLEST = 64  # Bytes of a constant that is looked at.
_DESCRIPTION = 8  # Bytes of a segment, about.
_RANDOM = 0.95  # What DEFLATE leaves of bytes in which a search for copies is vain.
_LARGE = 1024  # Bytes that are not worth such a search.
_GAIN = 0.99  # What a form with more symbols than another must take of its bytes.


@dataclasses.dataclass(frozen=True)
class Constant:
    """Bytes of a file that are the values of tensors.

    Attributes:
        start: Place of the first byte.
        size: Number of bytes.
        shape: Shape of the first tensor that has these values; `()` if none has.
    """

    start: int
    size: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Palette:
    """The values of a palette.

    Attributes:
        values: Uint8 array: the bytes of the values, channel after channel.
        channels: Number of channels.
        inner: How many values follow each other in one channel.
        count: Number of values of each channel.
    """

    values: Array
    channels: int
    inner: int
    count: int


_Form: TypeAlias = tuple[int, int, tuple[Array, ...], Palette | None]
"""Kind, width, blocks and palette of a segment."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a file in one form.

    Attributes:
        start: Place of the first byte.
        size: Number of bytes.
        kind: `BITS`, `PLANES` or `PALETTE`.
        width: Bits of a symbol, number of planes, or bytes of a value.
        blocks: Symbols, an array for each table.
        palette: The values of a palette.
    """

    start: int
    size: int
    kind: int
    width: int
    blocks: tuple[Array, ...]
    palette: Palette | None = None

    @property
    def num_bytes(self) -> float:
        """Bytes that the segment takes, about."""
        total = float(_DESCRIPTION)
        for block in self.blocks:
            counts = np.bincount(block, minlength=256)
            total += _entropy_bytes(counts[counts > 0])
        if self.palette is not None:
            total += len(zlib.compress(self.palette.values.tobytes(), 6))
        return total


def _entropy_bytes(counts: Array) -> float:
    """Returns the bytes of symbols that occur so often, with their table, about."""
    total = counts.sum()
    entropy = counts @ np.log2(total / counts) / 8 if len(counts) else 0.0
    return float(min(entropy + 2 + 1.5 * len(counts), total + 3))


def choose(content: Array, constants: list[Constant]) -> list[Segment]:
    """Returns the segments of a file, in the order of their places.

    Args:
        content: The bytes of the file, as a uint8 array.
        constants: Where its constants lie, see `buffers.constants`.
    """
    segments = []
    for constant in constants:
        start = -(-constant.start // ALIGNMENT) * ALIGNMENT
        end = (constant.start + constant.size) // ALIGNMENT * ALIGNMENT
        if end - start >= _SMALLEST:
            segment = _best(content[start:end], start, constant)
            if segment is not None:
                segments.append(segment)
    return segments


def _best(data: Array, start: int, constant: Constant) -> Segment | None:
    """Returns the segment that takes the fewest bytes; `None` if DEFLATE does."""
    best, smallest = None, float(len(zlib.compress(data.tobytes(), 6)))
    if smallest > _RANDOM * len(data) and len(data) >= _LARGE:
        smallest = float("inf")
    for form in _forms(data, constant):
        segment = Segment(start, len(data), *form)
        num_bytes = segment.num_bytes
        if num_bytes < smallest:
            best, smallest = segment, num_bytes
    return best


def _forms(data: Array, constant: Constant) -> Iterator[_Form]:
    """Yields the forms to try, those that are decoded fastest first."""
    bits = _best_bits(np.bincount(data, minlength=256))
    yield BITS, bits, (_parts(data, bits),), None
    for width in (2, 4):
        yield PLANES, width, tuple(data[place::width] for place in range(width)), None
    if len(data) == constant.size:
        yield from _palettes(data, constant)


def _best_bits(counts: Array) -> int:
    """Returns of how many bits symbols take the fewest bytes.

    Args:
        counts: Int array `(256,)`: how often each byte occurs.
    """
    best, smallest = 8, _entropy_bytes(counts[counts > 0])
    for bits in (4, 2, 1):
        parts = _parts(np.arange(256, dtype=np.uint8), bits)
        of_parts = np.bincount(parts, np.repeat(counts, 8 // bits))
        num_bytes = _entropy_bytes(of_parts[of_parts > 0])
        if num_bytes < _GAIN * smallest:
            best, smallest = bits, num_bytes
    return best


def _parts(data: Array, bits: int) -> Array:
    """Returns the parts of bytes of so many bits, the lowest first."""
    if bits == 8:
        return data
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts: Array = data[:, np.newaxis] >> shifts & np.uint8(2**bits - 1)
    return parts.reshape(-1)


def _palettes(data: Array, constant: Constant) -> Iterator[_Form]:
    """Yields the palettes of values that fit: of the whole tensor, and by channels."""
    count = math.prod(constant.shape)
    width = constant.size // count if count > 0 else 0
    if width not in (1, 2, 4) or width * count != constant.size:
        return
    values = data.view(f"<u{width}")
    first, last = constant.shape[:1], constant.shape[-1:]
    options = {(1, count)} if width > 1 else set()
    if first:
        options |= {(first[0], count // first[0]), (last[0], 1)}
    for channels, inner in sorted(options):
        symbols, palette = _palette(values, channels, inner)
        if palette is not None:
            yield PALETTE, width, (symbols,), palette


def _palette(values: Array, channels: int, inner: int) -> tuple[Array, Palette | None]:
    """Returns symbols and the palette of values; `None` if a channel has too many."""
    by_outer = values.reshape(-1, channels, inner)
    by_channel = np.moveaxis(by_outer, 1, 0).reshape(channels, -1)
    if len(np.unique(by_channel[0, : 64 * MAX_COUNT])) > MAX_COUNT:
        return values, None
    ordered = np.sort(by_channel, axis=1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = new.sum(axis=1)
    count = int(counts.max())
    if count > MAX_COUNT or count * channels * 2 > len(values):
        return values, None
    table = np.zeros((channels, count), values.dtype)
    table[np.arange(count) < counts[:, np.newaxis]] = ordered[new]
    symbols = np.zeros(by_channel.shape, np.uint8)
    for number in range(1, count):
        exists = (number < counts)[:, np.newaxis]
        symbols += (by_channel >= table[:, number : number + 1]) & exists
    in_order = np.moveaxis(symbols.reshape(channels, -1, inner), 0, 1).reshape(-1)
    return in_order, Palette(table.reshape(-1).view(np.uint8), channels, inner, count)
