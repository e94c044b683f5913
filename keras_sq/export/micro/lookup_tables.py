"""Kernels as indices into small tables, for TensorFlow Lite Micro.

Finds the kernels of a full-integer file that have few different values in a
filter, and has the `tflite-micro` package store them as 1 to 7 bits a weight with
one table of values for each filter. Its interpreter decodes a kernel into its memory
just before the operator that reads it (operator `TFLM_DECODE`).

Design note: **tables follow the tensor's own quantization.** The interpreter takes
the number of tables, and the axis they belong to, from the scales of the decoded
tensor, whatever the compressor was told: one table for a tensor with a scale for each
filter computes nonsense without a word. So a kernel with one scale a filter gets one
table a filter, although the values are mostly the same in all.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.errors import ExportError
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.tflite.flatbuffer import (
    TYPE_NAMES,
    TFLiteFile,
    Use,
    indices,
    shape_of,
)
from keras_sq.export.tflite.levels import filters_first
from keras_sq.export.tflite.runtime import quiet

KERNEL_INPUTS = {
    "BATCH_MATMUL": (0, 1),
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "FULLY_CONNECTED": (1,),
    "GATHER": (0,),
    "TRANSPOSE_CONV": (1,),
}
"""Operators, and their inputs that may be decoded while the file runs."""

DECODE = "TFLM_DECODE"

MAX_BITS = 7
"""Most bits of an index."""

TABLE_HEADER_BYTES = 16
"""Bytes before the tables."""

FILE_BYTES_PER_KERNEL = 200
"""What a compressed kernel takes in the file besides indices and tables: two
tensors, an operator and gaps between constants. Measured (160), and rounded up."""

MIN_SAVED_BYTES = 256
"""Kernels that would save less stay as they are: decoding takes time and memory."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A constant that is the kernel of some operators.

    Attributes:
        graph: Index of the graph that it belongs to.
        index: Of the tensor in the graph.
        name: Of the tensor.
        shape: Of the tensor.
        num_bytes: Its size in the file as it is.
        axis: Axis with one scale, and so one table, each; `None` for one in all.
        levels: Most different values that a filter has.
        uses: Where it is read.
        obstacle: Why it cannot be compressed; empty if it can be.
    """

    graph: int
    index: int
    name: str
    shape: tuple[int, ...]
    num_bytes: int
    axis: int | None
    levels: int
    uses: tuple[Use, ...]
    obstacle: str = ""

    @property
    def weights(self) -> int:
        """How many weights it has, which is its size in bytes when decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return max(1, (self.levels - 1).bit_length())

    @property
    def tables(self) -> int:
        """How many tables it takes."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def compressed_bytes(self) -> int:
        """Size of its indices and tables."""
        indices_bytes = -(-self.weights * self.bits // 8)
        return indices_bytes + TABLE_HEADER_BYTES + self.tables * self.levels

    @property
    def saved_bytes(self) -> int:
        """By how much the file shrinks if it is compressed as a whole."""
        decoders = len({id(use.operator) for use in self.uses})
        return self.weights - self.compressed_bytes - decoders * FILE_BYTES_PER_KERNEL


def find_kernels(file: TFLiteFile) -> list[Kernel]:
    """Returns the kernels of a file, in the order of its graphs and tensors.

    Kernels that would save next to nothing are among those that cannot be
    compressed.
    """
    kernels = []
    for number, graph in enumerate(file.subgraphs):
        uses = file.uses(graph)
        outputs = set(indices(graph.outputs))
        for index, tensor in enumerate(graph.tensors):
            reads = uses.get(index, [])
            if file.data(tensor) is None or not any(map(_reads_kernel, reads)):
                continue
            kernel = _kernel(file, number, index, tensor, reads)
            if not kernel.obstacle and index in outputs:
                kernel = dataclasses.replace(kernel, obstacle="is an output too")
            kernels.append(kernel)
    return _with_their_aliases(file, kernels)


def part(file: TFLiteFile, kernel: Kernel, index: int) -> Kernel:
    """Returns a part of a kernel, or all of it, by its index in the same graph."""
    tensor = file.subgraphs[kernel.graph].tensors[index]
    values = file.array(tensor)
    assert values is not None  # Parts of constants are constants.
    axis = kernel.axis if _length(tensor.quantization, "scale") > 1 else None
    return dataclasses.replace(
        kernel,
        index=index,
        shape=values.shape,
        num_bytes=values.nbytes,
        axis=axis,
        levels=most_levels(values, axis),
    )


def stored_bytes(file: TFLiteFile, graph: int, tensors: Iterable[int]) -> int:
    """Returns what kernels take in a compressed file: indices, and their tables.

    Args:
        file: The compressed file.
        graph: Index of the graph.
        tensors: Their indices in the graph, which are as before.
    """
    subgraph = file.subgraphs[graph]
    tables: dict[int, int] = {}
    for operator in subgraph.operators:
        if file.operator_name(operator) == DECODE:
            inputs = indices(operator.inputs)
            tables.update(zip(inputs[::2], inputs[1::2], strict=True))
    used = set(tensors)
    # Parts of one size mostly have one table.
    used |= {tables[index] for index in used & set(tables)}
    sizes: dict[int, int] = {}
    for index in used:
        data = file.data(subgraph.tensors[index])
        sizes[subgraph.tensors[index].buffer] = 0 if data is None else len(data)
    return sum(sizes.values())


def compress(content: bytes, kernels: Sequence[Kernel]) -> bytes:
    """Returns the file with kernels as indices and tables.

    Args:
        content: The file.
        kernels: Some of its kernels, without obstacle.

    Raises:
        ImportError: If the package that does it is not installed.
        ExportError: If it refuses.
    """
    try:
        from tflite_micro import compression
        from tflite_micro.tensorflow.lite.micro.compression import spec
    except ImportError as error:
        raise micro_runtime.missing_package(error) from error
    specs = []
    for kernel in kernels:
        mode = spec.PerTensor()
        if kernel.axis is not None:
            mode = spec.PerChannel(axis=kernel.axis)
        method = spec.LookUpTableCompression(index_bitwidth=kernel.bits, mode=mode)
        specs.append(spec.Tensor(kernel.graph, kernel.index, [method]))
    try:
        with quiet(), warnings.catch_warnings():
            # It tells of kernels that did not become smaller: the choice is ours.
            warnings.simplefilter("ignore")
            compressed = bytes(compression.compress(content, specs))
    except Exception as error:
        raise ExportError(
            "The package tflite-micro cannot compress the file: "
            f"{type(error).__name__}: {error}"
        ) from error
    return _tidied(compressed)


def _tidied(content: bytes) -> bytes:
    """Returns a compressed file without what its interpreter does not read.

    That is the quantization of indices (the decoded tensor has it), all but one
    of the zero points of kernels and biases, which are all 0 (the interpreter
    takes one for all), and the names of tensors other than kernels, inputs and
    outputs. In a network of half a million 1-bit weights it was a quarter of the file.
    """
    file = TFLiteFile(content)
    for graph in file.subgraphs:
        named = set(indices(graph.inputs)) | set(indices(graph.outputs))
        for operator in graph.operators:
            if file.operator_name(operator) == DECODE:
                encoded = indices(operator.inputs)[::2]
                named.update(encoded)
                for index in encoded:
                    graph.tensors[index].quantization = None
        for index, tensor in enumerate(graph.tensors):
            if index not in named:
                tensor.name = None
            quantization = tensor.quantization
            if quantization is None or quantization.zeroPoint is None:
                continue
            if len(quantization.zeroPoint) > 1 and not np.any(quantization.zeroPoint):
                quantization.zeroPoint = quantization.zeroPoint[:1]
    return file.pack()


def _reads_kernel(use: Use) -> bool:
    return use.position in KERNEL_INPUTS.get(use.name, ())


def _kernel(
    file: TFLiteFile, graph: int, index: int, tensor: Any, uses: Sequence[Use]
) -> Kernel:
    name = (tensor.name or b"").decode(errors="replace")
    data = file.data(tensor)
    num_bytes = 0 if data is None else len(data)
    kernel = Kernel(
        graph, index, name, shape_of(tensor), num_bytes, None, 0, tuple(uses)
    )

    def stays(obstacle: str) -> Kernel:
        return dataclasses.replace(kernel, obstacle=obstacle)

    type_name = TYPE_NAMES.get(tensor.type, str(tensor.type))
    if type_name != "INT8":
        return stays(f"is {type_name}, not INT8")
    others = sorted({use.name for use in uses if not _reads_kernel(use)})
    if others:
        return stays(f"is read by {', '.join(others)} too")
    values = file.array(tensor)
    assert values is not None  # It is a constant.
    scales = _length(tensor.quantization, "scale")
    if scales > 1:
        axis = int(tensor.quantization.quantizedDimension)
        if axis not in (0, values.ndim - 1) or scales != values.shape[axis]:
            return stays(f"has {scales} scales on axis {axis}")
        kernel = dataclasses.replace(kernel, axis=axis)
    kernel = dataclasses.replace(kernel, levels=most_levels(values, kernel.axis))
    if kernel.levels > 2**MAX_BITS:
        return stays(f"has up to {kernel.levels} different values in a filter")
    if kernel.saved_bytes < MIN_SAVED_BYTES:
        return stays(_saves(kernel.saved_bytes))
    return kernel


def _saves(num_bytes: int) -> str:
    if num_bytes <= 0:
        return "would not become smaller"
    return f"would save no more than {num_bytes} bytes"


def most_levels(values: Array, axis: int | None) -> int:
    """Returns the most different values that a filter has.

    Args:
        values: Int8 array, not empty.
        axis: The filters' axis, or `None` for one filter.
    """
    filters = values.reshape(1, -1) if axis is None else filters_first(values, axis)
    ordered = np.sort(filters, axis=1)
    changes = np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
    return int(changes.max()) + 1


def _with_their_aliases(file: TFLiteFile, kernels: list[Kernel]) -> list[Kernel]:
    """Marks kernels that share their data with a tensor that stays as it is."""
    compressed = {(k.graph, k.index) for k in kernels if not k.obstacle}
    stays = {
        tensor.buffer
        for number, graph in enumerate(file.subgraphs)
        for index, tensor in enumerate(graph.tensors)
        if (number, index) not in compressed
    }

    def shared(kernel: Kernel) -> bool:
        tensor = file.subgraphs[kernel.graph].tensors[kernel.index]
        return not kernel.obstacle and tensor.buffer in stays

    obstacle = "shares its data with a tensor that stays"
    return [
        dataclasses.replace(k, obstacle=obstacle) if shared(k) else k for k in kernels
    ]


def _length(quantization: Any, field: str) -> int:
    values: Iterable[Any] | None = getattr(quantization, field, None)
    return 0 if values is None else len(list(values))
