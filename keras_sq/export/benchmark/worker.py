"""Loads one TFLite file and measures its runs: a program that `processes.py` runs.

It reads its requests from standard input, a line of JSON each: first an object with
`path`, `threads`, `seed` and `cold_bytes`, then one with `mode` and `runs` for each
measurement. It answers each by a line of JSON:

    {"runtime": ..., "load_ms": ..., "peak_bytes": ..., "inputs": ...}, of the first
    {"times": [[CPU time, wall time], ...]} in nanoseconds
    {"error": why the file cannot be measured}
    {"no_runtime": why nothing can be}

It imports NumPy, a runtime and the standard library only.
"""

import importlib
import importlib.metadata
import json
import os
import re
import signal
import sys
import time
from typing import Any

RUNTIMES = (
    ("ai_edge_litert.interpreter", "LiteRT", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime", "tflite-runtime"),
    ("tensorflow.lite.python.interpreter", "TensorFlow", "tensorflow"),
)
"""Module, name and package of what runs files; the first that is installed is used."""

OLDEST = {
    ("DEQUANTIZE", 6): "LiteRT 1.0.1",
    ("DEQUANTIZE", 7): "LiteRT 2.1",
    ("FULLY_CONNECTED", 14): "LiteRT 2.1.4",
}
"""Operator and version -> the oldest runtime that runs it well, where it is known."""

MAX_BURST = 20
BURST_NS = 50_000_000
"""Runs in a row of `hot` end after this time, or after `MAX_BURST` runs."""

Json = dict[str, Any]


class InvalidFile(Exception):
    """A file that cannot be measured; the message says why, without its path."""


class NoRuntime(Exception):
    """A machine without NumPy or without any runtime."""


def serve() -> None:
    """Answers the lines of standard input, until it ends or the file fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Whatever the runtime prints is no answer.

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    settings = json.loads(sys.stdin.readline())
    try:
        loaded, interpreter = _load(settings)
    except NoRuntime as error:
        return answer({"no_runtime": str(error)})
    except InvalidFile as error:
        return answer({"error": str(error)})
    answer(loaded)
    import numpy as np

    other = np.zeros(settings["cold_bytes"], np.uint8)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer({"times": _times(interpreter, other, **request)})
        except (RuntimeError, ValueError) as error:
            return answer({"error": f"a run failed: {error}"})


def _load(settings: Json) -> tuple[Json, Any]:
    """Returns what loading a file took, and its interpreter with inputs set."""
    try:
        import numpy as np
    except ImportError as error:
        raise NoRuntime(f"NumPy is missing ({error}).") from error
    module, runtime = _runtime()
    memory = _resident("VmRSS")
    try:  # From here on, the largest size counts.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    try:
        interpreter = module.Interpreter(
            model_path=settings["path"], num_threads=settings["threads"]
        )
        for detail in interpreter.get_input_details():
            sizes = [int(size) for size in detail["shape_signature"]]
            if any(size < 0 for size in sizes):
                sizes = [max(size, 1) for size in sizes]
                interpreter.resize_tensor_input(detail["index"], sizes)
        interpreter.allocate_tensors()
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        generator = np.random.default_rng(settings["seed"])
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], _random(detail, generator))
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise InvalidFile(_reason(str(error), runtime)) from error
    peak = _resident("VmHWM")
    loaded = {
        "runtime": runtime,
        "load_ms": {"cpu": cpu / 1e6, "wall": wall / 1e6},
        "peak_bytes": None if memory is None or peak is None else peak - memory,
        "inputs": {
            str(detail["name"]): [int(size) for size in detail["shape"]]
            for detail in interpreter.get_input_details()
        },
    }
    return loaded, interpreter


def _runtime() -> tuple[Any, str]:
    """Returns the module of the interpreter, and its name with its version."""
    for module_name, name, package in RUNTIMES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # Such as of tensorflow-cpu.
            package = module_name.partition(".")[0]
            version = getattr(sys.modules[package], "__version__", "")
        return module, f"{name} {version}".strip()
    raise NoRuntime(
        "There is no runtime to measure with. Install LiteRT: `pip install "
        "ai-edge-litert`."
    )


def _random(detail: Json, generator: Any) -> Any:
    """Returns random values for an input.

    Floats are in [-1, 1); int8, uint8 and int16 have all their values; of larger
    integers, which mostly are indices, it is 0 and 1.
    """
    import numpy as np

    dtype: Any = np.dtype(detail["dtype"])
    shape = detail["shape"]
    if dtype.kind == "f":
        return generator.uniform(-1, 1, shape).astype(dtype)
    if dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize > 2):
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    raise InvalidFile(f"input '{detail['name']}' takes {dtype}, of which there is none")


def _reason(message: str, runtime: str) -> str:
    """Returns why a runtime refuses a file, shortened."""
    missing = re.search(r"find op for builtin opcode '(\w+)' version '(\d+)'", message)
    if missing:
        name, version = missing[1], int(missing[2])
        oldest = OLDEST.get((name, version))
        newer = f"{oldest} has it" if oldest else "install the newest LiteRT"
        return (
            f"it needs a newer runtime: {runtime} has no {name} of version {version}; "
            f"{newer}"
        )
    node = re.search(r"Node number \d+ \((\w+)\)", message)
    if "Select TensorFlow op" in message:
        name = f" ({node[1]})" if node else ""
        return f"it needs flex operators{name}, which {runtime} does not have"
    custom = re.search(r"unresolved custom op: ([\w:.-]+?)\.?(\s|$)", message)
    if custom:
        return (
            f"it needs a custom operator ({custom[1]}), which {runtime} does not have"
        )
    return f"{runtime} refuses it: {' '.join(message.split())[:300]}"


def _times(
    interpreter: Any, other: Any, mode: str, runs: int | None
) -> list[tuple[int, int]]:
    """Returns CPU and wall times of one run, or of several in a row if hot.

    Args:
        interpreter: The interpreter of the file, ready to run.
        other: Uint8 array, to write before a cold run.
        mode: `"hot"`, `"alternating"` or `"cold"`.
        runs: The largest number of runs, or `None`.
    """
    if mode == "hot":
        interpreter.invoke()  # Fills the caches.
    results: list[tuple[int, int]] = []
    begin = time.perf_counter_ns()
    while True:
        if mode == "cold":
            other += 1  # Reads, too: what is only written may pass by the caches.
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        interpreter.invoke()
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        results.append((cpu, wall))
        if mode != "hot" or len(results) in (runs, MAX_BURST):
            return results
        if time.perf_counter_ns() - begin > BURST_NS:
            return results


def _resident(field: str) -> int | None:
    """Returns the resident size of this process in bytes, `None` if not known.

    Args:
        field: `"VmRSS"`, the size now, or `"VmHWM"`, the largest so far. Where there
            is no /proc, it is the largest one for both.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            match = re.search(rf"^{field}:\s*(\d+) kB", file.read(), re.MULTILINE)
        return 1024 * int(match[1]) if match else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # On Windows.
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(size if sys.platform == "darwin" else 1024 * size)


if __name__ == "__main__":
    del sys.path[0]  # Modules of that folder could be taken for others.
    serve()
