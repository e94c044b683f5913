"""The tensors and operators of a TFLite file that nobody vouched for.

TensorFlow's classes of the format follow any offset until Python raises an error. What
they return is checked here: every index, and the bytes of every constant against its
shape and type.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.tflite.flatbuffer import (
    NUMPY_TYPES,
    PACKED_BITS,
    TYPE_NAMES,
    TFLiteFile,
    indices,
    shape_of,
    unpack_bits,
)

Array = np.ndarray[Any, Any]
Json = dict[str, Any]

_BLOCKWISE = 2  # Of the union `QuantizationDetails`.


class InvalidFile(ValueError):
    """A file that is none of TFLite, or damaged; the message begins with "it"."""


class Unknown(Exception):
    """Values that cannot be computed; the message says why."""


class Tensor:
    """A tensor of a graph.

    Args:
        file: The file, for the bytes of the tensor.
        table: The tensor in the schema's classes.
        index: Index of the tensor in its graph.

    Attributes:
        table: The tensor in the schema's classes.
        index: Index of the tensor in its graph.
        name: Name of the tensor, often empty.
        shape: Sizes; one that is open counts as 1.
        type: Name of the type, such as `"INT8"`.
        data: The bytes of a constant, none for other tensors.
        scale: Scales of the quantization: none, one or one for each channel.
        zero_point: Zero points, as many.
        axis: The channels' axis, from the quantization or the operator that reads the
            tensor; `None` if unknown.
        packing: How values share bytes (`"4 per byte"`) or what they stand for
            (`"2-bit indices"`); else empty.
        readers: Name of an operator -> how many of them read the tensor.
        producer: The operator that makes the tensor of constants alone, and the
            tensors that it makes it of; `None` for other tensors.
        levels: The number of different values and the most in a channel, each `None` if
            unknown; `None` for tensors that were not counted.
        unknown: Why the values are unknown, empty if they are not.
    """

    def __init__(self, file: TFLiteFile, table: Any, index: int) -> None:
        self.table, self.index = table, index
        self.name, self.shape = text(table.name), shape_of(table)
        self.size = math.prod(self.shape)
        self.type = TYPE_NAMES.get(table.type, f"TYPE_{table.type}")
        item(file.model.buffers or (), table.buffer, "buffer")
        # The first buffer stands for no data.
        data = file.data(table) if table.buffer else None
        self.data = np.empty(0, np.uint8) if data is None else data
        self.readers: collections.Counter[str] = collections.Counter()
        self.producer: tuple[Operator, list[Tensor]] | None = None
        self.levels: tuple[int | None, int | None] | None = None
        self.unknown = ""
        bits = PACKED_BITS.get(self.type, 0)
        self.packing = f"{8 // bits} per byte" if bits else ""
        if self.type in NUMPY_TYPES:
            bits = 8 * np.dtype(NUMPY_TYPES[self.type]).itemsize
        if table.sparsity is not None:
            self.packing = "sparse"
        elif len(self.data):
            self._check(bits)
        quantization = table.quantization or schema.QuantizationParametersT()
        scale = quantization.scale
        self.scale = np.empty(0) if scale is None else np.asarray(scale)
        self.zero_point = indices(quantization.zeroPoint)
        self.axis: int | None = None
        axis = quantization.quantizedDimension
        by_channel = quantization.detailsType != _BLOCKWISE and len(self.scale) > 1
        # Others are left over from before the values were packed.
        if by_channel and self.shape[axis : axis + 1] == (len(self.scale),):
            self.axis = axis

    def _check(self, bits: int) -> None:
        constant = f"it is damaged: constant {self.name[:60]!r} of shape {self.shape}"
        if min(self.shape, default=0) < 0:
            raise InvalidFile(f"{constant} has a negative size")
        needed = -(-self.size * bits // 8)
        if bits and needed != len(self.data):
            raise InvalidFile(
                f"{constant} and type {self.type} should have {needed:,} bytes, and "
                f"has {len(self.data):,}"
            )

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales and zero points, which are not among the constants."""
        return 4 * len(self.scale) + 8 * len(self.zero_point)

    def stored(self) -> Array:
        """Returns the values of a constant.

        Raises:
            Unknown: If the type has no NumPy form.
        """
        if self.packing == "sparse":
            raise Unknown("stored sparsely")
        if self.type in PACKED_BITS:
            values = unpack_bits(self.data, PACKED_BITS[self.type], self.size)
        elif self.type in NUMPY_TYPES:
            values = self.data.view(NUMPY_TYPES[self.type])
        else:
            raise Unknown(f"of type {self.type}")
        return values.reshape(self.shape)

    def interface(self, name: str) -> Json:
        """Returns what is reported of an input or output with a name."""
        dynamic = indices(self.table.shapeSignature)
        shape = dynamic if len(dynamic) == len(self.shape) else self.shape
        quantized = len(self.scale) == 1
        return {
            "name": name,
            "shape": [None if size < 0 else size for size in shape],
            "dtype": self.type.lower(),
            "scale": float(self.scale[0]) if quantized else None,
            "zero_point": [*self.zero_point, 0][0] if quantized else None,
        }


class Operator:
    """An operator of a graph.

    Args:
        file: The file, for the name of the operator.
        table: The operator in the schema's classes.
        tensors: The tensors of the graph.

    Attributes:
        table: The operator in the schema's classes.
        name: Name of the operator, such as `"CONV_2D"`.
        inputs: Tensors, `None` for those left out.
        outputs: Tensors, alike.
    """

    def __init__(self, file: TFLiteFile, table: Any, tensors: Sequence[Tensor]) -> None:
        self.table = table
        item(file.model.operatorCodes or (), table.opcodeIndex, "operator code")
        self.name = file.operator_name(table)
        self.inputs, self.outputs = (
            [None if i == -1 else item(tensors, i, "tensor") for i in indices(ends)]
            for ends in (table.inputs, table.outputs)
        )

    def setting(self, name: str) -> int:
        """Returns a number of the options, 0 if the operator has no such option."""
        return int(getattr(self.table.builtinOptions, name, 0))

    def sources(self, output: Tensor) -> list[Tensor]:
        """Returns the inputs that an output depends on."""
        inputs = self.inputs
        if self.name == "TFLM_DECODE":  # Decodes several tensors.
            place = self.outputs.index(output)
            inputs = inputs[2 * place : 2 * place + 2]
        return [tensor for tensor in inputs if tensor is not None]


def item(items: Sequence[Any], index: int, kind: str) -> Any:
    """Returns an entry that another part of the file refers to.

    Args:
        items: The entries.
        index: Which one.
        kind: What they are, for the message.

    Raises:
        InvalidFile: If there are not so many.
    """
    if not 0 <= index < len(items):
        raise InvalidFile(f"it is damaged: it refers to {kind} {index} of {len(items)}")
    return items[index]


def text(name: bytes | None) -> str:
    """Returns a name in the file as text."""
    return (name or b"").decode("utf-8", "replace")
