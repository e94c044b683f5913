"""Which step of the schedule a batch belongs to, in any kind of training.

The step is that of the optimizer that the model was compiled with: it is saved with
the model, so a resumed run continues at the right step. Not every training steps that
optimizer once a batch. A GAN has its own optimizers and leaves the compiled one (by
default an unused `rmsprop`) alone; a `train_step` that accumulates gradients by hand
steps it in every k-th batch; a custom loop may have none. This module counts the
batches that such a counter misses. Steps that loss scaling skips, which its scale
shows, are not counted.

Design note: **nothing waits for the accelerator.** Whether the counter moved is
computed inside the compiled call of the next batch, and the count is handed from one
call to the next as a tensor.

Design note: **no argument that names the optimizer.** The schedule is bound to the
number of batches in `fit`; a discriminator that steps five times a batch, or a
generator that steps every fifth, would be the wrong clock for it.
"""

import math
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model, Tensor, Variable
from keras_sq.schedules import RatioSchedule

_PROGRESS = "quantization_progress"


class Progress:
    """State of a model's training that outlives one call of `fit`.

    Attributes:
        missed: Batches that the optimizer's counter does not know of, int or tensor.
        update: What sets the masks, compiled.
        warned: Names of what was warned of already.
        trainer: The callback that trains the model now, and its parameters.
        schedule: The bound schedule of the run under way, for callbacks that record.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self.missed: Any = 0
        self.update: Any = None
        self.warned: set[str] = set()
        self.trainer: tuple[Any, Any] | None = None
        self.schedule: RatioSchedule | None = None

    def claim(self, callback: Any, params: Any, begun: bool) -> None:
        """Notes which callback trains the model.

        Args:
            callback: The callback.
            params: Its parameters: one dict for all callbacks of one `fit`.
            begun: Whether the callback has seen a batch since it was claimed last.

        Raises:
            ValueError: If another one does in the same `fit`, or this one twice.
        """
        # What an interrupted run has left here has parameters of its own.
        other, others = self.trainer or (None, None)
        if params is not None and params is others:
            if other is not callback or not begun:
                raise ValueError(
                    "Argument `callbacks` of `fit` must hold one "
                    "`StochasticQuantization`, which sets the masks of the whole "
                    "model. Received: two of them. For layers with a ratio each: "
                    "`keras_sq.schedules.Layerwise`."
                )
        self.trainer = (callback, params)

    def warn(self, name: str | None, text: str) -> None:
        """Warns, and does not again under this name until the model is compiled."""
        if name in self.warned:
            return
        if name is not None:
            self.warned.add(name)
        warnings.warn(text, UserWarning, stacklevel=3)

    def belongs_to(self, optimizer: Any) -> bool:
        """Returns whether the model is still compiled with this optimizer."""
        known = None if self._optimizer is None else self._optimizer()
        return known is optimizer


def progress_of(model: Model) -> Progress:
    """Returns the state of a model's training since it was compiled.

    Args:
        model: The model that `fit` was called on.
    """
    optimizer = getattr(model, "optimizer", None)
    progress: Progress | None = model.__dict__.get(_PROGRESS)
    if progress is None or not progress.belongs_to(optimizer):
        progress = Progress(optimizer)
        # Past Keras's tracking of attributes.
        model.__dict__[_PROGRESS] = progress
    return progress


def stepping_optimizer(model: Model) -> Any:
    """Returns the optimizer that counts a model's steps; `None` without one.

    Of one that scales the loss, the one inside: it counts the steps that were made.
    """
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def batches_per_step(model: Model) -> int:
    """Returns how many batches the optimizer takes for one step."""
    optimizer = stepping_optimizer(model)
    return int(getattr(optimizer, "gradient_accumulation_steps", None) or 1)


def batches_done(model: Model) -> int:
    """Returns how many batches a model was trained on since it was compiled."""
    optimizer = stepping_optimizer(model)
    applied = 0
    if optimizer is not None:
        applied = int(internals.read(internals.batches_applied(optimizer)))
    return applied + int(progress_of(model).missed)


class Reading(NamedTuple):
    """A look at the clock; scalar tensors.

    Attributes:
        applied: Int32, batches that the optimizer's counter knows of.
        scale: Float32, what the loss is multiplied by; 0 without loss scaling.
        missed: Int32, batches that the counter does not know of.
    """

    applied: Tensor
    scale: Tensor
    missed: Tensor


class StepCounter:
    """Counts the batches that weights were updated for, whoever updates them.

    Args:
        model: A model; its optimizer, if it has one, is built.
    """

    def __init__(self, model: Model) -> None:
        outer: Any = getattr(model, "optimizer", None)
        inner = stepping_optimizer(model)
        self._counter = None if inner is None else internals.batches_applied(inner)
        self._scale = None if outer is inner else outer.dynamic_scale
        self.batches_per_step = batches_per_step(model)
        self.variables: list[Variable] = [
            x for x in (self._counter, self._scale) if x is not None
        ]

    @property
    def scales_loss(self) -> bool:
        """Whether the optimizer skips steps whose gradients are not finite."""
        return self._scale is not None

    def applied(self) -> Tensor:
        """Returns how many batches the optimizer's counter knows of, int32."""
        if self._counter is None:
            return _int32(0)
        return ops.cast(internals.read(self._counter), "int32")

    def first(self, applied: int, missed: int) -> Reading:
        """Returns the reading that a `fit` begins with."""
        return Reading(_int32(applied), self._read_scale(), _int32(missed))

    def read(
        self, before: Reading, news: tuple[Tensor, Tensor]
    ) -> tuple[Reading, Tensor]:
        """Returns a reading, and the batches done, int32. To be traced.

        Args:
            before: The reading before.
            news: Batches trained on since then, and the batches of the run before
                the one that comes, by Keras's count; 0 if not known.
        """
        trained, position = news
        applied, scale = self.applied(), self._read_scale()
        idle = ops.maximum(trained - (applied - before.applied), 0)
        if self.scales_loss:
            asked = ops.logical_or(
                ops.not_equal(applied, before.applied),
                ops.not_equal(scale, before.scale),
            )
            idle = ops.where(asked, ops.zeros_like(idle), idle)
        missed = before.missed + idle
        by_position = ops.maximum(missed, position - applied)
        missed = ops.where(missed > 0, by_position, missed)
        return Reading(applied, scale, missed), applied + missed

    def _read_scale(self) -> Tensor:
        if self._scale is None:
            return ops.zeros((), "float32")
        return internals.read(self._scale)


