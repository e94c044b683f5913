"""The bytes of a packed file, version 1; Python's decoder is here.

All numbers have the lowest byte first.

    0   "SQPK"
    4   version, 1 byte
    5   binary logarithm of the number of lanes (`entropy.py`), 1 byte
    6   0, 2 bytes
    8   size of the unpacked file, 4 bytes
    12  size of the packed file, 4 bytes
    16  CRC-32 of the unpacked file, 4 bytes
    20  size of the description, 4 bytes
    24  CRC-32 of bytes 0 to 23 and the description, 4 bytes
    28  the description
    ... states of the lanes, 4 bytes each; words, 2 bytes each, to the end

The description is a list of numbers, 7 bits a byte, the lowest first; the highest bit
is set in all bytes but the last of a number:

    number of tables, not more than `MAX_TABLES`
    each table (`tables.py`)
    the streams of the rest (`matches.py`): size, and index of its table, of each
    size of the rest
    number of segments
    each segment: bytes of the rest before it; kind and width (`segments.py`); size in
        bytes; of a palette, channels, inner size and number of values; index of the
        table of each block

The streams are coded first, then the blocks of each segment. The values of a palette
come from the rest, after the bytes before its segment. What is left of the rest follows
the last segment.
"""

import dataclasses
import struct
import zlib

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.packed import entropy, matches, tables
from keras_sq.export.packed.entropy import Block
from keras_sq.export.packed.segments import BITS, PALETTE, PLANES, Segment
from keras_sq.export.packed.tables import Damaged

MAGIC = b"SQPK"
VERSION = 1
MAX_BYTES = 2**31 - 1
"""Most bytes of a file, packed or not: an array of Java has no more."""

_HEADER = struct.Struct("<4sBBHIIIII")
_SUM_PLACE = _HEADER.size - 4
MAX_TABLES = 1024

_WIDTHS = (1, 2, 4, 8)
_BYTES_PER_LANE = 2048
"""Packed bytes for each lane: more lanes decode faster in NumPy, and take 4 bytes."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of a packed file say.

    Attributes:
        lanes: Number of states of the entropy coder.
        unpacked_bytes: Size of the unpacked file.
        unpacked_sum: CRC-32 of the unpacked file.
        description: The description, see above.
    """

    lanes: int
    unpacked_bytes: int
    unpacked_sum: int
    description: bytes


def is_packed(content: bytes) -> bool:
    """Returns whether bytes begin as those of a packed file do."""
    return content[:4] == MAGIC


# Writing.


def write(content: bytes, segments: list[Segment]) -> bytes:
    """Returns the packed file.

    Args:
        content: The bytes of the file, not more than `MAX_BYTES`.
        segments: Its segments, see `segments.choose`.
    """
    shared = _Tables()
    rest = np.frombuffer(_rest(content, segments), np.uint8)
    streams = matches.split(rest)
    blocks = [Block(stream, shared.index(stream)) for stream in streams]
    numbers = [number for x in blocks for number in (len(x.symbols), x.table)]
    numbers += [len(rest), len(segments)]
    end = 0
    for segment in segments:
        numbers += [segment.start - end, segment.kind, segment.width, segment.size]
        if segment.palette is not None:
            palette = segment.palette
            numbers += [palette.channels, palette.inner, palette.count]
        for symbols in segment.blocks:
            blocks.append(Block(symbols, shared.index(symbols)))
            numbers.append(blocks[-1].table)
        end = segment.start + segment.size
    description = b"".join(map(tables.number, [len(shared.tables)]))
    description += b"".join(map(tables.table_bytes, shared.tables))
    description += b"".join(map(tables.number, numbers))
    lanes = 4
    while lanes < entropy.MAX_LANES and lanes * 2 * _BYTES_PER_LANE <= shared.num_bytes:
        lanes *= 2
    codes = entropy.encode(blocks, shared.tables, lanes)
    size = _HEADER.size + len(description) + len(codes)
    header = _HEADER.pack(
        *(MAGIC, VERSION, lanes.bit_length() - 1, 0, len(content), size),
        *(zlib.crc32(content), len(description), 0),
    )
    checked = zlib.crc32(description, zlib.crc32(header[:_SUM_PLACE]))
    return b"".join(
        [header[:_SUM_PLACE], struct.pack("<I", checked), description, codes]
    )


