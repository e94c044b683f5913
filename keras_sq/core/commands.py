"""What the commands `python -m keras_sq.…` share: flags, errors, Ctrl-C.

Errors are one line on standard error. Exit status 2 means that the request was
wrong, 1 that it failed, 130 that it was stopped.
"""

import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from keras_sq.core import quiet_start

FAILED = 1
WRONG_REQUEST = 2
STOPPED = 130


def fail(program: str, message: object, status: int = FAILED) -> int:
    """Prints an error as one line; returns the exit status.

    Args:
        program: Name of the command.
        message: What is wrong: a text or an exception.
        status: What to return.
    """
    text = " ".join(str(message).split())
    if isinstance(message, OSError) and message.strerror and message.filename:
        text = f"'{message.filename}': {message.strerror}."
    text = "".join(c if c.isprintable() else "?" for c in text)
    print(f"{program}: error: {text}", file=sys.stderr)
    return status


def start(
    program: str,
    define_flags: Callable[[flags.FlagValues], None],
    main_of_process: Callable[[Sequence[str]], int],
) -> NoReturn:
    """Parses the flags of this process and runs a command; ends the process.

    Args:
        program: Name of the command.
        define_flags: Defines its flags.
        main_of_process: Takes the program and what is no flag, and returns the exit
            status; see `run`.
    """
    define_flags(flags.FLAGS)

    def parse(arguments: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            sys.exit(fail(program, f"{error}. See --help.", WRONG_REQUEST))

    app.run(main_of_process, flags_parser=parse)


def run(
    program: str,
    main: Callable[[flags.FlagValues, Sequence[str]], int],
    argv: Sequence[str],
    *,
    example: str | None = None,
    goes_on: str = "",
    tensorflow: bool = False,
) -> int:
    """Runs a command with the flags of this process.

    Args:
        program: Name of the command, for messages.
        main: Takes the flags and the arguments that are no flags, and returns the
            exit status.
        argv: What absl left over: the program, and what is no flag.
        example: A flag as it is written, of a command that takes nothing but flags.
        goes_on: How a command that was stopped goes on.
        tensorflow: Whether it computes with TensorFlow itself.
    """
    quiet_start.end(devices=tensorflow)
    print_any_letter()
    _, *arguments = argv
    if arguments and example is not None:
        message = f"unknown argument {arguments[0]!r}; flags look like {example}."
        return fail(program, f"{message} See --helpfull.", WRONG_REQUEST)
    try:
        return main(flags.FLAGS, arguments)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped. {goes_on}".rstrip(), file=sys.stderr)
        return STOPPED


def print_any_letter() -> None:
    """Replaces letters of printed names that the terminal cannot show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
