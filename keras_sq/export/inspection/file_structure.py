"""The graphs of a TFLite file from any source: tensors, operators, constants.

Everything that refers to something else (indices of tensors, operators, buffers;
the shape of a constant to its bytes) is checked here, once. What the numbers
mean is in `constant_values.py`, what is reported of them in `contents.py`.

Design note: **why not `TFLiteFile`.** It makes objects of everything in a file,
to change them, and trusts it; here a few fields are read, of files that may be
damaged, and the weights stay where they are.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from keras_sq.export.inspection.checked_tables import CheckedFile, CheckedTable
from keras_sq.export.tflite.flatbuffer import (
    IDENTIFIER,
    NUMPY_TYPES,
    OPERATOR_NAMES,
    PACKED_BITS,
    TYPE_NAMES,
)

Array = np.ndarray[Any, Any]

VALUE_BITS: dict[str, int] = {
    **{name: 8 * np.dtype(form).itemsize for name, form in NUMPY_TYPES.items()},
    **PACKED_BITS,
    "UINT4": 4,
    "BFLOAT16": 16,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
}
"""Bits of a value, of the types where that is the same for all."""

MAX_RANK = 32
"""Dimensions of a tensor; no runtime takes so many."""

_BLOCKWISE = 2  # Of the union `QuantizationDetails`.


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a graph.

    Attributes:
        name: As the converter made it.
        shape: Of its values; what is open counts as 1 there.
        open_shape: With `None` where a size is open.
        type: Such as `"INT8"`.
        data: The bytes of a constant as uint8, else `None`.
        place: Where in the file they are.
        scale: Float32 array: of the tensor `(1,)` or of channels; empty
            without quantization.
        zero_point: Int64 array, alike.
        axis: The channels' axis, if there is more than one scale.
        sparse: Whether the bytes are those of a sparse format.
        unfit_scale: Whether the scales are not those of these values: of blocks,
            in another tensor, or left over from before the values were packed.
        external: Whether the values are in another file.
        variable: Whether the graph writes to it.
    """

    name: str
    shape: tuple[int, ...]
    open_shape: tuple[int | None, ...]
    type: str
    data: Array | None
    place: int
    scale: Array
    zero_point: Array
    axis: int
    sparse: bool
    unfit_scale: bool
    external: bool
    variable: bool

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """An operator of a graph.

    Attributes:
        name: Such as `"CONV_2D"`; of a custom one its own.
        inputs: Indices of tensors, -1 for those left out.
        outputs: Indices of tensors.
        options: Its settings.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: CheckedTable | None

    def setting(self, field: int, form: str = "i") -> int:
        """Returns a number of the options, 0 if left out.

        Args:
            field: Its number in the schema.
            form: Its type, a letter of `struct`.
        """
        return 0 if self.options is None else self.options.number(field, form)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The main graph of a file, or the body of a loop or branch.

    Attributes:
        name: Often empty.
        tensors: By index.
        operators: In the order in which they run.
        inputs: Indices of tensors.
        outputs: Indices of tensors.
    """

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """A way to call the file.

    Attributes:
        key: Its name.
        graph: Index of the graph.
        inputs: Name -> index of a tensor.
        outputs: Name -> index of a tensor.
    """

    key: str
    graph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class FileStructure:
    """All of a file that is looked at.

    Attributes:
        num_bytes: Size of the file.
        schema_version: 3.
        description: By the converter.
        graphs: The main one first.
        signatures: The ways to call it; may be empty.
        metadata: Name -> bytes as uint8.
    """

    num_bytes: int
    schema_version: int
    description: str
    graphs: tuple[Graph, ...]
    signatures: tuple[Signature, ...]
    metadata: dict[str, Array]


def read_structure(content: bytes) -> FileStructure:
    """Reads and checks a file.

    Args:
        content: The bytes of the file.

    Raises:
        ValueError: If it is no TFLite file, or a damaged one; the message
            goes on after a colon.
    """
    check_identifier(content)
    file = CheckedFile(content)
    model = file.root()
    buffers = [_buffer(file, table) for table in model.tables(4)]
    codes = [_operator_name(table) for table in model.tables(1)]
    graphs = tuple(_graph(table, buffers, codes) for table in model.tables(2))
    if not graphs:
        raise ValueError("it has no graph")
    metadata = {}
    for entry in model.tables(6):
        index = entry.number(1, "I")
        metadata[entry.text(0)] = _item(buffers, index, "buffer")[0]
    return FileStructure(
        num_bytes=len(content),
        schema_version=model.number(0, "I"),
        description=model.text(3),
        graphs=graphs,
        signatures=tuple(_signature(table, graphs) for table in model.tables(7)),
        metadata=metadata,
    )


