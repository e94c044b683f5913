"""Which quantized kernel a matrix of weights is, by its values.

What stays in a converted file is the order of values within a filter: which weight has
the lowest level, which the next. Pure NumPy; `weights.py` takes the matrices from a
file.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core.types import Array
from keras_sq.export.tflite.levels import filter_levels

MAX_LEVELS = 256
"""The most values a filter of a quantized kernel has."""

MATCHING_FILTERS = 0.5
"""The part of the filters by which a kernel is found again.

Not all: a filter whose batch normalization has the factor 0 holds only zeros.
"""


PART_WEIGHTS = 16
"""The fewest weights by which a part of a kernel is found again: as many of its
filters, side by side, as there are, all of them alike. Keras splits the kernels of
ConvLSTM into those of the four gates."""


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
    paths = []
    for matrix in matrices:
        pattern = None if matrix is None else _pattern(matrix)
        path = None
        if pattern is not None:
            path = _best_match(pattern, patterns) or _holder(pattern, patterns)
        paths.append(path)
    return paths


def path_of(matrix: Array, kernels: Mapping[str, KernelCodes]) -> str | None:
    """Returns which kernel a matrix is, with its axes in any order.

    Args:
        matrix: Array `(filters, weights)`.
        kernels: Path of a quantized kernel -> its codes.
    """
    most = max(int(np.ptp(kernel.codes.astype(int))) for kernel in kernels.values())
    pattern = _pattern(matrix, most + 1)
    if pattern is None:
        return None
    for path, kernel in kernels.items():
        for codes in layouts(kernel.codes, kernel, len(matrix)):
            if _best_match(pattern, {path: _pattern(codes)}) is not None:
                return path
    return None


def layouts(array: Array, kernel: KernelCodes, rows: int) -> Iterator[Array]:
    """Yields an array as a matrix of so many rows, in all orders of its axes.

    Rows are filters, where a kernel has levels of each. Codes can be of any axis: their
    scales are factors, of rows or of columns.

    Args:
        array: Of the kernel's shape.
        kernel: The kernel.
        rows: How many there must be.
    """
    filters = set(filter_axes(kernel))
    for order in itertools.permutations(range(array.ndim)):
        for count in range(1, array.ndim):
            if kernel.levels is not None and set(order[:count]) != filters:
                continue
            if math.prod(array.shape[axis] for axis in order[:count]) == rows:
                yield array.transpose(order).reshape(rows, -1)


def kernel_matrix(array: Array, axes: list[int]) -> Array:
    """Returns a kernel as a matrix `(filters, weights)`.

    Args:
        array: Of the kernel's shape.
        axes: Those of the filters.
    """
    front = np.moveaxis(array, axes, range(len(axes)))
    filters = int(np.prod([array.shape[axis] for axis in axes]))
    return front.reshape(filters, -1)


def _pattern(matrix: Array, max_levels: int = MAX_LEVELS) -> tuple[int, Array] | None:
    """Returns the size of a filter, and a hash of the order in each filter.

    The same for a filter and its negative: a batch normalization may have a
    negative factor.
    """
    levels = filter_levels(matrix, max_levels)
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


def _holder(
    pattern: tuple[int, Array], kernels: Mapping[str, tuple[int, Array] | None]
) -> str | None:
    """Returns the kernel that a matrix is a part of."""
    size, hashes = pattern
    if size * len(hashes) < PART_WEIGHTS:
        return None
    for path, kernel in kernels.items():
        if kernel is None or kernel[0] != size or len(kernel[1]) % len(hashes):
            continue
        blocks = kernel[1].reshape(-1, len(hashes))
        if bool(np.any(np.all(blocks == hashes, axis=1))):
            return path
    return None
