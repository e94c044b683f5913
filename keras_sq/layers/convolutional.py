"""Quantized convolutions; a filter per output channel."""

import keras

from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.registry import add


class _TransposedKernel:
    """Kernels `(…, filters, input channels)`."""

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns the axis of the output channels."""
        return (len(self.latent(name).shape) - 2,)  # type: ignore[attr-defined]


class _DepthwiseKernel:
    """Kernels `(…, channels, multiplier)`: both axes tell filters apart."""

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns both last axes for a depthwise kernel, else the last."""
        rank = len(self.latent(name).shape)  # type: ignore[attr-defined]
        return (rank - 1,) if name == "pointwise_kernel" else (rank - 2, rank - 1)


@add
class SQConv1D(StochasticallyQuantized, keras.layers.Conv1D):
    """`Conv1D` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv1D(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 2))).shape
        TensorShape([1, 3, 8])
    """


@add
class SQConv2D(StochasticallyQuantized, keras.layers.Conv2D):
    """`Conv2D` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv2D(8, 3, kernel_quantizer="ternary")
        >>> layer(keras.ops.ones((1, 5, 5, 2))).shape
        TensorShape([1, 3, 3, 8])
    """


@add
class SQConv3D(StochasticallyQuantized, keras.layers.Conv3D):
    """`Conv3D` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv3D(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 5, 5, 2))).shape
        TensorShape([1, 3, 3, 3, 8])
    """


@add
class SQConv1DTranspose(
    _TransposedKernel, StochasticallyQuantized, keras.layers.Conv1DTranspose
):
    """`Conv1DTranspose` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv1DTranspose(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 2))).shape
        TensorShape([1, 7, 8])
    """


@add
class SQConv2DTranspose(
    _TransposedKernel, StochasticallyQuantized, keras.layers.Conv2DTranspose
):
    """`Conv2DTranspose` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv2DTranspose(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 5, 2))).shape
        TensorShape([1, 7, 7, 8])
    """


@add
class SQConv3DTranspose(
    _TransposedKernel, StochasticallyQuantized, keras.layers.Conv3DTranspose
):
    """`Conv3DTranspose` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQConv3DTranspose(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 5, 5, 2))).shape
        TensorShape([1, 7, 7, 7, 8])
    """


@add
class SQDepthwiseConv1D(
    _DepthwiseKernel, StochasticallyQuantized, keras.layers.DepthwiseConv1D
):
    """`DepthwiseConv1D` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQDepthwiseConv1D(3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 2))).shape
        TensorShape([1, 3, 2])
    """


@add
class SQDepthwiseConv2D(
    _DepthwiseKernel, StochasticallyQuantized, keras.layers.DepthwiseConv2D
):
    """`DepthwiseConv2D` with a stochastically quantized kernel.

    Example:
        >>> layer = keras_sq.layers.SQDepthwiseConv2D(3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 5, 2))).shape
        TensorShape([1, 3, 3, 2])
    """


@add
class SQSeparableConv1D(
    _DepthwiseKernel, StochasticallyQuantized, keras.layers.SeparableConv1D
):
    """`SeparableConv1D` with both kernels stochastically quantized.

    Example:
        >>> layer = keras_sq.layers.SQSeparableConv1D(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 2))).shape
        TensorShape([1, 3, 8])
    """

    quantized_weights = ("depthwise_kernel", "pointwise_kernel")


@add
class SQSeparableConv2D(
    _DepthwiseKernel, StochasticallyQuantized, keras.layers.SeparableConv2D
):
    """`SeparableConv2D` with both kernels stochastically quantized.

    Example:
        >>> layer = keras_sq.layers.SQSeparableConv2D(8, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 5, 5, 2))).shape
        TensorShape([1, 3, 3, 8])
    """

    quantized_weights = ("depthwise_kernel", "pointwise_kernel")
