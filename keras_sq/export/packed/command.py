"""Packs and unpacks TFLite files: `python -m keras_sq.pack`.

    python -m keras_sq.pack model.tflite model.tflite.sq
    python -m keras_sq.pack --unpack model.tflite.sq model.tflite

Does what `keras_sq.pack_file` and `keras_sq.unpack_file` do, and prints both sizes.
"""

import os
from collections.abc import Sequence

from absl import flags

from keras_sq.core import commands
from keras_sq.export.packed import files

PROGRAM = "keras_sq.pack"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags.

    Args:
        values: Where to define them: `absl.flags.FLAGS`, or another set of flags.
    """
    flags.DEFINE_bool("unpack", False, "Unpack a packed file.", flag_values=values)


def main(values: flags.FlagValues, arguments: Sequence[str]) -> int:
    """Packs or unpacks a file.

    Args:
        values: Parsed flags.
        arguments: What else is on the command line: the paths of the file to read and
            of the file to write.

    Returns:
        Exit status: 0; 1 if the file cannot be read, packed, unpacked or written; 2 if
        the request was wrong.
    """
    if len(arguments) != 2:
        return commands.fail(
            PROGRAM,
            "expected the paths of the file to read and of the file to write, got "
            f"{len(arguments)} arguments. See --help.",
            commands.WRONG_REQUEST,
        )
    source, path = arguments
    change = files.unpack_file if values.unpack else files.pack_file
    try:
        new = len(change(source, path))
        old = os.path.getsize(source)
    except (ImportError, OSError, ValueError) as error:
        return commands.fail(PROGRAM, error)
    print(f"{source}: {old:,} bytes; {path}: {new:,} bytes")
    return 0


def main_of_process(argv: Sequence[str]) -> int:
    """Runs the command with the flags of this process; returns the exit status."""
    return commands.run(PROGRAM, main, argv)