def _rest(content: bytes, segments: list[Segment]) -> bytes:
    parts, end = [], 0
    for segment in segments:
        parts.append(content[end : segment.start])
        if segment.palette is not None:
            parts.append(segment.palette.values.tobytes())
        end = segment.start + segment.size
    return b"".join([*parts, content[end:]])


class _Tables:
    """The tables of blocks; blocks that are alike share one.

    Attributes:
        tables: The tables, see `tables.py`.
        num_bytes: Bytes that the blocks and the tables take.
    """

    def __init__(self) -> None:
        self.tables: list[Array] = []
        self.num_bytes = 0.0
        # Bits of each symbol with each table.
        self._bits = np.empty((256, MAX_TABLES))

    def index(self, symbols: Array) -> int:
        """Returns the index of the table for symbols, added where it pays."""
        number = len(self.tables)
        counts = np.bincount(symbols, minlength=256)
        bits = counts @ self._bits[:, :number]
        if number < MAX_TABLES:
            # The last one has a code for every symbol, for all blocks to come.
            last = number == MAX_TABLES - 1
            new = tables.EVEN_TABLE if last else tables.best_table(counts)
            bits = np.append(bits, tables.total_bits(counts, new))
        index = int(np.argmin(bits))
        if index == number:
            self.tables.append(new)
            self._bits[:, index] = tables.symbol_bits(new)
        self.num_bytes += bits[index] / 8
        return index


# Reading.


def read_header(content: bytes) -> Header:
    """Returns what the first bytes of a packed file say.

    Raises:
        Damaged: If it is no packed file, is of another version, or is damaged.
    """
    if not content:
        raise Damaged("it is empty")
    if not is_packed(content):
        raise Damaged("it is no packed file (there is no 'SQPK' at its start)")
    if len(content) >= 5 and content[4] != VERSION:
        raise Damaged(
            f"it is of version {content[4]}, and this release reads version {VERSION}. "
            "Unpack it with a newer keras_sq"
        )
    if len(content) < _HEADER.size:
        raise Damaged("it is cut off")
    fields = _HEADER.unpack_from(content)
    _, _, lanes, zero, unpacked, packed, unpacked_sum, size, stored_sum = fields
    if packed != len(content):
        raise Damaged(
            f"it is damaged or cut off: it should have {packed:,} bytes, and has "
            f"{len(content):,}"
        )
    description = content[_HEADER.size : _HEADER.size + size]
    actual_sum = zlib.crc32(description, zlib.crc32(content[:_SUM_PLACE]))
    if len(description) != size or actual_sum != stored_sum:
        raise Damaged("it is damaged: the check sum of its header is wrong")
    if zero or 2**lanes > entropy.MAX_LANES or unpacked > MAX_BYTES:
        raise Damaged("it is damaged: its header is wrong")
    return Header(2**lanes, unpacked, unpacked_sum, description)


def read(content: bytes) -> bytes:
    """Returns the unpacked file.

    Args:
        content: The bytes of a packed file.

    Raises:
        Damaged: If it is no packed file, is of another version, or is damaged.
    """
    header = read_header(content)
    unpacked = _unpack(header, content[_HEADER.size + len(header.description) :])
    if zlib.crc32(unpacked) != header.unpacked_sum:
        raise Damaged("it is damaged: the check sum of the unpacked file is wrong")
    return unpacked


