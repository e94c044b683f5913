"""Kernels whose rows were multiplied, too: which factors they have.

The converter multiplies what scales a layer's output into its kernel's filters, and
what scales its input (a batch normalization before it) into the rows, that is into
the weights that read one input. A filter then holds as many values as it has weights.
As the quantized kernel is known, both factors are found again:

    constant[filter, row] = filter_scale[filter] * row_scale[row] * kernel[filter, row]

Pure NumPy; `folding.py` takes the factors out of a file.
"""

import dataclasses

import numpy as np

from keras_sq.core.types import Array

TOLERANCE = 2.0**-19
"""Relative difference of the product and a constant that counts as equal.

A few roundings of float32: several factors may have been multiplied one by one.
"""

FILTERS_TRIED = 8
"""By so many filters, most constants are seen not to be a kernel."""

ROUNDS = 3
"""Means over all filters and rows, after one of each is found."""


@dataclasses.dataclass(frozen=True)
class RowScales:
    """The factors of a constant.

    Attributes:
        filters: Float64 array `(filters,)`; 1 where the rows' factor is all there is.
        rows: Float64 array `(rows,)`; 1 where all weights of a row are 0.
        kernel: Array `(filters, rows)`, what they multiply.
    """

    filters: Array
    rows: Array
    kernel: Array

    @property
    def filters_only(self) -> bool:
        """Whether all rows have the same factor."""
        used = self.rows[self.kernel[self.filters != 0].any(axis=0)]
        return bool(np.ptp(used) <= TOLERANCE * np.abs(used).max())


def row_scales(constant: Array, kernel: Array) -> RowScales | None:
    """Returns the factors by which a constant is a kernel, `None` if it is not.

    Args:
        constant: Float array `(filters, rows)`.
        kernel: Float array of the same shape. Of one filter, every constant would be
            a multiple; at least two are needed.
    """
    if len(kernel) < 2:
        return None
    # Filters of zeros tell nothing.
    first = np.flatnonzero(kernel.any(axis=1) & constant.any(axis=1))[:FILTERS_TRIED]
    if not len(first) or _factors(constant[first], kernel[first]) is None:
        return None
    return _factors(constant, kernel)


def _factors(constant: Array, kernel: Array) -> RowScales | None:
    used = kernel != 0
    if np.any(constant[~used]):
        return None
    wide = constant.astype(np.float64)
    ratio = np.divide(wide, kernel, out=np.zeros_like(wide), where=used)
    known = ratio != 0
    # A factor of 0 takes all of a filter, or of a row.
    filters_zero, rows_zero = ~known.any(1), ~known.any(0)
    used[filters_zero] = False
    used[:, rows_zero] = False
    if not np.array_equal(used, known) or not known.any():
        return None
    filters, rows = _solved(ratio, known)
    products = filters[:, np.newaxis] * rows * kernel
    products[filters_zero] = 0.0
    products[:, rows_zero] = 0.0
    if np.any(np.abs(products - wide) > TOLERANCE * np.abs(wide)):
        return None
    if np.any(kernel[filters_zero]):
        filters = np.where(filters_zero & kernel.any(1), 0.0, filters)
    # A row that only filters of zeros have tells nothing of its factor.
    rows = np.where(rows_zero & kernel[~filters_zero].any(0), 0.0, rows)
    return RowScales(filters, rows, kernel)


def _solved(ratio: Array, known: Array) -> tuple[Array, Array]:
    """Returns two vectors whose outer product is `ratio` where it is known."""
    mask = known.astype(np.float64)
    filters, rows = np.zeros(len(ratio)), np.zeros(ratio.shape[1])
    free = known.any(1)
    while np.any(free & (filters == 0)):
        # What no filter or row before has to do with starts on its own.
        start = int(np.argmax(np.where(filters == 0, known.sum(1), 0)))
        filters[start] = 1.0
        members = np.zeros(len(ratio), bool)
        members[start] = True
        while True:
            before = np.count_nonzero(filters)
            rows = np.where(rows == 0, _means(ratio.T, mask.T, filters), rows)
            more = np.where(filters == 0, _means(ratio, mask, rows), filters)
            members |= (more != 0) & (filters == 0)
            filters = more
            if np.count_nonzero(filters) == before:
                break
        reached = known[members].any(0)
        scale = _usual(filters[members])
        filters[members] /= scale
        rows[reached] *= scale
    for _ in range(ROUNDS):
        rows = _means(ratio.T, mask.T, filters)
        filters = _means(ratio, mask, rows)
    if np.ptp(filters[free]) <= TOLERANCE * np.abs(filters[free]).max():
        filters[free] = 1.0
        rows = _means(ratio.T, mask.T, filters)
    return np.where(filters == 0, 1.0, filters), np.where(rows == 0, 1.0, rows)


def _means(ratio: Array, mask: Array, factors: Array) -> Array:
    """Returns the mean of ratio / factor in each line, 0 where none is known."""
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors != 0)
    count = mask @ (factors != 0)
    means: Array = np.divide(
        ratio @ inverse, count, out=np.zeros(len(ratio)), where=count > 0
    )
    return means


def _usual(factors: Array) -> float:
    """Returns a factor of the size and the sign that most have."""
    size = float(np.exp(np.mean(np.log(np.abs(factors)))))
    return -size if np.sum(np.sign(factors)) < 0 else size
