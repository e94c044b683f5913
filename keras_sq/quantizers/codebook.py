"""The mathematics of learned codebooks (LQ-Nets), as pure functions of tensors.

A codebook of `k` bits is a **basis** of `k` numbers a filter. Its `2^k` **levels**
are the sums of the basis with the signs of a code (or, for codes {0, 1}, the sums
of a part of it); a weight takes the nearest level, which is the number of
**thresholds**, the midpoints between neighbours, that it exceeds.

Everything takes the numbers as `(..., filters)`, like `filter_functions.py`; a basis
is `(num_bits, filters)`, float32. Nothing here has state.

Design note: **no codes in memory.** The least squares problem needs the codes of
every weight only as `BᵀB` and `Bᵀw`, and these follow from how many weights each
level has and what they sum to: two sums a threshold, in the same pass that
quantizes, and no tensor of the size of the kernel times the levels.

References:
    - [Zhang et al., 2018, section 3](https://arxiv.org/abs/1807.10029)
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_sq.core import backend
from keras_sq.core.types import Tensor
from keras_sq.quantizers import filter_functions

RIDGE = 1e-4
"""Pulls the least squares solution to the basis before, where codes leave it open."""

DECAY = 0.9
"""Of the moving average of bases."""

NORMAL_QUARTILE = 0.6745
"""Of N(0, 1): half of all values are closer to 0. Initial bases are made of it."""

MAX_UNROLLED_BITS = 4
"""Up to here each threshold is compared with in a term of its own; beyond, a weight
finds its level by bisection."""

FITTED_AT_ONCE = 2**22
"""Weights that are sorted at once: with their sums 48 MiB."""


@functools.cache
def code_table(num_bits: int, signed: bool) -> np.ndarray[Any, Any]:
    """Returns all codes, float32 `(2**num_bits, num_bits)`: -1 and 1, or 0 and 1."""
    numbers = np.arange(2**num_bits)[:, np.newaxis]
    bits = (numbers >> np.arange(num_bits)) & 1
    return (2 * bits - 1 if signed else bits).astype("float32")


def levels_of(basis: Tensor, signed: bool) -> Tensor:
    """Returns the levels, sorted: float32 `(levels, filters)`.

    Args:
        basis: Float32 `(num_bits, filters)`.
        signed: Whether codes are -1 and 1, or 0 and 1.
    """
    table = code_table(int(basis.shape[0]), signed)
    return ops.sort(ops.matmul(table, basis), axis=0)


def codes_of(basis: Tensor, signed: bool) -> Tensor:
    """Returns the codes of the sorted levels: float32 `(levels, num_bits, filters)`.

    Args:
        basis: Float32 `(num_bits, filters)`.
        signed: Whether codes are -1 and 1, or 0 and 1.
    """
    table = code_table(int(basis.shape[0]), signed)
    order = ops.argsort(ops.matmul(table, basis), axis=0)
    return ops.transpose(ops.take(table, order, axis=0), (0, 2, 1))


def thresholds_of(levels: Tensor) -> Tensor:
    """Returns the midpoints between neighbouring levels, `(levels - 1, filters)`."""
    return (levels[:-1] + levels[1:]) / 2


def ranks(weights: Tensor, thresholds: Tensor) -> Tensor:
    """Returns which level each weight takes, by number, as int32.

    A weight on a threshold takes the lower level.

    Args:
        weights: Float32 `(..., filters)`.
        thresholds: Float32 `(levels - 1, filters)`, sorted.
    """
    count = int(thresholds.shape[0])
    if count < 2**MAX_UNROLLED_BITS:
        limits = ops.unstack(thresholds, count)
        above = [ops.cast(weights > limit, "int32") for limit in limits]
        return functools.reduce(ops.add, above)
    rank = ops.zeros_like(weights, "int32")
    half = (count + 1) // 2
    while half:
        value = _picked(thresholds, rank + (half - 1))
        rank = rank + half * ops.cast(weights > value, "int32")
        half //= 2
    return rank


def nearest(weights: Tensor, levels: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns the nearest level of every weight, and NaN for NaN.

    Args:
        weights: Float32 `(..., filters)`.
        levels: Float32 `(levels, filters)`, sorted, or its rows.
    """
    count = len(levels) if isinstance(levels, Sequence) else int(levels.shape[0])
    if count > 2**MAX_UNROLLED_BITS:
        result = _picked(levels, ranks(weights, thresholds_of(levels)))
    else:
        rows = levels if isinstance(levels, Sequence) else ops.unstack(levels, count)
        result = ops.broadcast_to(rows[0], ops.shape(weights))
        for lower, upper in itertools.pairwise(rows):
            result = ops.where(weights > (lower + upper) / 2, upper, result)
    return ops.where(weights == weights, result, weights)


