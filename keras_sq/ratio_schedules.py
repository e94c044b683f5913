"""The classes of ratio schedules: what they are, and how they are bound.

`schedules.py` makes them by name; read its docstring first.

Design note: **bound schedules are schedules in steps.** `bind` returns an
ordinary schedule with `unit="steps"` instead of keeping both forms in one
object, so a schedule never changes and can be shared by two runs.

Design note: **steps in int32.** JAX has no int64 by default, and a float32 step
stops counting at 2**24. So a step is first limited to the end of the schedule,
which must lie below 2**31, and then handled as int32; the step itself may be of
any size. Subtraction comes before the conversion to float.

References:
    - [Dong et al., 2017, sections 3.3 and 4.3](https://arxiv.org/abs/1708.01001)
"""

import abc
import itertools
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

from keras_sq import _checks
from keras_sq.types import Config, Tensor

UNITS = ("steps", "epochs", "fraction")
MAX_STEPS = 2**31 - 1

_Self = TypeVar("_Self", bound="RatioSchedule")


class RatioSchedule(abc.ABC):
    """Maps a training step to the ratio of quantized filters.

    A subclass defines `call`, `end_step`, `final_ratio` and `get_config`, and
    decorates itself with `keras.saving.register_keras_serializable`; one that is
    not in steps from the start defines `bound` and `resolve` as well.

    Call arguments:
        step: Non-negative Python int, or integer tensor of any shape.

    Returns:
        Float32 tensor in [0, 1] of the shape of `step`.

    Raises:
        ValueError: If the schedule is not bound, or a Python int is negative.
        TypeError: If `step` is not an integer.
    """

    def __call__(self, step: int | Tensor) -> Tensor:
        """Returns the ratio at the step."""
        end = self.end_step
        if isinstance(step, numbers.Number):
            step = min(_checks.integer("step", step, minimum=0), end)
            step = ops.convert_to_tensor(step, dtype="int32")
        else:
            step = ops.convert_to_tensor(step)
            dtype = keras.backend.standardize_dtype(step.dtype)
            if "int" not in dtype:
                raise TypeError(
                    "Argument `step` must be an integer or an integer tensor. "
                    f"Received: a tensor of dtype {dtype}"
                )
            if dtype not in ("int64", "uint32", "uint64"):
                step = ops.cast(step, "int32")
            limit = ops.convert_to_tensor(end, dtype=step.dtype)
            step = ops.cast(ops.where(step < limit, step, limit), "int32")
        final = ops.convert_to_tensor(self.final_ratio, dtype="float32")
        return ops.where(step >= end, final, self.call(step))

    @abc.abstractmethod
    def call(self, step: Tensor) -> Tensor:
        """Returns the float32 ratio; from `end_step` on it is not looked at.

        Args:
            step: Int32 tensor, at most `end_step`.
        """

    @property
    @abc.abstractmethod
    def end_step(self) -> int:
        """The first step from which the final ratio holds."""

    @property
    @abc.abstractmethod
    def final_ratio(self) -> float:
        """The ratio that the network ends with."""

    @abc.abstractmethod
    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""

    @classmethod
    def from_config(cls: type[_Self], config: Config) -> _Self:
        """Makes the schedule that `get_config` describes."""
        return cls(**config)

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The steps at which a stage begins; `(0,)` if continuous."""
        self._require_bound()
        return (0,)

    @property
    def bound(self) -> bool:
        """Whether the schedule is in steps and may be called."""
        return True

    def bind(
        self, *, total_steps: int | None, steps_per_epoch: int | None
    ) -> "RatioSchedule":
        """Returns the schedule in steps; warns if the run is too short for it.

        Args:
            total_steps: Steps of the run, counted from step 0, or None if not
                known (a schedule in fractions needs it).
            steps_per_epoch: Steps of one epoch, or None if not known (a schedule
                in epochs needs it).

        Returns:
            A bound schedule; the schedule itself if it is bound.

        Raises:
            ValueError: If a number that the schedule needs is None.
        """
        if total_steps is not None:
            total_steps = _checks.integer("total_steps", total_steps, 1, MAX_STEPS)
        if steps_per_epoch is not None:
            steps_per_epoch = _checks.integer(
                "steps_per_epoch", steps_per_epoch, 1, MAX_STEPS
            )
        schedule = self if self.bound else self.resolve(total_steps, steps_per_epoch)
        if total_steps is not None:
            check_fits(schedule, total_steps)
        return schedule

    def resolve(
        self, total_steps: int | None, steps_per_epoch: int | None
    ) -> "RatioSchedule":
        """Returns the schedule in steps; `bind` calls it if `bound` is False."""
        raise NotImplementedError(f"{type(self).__name__} does not define `resolve`.")

    def _require_bound(self) -> None:
        if not self.bound:
            raise ValueError(
                f"{self!r} is not bound to a run yet: its steps are not known. Give "
                "it to the `StochasticQuantization` callback, which binds it when "
                "training starts, or call `schedule.bind(total_steps=..., "
                "steps_per_epoch=...)` and use what that returns."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RatioSchedule) or type(other) is not type(self):
            return NotImplemented
        return bool(self.get_config() == other.get_config())

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))

    def __repr__(self) -> str:
        arguments = (f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


@keras.saving.register_keras_serializable(package="keras_sq")
class Stages(RatioSchedule):
    """One ratio per stage; the last stage lasts to the end of the run.

    Lengths are added up first and the sums rounded (to the nearest step, halves
    up), so the boundaries do not drift. A stage that gets no step because the
    run is too short is skipped, with a warning; the last stage never is if the
    lengths are fractions.

    Args:
        ratios: The ratio of each stage, in [0, 1], not decreasing.
        lengths: The length of each stage, above 0: ints for `"steps"`, ints or
            floats for `"epochs"`, and floats of sum 1 or less for `"fraction"`.
            The last may be None or left out; it has no effect. None: all stages
            are equally long (`"fraction"` only).
        unit: `"steps"`, `"epochs"` or `"fraction"` (of the run).
        allow_partial: Whether a last ratio below 1 is meant, and not warned of.

    Raises:
        ValueError: If an argument is out of its range, ratios decrease, or the
            numbers of ratios and lengths do not match.

    Example:
        >>> schedule = Stages([0.5, 1.0], [2, None], unit="epochs")
        >>> schedule = schedule.bind(total_steps=50, steps_per_epoch=10)
        >>> schedule.stage_starts
        (0, 20)
        >>> float(schedule(19)), float(schedule(20))
        (0.5, 1.0)
    """

    def __init__(
        self,
        ratios: Sequence[float],
        lengths: Sequence[float | None] | None = None,
        unit: str = "fraction",
        *,
        allow_partial: bool = False,
    ) -> None:
        if isinstance(ratios, str) or not isinstance(ratios, Iterable):
            raise TypeError(
                "Argument `ratios` must be a list of numbers. "
                f"Received: ratios={ratios!r}"
            )
        self.ratios = tuple(
            _checks.fraction(f"ratios[{i}]", ratio) for i, ratio in enumerate(ratios)
        )
        if not self.ratios:
            raise ValueError(
                "Argument `ratios` must have at least one stage. Received: ratios=[]"
            )
        if any(b < a for a, b in itertools.pairwise(self.ratios)):
            raise ValueError(
                "Argument `ratios` must not decrease: what is quantized stays so. "
                f"Received: ratios={list(self.ratios)}"
            )
        self.unit = _checks.one_of("unit", unit, UNITS)
        self.lengths = _lengths_but_last(lengths, len(self.ratios), unit)
        self.allow_partial = bool(allow_partial)
        _warn_if_partial(self.ratios[-1], self.allow_partial)

    @property
    def bound(self) -> bool:
        """Whether the lengths are in steps, or there are none to know."""
        return self.unit == "steps" or not self.lengths

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The step at which each stage begins."""
        self._require_bound()
        return (0, *(int(step) for step in itertools.accumulate(self.lengths)))

    @property
    def end_step(self) -> int:
        """The step at which the first stage of the final ratio begins."""
        return self.stage_starts[self.ratios.index(self.ratios[-1])]

    @property
    def final_ratio(self) -> float:
        """The ratio of the last stage."""
        return self.ratios[-1]

    def call(self, step: Tensor) -> Tensor:
        """Returns the ratio of the stage that `step` lies in."""
        later = ops.convert_to_tensor(self.stage_starts[1:], dtype="int32")
        started = ops.expand_dims(step, -1) >= later
        stage = ops.sum(ops.cast(started, "int32"), axis=-1)
        return ops.take(ops.convert_to_tensor(self.ratios, dtype="float32"), stage)

    def resolve(self, total_steps: int | None, steps_per_epoch: int | None) -> "Stages":
        """Returns the stages in steps."""
        scale, last = _scale(self, self.unit, total_steps, steps_per_epoch)
        ends = (math.fsum(self.lengths[: i + 1]) for i in range(len(self.lengths)))
        starts = [0, *(min(nearest_step(end * scale), last) for end in ends)]
        kept = [i for i, (a, b) in enumerate(itertools.pairwise(starts)) if a < b]
        kept.append(len(starts) - 1)
        if len(kept) < len(starts):
            skipped = sorted(set(range(len(starts))) - set(kept))
            warnings.warn(
                "The run is too short for all stages of the schedule: skipping "
                f"ratio {', '.join(f'{self.ratios[i]:g}' for i in skipped)}, which "
                "would get less than one step. Train longer, or use fewer or longer "
                "stages.",
                stacklevel=3,
            )
        starts = [starts[i] for i in kept]
        return Stages(
            [self.ratios[i] for i in kept],
            [b - a for a, b in itertools.pairwise(starts)],
            unit="steps",
            # What there is to warn of has been.
            allow_partial=self.allow_partial or self.ratios[-1] < 1,
        )

    def get_config(self) -> Config:
        """Returns the arguments, without the length of the last stage."""
        return {
            "ratios": list(self.ratios),
            "lengths": list(self.lengths),
            "unit": self.unit,
            "allow_partial": self.allow_partial,
        }


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
        self.curve = _checks.one_of("curve", curve, _CURVES)
        self.start = _checks.fraction("start", start)
        self.end = _checks.fraction("end", end)
        if self.start > self.end:
            raise ValueError(
                "Argument `start` must not be above `end`: what is quantized stays "
                f"so. Received: start={start}, end={end}"
            )
        self.unit = _checks.one_of("unit", unit, UNITS)
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
            _checks.integer("begin + length", reach, maximum=MAX_STEPS)
        self.allow_partial = bool(allow_partial)
        _warn_if_partial(self.end, self.allow_partial)

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
            raise _unknown(self, "total_steps")
        scale, last = _scale(self, self.unit, total_steps, steps_per_epoch)
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


