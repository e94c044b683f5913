"""Schedules in stages: stretches of training at one ratio.

The class, and its usual stages by name.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence

import keras
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.schedules.base import (
    MAX_STEPS,
    UNITS,
    RatioSchedule,
    check_length,
    named,
    nearest_step,
    unit_scale,
    warn_if_partial,
)

SHORT_RAMP = 0.15
"""Part of the run in which `short` is below ratio 1."""


@keras.saving.register_keras_serializable(package="keras_sq")
class Stages(RatioSchedule):
    """One ratio per stage; the last stage lasts to the end of the run.

    Lengths are added up first and the sums rounded (to the nearest step, halves
    up), so the boundaries do not drift. Stages shorter than a step get one. If the
    run has fewer steps than stages, or is shorter than the lengths say, stages are
    skipped, with a warning; the last never is if the lengths are fractions.

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
            checks.fraction(f"ratios[{i}]", ratio) for i, ratio in enumerate(ratios)
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
        self.unit = checks.one_of("unit", unit, UNITS)
        self.lengths = _lengths_but_last(lengths, len(self.ratios), unit)
        self.allow_partial = bool(allow_partial)
        warn_if_partial(self.ratios[-1], self.allow_partial)

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
        scale, last = unit_scale(self, self.unit, total_steps, steps_per_epoch)
        parts = (math.fsum(self.lengths[: i + 1]) for i in range(len(self.lengths)))
        ends = [part * scale for part in parts]
        starts = [0, *(min(nearest_step(end), last) for end in ends)]
        if max(ends, default=0) < last + 1 and len(starts) <= last + 1:
            starts = _a_step_each(starts, last)
        kept = [i for i, (a, b) in enumerate(itertools.pairwise(starts)) if a < b]
        kept.append(len(starts) - 1)
        if len(kept) < len(starts):
            skipped = sorted(set(range(len(starts))) - set(kept))
            warnings.warn(
                "The run is too short for all stages of the schedule: skipping "
                f"ratio {', '.join(f'{self.ratios[i]:g}' for i in skipped)}, which "
                "would get less than one step. Train longer, or use fewer or longer "
                "stages. If `fit` is called again and again, give the callback the "
                "steps of all calls: `StochasticQuantization(total_steps=...)`.",
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


def _a_step_each(starts: list[int], last: int) -> list[int]:
    """Returns increasing starts, as close to the given ones as these allow.

    Of a short run the stages of a ramp may be less than half a step. They come all the
    same, one step each, as long as there are steps for all.

    Args:
        starts: Steps that do not decrease, `last + 1` of them at most.
        last: The last step that a stage can begin at.
    """
    for i in range(1, len(starts)):
        starts[i] = max(starts[i], starts[i - 1] + 1)
    for i in range(len(starts)):
        starts[i] = min(starts[i], last - (len(starts) - 1 - i))
    return starts


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
    listed = list(lengths)
    if len(listed) not in (count, count - 1):
        raise ValueError(
            "Argument `lengths` must have one length per ratio (the last may be left "
            f"out). Received: {len(listed)} lengths for {count} ratios"
        )
    if len(listed) == count and listed[-1] is None:
        listed.pop()
    checked = tuple(
        check_length(f"lengths[{i}]", length, unit) for i, length in enumerate(listed)
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
        checks.integer("sum(lengths)", sum(before), maximum=MAX_STEPS)
    return before


@named
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


@named
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


@named
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


@named
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


@named
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