class TrainingClock:
    """Says where a `fit` stands, in a way that does not stand still.

    Args:
        model: A model; its optimizer, if it has one, is built.
        steps_per_epoch: Batches of an epoch, or `None` if not known.
    """

    def __init__(self, model: Model, steps_per_epoch: int | None) -> None:
        self.counter = StepCounter(model)
        self.epoch = 0
        self.epochs_before = 0
        """Epochs by Keras's count that do not belong to this training."""
        self.batches = 0
        """Batches trained on by this `fit`."""
        self._progress = progress_of(model)
        self._steps_per_epoch = steps_per_epoch
        self._batch = self._trained = 0

    @property
    def stands_still(self) -> bool:
        """Whether this `fit` has not stepped the optimizer; waits for the last step."""
        return self._steps_made == 0 and not self.counter.scales_loss

    @property
    def skipped(self) -> int:
        """Steps of this `fit` that loss scaling skipped; waits for the last step."""
        missing = max(self.batches - self._steps_made, 0) * self.counter.scales_loss
        return missing // self.counter.batches_per_step

    @property
    def _steps_made(self) -> int:
        return int(self.counter.applied()) - self._first_applied

    def leave_out_epochs_before(self, drawn: bool) -> None:
        """Finds `epochs_before` at the begin of a `fit`; waits for the optimizer.

        A float network is trained for ten epochs, quantized, and trained from epoch
        ten (`initial_epoch`) on: the ten have nothing of the schedule.

        Args:
            drawn: Whether masks were drawn already: the training goes on.
        """
        applied, missed = int(self.counter.applied()), int(self._progress.missed)
        steps = self._steps_per_epoch
        if not steps or missed:
            return
        if applied == 0 and not drawn:
            self.epochs_before = self.epoch
        elif applied > 0 and not self.counter.scales_loss:
            # Also when this is resumed.
            self.epochs_before = max(self.epoch * steps - applied, 0) // steps

    def start(self, batch: int) -> Reading:
        """Returns the first reading of a `fit`; waits for it.

        Where the optimizer is new (the model was compiled again) or not used, the run
        stands where Keras counts it: `initial_epoch` is not 0 if it goes on.
        """
        applied, missed = int(self.counter.applied()), int(self._progress.missed)
        if applied == 0 or missed > 0:
            missed = max(missed, self._position(batch) - applied)
        self._first_applied = applied
        return self.counter.first(applied, missed)

    def begin(self, batch: int) -> None:
        """Notes that a batch, or several in one execution, begin."""
        self._batch, self._trained = batch, 0

    def end(self, batch: int) -> bool:
        """Notes that they were trained on.

        Returns:
            Whether the epoch ends with them.
        """
        # With several steps in an execution, Keras counts on beyond the last one.
        last = min(batch, (self._steps_per_epoch or batch + 1) - 1)
        self._trained = max(last - self._batch + 1, 1)
        self.batches += self._trained
        return last + 1 == self._steps_per_epoch

    def news(self, batch: int | None = None) -> tuple[Any, Any]:
        """Returns what `StepCounter.read` has to be told: two int32 scalars.

        Args:
            batch: The batch that begins; `None` when the last one has ended.
        """
        position = self._position(
            self._batch + self._trained if batch is None else batch
        )
        return np.asarray(self._trained, "int32"), np.asarray(position, "int32")

    def step(self, reading: Reading) -> int:
        """Returns the steps done by now; waits for the last one.

        Args:
            reading: The last one, of when the last batch began.
        """
        _, batches = self.counter.read(reading, self.news())
        return int(batches) // self.counter.batches_per_step

    def remember(self, reading: Reading) -> None:
        """Keeps a reading for the next `fit`."""
        self._progress.missed = reading.missed

    def epoch_of(self, step: int) -> int | None:
        """Returns the first epoch, from 0, that begins at a step or behind it."""
        if not self._steps_per_epoch:
            return None
        epochs = step * self.counter.batches_per_step / self._steps_per_epoch
        return self.epochs_before + math.ceil(epochs)

    def _position(self, batch: int) -> int:
        if not self._steps_per_epoch:
            return 0
        return (self.epoch - self.epochs_before) * self._steps_per_epoch + batch


def _int32(value: int) -> Tensor:
    return ops.convert_to_tensor(np.asarray(value, "int32"))
