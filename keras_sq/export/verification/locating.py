"""Where in a network something goes wrong, for the messages of a refusal."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_sq.core.types import Model
from keras_sq.export.conversion import convert
from keras_sq.export.conversion.convert import Converted
from keras_sq.export.errors import layer_of
from keras_sq.export.examples import Examples
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite.flatbuffer import TFLiteFile, float_outputs, indices
from keras_sq.export.tflite.runtime import AllTensors, Runner, real_values
from keras_sq.export.verification import running
from keras_sq.export.verification.differences import Errors


@dataclasses.dataclass
class _Tensor:
    """A tensor of an int8 file beside that of the float file.

    Attributes:
        errors: Its difference.
        step: Of int8; 0 of others.
        below: How many values are less than half a step, but not 0.
        count: How many are not 0.
    """

    errors: Errors
    step: float = 0.0
    below: int = 0
    count: int = 0


def first_nan(converted: Converted, model: Model, examples: Examples) -> str | None:
    """Returns the layer whose values are NaN first in a float file, if it is known.

    Args:
        converted: The file.
        model: Model of the file.
        examples: Examples on which there is NaN.
    """
    file = TFLiteFile(converted.content)
    graph = file.subgraphs[0]
    order = float_outputs(graph)
    batch = next(examples.quick(converted.signature))
    try:
        values = AllTensors(converted.content).values(batch.by_name, order)
    except (RuntimeError, ValueError):  # Of a runtime of its own, with its operators.
        return None
    for index, array in zip(order, values, strict=True):
        if np.any(np.isnan(array)):
            return layer_of(graph.tensors[index].name.decode(), model)
    return None


def explanation(candidate: Candidate, request: Request) -> Callable[[float], str]:
    """Returns `where_it_differs` for a file, which takes the mean error."""
    return lambda error: where_it_differs(candidate, request, error)


def where_it_differs(candidate: Candidate, request: Request, error: float) -> str:
    """Returns a sentence on where an int8 file starts to differ from the float file.

    Follows the difference from the outputs back to the operation that has none in its
    inputs yet.

    Args:
        candidate: The int8 file.
        request: What the file was made from.
        error: Mean error of the output.

    Returns:
        The sentence, or an empty string if nothing is found.
    """
    file = TFLiteFile(candidate.unpacked)
    tensors = _compared(file, candidate, request)
    graph = file.subgraphs[0]
    limit = min(error, 1.0) / 2
    producers = {
        index: operator
        for operator in graph.operators
        for index in indices(operator.outputs)
    }

    def is_bad(index: int) -> bool:
        # What has no counterpart is only another scale of what comes before.
        return index not in tensors or tensors[index].errors.mean > limit

    known = [index for index in indices(graph.outputs) if index in tensors]
    if not known:
        return ""
    current = max(known, key=lambda index: tensors[index].errors.mean)
    if not is_bad(current):  # It is in other examples.
        return ""
    while True:
        before = [
            index
            for index in indices(producers[current].inputs)
            if index in producers and is_bad(index)
        ]
        if not before:
            break
        current = max(
            before,
            key=lambda index: tensors[index].errors.mean if index in tensors else 0.0,
        )
    operator = file.operator_name(producers[current])
    layer = layer_of(graph.tensors[current].name.decode(), request.model)
    if layer:
        operator += f" of layer '{layer}'"
    elif current in indices(graph.outputs):
        operator += ", which gives the output"
    return _sentence(operator, tensors.get(current))


def _sentence(operator: str, tensor: _Tensor | None) -> str:
    text = f"The difference begins at operation {operator}"
    if tensor is None:
        return f"{text}."
    text += f", where it is {tensor.errors.mean:.2g} of the size in the mean"
    if tensor.step and tensor.below > tensor.count / 2:
        return (
            f"{text}: {100 * tensor.below / tensor.count:.0f} % of the values are "
            f"closer to 0 than half a step of int8 ({tensor.step:.3g}). Compute that "
            "part from values of similar size, or choose a target with float32 "
            "activations."
        )
    return f"{text}. Does `representative_data` hold outliers, which widen its range?"


def _compared(
    file: TFLiteFile, candidate: Candidate, request: Request
) -> dict[int, _Tensor]:
    """Returns the tensors of an int8 file that the float file has by the same name."""
    signature = candidate.converted.signature
    plain = convert.float_file(request.model, signature).content
    graph = file.subgraphs[0]
    by_name = {
        tensor.name: index
        for index, tensor in enumerate(TFLiteFile(plain).subgraphs[0].tensors)
    }
    pairs = [
        (index, by_name[graph.tensors[index].name])
        for operator in graph.operators
        for index in indices(operator.outputs)
        if graph.tensors[index].name in by_name
    ]
    runner = running.loaded(candidate.unpacked, Runner, False)
    ours, theirs = AllTensors(candidate.unpacked), AllTensors(plain)
    tensors: dict[int, _Tensor] = {}
    for batch in request.examples.quick(signature):
        inputs = running.file_inputs(runner, batch)
        actual = ours.values(inputs, [index for index, _ in pairs])
        expected = theirs.values(batch.by_name, [index for _, index in pairs])
        for (index, _), x, y in zip(pairs, actual, expected, strict=True):
            if y.dtype != np.float32 or x.shape != y.shape:
                continue
            real, step = real_values(graph.tensors[index], x)
            tensor = tensors.setdefault(index, _Tensor(Errors(step), step))
            tensor.errors.add(0.0, real, y)
            tensor.count += int(np.count_nonzero(y))
            tensor.below += int(np.count_nonzero((np.abs(y) < step / 2) & (y != 0)))
    return tensors
