"""What a ratio schedule is, how it is bound to a run, and `get` by name.

Read the docstring of `schedules/__init__.py` first. The schedules themselves are in
`stages.py`, `continuous.py` and `layerwise.py`.

Design note: **bound schedules are schedules in steps.** `bind` returns an
ordinary schedule with `unit="steps"` instead of keeping both forms in one
object, so a schedule never changes, and two runs can share it.

Design note: **steps in int32.** JAX has no int64 by default, and a float32 step
stops counting at 2**24. So a step is first limited to the end of the schedule,
which must lie below 2**31, and then handled as int32; the step itself may be of
any size. Subtraction comes before the conversion to float.

References:
    - [Dong et al., 2017, sections 3.3 and 4.3](https://arxiv.org/abs/1708.01001)
"""

import abc
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

from keras_sq.core import checks, named_objects
from keras_sq.core.types import Config, Model, Tensor

UNITS = ("steps", "epochs", "fraction")
MAX_STEPS = 2**31 - 1

BY_NAME: dict[str, "Callable[[], RatioSchedule]"] = {}
"""Name -> what makes the schedule with its defaults; each module enters its own."""

_Self = TypeVar("_Self", bound="RatioSchedule")
_Make = TypeVar("_Make", bound="Callable[..., RatioSchedule]")


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
        step = self.limited(step)
        final = ops.convert_to_tensor(self.final_ratio, dtype="float32")
        return ops.where(step >= self.end_step, final, self.call(step))

    def limited(self, step: int | Tensor) -> Tensor:
        """Returns a step as an int32 tensor, at most `end_step`.

        Raises:
            ValueError: If the schedule is not bound, or a Python int is negative.
            TypeError: If `step` is not an integer.
        """
        end = self.end_step
        if isinstance(step, numbers.Number):
            step = min(checks.integer("step", step, minimum=0), end)
            return ops.convert_to_tensor(step, dtype="int32")
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
        return ops.cast(ops.where(step < limit, step, limit), "int32")

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

    def for_model(self, model: Model) -> "RatioSchedule":
        """Returns the schedule for a model: itself, unless it looks at the layers.

        Args:
            model: A built model with quantized layers.
        """
        return self

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
            total_steps = checks.integer("total_steps", total_steps, 1, MAX_STEPS)
        if steps_per_epoch is not None:
            steps_per_epoch = checks.integer(
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


def named(make: _Make) -> _Make:
    """Decorator: lets `get` find a schedule by the name of the function."""
    BY_NAME[make.__name__] = make
    return make


def check_fits(schedule: RatioSchedule, total_steps: int) -> None:
    """Warns if no step of the run has the schedule's final ratio.

    Args:
        schedule: A bound schedule.
        total_steps: Steps of the run.
    """
    if schedule.end_step < total_steps:
        return
    last = float(ops.min(schedule(total_steps - 1)))
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
        return checks.integer(name, value, minimum=0 if zero else 1)
    return 0.0 if zero and value == 0 else checks.positive(name, value)


def unit_scale(
    schedule: RatioSchedule,
    unit: str,
    total_steps: int | None,
    steps_per_epoch: int | None,
) -> tuple[int, int]:
    """Returns the steps of one unit, and the last step a stage may begin at."""
    if unit == "fraction":
        if total_steps is None:
            raise length_unknown(schedule, "total_steps")
        return total_steps, total_steps - 1
    if unit == "epochs":
        if steps_per_epoch is None:
            raise length_unknown(schedule, "steps_per_epoch")
        return steps_per_epoch, MAX_STEPS
    return 1, MAX_STEPS


def length_unknown(schedule: RatioSchedule, name: str) -> ValueError:
    """Returns the error for a run whose length is needed and not known."""
    # Of an epoch's length the whole run's says nothing.
    also = "`total_steps` to the `StochasticQuantization` callback, "
    return ValueError(
        f"{schedule!r} needs `{name}`, which is not known (a data set of unknown "
        "length?). Give `steps_per_epoch` to `fit`, "
        f"{also if name == 'total_steps' else ''}or use a schedule with "
        f'unit="steps". Received: {name}=None'
    )


def nearest_step(value: float) -> int:
    """Rounds to the nearest integer, halves up, whatever float noise says."""
    return math.floor(value + 0.5 + 1e-6)


def warn_if_partial(final_ratio: float, allow_partial: bool) -> None:
    """Warns of a last ratio below 1, unless this is meant."""
    if final_ratio < 1.0 and not allow_partial:
        warnings.warn(
            f"The schedule ends at ratio {final_ratio:g}, not 1: the network would end "
            "partly quantized. Add a last stage of ratio 1, or give "
            "`allow_partial=True` if this is meant.",
            stacklevel=3,
        )


def get(identifier: Any) -> RatioSchedule:
    """Returns the schedule that the identifier means.

    Args:
        identifier: A `RatioSchedule`, the name of a function of
            `keras_sq.schedules`, `"layerwise"`, a list of ratios (equally long
            stages), or what `serialize` returned.

    Raises:
        ValueError: If the name is not known.
        TypeError: If it is something else.

    Example:
        >>> get("exponential") == get([0.5, 0.75, 0.875, 1.0])
        True
    """
    if isinstance(identifier, Sequence) and not isinstance(identifier, str):
        stages = keras.saving.get_registered_object("keras_sq>Stages")
        identifier = stages(identifier)
    expected = (
        "Argument `schedule` must be a `RatioSchedule`, one of the names {names}, a "
        "list of ratios or a serialized schedule."
    )
    by_name = dict(sorted(BY_NAME.items()))
    return named_objects.lookup(
        identifier, RatioSchedule, by_name, deserialize, "schedule", expected
    )


def serialize(schedule: RatioSchedule) -> Config:
    """Returns a JSON-serializable description of the schedule.

    Example:
        >>> deserialize(serialize(get("cubic"))) == get("cubic")
        True
    """
    config: Config = keras.saving.serialize_keras_object(schedule)
    return config


def deserialize(
    config: Config, custom_objects: dict[str, Any] | None = None
) -> RatioSchedule:
    """Returns the schedule that `serialize` described.

    Args:
        config: What `serialize` returned.
        custom_objects: Class name -> class, for classes that are not registered.

    Raises:
        ValueError: If `config` describes no schedule.

    Example:
        >>> deserialize(serialize(get([0.5, 1.0]))).ratios
        (0.5, 1.0)
    """
    schedule = None
    if isinstance(config, dict) and "class_name" in config:
        schedule = keras.saving.deserialize_keras_object(config, custom_objects)
    if not isinstance(schedule, RatioSchedule):
        raise ValueError(
            "Argument `config` must be what `keras_sq.schedules.serialize` returned. "
            f"Received: config={config!r}"
        )
    return schedule
