"""The callback of stochastic quantization.

Before each batch it computes the ratio of the schedule at the optimizer's
step and redraws the masks, for all layers in one compiled call. The step is
`optimizer.iterations` and the random state is part of the layers, so that a
run restored by `keras.callbacks.BackupAndRestore` goes on as if it had never
stopped, bit for bit.

Nothing of this waits for the accelerator: the step is read, the schedule
computed and the masks drawn inside the compiled call. Whether the kernels
were finite is looked at one batch later, when the answer is there already.

Design note: **JAX.** There the trainer holds the variables' values between two
batches. Each look at `self.model` makes Keras bring them back, and the trainer
fetches them again: about a millisecond a batch for a ResNet-20, which overlaps with
the accelerator's work. Setting the few masks where the trainer holds them would be
quicker and is not possible: it works with copies of what a callback can reach.
"""

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sq import _backend, _checks, masks, schedules
from keras_sq import _keras_internals as internals
from keras_sq.backups import AtomicBackup as AtomicBackup
from keras_sq.masks import NotFiniteError as NotFiniteError
from keras_sq.recorders import SCHEDULE
from keras_sq.recorders import QuantizationHistory as QuantizationHistory
from keras_sq.tensorboard_logs import (
    QuantizationTensorBoard as QuantizationTensorBoard,
)
from keras_sq.types import Tensor

ZERO_SLOT_OPTIMIZERS = (
    "SGD",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Lamb",
    "Nadam",
    "RMSprop",
)
"""Optimizers whose per-weight state starts at zero."""


