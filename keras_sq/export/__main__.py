r"""Exports a saved model: `python -m keras_sq.export model.keras out.tflite`.

    python -m keras_sq.export model.keras out.tflite --target=small
    python -m keras_sq.export model.keras out.tflite --target=int8 \
        --representative=examples.npz

Does what `keras_sq.export` does, and prints its report. Representative data is
an .npz of one array for each input, by the input's name; for a model with one
input, an .npy or an .npz of one array under any name.

A model with layers of your own needs the module that registers them:
`--import=my_layers`, found as from Python started in this folder. Such a module
may also call `keras.config.enable_unsafe_deserialization()`, for models with
Lambda layers that you trust.
"""

import importlib
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from keras_sq.core import commands
from keras_sq.export import kinds
from keras_sq.export.errors import ExportError, require_tensorflow
from keras_sq.export.exporter import export
from keras_sq.files import atomic_files, file_checks
from keras_sq.files.loading import load_model

PROGRAM = "keras_sq.export"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags; their defaults are those of `keras_sq.export`.

    Args:
        values: Where to define them: `absl.flags.FLAGS`, or a set of one's own.
    """
    shared: dict[str, Any] = {"flag_values": values}
    described = "; ".join(f"{x.name}: {x.description}" for x in kinds.KINDS.values())
    flags.DEFINE_enum(
        "target", "float", list(kinds.KINDS), f"Kind of file. {described}.", **shared
    )
    flags.DEFINE_string(
        "representative", None, "File of example inputs, .npz or .npy.", **shared
    )
    flags.DEFINE_integer(
        "max_decode_bytes",
        None,
        "For mcu: largest part of a kernel to unfold at a time. [found by trying]",
        **shared,
    )
    flags.DEFINE_string(
        "oldest_runtime",
        None,
        "Oldest runtime that has to run the file, such as 'LiteRT 1.0.1'. [the newest]",
        **shared,
    )
    flags.DEFINE_enum(
        "optimize",
        None,
        ["size", "speed"],
        "For lowbit: what counts first. [size]",
        **shared,
    )
    flags.DEFINE_bool(
        "allow_partial", False, "Quantize what is not trained to the end.", **shared
    )
    flags.DEFINE_bool(
        "allow_untrained", False, "Quantize a model that was not trained.", **shared
    )
    flags.DEFINE_bool(
        "allow_float_kernels",
        False,
        "Write a file that holds a quantized kernel as float32 for want of a form.",
        **shared,
    )
    flags.DEFINE_multi_string(
        "import", [], "Module to import first, with layers of your own.", **shared
    )
    flags.DEFINE_bool("json", False, "Print the report as JSON.", **shared)


def main(values: flags.FlagValues, arguments: Sequence[str]) -> int:
    """Exports what parsed flags ask for.

    Args:
        values: Parsed flags.
        arguments: What else is on the command line: the paths of the model and
            of the file to write.

    Returns:
        Exit status: 0; 1 if the model cannot be exported; 2 if the request was
        wrong.
    """
    if len(arguments) != 2:
        return commands.fail(
            PROGRAM,
            "expected the paths of a model and of the file to write, got "
            f"{len(arguments)} arguments. See --help.",
            commands.WRONG_REQUEST,
        )
    path, destination = arguments
    options: dict[str, Any] = {"target": values.target}
    for name in ("max_decode_bytes", "oldest_runtime", "optimize"):
        if values[name].value is not None:
            options[name] = values[name].value
    try:
        # What is quick to find wrong comes first.
        require_tensorflow()
        atomic_files.destination(destination)
        if values.representative is not None:
            options["representative_data"] = load_examples(values.representative)
        for name in values.get_flag_value("import", None) or []:
            _import(name)
        model = load_model(path)
        report = export(
            model,
            destination,
            allow_partial=values.allow_partial,
            allow_untrained=values.allow_untrained,
            allow_float_kernels=values.allow_float_kernels,
            **options,
        )
    except (ExportError, ImportError, OSError, TypeError, ValueError) as error:
        return commands.fail(PROGRAM, error)
    print(json.dumps(report.to_dict(), indent=2) if values.json else report)
    return 0


def main_of_process(argv: Sequence[str]) -> int:
    """Runs the command with the flags of this process; returns the exit status."""
    return commands.run(PROGRAM, main, argv, tensorflow=True)


def load_examples(path: str) -> Any:
    """Returns representative data from a file.

    Args:
        path: Of an .npz or .npy file.

    Returns:
        An array, or a dict by name of several.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such file, is empty, or holds Python objects.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                file_checks.check_zip(path)
            file.seek(0)
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            arrays = {name: content[name] for name in content.files}
        # Whatever is wrong with a file comes out of NumPy as any of many types.
        except Exception as error:
            raise ValueError(
                f"'{path}' is no .npz or .npy file of numbers: {error}"
            ) from error
    if not arrays:
        raise ValueError(f"'{path}' holds no array.")
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _import(name: str) -> None:
    """Imports a module of the user's; what goes wrong inside is theirs to see."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"There is no module {name!r} to import. Run this in the folder of "
            f"'{name.replace('.', '/')}.py', or put that folder in PYTHONPATH."
        ) from error


if __name__ == "__main__":
    commands.start(PROGRAM, define_flags, main_of_process)
