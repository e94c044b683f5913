"""The check that every exported file passes: it is run, and compared."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_sq.core import checks
from keras_sq.core.types import Model
from keras_sq.export.conversion.convert import Converted, output_names
from keras_sq.export.conversion.inputs import Array, InputSignature
from keras_sq.export.errors import ExportError
from keras_sq.export.report import OutputError, TensorReport
from keras_sq.export.tflite.runtime import FileRunner, Runner
from keras_sq.export.verification.differences import (
    FLOAT_TOLERANCE,
    SILENT_STEPS,
    EntryErrors,
    Errors,
    agreeing,
    relative_error,
)

RANDOM_BATCHES = (1, 3)
"""Sizes of the random batches, where the file takes any."""

MAX_EXAMPLES = 256
"""Representative examples to compare on; evenly spaced ones of more."""


MAX_MEAN_ERROR = 0.5
"""Mean difference of an int8 file from Keras beyond which it is refused.

Or of a float file with quantized activations. Rounding stays far below. Of Keras's
outputs rounded as the file rounds its own: the int8 softmax has steps of 1/256, and a
thousand equal classes are 0 in it.
"""

LEAST_AGREEING = 0.5
"""Fraction of the examples that agree, where an output is silent and has no size."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a file that passed compares with the model.

    Attributes:
        largest_error: The largest difference of an output value, relative to
            the largest absolute value of that output in its batch.
        mean_error: Square root of the mean square of the difference, over that
            of the output; of the output where it is largest.
        agreeing: The fraction of the examples on which all outputs agree within
            the tolerance; 1 without one.
        bit_exact: Whether the file agreed with another bit for bit; `None` if
            there was none to agree with.
        random_examples: How many random examples were compared.
        representative_examples: How many of the user's were.
        runtime: Name and version of the interpreter.
        inputs: What the file takes.
        outputs: What it gives.
        output_errors: The errors of each output of floats, entry by entry.
        equal_integers: Name of an output of integers or bools -> the fraction of them
            that are Keras's; of a file of int8 activations.
    """

    largest_error: float
    mean_error: float
    agreeing: float
    bit_exact: bool | None
    random_examples: int
    representative_examples: int
    runtime: str
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    output_errors: tuple[OutputError, ...]
    equal_integers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def compare(
    converted: Converted,
    reference: Model,
    examples: Sequence[Array] | None,
    *,
    tolerance: float | None = FLOAT_TOLERANCE,
    jumps: bool = False,
    equals: bytes | None = None,
    load: Callable[[bytes, bool], FileRunner] = Runner,
    explain: Callable[[float], str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Runs a file on random and representative inputs; compares with Keras.

    A float file must agree with Keras on both. A file of int8 activations is
    compared with Keras on representative inputs, which are what its ranges are
    for, and must agree in the mean.

    Args:
        converted: The file.
        reference: The model that it should compute.
        examples: Representative examples, one array an input.
        tolerance: Largest relative difference from Keras allowed of a float
            file; `None` for one of int8 activations.
        jumps: Whether activations are rounded to levels. Single examples may then
            differ by more: `activations.py` is strict in place of this, and
            a float file must only agree in the mean.
        equals: A file with which all outputs must agree bit for bit.
        load: `load(content, delegates)` makes the interpreter.
        explain: Returns a sentence on where an error of an int8 file comes from.
        seed: Of the random inputs.

    Raises:
        ExportError: If the file cannot be run or computes something else, or an
            output of the model is never a number.
    """
    runner = loaded(converted.content, load, True)
    pair = None
    if equals is not None:
        # The kernels of XNNPACK round int8 in another way, and do not take all
        # of an unfolded file.
        pair = [loaded(entry, load, False) for entry in (converted.content, equals)]
    errors: dict[str, Errors] = {}
    rounded: dict[str, Errors] = {}
    entries: dict[str, dict[str, EntryErrors]] = {}
    numbers: dict[str, bool] = {}
    equal: dict[str, list[Array]] = {}
    counts = {"random": 0, "representative": 0}
    agree: list[bool] = []
    for kind, batch in batches(converted.signature, examples, seed):
        actual = file_outputs(runner, converted.signature, batch)
        if pair is not None:
            first, second = (
                file_outputs(entry, converted.signature, batch) for entry in pair
            )
            _check_equal(first, second, kind)
        if tolerance is not None or kind == "representative":
            expected = keras_outputs(reference, converted.signature, batch)
            if tolerance is not None:
                agree += agreeing(actual, expected, len(batch[0]), tolerance)
            for name, value in expected.items():
                if name not in actual:
                    raise refusal(f"it has no output '{name}'")
                if tolerance is None and not np.all(np.isfinite(value)):
                    raise ExportError(
                        f"Output '{name}' of model '{reference.name}' is NaN or "
                        "infinite on `representative_data`; int8 has no such values. "
                        "Is the data prepared like the training data?"
                    )
                found = runner.dequantized(name, actual[name])
                if tolerance is None and value.dtype.kind != "f":
                    # Which is the largest of values may hang on a step.
                    equal.setdefault(name, []).append(_equal(name, found, value))
                    continue
                difference = relative_error(found, value)
                if tolerance is not None and not jumps and not difference <= tolerance:
                    raise refusal(
                        f"on {kind} inputs, output '{name}' differs by "
                        f"{difference:.2g} of its largest value (allowed: "
                        f"{tolerance:.0e})"
                    )
                if value.dtype.kind == "f" or not jumps:
                    errors.setdefault(name, Errors()).add(difference, found, value)
                if value.dtype.kind == "f":
                    by_name = entries.setdefault(kind, {})
                    by_name.setdefault(name, EntryErrors()).add(found, value)
                    is_number = bool(np.any(~np.isnan(value)) or not value.size)
                    numbers[name] = numbers.get(name, False) or is_number
                if tolerance is None:
                    again = runner.dequantized(name, runner.quantized(name, value))
                    difference = relative_error(found, again)
                    step = SILENT_STEPS * runner.step(name)
                    entry = rounded.setdefault(name, Errors(step))
                    entry.add(difference, found, again)
        counts[kind] += len(batch[0])
    for name, is_number in numbers.items():
        if not is_number:
            raise never_a_number(name, reference, converted, examples)
    for name, entry in rounded.items():
        if not jumps and not entry.mean <= MAX_MEAN_ERROR:
            reason = explain(entry.mean) if explain is not None else ""
            raise refusal(
                f"on representative inputs, output '{name}' differs by "
                f"{entry.mean:.2g} of its size in the mean. "
                + (
                    reason
                    or "Is `representative_data` prepared like the training data?"
                )
            )
    agreed = float(np.mean(agree)) if agree else 1.0
    for name, entry in errors.items():
        if jumps and tolerance is not None and not entry.mean <= MAX_MEAN_ERROR:
            if entry.silent and agreed >= LEAST_AGREEING:
                continue
            raise refusal(
                f"output '{name}' differs by {entry.mean:.2g} of its size in the mean "
                "(though each part agrees: many sums lie on a threshold, where the "
                "last bit decides; train the network, or normalize before it rounds)"
            )
    shown = entries.get("representative", entries.get("random", {}))
    return Comparison(
        largest_error=max((entry.largest for entry in errors.values()), default=0.0),
        mean_error=max((entry.mean for entry in errors.values()), default=0.0),
        agreeing=agreed,
        bit_exact=None if equals is None else True,
        random_examples=counts["random"],
        representative_examples=counts["representative"],
        runtime=runner.runtime,
        inputs=tuple(
            _tensor(runner, entry.name, entry.shape, runner.inputs[entry.name])
            for entry in converted.signature.inputs
        ),
        outputs=tuple(
            _tensor(runner, name, *runner.outputs[name])
            for name in sorted(runner.outputs)
        ),
        output_errors=tuple(
            entry.result(name, errors[name].mean, runner.step(name) or None)
            for name, entry in sorted(shown.items())
        ),
        equal_integers={
            name: float(np.mean(np.concatenate(parts)))
            for name, parts in equal.items()
            if any(part.size for part in parts)
        },
    )


