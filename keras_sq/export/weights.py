"""The weight tensors of a file, and which kernels of the model they are.

The converter renames, transposes, flattens and splits constants, and folds batch
normalization into them. What stays is the order of values within a filter: which
weight has the lowest level, which the next. A kernel is found again by that, so
names play no part. Where a scale of the layer's input was folded into its rows, the
kernel is found by the two factors of each weight (`row_scales.py`); where an operator
that takes no weights otherwise reads it, or it is transposed, by trying its layouts.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_sq.export.flatbuffer import TYPE_NAMES, TFLiteFile, Use, shape_of
from keras_sq.export.levels import filter_levels, filters_first
from keras_sq.export.row_scales import RowScales, row_scales
from keras_sq.kernel_codes import KernelCodes

Array = np.ndarray[Any, Any]

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

MAX_LEVELS = 255
"""The most values a filter of a quantized kernel has."""

FEW_LEVELS = 32
"""The most values in a slice of a constant that seems to be of a quantized kernel."""

LEAST_SIZE = 256
"""The least weights of a constant that is looked at for the part of a kernel."""

WORTHWHILE = 1000
"""Bytes that factors apart from a kernel have to save: about what a MUL takes."""

MATCHING_FILTERS = 0.5
"""The part of the filters by which a kernel is found again.

Not all: a filter whose batch normalization has the factor 0 holds only zeros.
"""


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

    @property
    def gains(self) -> bool:
        """Whether packing gains more than the factors of its rows take, apart."""
        rows = self.size // self.shape[self.axis]
        return 4 * (self.size - rows) >= WORTHWHILE


def weight_tensors(file: TFLiteFile) -> list[WeightTensor]:
    """Returns the constants that operators take as weights.

    One that is read in another way besides (a shape, a bias) is left out.
    """
    found = []
    for graph, index, tensor, readers in _constants(file):
        shape = shape_of(tensor)
        axes = {_filter_axis(reader, len(shape)) for reader in readers}
        if len(shape) < 2 or len(axes) != 1 or None in axes:
            continue
        (axis,) = axes
        assert axis is not None  # For the type checker.
        found.append(_weight(file, graph, index, tensor, readers, axis))
    return found


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


def _filter_axis(use: Use, rank: int) -> int | None:
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
    found = [
        dataclasses.replace(entry, kernel=path)
        for entry, path in zip(tensors, kernel_paths(matrices, codes), strict=True)
    ]
    found = [
        entry if entry.kernel else _with_scales(entry, matrix, codes)
        for entry, matrix in zip(found, matrices, strict=True)
    ]
    missing = _missing(found, codes)
    if not missing:
        return found
    known = {(entry.graph, entry.index) for entry in tensors}
    others = [
        _weight(file, graph, index, tensor, readers, 0)
        for graph, index, tensor, readers in _constants(file)
        if (graph, index) not in known and _may_be_weights(tensor)
    ]
    found = [_with_layout(file, entry, missing) for entry in (*found, *others)]
    if not _missing(found, codes):
        return [x for x in found if x.kernel or (x.graph, x.index) in known]
    return [_with_axis(file, entry) for entry in found]


def _missing(
    found: Iterable[WeightTensor], codes: Mapping[str, KernelCodes]
) -> dict[str, KernelCodes]:
    there = {entry.kernel for entry in found}
    return {path: kernel for path, kernel in codes.items() if path not in there}


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


def _with_scales(
    entry: WeightTensor, matrix: Array | None, codes: Mapping[str, KernelCodes]
) -> WeightTensor:
    """Returns a tensor with the kernel whose filters and rows it has multiplied."""
    if matrix is None or matrix.dtype != np.float32:
        return entry
    for path, kernel in codes.items():
        if kernel.codes.size != matrix.size:
            continue
        expected = kernel_matrix(kernel.kernel, filter_axes(kernel))
        if expected.shape != matrix.shape:
            continue
        scales = []
        for part, values in zip(
            np.split(matrix, entry.groups),
            np.split(expected, entry.groups),
            strict=True,
        ):
            scales.append(row_scales(part, values))
            if scales[-1] is None:
                break
        factors = tuple(x for x in scales if x is not None)
        if len(factors) == entry.groups:
            return dataclasses.replace(entry, kernel=path, scales=factors)
    return entry


def _with_layout(
    file: TFLiteFile, entry: WeightTensor, kernels: Mapping[str, KernelCodes]
) -> WeightTensor:
    """Returns a tensor with the kernel that it is with its axes in another order."""
    array = file.array(entry.tensor)
    if entry.kernel or array is None or entry.type_name not in ("FLOAT32", "INT8"):
        return entry
    candidates = {x: y for x, y in kernels.items() if y.codes.size == array.size}
    if not candidates:
        return entry
    for axis in range(array.ndim):
        pattern = _pattern(filters_first(array, axis))
        if pattern is None:
            continue
        for path, kernel in candidates.items():
            for matrix in _layouts(kernel, array.shape[axis]):
                if _best_match(pattern, {path: _pattern(matrix)}):
                    return dataclasses.replace(entry, kernel=path, axis=axis)
    return entry


def _layouts(kernel: KernelCodes, filters: int) -> Iterator[Array]:
    """Yields a kernel's codes `(filters, weights)` in all orders of its axes."""
    axes = filter_axes(kernel)
    if np.prod([kernel.codes.shape[axis] for axis in axes]) != filters:
        return
    others = [axis for axis in range(kernel.codes.ndim) if axis not in axes]
    for order in itertools.permutations(axes):
        for rest in itertools.permutations(others):
            yield kernel.codes.transpose(*order, *rest).reshape(filters, -1)


