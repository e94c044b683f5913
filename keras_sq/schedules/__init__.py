"""Ratio schedules: how much of the network is quantized at a step.

A schedule is a pure function from the optimizer's step (from 0) to the ratio,
the fraction of the filters that is quantized, or one for each layer. It knows
nothing of masks or the optimizer; the learning-rate companions live in
`learning_rates.py`, the classes are described in `base.py`.

| made by | ratio |
|---|---|
| `short` | stages 0.5, 0.75, 0.875 in the first 15 % of the run, then 1 (the default) |
| `exponential` | stages 0.5, 0.75, 0.875, 1 (the paper's choice) |
| `average` | stages 0.2, 0.4, 0.6, 0.8, 1 |
| `finetune` | as `exponential`, for a start from a trained float network |
| `constant` | one ratio for all of the run |
| `Stages` | your own stages |
| `linear`, `cosine`, `cubic` | continuous, by the curve of that name |
| `Layerwise` | one layer after the other, each along one of the above |

Lengths are in steps, epochs or fractions of the run. `bind` turns the last two
into steps; the callback calls it when training starts.

References:
    - [Dong et al., 2017, sections 3.3 and 4.3](https://arxiv.org/abs/1708.01001)
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_sq.core import checks
from keras_sq.core.types import Config
from keras_sq.schedules.base import MAX_STEPS, UNITS, check_length, nearest_step
from keras_sq.schedules.base import RatioSchedule as RatioSchedule
from keras_sq.schedules.base import check_fits as check_fits
from keras_sq.schedules.continuous import Continuous as Continuous
from keras_sq.schedules.layerwise import Layerwise as Layerwise
from keras_sq.schedules.stages import Stages as Stages

SHORT_RAMP = 0.15
"""Part of the run in which `short` is below ratio 1."""


def exponential(
    stages: int = 4,
    first: float = 0.5,
    *,
    ramp: float | None = None,
    lengths: Sequence[float | None] | None = None,
    unit: str = "fraction",
) -> Stages:
    """Returns stages that each halve the part not quantized (paper, sec. 3.3).

    Stage i has ratio `1 - (1 - first) * 2^-i`, and the last has 1. With the
    defaults of the paper the stages are equally long. There each had the length
    of a whole training, four times what the baselines had, with a learning rate
    that begins again; at an equal number of epochs those restarts cost 1.3 points
    (ResNet-8 on CIFAR-10), and one learning rate that falls once does not.

    Args:
        stages: Number of stages, 1 or more.
        first: Ratio of the first stage, in [0, 1].
        ramp: Length, in `unit`, that all stages but the last share equally.
        lengths: As in `Stages`, instead of `ramp`.
        unit: As in `Stages`.

    Example:
        >>> exponential().ratios
        (0.5, 0.75, 0.875, 1.0)
        >>> schedule = exponential(ramp=0.3)
        >>> schedule.bind(total_steps=100, steps_per_epoch=None).stage_starts
        (0, 10, 20, 30)
    """
    count = checks.integer("stages", stages, minimum=1)
    float_part = 1.0 - checks.fraction("first", first)
    ratios = [1.0 - float_part * 0.5**i for i in range(count - 1)]
    return _staged([*ratios, 1.0], ramp, lengths, unit)


def average(
    stages: int = 5,
    *,
    ramp: float | None = None,
    lengths: Sequence[float | None] | None = None,
    unit: str = "fraction",
) -> Stages:
    """Returns stages that each quantize the same further part (paper, sec. 4.3).

    Args:
        stages: Number of stages, 1 or more; stage i has ratio `(i + 1) / stages`.
        ramp: Length, in `unit`, that all stages but the last share equally.
        lengths: As in `Stages`, instead of `ramp`.
        unit: As in `Stages`.

    Example:
        >>> average().ratios
        (0.2, 0.4, 0.6, 0.8, 1.0)
    """
    count = checks.integer("stages", stages, minimum=1)
    ratios = [(i + 1) / count for i in range(count)]
    return _staged(ratios, ramp, lengths, unit)


def short() -> Stages:
    """Returns `exponential(ramp=SHORT_RAMP)`: a ramp that leaves most of the run.

    Where all methods are trained equally long and the learning rate falls once, it
    is as good as equally long stages (three seeds, ResNet-8 on CIFAR-10), and a step
    is cheaper once all of the network is quantized.

    Example:
        >>> schedule = short().bind(total_steps=1000, steps_per_epoch=None)
        >>> [float(schedule(step)) for step in (0, 50, 100, 150)]
        [0.5, 0.75, 0.875, 1.0]
    """
    return exponential(ramp=SHORT_RAMP)


def finetune(
    stages: int = 4,
    first: float = 0.5,
    *,
    ramp: float | None = None,
    lengths: Sequence[float | None] | None = None,
    unit: str = "fraction",
) -> Stages:
    """Returns the stages of `exponential`, for a trained float network.

    The paper compares a third, "fine-tune" scheme. Its exact rule was not found:
    neither the released code nor the sources at hand have it. Chosen here: the
    ratios of `exponential`, so that the comparison changes one thing, the start,
    which is a trained float network (what `quantize_model` of a trained model
    gives) instead of random weights. A lower learning rate than the float
    network's belongs to it and is yours to set. One stage at ratio 1 was the
    alternative; that is `constant()`.

    Args:
        stages: As in `exponential`.
        first: As in `exponential`.
        ramp: As in `exponential`.
        lengths: As in `Stages`.
        unit: As in `Stages`.

    Example:
        >>> finetune(stages=3).ratios
        (0.5, 0.75, 1.0)
    """
    return exponential(stages, first, ramp=ramp, lengths=lengths, unit=unit)


def constant(ratio: float = 1.0, *, allow_partial: bool = False) -> Stages:
    """Returns a schedule of one ratio; 1 is direct quantization.

    Args:
        ratio: In [0, 1].
        allow_partial: Whether a ratio below 1 is meant (an ablation), and not
            warned of.

    Example:
        >>> constant().ratios
        (1.0,)
    """
    return Stages([checks.fraction("ratio", ratio)], allow_partial=allow_partial)


def linear(**arguments: Any) -> Continuous:
    """Returns `Continuous("linear", ...)`.

    Example:
        >>> schedule = linear().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("linear", **arguments)


