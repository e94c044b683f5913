"""Activations on a uniform grid (DoReFa, PACT)."""

import dataclasses

from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Tensor
from keras_sq.quantizers.activations.base import ActivationRule, StateSpec, register

SMALLEST_CLIP = 1e-4
"""A learned clip acts as this one below it."""


@register
@dataclasses.dataclass(frozen=True)
class UniformRule(ActivationRule):
    """Maps activations to `2**num_bits` levels from 0 to `clip`, evenly spaced.

    Forward:  `q = step * round(min(max(x, 0), clip) / step)`,
    `step = clip / (2**num_bits - 1)`; halves round to even.
    Backward: `upstream` where `0 <= x < clip`, else 0. If the clip is learned, its
    gradient is the sum of `upstream` where `x >= clip` (PACT).

    Args:
        num_bits: Int from 1 to 8.
        clip: Float above 0: the top level, where it starts if learned. 1 is
            DoReFa's.
        learned: Bool: whether the clip is a weight.
        l2: Float, not negative: factor of PACT's loss `l2 * clip**2`, which keeps
            a learned clip small.

    Example:
        >>> keras_sq.activation_rules.UniformRule(4).name
        'uniform-4'

    References:
        - [Zhou et al., 2016, section 2.4](https://arxiv.org/abs/1606.06160)
        - [Choi et al., 2018, section 3](https://arxiv.org/abs/1805.06085)
    """

    clip: float = 6.0
    learned: bool = True
    l2: float = 0.0

    def __post_init__(self) -> None:
        self.check_bits(8)
        object.__setattr__(self, "clip", checks.positive("clip", self.clip))
        checks.boolean("learned", self.learned)
        if self.l2 != 0:
            object.__setattr__(self, "l2", checks.positive("l2", self.l2))
        if self.l2 and not self.learned:
            raise ValueError(
                "Argument `l2` acts on a learned clip. "
                f"Received: l2={self.l2}, learned=False"
            )

    @property
    def name(self) -> str:
        """The short name of the rule."""
        return f"uniform-{self.num_bits}"

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Returns the clip, if it is learned."""
        if not self.learned:
            return ()
        return (StateSpec("clip", self.clip, trainable=True, l2=self.l2),)

    def _clip(self, state: tuple[Tensor, ...]) -> Tensor:
        if state:
            return ops.maximum(state[0], SMALLEST_CLIP)
        return ops.convert_to_tensor(self.clip, "float32")

    def levels(self, *state: Tensor) -> Tensor:
        """Returns the multiples of the step."""
        steps = 2**self.num_bits - 1
        return ops.arange(steps + 1, dtype="float32") * (self._clip(state) / steps)

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        """Returns the nearest level of every activation."""
        clip = self._clip(state)
        step = clip / (2**self.num_bits - 1)
        inside = ops.minimum(ops.maximum(x, 0.0), clip)
        return ops.where(ops.isnan(x), x, step * ops.round(inside / step))

    def backward(
        self, upstream: Tensor, x: Tensor, *state: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradient of `x`, and of a learned clip."""
        clip = self._clip(state)
        zero = ops.zeros_like(upstream)
        inside = ops.where((x >= 0.0) & (x < clip), upstream, zero)
        if not state:
            return (inside,)
        return inside, ops.sum(ops.where(x >= clip, upstream, zero))
