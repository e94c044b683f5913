"""Makes the file of each target: converts, then puts the weights into their form."""

import dataclasses
from collections.abc import Sequence

from keras_sq.core.types import Model
from keras_sq.export import errors, runtimes
from keras_sq.export.activations import forms as activation_forms
from keras_sq.export.activations.levels import StoredActivations
from keras_sq.export.conversion import convert, integer
from keras_sq.export.missing_kernels import with_missing
from keras_sq.export.report import KernelReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.runtimes import EVERY_RUNTIME
from keras_sq.export.tflite import choice, folding, forms, plans
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, indices
from keras_sq.export.tflite.weights import (
    WeightTensor,
    has_few_levels,
    weight_tensors,
    with_kernels,
)

BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators whose third input is a bias."""


def float_weights(request: Request, *allowed: Sequence[str]) -> Candidate:
    """Makes a file of float operations, with the weights in the forms allowed.

    Args:
        request: What it is made from.
        *allowed: Sets of forms, see `choice.store_smallest`.
    """
    converted, content, weights = shared_floats(request, folded=any(allowed))
    file, kernels = choice.store_smallest(content, weights, allowed)
    return float_candidate(request, converted, file, kernels)


def float_candidate(
    request: Request,
    converted: convert.Converted,
    file: TFLiteFile,
    kernels: Sequence[KernelReport],
) -> Candidate:
    """Returns a file of float operations whose weights are in their forms.

    Args:
        request: What it is made from.
        converted: The float file that it was.
        file: The file; quantized activations are still put into their form.
        kernels: What became of each weight tensor.
    """
    activations = activation_forms.float_forms(file, request.quantizers)
    return Candidate(
        converted=dataclasses.replace(converted, content=file.pack()),
        kernels=with_missing(kernels, request),
        float_bytes=len(converted.content),
        runtimes=runtimes.needed(kernel.stored_as for kernel in kernels),
        activations=tuple(activations),
    )


def smallest(request: Request) -> Candidate:
    """Makes the smallest file of float operations.

    Each tensor takes its smallest form; but no file is larger than one of the types of
    codes alone, which needs no tables of digits, or than one for old runtimes.
    """
    codes = tuple(name for name in request.types if name in forms.CODE_TYPES)
    alone = [codes[place:] for place in range(len(codes))]
    old = (*forms.PACKED_FORMS, *codes[-1:])
    return float_weights(request, (*forms.PACKED_FORMS, *codes), old, *alone)


def integers(request: Request) -> Candidate:
    """Makes a file of int8 weights and activations."""
    candidate, floats = _with_float_codes(request, integer_file(request))
    file = TFLiteFile(candidate.converted.content)
    kernels = [
        choice.kept(weight, *plans.integer_levels(file, weight))
        for weight in _named_besides(request, file, floats)
    ]
    rows = with_missing([*kernels, *floats], request)
    return dataclasses.replace(candidate, kernels=rows)


def packed_integers(request: Request) -> Candidate:
    """Makes a file of packed weights and int8 activations."""
    candidate, content, weights, floats = shared_integers(request)
    file, kernels = choice.store_int8_weights(content, weights)
    _drop_bias_scales(file, weights, kernels)
    return dataclasses.replace(
        candidate,
        converted=dataclasses.replace(candidate.converted, content=file.pack()),
        kernels=with_missing([*kernels, *floats], request),
        equals=candidate.converted.content,
    )


def shared_integers(
    request: Request,
) -> tuple[Candidate, bytes, list[WeightTensor], list[KernelReport]]:
    """Makes an int8 file whose constants are shared, for other forms of its weights.

    Returns:
        The int8 file, the bytes of the shared one, its weight tensors, and rows of
        kernels that are float codes already.
    """
    candidate, floats = _with_float_codes(request, integer_file(request))
    file = TFLiteFile(candidate.converted.content)
    file.share_constants()
    content = file.pack()
    weights = _named_besides(request, TFLiteFile(content), floats)
    return candidate, content, weights, floats


def shared_floats(
    request: Request, folded: bool = True
) -> tuple[convert.Converted, bytes, list[WeightTensor]]:
    """Makes a float file whose constants are shared, for other forms of its weights.

    Args:
        request: What it is made from.
        folded: Whether multiplications are taken out of the rows of kernels.

    Returns:
        The float file, the bytes of the shared one, and its weight tensors.
    """
    converted = convert.float_file(request.model, request.signature)
    content = converted.content
    if folded:
        content = folding.without_row_scales(content, request.codes)
    file = TFLiteFile(content)
    file.share_constants()
    content = file.pack()
    return converted, content, named(request, TFLiteFile(content))


def _with_float_codes(
    request: Request, candidate: Candidate
) -> tuple[Candidate, list[KernelReport]]:
    """Puts kernels that stayed float in an int8 file into codes; returns their rows.

    Those of operators that TensorFlow's quantization leaves out, such as CONV_3D.
    """
    file = TFLiteFile(candidate.converted.content)
    weights = [
        weight
        for weight in named(request, file)
        if weight.kernel is not None and weight.type_name == "FLOAT32"
    ]
    kernels = choice.store_float_weights(file, weights, ("INT8",))
    if all(kernel.stored_as == "float32" for kernel in kernels):
        return candidate, []
    converted = dataclasses.replace(candidate.converted, content=file.pack())
    rows = [kernel for kernel in kernels if kernel.stored_as != "float32"]
    return dataclasses.replace(candidate, converted=converted), rows


def _named_besides(
    request: Request, file: TFLiteFile, rows: Sequence[KernelReport]
) -> list[WeightTensor]:
    """Returns the weight tensors, less those of kernels that are in rows already.

    Constants of their forms have no names.
    """
    paths = {row.path for row in rows}
    codes = {path: x for path, x in request.codes.items() if path not in paths}
    weights = named(dataclasses.replace(request, codes=codes), file)
    return [weight for weight in weights if weight.tensor.name or not rows]


def _drop_bias_scales(
    file: TFLiteFile, weights: Sequence[WeightTensor], kernels: Sequence[KernelReport]
) -> None:
    """Drops the scales of biases beside packed kernels: 4 bytes a filter.

    A runtime's own kernels take a bias's scales for granted where the filters have
    one each. XNNPACK looks at them, but does not take an unfolded kernel anyway.
    """
    uses_of = {id(subgraph): file.uses(subgraph) for subgraph in file.subgraphs}
    for weight, kernel in zip(weights, kernels, strict=True):
        subgraph = file.subgraphs[weight.graph]
        quantization = weight.tensor.quantization
        if kernel.stored_as != forms.PACKED or len(quantization.scale) < 2:
            continue
        tensors = subgraph.tensors
        uses = uses_of[id(subgraph)]
        for use in uses[weight.index]:
            places = indices(use.operator.inputs)
            if use.name not in BIASED or len(places) < 3 or places[2] < 0:
                continue
            if len(uses[places[2]]) == 1:
                tensors[places[2]].quantization = None


def integer_file(request: Request) -> Candidate:
    """Makes the int8 file of a model; its kernels are not reported yet."""
    plain = convert.float_file(request.model, request.signature, integers=True)
    _check_loops(TFLiteFile(plain.content), request.model)
    integer.check_ranges(plain, request.model, request.examples)
    integer.check_rows(plain, request.model, request.examples)
    content = folding.without_row_scales(plain.content, request.codes)
    unfolded = dataclasses.replace(plain, content=content)
    content = integer.int8_file(unfolded, request.examples, request.quantizers)
    activations: list[StoredActivations] = []
    if request.quantizers:
        content, activations = activation_forms.integer_forms(
            content, request.quantizers
        )
    left, notes = float_operators(TFLiteFile(content)), plain.notes
    if left:
        notes += (f"computed in float, for want of int8 forms: {', '.join(left)}",)
    return Candidate(
        converted=convert.Converted(content, plain.signature, notes),
        kernels=(),
        float_bytes=len(plain.content),
        runtimes=EVERY_RUNTIME,
        activations=tuple(activations),
    )


def float_operators(file: TFLiteFile) -> list[str]:
    """Returns the names of operators that compute floats in an int8 file."""
    names = set()
    for subgraph in file.subgraphs:
        for operator in subgraph.operators:
            types = [subgraph.tensors[i].type for i in indices(operator.outputs)]
            if TYPES["FLOAT32"] in types:
                names.add(file.operator_name(operator))
    return sorted(names - {"DEQUANTIZE"})


def _check_loops(file: TFLiteFile, model: Model) -> None:
    """Refuses loops over time, at which TensorFlow's quantization crashes."""
    if len(file.subgraphs) > 1:
        names = errors.looping_layers(model)
        of = f" (of layer {names})" if names else ""
        raise errors.ExportError(
            f"Model '{model.name}' has loops over time{of}, which have no int8 form. "
            "Build the layer with `unroll=True`, or choose target 'small' without "
            "`representative_data`, or 'fast'."
        )


