"""Schedules that quantize one layer after the other.

Each layer has a turn, in which its ratio follows an ordinary schedule. `turn_order.py`
decides which layer has which turn.

Design note: **ratios by turn, not by layer.** A bound schedule knows how long each
turn lasts, and returns the ratios in the order of the turns; `visits(model)` returns
their layers. So the schedule stays a function of the step, its configuration names no
object, and one schedule serves two models.

References:
    - [Smith & Islam, 2026](https://arxiv.org/abs/2601.22660) (StoMPP)
"""

import itertools
import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Layer, Model, Tensor
from keras_sq.schedules.base import (
    BY_NAME,
    MAX_STEPS,
    UNITS,
    RatioSchedule,
    check_length,
    get,
    length_unknown,
    nearest_step,
    unit_scale,
)
from keras_sq.schedules.continuous import Continuous
from keras_sq.schedules.turn_order import check_order, layers_in_order

DEFAULT_RAMP = 0.75
"""Part of the run, as of the other schedules."""


@keras.saving.register_keras_serializable(package="keras_sq")
class Layerwise(RatioSchedule):
    """Quantizes one layer after the other, each along the same inner schedule.

    Each layer has a turn. Before it nothing of the layer is quantized; in it the ratio
    follows `inner`, as if the turn were the whole run; after it the layer stays at the
    last ratio of `inner`. A turn of `inner=cubic` ends with a step at ratio 1: its t
    goes from 0 on the first step of the turn to 1 on the last.

    | `order` | |
    |---|---|
    | `"forward"` | from the input to the output, in a topological order of the graph (branches of a residual block one after the other) |
    | `"reverse"` | from the output to the input |
    | `"global"` | all layers together: one turn for all |
    | a list of layers | in this order: names, paths, patterns or the names of what holds layers, as `overrides` of `quantize_model` takes them. What matches several stands for all of these that have no turn yet, from input to output: `["conv*", "*"]` |

    The ratio of each layer is in `keras_sq.summary`, and with
    `keras_sq.summary(model, schedule=...)` its turn too. A stage, at the begin of which
    `StochasticQuantization(clear_momentum=True)` clears the momentum, is a layer's turn
    (with stages within, one of these); the last one is the rest of the run.

    Call arguments:
        step: Non-negative Python int, or integer tensor of any shape.

    Returns:
        Float32 tensor in [0, 1] of the shape of `step` and `(turns,)`; the layers of
        the turns are `visits(model)`. For `"global"` of the shape of `step`.

    Args:
        inner: The schedule of a turn: one of `keras_sq.schedules` or a name of it, in
            fractions (of the turn). A curve without a `length` fills the turn.
        order: See the table.
        lengths: The length of each turn, in order, in `unit`: ints for `"steps"`,
            floats of sum 1 or less for `"fraction"`; one for `"global"`.
        ramp: Instead of `lengths`: how long all turns take together, in `unit`, in
            equal shares. None: three quarters of the run (`"fraction"` only). In the
            rest of the run everything is quantized.
        unit: `"steps"`, `"epochs"` or `"fraction"` (of the run).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range. When it meets a model: if the
            order names no layer, leaves one out, or the numbers of lengths and layers
            do not match.

    Example:
        >>> schedule = Layerwise("linear", lengths=[3, 3], unit="steps")
        >>> [schedule(step).numpy().tolist() for step in (0, 1, 2, 3, 4)]
        [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.5]]
    """  # noqa: E501 (a table row cannot be broken)

    def __init__(
        self,
        inner: Any = "cubic",
        order: str | Sequence[str] = "forward",
        *,
        lengths: Sequence[float] | None = None,
        ramp: float | None = None,
        unit: str = "fraction",
    ) -> None:
        self.inner = _inner(inner)
        self.order = check_order(order)
        self.unit = checks.one_of("unit", unit, UNITS)
        if lengths is not None and ramp is not None:
            raise ValueError(
                "Arguments `lengths` and `ramp` both say how long the turns are: give "
                f"one of them. Received: lengths={lengths}, ramp={ramp}"
            )
        if lengths is None and ramp is None and unit != "fraction":
            raise ValueError(
                f'Argument `ramp` or `lengths` is needed with `unit="{unit}"`; only '
                "fractions of the run have a default. Received: ramp=None"
            )
        self.ramp = None if ramp is None else check_length("ramp", ramp, unit)
        if unit == "fraction" and self.ramp is not None and self.ramp > 1:
            raise ValueError(
                "Argument `ramp` must be 1 or less, a fraction of the run. "
                f"Received: ramp={ramp}"
            )
        self.lengths = None if lengths is None else _lengths(lengths, unit)
        if self.order == "global" and self.lengths and len(self.lengths) > 1:
            raise ValueError(
                'Argument `lengths` must hold one length for `order="global"`. '
                f"Received: {len(self.lengths)} lengths"
            )
        if self.bound:
            self._turns = _turns(self.inner, self.lengths or ())

    # The layers of a model.

    def visits(self, model: Model) -> list[tuple[str, Layer]]:
        """Returns the quantized layers of a model with their paths, by turn.

        For `"global"`, where there is one turn, from input to output.

        Args:
            model: A built model with quantized layers.

        Raises:
            ValueError: If the order names no layer, or leaves one out.
        """
        return layers_in_order(model, self.order)

    def order_of(self, model: Model) -> list[str]:
        """Returns the paths of the quantized layers of a model, by turn.

        Example:
            >>> model = keras.Sequential(
            ...     [keras.Input((4,)), keras.layers.Dense(3, name="hidden"),
            ...      keras.layers.Dense(2, name="logits")])
            >>> sq_model = keras_sq.quantize_model(model, "sign")
            >>> Layerwise(order="reverse").order_of(sq_model)
            ['logits', 'hidden']
        """
        return [path for path, _ in self.visits(model)]

    def for_model(self, model: Model) -> "Layerwise":
        """Returns the schedule with a length for each turn.

        Args:
            model: A built model with quantized layers.

        Raises:
            ValueError: As from `visits`, or if the number of lengths is another than
                that of the layers.
        """
        count = 1 if self.order == "global" else len(self.visits(model))
        if self.lengths is not None:
            if len(self.lengths) != count:
                raise ValueError(
                    "Argument `lengths` of the layerwise schedule must have one length "
                    f"for each quantized layer of model '{model.name}', which are "
                    f"{count}: {checks.listed(self.order_of(model))}. "
                    f"Received: {len(self.lengths)} lengths"
                )
            return self
        ramp = DEFAULT_RAMP if self.ramp is None else self.ramp
        lengths: Sequence[float] = [ramp / count] * count
        if self.unit == "steps":
            ends = [nearest_step(i * ramp / count) for i in range(count + 1)]
            lengths = np.diff(ends).tolist()
            _warn_if_short(lengths)
        return self._replace(lengths=lengths, ramp=None)

    # The ratio.

    @property
    def bound(self) -> bool:
        """Whether the length of each turn is known in steps."""
        return self.unit == "steps" and self.lengths is not None

    @property
    def starts(self) -> tuple[int, ...]:
        """The step at which each turn begins."""
        self._require_bound()
        return tuple(turn.start for turn in self._turns)

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The step at which each turn, or each stage in it, begins; then the rest."""
        self._require_bound()
        steps = {0, int(sum(self.lengths or ()))}
        for turn in self._turns:
            if turn.length:
                steps |= {turn.start + step for step in turn.inner.stage_starts}
        return tuple(sorted(steps))

    @property
    def end_step(self) -> int:
        """The first step at which all layers have their last ratio."""
        self._require_bound()
        return max(turn.start + turn.inner.end_step for turn in self._turns)

    @property
    def final_ratio(self) -> float:
        """The ratio that the layers end with."""
        return self.inner.final_ratio

    def call(self, step: Tensor) -> Tensor:
        """Returns the ratio of each turn."""
        if self.order == "global":
            return self._turns[0].inner(step)
        starts = np.array([turn.start for turn in self._turns], "int32")
        local = ops.expand_dims(step, -1) - starts
        begun = local >= 0
        local = ops.maximum(local, 0)
        # Turns of the same length go together; equal shares have two lengths.
        alike: dict[int, list[int]] = {}
        for index, turn in enumerate(self._turns):
            alike.setdefault(turn.length, []).append(index)
        parts, where = [], []
        for members in alike.values():
            inner = self._turns[members[0]].inner
            parts.append(inner(ops.take(local, members, axis=-1)))
            where += members
        ratio = ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        if where != sorted(where):
            ratio = ops.take(ratio, np.argsort(where), axis=-1)
        return ops.where(begun, ratio, ops.zeros_like(ratio))

    def __call__(self, step: int | Tensor) -> Tensor:
        """Returns the ratio of each turn at the step."""
        # Past its end `inner` says the last ratio itself.
        return self.call(self.limited(step))

    def resolve(
        self, total_steps: int | None, steps_per_epoch: int | None
    ) -> "Layerwise":
        """Returns the turns in steps."""
        schedule = self
        if self.lengths is None:
            if self.order != "global":
                raise ValueError(
                    "A layerwise schedule must know the layers before the length of "
                    "the run: use `schedule.for_model(model).bind(...)`, as the "
                    "`StochasticQuantization` callback does."
                )
            ramp = DEFAULT_RAMP if self.ramp is None else self.ramp
            schedule = self._replace(lengths=[ramp], ramp=None)
        lengths = schedule.lengths or ()
        if self.unit == "fraction" and total_steps is None:
            raise length_unknown(self, "total_steps")
        scale, last = unit_scale(self, self.unit, total_steps, steps_per_epoch)
        # A ramp that fills the run ends with it: the last turn has the last step.
        last = last + 1 if self.unit == "fraction" else last
        ends = [math.fsum(lengths[: i + 1]) for i in range(len(lengths))]
        bounds = [0, *(min(nearest_step(end * scale), last) for end in ends)]
        steps = np.diff(bounds).tolist()
        _warn_if_short(steps)
        return schedule._replace(lengths=steps, ramp=None, unit="steps")

    def get_config(self) -> Config:
        """Returns the arguments."""
        order = self.order if isinstance(self.order, str) else list(self.order)
        return {
            "inner": keras.saving.serialize_keras_object(self.inner),
            "order": order,
            "lengths": None if self.lengths is None else list(self.lengths),
            "ramp": self.ramp,
            "unit": self.unit,
        }

    def _replace(self, **changes: Any) -> "Layerwise":
        return Layerwise(**(self.get_config() | {"inner": self.inner} | changes))

    def __repr__(self) -> str:
        arguments = self.get_config() | {"inner": self.inner}
        text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"Layerwise({text})"


class _Turn:
    """A stretch of steps, and the schedule in it, bound to its length."""

    def __init__(self, inner: RatioSchedule, start: int, length: int) -> None:
        # A turn without a step, of a run that is too short, is over at once, on the
        # last step of the one before it: there may be none after it.
        self.start = start if length else max(start - 1, 0)
        self.length = length
        self.inner = inner.bind(total_steps=max(length, 1), steps_per_epoch=None)


def _turns(inner: RatioSchedule, lengths: Sequence[float]) -> list[_Turn]:
    ends = [int(end) for end in itertools.accumulate(lengths)]
    return [
        _Turn(inner, end - int(length), int(length))
        for end, length in zip(ends, lengths, strict=True)
    ]


def _warn_if_short(steps: Sequence[float]) -> None:
    if 0 in steps:
        warnings.warn(
            "The run is too short for all turns of the layerwise schedule: "
            f"{steps.count(0)} of {len(steps)} layers get no step of their own and are "
            "quantized at once. Train longer, or give the turns more of the run "
            "(`ramp`).",
            stacklevel=4,
        )


def _inner(identifier: Any) -> RatioSchedule:
    inner = get(identifier)
    unit = getattr(inner, "unit", "fraction")
    if isinstance(inner, Layerwise) or unit != "fraction":
        raise ValueError(
            "Argument `inner` must be a schedule for all layers alike, with lengths in "
            f"fractions (of a layer's turn). Received: inner={inner!r}"
        )
    if isinstance(inner, Continuous) and inner.length is None:
        config = inner.get_config() | {"length": 1.0 - inner.begin}
        inner = Continuous(**config)
    return inner


def _lengths(lengths: Any, unit: str) -> tuple[float, ...]:
    if isinstance(lengths, str | numbers.Number) or not len(lengths):
        raise ValueError(
            "Argument `lengths` must be a list with the length of each turn. "
            f"Received: lengths={lengths!r}"
        )
    checked = tuple(
        # In steps they may be those of a run that is too short for all.
        check_length(f"lengths[{i}]", length, unit, zero=unit == "steps")
        for i, length in enumerate(lengths)
    )
    if unit == "fraction" and math.fsum(checked) > 1 + 1e-6:
        raise ValueError(
            "Argument `lengths` holds fractions of the run: their sum must be 1 or "
            f"less. Received: lengths={lengths}"
        )
    if unit == "steps":
        checks.integer("sum(lengths)", sum(checked), maximum=MAX_STEPS)
    return checked


BY_NAME["layerwise"] = Layerwise
