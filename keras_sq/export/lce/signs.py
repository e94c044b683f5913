"""Where a file holds signs as bits, and what the bits say."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.activations.levels import (
    BITS,
    NODE_NAME,
    ActivationLevels,
    StoredActivations,
)
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, indices

WORD = 32
"""Channels that share an int32 number, the first in the lowest bit."""

MAKERS = {
    "LceQuantize": "of a float input",
    "LceBconv2d": "by the convolution before, of its integer sums",
    "LceBMaxPool2d": "by the pooling before, of signs",
}
"""Operators that give bits -> how, in words."""

_NAME = re.compile(rf"{NODE_NAME}(\d+)_(\d+)/")

Call = tuple[int, int]
"""Number of a quantizer, and of its call."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Quantized activations in a file.

    Attributes:
        tensor: Index in the main graph.
        maker: Name of the operator that gives them.
    """

    tensor: int
    maker: str

    @property
    def bits(self) -> bool:
        """Whether these are signs, 32 to a number."""
        return self.maker in MAKERS


def find(file: TFLiteFile) -> dict[Call, Place]:
    """Returns where a file's main graph has the quantized activations.

    By the names of tensors. The converter merges equal quantizers of the same input,
    and one name is left.
    """
    graph = file.subgraphs[0]
    places = {}
    for operator in graph.operators:
        maker = file.operator_name(operator)
        (output, *_) = indices(operator.outputs)
        if maker == "GATHER":
            named = indices(operator.inputs)[1]
        elif maker in MAKERS and graph.tensors[output].type == TYPES["INT32"]:
            named = output
        else:
            continue
        match = _NAME.match((graph.tensors[named].name or b"").decode())
        if match is not None:
            # Pooling behind a sign bears its name, too: it gives the signs of a pool.
            places[int(match[1]), int(match[2])] = Place(output, maker)
    return places


def stored(
    file: TFLiteFile, quantizers: Sequence[ActivationLevels]
) -> list[StoredActivations]:
    """Returns how a file holds the signs of quantizers."""
    by_number = {quantizer.number: quantizer for quantizer in quantizers}
    entries = [
        StoredActivations(
            (by_number[number],),
            0,
            -1,
            place.tensor,
            BITS,
            f"exact; {MAKERS[place.maker]}",
        )
        for (number, _), place in find(file).items()
        if place.bits
    ]
    known = {id(quantizer) for entry in entries for quantizer in entry.quantizers}
    if merged := tuple(x for x in quantizers if id(x) not in known):
        reason = "exact; one with those of another layer, of the same input"
        entries.append(StoredActivations(merged, 0, -1, -1, BITS, reason))
    return entries


def unpacked(words: Array, channels: int) -> Array:
    """Returns the signs that bits stand for: 1 for a bit of 0, -1 for one of 1.

    Args:
        words: Int32 array `(..., words)`.
        channels: How many there are.

    Returns:
        Float32 array `(..., channels)`.
    """
    shifts = np.arange(WORD, dtype=np.uint32)
    bits = (words.view(np.uint32)[..., np.newaxis] >> shifts) & np.uint32(1)
    flat = bits.reshape(*words.shape[:-1], -1)[..., :channels]
    return np.float32(1) - 2 * flat.astype(np.float32)