def _equal(name: str, found: Array, expected: Array) -> Array:
    """Returns which integers of an output are Keras's."""
    if found.shape != expected.shape:
        raise refusal(
            f"output '{name}' has shape {found.shape}, that of Keras {expected.shape}"
        )
    return np.ravel(found == expected)


def _tensor(
    runner: FileRunner, name: str, shape: tuple[int | None, ...], dtype: str
) -> TensorReport:
    return TensorReport(name, shape, dtype, *runner.quantization.get(name, ()))


def check_same(
    converted: Converted,
    content: bytes,
    load: Callable[[bytes, bool], FileRunner] = Runner,
    seed: int = 0,
) -> None:
    """Runs a file that was only given other metadata on a batch, once more.

    Raises:
        ExportError: If the outputs are not those of the file that was checked.
    """
    kind, batch = next(batches(converted.signature, None, seed))
    first, second = (
        file_outputs(loaded(entry, load, True), converted.signature, batch)
        for entry in (converted.content, content)
    )
    _check_equal(first, second, kind)


def loaded(
    content: bytes, load: Callable[[bytes, bool], FileRunner], delegates: bool
) -> FileRunner:
    """Returns a file ready to be run.

    Raises:
        ExportError: If it cannot be loaded.
    """
    try:
        return load(content, delegates)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(
            f"The file that was made cannot be loaded ({_first_line(error)}). No "
            "file was written."
        ) from error


