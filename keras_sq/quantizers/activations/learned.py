"""Activations of a learned codebook (LQ-Nets)."""

import dataclasses
import math

from keras import ops

from keras_sq.core import backend, checks
from keras_sq.core.types import Tensor
from keras_sq.quantizers import codebook
from keras_sq.quantizers.activations.base import ActivationRule, StateSpec, register


@register
@dataclasses.dataclass(frozen=True)
class LearnedRule(ActivationRule):
    """Maps activations to `2**num_bits` levels that follow their distribution.

    The levels are all sums of a part of the basis `v`, one basis a layer: codes
    {0, 1}, so the lowest is 0 as long as `v` is not negative. If `signed`, codes are
    {-1, 1} as those of kernels, and the levels lie around 0.

    Forward:  the level nearest to `x`; halfway between two, the lower one.
    Backward: `upstream` where `x <= highest level`, else 0. Below the lowest level
    too, as in the released code: a ReLU before has no gradient there anyway. If
    `signed`, `upstream` where `lowest level <= x <= highest level`, else 0.
    Learning: once a training step, `v` moves towards the least squares basis of
    the codes of all activations of the batch; the levels of this step are still
    the former ones. A batch with a value that is not finite teaches nothing.

    Args:
        num_bits: Int from 1 to 8.
        signed: Bool: for activations of both signs (not in the paper).

    Example:
        >>> keras_sq.activation_rules.LearnedRule(2, signed=True).name
        'lq-2-signed'

    References:
        - [Zhang et al., 2018, section 3](https://arxiv.org/abs/1807.10029)
    """

    signed: bool = False

    def __post_init__(self) -> None:
        self.check_bits(8)
        checks.boolean("signed", self.signed)

    @property
    def name(self) -> str:
        """The short name of the rule."""
        return f"lq-{self.num_bits}" + ("-signed" if self.signed else "")

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Returns the basis `(num_bits,)`, and how often it was moved."""
        parts = 2 ** (self.num_bits - 1) if self.signed else (2**self.num_bits - 1) / 2
        unit = codebook.NORMAL_QUARTILE / parts
        basis = [unit * 2.0**bit for bit in range(self.num_bits)]
        return StateSpec("basis", basis), StateSpec("basis_updates", 0.0)

    def levels(self, *state: Tensor) -> Tensor:
        """Returns the levels, sorted."""
        column = ops.expand_dims(state[0], 1)
        return ops.squeeze(codebook.levels_of(column, self.signed), 1)

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        """Returns the nearest level of every activation."""
        levels = self.levels(*state)
        thresholds = codebook.thresholds_of(levels)
        if self.num_bits > codebook.MAX_UNROLLED_BITS:
            level = ops.take(levels, _ranks(x, thresholds))
        else:
            count = 2**self.num_bits
            lowest, *others = ops.unstack(levels, count)
            level = ops.broadcast_to(lowest, ops.shape(x))
            limits = ops.unstack(thresholds, count - 1)
            for limit, upper in zip(limits, others, strict=True):
                level = ops.where(x > limit, upper, level)
        return ops.where(ops.isnan(x), x, level)

    def backward(
        self, upstream: Tensor, x: Tensor, *state: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradient of `x`; the basis has none."""
        levels = self.levels(*state)
        passes = x <= levels[-1]
        if self.signed:
            passes = ops.logical_and(passes, x >= levels[0])
        return ops.where(passes, upstream, ops.zeros_like(upstream)), None, None

    def update(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns the basis after one alternation and the moving average."""
        basis, updates = state
        column = basis[:, None]
        levels = codebook.levels_of(column, self.signed)
        codes = codebook.codes_of(column, self.signed)
        thresholds = codebook.thresholds_of(levels)[:, 0]
        with backend.float64():
            numbers, sums = self._level_sums(x, thresholds)
            solved = codebook.least_squares(
                column, codes, numbers[:, None], sums[:, None]
            )
            usable = ops.isfinite(ops.sum(sums))
        after = codebook.moved(basis, solved[:, 0], updates)
        usable = ops.all(ops.isfinite(after)) & usable
        return (
            ops.where(usable, after, basis),
            updates + ops.cast(usable, updates.dtype),
        )

    def _level_sums(self, x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Returns how many activations each level has, and their sum.

        In two rounds, within each example and over the batch, so that no long
        sum runs in float32.
        """
        examples, *shape = ops.shape(x) or (1,)
        # Not -1: the batch of a replica may be empty.
        rows = ops.reshape(x, (examples, math.prod(shape)))
        if self.num_bits > codebook.MAX_UNROLLED_BITS:
            ranks = ops.reshape(_ranks(rows, thresholds), (-1,))
            values = ops.cast(ops.reshape(rows, (-1,)), "float64")
            size = 2**self.num_bits
            numbers = ops.segment_sum(ops.ones_like(values), ranks, size)
            return numbers, ops.segment_sum(values, ranks, size)

        def total(terms: Tensor) -> Tensor:
            return ops.sum(ops.cast(ops.sum(terms, axis=1), "float64"))

        zero, one = ops.zeros((), x.dtype), ops.ones((), x.dtype)
        numbers = [total(ops.ones_like(rows))]
        sums = [total(rows)]
        # Of what exceeds each threshold; between two, the difference.
        for limit in ops.unstack(thresholds, 2**self.num_bits - 1):
            above = rows > limit
            numbers.append(total(ops.where(above, one, zero)))
            sums.append(total(ops.where(above, rows, zero)))
        nothing = ops.zeros((), "float64")
        upper = ops.stack(numbers), ops.stack(sums)
        lower = ops.stack([*numbers[1:], nothing]), ops.stack([*sums[1:], nothing])
        return upper[0] - lower[0], upper[1] - lower[1]


def _ranks(x: Tensor, thresholds: Tensor) -> Tensor:
    """Returns how many thresholds each activation exceeds, by bisection."""
    ranks = ops.zeros(ops.shape(x), "int32")
    half = 2 ** (math.ceil(math.log2(int(thresholds.shape[0]) + 1)) - 1)
    while half:
        above = x > ops.take(thresholds, ranks + (half - 1))
        ranks = ranks + half * ops.cast(above, "int32")
        half //= 2
    return ranks
