"""Interleaved rANS: symbols coded close to their entropy, at the speed of memory.

A coder has `lanes` states of 32 bits. Symbol `i` of a block belongs to state
`i % lanes`, so NumPy codes a row of `lanes` symbols at once, and processors overlap the
states. A state that falls below `LOWEST` takes one word of 16 bits from the words that
all states share, in the order of the symbols. At the end all states are `LOWEST`
again: damaged words are noticed here in all but rare cases.

Each block has a table (`tables.py`). Blocks follow each other in one stream, so only
the tables change between them.

Source: Duda, 2013, https://arxiv.org/abs/1311.2540; Giesen, 2014,
https://arxiv.org/abs/1402.3392 (interleaving).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.packed.tables import SCALE, SCALE_BITS, Damaged

LOWEST = 2**16
"""States are in [LOWEST, 2**32)."""

MAX_LANES = 2**9


@dataclasses.dataclass(frozen=True)
class Block:
    """Symbols that share a table.

    Attributes:
        symbols: Uint8 array of one dimension.
        table: Index of the table.
    """

    symbols: Array
    table: int


def encode(blocks: Sequence[Block], tables: Sequence[Array], lanes: int) -> bytes:
    """Returns the states and the words of blocks.

    Args:
        blocks: The blocks in the order of decoding.
        tables: Tables, of their frequencies.
        lanes: Number of states, a power of two up to `MAX_LANES`.
    """
    states = np.full(lanes, LOWEST, np.uint64)
    rows: list[Array] = []
    for block in reversed(blocks):
        _encode_block(block.symbols, tables[block.table], states, rows)
    words = np.concatenate([np.empty(0, np.uint16), *reversed(rows)])
    return states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _encode_block(
    symbols: Array, table: Array, states: Array, rows: list[Array]
) -> None:
    """Encodes a block from its end, into `states` and `rows`."""
    if table.max() == SCALE:  # A single symbol, which takes no bits.
        return
    starts = (np.cumsum(table) - table).astype(np.uint64)
    sizes = table.astype(np.uint64)
    limits = sizes << np.uint64(32 - SCALE_BITS)
    rests = np.uint64(SCALE) - sizes
    shift = np.uint64(16)
    lanes = len(states)
    for begin in reversed(range(0, len(symbols), lanes)):
        row = symbols[begin : begin + lanes]
        x = states[: len(row)]
        full = x >= limits[row]
        if full.any():
            rows.append(x[full].astype(np.uint16))  # Their lower bits.
            x = np.where(full, x >> shift, x)
        # (x // size) * SCALE + x % size + start
        states[: len(row)] = x // sizes[row] * rests[row] + (x + starts[row])


class Decoder:
    """Decodes blocks in their order.

    Args:
        content: What `encode` returned.
        lanes: Number of states.

    Raises:
        Damaged: If the content is too short, or not a whole number of words.
    """

    def __init__(self, content: bytes, lanes: int) -> None:
        if len(content) < 4 * lanes or len(content) % 2:
            raise Damaged("it is damaged or cut off: the states are not complete")
        self._states = np.frombuffer(content, "<u4", lanes).astype(np.uint32)
        self._words = np.frombuffer(content, "<u2", offset=4 * lanes).astype(np.uint32)
        self._place = 0

    def decode(self, count: int, table: Array) -> Array:
        """Returns the next symbols, as a uint8 array.

        Args:
            count: Number of symbols.
            table: The table of the block.

        Raises:
            Damaged: If the words end too early.
        """
        symbols = np.repeat(np.arange(256, dtype=np.uint8), table)
        if table.max() == SCALE:
            return np.full(count, symbols[0])
        sizes = np.repeat(table, table).astype(np.uint32)
        starts = np.repeat(np.cumsum(table) - table, table)
        offsets = (np.arange(SCALE) - starts).astype(np.uint32)
        slots = np.empty(count, np.uint16)
        states, words, place = self._states, self._words, self._place
        lanes, mask, shift = len(states), np.uint32(SCALE - 1), np.uint32(SCALE_BITS)
        lowest, word = np.uint32(LOWEST), np.uint32(16)
        for begin in range(0, count, lanes):
            row = slice(0, min(lanes, count - begin))
            slot = states[row] & mask
            slots[begin : begin + lanes] = slot
            x = sizes[slot] * (states[row] >> shift) + offsets[slot]
            (low,) = np.nonzero(x < lowest)
            if len(low):
                if place + len(low) > len(words):
                    raise Damaged("it is damaged or cut off: its codes end too early")
                x[low] = x[low] << word | words[place : place + len(low)]
                place += len(low)
            states[row] = x
        self._place = place
        decoded: Array = symbols[slots]
        return decoded

    def check_end(self) -> None:
        """Checks that nothing is left over.

        Raises:
            Damaged: If words are left, or the states are not those of the beginning.
        """
        if self._place != len(self._words) or np.any(self._states != LOWEST):
            raise Damaged("it is damaged: its codes do not end as they should")
