"""What the commands `keras_sq.export` and `keras_sq.inspect` share.

Errors are one line on standard error. Exit status 2 means that the request was
wrong, 1 that it failed.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from keras_sq.core import commands, quiet_start

FAILED = 1
WRONG_REQUEST = 2


def fail(program: str, message: object, status: int = FAILED) -> int:
    """Prints an error; returns the exit status.

    Args:
        program: Its name.
        message: What is wrong; of an exception its text. Becomes one line.
        status: What to return.
    """
    text = " ".join(str(message).split())
    if isinstance(message, OSError) and message.strerror and message.filename:
        text = f"'{message.filename}': {message.strerror}."
    text = "".join(c if c.isprintable() else "?" for c in text)
    print(f"{program}: error: {text}", file=sys.stderr)
    return status


def run(
    program: str,
    define_flags: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues, Sequence[str]], int],
    tensorflow: bool = False,
) -> NoReturn:
    """Runs a command with the flags and arguments of the process.

    Args:
        program: Its name.
        define_flags: Defines its flags.
        main: Does what they ask for; returns the exit status.
        tensorflow: Whether it computes with TensorFlow itself.
    """
    define_flags(flags.FLAGS)

    def parse(arguments: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            sys.exit(fail(program, f"{error}. See --help.", WRONG_REQUEST))

    def main_of_process(arguments: Sequence[str]) -> int:
        quiet_start.end(devices=tensorflow)
        commands.print_any_letter()
        try:
            return main(flags.FLAGS, arguments[1:])
        except KeyboardInterrupt:
            return fail(program, "stopped", 130)

    app.run(main_of_process, flags_parser=parse)
