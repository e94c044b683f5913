"""The check of files with quantized activations, part by part.

Where activations are rounded to levels, no bound holds for the difference of a whole
network from Keras: if a sum lies on a threshold, its last bit, which depends on the
order of adding, decides on a level, and in binary networks one level on many more.
So each part is checked by itself, and strictly:

1. the copy that is converted against the model, in Keras, where sums are the same;
2. everything but the quantizers: a float file and the copy, both with activations
   passed as they are, must agree as files without quantized activations do; with an
   int8 file, the copy is given the levels of the file at every quantizer, and what
   lies between one and the next must agree in the mean;
3. every quantizer, on the activations that the file itself gives it: its levels
   must be those of the rule.

How the file as a whole compares is measured by `comparison.compare`, and reported.
Files for Larq Compute Engine, which this interpreter cannot run: `lce/checks.py`.
"""

import dataclasses

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.activations import forms as activation_forms
from keras_sq.export.activations.levels import (
    FLOAT_LEVELS,
    GRID,
    ActivationLevels,
    StoredActivations,
    changed,
)
from keras_sq.export.errors import ExportError
from keras_sq.export.examples import Batch
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.tflite.runtime import AllTensors, Runner, real_values
from keras_sq.export.verification import comparison, running
from keras_sq.export.verification.differences import SILENT_STEPS, Errors, agreeing

MAX_LEVEL_ERROR = 0.7
"""Root mean square of the difference of levels, over that of the levels.

Levels that have nothing to do with each other differ by 1 and more.
"""

SPARSE_LEVELS = 0.1
"""Least root mean square of levels to compare with, as a fraction of the largest.

Where a layer is all but silent, each of the few that differ would weigh as much as a
network.
"""

LEAST_AGREEING = 0.5
"""Fraction of the examples on which the copy must agree with the model."""


def check_copy(candidate: Candidate, request: Request) -> None:
    """Compares the copy that was converted with the user's model, in Keras.

    Not where the user's computes in another precision than the copy.

    Raises:
        ExportError: If they differ on more than single examples.
    """
    model, copy = request.reference, request.model
    if model is copy:
        return
    signature = candidate.converted.signature
    agree: list[bool] = []
    for batch in request.examples.quick(signature):
        expected = running.keras_outputs(model, signature, batch)
        actual = running.keras_outputs(copy, signature, batch)
        agree += agreeing(actual, expected, batch.size)
    if np.mean(agree) < LEAST_AGREEING:
        raise ExportError(
            f"The quantized activations of model '{model.name}' could not be taken "
            "over: on most inputs, the copy that is converted computes something "
            "else. A layer that quantizes its input must call Keras's own `call`. "
            "No file was written."
        )


def check(candidate: Candidate, request: Request) -> None:
    """Checks the quantizers of a file, and what lies between them.

    Raises:
        ExportError: If a part differs.
    """
    check_levels(candidate, request)
    if request.integer:
        check_integers(candidate, request)
    else:
        check_parts(candidate, request)


def check_parts(candidate: Candidate, request: Request) -> None:
    """Compares a float file with the copy, both without quantized activations.

    Raises:
        ExportError: If they differ.
    """
    converted = candidate.converted
    content = activation_forms.without_quantizers(converted.content, request.quantizers)
    with changed("active", dict.fromkeys(request.quantizers, False)):
        converted = dataclasses.replace(converted, content=content)
        comparer = comparison.Comparer(converted, request.model, request.examples)
        comparer.compare_float()


def check_integers(candidate: Candidate, request: Request) -> None:
    """Compares an int8 file with the copy, from one quantizer to the next.

    A layer that is called several times quantizes for itself in the copy, too: which
    call is which in the file is not known.

    Raises:
        ExportError: If they differ in the mean.
    """
    file = TFLiteFile(candidate.unpacked)
    signature = candidate.converted.signature
    tensors = AllTensors(candidate.unpacked)
    runner = running.loaded(candidate.unpacked, Runner, False)
    batches = list(request.examples.quick(signature))
    single = _called_once(candidate, request, batches[0])
    parts: dict[str, Errors] = {}
    outputs: dict[str, Errors] = {}
    for batch in batches:
        inputs = running.file_inputs(runner, batch)
        arrays = tensors.values(inputs, [entry.output for entry, _ in single])
        levels = {}
        for (entry, quantizer), array in zip(single, arrays, strict=True):
            tensor = file.subgraphs[0].tensors[entry.output]
            levels[quantizer] = real_values(tensor, array)[0].astype(np.float32)
        with changed("imposed", {x: {0: array} for x, array in levels.items()}):
            expected = running.keras_outputs(request.model, signature, batch)
        for quantizer, array in levels.items():
            least = SPARSE_LEVELS * float(np.max(np.abs(quantizer.levels)))
            (seen,) = quantizer.seen  # It is called once.
            part = parts.setdefault(quantizer.path, Errors(least))
            part.add(0.0, array, quantizer.expected(seen))
        actual = runner(inputs)
        for name, value in expected.items():
            again = runner.dequantized(name, runner.quantized(name, value))
            real = runner.dequantized(name, actual[name])
            step = SILENT_STEPS * runner.step(name)
            outputs.setdefault(name, Errors(step)).add(0.0, real, again)
    for what, errors, limit in (
        ("the levels of", parts, MAX_LEVEL_ERROR),
        ("output", outputs, comparison.MAX_MEAN_ERROR),
    ):
        for name, error in errors.items():
            if not error.mean <= limit:
                raise running.refusal(
                    f"on representative inputs, {what} '{name}' differ by "
                    f"{error.mean:.2g} of their size in the mean, from the same levels "
                    "before. Is `representative_data` prepared like the training data?"
                )


