"""What values a kernel holds, filter by filter, and whether integers give them.

Works on the constants of a file, not on layers: batch normalization was folded
into them, so what counts is what the numbers are. Pure NumPy, without loops over
weights or filters.
"""

import dataclasses

import numpy as np

from keras_sq.core.types import Array

MAX_CODE = 127
"""Largest absolute code that is looked for."""

TOLERANCE = 2.0**-22
"""Relative difference of `codes · scale` and a weight that counts as equal.

Two roundings of float32: a weight is the product of a code, a scale and the
factor of a batch normalization, multiplied in another order.
"""


@dataclasses.dataclass(frozen=True)
class FilterLevels:
    """The different values of each filter.

    Attributes:
        values: Array `(filters, levels)`, sorted; filters with fewer values
            repeat their last one.
        counts: Int array `(filters,)`, how many different values there are.
    """

    values: Array
    counts: Array

    @property
    def num_levels(self) -> int:
        """The most values a filter has."""
        return int(self.values.shape[1])

    def indices(self, matrix: Array) -> Array:
        """Returns which level each weight has, as uint8.

        Args:
            matrix: Array `(filters, weights)` that the levels are of.
        """
        places = np.zeros(matrix.shape, np.uint8)
        for level in range(1, self.num_levels):
            above = matrix >= self.values[:, level : level + 1]
            # A repeated last value is none of its own.
            above &= (self.counts > level)[:, np.newaxis]
            places += above
        return places


def filters_first(array: Array, axis: int) -> Array:
    """Returns a weight tensor as a matrix `(filters, weights)`."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def filter_levels(matrix: Array, max_levels: int) -> FilterLevels | None:
    """Returns the values of each filter.

    Args:
        matrix: Array `(filters, weights)`, finite.
        max_levels: The most values a filter may have.

    Returns:
        `None` if a filter has more.
    """
    filters, size = matrix.shape
    if not filters or not size:
        return None
    # Most float kernels are seen to be so by a part of one filter.
    if len(np.unique(matrix[0, : 8 * max_levels])) > max_levels:
        return None
    ordered = np.sort(matrix, axis=1)
    new = np.empty(ordered.shape, bool)
    new[:, 0] = True
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=new[:, 1:])
    counts = np.count_nonzero(new, axis=1)
    most = int(counts.max())
    if most > max_levels:
        return None
    rows, columns = np.nonzero(new)
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.repeat(ordered[:, -1:], most, axis=1)
    values[rows, ranks] = ordered[rows, columns]
    return FilterLevels(values, counts)


@dataclasses.dataclass(frozen=True)
class UniformCodes:
    """Levels that are multiples of one number a filter.

    Attributes:
        codes: Int8 array `(filters, levels)`.
        scale: Float32 array `(filters,)`, all > 0.
        largest_error: Of `codes · scale` in float32, relative to the level.
    """

    codes: Array
    scale: Array
    largest_error: float

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(self.codes.max())

    @property
    def smallest(self) -> int:
        """The smallest code."""
        return int(self.codes.min())


def uniform_codes(levels: FilterLevels) -> UniformCodes | None:
    """Returns the smallest integer codes that give the levels, exactly.

    Exactly: up to `TOLERANCE`, verified on every level.

    Args:
        levels: Of float32 values.

    Returns:
        `None` if some filter's levels are no multiples of one number.
    """
    values = levels.values.astype(np.float64)
    largest = np.max(np.abs(values), axis=1)
    zero = largest == 0
    divisor = np.where(zero, 1.0, largest)[:, np.newaxis]
    fractions = values / divisor
    # Products of float32 numbers differ a little more from whole multiples.
    allowed = 4 * TOLERANCE
    codes = np.zeros(values.shape, np.int8)
    open_filters = ~zero
    chosen = np.ones(len(values))
    for count in range(1, MAX_CODE + 1):
        if not open_filters.any():
            break
        candidates = np.flatnonzero(open_filters)
        multiples = fractions[candidates] * count
        rounded = np.rint(multiples)
        differences = np.abs(multiples - rounded)
        fits = np.all(differences <= allowed * np.abs(rounded), axis=1)
        done = candidates[fits]
        codes[done] = rounded[fits].astype(np.int8)
        chosen[done] = count
        open_filters[done] = False
    if open_filters.any():
        return None
    scale = _best_scale(values, codes, np.where(zero, 1.0, largest / chosen))
    error = float(np.max(_errors(values, codes, scale)))
    if error > TOLERANCE:
        return None
    return UniformCodes(codes, scale, error)


def _best_scale(values: Array, codes: Array, guess: Array) -> Array:
    """Returns the float32 scale near a guess with the least error."""
    best = guess.astype(np.float32)
    least = _errors(values, codes, best)
    for direction in (-np.inf, np.inf):
        candidate = guess.astype(np.float32)
        for _ in range(2):
            candidate = np.nextafter(candidate, np.float32(direction))
            errors = _errors(values, codes, candidate)
            better = (errors < least) & (candidate > 0)
            best = np.where(better, candidate, best)
            least = np.where(better, errors, least)
    return best


def _errors(values: Array, codes: Array, scale: Array) -> Array:
    """Returns the largest relative error of each filter, in float32 products."""
    products = codes.astype(np.float32) * scale.astype(np.float32)[:, np.newaxis]
    differences = np.abs(products.astype(np.float64) - values)
    sizes = np.where(values == 0, 1.0, np.abs(values))
    largest: Array = np.max(differences / sizes, axis=1)
    return largest
