"""What the commands `keras_sq.train` and `keras_sq.sweep` share."""

import io
import sys
from collections.abc import Callable, Sequence

from absl import flags

from keras_sq.core import quiet_start


def run(
    main: Callable[[flags.FlagValues], int],
    argv: Sequence[str],
    *,
    name: str,
    example: str,
    goes_on: str,
    tensorflow: bool = False,
) -> int:
    """Runs a command with the flags of this process, as `absl.app.run` calls it.

    Args:
        main: Takes the flags and returns the exit status.
        argv: What absl left over: the program, and what is no flag.
        name: Of the command, for messages.
        example: A flag as it is written.
        goes_on: How a command that was stopped goes on.
        tensorflow: Whether it computes with TensorFlow itself.

    Returns:
        Exit status; 2 after an argument that is no flag, 130 after Ctrl-C.
    """
    quiet_start.end(devices=tensorflow)
    print_any_letter()
    if len(argv) > 1:
        print(
            f"{name}: error: unknown argument {argv[1]!r}; flags look like {example}. "
            "See --helpfull.",
            file=sys.stderr,
        )
        return 2
    try:
        return main(flags.FLAGS)
    except KeyboardInterrupt:
        print(f"\nStopped. {goes_on}", file=sys.stderr)
        return 130


def print_any_letter() -> None:
    """Replaces letters of printed names that the terminal cannot show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