def _called_once(
    candidate: Candidate, request: Request, batch: Batch
) -> list[tuple[StoredActivations, ActivationLevels]]:
    """Returns the quantizers that the model calls once and the file has once."""
    for quantizer in request.quantizers:
        quantizer.calls = 0
    running.keras_outputs(request.model, candidate.converted.signature, batch)
    stored = candidate.activations
    return [
        (entry, quantizer)
        for entry in stored
        for quantizer in entry.quantizers
        if quantizer.calls == 1
        and entry.subgraph == 0
        and sum(quantizer in other.quantizers for other in stored) == 1
    ]


def check_levels(candidate: Candidate, request: Request) -> None:
    """Compares every quantizer of a file with its rule.

    Of a file that must equal another one, that one is looked at.

    Raises:
        ExportError: If one is missing, or gives other levels.
    """
    stored = candidate.activations
    file = TFLiteFile(candidate.unpacked)
    places = activation_forms.find(file, request.quantizers)
    present = {id(x) for place in places for x in place.quantizers}
    present |= {
        id(x)
        for entry in stored
        if entry.stored_as != FLOAT_LEVELS
        for x in entry.quantizers
    }
    for quantizer in request.quantizers:
        if quantizer.calls and id(quantizer) not in present:
            raise running.refusal(f"the thresholds of '{quantizer.path}' are not in it")
    for place in places:
        levels = file.array(place.subgraph.tensors[indices(place.gather.inputs)[0]])
        if levels is not None and levels.dtype == np.int8:
            continue  # Of an int8 file: not exact, and in no loop.
        if levels is None or not np.array_equal(levels, place.quantizers[0].levels):
            raise wrong_levels(place.quantizers[0])
    # A loop's tensors are those of its last step, and gone; see above for them.
    outside = [entry for entry in stored if entry.subgraph == 0]
    if not outside:
        return
    tensors = AllTensors(candidate.unpacked)
    runner = running.loaded(candidate.unpacked, Runner, False)
    wanted = [index for entry in outside for index in (entry.input, entry.output)]
    for batch in request.examples.quick(candidate.converted.signature):
        arrays = tensors.values(running.file_inputs(runner, batch), wanted)
        for entry, x, y in zip(outside, arrays[::2], arrays[1::2], strict=True):
            _check_place(file, entry, x, y)


def _check_place(
    file: TFLiteFile, entry: StoredActivations, x: Array, y: Array
) -> None:
    quantizer = entry.quantizers[0]
    if entry.stored_as == FLOAT_LEVELS and x.dtype == y.dtype == np.float32:
        known = ~np.isnan(x)
        if not np.array_equal(y[known], quantizer.expected(x)[known]):
            raise wrong_levels(quantizer)
        return
    tensors = file.subgraphs[entry.subgraph].tensors
    x, fine = real_values(tensors[entry.input], x)
    y, step = real_values(tensors[entry.output], y)
    # What is close to a half may be rounded to either side: products of int8 numbers
    # are rounded twice, first to a part of a step.
    blur = 1e-6 * np.abs(x) + (fine / 100 if entry.stored_as == GRID else 0.0)
    lower = quantizer.expected((x - blur).astype(np.float32))
    upper = quantizer.expected((x + blur).astype(np.float32))
    bound = 0.51 * step + 1e-6 * float(np.max(np.abs(quantizer.levels)))
    if not np.all((y >= lower - bound) & (y <= upper + bound)):
        raise wrong_levels(quantizer)


def wrong_levels(quantizer: ActivationLevels) -> ExportError:
    """Returns the error for activations that are not on a rule's levels."""
    return running.refusal(
        f"the quantized activations of '{quantizer.path}' are not on the levels of "
        f"rule '{quantizer.rule.name}'"
    )
