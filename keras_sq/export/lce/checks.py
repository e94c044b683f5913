"""The check of files for Larq Compute Engine, part by part.

No bound holds for the whole of a network with binary activations (see
`verification/activations.py`, whose check of the copy in Keras comes before this
one). And its interpreter shows no tensors but the outputs. So the signs, and what
other levels there are, are made outputs of a second file, and the copy in Keras is
given them in place of its own. Then it computes each part of the network from the
same numbers, and

1. every level of the file must be the one that the rule has for what Keras computed
   there; where that is closer to a threshold than the tolerance, that beside it may be;
2. the outputs must agree as those of files without quantized activations.

Sums of ±1 are exact integers in the file, but not what is made of them: the factor and
the bias of a filter, which also undo the counting of bits and the padding. A sum that
lies on a threshold exactly, as every few of them do without a batch normalization that
was trained, may come out on either side (in one file, 1 to 3 % of those in padded
convolutions did); in Keras likewise, if the weights are ±scale.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.activations.levels import NODE_NAME, ActivationLevels, changed
from keras_sq.export.conversion.inputs import InputSignature
from keras_sq.export.examples import Batch
from keras_sq.export.lce import signs
from keras_sq.export.lce.runtime import LarqRunner
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.tflite.runtime import signature_names
from keras_sq.export.verification import running
from keras_sq.export.verification.activations import wrong_levels
from keras_sq.export.verification.differences import FLOAT_TOLERANCE, relative_error


def check_parts(candidate: Candidate, request: Request) -> None:
    """Compares a file with the copy that was converted, from level to level.

    Raises:
        ExportError: If they differ.
    """
    quantizers = request.quantizers
    signature = candidate.converted.signature
    content, places = _with_levels(candidate.converted.content)
    runner = running.loaded(content, LarqRunner, False)
    for number, batch in enumerate(request.examples.quick(signature)):
        if not number:
            inputs, _ = _keras(request, signature, batch, {})
            places = _with_merged(places, inputs, quantizers)
            shapes = {call: array.shape for call, array in inputs.items()}
        actual = running.file_outputs(runner, batch)
        levels = {
            call: _real(actual[name], bits, shapes[call])
            for call, (name, bits) in places.items()
        }
        inputs, expected = _keras(request, signature, batch, levels)
        for quantizer in quantizers:
            for (owner, call), values in levels.items():
                if owner == quantizer.number:
                    _check_levels(quantizer, inputs[owner, call], values)
        for name, value in expected.items():
            difference = relative_error(actual[name], value)
            if not difference <= FLOAT_TOLERANCE:
                raise running.refusal(
                    f"on {batch.kind} inputs, output '{name}' differs by "
                    f"{difference:.2g} of its largest value (allowed: "
                    f"{FLOAT_TOLERANCE:.0e}), from the same quantized activations"
                )


def _with_levels(content: bytes) -> tuple[bytes, dict[signs.Call, tuple[str, bool]]]:
    """Returns a file whose quantized activations are outputs.

    And the names of these outputs, and whether they are bits.
    """
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    outputs = indices(graph.outputs)
    names = dict(zip(outputs, signature_names(file)[1], strict=True))
    levels = {}
    for call, place in signs.find(file).items():
        if place.tensor not in names:
            names[place.tensor] = f"{NODE_NAME}{place.tensor}"
            graph.tensors[place.tensor].name = names[place.tensor].encode()
            outputs.append(place.tensor)
        levels[call] = names[place.tensor], place.bits
    graph.outputs = np.asarray(outputs, np.int32)
    return file.pack(), levels


def _keras(
    request: Request,
    signature: InputSignature,
    batch: Batch,
    levels: Mapping[signs.Call, Array],
) -> tuple[dict[signs.Call, Array], dict[str, Array]]:
    """Returns the inputs of the copy's quantizers, and its outputs.

    Args:
        request: What the file was made from.
        signature: Inputs of the file.
        batch: The inputs.
        levels: Outputs of the quantizers that are not to be computed.
    """
    imposed = {
        quantizer: {call: x for (n, call), x in levels.items() if n == quantizer.number}
        for quantizer in request.quantizers
    }
    with changed("imposed", imposed):
        outputs = running.keras_outputs(request.model, signature, batch)
    inputs = {
        (quantizer.number, call): array
        for quantizer in request.quantizers
        for call, array in enumerate(quantizer.seen)
    }
    return inputs, outputs


def _with_merged(
    places: Mapping[signs.Call, tuple[str, bool]],
    inputs: Mapping[signs.Call, Array],
    quantizers: Sequence[ActivationLevels],
) -> dict[signs.Call, tuple[str, bool]]:
    """Returns the places of all calls: those of the same rule and input share one.

    Raises:
        ExportError: If one is missing.
    """
    by_number = {quantizer.number: quantizer for quantizer in quantizers}
    merged = {call: place for call, place in places.items() if call in inputs}
    for call, array in inputs.items():
        if call in merged:
            continue
        quantizer = by_number[call[0]]
        same = [
            place
            for other, place in places.items()
            if other in inputs
            and np.array_equal(by_number[other[0]].thresholds, quantizer.thresholds)
            and np.array_equal(by_number[other[0]].levels, quantizer.levels)
            and np.array_equal(inputs[other], array)
        ]
        if not same:
            raise running.refusal(
                f"the quantized activations of '{quantizer.path}' are not in it"
            )
        merged[call] = same[0]
    return merged


def _real(values: Array, bits: bool, shape: tuple[int, ...]) -> Array:
    levels = signs.unpacked(values, shape[-1]) if bits else values
    if levels.shape != shape:
        raise running.refusal(
            f"quantized activations have the shape {levels.shape}, not {shape}"
        )
    return levels


def _check_levels(quantizer: ActivationLevels, x: Array, levels: Array) -> None:
    blur = FLOAT_TOLERANCE * float(np.max(np.abs(x), initial=0.0))
    lower = quantizer.expected((x - blur).astype(np.float32))
    upper = quantizer.expected((x + blur).astype(np.float32))
    if not np.all((lower <= levels) & (levels <= upper)):
        raise wrong_levels(quantizer)
