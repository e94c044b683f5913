"""From a Keras model to a TFLite file of int8 weights and int8 activations.

TensorFlow's post-training quantization does it: it measures the range of every
activation on representative examples. Of kernels it takes the largest absolute
value of a filter for 127, so those of binary and ternary filters become exactly
-127, 0 and 127.

Design note: **127, not 1.** Codes of 1 would give the same products, but biases
are stored as multiples of the kernel's scale times the input's: with a scale 127
times as large they would be rounded 127 times as coarsely.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.lite.python.optimize import calibrator

from keras_sq.core.types import Array, Model
from keras_sq.export.activations import ranges as activation_ranges
from keras_sq.export.activations import shared_scales
from keras_sq.export.activations.levels import ActivationLevels
from keras_sq.export.conversion import convert
from keras_sq.export.errors import ExportError, layer_of
from keras_sq.export.examples import Examples
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, float_outputs, indices
from keras_sq.export.tflite.runtime import AllTensors, quiet

MAX_WIDENINGS = 4
"""How often ranges are made wider: those behind a wider one may be too narrow then."""

ROWS = {"GATHER": 1, "EMBEDDING_LOOKUP": 0}
"""Operators that read rows of a table -> which input holds the numbers of the rows."""


def int8_file(
    float_file: convert.Converted,
    examples: Examples,
    quantizers: Sequence[ActivationLevels] = (),
) -> bytes:
    """Returns a float file as a full-integer file, inputs and outputs included.

    Float inputs and outputs become int8, with a scale and a zero point that the
    file states; integers stay what they are.

    Args:
        float_file: The float file, traced for integers.
        examples: Examples on which the ranges of the activations are measured.
        quantizers: Quantizers of activations, which need other ranges than measured.

    Raises:
        ExportError: If an operation has no int8 form.
    """
    content = _calibrated(float_file, examples)
    if quantizers:
        content = activation_ranges.with_ranges(content, quantizers)
    return _with_wide_ranges(content)


def _with_wide_ranges(calibrated: bytes) -> bytes:
    """Returns a float file with ranges as the converter quantizes it.

    Ranges that are too narrow for the kernels of runtimes are made wider first.
    """
    factors: dict[bytes, float] = {}
    for _ in range(MAX_WIDENINGS):
        content = _quantized(activation_ranges.widened(calibrated, factors))
        more = activation_ranges.too_fine(content)
        if max(more.values(), default=1.0) == 1.0:
            break
        for name, factor in more.items():
            factors[name] = factors.get(name, 1.0) * factor
    return shared_scales.with_one_hot_codes(content)


def _calibrated(float_file: convert.Converted, examples: Examples) -> bytes:
    """Returns a float file with the ranges of its tensors, as the converter does it."""
    with quiet():
        content = calibrator.add_intermediate_tensors(float_file.content)
        content = calibrator.Calibrator(content).calibrate(
            lambda: examples.calibration(float_file.signature)
        )
    return shared_scales.joined(bytes(content))


def _quantized(calibrated: bytes) -> bytes:
    """Returns a float file with ranges as the converter quantizes it."""
    with quiet():
        return bytes(
            mlir_quantize(calibrated, input_data_type=tf.int8, output_data_type=tf.int8)
        )


def check_ranges(
    float_file: convert.Converted, model: Model, examples: Examples
) -> None:
    """Makes sure that there are ranges to measure: that all values are finite.

    TensorFlow's quantization ends the process where they are not.

    Args:
        float_file: The float file of the model.
        model: What it is of, for the message.
        examples: Representative examples.

    Raises:
        ExportError: If a layer gives NaN or infinite values.
    """
    tensors = AllTensors(float_file.content)
    file = TFLiteFile(float_file.content)
    graph = file.subgraphs[0]
    order = float_outputs(graph)
    for batch in examples.quick(float_file.signature):
        place = tensors.not_finite(batch.by_name, order)
        if place is not None:
            name = graph.tensors[place].name.decode()
            layer = layer_of(name, model)
            where = f"Layer '{layer}' of model" if layer else "Model"
            raise ExportError(
                f"{where} '{model.name}' gives NaN or infinite "
                "values on `representative_data`, so its range cannot be measured. "
                "Is the data prepared like the training data?"
            )


def check_rows(float_file: convert.Converted, model: Model, examples: Examples) -> None:
    """Makes sure that row numbers of embeddings do not become int8 as float inputs.

    The float input would get steps that are not 1, and other rows would be read.

    Args:
        float_file: The float file of the model.
        model: What it is of, for the message.
        examples: Representative examples.

    Raises:
        ExportError: If rows that an input of floats names would not be read.
    """
    file = TFLiteFile(float_file.content)
    graph = file.subgraphs[0]
    entries = (file.model.signatureDefs or [None])[0]
    names = {x.tensorIndex: x.name.decode() for x in entries.inputs} if entries else {}
    assert examples.arrays is not None  # Activations become int8 with examples only.
    inputs = [entry.name for entry in float_file.signature.inputs]
    values = dict(zip(inputs, examples.arrays, strict=True))
    producers = {
        index: operator
        for operator in graph.operators
        for index in indices(operator.outputs)
    }
    for operator in graph.operators:
        kind = file.operator_name(operator)
        if kind not in ROWS:
            continue
        rows = indices(operator.inputs)[ROWS[kind]]
        wrong = [
            name
            for index in _sources(file, graph, producers, rows)
            if (name := names.get(index)) in values
            and graph.tensors[index].type == TYPES["FLOAT32"]
            and not _keeps_integers(values[name])
        ]
        if not wrong:
            continue
        output = graph.tensors[indices(operator.outputs)[0]].name.decode()
        layer = layer_of(output, model)
        of = f" of layer '{layer}'" if layer else ""
        raise ExportError(
            f"Input '{wrong[0]}' of model '{model.name}' holds row numbers{of}, but is "
            "float32, so its int8 form would name other rows. Make it integers: "
            "`keras.Input(..., dtype='int32')`."
        )


def _sources(
    file: TFLiteFile, graph: Any, producers: dict[int, Any], index: int
) -> Iterator[int]:
    """Yields the tensors that integers are made of, if only parts are taken of them."""
    integers = TYPES["INT32"], TYPES["INT64"]
    waiting, seen = [index], {index}
    while waiting:
        index = waiting.pop()
        operator = producers.get(index)
        if operator is None:
            yield index
            continue
        name = file.operator_name(operator)
        places = indices(operator.inputs)
        if name in ("CAST", *shared_scales.MOVING):
            places = places[:1]
        else:
            places = [x for x in places if graph.tensors[x].type in integers]
        waiting += [x for x in places if x not in seen]
        seen.update(places)


def _keeps_integers(values: Array) -> bool:
    """Whether all whole numbers in the range of an input survive its int8 form."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if not 0 < high - low < 256:
        return high == low
    step = np.float32((high - low) / 255)
    whole = np.arange(np.ceil(low), high + 1, dtype="f4")
    zero = np.round(-128 - low / step)
    codes = np.clip(np.round(whole / step) + zero, -128, 127) - zero
    return bool(np.all((codes.astype("f4") * step).astype("i4") == whole))