def cosine(**arguments: Any) -> Continuous:
    """Returns `Continuous("cosine", ...)`: slow at both ends.

    Example:
        >>> schedule = cosine().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("cosine", **arguments)


def cubic(**arguments: Any) -> Continuous:
    """Returns `Continuous("cubic", ...)`: slow first, StoMPP's `(t/T)^3`.

    Example:
        >>> schedule = cubic().bind(total_steps=100, steps_per_epoch=None)
        >>> float(schedule(0)), float(schedule(100))
        (0.0, 1.0)
    """
    return Continuous("cubic", **arguments)


_FACTORIES: dict[str, Callable[..., RatioSchedule]] = {
    "average": average,
    "constant": constant,
    "cosine": cosine,
    "cubic": cubic,
    "exponential": exponential,
    "finetune": finetune,
    "layerwise": Layerwise,
    "linear": linear,
    "short": short,
}


def get(identifier: Any) -> RatioSchedule:
    """Returns the schedule that the identifier means.

    Args:
        identifier: A `RatioSchedule`, the name of a function of this module,
            `"layerwise"`, a list of ratios (equally long stages), or what
            `serialize` returned.

    Raises:
        ValueError: If the name is not known.
        TypeError: If it is something else.

    Example:
        >>> get("exponential") == get([0.5, 0.75, 0.875, 1.0])
        True
    """
    if isinstance(identifier, RatioSchedule):
        return identifier
    if isinstance(identifier, str):
        return _FACTORIES[checks.one_of("schedule", identifier, _FACTORIES)]()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, Sequence):
        return Stages(identifier)
    raise TypeError(
        "Argument `schedule` must be a `RatioSchedule`, one of the names "
        f"{', '.join(map(repr, _FACTORIES))}, a list of ratios or a serialized "
        f"schedule. Received: schedule={identifier!r}"
    )


def serialize(schedule: RatioSchedule) -> Config:
    """Returns a JSON-serializable description of the schedule.

    Example:
        >>> deserialize(serialize(exponential())) == exponential()
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
        >>> deserialize(serialize(average(stages=2))).ratios
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


def _staged(
    ratios: list[float],
    ramp: float | None,
    lengths: Sequence[float | None] | None,
    unit: str,
) -> Stages:
    if ramp is None:
        return Stages(ratios, lengths, unit)
    before = len(ratios) - 1
    if lengths is not None or not before:
        raise ValueError(
            "Argument `ramp` takes two or more stages and no `lengths`. "
            f"Received: stages={len(ratios)}, lengths={lengths}, ramp={ramp}"
        )
    checks.one_of("unit", unit, UNITS)
    if unit == "steps":
        checks.integer("ramp", ramp, before, MAX_STEPS)
    ramp = check_length("ramp", ramp, unit)
    if unit == "fraction" and ramp >= 1:
        raise ValueError(
            "Argument `ramp` must be below 1, a fraction of the run, or nothing is "
            f"left for the last stage. Received: ramp={ramp}"
        )
    if unit == "steps":
        ends = [nearest_step(i * ramp / before) for i in range(before + 1)]
        return Stages(ratios, [b - a for a, b in itertools.pairwise(ends)], unit)
    return Stages(ratios, [ramp / before] * before, unit)
