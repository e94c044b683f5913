"""The base class of all activation rules."""

import abc
import dataclasses
from typing import Any, NamedTuple

import keras

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor


class StateSpec(NamedTuple):
    """A variable that a layer keeps for its rule.

    Attributes:
        name: What it is called.
        start: Its first value, nested lists of floats.
        trainable: Whether the optimizer updates it.
        l2: Factor of the L2 loss on it.
    """

    name: str
    start: Any
    trainable: bool = False
    l2: float = 0.0


@dataclasses.dataclass(frozen=True)
class ActivationRule(abc.ABC):
    """Maps activations to few values, the levels.

    A rule is a value: equal to a rule with the same configuration, and never
    changed. What it learns is the state of the layer that follows it, one float32
    variable for each entry of `state_specs()`; the methods take these in order.
    All computing is in float32, whatever the dtype of the activations.
    """

    num_bits: int

    def check_bits(self, most: int) -> None:
        """Raises unless `num_bits` is an integer from 1 to `most`."""
        bits = checks.integer("num_bits", self.num_bits, 1, most)
        # Past the frozen class: NumPy's integers are no JSON.
        object.__setattr__(self, "num_bits", bits)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The short name of the rule: `"lq-2"`."""

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Returns the state that a layer keeps."""
        return ()

    @abc.abstractmethod
    def levels(self, *state: Tensor) -> Tensor:
        """Returns the levels, sorted: float32 `(2**num_bits,)`."""

    @abc.abstractmethod
    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        """Returns the level of every activation; NaN stays NaN.

        Args:
            x: Float32 tensor.
            *state: Float32 tensors, as `state_specs()` says.
        """

    @abc.abstractmethod
    def backward(
        self, upstream: Tensor, x: Tensor, *state: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradients of `x` and of the state (`None`: not trained).

        Args:
            upstream: Gradient of the loss in the levels, float32.
            x: Float32 tensor.
            *state: Float32 tensors.
        """

    def update(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns the state after a training step, or `()`: it stays.

        Args:
            x: Float32 tensor, the activations of the step.
            *state: Float32 tensors.
        """
        return ()

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Config) -> "ActivationRule":
        """Returns the rule that `get_config` described."""
        return cls(**config)


def register(cls: type[ActivationRule]) -> type[ActivationRule]:
    """Class decorator: makes the rule loadable from a `.keras` file."""
    return keras.saving.register_keras_serializable("keras_sq")(cls)  # type: ignore[no-any-return]
