"""Running a model and its file on the same batch, and the error of a wrong file."""

from collections.abc import Callable

import keras
import numpy as np

from keras_sq.core import checks
from keras_sq.core.types import Array, Model
from keras_sq.export.conversion.convert import Converted, output_names
from keras_sq.export.conversion.inputs import InputSignature
from keras_sq.export.errors import ExportError
from keras_sq.export.examples import Batch, Examples
from keras_sq.export.tflite.runtime import FileRunner, Runner

Loader = Callable[[bytes, bool], FileRunner]
"""`load(content, delegates)` returns the interpreter of a file."""


def loaded(content: bytes, load: Loader, delegates: bool) -> FileRunner:
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


def keras_outputs(
    model: Model, signature: InputSignature, batch: Batch
) -> dict[str, Array]:
    """Returns the outputs of a model at inference, by their names in a file."""
    outputs = model(signature.pack(batch.arrays), training=False)
    flat = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]
    return dict(zip(output_names(outputs), flat, strict=True))


def file_inputs(runner: FileRunner, batch: Batch) -> dict[str, Array]:
    """Returns a batch as a file takes it, by name.

    Raises:
        ExportError: If the file takes other inputs.
    """
    if set(runner.inputs) != set(batch.names):
        raise refusal(
            f"it takes [{checks.listed(sorted(runner.inputs))}], not "
            f"[{checks.listed(sorted(batch.names))}]"
        )
    return {
        name: runner.quantized(name, values) for name, values in batch.by_name.items()
    }


def file_outputs(runner: FileRunner, batch: Batch) -> dict[str, Array]:
    """Returns the outputs of a file, by name.

    Raises:
        ExportError: If the file takes other inputs, or cannot be run.
    """
    inputs = file_inputs(runner, batch)
    try:
        return runner(inputs)
    except (RuntimeError, ValueError) as error:
        raise refusal(
            f"it cannot be run on a batch of {batch.size} ({_first_line(error)})"
        ) from error


def check_same(converted: Converted, content: bytes, load: Loader = Runner) -> None:
    """Runs a file that was only given other metadata on a batch, once more.

    Raises:
        ExportError: If the outputs are not those of the file that was checked.
    """
    batch = next(Examples().comparison(converted.signature))
    first, second = (
        file_outputs(loaded(entry, load, True), batch)
        for entry in (converted.content, content)
    )
    check_equal(first, second, batch.kind)


def check_equal(first: dict[str, Array], second: dict[str, Array], kind: str) -> None:
    """Makes sure that two files give the same on a batch.

    Args:
        first: Outputs of the file, by name.
        second: Outputs of the other file, by name.
        kind: Kind of the batch.

    Raises:
        ExportError: If an output differs.
    """
    for name, value in second.items():
        if name not in first or not np.array_equal(
            first[name], value, equal_nan=value.dtype.kind == "f"
        ):
            raise refusal(
                f"on {kind} inputs, output '{name}' is not that of the unpacked file"
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
