"""Binary activations."""

import dataclasses

from keras import ops

from keras_sq.core.types import Tensor
from keras_sq.quantizers.activations.base import ActivationRule, register

CLIP = 1.0
"""Activations beyond ±CLIP get no gradient."""


@register
@dataclasses.dataclass(frozen=True)
class BinaryRule(ActivationRule):
    """Maps activations to their signs.

    Forward:  `q = +1 if x >= 0 else -1`.
    Backward: `upstream` where `|x| <= 1`, else 0 (clipped straight-through).

    Args:
        num_bits: 1.

    Example:
        >>> keras_sq.activation_rules.BinaryRule().num_bits
        1

    References:
        - [Hubara et al., 2016, section 1.3](https://arxiv.org/abs/1602.02830)
    """

    num_bits: int = 1

    def __post_init__(self) -> None:
        self.check_bits(1)

    @property
    def name(self) -> str:
        """The short name of the rule."""
        return "binary"

    def levels(self, *state: Tensor) -> Tensor:
        """Returns -1 and 1."""
        return ops.convert_to_tensor([-1.0, 1.0], "float32")

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        """Returns the sign of every activation."""
        one = ops.ones((), x.dtype)
        return ops.where(ops.isnan(x), x, ops.where(x >= 0, one, -one))

    def backward(
        self, upstream: Tensor, x: Tensor, *state: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradient of `x`."""
        return (ops.where(ops.abs(x) <= CLIP, upstream, ops.zeros_like(upstream)),)
