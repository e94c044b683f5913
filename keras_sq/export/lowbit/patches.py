"""The operators that lay the inputs of a convolution out as rows.

PAD adds the zeros around the input, and zero channels up to a multiple of 4, where
the codes need it. GATHER copies the pixels that each output pixel needs side by side,
whatever strides and dilations are; its indices are a constant, which all convolutions
of one shape share.

Design note: **GATHER, not slices.** A slice for each place of the kernel and a
CONCATENATION give the same rows in the same time, but take two kB of operators and
tensors for a kernel of 3 × 3; the indices of 14 × 14 pixels take 3.5 kB, once. INT16
indices are in every runtime that has products of INT2 weights.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.lowbit.products import Window
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile, shape_of

PAD_VERSIONS = {"FLOAT32": 1, "INT8": 2}
INT16_PLACES = 6
"""Version of GATHER that takes INT16 indices."""

MAX_INT16 = 2**15


def index_bytes(window: Window) -> int:
    """Returns what the indices of a convolution take in the file."""
    count = math.prod(window.outputs) * math.prod(window.kernel)
    return count * _index_type(window).itemsize


def _index_type(window: Window) -> np.dtype[Any]:
    return np.dtype("<i2" if math.prod(window.padded) <= MAX_INT16 else "<i4")


def places(window: Window) -> Array:
    """Returns which pixel of the padded input each entry of the rows is.

    Args:
        window: How the convolution moves.

    Returns:
        Int array `(outputs · places of the kernel,)`, of pixels row by row.
    """
    along = [
        np.arange(outputs)[:, np.newaxis] * stride
        + np.arange(kernel)[np.newaxis] * dilation
        for outputs, kernel, stride, dilation in zip(
            window.outputs, window.kernel, window.strides, window.dilations, strict=True
        )
    ]
    rows, columns = along
    width = window.padded[1]
    pixels = rows[:, np.newaxis, :, np.newaxis] * width + columns[:, np.newaxis, :]
    return pixels.reshape(-1).astype(_index_type(window))


class Patches:
    """Adds to a file the operators that make rows of a convolution's inputs.

    Args:
        file: The file, changed in place.
    """

    def __init__(self, file: TFLiteFile) -> None:
        self._file = file
        self._rows: dict[Any, int] = {}
        self._padded: dict[Any, int] = {}

    def rows(
        self, subgraph: Any, source: int, window: Window, channels: int
    ) -> tuple[list[Any], int]:
        """Returns the operators that make the rows, and the tensor of the rows.

        Convolutions that read one input in the same way share the rows.

        Args:
            subgraph: The graph.
            source: The tensor of inputs, `(batch, height, width, channels)`.
            window: How the convolution moves.
            channels: Number of channels, zero channels included.
        """
        key = id(subgraph), source, window, channels
        if key in self._rows:
            return [], self._rows[key]
        operators, source = self.padded(subgraph, source, channels, window.padding)
        height, width = window.padded
        pixels = self._like(subgraph, source, (1, height * width, channels))
        operators.append(self.reshape(source, pixels, (-1, height * width, channels)))
        indices = places(window)
        kind = {2: "INT16", 4: "INT32"}[indices.itemsize]
        index = self._file.add_tensor(subgraph, "", indices.shape, kind, indices)
        gathered = self._like(subgraph, source, (1, len(indices), channels))
        options = schema.GatherOptionsT()
        options.axis = 1
        operators.append(
            self._file.new_operator(
                "GATHER", [pixels, index], [gathered], options, INT16_PLACES
            )
        )
        shape = *window.outputs, math.prod(window.kernel) * channels
        rows = self._like(subgraph, source, (1, *shape))
        operators.append(self.reshape(gathered, rows, (-1, *shape)))
        self._rows[key] = rows
        return operators, rows

    def padded(
        self,
        subgraph: Any,
        source: int,
        channels: int,
        padding: Sequence[tuple[int, int]] = (),
    ) -> tuple[list[Any], int]:
        """Returns the operators that pad a tensor with zeros, and the padded tensor.

        Args:
            subgraph: The graph.
            source: The tensor.
            channels: Size of its last axis with the zeros.
            padding: Zeros before and after the axes between the first and the last;
                none, if not given.
        """
        tensor = subgraph.tensors[source]
        shape = shape_of(tensor)
        between = list(padding) or [(0, 0)] * (len(shape) - 2)
        pads = np.array([(0, 0), *between, (0, channels - shape[-1])], "<i4")
        if not pads.any():
            return [], source
        key = id(subgraph), source, pads.tobytes()
        if key in self._padded:
            return [], self._padded[key]
        table = self._file.add_tensor(subgraph, "", pads.shape, "INT32", pads)
        sizes = [1, *(np.array(shape[1:]) + pads[1:].sum(axis=1))]
        result = self._like(subgraph, source, sizes)
        self._padded[key] = result
        version = PAD_VERSIONS[TYPE_NAMES[tensor.type]]
        operator = self._file.new_operator(
            "PAD", [source, table], [result], schema.PadOptionsT(), version
        )
        return [operator], result

    def _like(self, subgraph: Any, index: int, shape: Sequence[int]) -> int:
        """Adds a tensor of the type and the quantization of another."""
        tensor = subgraph.tensors[index]
        return self._file.add_tensor(
            subgraph, "", shape, TYPE_NAMES[tensor.type], None, tensor.quantization
        )

    def reshape(self, source: int, target: int, shape: Sequence[int]) -> Any:
        """Returns the operator that gives a tensor another shape; -1 stands for any."""
        options = schema.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        return self._file.new_operator("RESHAPE", [source], [target], options)