def check_fits(schedule: RatioSchedule, total_steps: int) -> None:
    """Warns if no step of the run has the schedule's final ratio.

    Args:
        schedule: A bound schedule.
        total_steps: Steps of the run.
    """
    if schedule.end_step < total_steps:
        return
    last = float(schedule(total_steps - 1))
    warnings.warn(
        f"The schedule reaches ratio {schedule.final_ratio:g} at step "
        f"{schedule.end_step}, but the run has only {total_steps} steps (0 to "
        f"{total_steps - 1}): the network would end at ratio {last:.4g}, never "
        "trained fully quantized. Train longer, shorten the schedule, or give its "
        'lengths as fractions of the run (unit="fraction").',
        stacklevel=3,
    )


def check_length(name: str, value: Any, unit: str, *, zero: bool = False) -> float:
    """Returns a length above 0 (or 0 if `zero`), an int if in steps."""
    if unit == "steps":
        return _checks.integer(name, value, minimum=0 if zero else 1)
    return 0.0 if zero and value == 0 else _checks.positive(name, value)


def _lengths_but_last(
    lengths: Sequence[float | None] | None, count: int, unit: str
) -> tuple[float, ...]:
    if lengths is None:
        if unit != "fraction" and count > 1:
            raise ValueError(
                f'Argument `lengths` is needed with `unit="{unit}"`; only fractions '
                "of the run have a default (equally long stages). Received: "
                "lengths=None"
            )
        return (1.0 / count,) * (count - 1)
    given = list(lengths)
    if len(given) not in (count, count - 1):
        raise ValueError(
            "Argument `lengths` must have one length per ratio (the last may be left "
            f"out). Received: {len(given)} lengths for {count} ratios"
        )
    if len(given) == count and given[-1] is None:
        given.pop()
    checked = tuple(
        check_length(f"lengths[{i}]", length, unit) for i, length in enumerate(given)
    )
    before = checked[: count - 1]
    if unit == "fraction" and (
        math.fsum(checked) > 1 + 1e-6 or math.fsum(before) > 1 - 1e-9
    ):
        raise ValueError(
            "Argument `lengths` holds fractions of the run: their sum must be 1 or "
            "less, and something must be left for the last stage. Received: "
            f"lengths={lengths}"
        )
    if unit == "steps":
        _checks.integer("sum(lengths)", sum(before), maximum=MAX_STEPS)
    return before


