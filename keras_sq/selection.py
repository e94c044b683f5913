"""Selection: which filters (or weights) are quantized now.

Quantization error → probability → mask. Everything here is a pure function
of tensors and a seed, so that one compiled call draws the masks of all
layers.

**Drawing without replacement.** The papers spin a roulette wheel once per
filter and take the filter that came up off the wheel. Adding Gumbel noise to
`log p` and keeping the k largest has exactly that distribution (Efraimidis &
Spirakis, 2006; Kool et al., 2019), in one sort instead of k dependent draws.

**Which draw.** `draw="paper"` draws the filters *to quantize*, with the
probability function applied to `f = 1 / (e + ε)`. `draw="released"` is what
the authors' code does: it draws the filters *to keep* at full precision, with
`p ∝ e`. The two distributions differ. The paper's is the default because it
is the published method and the one the four probability functions belong to.

| `probability` | p of a filter with `f = 1/(e + ε)` |
|---|---|
| `"constant"` | `1/m` |
| `"linear"` | `f / Σf` (the paper's choice) |
| `"softmax"` | `exp(f) / Σ exp(f)` |
| `"sigmoid"` | `1/(1 + exp(-f))`, normalized |

| `selection` | |
|---|---|
| `"roulette"` | drawn anew each time (the paper's "stochastic") |
| `"deterministic"` | the filters of least error |
| `"fixed"` | drawn once; what is quantized stays so, and a growing ratio adds newly drawn filters |

Design note: **log-probabilities, never probabilities.** With e = 0, f is 1e7
and `exp(f)` overflows; the log-probability of the softmax is f itself (less a
constant that no ranking sees), so nothing is ever exponentiated.

References:
    - [Dong et al., 2017, sections 3.1 and 3.2](https://arxiv.org/abs/1708.01001)
    - [Kool et al., 2019](https://arxiv.org/abs/1903.06059) (Gumbel top-k)
"""  # noqa: E501 (a table row cannot be broken)

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_sq import _checks
from keras_sq.types import Config, Tensor

GRANULARITIES = ("filter", "element")
PROBABILITIES = ("constant", "linear", "softmax", "sigmoid")
SELECTIONS = ("roulette", "deterministic", "fixed")
DRAWS = ("paper", "released")

EPSILON = 1e-7
"""ε of `f = 1/(e + ε)`."""

_SORT_MAX_SIZE = 2**17
"""Up to this many entries are ranked by sorting, more by bisection."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the quantized part of a kernel is chosen.

    Args:
        granularity: `"filter"`, or `"element"` for single weights.
        probability: See the table in this module's docstring.
        selection: See the table in this module's docstring.
        draw: `"paper"` or `"released"`.

    Raises:
        ValueError: If a name is unknown, or `probability` is given together
            with `draw="released"`, which has its own.
    """

    granularity: str = "filter"
    probability: str = "linear"
    selection: str = "roulette"
    draw: str = "paper"

    def __post_init__(self) -> None:
        _checks.one_of("granularity", self.granularity, GRANULARITIES)
        _checks.one_of("probability", self.probability, PROBABILITIES)
        _checks.one_of("selection", self.selection, SELECTIONS)
        _checks.one_of("draw", self.draw, DRAWS)
        if self.draw == "released" and self.probability != "linear":
            raise ValueError(
                'Argument `draw="released"` draws with p proportional to the error '
                "and takes no other probability function; leave `probability` out "
                f'or use `draw="paper"`. Received: probability={self.probability!r}'
            )

    def get_config(self) -> Config:
        """Returns the four names."""
        return dataclasses.asdict(self)

    @property
    def needs_errors(self) -> bool:
        """Whether the selection looks at the quantization errors at all."""
        constant = self.probability == "constant" and self.draw == "paper"
        return self.selection == "deterministic" or not constant

    def masks(
        self,
        errors: Sequence[Tensor],
        ratio: Tensor,
        uniform: Sequence[Tensor],
        previous: Sequence[Tensor],
    ) -> list[Tensor]:
        """Returns the masks of several kernels for a ratio: True = quantized.

        Exactly `number_quantized(ratio, m)` entries of each are True. All
        kernels are ranked together, as rows of one matrix: a model of 50
        layers costs a few operations, not a few for each layer.

        Args:
            errors: For each kernel float32 `(m,)`, the quantization error of
                each filter (or weight).
            ratio: Scalar in [0, 1], or one for each kernel.
            uniform: For each kernel float32 `(m,)`, random numbers in [0, 1).
            previous: For each kernel bool `(m,)`, the mask until now (used by
                `"fixed"`).

        Returns:
            For each kernel bool `(m,)`.
        """
        sizes = [int(error.shape[0]) for error in errors]
        rows = _Rows(sizes)
        number = number_quantized(ratio, np.asarray(sizes, "int32"))
        matrix = rows.join(errors)
        if self.selection == "deterministic":
            return rows.split(rows.largest(-matrix, number))
        noise = gumbel(rows.join(uniform))
        if self.draw == "released":
            scores = ops.log(ops.maximum(matrix, 1e-30))
        else:
            scores = log_probability(matrix, self.probability)
        tie_break = noise if self.probability == "softmax" else None
        scores = scores + noise
        if self.selection == "fixed":
            held = rows.join([ops.cast(mask, "float32") for mask in previous])
            # As long as the ratio has room for all that is quantized, that
            # stays: first among those to quantize, last among those to keep.
            # No score reaches 1e9, and the order among the held is no matter.
            held = ops.cast(held, "int32")  # Float32 counts to 2**24 only.
            fits = ops.sum(held, axis=-1) <= number
            stays = ops.logical_and(held > 0, ops.expand_dims(fits, -1))
            first = -1e9 if self.draw == "released" else 1e9
            scores = ops.where(stays, first, scores)
        if self.draw == "released":
            # The entries drawn are the ones to keep: quantize the others.
            kept = np.asarray(sizes, "int32") - number
            return rows.split(ops.logical_not(rows.largest(scores, kept)))
        return rows.split(rows.largest(scores, number, tie_break))


