"""`keras_sq.export`: checks its arguments, then takes the four steps of `steps.py`.

Design note: **one import inside a function.** All that makes, runs and changes files
needs TensorFlow, which users of JAX may not have and others should not wait for when
they import the package.
"""

import os
from typing import Any

import keras
import numpy as np

from keras_sq import layers
from keras_sq.conversion import training_signs
from keras_sq.core import checks, memory_bounds
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.export import errors, kinds
from keras_sq.export.examples import RANDOM_BATCHES
from keras_sq.export.report import ExportReport
from keras_sq.files import atomic_files
from keras_sq.layers import masks


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    target: str = "float",
    representative_data: Any = None,
    max_decode_bytes: int | None = None,
    oldest_runtime: str | None = None,
    optimize: str | None = None,
    allow_partial: bool = False,
    allow_untrained: bool = False,
    allow_float_kernels: bool = False,
) -> ExportReport:
    """Writes a model as a TFLite file that computes what the model computes.

    The file holds the quantized kernels, each in the tightest form that the target
    has for its values; the report says which, and why. The file is run on random
    inputs, and on representative ones if given, and written only if it agrees with
    Keras (or, where activations are int8, bit for bit with the same file unpacked).
    The model is left alone; an old file at `path` is replaced at the very end.

    | target | weights | activations | runs on |
    |---|---|---|---|
    | `"float"` | float32 | float32 | every runtime |
    | `"fast"` | int8 codes, unfolded when loaded | float32 | every runtime |
    | `"int4"`, `"int2"` | 4- or 2-bit codes, where they fit | float32 | LiteRT |
    | `"lowbit"` | 2 or 4 bits, multiplied as they are | float32 outside, rounded to \
    int8 as it runs; int8 with representative data | LiteRT 2.1.4 |
    | `"small"` | the smallest form, 1.07 bits a weight and up | float32, or int8 \
    with representative data | see `oldest_runtime` |
    | `"int8"` | int8 | int8 | every runtime |
    | `"mcu"` | lookup tables, 1 bit a weight and up | int8 | TensorFlow Lite for \
    Microcontrollers |
    | `"lce"` | 1 bit a weight where inputs are signs, else as `"small"` | float32, \
    signs as bits | Larq Compute Engine |

    The batch size stays open, but for models with loops over time (LSTM, GRU
    and SimpleRNN that are not unrolled) and targets `"mcu"` and `"lce"`, whose files
    take one example at a time. A model of mixed or half precision becomes a
    float32 file. Files of int8 activations take and give int8 in place of floats,
    with the scales and zero points that they state.

    Activations that the model quantizes take their levels in the file, too; the
    report says how it holds them. Where activations are float32, the levels are
    exact, and halfway cases fall as in Keras (but NaN becomes a level). Where they
    are int8, levels that are the multiples of a step (uniform rules, `"lq-1"`) become
    the codes of an int8 tensor; signs are computed; the levels of other learned
    codebooks are looked up, each to 1/500 of their span, which takes eight bytes of
    memory an activation while it is done. An activation within the rounding of int8
    of a threshold may take the level beside; within that of float32, in a float file.
    In deep networks single examples then differ by much. So such files are checked
    part by part, each quantizer and what lies between them, and the report says how
    the whole compares.

    Args:
        model: A built Keras model, from `keras_sq.quantize_model` or plain.
        path: Of the file, ending in `.tflite`; its directory must exist. Target
            `"mcu"` writes a `.h` and a `.cc` file beside it.
        target: See the table.
        representative_data: Inputs to compare on besides random ones, and to
            measure the ranges of int8 activations on, as the model sees them in
            use. One array, or a list, tuple or dict by name of arrays, with the
            examples on the first axis; or what yields batches or examples, alone
            or as `(x, y)` or `(x, y, sample_weight)`: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a list, a generator or a function that returns
            one. A model whose inputs are a dict takes nothing but dicts. At most
            512 are used (evenly spaced ones of arrays, else the first); a few
            hundred will do.
        max_decode_bytes: For target `"mcu"`: the largest part of a kernel, in
            bytes, that is unfolded at a time. Larger layers are split. Found by
            trying, if not given.
        oldest_runtime: The oldest runtime that has to run the file, such as
            `"LiteRT 1.0.1"`, `"TensorFlow 2.18"` or `"tflite-runtime 2.14"`. 2-bit
            codes need LiteRT 2.1 or TensorFlow 2.21, 4-bit codes LiteRT 1.0.1 or
            TensorFlow 2.18; older runtimes read packed levels. The newest, if not
            given; the report says what the file needs.
        optimize: For target `"lowbit"`: `"size"`, the fastest file of about the least
            size, or `"speed"`, the smallest of about the least time, by measured times
            of single operators. `"size"`, if not given.
        allow_partial: Whether to export a model whose ratio is below 1, that
            is one that was trained only part of the way. The rest is
            quantized.
        allow_untrained: Whether to export a model just made by
            `quantize_model` that was not trained since: post-training
            quantization.
        allow_float_kernels: Whether to write a file that holds a quantized kernel as
            float32 for want of a form, with a note in the report. Kernels that are
            too small to gain stay float32 in any case.

    Returns:
        The report; `print` shows it.

    Raises:
        ImportError: If the target needs a package that is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has a wrong value, or the model is not
            built, holds weights that are not finite, keeps state between calls,
            is not trained to the end, or is too large for this machine.
        OSError: If the file cannot be written.
        ExportError: If TensorFlow Lite lacks an operation of the model, the file
            would hold a quantized kernel as float32, it does not compute what the
            model does, or an output of the model is never a number.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     report = keras_sq.export(
        ...         sq_model, f"{directory}/model.tflite", allow_untrained=True)
        >>> report.quantized_weights, report.largest_error < 1e-4
        (16, True)
    """
    kind = kinds.get(target)
    destination = atomic_files.destination(path)
    _check_model(model)
    _check_options(kind, representative_data, max_decode_bytes, optimize)
    types = kind.types(oldest_runtime)
    if layers.quantized_layers(model):
        _check_training(model, allow_partial, allow_untrained)
    from keras_sq.export import steps  # It brings TensorFlow: here, on its backend.

    request = steps.prepare(
        model, kind, representative_data, max_decode_bytes, types, optimize or "size"
    )
    with steps.writers(destination, kind) as writers:
        candidate = steps.make(request, allow_float_kernels)
        report = steps.verify(candidate, request, os.fspath(path))
        return steps.write(candidate, report, destination, writers)


