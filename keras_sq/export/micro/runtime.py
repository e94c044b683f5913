"""Running files with TensorFlow Lite Micro, and the memory that they take.

The interpreter is the one of the `tflite-micro` package, an optional extra. Files
are first run by `worker.py` in another process, for the interpreter can
end the one that it runs in.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.errors import ExportError, UnsupportedOperatorError
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices, shape_of
from keras_sq.export.tflite.runtime import quiet

TFLITE_MICRO_VERSION = "0.dev20261023182759"
"""The version that the extra `micro` names: its compression API is young."""

ALIGNMENT = 16
"""Memory for the interpreter starts at multiples of this many bytes."""

_WORKER = pathlib.Path(__file__).with_name("worker.py")
_FAILED_OPERATOR = re.compile(r"Node ([A-Z]\w+) \(number \d+\) failed to")
_MISSING_OPERATOR = re.compile(
    r"Didn't find op for builtin opcode '(\w+)'|"
    r"Failed to get registration from op code (\w+)"
)


@dataclasses.dataclass(frozen=True)
class MicroTensor:
    """An input or output of a file.

    Attributes:
        shape: With the batch first.
        dtype: Such as `"int8"`.
        scale: Of its quantization, 0 without: value = scale * (q - zero_point).
        zero_point: Of its quantization.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int


