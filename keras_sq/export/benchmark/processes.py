"""The processes of the files, and whose turn it is."""

import importlib.resources
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

MODES = ("hot", "alternating", "cold")
MIN_RUNS = 5
"""Each file has at least so many turns, however long they take."""

MAX_SECONDS = 600.0
"""A process that gives no answer for this time is ended."""

_PACKAGE = "keras_sq.export.benchmark"

Json = dict[str, Any]


class InvalidFile(Exception):
    """A file that cannot be measured; the message says why, without its path."""


class NoRuntime(Exception):
    """A machine without NumPy or without any runtime."""


class FileProcess:
    """A process that has one file loaded.

    Args:
        path: Path of the file.
        settings: What else `worker.py` reads first: `threads`, `seed`, `cold_bytes`.

    Attributes:
        path: Path of the file.
        loaded: What `worker.py` answered: runtime, inputs, time and memory.
        times: Mode -> CPU and wall times of its runs, in nanoseconds.

    Raises:
        InvalidFile: If the file cannot be loaded and run.
        NoRuntime: If there is nothing to run it with.
    """

    def __init__(self, path: str, settings: Json) -> None:
        check_file(path)
        self.path = path
        self.times: dict[str, list[tuple[int, int]]] = {}
        self._messages = tempfile.TemporaryFile()
        # As text: this package may be in an archive.
        source = importlib.resources.files(_PACKAGE).joinpath("worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-c", source.read_text("utf-8")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )
        try:
            self.loaded = self._ask({"path": path, **settings})
        except BaseException:
            self.close()
            raise

    def measure(self, mode: str, runs: int | None) -> None:
        """Adds the times of this file's turn: of one run, or of several if hot.

        Args:
            mode: One of `MODES`.
            runs: How many runs of the mode there are to be in all; `None` for any
                number.

        Raises:
            InvalidFile: If a run fails.
        """
        times = self.times.setdefault(mode, [])
        left = None if runs is None else runs - len(times)
        if left is None or left > 0:
            times += self._ask({"mode": mode, "runs": left})["times"]

    def _ask(self, request: Json) -> Json:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(MAX_SECONDS, end)
        timer.start()
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            status = process.wait()
            if late.is_set():
                raise InvalidFile(f"it takes more than {MAX_SECONDS:.0f} seconds")
            raise InvalidFile(self._ending(status))
        answer: Json = json.loads(line)
        if "no_runtime" in answer:
            raise NoRuntime(answer["no_runtime"])
        if "error" in answer:
            raise InvalidFile(answer["error"])
        return answer

    def _ending(self, status: int) -> str:
        """Returns why the process ended."""
        if status < 0:
            return f"the runtime crashed ({signal.Signals(-status).name})"
        self._messages.seek(0)
        *_, last = ["", *self._messages.read().decode(errors="replace").splitlines()]
        return f"the runtime ended with status {status} ({last[:200]})"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._messages):
            try:
                assert pipe is not None
                pipe.close()
            except BrokenPipeError:  # A request that nobody read.
                pass


def check_file(path: str) -> None:
    """Raises unless a file can be read and begins as one of TFLite.

    Args:
        path: Path of the file.

    Raises:
        InvalidFile: Saying why.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise InvalidFile(error.strerror or str(error)) from error
    if start[4:] != b"TFL3":
        raise InvalidFile("it is no TFLite file (there is no 'TFL3' at its start)")


def measure_all(
    running: list[FileProcess], seconds: float, runs: int | None
) -> dict[str, str]:
    """Measures all modes, the files taking turns.

    Args:
        running: The processes of the files; those that fail are removed.
        seconds: Time for each file and mode, with what is between the runs.
        runs: Number of runs of each file and mode; `None` for as many as fit.

    Returns:
        Path -> why the file failed.
    """
    errors: dict[str, str] = {}
    for mode in MODES:
        if mode == "alternating" and len(running) < 2:
            continue
        end = time.monotonic() + seconds * len(running)
        turns = 0
        while running:
            for process in list(running):
                try:
                    process.measure(mode, runs)
                except InvalidFile as error:
                    errors[process.path] = str(error)
                    process.close()
                    running.remove(process)
            turns += 1
            if runs is None:
                if turns >= MIN_RUNS and time.monotonic() > end:
                    break
            elif all(len(process.times[mode]) >= runs for process in running):
                break
    return errors
