"""The largest entries of many vectors at once: exactly so many of each.

`selection.py` says what the entries are and why the largest are chosen.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_sq.core.types import Tensor

_SORT_MAX_SIZE = 2**17
"""Up to this many entries are ranked by sorting, more by bisection."""


class Rows:
    """Vectors of several lengths as the rows of one matrix, and back.

    Args:
        sizes: The lengths.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.width = max(sizes)
        self.full = min(sizes) == self.width
        starts = np.cumsum([0, *sizes])
        total = starts[-1]
        # The place in the joined vectors that each matrix entry comes from (`total`
        # for padding), and the place in the matrix that each vector entry goes to.
        source = np.full((len(sizes), self.width), total, "int32")
        for row, (start, size) in enumerate(zip(starts[:-1], sizes, strict=True)):
            source[row, :size] = np.arange(start, start + size)
        self.source = source
        self.valid = source < total
        self.target = np.flatnonzero(self.valid.reshape(-1)).astype("int32")

    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        """Returns the float32 matrix of float vectors; padding is 0."""
        if self.full:
            return ops.stack(list(vectors))
        flat = ops.concatenate([*vectors, ops.zeros((1,), "float32")])
        return ops.take(flat, self.source, axis=0)

    def split(self, matrix: Tensor) -> list[Tensor]:
        """Returns the vectors of a matrix."""
        flat = ops.reshape(matrix, (-1,))
        if not self.full:
            flat = ops.take(flat, self.target, axis=0)
        if len(self.sizes) == 1:
            return [flat]
        return list(ops.split(flat, np.cumsum(self.sizes)[:-1].tolist()))

    def largest(
        self, scores: Tensor, number: Tensor, tie_break: Tensor | None = None
    ) -> Tensor:
        """Returns a mask of the `number` largest valid scores of each row."""
        if not self.full:
            scores = ops.where(self.valid, scores, -float("inf"))
        return largest(scores, number, tie_break)


def largest(scores: Tensor, number: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """Returns a mask of exactly the `number` largest scores of each row.

    Args:
        scores: Float32 `(rows, m)`, not NaN.
        number: Int32 `(rows,)`, each in [0, m].
        tie_break: Float32 `(rows, m)`; among equal scores the larger goes
            first. Without it, and above 131,072 entries a row, the earlier
            one does.

    Returns:
        Bool `(rows, m)`.
    """
    rows, size = scores.shape
    if size > _SORT_MAX_SIZE:
        return ops.stack(
            [_largest_by_bisection(scores[row], number[row]) for row in range(rows)]
        )
    if tie_break is None:
        order = ops.argsort(-scores, axis=-1)
    else:
        # Two stable sorts, the lesser key first.
        lesser = ops.argsort(-tie_break, axis=-1)
        again = ops.argsort(ops.take_along_axis(-scores, lesser, axis=-1), axis=-1)
        order = ops.take_along_axis(lesser, again, axis=-1)
    chosen = np.arange(size, dtype="int32") < ops.expand_dims(number, -1)
    # The first `number` of the order are chosen; mark them at their places.
    place = ops.cast(order, "int32") + np.arange(rows, dtype="int32")[:, None] * size
    flat = ops.scatter(
        ops.reshape(place, (-1, 1)),
        ops.reshape(ops.cast(chosen, "int32"), (-1,)),
        (rows * size,),
    )
    return ops.reshape(flat > 0, (rows, size))


def _largest_by_bisection(scores: Tensor, number: Tensor) -> Tensor:
    """As `largest` for one row, in passes over the scores instead of a sort.

    For four million weights 0.3 s against more than a second.
    """
    finite = ops.where(scores > -float("inf"), scores, float("inf"))
    low = ops.min(finite)
    low = low - 1.0 - ops.abs(low)
    high = ops.max(scores)
    # Invariant: count(scores > high) <= number <= count(scores > low).

    def halve(_: Tensor, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        low, high = bounds
        middle = low + 0.5 * (high - low)
        above = ops.sum(ops.cast(scores > middle, "int32"))
        fits = above <= number
        return ops.where(fits, low, middle), ops.where(fits, middle, high)

    low, high = ops.fori_loop(0, 64, halve, (low, high))
    above = scores > high
    missing = number - ops.sum(ops.cast(above, "int32"))
    # Entries at the threshold fill up to the exact number, earlier ones first.
    equal = ops.logical_and(ops.logical_not(above), scores > low)
    earlier = ops.cumsum(ops.cast(equal, "int32"))
    return ops.logical_or(above, ops.logical_and(equal, earlier <= missing))
