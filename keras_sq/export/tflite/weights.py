"""The weight tensors of a file, and which kernels of the model they are.

The converter renames, transposes, flattens and splits constants, and folds batch
normalization into them. What stays is the order of values within a filter: which
weight has the lowest level, which the next. A kernel is found again by that, so
names play no part. Where a scale of the layer's input was folded into its rows, the
kernel is found by the two factors of each weight (`row_scales.py`); where an operator
that takes no weights otherwise reads it, or it is transposed, by trying its layouts.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core.types import Array
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile, Use, shape_of
from keras_sq.export.tflite.levels import filter_levels, filters_first
from keras_sq.export.tflite.matching import (
    filter_axes,
    kernel_matrix,
    kernel_paths,
    layouts,
    path_of,
)
from keras_sq.export.tflite.row_scales import RowScales, row_scales

FILTER_AXES: dict[tuple[str, int], int] = {
    ("CONV_2D", 1): 0,
    ("CONV_3D", 1): 4,
    ("CONV_3D_TRANSPOSE", 1): 3,
    ("DEPTHWISE_CONV_2D", 1): 3,
    ("EMBEDDING_LOOKUP", 1): 0,
    ("FULLY_CONNECTED", 1): 0,
    ("GATHER", 0): 0,
    ("TRANSPOSE_CONV", 1): 0,
}
"""(operator, input) -> axis of the filters, for operators that take weights."""

BATCH_MATMUL = "BATCH_MATMUL"

FEW_LEVELS = 32
"""The most values in a slice of a constant that seems to be of a quantized kernel."""

LEAST_SIZE = 256
"""The least weights of a constant that is looked at for the part of a kernel."""

WORTHWHILE = 1000
"""Bytes that factors apart from a kernel have to save: about what a MUL takes."""


@dataclasses.dataclass(frozen=True)
class WeightTensor:
    """A constant that an operator takes as its weights.

    Attributes:
        graph: Number of the graph that holds it; 0 is the main one.
        subgraph: The graph.
        index: Its place there.
        tensor: The schema's object.
        name: Of the tensor.
        shape: Of the tensor.
        type_name: Such as `"FLOAT32"`.
        axis: Of the filters.
        operators: Names of the operators that read it.
        kernel: Path of the quantized kernel it is, or `None`.
        groups: In how many groups of filters it is read, as grouped convolutions do.
        scales: Factors by which it is the kernel, where its rows have some, too; one
            entry a group.
    """

    graph: int
    subgraph: Any
    index: int
    tensor: Any
    name: str
    shape: tuple[int, ...]
    type_name: str
    axis: int
    operators: tuple[str, ...]
    kernel: str | None = None
    groups: int = 1
    scales: tuple[RowScales, ...] = ()

    @property
    def size(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.shape))

    def of(self, file: TFLiteFile) -> "WeightTensor":
        """Returns the same tensor of another copy of the file."""
        subgraph = file.subgraphs[self.graph]
        tensor = subgraph.tensors[self.index]
        return dataclasses.replace(self, subgraph=subgraph, tensor=tensor)

    @property
    def gains(self) -> bool:
        """Whether packing gains more than the factors of its rows take, apart."""
        rows = self.size // self.shape[self.axis]
        return 4 * (self.size - rows) >= WORTHWHILE


def weight_tensors(file: TFLiteFile) -> list[WeightTensor]:
    """Returns the constants that operators take as weights.

    One that is read in another way besides (a shape, a bias) is left out.
    """
    weights = []
    for graph, index, tensor, readers in _constants(file):
        shape = shape_of(tensor)
        axes = {operator_axis(reader, len(shape)) for reader in readers}
        if len(shape) < 2 or len(axes) != 1 or None in axes:
            continue
        (axis,) = axes
        assert axis is not None  # For the type checker.
        weights.append(_weight(file, graph, index, tensor, readers, axis))
    return weights


def _constants(file: TFLiteFile) -> Iterator[tuple[int, int, Any, list[Use]]]:
    """Yields number of the graph, place, tensor and readers of all constants."""
    for graph, subgraph in enumerate(file.subgraphs):
        uses = file.uses(subgraph)
        for index, tensor in enumerate(subgraph.tensors):
            if file.data(tensor) is not None:
                yield graph, index, tensor, uses.get(index, [])


def _weight(
    file: TFLiteFile,
    graph: int,
    index: int,
    tensor: Any,
    readers: Sequence[Use],
    axis: int,
) -> WeightTensor:
    subgraph, shape = file.subgraphs[graph], shape_of(tensor)
    return WeightTensor(
        graph,
        subgraph,
        index,
        tensor,
        (tensor.name or b"").decode(),
        shape,
        TYPE_NAMES.get(tensor.type, str(tensor.type)),
        axis,
        tuple(dict.fromkeys(reader.name for reader in readers)),
        groups=max((_groups(subgraph, use, shape) for use in readers), default=1),
    )


def _groups(subgraph: Any, use: Use, shape: tuple[int, ...]) -> int:
    if use.name != "CONV_2D":
        return 1
    channels = shape_of(subgraph.tensors[use.operator.inputs[0]])[-1]
    return max(channels // shape[-1], 1)


def operator_axis(use: Use, rank: int) -> int | None:
    """Returns the axis of the filters of an operator's weights, `None` of others.

    Args:
        use: Where they are read.
        rank: How many axes they have.
    """
    if use.name == BATCH_MATMUL:
        options = use.operator.builtinOptions
        if use.position == 1:
            return rank - 2 if options.adjY else rank - 1
        return rank - 1 if options.adjX else rank - 2
    return FILTER_AXES.get((use.name, use.position))


def with_kernels(
    file: TFLiteFile,
    tensors: list[WeightTensor],
    codes: Mapping[str, KernelCodes],
) -> list[WeightTensor]:
    """Returns the weight tensors, with the kernels that they are.

    And constants besides, which other operators read, if they are kernels; or seem to
    be, where a kernel is not found.

    Args:
        file: The file.
        tensors: Of `weight_tensors`.
        codes: Path of a quantized kernel -> its codes.
    """
    matrices = [_as_matrix(file, entry) for entry in tensors]
    weights = [
        dataclasses.replace(entry, kernel=path)
        for entry, path in zip(tensors, kernel_paths(matrices, codes), strict=True)
    ]
    known = {(entry.graph, entry.index) for entry in tensors}
    others = [
        _weight(file, graph, index, tensor, readers, 0)
        for graph, index, tensor, readers in _constants(file)
        if (graph, index) not in known and _may_be_weights(tensor)
    ]
    weights = [_otherwise(file, entry, codes) for entry in (*weights, *others)]
    if set(codes) <= {entry.kernel for entry in weights}:
        return [x for x in weights if x.kernel or (x.graph, x.index) in known]
    return [_with_axis(file, entry) for entry in weights]


def _may_be_weights(tensor: Any) -> bool:
    shape = shape_of(tensor)
    if sum(size > 1 for size in shape) < 2 or math.prod(shape) < LEAST_SIZE:
        return False
    return TYPE_NAMES.get(tensor.type) in ("FLOAT32", "INT8")


def _as_matrix(file: TFLiteFile, entry: WeightTensor) -> Array | None:
    array = file.array(entry.tensor)
    if array is None or array.dtype.kind not in "fi":
        return None
    return filters_first(array, entry.axis)


def _otherwise(
    file: TFLiteFile, entry: WeightTensor, codes: Mapping[str, KernelCodes]
) -> WeightTensor:
    """Returns a tensor with the kernel that it is multiplied, or transposed."""
    array = file.array(entry.tensor)
    if entry.kernel or array is None or entry.type_name not in ("FLOAT32", "INT8"):
        return entry
    same = {path: x for path, x in codes.items() if x.codes.size == array.size}
    if not same:
        return entry
    axes = [entry.axis, *(x for x in range(array.ndim) if x != entry.axis)]
    if entry.type_name == "FLOAT32":
        for path, kernel in same.items():
            matrix = kernel_matrix(kernel.kernel, filter_axes(kernel))
            scales = _scales(array, entry.axis, matrix, entry.groups)
            if scales:
                if all(x.filters_only for x in scales):
                    scales = ()
                return dataclasses.replace(entry, kernel=path, scales=scales)
    for axis in axes:
        kernel_path = path_of(filters_first(array, axis), same)
        if kernel_path is not None:
            return dataclasses.replace(entry, kernel=kernel_path, axis=axis)
    if entry.type_name == "FLOAT32":
        for path, kernel in same.items():
            learned = kernel.levels is not None
            for axis in axes if learned else axes[:1]:
                base = kernel.kernel if learned else kernel.codes
                for matrix in layouts(base, kernel, array.shape[axis]):
                    scales = _scales(array, axis, matrix, 1)
                    if scales:
                        return dataclasses.replace(
                            entry, kernel=path, axis=axis, scales=scales
                        )
    return entry


def _scales(
    array: Array, axis: int, kernel: Array, groups: int
) -> tuple[RowScales, ...]:
    """Returns the factors of each group; none if it is not the kernel."""
    matrix = filters_first(array, axis)
    if matrix.shape != kernel.shape:
        return ()
    parts = np.split(matrix, groups), np.split(kernel, groups)
    scales = [row_scales(*pair) for pair in zip(*parts, strict=True)]
    complete = tuple(x for x in scales if x is not None)
    return complete if len(complete) == groups else ()


def _with_axis(file: TFLiteFile, entry: WeightTensor) -> WeightTensor:
    """Returns a tensor with an axis along which it has few values, if there is one."""
    axes = [entry.axis, *(x for x in range(len(entry.shape)) if x != entry.axis)]
    for axis in axes if entry.kernel is None else ():
        other = dataclasses.replace(entry, axis=axis)
        if has_few_levels(file, other):
            return other
    return entry


def has_few_levels(file: TFLiteFile, entry: WeightTensor) -> bool:
    """Whether a tensor's filters have few values, as those of quantized kernels."""
    matrix = _as_matrix(file, entry)
    if matrix is None or not np.all(np.isfinite(matrix)):
        return False
    return filter_levels(matrix, FEW_LEVELS) is not None
