"""What the commands that take absl flags do alike."""

import sys
from collections.abc import Callable, Sequence

from absl import flags


def run(
    main: Callable[[flags.FlagValues], int],
    argv: Sequence[str],
    *,
    name: str,
    example: str,
    goes_on: str,
) -> int:
    """Runs a command with the flags of this process, as `absl.app.run` calls it.

    Args:
        main: Takes the flags and returns the exit status.
        argv: What absl left over: the program, and what is no flag.
        name: Of the command, for messages.
        example: A flag as it is written.
        goes_on: How a command that was stopped goes on.

    Returns:
        Exit status; 2 after an argument that is no flag, 130 after Ctrl-C.
    """
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