def _picked(values: Tensor, indices: Tensor) -> Tensor:
    """Returns `values[indices[..., f], f]`."""
    shape = ops.shape(indices)
    flat = ops.reshape(indices, (-1, shape[-1]))
    return ops.reshape(ops.take_along_axis(values, flat, axis=0), shape)


def level_sums(weights: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how many weights each level has, and their sum.

    Args:
        weights: Float tensor `(..., filters)`.
        thresholds: Float32 `(levels - 1, filters)`.

    Returns:
        Two float32 tensors `(levels, filters)`.
    """
    count = int(thresholds.shape[0])
    if count >= 2**MAX_UNROLLED_BITS:
        filters = ops.shape(weights)[-1]
        wide = ops.reshape(ops.cast(weights, "float32"), (-1, filters))
        places = ranks(wide, thresholds) * filters + ops.arange(filters)
        size = (count + 1) * filters
        flat = ops.reshape(places, (-1,))
        values = ops.reshape(wide, (-1,))
        numbers = ops.segment_sum(ops.ones_like(values), flat, size)
        sums = ops.segment_sum(values, flat, size)
        shape = (count + 1, filters)
        return ops.reshape(numbers, shape), ops.reshape(sums, shape)

    def terms(block: Tensor, *limits: Tensor) -> tuple[Tensor, ...]:
        zero = ops.zeros((), block.dtype)
        one = ops.ones((), block.dtype)
        above = [block > limit for limit in limits]
        return (
            block,
            *(ops.where(x, one, zero) for x in above),
            *(ops.where(x, block, zero) for x in above),
        )

    limits = ops.unstack(thresholds, count)
    total, *rest = filter_functions.filter_sums(terms, weights, *limits)
    count_of_all = ops.cast(filter_functions.weights_per_filter(weights), "float32")
    number = ops.zeros_like(total) + count_of_all
    # Of the weights above each threshold; between two, the difference.
    numbers = ops.stack([number, *rest[:count], ops.zeros_like(number)])
    sums = ops.stack([total, *rest[count:], ops.zeros_like(number)])
    return numbers[:-1] - numbers[1:], sums[:-1] - sums[1:]


def least_squares(
    basis: Tensor, codes: Tensor, numbers: Tensor, sums: Tensor
) -> Tensor:
    """Returns the basis that the codes' weights ask for.

    `(BᵀB + RIDGE·I)⁻¹ (BᵀX + RIDGE·basis)`, for all filters at once, solved in
    float64: where codes are linearly dependent only the ridge is left, which
    float32 would lose beside a `BᵀB` of thousands.

    Args:
        basis: Float32 `(num_bits, filters)`, the one before.
        codes: Float32 `(levels, num_bits, filters)`.
        numbers: Float32 `(levels, filters)`: how many weights have each level.
        sums: Float32 `(levels, filters)`: their sums.
    """
    num_bits = int(basis.shape[0])
    with backend.float64():
        codes, numbers, sums, before = (
            ops.cast(x, "float64") for x in (codes, numbers, sums, basis)
        )
        weighted = codes * numbers[:, np.newaxis]
        square = ops.einsum("lif,ljf->fij", weighted, codes)
        square = square + RIDGE * ops.eye(num_bits, dtype="float64")
        product = ops.einsum("lif,lf->fi", codes, sums) + RIDGE * ops.transpose(before)
        factor = ops.cholesky(square)
        half = ops.solve_triangular(factor, product[..., np.newaxis], lower=True)
        upper = ops.transpose(factor, (0, 2, 1))
        solution = ops.solve_triangular(upper, half)
        return ops.cast(ops.transpose(solution[..., 0]), "float32")


def step(weights: Tensor, basis: Tensor, signed: bool) -> Tensor:
    """Returns the basis after one alternation: encode, then least squares.

    Args:
        weights: Float tensor `(..., filters)`.
        basis: Float32 `(num_bits, filters)`.
        signed: Whether codes are -1 and 1, or 0 and 1.
    """
    thresholds = thresholds_of(levels_of(basis, signed))
    codes = codes_of(basis, signed)
    return least_squares(basis, codes, *level_sums(weights, thresholds))


def fitted(weights: Any, start: Any, steps: int) -> np.ndarray[Any, Any]:
    """Returns the basis after several alternations, of kernels whose numbers are known.

    The same as `step` after `step` with codes -1 and 1, in NumPy, where it takes a
    fiftieth of the time: each filter is sorted once, and then the weights of a level
    are those between two places, and their sum is the difference of two sums.

    Args:
        weights: Array of floats `(rows, filters)`.
        start: Array of float32 `(num_bits, filters)`, the basis to begin with.
        steps: Int, number of alternations.

    Returns:
        Float32 `(num_bits, filters)`.
    """
    basis = np.array(start, "float32")
    width = max(1, FITTED_AT_ONCE // max(1, len(weights)))
    for first in range(0, basis.shape[1], width):
        part = slice(first, first + width)
        basis[:, part] = _fitted_filters(weights[:, part], basis[:, part], steps)
    return basis


def _fitted_filters(weights: Any, basis: Any, steps: int) -> Any:
    ordered = np.sort(weights.T.astype("float32"), axis=1)
    filters, count = ordered.shape
    table = code_table(len(basis), signed=True).astype("float64")
    # Of the smallest weights of each filter, for every number of them.
    sums = np.zeros((filters, count + 1))
    ends = np.full((filters, 1), count)
    ridge = RIDGE * np.eye(len(basis))
    basis = basis.T.astype("float64")
    with np.errstate(invalid="ignore"):  # A filter that is not finite stays so.
        np.cumsum(ordered, axis=1, dtype="float64", out=sums[:, 1:])
        for _ in range(steps):
            # From here on as `step` does it, whose bases are float32.
            levels = (basis @ table.T).astype("float32")
            order = np.argsort(levels, axis=1, kind="stable")
            levels = np.take_along_axis(levels, order, axis=1)
            below = _places(ordered, (levels[:, :-1] + levels[:, 1:]) / 2)
            places = np.concatenate([0 * ends, below, ends], axis=1)
            numbers = np.diff(places, axis=1)
            totals = np.diff(np.take_along_axis(sums, places, axis=1), axis=1)
            codes = table[order]
            square = np.einsum("fli,fl,flj->fij", codes, numbers, codes) + ridge
            product = np.einsum("fli,fl->fi", codes, totals) + RIDGE * basis
            solution = np.linalg.solve(square, product[..., np.newaxis])[..., 0]
            basis = solution.astype("float32").astype("float64")
    return basis.T


def _places(ordered: Any, limits: Any) -> Any:
    """Returns how many of a filter's sorted weights are at most each of its limits."""
    count = ordered.shape[1]
    low = np.zeros(limits.shape, "int64")
    high = np.full(limits.shape, count, "int64")
    for _ in range(count.bit_length()):
        middle = (low + high) // 2
        value = np.take_along_axis(ordered, np.minimum(middle, count - 1), axis=1)
        right = (middle < high) & (value <= limits)
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
    return low


def moved(average: Tensor, value: Tensor, updates: Tensor) -> Tensor:
    """Returns a bias-corrected moving average after one more value.

    The average of `n` values with weights `DECAY**0, DECAY**1, ...` from the last
    back, which add up to one: after the first value it is that value.

    Args:
        average: The average so far.
        value: The next value.
        updates: Float scalar, how many values came before.
    """
    share = (1.0 - DECAY) / (1.0 - ops.power(DECAY, updates + 1.0))
    return average + share * (value - average)
