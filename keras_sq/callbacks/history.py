"""Callbacks that watch quantization while a model trains, and change nothing.

`KernelRecorder` decides when to measure; `QuantizationHistory` keeps the measurements,
in bounded memory, for `keras_sq.plots`. `kernel_meter.py` measures; the log for
TensorBoard is in `tensorboard.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_sq.callbacks import training_clock
from keras_sq.callbacks.kernel_meter import KernelMeter, Measurement
from keras_sq.core import checks
from keras_sq.core.types import Array, Config, LayerKeys, Logs
from keras_sq.layers import masks
from keras_sq.layers.layer_keys import as_keys, quantized_paths


class KernelRecorder(keras.callbacks.Callback):
    """Base class: measures the kernels every so many optimizer steps.

    After the first step, whenever the number of steps is a multiple of `every`, and
    at the end. A subclass defines `record`.

    Args:
        every: Optimizer steps from one measurement to the next.
        watched: Layers whose masks are measured, as in `quantize_model`'s `skip`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `every` < 1. When training begins: if the model has no
            quantized layer, or a name matches none.
    """

    watched_argument = "watched"
    """What the constructor calls `watched`, for messages."""

    def __init__(self, every: int, watched: LayerKeys = ()) -> None:
        super().__init__()
        self.every = checks.integer("every", every, 1)
        self.watched_keys = as_keys(watched, self.watched_argument)
        self._meter: KernelMeter | None = None

    def record(self, step: int, measured: Measurement, logs: dict[str, Any]) -> None:
        """Keeps a measurement.

        Args:
            step: Optimizer steps done.
            measured: The measurement.
            logs: Keras's, of the epoch so far.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `record`.")

    @property
    def meter(self) -> KernelMeter:
        """What measures.

        Raises:
            ValueError: If training did not begin yet.
        """
        if self._meter is None:
            raise ValueError(
                f"`{type(self).__name__}` has recorded nothing yet. Pass it to `fit`: "
                "`model.fit(..., callbacks=[recorder])`."
            )
        return self._meter

    def on_train_begin(self, logs: Logs = None) -> None:
        """Looks the layers up."""
        pairs = masks.require_quantized(self.model)
        self._meter = KernelMeter(pairs, self._watched_paths(dict(pairs)))
        self._begun = False
        self._recorded: int | None = None

    def _watched_paths(self, quantized: dict[str, Any]) -> list[str]:
        watched: list[str] = []
        for key in self.watched_keys:
            hits = quantized_paths(self.watched_argument, key, self.model, quantized)
            watched += [x for x in quantized if x in hits and x not in watched]
        return [
            f"{path}/{x}" for path in watched for x in quantized[path].quantized_weights
        ]

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Notes that the batches are counted from 0 again."""
        self._batch = -1

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Before the first batch, notes where the run begins, and the codes."""
        # Not when training begins: another callback may restore a backup then.
        if self._begun:
            return
        self._begun = True
        self._batches_per_step = training_clock.batches_per_step(self.model)
        self._batches = training_clock.batches_done(self.model)
        self._first_step = self._batches // self._batches_per_step
        self.begin(self._first_step, self.meter.measure())

    def begin(self, step: int, measured: Measurement) -> None:
        """Notes the kernels before the first step.

        Args:
            step: Optimizer steps done before.
            measured: The measurement; its ratios may be those of an earlier run.
        """

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Measures, if it is time to."""
        # Counted here, not read from the optimizer: on JAX each look at the model
        # costs a millisecond.
        before = self._batches // self._batches_per_step
        # With several steps in an execution, Keras counts on beyond the last one.
        batch = min(batch, ((self.params or {}).get("steps") or batch + 1) - 1)
        self._batches += batch - self._batch
        self._batch = batch
        step = self._batches // self._batches_per_step
        first = before == self._first_step < step
        if first or step // self.every > before // self.every:
            self._record(step, logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Measures the kernels at the end."""
        if self._begun:
            self._record(self._batches // self._batches_per_step, logs)

    def _record(self, step: int, logs: Logs) -> None:
        if step == self._recorded:
            return
        # On JAX this makes Keras bring the variables' values back.
        _ = self.model
        self._recorded = step
        self.record(step, self.meter.measure(), logs or {})


class QuantizationHistory(KernelRecorder):
    """Records ratio, loss, errors, flips and masks over the steps of a training.

    For `keras_sq.plots`, or plots of your own. When it has as many measurements as it
    may keep, it drops every second one and doubles the distance, so memory is bounded
    however long the run is. A later `fit` adds to the same records.

    A measurement reads all quantized kernels once: 10 ms for a VGG-style CNN of 3.5 M
    weights whose step takes 700 ms, 29 ms for dense layers of 12.6 M weights whose
    step takes 137 ms (ternary, batch 64, processor time of one Xeon core at 2.5 GHz):
    0.1 % and 2 % of the training at one measurement in ten steps.

    Args:
        every: Optimizer steps from one measurement to the next, at first.
        masks: Layers whose masks to keep: names, paths, patterns, classes, as in
            `keras_sq.quantize_model(skip=)`; their memory is a byte for each filter
            and measurement.
        max_records: How many measurements to keep, 8 or more.

    Attributes:
        paths: Of the kernels, `"<layer>/<weight>"`.
        sizes: Weights of each kernel.
        stage_starts: Steps at which a stage of the schedule begins.
        epochs: A dict an epoch: `step` and Keras's logs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is too small. When training begins: if the model has
            no quantized layer, or a name matches none.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "ternary")
        >>> sq_model.compile("sgd", "mse", jit_compile=False)
        >>> history = keras_sq.callbacks.QuantizationHistory(every=2, masks="dense*")
        >>> sq = keras_sq.callbacks.StochasticQuantization()
        >>> _ = sq_model.fit(np.ones((32, 8)), np.ones((32, 4)), batch_size=4,
        ...                  callbacks=[sq, history], verbose=0)
        >>> history.steps.tolist(), history.ratio.tolist()
        ([1, 2, 4, 6, 8], [0.5, 0.75, 1.0, 1.0, 1.0])
        >>> history.errors.shape, history.stage_starts
        ((5, 1), (0, 1, 2, 3))
    """

    watched_argument = "masks"

    def __init__(
        self, every: int = 10, *, masks: LayerKeys = (), max_records: int = 256
    ) -> None:
        super().__init__(every, masks)
        self.max_records = checks.integer("max_records", max_records, 8)
        self._first_every = self.every
        self._reset()

    def _reset(self) -> None:
        self.paths: list[str] = []
        self.sizes: Array = np.zeros(0, "int64")
        self.stage_starts: tuple[int, ...] = ()
        self.epochs: list[Config] = []
        self.every = self._first_every
        self._records: list[_Record] = []

    # What was recorded.

    @property
    def steps(self) -> Array:
        """Optimizer steps done at each record, int `(records,)`."""
        return np.array([r.step for r in self._records], "int64")

    @property
    def ratio(self) -> Array:
        """Part of all weights that is quantized, float `(records,)`."""
        return np.array([r.ratio for r in self._records])

    @property
    def loss(self) -> Array:
        """Mean training loss since the record before (of the same epoch)."""
        return np.array([r.loss for r in self._records])

    @property
    def errors(self) -> Array:
        """Quantization error of each kernel, float `(records, kernels)`."""
        return np.array([r.errors for r in self._records]).reshape(-1, len(self.paths))

    @property
    def flips(self) -> Array:
        """Weights whose code changed, per step, float `(records, kernels)`.

        Since the record before. A weight that changes and changes back in between is
        not seen.
        """
        return np.array([r.flips for r in self._records]).reshape(-1, len(self.paths))

    @property
    def masks(self) -> dict[str, Array]:
        """Kernel path -> float `(records, filters)`: the part that is quantized.

        0 and 1 only where whole filters are chosen. To 1/255.
        """
        if not self._records:
            return {}
        return {
            path: np.array([r.masks[path] for r in self._records]) / 255
            for path in self._records[0].masks
        }

    def to_records(self) -> list[Config]:
        """Returns a flat dict for each kernel at each record, for a data frame."""
        return [
            {
                "step": r.step,
                "ratio": r.ratio,
                "loss": r.loss,
                "kernel": path,
                "error": float(r.errors[index]),
                "flips_per_step": float(r.flips[index]),
            }
            for r in self._records
            for index, path in enumerate(self.paths)
        ]

    # Recording.

    def on_train_begin(self, logs: Logs = None) -> None:
        """Looks the layers up."""
        super().on_train_begin(logs)
        self._loss_batches, self._loss_sum = 0, 0.0

    def begin(self, step: int, measured: Measurement) -> None:
        """Continues the records, or starts new ones for another run or model."""
        known = self._records
        if known and (step < known[-1].step or self.paths != self.meter.paths):
            self._reset()
        self.paths, self.sizes = self.meter.paths, self.meter.sizes
        self._last = self._records[-1].step if self._records else step

    def record(self, step: int, measured: Measurement, logs: dict[str, Any]) -> None:
        """Keeps a measurement, and thins the records out if they are full."""
        schedule = training_clock.progress_of(self.model).schedule
        if schedule is not None:
            self.stage_starts = tuple(schedule.stage_starts)
        masks = {
            path: np.round(255 * mask).astype("uint8")
            for path, mask in zip(self.meter.watched, measured.masks, strict=True)
        }
        self._records.append(
            _Record(
                step,
                step - self._last,
                self.meter.mean_ratio(measured),
                self._loss_since(logs),
                measured.errors,
                measured.changed / max(1, step - self._last),
                masks,
            )
        )
        self._last = step
        if len(self._records) >= self.max_records:
            self._thin_out()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Begins a new mean of the loss, as Keras does."""
        super().on_epoch_begin(epoch, logs)
        self._loss_batches, self._loss_sum = 0, 0.0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Keeps Keras's logs."""
        step = self._batches // self._batches_per_step
        self.epochs.append({"step": step, "epoch": epoch, **_floats(logs or {})})

    def _loss_since(self, logs: dict[str, Any]) -> float:
        """Returns the loss since the last record: Keras's is that of the epoch."""
        if "loss" not in logs:
            return float("nan")
        mean, batches = float(logs["loss"]), self._batch + 1
        if batches <= self._loss_batches:
            return self._records[-1].loss if self._records else mean
        total = mean * batches
        since = (total - self._loss_sum) / (batches - self._loss_batches)
        self._loss_batches, self._loss_sum = batches, total
        return since

    def _thin_out(self) -> None:
        """Drops every second record, and measures half as often from now on."""
        self.every *= 2
        kept: list[_Record] = []
        pending: list[_Record] = []
        for record in self._records:
            pending.append(record)
            if record.step % self.every == 0 or record is self._records[-1]:
                kept.append(_merged(pending))
                pending = []
        self._records = kept


class _Record(NamedTuple):
    step: int
    steps: int  # Since the record before.
    ratio: float
    loss: float
    errors: Array
    flips: Array
    masks: dict[str, Array]


def _merged(records: Sequence[_Record]) -> _Record:
    """Returns the last record, with the mean loss and flips of all records."""
    last = records[-1]
    steps = [record.steps for record in records]
    if sum(steps) == 0:
        return last
    loss = float(np.average([record.loss for record in records], weights=steps))
    flips = np.average([record.flips for record in records], axis=0, weights=steps)
    return last._replace(steps=sum(steps), loss=loss, flips=flips)


def _floats(logs: dict[str, Any]) -> Config:
    return {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}
