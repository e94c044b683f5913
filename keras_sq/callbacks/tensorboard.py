"""What quantization does, for TensorBoard.

Design note: **a callback of its own**, beside `StochasticQuantization`. That one is
the method, and what it does decides the result; this one only watches. So models that
are trained quantized directly can be watched as well, and a broken log directory is
no matter of the method. `keras.callbacks.TensorBoard` writes what Keras knows; both
can write below the same directory.

Design note: **`tf.summary.write`** and not `tf.summary.scalar`: the latter needs the
package `tensorboard`, which TensorFlow no longer brings. The events are the same.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import keras

from keras_sq.callbacks.history import KernelRecorder
from keras_sq.callbacks.kernel_meter import Measurement
from keras_sq.core import keras_internals as internals
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

    One of the two is what `fit` has found already. The other is a second evaluation
    on the validation data of `fit`, and costs what the first did (and, once, its
    compilation). At ratio 1 both networks are the same and none is made.

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
        if not isinstance(both_validations, bool):
            raise TypeError(
                "Argument `both_validations` must be a bool. "
                f"Received: both_validations={both_validations!r}"
            )
        self.log_dir = os.fspath(log_dir)
        self.both_validations = both_validations
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the log."""
        super().on_train_begin(logs)
        self._last: int | None = None
        self._validation = OtherValidation()
        tf = _tensorflow()
        # Opened here: who waits for the first step sees that it works.
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

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
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

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
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
    """Evaluates a model as it is not evaluated otherwise: hybrid, or fully quantized.

    Keeps the compiled function, so that it is traced once for all epochs.
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
        layers = [layer for _, layer in quantized_layers(model)]
        before = [layer.quantization_settings for layer in layers]
        function = model.test_function
        try:
            for layer, settings in zip(layers, before, strict=True):
                changed = settings.replace(inference=inference)
                layer.__dict__["quantization_settings"] = changed
            model.test_function = self._function
            with internals.own_test_step(model):
                metrics = internals.evaluate_validation_data(model)
            self._function = model.test_function
        finally:
            for layer, settings in zip(layers, before, strict=True):
                layer.__dict__["quantization_settings"] = settings
            model.test_function = function
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
