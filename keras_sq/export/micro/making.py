"""Makes the file of target `"mcu"`, and names the layers that stop it."""

import dataclasses

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.export import building, errors
from keras_sq.export.micro import compression, runtime, signature
from keras_sq.export.missing_kernels import with_missing
from keras_sq.export.report import KernelReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite import choice, plans
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.tflite.weights import WeightTensor

MICRO_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "silu", "hard_sigmoid", "hard_silu", "sigmoid"),
    *("tanh", "softmax"),
)
"""Keras's names of what the library for microcontrollers computes with int8."""

MICRO_DATE = "October 2025"
"""Since when the library for microcontrollers has the operator of lookup tables."""


def make(request: Request) -> Candidate:
    """Makes a file of int8 activations and lookup tables, for microcontrollers."""
    # Before the conversion, which takes longest.
    runtime.require()
    candidate = building.integer_file(request)
    content = candidate.converted.content
    file = TFLiteFile(content)
    try:
        packed = compression.compress(content, request.max_decode_bytes)
    except errors.UnsupportedOperatorError as error:
        raise _with_layers(error, file, request.model) from error
    named = {weight.name: weight for weight in building.matched(request, file)}
    kernels = [
        _micro_kernel(file, kernel, named[kernel.name], request.model)
        for kernel in packed.kernels
        if kernel.name in named
    ]
    return dataclasses.replace(
        candidate,
        converted=dataclasses.replace(candidate.converted, content=packed.content),
        kernels=with_missing(kernels, request),
        runtimes=(f"TensorFlow Lite Micro of {MICRO_DATE} or later",),
        equals=content,
        load=signature.loader(content, packed.arena_bytes),
        arena_bytes=packed.arena_bytes,
        int8_arena_bytes=packed.int8_arena_bytes,
    )


def _with_layers(
    error: errors.UnsupportedOperatorError, file: TFLiteFile, model: Model
) -> errors.ExportError:
    """Returns the error with the Keras layers that need the operators."""
    named: dict[str, str] = {}
    for graph in file.subgraphs:
        for operator in graph.operators:
            if file.operator_name(operator) in error.operators:
                # What a model gives is named after that; what comes before is not.
                for index in (*indices(operator.outputs), *indices(operator.inputs)):
                    name = graph.tensors[index].name.decode() if index >= 0 else ""
                    path = errors.layer_of(name, model)
                    if path is not None:
                        named[path] = errors.described(path, model)
                        break
    if not named:
        return error
    layers = ", ".join(list(named.values())[:3]) + (", ..." if len(named) > 3 else "")
    names = {path.rpartition("/")[2] for path in named}
    applied = [
        errors.activation_name(layer)
        for layer in internals.flatten_layers(model)
        if layer.name in names
    ]
    remedy = "Replace it, or export for another target, such as 'int8'."
    if any(applied):
        remedy = (
            f"Use an activation that it computes ({', '.join(MICRO_ACTIVATIONS)}), or "
            "export for another target, such as 'int8'."
        )
    return errors.UnsupportedOperatorError(
        "TensorFlow Lite for Microcontrollers does not compute layer "
        f"{layers} with int8: it lacks the operator {', '.join(error.operators)}. "
        f"{remedy}",
        error.operators,
    )


def _micro_kernel(
    file: TFLiteFile,
    kernel: compression.MicroKernel,
    weight: WeightTensor,
    model: Model,
) -> KernelReport:
    weight = building.with_layer_name(weight, model)
    levels, grid = plans.integer_levels(file, weight)
    if kernel.bits is None:
        return choice.kept(weight, levels, f"{grid}; {kernel.reason}")
    parts = f"; in {kernel.parts} parts" if kernel.parts > 1 else ""
    stored = f"{kernel.bits}-bit table"
    return choice.reported(weight, levels, stored, kernel.num_bytes, grid + parts)
