"""A log of the quantization for TensorBoard.

Design note: **a separate callback.** `StochasticQuantization` is the method and decides
the result; this callback only watches. So it also logs models that are trained
quantized directly, and a broken log directory does not affect the method.
`keras.callbacks.TensorBoard` writes what Keras knows; both can write below the same
directory.

Design note: **`tf.summary.write`** and not `tf.summary.scalar`: the latter needs the
package `tensorboard`, which TensorFlow no longer installs. The events are the same.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras

from keras_sq.callbacks.history import KernelRecorder
from keras_sq.callbacks.kernel_meter import Measurement
from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Logs
from keras_sq.layers import quantized_layers
from keras_sq.layers.settings import INFERENCE

FOLDER = "quantization"
"""Below the log directory, as Keras's callback has `train` and `validation`."""

NAMES = {"quantized": "deployed", "hybrid": "hybrid"}
"""What `Settings.inference` is called in the log."""


class QuantizationTensorBoard(KernelRecorder):
    """Logs ratio, errors, flips, and hybrid and deployed accuracy for TensorBoard.

    Every `every` optimizer steps (which are the horizontal axis of all curves):

    | tag | value |
    |---|---|
    | `quantization/ratio` | part of all weights that is quantized |
    | `quantization/flips_per_step` | weights whose code changed since the last log, per step, of all kernels |
    | `quantization_ratio/<layer>/<weight>` | of one kernel, where they differ |
    | `quantization_error/<layer>/<weight>` | `‖W − Q‖₁ / ‖W‖₁` |
    | `quantization_flips/<layer>/<weight>` | changed codes of one kernel, per step |

    After an epoch with validation:

    | tag | value |
    |---|---|
    | `validation_deployed/<metric>` | of the network with everything quantized |
    | `validation_hybrid/<metric>` | of the network as it trains, with its masks |

    `fit` has computed one of the two already. The other is a second evaluation on the
    validation data of `fit`, and costs as much as the first one (and a compilation,
    once). At ratio 1 both networks are the same and nothing is evaluated again.

    A log takes about 50 bytes a number.

    Args:
        log_dir: Where to write; events go to its folder `quantization`.
        every: Optimizer steps from one log to the next.
        both_validations: Whether to evaluate the other network, too.

    Raises:
        ImportError: When training begins on another backend than TensorFlow, if
            that is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `every` < 1. When training begins, if the model has no
            quantized layer.

    Example:
        >>> callback = keras_sq.callbacks.QuantizationTensorBoard("logs", every=100)
        >>> sq = keras_sq.callbacks.StochasticQuantization()
        >>> # model.fit(x, y, validation_data=(a, b), callbacks=[sq, callback])
    """  # noqa: E501 (a table row cannot be broken)

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        every: int = 100,
        *,
        both_validations: bool = True,
    ) -> None:
        super().__init__(every)
        if not isinstance(log_dir, str | os.PathLike):
            raise TypeError(
                "Argument `log_dir` must be a path. "
                f"Received: log_dir={log_dir!r} (of type {type(log_dir).__name__})"
            )
        self.log_dir = os.fspath(log_dir)
        self.both_validations = checks.boolean("both_validations", both_validations)
        self._writer: Any = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Opens the log."""
        super().on_train_begin(logs)
        self._last: int | None = None
        self._validation = OtherValidation()
        tf = _tensorflow()
        # Opened here, so that a wrong directory fails before the first step.
        self._writer = tf.summary.create_file_writer(os.path.join(self.log_dir, FOLDER))

    def begin(self, step: int, measured: Measurement) -> None:
        """Takes note of the first step."""
        self._last = step

    def record(self, step: int, measured: Measurement, logs: dict[str, Any]) -> None:
        """Writes a measurement."""
        meter = self.meter
        flips = measured.changed / max(1, step - (self._last or 0))
        self._last = step
        values = {
            "quantization/ratio": meter.mean_ratio(measured),
            "quantization/flips_per_step": flips.sum(),
        }
        differ = len(set(measured.ratios.tolist())) > 1
        for index, path in enumerate(meter.paths):
            values[f"quantization_error/{path}"] = measured.errors[index]
            values[f"quantization_flips/{path}"] = flips[index]
            if differ:
                values[f"quantization_ratio/{path}"] = measured.ratios[index]
        self._write(step, values)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes what validation gave, and evaluates the other network."""
        prefix = "val_"
        validated = {
            name.removeprefix(prefix): float(value)
            for name, value in (logs or {}).items()
            if name.startswith(prefix)
        }
        inference = _inference(self.model)
        if not validated or inference is None:
            return
        step = self._batches // self._batches_per_step
        values = {f"validation_{NAMES[inference]}/{k}": v for k, v in validated.items()}
        if self.both_validations:
            (other,) = set(INFERENCE) - {inference}
            metrics: Mapping[str, float] | None = validated
            if min(self.meter.measure_ratios()) < 1.0:
                metrics = self._validation.evaluate(self.model, other)
            for name, value in (metrics or {}).items():
                values[f"validation_{NAMES[other]}/{name}"] = value
        self._write(step, values)

    def on_train_end(self, logs: Logs = None) -> None:
        """Writes the last measurement, and closes the log."""
        super().on_train_end(logs)
        self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        tf = _tensorflow()
        kind = tf.compat.v1.SummaryMetadata
        metadata = kind(plugin_data=kind.PluginData(plugin_name="scalars"))
        with self._writer.as_default(step=step):
            for tag, value in values.items():
                number = tf.constant(float(value), tf.float32)
                tf.summary.write(tag, number, step=step, metadata=metadata)
        self._writer.flush()


class OtherValidation:
    """Evaluates a model in the mode that `fit` does not use: hybrid or quantized.

    Keeps the compiled function, which is traced once for all epochs.
    """

    def __init__(self) -> None:
        self._function: Any = None

    def evaluate(self, model: Any, inference: str) -> dict[str, float] | None:
        """Returns loss and metrics on the validation data of the `fit` under way.

        Args:
            model: The model that is being trained; it stays as it is.
            inference: What its layers compute with, one of `INFERENCE`.

        Returns:
            By name, or `None` if there is no validation data at hand.
        """
        name = "quantization_settings"
        with contextlib.ExitStack() as stack:
            for _, layer in quantized_layers(model):
                changed = getattr(layer, name).replace(inference=inference)
                stack.enter_context(internals.own_attribute(layer, name, changed))
            stack.callback(setattr, model, "test_function", model.test_function)
            model.test_function = self._function
            stack.enter_context(internals.own_test_step(model))
            metrics = internals.evaluate_validation_data(model)
            self._function = model.test_function
        return metrics


def _inference(model: Any) -> str | None:
    """Returns what all layers of a model compute with, if it is the same."""
    ways = {x.quantization_settings.inference for _, x in quantized_layers(model)}
    return ways.pop() if len(ways) == 1 else None


def _tensorflow() -> Any:
    """Returns TensorFlow, on any backend of Keras.

    Raises:
        ImportError: If it is not installed.
    """
    elsewhere = keras.backend.backend() != "tensorflow"
    first = "tensorflow" not in sys.modules
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "`QuantizationTensorBoard` writes its events by TensorFlow, on any backend "
            "of Keras: `pip install tensorflow-cpu`. (`QuantizationHistory` records "
            "the same and needs nothing.)"
        ) from error
    if elsewhere and first:
        # It would take all memory of the accelerators that the model needs.
        tf.config.set_visible_devices([], "GPU")
    return tf