def check_identifier(content: bytes) -> None:
    """Refuses what does not begin like a TFLite file.

    Args:
        content: The first eight bytes of a file, or more.

    Raises:
        ValueError: Saying what it is instead.
    """
    if not content:
        raise ValueError("it is empty")
    if content[4:8] != IDENTIFIER:
        raise ValueError("it is no TFLite file (there is no 'TFL3' at its start)")


def _item(items: Any, index: int, kind: str) -> Any:
    if not 0 <= index < len(items):
        raise ValueError(f"it is damaged: it refers to {kind} {index} of {len(items)}")
    return items[index]


def _buffer(file: CheckedFile, table: CheckedTable) -> tuple[Array, int]:
    """Returns bytes and where they are."""
    place, size = table.extent(0)
    if not size and table.number(1, "Q") > 1:
        # Of a file above 2 GB: behind the flatbuffer.
        place, size = table.number(1, "Q"), table.number(2, "Q")
    return file.bytes_at(place, size), place


def _operator_name(table: CheckedTable) -> str:
    number = max(table.number(3), table.number(0, "b"))
    name = OPERATOR_NAMES.get(number, f"OPERATOR_{number}")
    return table.text(1) or name if name == "CUSTOM" else name


def _graph(table: CheckedTable, buffers: list[Any], codes: list[str]) -> Graph:
    tensors = tuple(_tensor(entry, buffers) for entry in table.tables(0))
    operators = []
    for entry in table.tables(3):
        inputs, outputs = entry.integers(1), entry.integers(2)
        for index in (*inputs, *outputs):
            if index != -1:
                _item(tensors, index, "tensor")
        name = _item(codes, entry.number(0, "I"), "operator code")
        operators.append(Operator(name, inputs, outputs, entry.table(4)))
    ends = (table.integers(1), table.integers(2))
    for index in (*ends[0], *ends[1]):
        _item(tensors, index, "tensor")
    return Graph(table.text(4), tensors, tuple(operators), *ends)


def _tensor(table: CheckedTable, buffers: list[Any]) -> Tensor:
    shape = table.integers(0)
    name, number = table.text(3), table.number(1, "b")
    if len(shape) > MAX_RANK:
        raise ValueError(
            f"it is damaged: tensor {name[:60]!r} has {len(shape)} dimensions"
        )
    signature = table.integers(7)
    if len(signature) != len(shape):
        signature = shape
    type_name = TYPE_NAMES.get(number, f"TYPE_{number}")
    index = table.number(2, "I")
    data, place = _item(buffers, index, "buffer")
    # The first buffer stands for no data.
    constant = index > 0 and len(data) > 0
    sparse = table.table(6) is not None
    quantization = table.table(4)
    scale, zero_point = np.empty(0, "<f4"), np.empty(0, "<i8")
    axis, unfit = 0, False
    if quantization is not None:
        scale, zero_point = quantization.vector(2, "f4"), quantization.vector(3, "i8")
        axis, unfit = quantization.number(6), quantization.number(4) == _BLOCKWISE
    if len(scale) > 1 and (not 0 <= axis < len(shape) or shape[axis] != len(scale)):
        unfit = True
    if len(zero_point) not in (0, 1, len(scale)):
        unfit = True
    if constant:
        if min(shape, default=0) < 0:
            raise ValueError(
                f"it is damaged: constant {name[:60]!r} has the shape {shape}"
            )
        bits = VALUE_BITS.get(type_name)
        needed = 0 if bits is None else -(-math.prod(shape) * bits // 8)
        if bits is not None and not sparse and needed != len(data):
            raise ValueError(
                f"it is damaged: constant {name[:60]!r} of shape {shape} and type "
                f"{type_name} should have {needed:,} bytes, and has {len(data):,}"
            )
    return Tensor(
        name=name,
        shape=shape,
        open_shape=tuple(None if size < 0 else size for size in signature),
        type=type_name,
        data=data if constant else None,
        place=place,
        scale=scale,
        zero_point=zero_point,
        axis=axis,
        sparse=sparse,
        unfit_scale=unfit,
        external=table.number(10, "I") > 0,
        variable=table.number(5, "?") != 0,
    )


def _signature(table: CheckedTable, graphs: tuple[Graph, ...]) -> Signature:
    index = table.number(4, "I")
    graph = _item(graphs, index, "graph")
    ends: list[dict[str, int]] = []
    for field in (0, 1):
        names = {}
        for entry in table.tables(field):
            tensor = entry.number(1, "I")
            _item(graph.tensors, tensor, "tensor")
            names[entry.text(0)] = tensor
        ends.append(names)
    return Signature(table.text(2), index, *ends)
