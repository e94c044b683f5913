"""Repeated bytes of a file: literals, and copies of what came before (LZ77).

For what is left of a file without its kernels: scales, names, tables of numbers. Bytes
become seven streams, which `entropy.py` codes, each with a table of its own:

- `RUNS`: for each pair of literals and copy, the number of literals; `LENGTHS`, the
  length of the copy less `SHORTEST`; `DISTANCES`, how far back it begins, or 0 for the
  distance of the last copy. Numbers take 7 bits a byte, the lowest first; the highest
  bit is set in all bytes but the last.
- four streams of literals, for places of the four remainders modulo 4. The bytes of
  float32 numbers are thus told apart: the highest ones have few values.

The last literals have no copy behind them.
"""

from typing import TypeAlias

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.packed.tables import Damaged

SHORTEST = 3
"""Length of the shortest copy."""

RUNS, LENGTHS, DISTANCES = range(3)
NUM_STREAMS = 7

MAX_BYTES = 2**22
"""Most bytes that `split` searches; what follows becomes literals."""

PASSES = 3
"""How often copies are chosen, each time with the costs that the last choice led to."""

Copy: TypeAlias = tuple[int, int, int]
"""Place, length and distance of a copy."""

_WINDOWS = (3, 4, 8, 16)  # Bytes that are compared to find where a copy may begin.


def split(content: Array) -> list[Array]:
    """Returns the seven streams of bytes.

    Args:
        content: Uint8 array of one dimension.
    """
    search = _Search(content)
    streams = _streams(content, [])
    for _ in range(PASSES):
        streams = _streams(content, search.copies(_Costs(content, streams)))
    return streams


