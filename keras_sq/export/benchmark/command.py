"""How long TFLite files take on this machine: `python -m keras_sq.benchmark`.

    python -m keras_sq.benchmark float.tflite int8.tflite
    python -m keras_sq.benchmark model.tflite --threads=4 --seconds=5 --json

Prints the time of a run, the time to load, and the memory of each file, and how the
times compare with those of the first file. Inputs are random; sizes that a file leaves
open are 1. Runs are measured in three ways, in all of which the files take turns:

- `hot`: a file runs several times in a row, and its weights are in the caches.
- `alternating`: each file runs once in turn, so that the caches hold others' weights.
- `cold`: before each run, other memory is written (`--cold-mb`), as by the other work
  of a device between two runs.

CPU time is that of all threads of the process; other work of the machine disturbs it
less than it disturbs the time of the clock. Memory is the growth of the largest
resident size while a file is loaded and run once, with those pages of the file and of
the runtime's code that are read for it.

On a device, neither Keras nor this package is needed, but Python 3.10 or later, NumPy
and a runtime (ai-edge-litert, tflite-runtime or TensorFlow). Write the command as a
program of one file, copy it to a Raspberry Pi, or into a Debian in Termux on a phone,
and run it there:

    python -m keras_sq.benchmark --write-program=benchmark.pyz
    python benchmark.pyz float.tflite int8.tflite
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from keras_sq.export.benchmark import processes, program, results

PROGRAM = "keras_sq.benchmark"
FAILED = 1
WRONG_REQUEST = 2
STOPPED = 130


def fail(message: object, status: int = FAILED) -> int:
    """Prints an error as one line; returns the exit status."""
    text = " ".join(str(message).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    print(f"{PROGRAM}: error: {text}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}. See --help.", WRONG_REQUEST))


def _positive(kind: type) -> Any:
    """Returns what parses a number > 0."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e9:  # NaN neither.
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {what} > 0 and < 10**9. Received: {text!r}"
            )
        return value

    return parse


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer >= 0. Received: {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Returns what parses the command line."""
    result = _Parser(PROGRAM, description="Measures TFLite files on this machine.")
    add = result.add_argument
    add("files", nargs="*", help="Paths; times are compared with the first one's.")
    add("--threads", type=_positive(int), default=1, help="Threads of the runtime.")
    add(
        "--seconds",
        type=_positive(float),
        default=2.0,
        help="Time for each file and way of measuring.",
    )
    add("--runs", type=_positive(int), help="Number of runs, in place of --seconds.")
    add(
        "--cold-mb",
        type=_positive(int),
        default=32,
        help="Megabytes written before each cold run, more than the caches hold.",
    )
    add("--seed", type=_seed, default=0, help="Seed of the random inputs.")
    add("--json", action="store_true", help="Print JSON.")
    add("--write-program", metavar="PATH", help="Write the program for devices.")
    return result


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
        arguments: The command line, without the program.

    Returns:
        Exit status: 0; 1 if a file could not be measured; 2 if the request was wrong;
        130 if it was stopped.
    """
    for stream in (sys.stdout, sys.stderr):  # Of names that the terminal cannot show.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    options = parser().parse_args(arguments)
    if options.write_program:
        return _write_program(options.write_program)
    if not options.files:
        return fail("expected the paths of files. See --help.", WRONG_REQUEST)
    settings = {
        "threads": options.threads,
        "seed": options.seed,
        "cold_bytes": 10**6 * options.cold_mb,
    }
    try:
        entries, errors = _measure(options, settings)
    except processes.NoRuntime as error:
        return fail(error)
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: stopped.", file=sys.stderr)
        return STOPPED
    if options.json:
        machine = {"machine": platform.machine(), "system": platform.platform()}
        measured = {"files": entries, "errors": errors}
        text = json.dumps(machine | settings | measured, indent=2)
    else:
        text = results.table(entries, options.threads) if entries else ""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:  # Such as of `head`, which has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for path, reason in errors.items():
        fail(f"'{path}': {reason}.")
    return FAILED if errors else 0


def _measure(
    options: argparse.Namespace, settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the results of the files, and path -> why one has none."""
    running: list[processes.FileProcess] = []
    errors: dict[str, str] = {}
    try:
        for path in dict.fromkeys(options.files):
            try:
                running.append(processes.FileProcess(path, settings))
            except processes.InvalidFile as error:
                errors[path] = str(error)
        errors |= processes.measure_all(running, options.seconds, options.runs)
        return results.entries(running), errors
    finally:
        for process in running:
            process.close()


def _write_program(path: str) -> int:
    try:
        program.write(path)
    except OSError as error:
        return fail(f"'{path}': {error.strerror or error}.")
    name = os.path.basename(path)
    print(f"Wrote {path}. Copy it to the device, and run `python {name} FILE ...`.")
    return 0
