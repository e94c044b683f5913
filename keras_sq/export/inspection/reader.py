"""Reads a TFLite file of any origin in a process of its own, within limits."""

import json
import os
import pathlib
import stat
import subprocess
import sys
from typing import Any

from keras_sq.core import memory_bounds

MAX_SECONDS = 60.0
"""Time to read a file, besides `SECONDS_PER_BYTE`; sound files take less than one."""

SECONDS_PER_BYTE = 2e-6
MEMORY_PER_BYTE = 32
"""Memory for each byte of the file: one may hold eight weights, of four bytes each."""

MEMORY = 2**32

_WORKER = pathlib.Path(__file__).with_name("worker.py")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file; returns what `contents.py` describes.

    Args:
        path: Path of the file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no TFLite file, a damaged one, or takes too much time or
            memory.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"'{path}' is a directory, not a TFLite file.")
    if not stat.S_ISREG(status.st_mode):  # A device may never come to an end.
        raise ValueError(f"'{path}' is not a regular file.")
    with open(path, "rb"):  # Raises here if it may not be read.
        pass
    memory = memory_bounds.memory_bytes()
    if status.st_size > memory:
        raise ValueError(
            f"'{path}' cannot be inspected: it has {status.st_size:,} bytes, more than "
            f"the memory of this machine ({memory:,} bytes)."
        )
    memory = min(memory, MEMORY + MEMORY_PER_BYTE * status.st_size)
    seconds = MAX_SECONDS + SECONDS_PER_BYTE * status.st_size
    command = [sys.executable, str(_WORKER), os.fspath(path), str(memory)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.run(
            command, capture_output=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        reason = f"it takes more than {seconds:.0f} seconds"
        raise ValueError(f"'{path}' cannot be inspected: {reason}.") from error
    if process.returncode:
        *_, reason = ["", *process.stderr.decode(errors="replace").splitlines()]
        reason = f"reading it failed with status {process.returncode} ({reason[:200]})"
        raise ValueError(f"'{path}' cannot be inspected: {reason}.")
    # JSON has no NaN; Python writes and reads it.
    answer = json.loads(process.stdout, parse_constant=lambda _: None)
    if answer["error"]:
        raise ValueError(f"'{path}' cannot be inspected: {answer['error']}.")
    contents: dict[str, Any] = answer["contents"]
    return contents
