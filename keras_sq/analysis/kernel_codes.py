"""The quantized kernels as integers and scales: "where are my ±1 weights?"."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.layers import quantized_layers
from keras_sq.layers.kernel_functions import filters_last
from keras_sq.quantizers import LearnedQuantizer


@dataclasses.dataclass(frozen=True)
class KernelCodes:
    """A quantized kernel, taken apart: `codes · scale`, or levels by number.

    Attributes:
        codes: Int8 array of the kernel's shape; of a learned codebook, uint8
            numbers of levels, from 0.
        scale: Float array that broadcasts to it; of a learned codebook, the
            largest absolute level.
        levels: Of a learned codebook: the levels, sorted, on the first axis of
            an array whose other axes broadcast to the kernel. Else `None`.

    Example:
        >>> codes = keras_sq.KernelCodes(
        ...     np.array([[1], [-1]], "int8"), np.array([[0.5]], "float32"))
        >>> codes.kernel.tolist()
        [[0.5], [-0.5]]
    """

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    levels: np.ndarray[Any, Any] | None = None

    @property
    def kernel(self) -> np.ndarray[Any, Any]:
        """The quantized kernel."""
        if self.levels is not None:
            numbers = self.codes.astype(np.intp)[np.newaxis]
            table = np.broadcast_to(self.levels, (len(self.levels), *self.codes.shape))
            values: np.ndarray[Any, Any] = np.take_along_axis(table, numbers, axis=0)[0]
            return values
        kernel: np.ndarray[Any, Any] = self.codes.astype(self.scale.dtype) * self.scale
        return kernel


def get_codes(model: Model) -> dict[str, KernelCodes]:
    """Returns the integer codes and scales of all quantized kernels.

    Args:
        model: A model with quantized layers, or one such layer.

    Returns:
        Dict from `"<path of the layer>/<weight>"` to codes and scale.

    Raises:
        ValueError: If nothing is quantized.

    Example:
        >>> layer = keras_sq.layers.SQDense(1, kernel_quantizer="binary")
        >>> layer.build((None, 2))
        >>> _ = layer.latent().assign([[0.5], [-1.5]])
        >>> (codes,) = keras_sq.get_codes(layer).values()
        >>> codes.codes.tolist(), codes.scale.tolist()
        ([[1], [-1]], [[1.0]])
    """
    codes_of_model = {}
    for path, layer in quantized_layers(model):
        quantizer = layer.quantization_settings.kernel_quantizer
        for name in layer.quantized_weights:
            value = internals.read(layer.latent(name))
            columns, restore = filters_last(value, layer.filter_axes(name))
            fitted = layer.fitted(name) or quantizer.fit(columns)
            codes = restore(quantizer.encode(columns, *fitted))
            axes = layer.filter_axes(name)
            shape = tuple(
                size if axis in axes else 1 for axis, size in enumerate(value.shape)
            )
            numbers = keras.ops.convert_to_numpy(codes)
            if isinstance(quantizer, LearnedQuantizer):
                table = keras.ops.convert_to_numpy(
                    keras.ops.cast(quantizer.levels(*fitted), value.dtype)
                ).reshape(-1, *shape)
                codes_of_model[f"{path}/{name}"] = KernelCodes(
                    numbers.astype(np.uint8), np.abs(table).max(axis=0), table
                )
                continue
            scale = keras.ops.reshape(keras.ops.cast(fitted[0], value.dtype), shape)
            codes_of_model[f"{path}/{name}"] = KernelCodes(
                numbers.astype(np.int8), keras.ops.convert_to_numpy(scale)
            )
    if not codes_of_model:
        raise ValueError(
            "No quantized layer found. Make the model one with "
            "`keras_sq.quantize_model(model)`."
        )
    return codes_of_model
