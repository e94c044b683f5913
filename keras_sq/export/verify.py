"""The check that every exported file passes: it is run, and compared."""

import dataclasses
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_sq.export.convert import Converted, output_names
from keras_sq.export.errors import ExportError
from keras_sq.export.inputs import Array, InputSignature
from keras_sq.export.runtime import Runner
from keras_sq.types import Model

RANDOM_BATCHES = (1, 3)
"""Sizes of the random batches, where the file takes any."""

MAX_EXAMPLES = 256
"""Representative examples to compare on; evenly spaced ones of more."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a file that passed compares with the model.

    Attributes:
        largest_error: The largest difference of an output value, relative to
            the largest absolute value of that output in its batch.
        random_examples: How many random examples were compared.
        representative_examples: How many of the user's were.
        runtime: Name and version of the interpreter.
        outputs: Name, shape and dtype of the file's outputs.
    """

    largest_error: float
    random_examples: int
    representative_examples: int
    runtime: str
    outputs: tuple[tuple[str, tuple[int | None, ...], str], ...]


def compare(
    converted: Converted,
    reference: Model,
    examples: Sequence[Array] | None,
    tolerance: float,
    seed: int = 0,
) -> Comparison:
    """Runs a file on random and representative inputs; compares with Keras.

    Args:
        converted: The file.
        reference: The model that it should compute.
        examples: Representative examples, one array an input.
        tolerance: Largest relative difference allowed, see `Comparison`.
        seed: Of the random inputs.

    Raises:
        ExportError: If the file cannot be run or computes something else.
    """
    try:
        runner = Runner(converted.content)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The file that was made cannot be loaded ({_first_line(error)}). No "
            "file was written."
        ) from error
    worst = 0.0
    counts = {"random": 0, "representative": 0}
    for kind, batch in _batches(converted.signature, examples, seed):
        expected = _keras_outputs(reference, converted.signature, batch)
        actual = _file_outputs(runner, converted.signature, batch)
        for name, value in expected.items():
            if name not in actual:
                raise _refusal(f"it has no output '{name}'")
            difference = relative_error(actual[name], value)
            if not difference <= tolerance:
                raise _refusal(
                    f"on {kind} inputs, output '{name}' differs by "
                    f"{difference:.2g} of its largest value (allowed: {tolerance:.0e})"
                )
            worst = max(worst, difference)
        counts[kind] += len(batch[0])
    return Comparison(
        worst,
        counts["random"],
        counts["representative"],
        runner.runtime,
        tuple((name, *runner.outputs[name]) for name in sorted(runner.outputs)),
    )


def relative_error(actual: Array, expected: Array) -> float:
    """Returns the largest difference over the largest absolute value.

    Infinite if the shapes or the places of values that are not finite differ,
    or if integers or bools differ at all.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if actual.dtype.kind != "f" or expected.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    actual, expected = actual[finite].astype("f8"), expected[finite].astype("f8")
    if not np.all(np.isfinite(actual)):
        return float("inf")
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    largest = float(np.max(np.abs(expected), initial=0.0))
    return difference / largest if largest else (float("inf") if difference else 0.0)


def _batches(
    signature: InputSignature, examples: Sequence[Array] | None, seed: int
) -> Iterator[tuple[str, list[Array]]]:
    generator = np.random.default_rng(seed)
    fixed = signature.batch
    for batch in RANDOM_BATCHES if fixed is None else (fixed, fixed):
        yield "random", [x.random(batch, generator) for x in signature.inputs]
    if examples is None:
        return
    count = len(examples[0])
    chosen = np.linspace(0, count - 1, min(count, MAX_EXAMPLES)).astype(int)
    size = fixed or 32
    for start in range(0, len(chosen), size):
        indices = chosen[start : start + size]
        if fixed is not None:  # The last batch is filled up.
            indices = np.resize(indices, size)
        yield "representative", [array[indices] for array in examples]


def _keras_outputs(
    model: Model, signature: InputSignature, batch: Sequence[Array]
) -> dict[str, Array]:
    outputs = model(signature.pack(batch), training=False)
    flat = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]
    return dict(zip(output_names(outputs), flat, strict=True))


def _file_outputs(
    runner: Runner, signature: InputSignature, batch: Sequence[Array]
) -> dict[str, Array]:
    names = [entry.name for entry in signature.inputs]
    if set(runner.inputs) != set(names):
        raise _refusal(f"it takes {sorted(runner.inputs)}, not {sorted(names)}")
    try:
        return runner(dict(zip(names, batch, strict=True)))
    except (RuntimeError, ValueError) as error:
        raise _refusal(
            f"it cannot be run on a batch of {len(batch[0])} ({_first_line(error)})"
        ) from error


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"The file that was made does not compute what the model does: {reason}. No "
        "file was written."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
