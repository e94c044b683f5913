"""What a network says of itself: its builder, its input, what it returns."""

import dataclasses
from collections.abc import Callable

from keras_sq.core import checks
from keras_sq.core.types import Model

LOGITS = "logits"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that can be built by name.

    Attributes:
        build: Makes it, of the shape of one example, then, if it classifies, the
            number of classes, and of `weight_decay=`.
        axes: Of one example.
        returns: `"logits"`, or, in words, what else.
        min_size: Smallest height and width (pixels).
    """

    build: Callable[..., Model]
    axes: tuple[str, ...] = ("height", "width", "channels")
    returns: str = LOGITS
    min_size: int = 1

    @property
    def classifies(self) -> bool:
        """Whether it returns logits, and is built for a number of classes."""
        return self.returns == LOGITS

    def check_input(self, name: str, input_shape: tuple[int, ...]) -> None:
        """Checks the shape of one example.

        Args:
            name: Of the network, for the error.
            input_shape: The shape.

        Raises:
            TypeError: If a size is no integer.
            ValueError: If it has other axes, or is too small.
        """
        if len(input_shape) != len(self.axes):
            comma = "," if len(self.axes) == 1 else ""
            raise ValueError(
                f"Argument `input_shape` must be ({', '.join(self.axes)}{comma}) for "
                f"the model {name!r}. Received: input_shape={input_shape}"
            )
        for side in input_shape:
            checks.integer("input_shape", side, minimum=1)
        if "height" in self.axes and min(input_shape[:2]) < self.min_size:
            raise ValueError(
                f"Argument `input_shape` must be at least {self.min_size} x "
                f"{self.min_size} pixels for the model {name!r}. "
                f"Received: input_shape={input_shape}"
            )
