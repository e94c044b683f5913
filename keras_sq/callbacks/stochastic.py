"""The callback of stochastic quantization.

Before each batch it computes the ratio of the schedule at the training's
step and redraws the masks, for all layers in one compiled call. The step is
`optimizer.iterations`, and the random state is part of the layers. So a run
restored by `keras.callbacks.BackupAndRestore` continues as if it had never
stopped, bit for bit. If nothing steps that optimizer, `training_clock.py` counts.

**Quantized weights stay quantized**: a `fit` that continues a training never lowers
the ratio, even if its schedule, bound to another number of epochs, would.

The callback does not wait for the accelerator: the compiled call reads the step,
computes the schedule and draws the masks. The callback checks one batch later whether
the kernels were finite, when the answer has arrived.

Design note: **JAX.** The JAX trainer has the variables' values between two batches.
Each access to `self.model` makes Keras write them back, and the trainer fetches them
again: about a millisecond a batch for a ResNet-20, which overlaps with the
accelerator's work. Setting the few masks in the trainer's copy would be quicker, but a
callback cannot reach it.
"""

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sq import schedules
from keras_sq.callbacks import mask_updates, training_clock
from keras_sq.callbacks import training_warnings as texts
from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Logs, Tensor
from keras_sq.layers import masks
from keras_sq.layers.deployed_kernels import forget_kernels
from keras_sq.layers.masks import NotFiniteError

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

    The step of the schedule is that of the optimizer that the model was compiled with.
    In a model that trains in another way (a GAN with its own optimizers, a `train_step`
    that accumulates gradients), batches without a step of this optimizer count as well.
    A later `fit` of the same compiled model continues where the one before ended.

    A run that ends at a ratio below 1 warns, for any reason. Callbacks that stop
    or save by metrics should wait for the end of the schedule: `OnceQuantized`.

    For a training loop of your own put the callback into a `keras.callbacks.
    CallbackList` with the model, `epochs` and `steps`, and call its methods.

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
            know them (a generator, a data set of unknown size, a training in several
            calls of `fit`).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the schedule's name is unknown or `resample_every` < 1.
            When training begins: if the model has no quantized layer, or the run's
            length is needed and unknown, or `fit` has two of these callbacks. After
            the first epoch: with `clear_momentum`, if the model is trained with
            another optimizer than it was compiled with.
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
        self.resample_every = checks.integer("resample_every", resample_every, 1)
        self.clear_momentum = checks.boolean("clear_momentum", clear_momentum)
        if total_steps is not None:
            checks.integer("total_steps", total_steps, 1)
        self.total_steps = total_steps
        self._now: Any = None  # A `State`, while training.

    def on_train_begin(self, logs: Logs = None) -> None:
        """Binds the schedule to the run, and checks the kernels."""
        pairs = masks.require_quantized(self.model)
        self._progress = training_clock.progress_of(self.model)
        self._progress.claim(self, self.params, self._now is not None)
        self._now = None
        if isinstance(self.schedule, schedules.Layerwise):
            pairs = self.schedule.visits(self.model)
        self._paths = [path for path, _ in pairs]
        self._layers = [layer for _, layer in pairs]
        self._sizes = [
            sum(math.prod(x.latent(name).shape) for name in x.quantized_weights)
            for x in self._layers
        ]
        frozen = [
            path
            for path, layer in pairs
            if not any(layer.latent(name).trainable for name in layer.quantized_weights)
        ]
        if frozen:
            self._progress.warn("frozen", texts.of_frozen_layers(frozen))
        bound = self._bind(epochs_before=0)
        masks.require_finite(self._paths, masks.finite_kernels(self._layers))
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        internals.make_metrics_outside_of_steps(self.model)
        self._slots = self._momentum_slots() if self.clear_momentum else []
        for layer in self._layers:
            layer.ratio_is_controlled = True
        self._clock = training_clock.TrainingClock(self.model, self._params("steps"))
        self._follow(bound)
        self._first_epoch: int | None = None
        self._trained_ratio: Tensor | None = None
        self._diverged = False

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Notes whether the run continues an earlier one."""
        forget_kernels(self._layers)  # What the last validation computed with.
        self._clock.epoch = epoch
        if self._first_epoch is None:
            self._first_epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Sets ratio and masks for the next batch."""
        if self._now is None:
            self._start(batch)
        else:
            masks.require_finite(self._paths, self._now.finite)
        self._advance(self._batches_since_last(batch), self._clock.news(batch))
        self._clock.begin(batch)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Checks, once, that the model tells its layers that it trains."""
        first = self._clock.batches == 0
        epoch_ends = self._clock.end(batch)
        self._trained_ratio = self._now.ratio
        if first and not any(x.has_trained for x in self._layers):
            raise ValueError(
                f"Model '{self.model.name}' (of type {type(self.model).__name__}) "
                "does not tell its layers that it trains, so that none computed with "
                "its hybrid kernel. Keras passes `training=True` to models that take "
                "it: give its `call` an argument `training=None`; in a `train_step` "
                "of your own, call the model with `training=True`."
            )
        if epoch_ends:
            # Here, and not only when the epoch ends: a callback that saves may come
            # before this one.
            self._check_kernels()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Logs the ratio, and checks the kernels, drawn from or not."""
        self._check_kernels(warn=True)
        first = epoch == self._first_epoch
        if self.clear_momentum and first and self._clock.stands_still:
            raise ValueError(
                "Argument `clear_momentum=True` clears the state of the optimizer "
                "that the model was compiled with, "
                f"{type(self.model.optimizer).__name__}, which made no step in this "
                "epoch: the model trains with another one. Compile it with that: "
                "`super().compile(optimizer=...)`."
            )
        if logs is not None:
            ratios = [float(internals.read(x.ratio)) for x in self._layers]
            logs["quantized_ratio"] = float(np.average(ratios, weights=self._sizes))

    def on_train_end(self, logs: Logs = None) -> None:
        """Quantizes the rest where the schedule ends with the run, else warns."""
        if self._now is None:
            self._start(0)
        step = self._clock.step(self._now.clock)
        ratio = ops.maximum(self.bound_schedule(step), self._floor)
        # Also where `EarlyStopping` has put back the weights of an earlier epoch, which
        # was validated with everything quantized.
        if float(ops.min(ratio)) >= 1.0:
            self._advance(np.zeros((), "int32"), self._clock.news())
        self._clock.remember(self._now.clock)
        self._warn_if_partial(step)
        self._progress.trainer = self._progress.schedule = None

    # The position of the run.

    def _follow(self, bound: schedules.RatioSchedule) -> None:
        """Uses a bound schedule for the run."""
        self.bound_schedule = self._progress.schedule = bound
        self._update = mask_updates.MaskUpdate(
            bound, self._layers, self.resample_every, self._slots, self._clock.counter
        ).kept_in(self._progress)

    def _start(self, batch: int) -> None:
        """Determines the position of the training before the first batch."""
        # Not when training begins: another callback may restore a backup then.
        if self._first_epoch:
            drawn = bool(np.any(masks.ratios_drawn(self._layers)))
            self._clock.leave_out_epochs_before(drawn)
            if self._clock.epochs_before:
                self._follow(self._bind(self._clock.epochs_before))
        clock = self._clock.start(batch)
        step = int(clock.applied + clock.missed) // self._clock.counter.batches_per_step
        self._floor = self._ratio_reached(step)
        self._now = mask_updates.State(clock, self._floor, None)
        end = self.bound_schedule.end_step
        over = step >= end or float(np.min(self._floor)) >= 1.0
        # `initial_epoch` says so; or there is no epoch left to train.
        meant = self._first_epoch != 0 or self.total_steps is not None
        if step > 0 and end > 0 and over and self._params("epochs") and not meant:
            self._progress.warn("over", texts.of_ended_schedule(end, step))

    def _ratio_reached(self, step: int) -> Tensor:
        """Returns the ratio below which the run must not fall.

        0 at the start of a training, and if this schedule reaches the same ratio at
        the step before, as in a resumed run. It has the shape of the schedule's ratio.
        """
        before = ops.convert_to_numpy(self.bound_schedule(max(step - 1, 0)))
        reached = masks.ratios_drawn(self._layers)
        floor = reached if before.ndim else np.min(reached)
        further = (step > 0) & (floor > before + 1e-6)
        return np.asarray(np.where(further, floor, 0.0), "float32")

    def _advance(self, new_batches: Tensor, news: tuple[Tensor, Tensor]) -> None:
        """Advances ratio, masks and momentum to the current step."""
        self._now = self._update(new_batches, self._now.clock, news, self._floor)
        self._clock.remember(self._now.clock)

    @property
    def _stopped(self) -> bool:
        return bool(getattr(self.model, "stop_training", False))

    def _params(self, name: str) -> Any:
        """Returns a parameter of `fit`; a custom loop may have none."""
        return (self.params or {}).get(name)

    def _check_kernels(self, warn: bool = False) -> None:
        """Raises if a kernel is not finite, drawn from or not (as at ratio 1).

        If something else, such as `TerminateOnNaN`, has stopped the training already,
        a warning names the layer instead.
        """
        if self._stopped and not warn:
            return
        try:
            masks.require_finite(self._paths, masks.finite_kernels(self._layers))
        except NotFiniteError as error:
            if not self._stopped:
                raise
            self._diverged = True
            warnings.warn(f"Training was stopped. {error}", UserWarning, stacklevel=2)

    def _batches_since_last(self, batch: int) -> Tensor:
        """Returns how many batches were trained on since the last update.

        Computed only from numbers that a resumed run knows, too.
        """
        stride = int(getattr(self.model, "steps_per_execution", None) or 1)
        steps = self._params("steps")
        if batch == 0 and steps:
            stride = steps % stride or stride  # The last execution of an epoch.
        return np.asarray(stride, "int32")

    def _bind(self, epochs_before: int) -> schedules.RatioSchedule:
        """Returns the schedule in steps; the schedule raises if a length is unknown."""
        steps, epochs = self._params("steps"), self._params("epochs") or 1
        per_step = training_clock.batches_per_step(self.model)
        per_epoch = total = None
        if steps is not None:
            per_epoch = max(1, steps // per_step)
            total = max(1, (epochs - epochs_before) * steps // per_step)
        bound = self.schedule.for_model(self.model).bind(
            total_steps=self.total_steps or total, steps_per_epoch=per_epoch
        )
        text = texts.of_masks_not_drawn(bound, self.resample_every)
        if text is not None and not epochs_before:
            warnings.warn(text, UserWarning, stacklevel=2)
        return bound

    def _warn_if_partial(self, step: int) -> None:
        """Warns if the last step was not trained with everything quantized."""
        if self._trained_ratio is not None:
            ratio = float(ops.min(self._trained_ratio))
        else:
            ratio = min(float(internals.read(x.ratio)) for x in self._layers)
        inner = getattr(self.schedule, "inner", self.schedule)
        final, meant = self.bound_schedule.final_ratio, 1.0
        if getattr(inner, "allow_partial", False):
            meant = final
        if ratio >= meant - 1e-6 or self._diverged:
            return
        end = self.bound_schedule.end_step
        ending = texts.Ending(
            ratio=ratio,
            final_ratio=final,
            step=step,
            end_step=end,
            stopped=self._stopped,
            skipped=self._clock.skipped,
            total_steps=self.total_steps,
            end_epoch=self._clock.epoch_of(end),
        )
        # A training in several calls of `fit` is told once.
        part = self.total_steps is not None and step < self.total_steps
        self._progress.warn("partial" if part else None, texts.of_partial_end(ending))

    def _momentum_slots(self) -> list[Any]:
        optimizer = training_clock.stepping_optimizer(self.model)
        kind = type(optimizer).__name__
        if kind not in ZERO_SLOT_OPTIMIZERS:
            raise ValueError(
                "Argument `clear_momentum=True` needs an optimizer whose state "
                f"starts at zero ({', '.join(ZERO_SLOT_OPTIMIZERS)}). Received a "
                f"model compiled with {kind}."
            )
        return internals.optimizer_slots(optimizer)