def join(streams: list[Array], size: int) -> Array:
    """Returns the bytes that `split` made streams of.

    Args:
        streams: The seven streams.
        size: Number of bytes.

    Raises:
        Damaged: If the streams are too short, or do not fit each other.
    """
    runs, lengths, distances = (_numbers(stream) for stream in streams[:3])
    literals = [stream.tobytes() for stream in streams[3:]]
    places = [0] * 4
    content = bytearray(size)
    at = distance = number = 0
    damaged = Damaged("it is damaged: its copies do not fit")
    while at < size:
        if number == len(runs):
            raise damaged
        end = at + runs[number]
        if end > size:
            raise damaged
        for first in range(at, min(at + 4, end)):
            lane = first % 4
            count = -(-(end - first) // 4)
            part = literals[lane][places[lane] : places[lane] + count]
            if len(part) < count:
                raise damaged
            content[first:end:4] = part
            places[lane] += count
        at = end
        if at == size:
            break
        if number >= min(len(lengths), len(distances)):
            raise damaged
        distance = distances[number] or distance
        end = at + lengths[number] + SHORTEST
        if not 0 < distance <= at or end > size:
            raise damaged
        copied = content[at - distance : min(end - distance, at)]
        content[at:end] = (copied * (-(-(end - at) // len(copied))))[: end - at]
        at = end
        number += 1
    return np.frombuffer(content, np.uint8)


# Numbers as bytes.


def _number_bytes(numbers: Array) -> Array:
    """Returns the bytes of numbers, 7 bits each."""
    numbers = np.asarray(numbers, np.int64)
    groups = np.arange(5) * 7
    parts = (numbers[:, np.newaxis] >> groups) & 127
    used = (numbers[:, np.newaxis] >> groups > 0) | (groups == 0)
    more = np.concatenate([used[:, 1:], np.zeros((len(numbers), 1), bool)], axis=1)
    encoded: Array = (parts | more << 7)[used].astype(np.uint8)
    return encoded


def _numbers(encoded: Array) -> list[int]:
    """Returns the numbers that bytes stand for.

    Raises:
        Damaged: If one is not complete, or too large.
    """
    ends = np.nonzero(encoded < 128)[0]
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    widths = ends - starts + 1
    if len(encoded) and (not len(ends) or ends[-1] != len(encoded) - 1):
        raise Damaged("it is damaged: its last number is not complete")
    if len(widths) and widths.max() > 5:
        raise Damaged("it is damaged: one of its numbers is too large")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(5):
        longer = widths > place
        values = encoded[starts[longer] + place].astype(np.int64) & 127
        numbers[longer] |= values << (7 * place)
    result: list[int] = numbers.tolist()
    return result


def _streams(content: Array, copies: list[Copy]) -> list[Array]:
    """Returns the seven streams of bytes with these copies."""
    table = np.asarray(copies, np.int64).reshape(-1, 3)
    places, lengths, distances = table.T
    ends = places + lengths
    starts = np.concatenate([[0], ends])
    runs = np.concatenate([places, [len(content)]]) - starts
    if runs[-1] == 0:
        runs = runs[:-1]
    repeated = np.concatenate([[0], distances[:-1]]) == distances
    changes = np.zeros(len(content) + 1, np.int8)
    np.add.at(changes, places, 1)
    np.add.at(changes, ends, -1)
    literal = np.cumsum(changes[:-1], dtype=np.int8) == 0
    return [
        _number_bytes(runs),
        _number_bytes(lengths - SHORTEST),
        _number_bytes(np.where(repeated, 0, distances)),
        *(content[lane::4][literal[lane::4]] for lane in range(4)),
    ]


# Searching.


class _Costs:
    """Bits that literals and copies take with the tables of some streams.

    Args:
        content: The bytes.
        streams: The streams that an earlier choice of copies led to.

    Attributes:
        literals: Bits of all literals up to each place.
    """

    def __init__(self, content: Array, streams: list[Array]) -> None:
        tables = []
        for stream in streams:
            counts = np.bincount(stream, minlength=256) + 0.3
            tables.append(np.log2(counts.sum() / counts))
        bits = np.empty(len(content))
        for lane, table in enumerate(tables[3:]):
            bits[lane::4] = table[content[lane::4]]
        self.literals: list[float] = np.concatenate([[0.0], np.cumsum(bits)]).tolist()
        self._lengths: list[float] = tables[LENGTHS].tolist()
        self._distances: list[float] = tables[DISTANCES].tolist()
        if not len(streams[LENGTHS]):  # Nothing is known yet.
            self._lengths, self._distances = [4.0] * 256, [5.0] * 256
        runs = streams[RUNS]
        self._run = float(tables[RUNS][runs].mean()) if len(runs) else 0.0

    def copy(self, length: int, distance: int) -> float:
        """Returns the bits of a copy, with the number of literals before it.

        Args:
            length: Its length.
            distance: Its distance, or 0 for that of the last copy.
        """
        bits = self._run
        for table, number in (
            (self._lengths, length - SHORTEST),
            (self._distances, distance),
        ):
            while number >= 128:
                bits += table[128 | number & 127]
                number >>= 7
            bits += table[number]
        return bits


class _Search:
    """Looks for copies.

    At each place the last occurrences of the next 3, 4, 8 and 16 bytes are tried, and
    the distance of the last copy.

    Args:
        content: The bytes.
    """

    def __init__(self, content: Array) -> None:
        content = content[:MAX_BYTES]
        self._data = content.tobytes()
        earlier = [_last_occurrences(content, window) for window in _WINDOWS]
        repeated = np.any([places >= 0 for places in earlier], axis=0)
        (self._some,) = np.nonzero(repeated)
        self._earlier = np.stack([x[self._some] for x in earlier], axis=1).tolist()
        self._places = [*self._some.tolist(), len(content)]

    def copies(self, costs: _Costs) -> list[Copy]:
        """Returns the copies that take fewer bits than literals do.

        A copy that begins one byte later is preferred if it saves more.
        """
        copies: list[Copy] = []
        places, index, last = self._places, 0, 0
        while index < len(places) - 1:
            saved, length, distance = self._best(index, last, costs)
            later = places[index + 1] == places[index] + 1 and index + 2 < len(places)
            if not length or (later and self._best(index + 1, last, costs)[0] > saved):
                index += 1
                continue
            copies.append((places[index], length, distance))
            end, last = places[index] + length, distance
            index = int(np.searchsorted(self._some, end))
        return copies

    def _best(self, index: int, last: int, costs: _Costs) -> tuple[float, int, int]:
        """Returns the bits saved, the length and the distance of the best copy."""
        at = self._places[index]
        saved, size, distance = 0.0, 0, 0
        tried = {at - place for place in self._earlier[index] if place >= 0}
        if 0 < last <= at:
            tried.add(last)
        for back in sorted(tried):
            length = _equal(self._data, at, at - back)
            if length >= SHORTEST:
                bits = costs.copy(length, 0 if back == last else back)
                gain = costs.literals[at + length] - costs.literals[at] - bits
                if gain > saved:
                    saved, size, distance = gain, length, back
        return saved, size, distance


def _last_occurrences(content: Array, window: int) -> Array:
    """Returns for each place where its next bytes last began before, -1 if never."""
    size = len(content)
    earlier = np.full(size, -1, np.int64)
    if size < window:
        return earlier
    keys = np.zeros(size - window + 1, np.uint64)
    for place in range(window):
        # A hash for windows above 8 bytes; copies are compared in any case.
        byte = content[place : size - window + 1 + place].astype(np.uint64)
        keys = keys * np.uint64(256 if window <= 8 else 0x9E3779B97F4A7C15) + byte
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    earlier[order[1:][same]] = order[:-1][same]
    return earlier


def _equal(data: bytes, first: int, second: int) -> int:
    """Returns how many bytes from two places on are equal; `second` is the earlier."""
    step, length = 16, 0
    limit = len(data) - first
    while length < limit:
        size = min(step, limit - length)
        one = data[first + length : first + length + size]
        other = data[second + length : second + length + size]
        if one != other:
            value = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
            return length + ((value & -value).bit_length() - 1) // 8
        length += size
        step *= 2
    return length