def _with_axis(file: TFLiteFile, entry: WeightTensor) -> WeightTensor:
    """Returns a tensor with the axis along which it has the fewest values."""
    array = file.array(entry.tensor)
    if entry.kernel or array is None or array.dtype.kind not in "fi":
        return entry
    axes = [entry.axis, *(x for x in range(array.ndim) if x != entry.axis)]
    for axis in axes:
        matrix = filters_first(array, axis)
        if array.dtype.kind == "f" and not np.all(np.isfinite(matrix)):
            break
        if filter_levels(matrix, FEW_LEVELS) is not None:
            return dataclasses.replace(entry, axis=axis)
    return entry


def filter_axes(kernel: KernelCodes) -> list[int]:
    """Returns the axes of a kernel that tell its filters apart."""
    axes = [axis for axis, size in enumerate(kernel.scale.shape) if size > 1]
    return axes or [kernel.codes.ndim - 1]


def kernel_paths(
    matrices: Sequence[Array | None], codes: Mapping[str, KernelCodes]
) -> list[str | None]:
    """Returns which kernels these are; `None` where none is found.

    Args:
        matrices: Arrays `(filters, weights)`; `None` is no kernel.
        codes: Path of a quantized kernel -> its codes.
    """
    patterns = {
        path: _pattern(kernel_matrix(kernel.codes, filter_axes(kernel)))
        for path, kernel in codes.items()
    }
    found = []
    for matrix in matrices:
        pattern = None if matrix is None else _pattern(matrix)
        found.append(None if pattern is None else _best_match(pattern, patterns))
    return found


def kernel_matrix(array: Array, axes: list[int]) -> Array:
    """Returns a kernel as a matrix `(filters, weights)`.

    Args:
        array: Of the kernel's shape.
        axes: Those of the filters.
    """
    front = np.moveaxis(array, axes, range(len(axes)))
    filters = int(np.prod([array.shape[axis] for axis in axes]))
    return front.reshape(filters, -1)


def _pattern(matrix: Array) -> tuple[int, Array] | None:
    """Returns the size of a filter, and a hash of the order in each filter.

    The same for a filter and its negative: a batch normalization may have a
    negative factor.
    """
    levels = filter_levels(matrix, MAX_LEVELS)
    if levels is None:
        return None
    ranks = levels.indices(matrix).astype(np.uint64)
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**63, matrix.shape[1], np.uint64)
    with np.errstate(over="ignore"):  # Modulo 2**64.
        forward = ranks @ factors
        highest = (levels.counts - 1).astype(np.uint64)
        backward = highest * factors.sum(dtype=np.uint64) - forward
    return matrix.shape[1], np.minimum(forward, backward)


def _best_match(
    pattern: tuple[int, Array], kernels: Mapping[str, tuple[int, Array] | None]
) -> str | None:
    size, hashes = pattern
    best, best_part = None, MATCHING_FILTERS
    for path, kernel in kernels.items():
        if kernel is None or kernel[0] != size or len(kernel[1]) != len(hashes):
            continue
        part = float(np.mean(kernel[1] == hashes))
        if part >= best_part and (best is None or part > best_part):
            best, best_part = path, part
    return best
