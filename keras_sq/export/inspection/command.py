"""What is in a TFLite file, from the command line: `python -m keras_sq.inspect`.

    python -m keras_sq.inspect model.tflite
    python -m keras_sq.inspect model.tflite --json

Of any file, from any converter, packed by `keras_sq.pack` or not: sizes, inputs and
outputs, operators, and for each weight how it is stored, how many levels it has and how
many bits it takes.
Reading is in `reader.py`, the layout in `table.py`.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import flags

from keras_sq.core import commands
from keras_sq.export.inspection import reader, table

PROGRAM = "keras_sq.inspect"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags.

    Args:
        values: Where to define them: `absl.flags.FLAGS`, or another set of flags.
    """
    flags.DEFINE_bool(
        "json", False, "Print JSON, with every constant.", flag_values=values
    )


def main(values: flags.FlagValues, arguments: Sequence[str]) -> int:
    """Prints what is in a file.

    Args:
        values: Parsed flags.
        arguments: What else is on the command line: the path of the file.

    Returns:
        Exit status: 0; 1 if the file cannot be read or is none of TFLite; 2 if
        the request was wrong.
    """
    if len(arguments) != 1:
        return commands.fail(
            PROGRAM,
            f"expected the path of one file, got {len(arguments)} arguments. See "
            "--help.",
            commands.WRONG_REQUEST,
        )
    (path,) = arguments
    try:
        contents = reader.read(path)
    except (OSError, ValueError) as error:
        return commands.fail(PROGRAM, error)
    if values.json:
        text = json.dumps(contents, indent=2, allow_nan=False)
    else:
        text = table.table(contents, path)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Such as of `head`, which has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main_of_process(argv: Sequence[str]) -> int:
    """Runs the command with the flags of this process; returns the exit status."""
    return commands.run(PROGRAM, main, argv)