def _check_equal(first: dict[str, Array], second: dict[str, Array], kind: str) -> None:
    for name, value in second.items():
        if name not in first or not np.array_equal(
            first[name], value, equal_nan=value.dtype.kind == "f"
        ):
            raise refusal(
                f"on {kind} inputs, output '{name}' is not that of the unpacked file"
            )


def batches(
    signature: InputSignature, examples: Sequence[Array] | None, seed: int
) -> Iterator[tuple[str, list[Array]]]:
    """Yields `"random"` or `"representative"`, and a batch: one array an input."""
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


def keras_outputs(
    model: Model, signature: InputSignature, batch: Sequence[Array]
) -> dict[str, Array]:
    """Returns what a model gives at inference, by the names that a file has."""
    outputs = model(signature.pack(batch), training=False)
    flat = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]
    return dict(zip(output_names(outputs), flat, strict=True))


def file_inputs(
    runner: FileRunner, signature: InputSignature, batch: Sequence[Array]
) -> dict[str, Array]:
    """Returns a batch as a file takes it, by name.

    Raises:
        ExportError: If it takes other inputs.
    """
    names = [entry.name for entry in signature.inputs]
    if set(runner.inputs) != set(names):
        raise refusal(
            f"it takes [{checks.listed(sorted(runner.inputs))}], not "
            f"[{checks.listed(sorted(names))}]"
        )
    return {
        name: runner.quantized(name, values)
        for name, values in zip(names, batch, strict=True)
    }


def file_outputs(
    runner: FileRunner, signature: InputSignature, batch: Sequence[Array]
) -> dict[str, Array]:
    """Returns what a file gives, by name.

    Raises:
        ExportError: If it takes other inputs, or cannot be run.
    """
    inputs = file_inputs(runner, signature, batch)
    try:
        return runner(inputs)
    except (RuntimeError, ValueError) as error:
        raise refusal(
            f"it cannot be run on a batch of {len(batch[0])} ({_first_line(error)})"
        ) from error


def never_a_number(
    name: str, model: Model, converted: Converted, examples: Sequence[Array] | None
) -> ExportError:
    """Returns the error for an output that is NaN on everything that was tried."""
    from keras_sq.export.verification import locating

    (_, batch), *_ = reversed(list(batches(converted.signature, examples, 0)))
    layer = locating.first_nan(converted.content, model, converted.signature, batch)
    begins = f", and the first NaN is that of layer '{layer}'" if layer else ""
    remedy = (
        ""
        if examples is not None
        else (" (or pass `representative_data` on which its outputs are numbers)")
    )
    return ExportError(
        f"Output '{name}' of model '{model.name}' is NaN on every input that was tried"
        f"{begins}. Go back to a checkpoint from before that{remedy}. No file was "
        "written."
    )


def refusal(reason: str) -> ExportError:
    """Returns the error for a file that computes something else."""
    end = "" if reason.endswith((".", "?")) else "."
    return ExportError(
        f"The file that was made does not compute what the model does: {reason}{end} "
        "No file was written."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
