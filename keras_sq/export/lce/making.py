"""Makes the file of target `"lce"`.

The converter of Larq Compute Engine knows a sign by its pattern, `where(x >= 0, 1,
-1)`, and makes a binary convolution of a Conv2D that reads one and whose filters
are ±scale. Padding with zeros, strides and dilation, the scale and the batch
normalization behind become part of the operator; a sign behind that, and max pooling
between, too, then no float is computed at all.

What it has no operator of bits for (dense layers, say) computes with the unfolded
signs; its kernels are packed as those of target `"small"`, and quantized activations
on other levels than ±1 are looked up as in that target.

Design note: **a model without any binary convolution is refused.** Its file would be
that of target "small", for a runtime that fewer have.

Design note: **grouped convolutions stay float**, their inputs are not given the
pattern. The converter makes binary ones of them where a group has a multiple of 32
channels, and the standard kernels of Larq Compute Engine then refuse to load them.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.export import building, missing_kernels
from keras_sq.export.activations import forms as activation_forms
from keras_sq.export.activations.levels import ActivationLevels, changed
from keras_sq.export.conversion import convert
from keras_sq.export.conversion.inputs import InputSignature
from keras_sq.export.errors import ExportError
from keras_sq.export.lce import kernels, runtime, signs
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite import choice, folding, forms
from keras_sq.export.tflite.flatbuffer import TFLiteFile

FORMS = (*forms.PACKED_FORMS, "INT8")
"""Forms of the weights that are not computed on bits."""


def make(request: Request) -> Candidate:
    """Makes a file for Larq Compute Engine.

    Raises:
        ImportError: If its package is missing.
        ExportError: If there is nothing to compute on bits, an input's size is
            open, or the converter stops.
    """
    package = runtime.require()
    _check_sizes(request.signature)
    compared = _compared(request.model, request.quantizers)
    if not compared:
        raise _nothing(request.model, "none quantizes its input to ±1")
    plain = convert.float_file(request.model, request.signature)
    for quantizer in request.quantizers:
        quantizer.calls = 0  # Their numbers are in the names.
    with changed("compares", dict.fromkeys(compared, True)):
        content = convert.by_converter(
            request.model,
            request.signature,
            lambda function, holder: _converted(package, function, holder),
        )
    file = TFLiteFile(folding.without_row_scales(content, request.codes))
    bits = kernels.reports(file, request.codes)
    _check_groups(file, request.model)
    weights = [
        kernels.with_layer(file, weight, request.model)
        for weight in building.named(request, file)
    ]
    reasons = {id(x.tensor): kernels.why_float(file, x) for x in weights}
    if not bits:
        words = [f"'{x.kernel or x.name}': {reasons[id(x.tensor)]}" for x in weights]
        raise _nothing(request.model, "; ".join(words[:3]))
    rest = choice.store_float_weights(file, weights, FORMS)
    rest = [
        kernels.with_reason(report, reasons[id(weight.tensor)])
        for report, weight in zip(rest, weights, strict=True)
    ]
    activations = [
        *signs.stored(file, compared),
        *activation_forms.float_forms(
            file, [x for x in request.quantizers if x not in compared]
        ),
    ]
    return Candidate(
        converted=convert.Converted(file.pack(), request.signature),
        kernels=missing_kernels.with_missing([*bits, *rest], request),
        float_bytes=len(plain.content),
        runtimes=(runtime.RUNTIME,),
        activations=tuple(activations),
        load=runtime.LarqRunner,
    )


def _check_sizes(signature: InputSignature) -> None:
    for entry in signature.inputs:
        if None in entry.shape:
            raise ExportError(
                f"Input '{entry.name}' has open sizes, {entry.shape}, which Larq "
                "Compute Engine's kernels cannot have. Give the model a `keras.Input` "
                "of fixed size, or pass `representative_data` of the size to take."
            )


def _check_groups(file: TFLiteFile, model: Model) -> None:
    if kernels.has_groups(file):
        names = [
            layer.name
            for layer in internals.flatten_layers(model)
            if getattr(layer, "groups", 1) > 1
        ]
        raise ExportError(
            "Larq Compute Engine's standard kernels do not load binary convolutions "
            f"with groups. Received: layer {checks.listed(names)} of model "
            f"'{model.name}', "
            'behind a layer of signs. Give it an `input_quantizer="binary"` in place '
            "of that layer: it then stays float here."
        )


def _nothing(model: Model, reason: str) -> ExportError:
    return ExportError(
        f"Model '{model.name}' has no convolution to compute on bits: no ungrouped "
        "Conv2D with binary weights reads binary activations directly "
        f"({reason}). Quantize with "
        '`quantize_model(model, "binary", input_quantizer="binary")`, or choose '
        "target 'small'."
    )


def _compared(
    model: Model, quantizers: Sequence[ActivationLevels]
) -> list[ActivationLevels]:
    """Returns the quantizers that become signs by comparison."""
    grouped = {
        id(layer.__dict__.get("_activation_levels"))
        for layer in internals.flatten_layers(model)
        if getattr(layer, "groups", 1) > 1
    }
    return [x for x in quantizers if x.is_sign and id(x) not in grouped]


def _converted(package: Any, function: Any, holder: Any) -> bytes:
    holder.serve = function  # Else the variables would not be found.
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(holder, folder, signatures=function)
        return bytes(package.convert_saved_model(folder))
