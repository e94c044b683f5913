"""Running files with the interpreter of Larq Compute Engine.

Design note: **no NumPy 2.** The interpreter of version 0.16, built for NumPy 1, is
imported beside NumPy 2 without complaint and then takes every input for empty. The
package does not say so; hence a check here, and `numpy<2` in the extra `lce`.
"""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.runtime import FileRunner, quiet, signature_names

RUNTIME = "Larq Compute Engine >= 0.16"
"""The oldest version that files were tried on."""


def require() -> Any:
    """Returns the package.

    Raises:
        ImportError: If it is not installed, or not with a NumPy that it works with.
    """
    try:
        with quiet():
            import larq_compute_engine
    except ImportError as error:
        raise _missing(str(error)) from error
    if int(np.__version__.split(".")[0]) >= 2:
        raise _missing(f"it needs NumPy 1; installed is {np.__version__}")
    return larq_compute_engine


def _missing(reason: str) -> ImportError:
    return ImportError(
        "Files for Larq Compute Engine are made and checked with the package "
        f'larq-compute-engine ({reason}). Install it: `pip install "keras-sq[lce]"` '
        "(with NumPy 1; there are wheels for Python 3.10 to 3.12)."
    )


class LarqRunner(FileRunner):
    """A file in memory, ready to be run by Larq Compute Engine.

    It takes one example at a time, on one thread, and runs float operators without
    XNNPACK.

    Args:
        content: The bytes of a `.tflite` file.
        delegates: As all runners take; there are none here.

    Raises:
        ImportError: If the package is missing.
        RuntimeError: If the file cannot be loaded.
    """

    def __init__(self, content: bytes, delegates: bool = False) -> None:
        del delegates
        package = require()
        # Not the interpreter's: it does not know names.
        self._names = signature_names(TFLiteFile(content))
        with quiet():
            self._interpreter = package.testing.Interpreter(content, num_threads=1)
        self.runtime = f"Larq Compute Engine {metadata.version('larq-compute-engine')}"
        self.inputs = {
            name: np.dtype(kind).name
            for name, kind in zip(
                self._names[0], self._interpreter.input_types, strict=True
            )
        }
        self.outputs = {
            name: (tuple(int(size) for size in shape), np.dtype(kind).name)
            for name, shape, kind in zip(
                self._names[1],
                self._interpreter.output_shapes,
                self._interpreter.output_types,
                strict=True,
            )
        }
        self.quantization = {}

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name, for inputs by name."""
        with quiet():
            results = self._interpreter.predict(
                [inputs[name] for name in self._names[0]]
            )
        outputs = results if isinstance(results, list) else [results]
        return dict(zip(self._names[1], outputs, strict=True))
