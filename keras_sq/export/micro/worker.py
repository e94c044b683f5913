"""Trial runs of a file with TensorFlow Lite Micro, out of harm's way.

Run as a program by `runtime.py`, never imported by it: it loads no more than
NumPy and the interpreter, which takes a fifth of a second.

    worker.py INPUTS LIMIT [smallest]  < model.tflite

prints one line of JSON: `{"error": null, "arena_bytes": N}` if the file, with
that many inputs, runs within LIMIT bytes of memory (then N is LIMIT, or with
`smallest` the smallest size that will do), else `{"error": MESSAGE}`.

Design note: **every trial is a process of its own.** With too little memory the
interpreter does not always refuse: at one of twelve sizes tried between nothing and
enough it wrote to a null pointer, which ends the process. So this program forks for
each size (a few milliseconds each), and the exit status tells what became of it.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

STEP = 16
"""Sizes are multiples of this many bytes, the alignment of the memory."""

MAX_MESSAGE_BYTES = 1 << 16


def main(arguments: list[str]) -> None:
    """Runs the program.

    Args:
        arguments: As in the module's docstring.
    """
    # Here, so that the processes to come have it loaded.
    importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    inputs, limit, *what = arguments
    content = sys.stdin.buffer.read()
    error = trial(content, int(inputs), int(limit))
    answer: dict[str, Any] = {"error": error}
    if error is None:
        answer["arena_bytes"] = int(limit)
        if what == ["smallest"]:
            answer["arena_bytes"] = smallest(content, int(inputs), int(limit))
    print(json.dumps(answer))


def smallest(content: bytes, inputs: int, enough: int) -> int:
    """Returns the smallest multiple of `STEP` bytes that the file runs in.

    Args:
        content: The file.
        inputs: How many inputs it has.
        enough: A size that it runs in.
    """
    low, high = 0, 64  # In steps: too small; perhaps enough.
    while high * STEP < enough and trial(content, inputs, high * STEP) is not None:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if trial(content, inputs, middle * STEP) is None:
            high = middle
        else:
            low = middle
    return min(high * STEP, enough)


def trial(content: bytes, inputs: int, arena_bytes: int) -> str | None:
    """Runs a file once, on zeros, in a process of its own.

    Args:
        content: The file.
        inputs: How many inputs it has.
        arena_bytes: Size of the interpreter's memory.

    Returns:
        `None` if all went well, else what the interpreter said, and at the
        end the exception or the signal that stopped it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        os.close(reader)
        status = 1
        try:
            _run(content, inputs, arena_bytes)
            status = 0
        except Exception as error:
            os.write(2, f"\n{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    os.close(writer)
    said = b""
    with os.fdopen(reader, "rb") as pipe:
        for chunk in iter(lambda: pipe.read1(), b""):
            said = (said + chunk)[-MAX_MESSAGE_BYTES:]
    status = os.waitpid(child, 0)[1]
    if status == 0:
        return None
    message = said.decode(errors="replace")
    if os.WIFSIGNALED(status):
        message += f"\nit crashed ({signal.Signals(os.WTERMSIG(status)).name})"
    return message


def _run(content: bytes, inputs: int, arena_bytes: int) -> None:
    import numpy as np
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
    for index in range(inputs):
        details = interpreter.get_input_details(index)
        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), index)
    interpreter.invoke()
    interpreter.get_output(0)


if __name__ == "__main__":
    # Beside this file are modules that could be taken for others.
    del sys.path[0]
    main(sys.argv[1:])
