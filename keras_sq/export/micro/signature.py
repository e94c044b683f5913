"""Files for microcontrollers run by the names of their inputs and outputs.

The interpreter of TensorFlow Lite Micro knows no names: they come from the file's
signature.
"""

from collections.abc import Callable, Mapping

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.micro.runtime import MicroRunner
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.runtime import FileRunner, signature_names


class NamedMicroRunner(FileRunner):
    """A file in memory, ready to be run by TensorFlow Lite Micro.

    Args:
        content: The bytes of a `.tflite` file.
        names: Of its inputs, and of its outputs, in the file's order.
        arena_bytes: Size of the memory that it gets; plenty if `None`.

    Raises:
        ImportError: If the interpreter is not installed.
        ExportError: If it cannot run the file.
    """

    def __init__(
        self,
        content: bytes,
        names: tuple[list[str], list[str]],
        arena_bytes: int | None = None,
    ) -> None:
        self._run = MicroRunner(content, arena_bytes)
        self._names = names
        self.runtime = self._run.runtime
        tensors = dict(zip(names[0], self._run.inputs, strict=True))
        self.inputs = {name: tensor.dtype for name, tensor in tensors.items()}
        results = dict(zip(names[1], self._run.outputs, strict=True))
        self.outputs = {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in results.items()
        }
        self.quantization = {
            name: (tensor.scale, tensor.zero_point)
            for name, tensor in [*tensors.items(), *results.items()]
            if tensor.dtype == "int8" and tensor.scale
        }

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name, for inputs by name."""
        outputs = self._run([np.asarray(inputs[name]) for name in self._names[0]])
        return dict(zip(self._names[1], outputs, strict=True))


def loader(
    int8_file: bytes, arena_bytes: int | None = None
) -> Callable[[bytes, bool], FileRunner]:
    """Returns what makes the interpreter of a file, for the comparison with Keras.

    Args:
        int8_file: The file that the compressed one was made from.
        arena_bytes: The memory of all but that file; plenty if `None`.
    """
    names = signature_names(TFLiteFile(int8_file))

    def load(content: bytes, delegates: bool) -> FileRunner:
        del delegates  # There are none.
        size = None if content == int8_file else arena_bytes
        return NamedMicroRunner(content, names, size)

    return load