# Checks.


def _check_model(model: Model) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a Keras model. "
            f"Received an object of type {type(model).__name__}."
        )
    errors.require_tensorflow()
    if not internals.is_built(model):
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to export. "
            "Call it on a batch first, or give it a `keras.Input`."
        )
    memory_bounds.check_sizes(model, max(RANDOM_BATCHES))
    for layer in internals.flatten_layers(model):
        # Keras's recurrent layers; others have no such attribute.
        if getattr(layer, "stateful", False):
            raise ValueError(
                f"Layer '{layer.name}' keeps its state from call to call "
                "(`stateful=True`), which a TFLite file cannot. Make the state an "
                "input and an output of the model."
            )
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind not in "iub" and not np.all(
            np.isfinite(value.astype("float32"))
        ):
            raise ValueError(
                f"Weight '{variable.path}' of model '{model.name}' holds NaN or "
                "infinite values. Go back to the last good checkpoint."
            )


def _check_options(
    kind: kinds.Kind,
    representative_data: Any,
    max_decode_bytes: int | None,
    optimize: str | None,
) -> None:
    if kind.needs_examples and representative_data is None:
        raise ValueError(
            f"Target '{kind.name}' needs `representative_data`: inputs as the "
            "model sees them in use (a few hundred), to measure the ranges of its "
            "activations."
        )
    if max_decode_bytes is not None:
        if kind.name != "mcu":
            raise ValueError(
                "Argument `max_decode_bytes` is for target 'mcu' only. "
                f"Received: max_decode_bytes={max_decode_bytes} (target '{kind.name}')"
            )
        checks.integer("max_decode_bytes", max_decode_bytes, minimum=1)
    if optimize is not None:
        checks.one_of("optimize", optimize, ("size", "speed"))
        if not kind.optimizes:
            raise ValueError(
                "Argument `optimize` is for target 'lowbit' only. "
                f"Received: optimize={optimize!r} (target '{kind.name}')"
            )


def _check_training(model: Model, allow_partial: bool, allow_untrained: bool) -> None:
    ratio = masks.get_ratio(model)
    if ratio < 1.0 and not allow_partial:
        raise ValueError(
            f"Model '{model.name}' is trained only part of the way: the least ratio of "
            f"its quantized layers is {ratio:.4g}, and a file holds them fully "
            "quantized. Train to the end of the schedule, or pass "
            "`allow_partial=True` to quantize the rest untrained. If these are the "
            "weights of an early epoch with the best metrics (`EarlyStopping`, "
            "`ModelCheckpoint`), let those wait: "
            "`keras_sq.callbacks.OnceQuantized(...)`."
        )
    if not allow_untrained and training_signs.is_untrained(model):
        raise ValueError(
            f"Model '{model.name}' was not trained since `keras_sq.quantize_model` "
            "made it: low-bit kernels need training (`fit` with "
            "`keras_sq.callbacks.StochasticQuantization`). Pass "
            "`allow_untrained=True` if it is to be quantized without."
        )
