"""Schedules along a curve: the ratio grows at every step."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.schedules.base import (
    MAX_STEPS,
    UNITS,
    RatioSchedule,
    check_length,
    length_unknown,
    named,
    nearest_step,
    unit_scale,
    warn_if_partial,
)

_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 * (1.0 - ops.cos(math.pi * t)),
    "cubic": lambda t: t * t * t,
}


@keras.saving.register_keras_serializable(package="keras_sq")
class Continuous(RatioSchedule):
    """Goes from one ratio to another along a curve.

    With `t` going from 0 at `begin` to 1 at `begin + length`:

        ratio = start + (end - start) * curve(t)

        curve(t) = t (linear), (1 - cos(pi t)) / 2 (cosine), t^3 (cubic)

    Before `begin` the ratio is `start`; from `begin + length` on it is `end`,
    exactly. A ramp in fractions that fills the run ends on the run's last step,
    so that the run does end at `end`.

    Args:
        curve: `"linear"`, `"cosine"` or `"cubic"`.
        start: Ratio in [0, 1] at the beginning.
        end: Ratio in [0, 1], not below `start`, at the end.
        begin: When the ramp begins, 0 or more; an int for `"steps"`.
        length: How long it lasts, 0 (a jump) or more; an int for `"steps"`.
            None: three quarters of the run after `begin`, which leaves the fully
            quantized network the last quarter, as the paper's four stages do.
        unit: `"steps"`, `"epochs"` or `"fraction"` (of the run).
        allow_partial: Whether an `end` below 1 is meant, and not warned of.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> schedule = Continuous("linear", length=4, unit="steps")
        >>> [float(schedule(step)) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self,
        curve: str,
        *,
        start: float = 0.0,
        end: float = 1.0,
        begin: float = 0,
        length: float | None = None,
        unit: str = "fraction",
        allow_partial: bool = False,
    ) -> None:
        self.curve = checks.one_of("curve", curve, _CURVES)
        self.start = checks.fraction("start", start)
        self.end = checks.fraction("end", end)
        if self.start > self.end:
            raise ValueError(
                "Argument `start` must not be above `end`: what is quantized stays "
                f"so. Received: start={start}, end={end}"
            )
        self.unit = checks.one_of("unit", unit, UNITS)
        self.begin = check_length("begin", begin, unit, zero=True)
        if length is not None:
            length = check_length("length", length, unit, zero=True)
        self.length = length
        reach = self.begin + (self.length or 0)
        if unit == "fraction" and (self.begin >= 1 or reach > 1 + 1e-6):
            raise ValueError(
                "Arguments `begin` (below 1) and `length` are fractions of the run and "
                f"must have a sum of 1 or less. Received: begin={begin}, "
                f"length={length}"
            )
        if unit == "steps":
            checks.integer("begin + length", reach, maximum=MAX_STEPS)
        self.allow_partial = bool(allow_partial)
        warn_if_partial(self.end, self.allow_partial)

    @property
    def bound(self) -> bool:
        """Whether the ramp is in steps and its length known."""
        return self.unit == "steps" and self.length is not None

    @property
    def end_step(self) -> int:
        """The step at which the ramp has reached its end."""
        self._require_bound()
        return int(self.begin + (self.length or 0))

    @property
    def final_ratio(self) -> float:
        """The ratio at the end of the ramp."""
        return self.end

    def call(self, step: Tensor) -> Tensor:
        """Returns the ratio on the curve."""
        begin = int(self.begin)
        done = ops.cast(ops.maximum(step - begin, 0), "float32")
        # Graphs turn a division by a constant into this multiplication; done here,
        # the ratio does not depend on whether the step is compiled.
        t = done * (1.0 / max(self.end_step - begin, 1))
        ratio = self.start + (self.end - self.start) * _CURVES[self.curve](t)
        return ops.minimum(ratio, self.end)

    def resolve(
        self, total_steps: int | None, steps_per_epoch: int | None
    ) -> "Continuous":
        """Returns the ramp in steps."""
        if self.length is None and total_steps is None:
            raise length_unknown(self, "total_steps")
        scale, last = unit_scale(self, self.unit, total_steps, steps_per_epoch)
        begin = nearest_step(self.begin * scale)
        if self.length is not None:
            end = nearest_step((self.begin + self.length) * scale)
        else:
            end = begin + nearest_step(0.75 * max((total_steps or 0) - begin, 0))
        begin, end = min(begin, last), min(end, last)
        config = {"begin": begin, "length": end - begin, "unit": "steps"}
        config["allow_partial"] = self.allow_partial or self.end < 1
        return Continuous(**(self.get_config() | config))

    def get_config(self) -> Config:
        """Returns the arguments."""
        return {
            "curve": self.curve,
            "start": self.start,
            "end": self.end,
            "begin": self.begin,
            "length": self.length,
            "unit": self.unit,
            "allow_partial": self.allow_partial,
        }


@named
def linear(**arguments: Any) -> Continuous:
    """Returns `Continuous("linear", ...)`.

    Example:
        >>> schedule = linear().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("linear", **arguments)


@named
def cosine(**arguments: Any) -> Continuous:
    """Returns `Continuous("cosine", ...)`: slow at both ends.

    Example:
        >>> schedule = cosine().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("cosine", **arguments)


@named
def cubic(**arguments: Any) -> Continuous:
    """Returns `Continuous("cubic", ...)`: slow first, StoMPP's `(t/T)^3`.

    Example:
        >>> schedule = cubic().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("cubic", **arguments)
