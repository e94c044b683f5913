"""A TFLite file as objects that can be edited, and back to bytes.

What TensorFlow's schema classes lack: constants as arrays, adding tensors and
operators, constants at 16-byte boundaries, equal constants stored once.

Design note: **why not `flatbuffer_utils`.** TensorFlow's reader and writer of
these objects stores constants at whatever boundary they fall on, for Python's
flatbuffers package ignores `force_align`: some microcontrollers stop at a word
read from there. And it stores equal constants twice.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.tflite.packing import pack_bits as pack_bits
from keras_sq.export.tflite.packing import unpack_bits as unpack_bits

ALIGNMENT = 16
"""Constants start at multiples of this many bytes."""

IDENTIFIER = b"TFL3"

TYPE_NAMES: dict[int, str] = {
    value: name for name, value in vars(schema.TensorType).items() if name[0] != "_"
} | {17: "INT4", 19: "INT2"}  # Older schemas do not have them.
TYPES = {name: value for value, name in TYPE_NAMES.items()}

OPERATOR_NAMES: dict[int, str] = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if name[0] != "_"
}
OPERATORS = {name: value for value, name in OPERATOR_NAMES.items()}

NUMPY_TYPES = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "FLOAT64": "<f8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "BOOL": "?",
}
PACKED_BITS = {"INT4": 4, "INT2": 2}
"""Bits of the types of which several values share a byte, the first lowest."""


@dataclasses.dataclass(frozen=True)
class Use:
    """A place where a tensor is read.

    Attributes:
        operator: The operator object that reads it.
        name: Name of the operator, such as `"CONV_2D"`.
        position: Which of its inputs it is.
    """

    operator: Any
    name: str
    position: int


class TFLiteFile:
    """The content of a `.tflite` file, open for changes.

    Args:
        content: The bytes of a file that a converter or interpreter vouched
            for: nothing is verified here.

    Attributes:
        model: The file as an object of the schema (`ModelT`).
    """

    def __init__(self, content: bytes) -> None:
        self.model: Any = schema.ModelT.InitFromObj(
            schema.Model.GetRootAsModel(content, 0)
        )

    # Reading.

    @property
    def subgraphs(self) -> list[Any]:
        """The graphs: the main one, and bodies of loops and branches."""
        return list(self.model.subgraphs)

    def operator_name(self, operator: Any) -> str:
        """Returns `"CONV_2D"`; of a custom operator its own name."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        if code.customCode:
            return str(code.customCode.decode())
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return OPERATOR_NAMES.get(number, str(number))

    def data(self, tensor: Any) -> Array | None:
        """Returns the bytes of a constant, `None` for other tensors."""
        data = self.model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            return None
        return np.asarray(data, np.uint8)

    def array(self, tensor: Any) -> Array | None:
        """Returns a constant as an array; `None` for other tensors.

        INT2 and INT4 values come as int8.

        Raises:
            ValueError: If its type has no NumPy form, or its size does not fit.
        """
        data = self.data(tensor)
        if data is None:
            return None
        name = TYPE_NAMES.get(tensor.type, str(tensor.type))
        shape = shape_of(tensor)
        if name in PACKED_BITS:
            values = unpack_bits(data, PACKED_BITS[name], int(np.prod(shape)))
        elif name in NUMPY_TYPES:
            values = data.view(NUMPY_TYPES[name])
        else:
            raise ValueError(f"Tensors of type {name} cannot be read.")
        return values.reshape(shape)

    def constants(self) -> Iterator[tuple[Any, int, Any]]:
        """Yields subgraph, index and tensor of all constants."""
        for subgraph in self.model.subgraphs:
            for index, tensor in enumerate(subgraph.tensors):
                if self.data(tensor) is not None:
                    yield subgraph, index, tensor

    def uses(self, subgraph: Any) -> dict[int, list[Use]]:
        """Returns where each tensor of a graph is read, by its index."""
        readers: dict[int, list[Use]] = {}
        for operator in subgraph.operators:
            for position, index in enumerate(indices(operator.inputs)):
                if index >= 0:  # -1 stands for an input left out.
                    use = Use(operator, self.operator_name(operator), position)
                    readers.setdefault(index, []).append(use)
        return readers

    # Changing.

    def add_buffer(self, data: Any) -> int:
        """Adds constant bytes; returns their index. `pack` merges equal ones."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(data), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def add_tensor(
        self,
        subgraph: Any,
        name: str,
        shape: Sequence[int],
        type_name: str,
        data: Any = None,
        quantization: Any = None,
    ) -> int:
        """Adds a tensor to a graph; returns its index.

        Args:
            subgraph: The graph.
            name: Of the tensor; `""` for none.
            shape: Of the tensor.
            type_name: Such as `"INT8"`.
            data: Bytes of a constant, as an array in the layout of the file.
            quantization: `QuantizationParametersT`, or `None`.
        """
        tensor = schema.TensorT()
        tensor.name = name.encode() or None
        tensor.shape = np.asarray(shape, np.int32)
        tensor.hasRank = True
        tensor.type = TYPES[type_name]
        tensor.buffer = 0 if data is None else self.add_buffer(data)
        tensor.quantization = quantization
        subgraph.tensors.append(tensor)
        return len(subgraph.tensors) - 1

    def operator_code(self, name: str, version: int = 1) -> int:
        """Returns the index of an operator's code, added where it is missing."""
        for index, code in enumerate(self.model.operatorCodes):
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            if number == OPERATORS[name]:
                code.version = max(code.version, version)
                return index
        code = schema.OperatorCodeT()
        code.builtinCode = OPERATORS[name]
        # Old runtimes read only this field, which ends at 127.
        code.deprecatedBuiltinCode = min(OPERATORS[name], 127)
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def new_operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        version: int = 1,
    ) -> Any:
        """Returns an operator, to be put into a graph's list by the caller.

        Args:
            name: Such as `"GATHER"`.
            inputs: Indices of tensors.
            outputs: Indices of tensors.
            options: The schema's options object, such as `GatherOptionsT`.
            version: Of the operator that its use here needs.
        """
        operator = schema.OperatorT()
        operator.opcodeIndex = self.operator_code(name, version)
        operator.inputs = np.asarray(inputs, np.int32)
        operator.outputs = np.asarray(outputs, np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        return operator

    def set_metadata(self, name: str, content: bytes) -> None:
        """Adds an entry to the file's metadata, or replaces it."""
        entries = [entry for entry in self.model.metadata or []]
        entries = [entry for entry in entries if entry.name != name.encode()]
        entry = schema.MetadataT()
        entry.name = name.encode()
        entry.buffer = self.add_buffer(np.frombuffer(content, np.uint8))
        self.model.metadata = [*entries, entry]

    def metadata(self, name: str) -> bytes | None:
        """Returns an entry of the file's metadata, or `None`."""
        for entry in self.model.metadata or []:
            if entry.name == name.encode():
                data = self.model.buffers[entry.buffer].data
                return None if data is None else bytes(np.asarray(data, np.uint8))
        return None

    def share_constants(self) -> None:
        """Makes operators of a graph that read equal constants read one tensor.

        The converter gives every use of a shared layer a tensor of its own, with
        one buffer: each would be unfolded for itself.
        """
        self.share_buffers()
        for subgraph in self.model.subgraphs:
            first: dict[Any, int] = {}
            same: dict[int, int] = {}
            for index, tensor in enumerate(subgraph.tensors):
                if self.data(tensor) is not None:
                    key = (
                        tensor.buffer,
                        tensor.type,
                        shape_of(tensor),
                        _quantization_key(tensor.quantization),
                    )
                    same[index] = first.setdefault(key, index)
            for operator in subgraph.operators:
                operator.inputs = np.asarray(
                    [same.get(index, index) for index in indices(operator.inputs)],
                    np.int32,
                )

    def pack(self) -> bytes:
        """Returns the bytes of a file with all changes.

        Constants start at multiples of `ALIGNMENT` bytes, equal ones are
        stored once, and those that nothing refers to are left out. Equal shapes,
        scales and zero points of tensors are stored once, too.
        """
        self.share_buffers()
        builder = _SharingBuilder(1024)
        buffers = self.model.buffers
        self.model.buffers = [_AlignedBuffer(buffer.data) for buffer in buffers]
        try:
            builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        finally:
            self.model.buffers = buffers
        return bytes(builder.Output())

    def share_buffers(self) -> None:
        """Merges equal buffers and drops unused ones."""
        old = self.model.buffers
        kept = [old[0]]  # The first one is empty, and stands for no data.
        places: dict[Any, int] = {}
        mutable = self._variable_buffers()

        def place(index: int) -> int:
            data = old[index].data
            if index == 0 or data is None or len(data) == 0:
                # What a runtime writes into is not shared.
                key: Any = 0 if index not in mutable else ("variable", index)
                if key == 0:
                    return 0
            else:
                key = np.asarray(data, np.uint8).tobytes()
            if key not in places:
                places[key] = len(kept)
                kept.append(old[index])
            return places[key]

        for subgraph in self.model.subgraphs:
            for tensor in subgraph.tensors:
                tensor.buffer = place(tensor.buffer)
        for entry in self.model.metadata or []:
            entry.buffer = place(entry.buffer)
        self.model.metadataBuffer = None  # Deprecated, and by old indices.
        self.model.buffers = kept

    def _variable_buffers(self) -> set[int]:
        return {
            tensor.buffer
            for subgraph in self.model.subgraphs
            for tensor in subgraph.tensors
            if tensor.isVariable
        }


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors of numbers once: tables refer to them by their place.

    The zero points of a tensor with a scale a filter take 8 bytes a filter, all 0.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802
        key = x.dtype.str, x.tobytes()
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(x)
        return self._places[key]


class _AlignedBuffer(schema.BufferT):
    """A constant that is stored at a multiple of `ALIGNMENT` bytes."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        data = self.data
        offset = None
        if data is not None and len(data):
            data = np.asarray(data, np.uint8)
            builder.StartVector(1, len(data), ALIGNMENT)
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
            offset = builder.EndVector()
        schema.BufferStart(builder)
        if offset is not None:
            schema.BufferAddData(builder, offset)
        return schema.BufferEnd(builder)


def _quantization_key(quantization: Any) -> Any:
    if quantization is None or quantization.scale is None:
        return None
    return (
        np.asarray(quantization.scale).tobytes(),
        np.asarray(quantization.zeroPoint).tobytes(),
        quantization.quantizedDimension,
    )


def float_outputs(subgraph: Any) -> list[int]:
    """Returns the float32 tensors that operators compute, in the order of these."""
    return [
        index
        for operator in subgraph.operators
        for index in indices(operator.outputs)
        if subgraph.tensors[index].type == TYPES["FLOAT32"]
    ]


def indices(values: Any) -> list[int]:
    """Returns an operator's inputs or outputs, or a graph's, as a list."""
    return [] if values is None else [int(value) for value in values]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Returns a tensor's shape."""
    return tuple(indices(tensor.shape))


def per_channel(scale: Array, axis: int) -> Any:
    """Returns symmetric quantization with one scale a channel.

    Args:
        scale: Float array `(channels,)`, all > 0.
        axis: The channels' axis.
    """
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.asarray(scale, np.float32)
    quantization.zeroPoint = np.zeros(len(scale), np.int64)
    quantization.quantizedDimension = axis
    return quantization
