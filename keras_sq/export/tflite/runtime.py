"""The interpreter that runs an exported file, and what it prints.

LiteRT where it is installed (`pip install ai-edge-litert`), else the same
interpreter in TensorFlow, which is about to leave it.
"""

import abc
import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.errors import ExportError
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices


class FileRunner(abc.ABC):
    """A file in memory, ready to be run by some interpreter.

    Attributes:
        runtime: Name and version of the interpreter.
        inputs: Name -> dtype of the inputs.
        outputs: Name -> shape (`None` where open) and dtype of the outputs.
        quantization: Name of an int8 input or output -> scale and zero point.
        delegated: Whether XNNPACK may compute parts of it.
    """

    runtime: str
    inputs: dict[str, str]
    outputs: dict[str, tuple[tuple[int | None, ...], str]]
    quantization: dict[str, tuple[float, int]]
    delegated: bool = False

    @abc.abstractmethod
    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name, for inputs by name."""

    def step(self, name: str) -> float:
        """Returns the step of an int8 input or output; 0 of others."""
        return self.quantization[name][0] if name in self.quantization else 0.0

    def quantized(self, name: str, values: Array) -> Array:
        """Returns float values as the int8 input takes them; others unchanged."""
        if name not in self.quantization or values.dtype.kind != "f":
            return values
        scale, zero_point = self.quantization[name]
        rounded = np.rint(values / np.float32(scale)) + zero_point
        codes: Array = np.clip(rounded, -128, 127).astype(np.int8)
        return codes

    def dequantized(self, name: str, values: Array) -> Array:
        """Returns what an int8 output stands for; others unchanged."""
        if name not in self.quantization or values.dtype != np.int8:
            return values
        scale, zero_point = self.quantization[name]
        real: Array = (values.astype(np.float32) - zero_point) * np.float32(scale)
        return real


class Runner(FileRunner):
    """A file in memory, ready to be run by LiteRT or TensorFlow Lite.

    Args:
        content: The bytes of a `.tflite` file with one signature.
        delegates: Whether XNNPACK may take over operations. On int8 it rounds
            in another way than the interpreter's own kernels.

    Raises:
        ImportError: If there is no interpreter.
        RuntimeError: If the file cannot be loaded.
        ValueError: If the file cannot be loaded.
    """

    def __init__(self, content: bytes, delegates: bool = True) -> None:
        self.delegated = delegates
        with quiet():
            interpreter, self.runtime = _interpreter(content, delegates)
            (signature,) = interpreter.get_signature_list()
            self._run = interpreter.get_signature_runner(signature)
        inputs = self._run.get_input_details()
        outputs = self._run.get_output_details()
        self.inputs = {
            name: np.dtype(detail["dtype"]).name for name, detail in inputs.items()
        }
        self.quantization = {
            name: (float(detail["quantization"][0]), int(detail["quantization"][1]))
            for name, detail in [*inputs.items(), *outputs.items()]
            if np.dtype(detail["dtype"]) == np.int8 and detail["quantization"][0]
        }
        self.outputs = {
            name: (
                tuple(None if n < 0 else int(n) for n in detail["shape_signature"]),
                np.dtype(detail["dtype"]).name,
            )
            for name, detail in outputs.items()
        }

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name, for inputs by name."""
        with quiet():
            # Copies: the interpreter hands out views into its memory.
            return {k: np.array(v) for k, v in self._run(**inputs).items()}