class StochasticQuantization(keras.callbacks.Callback):
    """Steps the ratio schedule and redraws the masks during `fit`.

    Adds `quantized_ratio`, the ratio of the epoch's last batch, to the logs. If the
    layers have a ratio each, it is their average by the numbers of weights: the part
    of the quantized kernels' weights that is quantized. (The least of the ratios is
    what `keras_sq.get_ratio` returns.)

    Args:
        schedule: A `keras_sq.schedules.RatioSchedule`, or its name.
            A schedule in epochs or fractions is bound to the run's length
            when training begins, a layerwise one to the model's layers.
        resample_every: Int >= 1: optimizer steps between two draws. The masks
            are drawn at the start of every stage in any case. With
            `steps_per_execution=k` they change every k steps at most. With
            gradient accumulation a step is an update of the weights: all of its
            batches see the same masks.
        clear_momentum: Whether the optimizer's per-weight state (momentum,
            Adam's moments) is set to zero when a stage begins: the protocol
            of the paper, together with
            `keras_sq.learning_rates.StagewiseLearningRate`. Meant for SGD: Adam's
            bias correction is not restarted, so that its first steps of a
            stage are larger.
        total_steps: Int, optimizer steps of the whole run, where Keras cannot
            know them (a generator, a data set of unknown size).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the schedule's name is unknown or `resample_every` < 1.
            When training begins: if the model has no quantized layer, or the run's
            length is needed and unknown.
        NotFiniteError: If a kernel is not finite: when training begins, at most two
            batches after a draw from it, and at the end of an epoch, before any
            other callback saves it (if Keras knows the length of an epoch). If
            something else stopped the training (`keras.callbacks.TerminateOnNaN`),
            a warning names the layer instead.

    Example:
        >>> callback = keras_sq.callbacks.StochasticQuantization(
        ...     keras_sq.schedules.exponential(), resample_every=10)
        >>> # model.fit(x, y, epochs=40, callbacks=[callback])

    References:
        - [Dong et al., 2017, section 3](https://arxiv.org/abs/1708.01001)
    """

    def __init__(
        self,
        schedule: Any = "short",
        *,
        resample_every: int = 1,
        clear_momentum: bool = False,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedules.get(schedule)
        self.resample_every = _checks.integer("resample_every", resample_every, 1)
        if not isinstance(clear_momentum, bool):
            raise TypeError(
                "Argument `clear_momentum` must be a bool. "
                f"Received: clear_momentum={clear_momentum!r}"
            )
        self.clear_momentum = clear_momentum
        if total_steps is not None:
            _checks.integer("total_steps", total_steps, 1)
        self.total_steps = total_steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Binds the schedule to the run, and checks the kernels."""
        pairs = masks.require_quantized(self.model)
        if isinstance(self.schedule, schedules.Layerwise):
            pairs = self.schedule.visits(self.model)
        self._paths = [path for path, _ in pairs]
        self._layers = [layer for _, layer in pairs]
        self._sizes = [
            sum(math.prod(x.latent(name).shape) for name in x.quantized_weights)
            for x in self._layers
        ]
        self.bound_schedule = self._bind()
        # For callbacks that record; past Keras's tracking of attributes.
        self.model.__dict__[SCHEDULE] = self.bound_schedule
        masks.require_finite(self._paths, masks.finite_kernels(self._layers))
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._slots = self._momentum_slots() if self.clear_momentum else []
        for layer in self._layers:
            layer.ratio_is_controlled = True
        self._optimizer = _inner(optimizer)
        counter = internals.batches_applied(self._optimizer)
        self._update = _backend.compiled(
            self._update_at_this_step,
            [*masks.variables_of(self._layers), counter, *self._slots],
        )
        self._finite: Tensor | None = None
        self._batches = 0
        self._first_epoch: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes whether the run goes on with an earlier one."""
        if self._first_epoch is None:
            self._first_epoch = epoch

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Sets ratio and masks for the batch that comes."""
        if self._batches == 0:
            self._warn_if_over()
        self._batches += 1
        if self._finite is not None:
            masks.require_finite(self._paths, self._finite)
        self._finite = self._update(self._batches_since_last(batch))

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Checks, once, that the model tells its layers that it trains."""
        if self._batches == 1 and not any(x.has_trained for x in self._layers):
            raise ValueError(
                f"Model '{self.model.name}' (of type {type(self.model).__name__}) "
                "does not tell its layers that it trains, so that none computed with "
                "its hybrid kernel. Keras passes `training=True` to models that take "
                "it: give its `call` an argument `training=None`; in a `train_step` "
                "of your own, call the model with `training=True`."
            )
        if batch + 1 == self.params.get("steps"):
            # Here, and not only when the epoch ends: a callback that saves may come
            # before this one.
            self._check_kernels()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the ratio, and checks the kernels, drawn from or not."""
        self._check_kernels(warn=True)
        if logs is not None:
            ratios = [float(internals.read(x.ratio)) for x in self._layers]
            logs["quantized_ratio"] = float(np.average(ratios, weights=self._sizes))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Quantizes the rest where the schedule ends with the run."""
        step = int(internals.read(self.model.optimizer.iterations))
        if float(ops.min(self.bound_schedule(step))) >= 1.0:
            self._update(np.zeros((), "int32"))
        self.model.__dict__.pop(SCHEDULE, None)

    def _check_kernels(self, warn: bool = False) -> None:
        """Raises if a kernel is not finite, drawn from or not (as at ratio 1).

        Unless something else has stopped the training already, `TerminateOnNaN`:
        then the run shall end as that has it, and a warning says which layer it was.
        """
        if self.model.stop_training and not warn:
            return
        try:
            masks.require_finite(self._paths, masks.finite_kernels(self._layers))
        except NotFiniteError as error:
            if not self.model.stop_training:
                raise
            warnings.warn(f"Training was stopped. {error}", UserWarning, stacklevel=2)

    def _batches_since_last(self, batch: int) -> Tensor:
        """Returns how many batches were trained on since the last update.

        From numbers only that a run knows again when it is resumed.
        """
        stride = int(self.model.steps_per_execution or 1)
        steps = self.params.get("steps")
        if batch == 0 and steps:
            stride = steps % stride or stride  # The last execution of an epoch.
        return np.asarray(stride, "int32")

    def _update_at_this_step(self, new_batches: Tensor) -> Tensor:
        optimizer = self._optimizer
        batches = ops.cast(internals.batches_applied(optimizer), "int32")
        per_step = optimizer.gradient_accumulation_steps or 1
        step = batches // per_step
        # -1 before the first step.
        last = (batches - new_batches) // per_step
        ratio = self.bound_schedule(step)
        # The steps in between count too, if several ran in one execution.
        due = step // self.resample_every != last // self.resample_every
        starts = ops.convert_to_tensor(list(self.bound_schedule.stage_starts), "int32")
        begins = ops.any(ops.logical_and(starts <= step, starts > last))
        if self._slots:
            restart = ops.logical_and(begins, step > 0)
            for slot in self._slots:
                value = internals.read(slot)
                slot.assign(ops.where(restart, ops.zeros_like(value), value))
        return masks.update_masks(self._layers, ratio, ops.logical_or(due, begins))

    def _bind(self) -> schedules.RatioSchedule:
        """Returns the schedule in steps; it says itself what it lacks."""
        steps = self.params.get("steps")
        optimizer = _inner(self.model.optimizer)
        batches_per_step = optimizer.gradient_accumulation_steps or 1
        per_epoch = total = None
        if steps is not None:
            per_epoch = max(1, steps // batches_per_step)
            total = max(1, self.params["epochs"] * steps // batches_per_step)
        return self.schedule.for_model(self.model).bind(
            total_steps=self.total_steps or total, steps_per_epoch=per_epoch
        )

    def _warn_if_over(self) -> None:
        step = int(internals.read(self.model.optimizer.iterations))
        end = self.bound_schedule.end_step
        if self.params.get("epochs") and step > 0 and step >= end > 0:
            if self._first_epoch == 0:
                warnings.warn(
                    f"The schedule ended at step {end}, and the optimizer is at step "
                    f"{step} already: everything stays quantized in this run. To "
                    "go through the schedule again, compile the model again.",
                    UserWarning,
                    stacklevel=2,
                )

    def _momentum_slots(self) -> list[Any]:
        optimizer = _inner(self.model.optimizer)
        kind = type(optimizer).__name__
        if kind not in ZERO_SLOT_OPTIMIZERS:
            raise ValueError(
                "Argument `clear_momentum=True` needs an optimizer whose state "
                f"starts at zero ({', '.join(ZERO_SLOT_OPTIMIZERS)}). Received a "
                f"model compiled with {kind}."
            )
        return internals.optimizer_slots(optimizer)


def _inner(optimizer: Any) -> Any:
    """Returns the optimizer inside a loss-scaling one, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
