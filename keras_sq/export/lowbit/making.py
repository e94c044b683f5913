"""Makes the file of target `"lowbit"`: a form for each weight tensor.

Three forms compete: **direct**, 2- or 4-bit weights that the runtime multiplies as they
are; **int8**, a byte a weight; and **packed**, the smallest constant, which the runtime
unfolds and computes with in a slower way. `choosing.py` decides.
"""

import dataclasses
from collections.abc import Callable, Sequence

from keras_sq.export import building, runtimes
from keras_sq.export.lowbit import choosing, reporting
from keras_sq.export.lowbit.choosing import Option, Shapes
from keras_sq.export.lowbit.rewriting import Direct, rewritten
from keras_sq.export.missing_kernels import with_missing
from keras_sq.export.report import KernelReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite import choice
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.runtime import AllTensors
from keras_sq.export.tflite.weights import WeightTensor


def make(request: Request) -> Candidate:
    """Makes a file whose weights are multiplied as they are, where that pays."""
    return _integers(request) if request.integer else _floats(request)


def _floats(request: Request) -> Candidate:
    converted, content, weights = building.shared_floats(request)
    chosen = _chosen(request, content, weights, choosing.float_option)
    result, kernels = _stored(content, chosen)
    entries = _direct(chosen)
    return dataclasses.replace(
        building.float_candidate(request, converted, TFLiteFile(result), kernels),
        plain=rewritten(content, entries, "FLOAT32") if entries else None,
        twin=_stored(content, chosen, "INT8")[0] if entries else None,
    )


def _integers(request: Request) -> Candidate:
    candidate, content, weights, floats = building.shared_integers(request)
    chosen = _chosen(request, content, weights, choosing.integer_option)
    result, kernels = _stored(content, chosen)
    entries = _direct(chosen)
    rows = [*kernels, *floats]
    return dataclasses.replace(
        candidate,
        converted=dataclasses.replace(candidate.converted, content=result),
        kernels=with_missing(rows, request),
        runtimes=runtimes.needed(row.stored_as for row in rows),
        equals=rewritten(content, entries, "INT8"),
        twin=_stored(content, chosen, "INT8")[0] if entries else None,
    )


def _chosen(
    request: Request,
    content: bytes,
    weights: Sequence[WeightTensor],
    option_of: Callable[[TFLiteFile, WeightTensor, Shapes, bool], Option],
) -> list[Option]:
    """Returns the weight tensors of a file, each with its form.

    Args:
        request: What the file is made from.
        content: The bytes of the file.
        weights: Its weight tensors.
        option_of: `choosing.float_option` or `choosing.integer_option`.
    """
    file, shapes = TFLiteFile(content), _shapes(content, request)
    rounds = bool(request.quantizers)
    options = [option_of(file, weight, shapes, rounds) for weight in weights]
    return choosing.choose(options, request.optimize)


def _direct(chosen: Sequence[Option]) -> list[Direct]:
    """Returns the tensors that are multiplied as they are."""
    return [option.direct for option in chosen if option.direct is not None]


def _shapes(content: bytes, request: Request) -> dict[int, tuple[int, ...]]:
    """Returns place -> shape of the tensors of a main graph, for one example."""
    batch = next(request.examples.comparison(request.signature))
    sizes = {name: array.shape for name, array in batch.by_name.items()}
    return AllTensors(content).shapes(sizes)


def _stored(
    content: bytes, chosen: Sequence[Option], type_name: str | None = None
) -> tuple[bytes, list[KernelReport]]:
    """Puts weight tensors into their forms.

    Args:
        content: The bytes of a file.
        chosen: The tensors, each with its form.
        type_name: Type of all weights that are multiplied as they are, see `rewritten`.

    Returns:
        The bytes of the new file, and what became of each tensor.
    """
    result = rewritten(content, _direct(chosen), type_name)
    file = TFLiteFile(result)
    rest = [
        dataclasses.replace(x.plan, weight=x.plan.weight.of(file))
        for x in chosen
        if x.direct is None
    ]
    file, rows = choice.store_plans(result, rest)
    others = iter(rows)
    kernels = [
        reporting.direct_report(option)
        if option.direct is not None
        else reporting.with_share(next(others), option)
        for option in chosen
    ]
    return file.pack(), kernels
