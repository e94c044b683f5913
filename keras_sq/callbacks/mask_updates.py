"""What happens to a model before a batch, in one compiled call.

The clock is read, the ratio of the schedule found, the masks drawn and, where a stage
begins, the momentum cleared. When this is done, and what is checked, is in
`stochastic.py`.

Design note: **kept from one `fit` to the next.** To trace the draw of all masks takes
longer than a short `fit` does; a training of one epoch at a time would pay it in each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_sq.callbacks.training_clock import Progress, Reading, StepCounter
from keras_sq.core import backend
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Tensor, Variable
from keras_sq.layers import masks
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.schedules import Continuous, Layerwise, RatioSchedule, Stages


class State(NamedTuple):
    """What an update hands on to the next one.

    Attributes:
        clock: A reading of the clock.
        ratio: Of the batch that begins; one for each layer, or for all.
        finite: Bool `(layers,)`, whether the kernels were finite.
    """

    clock: Reading
    ratio: Tensor
    finite: Tensor


class MaskUpdate:
    """Goes on to the next batch: ratio, masks, momentum.

    Args:
        schedule: A bound schedule.
        layers: The quantized layers, in the order of the schedule's ratios.
        resample_every: Steps between two draws.
        slots: What is set to zero when a stage begins.
        counter: Counts the steps.

    Call arguments:
        new_batches: Int32, batches since the last call, of a run before too.
        clock: The reading before.
        news: As in `StepCounter.read`.
        floor: Below which the ratio does not fall, of the ratio's shape.
    """

    def __init__(
        self,
        schedule: RatioSchedule,
        layers: Sequence[StochasticallyQuantized],
        resample_every: int,
        slots: Sequence[Variable],
        counter: StepCounter,
    ) -> None:
        self._schedule = schedule
        self._layers = list(layers)
        self._settings = [layer.quantization_settings for layer in layers]
        self._resample_every = resample_every
        self._slots = list(slots)
        self._counter = counter
        variables = [*masks.variables_of(layers), *counter.variables, *slots]
        self.compiled = backend.compiled(self._update, variables)

    def __call__(self, *arguments: Any) -> State:
        """Returns the state of the batch that begins."""
        return self.compiled(*arguments)

    def kept_in(self, progress: Progress) -> "MaskUpdate":
        """Returns the same update of an earlier `fit`, traced already, or itself."""
        known = progress.update
        if not isinstance(known, MaskUpdate) or not self._is_as(known):
            progress.update = self
            return self
        return known

    def _is_as(self, other: "MaskUpdate") -> bool:
        return (
            self._resample_every == other._resample_every
            and _same(self._layers, other._layers)
            and _same(self._settings, other._settings)
            and _same(self._slots, other._slots)
            and _same_schedule(self._schedule, other._schedule)
        )

    def _update(
        self,
        new_batches: Tensor,
        clock: Reading,
        news: tuple[Tensor, Tensor],
        floor: Tensor,
    ) -> State:
        clock, batches = self._counter.read(clock, news)
        per_step = self._counter.batches_per_step
        step = batches // per_step
        # -1 before the first step.
        last = (batches - new_batches) // per_step
        ratio = ops.maximum(self._schedule(step), floor)
        # The steps in between count too, if several ran in one execution.
        due = step // self._resample_every != last // self._resample_every
        starts = ops.convert_to_tensor(list(self._schedule.stage_starts), "int32")
        begins = ops.any(ops.logical_and(starts <= step, starts > last))
        if self._slots:
            restart = ops.logical_and(begins, step > 0)
            for slot in self._slots:
                value = internals.read(slot)
                slot.assign(ops.where(restart, ops.zeros_like(value), value))
        due = ops.logical_or(due, begins)
        return State(clock, ratio, masks.update_masks(self._layers, ratio, due))


def _same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    return len(these) == len(those) and all(map(lambda a, b: a is b, these, those))


def _same_schedule(one: RatioSchedule, other: RatioSchedule) -> bool:
    """Returns whether two bound schedules surely have the same ratios."""
    inner = getattr(one, "inner", one)
    # A configuration of another class may not say everything.
    ours = type(one) in (Stages, Continuous, Layerwise)
    ours = ours and type(inner) in (Stages, Continuous)
    return one is other or (ours and one == other)