class _Rows:
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
        # Where each matrix entry comes from, `total` being a padding entry,
        # and where each vector entry has gone.
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


def number_quantized(ratio: Tensor, size: Any) -> Tensor:
    """Returns how many of `size` filters are quantized: `m - int((1 - r) m)`.

    The rounding favours quantizing, and ratio 1 quantizes all, always.
    A product that float32 cannot tell from the integer above it counts as that
    integer, so that ratio 0.9 of 10 filters keeps one although `1 - 0.9` is not
    0.1. For element-wise masks of many thousand weights this can be one less
    to quantize than in exact arithmetic.

    Args:
        ratio: Float in [0, 1], or a tensor of them.
        size: Number of filters, or an array of them.

    Returns:
        Int32 tensor.
    """
    wide = ops.cast(size, "float32")
    kept = (1.0 - ops.cast(ratio, "float32")) * wide
    # The rounding of ratio, difference and product adds up to less than this;
    # below 1, so that nothing is kept at ratio 1.
    slack = ops.minimum(wide * 2.0**-23, 0.5)
    kept = ops.cast(ops.floor(kept + slack), "int32")
    return size - ops.clip(kept, 0, size)


def log_probability(errors: Tensor, probability: str) -> Tensor:
    """Returns `log p` of every filter, up to a constant.

    Args:
        errors: Float32 `(m,)`, not negative.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`.

    Returns:
        Float32 `(m,)`, finite.
    """
    if probability == "constant":
        return ops.zeros_like(errors)
    inverse = 1.0 / (errors + EPSILON)
    if probability == "linear":
        return ops.log(inverse)
    if probability == "softmax":
        return inverse
    return ops.log_sigmoid(inverse)


def gumbel(uniform: Tensor) -> Tensor:
    """Returns standard Gumbel noise from uniform random numbers.

    `-log(Exponential)` with the exponential from `log1p` keeps float32's full
    resolution where it decides the ranking, at the large values; `-log(-log
    (u))` has a granularity of 6e-8 in `1 - u` there.

    Args:
        uniform: Float32 tensor, in [0, 1).

    Returns:
        Float32 tensor of the same shape, finite.
    """
    # The middle of the step of 2**-23 in which the generator's numbers come:
    # 0 is among them, and would win over any score.
    middle = ops.minimum(uniform + 2.0**-24, 1.0 - 2.0**-24)
    return -ops.log(-ops.log1p(-middle))


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
    # The first `number` of the order are chosen; put that where they stand.
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