def named(request: Request, file: TFLiteFile) -> list[WeightTensor]:
    """Returns the weight tensors of a file, with the names of kernels or layers."""
    weights = [with_layer_name(x, request.model) for x in matched(request, file)]
    present = {weight.kernel for weight in weights}
    missing = [path for path in request.codes if path not in present]
    return [_as_part(file, weight, missing) for weight in weights]


def _as_part(
    file: TFLiteFile, weight: WeightTensor, missing: Sequence[str]
) -> WeightTensor:
    """Returns a tensor with a kernel of its layer, if it may be a part of it."""
    paths = [path for path in missing if path.rpartition("/")[0] == weight.name]
    if weight.kernel is not None or not paths or not has_few_levels(file, weight):
        return weight
    return dataclasses.replace(weight, kernel=paths[0])


def matched(request: Request, file: TFLiteFile) -> list[WeightTensor]:
    """Returns the weight tensors of a file, with the kernels that they are."""
    return with_kernels(file, weight_tensors(file), request.codes)


def with_layer_name(weight: WeightTensor, model: Model) -> WeightTensor:
    """Returns a weight tensor named after its layer, if it is no kernel."""
    if weight.kernel is not None:
        return weight
    layer = errors.layer_of(weight.name, model)
    return dataclasses.replace(weight, name=layer or weight.name)
