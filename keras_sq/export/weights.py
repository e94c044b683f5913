"""The weight tensors of a file, and which kernels of the model they are.

The converter renames, transposes, flattens and splits constants, and folds batch
normalization into them. What stays is the order of values within a filter: which
weight has the lowest level, which the next. A kernel is found again by that, so
names play no part.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_sq.export.flatbuffer import TYPE_NAMES, TFLiteFile, Use, shape_of
from keras_sq.export.levels import filter_levels, filters_first
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

MATCHING_FILTERS = 0.5
"""The part of the filters by which a kernel is found again.

Not all: a filter whose batch normalization has the factor 0 holds only zeros.
"""

PART_WEIGHTS = 16
"""The fewest weights by which a part of a kernel is found again: as many of its
filters, side by side, as there are, all of them alike. Keras splits the kernels of
ConvLSTM into those of the four gates."""


@dataclasses.dataclass(frozen=True)
class WeightTensor:
    """A constant that an operator takes as its weights.

    Attributes:
        subgraph: The graph that holds it.
        index: Its place there.
        tensor: The schema's object.
        name: Of the tensor.
        shape: Of the tensor.
        type_name: Such as `"FLOAT32"`.
        axis: Of the filters.
        operators: Names of the operators that read it.
        kernel: Path of the quantized kernel it is, or `None`.
    """

    subgraph: Any
    index: int
    tensor: Any
    name: str
    shape: tuple[int, ...]
    type_name: str
    axis: int
    operators: tuple[str, ...]
    kernel: str | None = None

    @property
    def size(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.shape))


def weight_tensors(file: TFLiteFile) -> list[WeightTensor]:
    """Returns the constants that operators take as weights.

    One that is read in another way besides (a shape, a bias) is left out.
    """
    uses = {id(subgraph): file.uses(subgraph) for subgraph in file.subgraphs}
    found = []
    for subgraph, index, tensor in file.constants():
        readers = uses[id(subgraph)].get(index, [])
        shape = shape_of(tensor)
        axes = {_filter_axis(reader, len(shape)) for reader in readers}
        if len(shape) < 2 or len(axes) != 1 or None in axes:
            continue
        (axis,) = axes
        assert axis is not None  # For the type checker.
        type_name = TYPE_NAMES.get(tensor.type, str(tensor.type))
        operators = tuple(dict.fromkeys(reader.name for reader in readers))
        found.append(
            WeightTensor(
                subgraph,
                index,
                tensor,
                (tensor.name or b"").decode(),
                shape,
                type_name,
                axis,
                operators,
            )
        )
    return found


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

    Args:
        file: The file.
        tensors: Of `weight_tensors`.
        codes: Path of a quantized kernel -> its codes.
    """
    matrices: list[Array | None] = []
    for entry in tensors:
        array = file.array(entry.tensor)
        if array is not None and array.dtype.kind in "fi":
            matrices.append(filters_first(array, entry.axis))
        else:
            matrices.append(None)
    return [
        dataclasses.replace(entry, kernel=path)
        for entry, path in zip(tensors, kernel_paths(matrices, codes), strict=True)
    ]


def kernel_paths(
    matrices: Sequence[Array | None], codes: Mapping[str, KernelCodes]
) -> list[str | None]:
    """Returns which kernels these are; `None` where none is found.

    Args:
        matrices: Arrays `(filters, weights)`; `None` is no kernel.
        codes: Path of a quantized kernel -> its codes.
    """
    patterns = {}
    for path, kernel in codes.items():
        shape = kernel.scale.shape
        axes = [axis for axis, size in enumerate(shape) if size > 1]
        by_filter = _matrix(kernel.codes, axes or [kernel.codes.ndim - 1])
        patterns[path] = _pattern(by_filter)
    found = []
    for matrix in matrices:
        pattern = None if matrix is None else _pattern(matrix)
        found.append(None if pattern is None else _best_match(pattern, patterns))
    return found


def _matrix(array: Array, filter_axes: list[int]) -> Array:
    front = np.moveaxis(array, filter_axes, range(len(filter_axes)))
    filters = int(np.prod([array.shape[axis] for axis in filter_axes]))
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
    """Returns the kernel that a matrix is, or else the one that it is a part of."""
    size, hashes = pattern
    best, best_part = None, MATCHING_FILTERS
    for path, kernel in kernels.items():
        if kernel is None or kernel[0] != size or len(kernel[1]) != len(hashes):
            continue
        part = float(np.mean(kernel[1] == hashes))
        if part >= best_part and (best is None or part > best_part):
            best, best_part = path, part
    if best is not None or size * len(hashes) < PART_WEIGHTS:
        return best
    for path, kernel in kernels.items():
        if (
            kernel is not None
            and kernel[0] == size
            and not len(kernel[1]) % len(hashes)
        ):
            blocks = kernel[1].reshape(-1, len(hashes))
            if bool(np.any(np.all(blocks == hashes, axis=1))):
                return path
    return None