def _scale(
    schedule: RatioSchedule,
    unit: str,
    total_steps: int | None,
    steps_per_epoch: int | None,
) -> tuple[int, int]:
    """Returns the steps of one unit, and the last step a stage may begin at."""
    if unit == "fraction":
        if total_steps is None:
            raise _unknown(schedule, "total_steps")
        return total_steps, total_steps - 1
    if unit == "epochs":
        if steps_per_epoch is None:
            raise _unknown(schedule, "steps_per_epoch")
        return steps_per_epoch, MAX_STEPS
    return 1, MAX_STEPS


def _unknown(schedule: RatioSchedule, name: str) -> ValueError:
    return ValueError(
        f"{schedule!r} needs `{name}`, which is not known (a data set of unknown "
        "length?). Give `steps_per_epoch` to `fit`, `total_steps` to the "
        '`StochasticQuantization` callback, or use a schedule with unit="steps". '
        f"Received: {name}=None"
    )


def nearest_step(value: float) -> int:
    """Rounds to the nearest integer, halves up, whatever float noise says."""
    return math.floor(value + 0.5 + 1e-6)


def _warn_if_partial(final_ratio: float, allow_partial: bool) -> None:
    if final_ratio < 1.0 and not allow_partial:
        warnings.warn(
            f"The schedule ends at ratio {final_ratio:g}, not 1: the network would end "
            "partly quantized. Add a last stage of ratio 1, or give "
            "`allow_partial=True` if this is meant.",
            stacklevel=3,
        )
