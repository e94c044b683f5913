"""The quantized kernels as integers and scales: "where are my ±1 weights?"."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_sq import _keras_internals as internals
from keras_sq.layers import quantized_layers
from keras_sq.layers.quantized import filters_last
from keras_sq.types import Model


@dataclasses.dataclass(frozen=True)
class KernelCodes:
    """A quantized kernel, taken apart: `codes · scale`.

    Attributes:
        codes: Int8 array of the kernel's shape.
        scale: Float array that broadcasts to it.
    """

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]

    @property
    def kernel(self) -> np.ndarray[Any, Any]:
        """The quantized kernel, `codes · scale`."""
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
    found = {}
    for path, layer in quantized_layers(model):
        quantizer = layer.quantization_settings.kernel_quantizer
        for name in layer.quantized_weights:
            value = internals.read(layer.latent(name))
            columns, restore = filters_last(value, layer.filter_axes(name))
            fitted = quantizer.fit(columns)
            codes = restore(quantizer.encode(columns, *fitted))
            axes = layer.filter_axes(name)
            shape = tuple(
                size if axis in axes else 1 for axis, size in enumerate(value.shape)
            )
            scale = keras.ops.reshape(keras.ops.cast(fitted[0], value.dtype), shape)
            found[f"{path}/{name}"] = KernelCodes(
                keras.ops.convert_to_numpy(codes).astype(np.int8),
                keras.ops.convert_to_numpy(scale),
            )
    if not found:
        raise ValueError(
            "No quantized layer found. Make the model one with "
            "`keras_sq.quantize_model(model)`."
        )
    return found
