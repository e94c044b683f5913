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

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from keras_sq.core.types import Model
from keras_sq.export.activations.levels import NODE_NAME, ActivationLevels
from keras_sq.export.conversion.inputs import Array, InputSignature
from keras_sq.export.lce import signs
from keras_sq.export.lce.runtime import LarqRunner
from keras_sq.export.micro.signature import signature_names
from keras_sq.export.targets import Made
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.verification import verify
from keras_sq.export.verification.differences import FLOAT_TOLERANCE, relative_error

MAX_BATCHES = 32
"""Batches of one example that are compared."""


def check_parts(
    made: Made,
    copy: Model,
    quantizers: Sequence[ActivationLevels],
    examples: Sequence[Array] | None,
) -> None:
    """Compares a file with the copy that was converted, from level to level.

    Args:
        made: The file.
        copy: The copy that `activations.deploy` changed.
        quantizers: What quantizes its activations.
        examples: Representative examples, one array an input.

    Raises:
        ExportError: If they differ.
    """
    signature = made.converted.signature
    content, places = _with_levels(made.converted.content)
    runner = verify.loaded(content, LarqRunner, False)
    batches = itertools.islice(verify.batches(signature, examples, 0), MAX_BATCHES)
    for number, (kind, batch) in enumerate(batches):
        if not number:
            inputs, _ = _keras(copy, signature, batch, quantizers, {})
            places = _with_merged(places, inputs, quantizers)
            shapes = {call: array.shape for call, array in inputs.items()}
        found = verify.file_outputs(runner, signature, batch)
        given = {
            call: _real(found[name], bits, shapes[call])
            for call, (name, bits) in places.items()
        }
        inputs, expected = _keras(copy, signature, batch, quantizers, given)
        for quantizer in quantizers:
            for (owner, call), levels in given.items():
                if owner == quantizer.number:
                    _check_levels(quantizer, inputs[owner, call], levels)
        for name, value in expected.items():
            difference = relative_error(found[name], value)
            if not difference <= FLOAT_TOLERANCE:
                raise verify.refusal(
                    f"on {kind} inputs, output '{name}' differs by {difference:.2g} "
                    f"of its largest value (allowed: {FLOAT_TOLERANCE:.0e}), "
                    "from the same quantized activations"
                )


def _with_levels(content: bytes) -> tuple[bytes, dict[signs.Call, tuple[str, bool]]]:
    """Returns a file whose quantized activations are outputs.

    And the names of these outputs, and whether they are bits.
    """
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    outputs = indices(graph.outputs)
    names = dict(zip(outputs, signature_names(file)[1], strict=True))
    found = {}
    for call, place in signs.find(file).items():
        if place.tensor not in names:
            names[place.tensor] = f"{NODE_NAME}{place.tensor}"
            graph.tensors[place.tensor].name = names[place.tensor].encode()
            outputs.append(place.tensor)
        found[call] = names[place.tensor], place.bits
    graph.outputs = np.asarray(outputs, np.int32)
    return file.pack(), found


def _keras(
    copy: Model,
    signature: InputSignature,
    batch: Sequence[Array],
    quantizers: Sequence[ActivationLevels],
    given: Mapping[signs.Call, Array],
) -> tuple[dict[signs.Call, Array], dict[str, Array]]:
    """Returns what the quantizers of the copy get, and its outputs.

    Args:
        copy: The copy.
        signature: What it takes.
        batch: The inputs.
        quantizers: Its quantizers.
        given: What they give, as far as that is not computed.
    """
    for quantizer in quantizers:
        own = {k: x for (number, k), x in given.items() if number == quantizer.number}
        quantizer.give(own)
    try:
        outputs = verify.keras_outputs(copy, signature, batch)
        inputs = {
            (quantizer.number, call): array
            for quantizer in quantizers
            for call, array in enumerate(quantizer.seen)
        }
    finally:
        for quantizer in quantizers:
            quantizer.give(None)
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
    found = {call: place for call, place in places.items() if call in inputs}
    for call, array in inputs.items():
        if call in found:
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
            raise verify.refusal(
                f"the quantized activations of '{quantizer.path}' are not in it"
            )
        found[call] = same[0]
    return found


def _real(values: Array, bits: bool, shape: tuple[int, ...]) -> Array:
    levels = signs.unpacked(values, shape[-1]) if bits else values
    if levels.shape != shape:
        raise verify.refusal(
            f"quantized activations have the shape {levels.shape}, not {shape}"
        )
    return levels


def _check_levels(quantizer: ActivationLevels, x: Array, levels: Array) -> None:
    blur = FLOAT_TOLERANCE * float(np.max(np.abs(x), initial=0.0))
    lower = quantizer.expected((x - blur).astype(np.float32))
    upper = quantizer.expected((x + blur).astype(np.float32))
    if not np.all((lower <= levels) & (levels <= upper)):
        raise verify.refusal(
            f"the quantized activations of '{quantizer.path}' are not on the levels of "
            f"rule '{quantizer.rule.name}'"
        )
