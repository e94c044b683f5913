"""Keeps TensorFlow's small talk off the terminal while a command of ours starts.

`python -m keras_sq.train` imports this package, and TensorFlow with it, before the
command's own module. TensorFlow then writes from C++ that it found no GPU and which
instructions it was built with, some of it whatever TF_CPP_MIN_LOG_LEVEL says. So the
package imports this module first. Does nothing where no command of ours starts, or
where TF_CPP_MIN_LOG_LEVEL is set.

Design note: **a process that filters**, and not a file that is looked at afterwards.
It hands on every line that is not small talk at once, and the last words of a process
that is ended, such as of TensorFlow on a processor that it was not built for, too.
"""

import atexit
import os
import re
import signal
import sys

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_OURS = "KERAS_SQ_LOG_LEVEL"
_SMALL_TALK = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|"
    rb"[IW]\d{4} \d\d:\d\d:\d|"
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:[\d.]+: [IW] "
)
_NO_GPU = re.compile(rb"E\d{4} .*failed call to cuInit|.*: E .*failed call to cuInit")
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu")


class _Filter:
    """A process between standard error and what this process writes there."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self._terminal = os.dup(2)
        self._process = os.fork()
        if not self._process:
            os.close(writing)
            _hand_on(reading, self._terminal)
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)

    def end(self) -> None:
        """Lets this process write to standard error itself again."""
        if self._process:
            sys.stderr.flush()
            os.dup2(self._terminal, 2)
            os.close(self._terminal)
            os.waitpid(self._process, 0)
            self._process = 0


def _hand_on(reading: int, terminal: int) -> None:
    """Copies all lines but small talk until the other end is closed; then ends."""
    # Ctrl-C is for the command; who waits for the command's output, not for this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(0)
    os.close(1)
    dropped = [_SMALL_TALK]
    if not any(map(os.path.exists, _GPU_DEVICES)):
        dropped.append(_NO_GPU)
    left = b""
    try:
        while piece := os.read(reading, 2**16):
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                if not any(pattern.match(line) for pattern in dropped):
                    os.write(terminal, line + b"\n")
        os.write(terminal, left)
    finally:
        os._exit(0)


def _is_command() -> bool:
    """Whether Python is looking for a module of this package, to run it."""
    words = sys.orig_argv
    if sys.argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return False
    return words[words.index("-m") + 1].startswith("keras_sq.")


_filter: _Filter | None = None
# A command may start another one, which gets its environment.
if _is_command() and os.environ.get(_OURS, "") == os.environ.get(_LEVEL, ""):
    os.environ[_LEVEL] = os.environ[_OURS] = "2"
    if hasattr(os, "fork"):
        _filter = _Filter()
        atexit.register(_filter.end)


def end(devices: bool = False) -> None:
    """Gives standard error back, once the command's modules are imported.

    Args:
        devices: Whether TensorFlow is to look for GPUs first, of which it talks, too.
    """
    if _filter is None:
        return
    if devices:
        import tensorflow as tf

        tf.config.list_physical_devices()
    _filter.end()