class AllTensors:
    """A file whose every tensor can be looked at.

    Args:
        content: The bytes of a `.tflite` file.
    """

    def __init__(self, content: bytes) -> None:
        with quiet():
            self._interpreter, _ = _interpreter(content, False, preserve=True)
            (signature,) = self._interpreter.get_signature_list()
            self._run = self._interpreter.get_signature_runner(signature)

    def _invoke(self, inputs: Mapping[str, Array]) -> None:
        """Runs the file.

        Raises:
            ExportError: If it cannot be run on these inputs.
        """
        try:
            self._run(**inputs)
        except (RuntimeError, ValueError) as error:
            sizes = {name: list(np.shape(values)) for name, values in inputs.items()}
            reason = str(error).strip().partition("\n")[0][:200]
            raise ExportError(
                f"The file that was made cannot be run on inputs of shapes {sizes} "
                f"({reason}). Does the model compute with inputs of these shapes? No "
                "file was written."
            ) from error

    def values(
        self, inputs: Mapping[str, Array], wanted: Sequence[int], subgraph: int = 0
    ) -> list[Array]:
        """Returns tensors of a graph, as they are after a run.

        Args:
            inputs: By name.
            wanted: Indices of the tensors.
            subgraph: Number of the graph.
        """
        with quiet():
            self._invoke(inputs)
            return [
                np.array(self._interpreter.get_tensor(index, subgraph))
                for index in wanted
            ]

    def shapes(self, sizes: Mapping[str, Sequence[int]]) -> dict[int, tuple[int, ...]]:
        """Returns place -> shape of the main graph's tensors, as they are in a run.

        Args:
            sizes: Shapes of the inputs, by name.
        """
        inputs = self._run.get_input_details()
        zeros = {
            name: np.zeros(shape, inputs[name]["dtype"])
            for name, shape in sizes.items()
        }
        with quiet():
            self._invoke(zeros)
            details = self._interpreter.get_tensor_details()
        return {x["index"]: tuple(int(n) for n in x["shape"]) for x in details}

    def not_finite(
        self, inputs: Mapping[str, Array], order: Sequence[int]
    ) -> int | None:
        """Returns the first tensor with values that are not finite.

        Some operators give the largest float32 in place of infinity.

        Args:
            inputs: By name.
            order: Indices of the float tensors to look at.
        """
        with quiet():
            self._invoke(inputs)
            for index in order:
                values = np.abs(self._interpreter.get_tensor(index))
                if not np.all(values < np.finfo(np.float32).max):
                    return index
        return None


def signature_names(file: TFLiteFile) -> tuple[list[str], list[str]]:
    """Returns the names of inputs and outputs, in the order of the graph's.

    What the signature leaves out has the tensor's name.
    """
    graph = file.subgraphs[0]
    signatures = file.model.signatureDefs or []

    def named(places: Any, maps: list[Any]) -> list[str]:
        by_index = {entry.tensorIndex: entry.name for entry in maps}
        names = [
            by_index.get(index) or graph.tensors[index].name or b""
            for index in indices(places)
        ]
        return [name.decode() for name in names]

    return (
        named(graph.inputs, [x for entry in signatures for x in entry.inputs]),
        named(graph.outputs, [x for entry in signatures for x in entry.outputs]),
    )


def real_values(tensor: Any, values: Array) -> tuple[Array, float]:
    """Returns the numbers that a tensor's values stand for, and their step.

    Args:
        tensor: A tensor of a `TFLiteFile`.
        values: What it holds; the step of others than int8 is 0.
    """
    if values.dtype != np.int8:
        return values.astype("f8"), 0.0
    step = float(tensor.quantization.scale[0])
    return (values.astype("f8") - int(tensor.quantization.zeroPoint[0])) * step, step


def _interpreter(
    content: bytes, delegates: bool, preserve: bool = False
) -> tuple[Any, str]:
    options: dict[str, Any] = {"model_content": content}
    options["experimental_preserve_all_tensors"] = preserve
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        name = f"LiteRT {metadata.version('ai-edge-litert')}"
        options["experimental_op_resolver_type"] = _resolver(OpResolverType, delegates)
        return Interpreter(**options), name
    except ImportError:
        pass
    import tensorflow as tf

    try:
        interpreter_class = tf.lite.Interpreter
        resolver_types = tf.lite.experimental.OpResolverType
    except AttributeError as error:
        raise ImportError(
            "This TensorFlow has no interpreter to check the exported file with. "
            "Install LiteRT: `pip install ai-edge-litert`."
        ) from error
    options["experimental_op_resolver_type"] = _resolver(resolver_types, delegates)
    return interpreter_class(**options), f"TensorFlow Lite {tf.__version__}"


def _resolver(types: Any, delegates: bool) -> Any:
    if delegates:
        return types.AUTO
    return types.BUILTIN_WITHOUT_DEFAULT_DELEGATES


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the converter and the interpreter from logging meanwhile.

    They log from C++, past Python's logging, and TensorFlow's logger besides
    (which writes to a standard error of its own where there is one, as in a
    notebook). What matters of it is in the exceptions too.
    """
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with _no_native_output(), warnings.catch_warnings():
            # It asks to use LiteRT instead: not installed here, or the converter
            # itself uses it, to measure ranges.
            warnings.filterwarnings(
                "ignore", message=r"\s*Warning: tf.lite.Interpreter"
            )
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _no_native_output() -> Iterator[None]:
    with contextlib.suppress(ValueError, OSError):
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # No standard error to keep quiet.
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError, OSError):
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