def _unpack(header: Header, codes: bytes) -> bytes:
    numbers = tables.Numbers(header.description)
    num_tables = numbers.next()
    if num_tables > MAX_TABLES:
        raise Damaged("it is damaged: it has too many tables")
    known = [tables.read_table(numbers) for _ in range(num_tables)]
    sizes = [(numbers.next(), _item(known, numbers)) for _ in range(7)]
    rest_size, num_segments = numbers.next(), numbers.next()
    if (rest_size + sum(size for size, _ in sizes)) // 4 > header.unpacked_bytes:
        raise Damaged("it is damaged: the rest is too large")
    decoder = entropy.Decoder(codes, header.lanes)
    streams = [decoder.decode(size, table) for size, table in sizes]
    rest = _Rest(matches.join(streams, rest_size))
    unpacked = np.empty(header.unpacked_bytes, np.uint8)
    at = 0
    for _ in range(num_segments):
        gap, kind, width, size = (numbers.next() for _ in range(4))
        if not _is_form(kind, width, size):
            raise Damaged("it is damaged: a segment has an unknown form")
        if at + gap + size > len(unpacked):
            raise Damaged("it is damaged: a segment ends beyond the file")
        unpacked[at : at + gap] = rest.take(gap)
        at += gap
        part = unpacked[at : at + size]
        at += size
        if kind == PALETTE:
            shape = numbers.next(), numbers.next(), numbers.next()
            symbols = decoder.decode(size // width, _item(known, numbers))
            part[:] = _values(symbols, shape, width, rest)
        elif kind == PLANES:
            for plane in range(width):
                table = _item(known, numbers)
                part[plane::width] = decoder.decode(size // width, table)
        else:
            symbols = decoder.decode(size * 8 // width, _item(known, numbers))
            part[:] = _joined(symbols, width)
    numbers.check_end()
    unpacked[at:] = rest.take(len(unpacked) - at)
    rest.check_end()
    decoder.check_end()
    return unpacked.tobytes()


def _is_form(kind: int, width: int, size: int) -> bool:
    """Returns whether there is a form with these numbers (`segments.py`)."""
    if width not in _WIDTHS:
        return False
    return kind == BITS or (kind in (PLANES, PALETTE) and size % width == 0)


class _Rest:
    """Hands out the bytes of the rest in their order."""

    def __init__(self, content: Array) -> None:
        self._content = content
        self._place = 0

    def take(self, count: int) -> Array:
        part = self._content[self._place : self._place + count]
        if len(part) != count:
            raise Damaged("it is damaged: the rest is too short")
        self._place += count
        return part

    def check_end(self) -> None:
        if self._place != len(self._content):
            raise Damaged("it is damaged: the rest is too long")


def _values(
    symbols: Array, shape: tuple[int, int, int], width: int, rest: _Rest
) -> Array:
    """Returns the bytes of values that symbols of a palette stand for."""
    channels, inner, count = shape
    if not 0 < channels * inner <= len(symbols) or len(symbols) % (channels * inner):
        raise Damaged("it is damaged: a palette does not fit")
    values = rest.take(channels * count * width).view(f"<u{width}")
    if not count or symbols.max(initial=0) >= count:
        raise Damaged("it is damaged: a value is missing in a palette")
    numbers = symbols.reshape(-1, channels, inner).astype(np.int64)
    numbers += np.arange(0, channels * count, count)[:, np.newaxis]
    return values[numbers.reshape(-1)].view(np.uint8)


def _joined(symbols: Array, bits: int) -> Array:
    """Returns bytes of symbols of so many bits, the first lowest."""
    if bits == 8:
        return symbols
    parts = symbols.reshape(-1, 8 // bits)
    joined = np.zeros(len(parts), np.uint8)
    for place in range(8 // bits):
        joined |= parts[:, place] << np.uint8(place * bits)
    return joined


def _item(tables: list[Array], numbers: tables.Numbers) -> Array:
    index = numbers.next()
    if index >= len(tables):
        raise Damaged("it is damaged: a table is missing")
    return tables[index]