class MicroRunner:
    """A file in memory, ready to be run with TensorFlow Lite Micro.

    Args:
        content: The bytes of a `.tflite` file.
        arena_bytes: Size of the memory that it gets; plenty if `None`.

    Attributes:
        runtime: Name and version of the interpreter.
        inputs: What the file takes.
        outputs: What it gives.

    Raises:
        ImportError: If the interpreter is not installed.
        ExportError: If it cannot run the file, in that memory.
    """

    def __init__(self, content: bytes, arena_bytes: int | None = None) -> None:
        module = _interpreter_module()
        file = TFLiteFile(content)
        if arena_bytes is None:
            arena_bytes = plenty(file)
        _ask_worker(content, file, arena_bytes)
        with quiet():
            self._interpreter = module.Interpreter.from_bytes(
                content, arena_size=arena_bytes
            )
        graph = file.subgraphs[0]
        count = len(indices(graph.inputs)), len(indices(graph.outputs))
        self.runtime = runtime_name()
        self.inputs = tuple(
            _micro_tensor(self._interpreter.get_input_details(index))
            for index in range(count[0])
        )
        self.outputs = tuple(
            _micro_tensor(self._interpreter.get_output_details(index))
            for index in range(count[1])
        )

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Returns the outputs, in the file's order.

        Args:
            inputs: In the file's order, with its shapes and dtypes.

        Raises:
            ValueError: If their number, a shape or a dtype is another.
        """
        received = [(tuple(x.shape), x.dtype.name) for x in map(np.asarray, inputs)]
        expected = [(entry.shape, entry.dtype) for entry in self.inputs]
        if received != expected:
            raise ValueError(
                f"Argument `inputs` must have the shapes and dtypes {expected}. "
                f"Received: {received}"
            )
        with quiet():
            for index, value in enumerate(inputs):
                self._interpreter.set_input(np.asarray(value), index)
            self._interpreter.invoke()
            # Copies: the interpreter hands out views into its memory.
            return [
                np.array(self._interpreter.get_output(index))
                for index in range(len(self.outputs))
            ]


def arena_bytes(content: bytes) -> int:
    """Returns the memory that TensorFlow Lite Micro needs for a file, in bytes.

    The smallest multiple of 16 bytes in which the interpreter prepares and runs
    the file, found by running it. It holds all activations, decoded kernels and
    what the interpreter keeps of the graph, but not the file itself.

    Measured on this 64-bit computer, with the interpreter that also keeps
    accounts. On a 32-bit chip the tensors are the same and the interpreter's own
    part, with its pointers, is smaller: an emulated Cortex-M4 needed 0.82 to
    0.98 of it. So the number is an upper bound for such a chip, as long as it runs
    the portable kernels. Kernels of a chip's vendor may ask for more (CMSIS-NN
    does, for convolutions).

    Args:
        content: The bytes of a `.tflite` file.

    Raises:
        ImportError: If the interpreter is not installed.
        ExportError: If it cannot run the file.
    """
    _interpreter_module()
    file = TFLiteFile(content)
    return _ask_worker(content, file, plenty(file), "smallest")


def runtime_name() -> str:
    """Returns name and version of the interpreter."""
    return f"TensorFlow Lite Micro {metadata.version('tflite-micro')}"


def require() -> None:
    """Makes sure that the interpreter is installed.

    Raises:
        ImportError: If it is not.
    """
    _interpreter_module()


def missing_package(error: ImportError) -> ImportError:
    """Returns the error that says what to install."""
    return ImportError(
        "Files for microcontrollers are made and checked with the package "
        f"tflite-micro, version {TFLITE_MICRO_VERSION} ({error}). Install it: "
        "`pip install keras-sq[micro]` (there are wheels for Linux on x86-64)."
    )


def plenty(file: TFLiteFile) -> int:
    """Returns more memory than a file can need, in bytes.

    It costs nothing: the interpreter does not touch what it does not use.
    """
    activations = sum(
        8 * abs(int(np.prod(shape_of(tensor), dtype=np.int64)))
        for graph in file.subgraphs
        for tensor in graph.tensors
        if file.data(tensor) is None
    )
    size = 2**25 + 2 * activations
    return size - size % ALIGNMENT


def _interpreter_module() -> Any:
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise missing_package(error) from error
    return runtime


def _ask_worker(content: bytes, file: TFLiteFile, size: int, *what: str) -> int:
    """Runs a file in another process; returns the size of its memory."""
    inputs = len(indices(file.subgraphs[0].inputs))
    # It is to find the same packages. NumPy's threads, which it does not need,
    # do not go well with forking.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(_WORKER), str(inputs), str(size), *what],
        input=content,
        capture_output=True,
        env=environment,
        check=False,
    )
    if result.returncode != 0:
        raise ExportError(
            "TensorFlow Lite Micro cannot be run in a process of its own: "
            f"{_shortened(result.stderr.decode(errors='replace'))}."
        )
    answer = json.loads(result.stdout)
    if answer["error"] is not None:
        raise _refusal(answer["error"], size if size < plenty(file) else None)
    return int(answer["arena_bytes"])


def _refusal(said: str, size: int | None) -> ExportError:
    """Returns the error for what the interpreter logged, in little memory or not."""
    missing = {a or b for a, b in _MISSING_OPERATOR.findall(said)}
    if missing:
        names = ", ".join(sorted(missing))
        return UnsupportedOperatorError(
            f"{runtime_name()} has no operator {names}. Replace the layer that needs "
            "it, or export for another target.",
            sorted(missing),
        )
    if (failed := _FAILED_OPERATOR.search(said)) and "FLOAT32" in said:
        return UnsupportedOperatorError(
            f"{runtime_name()} has the operator {failed[1]} for floats only. Replace "
            "the layer that needs it, or export for another target.",
            [failed[1]],
        )
    where = "" if size is None else f" in {size:,} bytes of memory"
    return ExportError(
        f"{runtime_name()} cannot run the file{where}: {_shortened(said)}."
    )


def _shortened(said: str) -> str:
    """Returns the first and the last lines of a log, in one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if len(lines) > 4:
        lines = [*lines[:2], "...", *lines[-2:]]
    return "; ".join(line[:200].rstrip(".") for line in lines) or "no message"


def _micro_tensor(details: dict[str, Any]) -> MicroTensor:
    quantization = details["quantization_parameters"]
    scales, zero_points = quantization["scales"], quantization["zero_points"]
    return MicroTensor(
        tuple(int(size) for size in details["shape"]),
        np.dtype(details["dtype"]).name,
        float(scales[0]) if len(scales) else 0.0,
        int(zero_points[0]) if len(zero_points) else 0,
    )
