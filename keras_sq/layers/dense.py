"""Quantized dense and embedding layers."""

import keras

from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.registry import add


@add
class SQDense(StochasticallyQuantized, keras.layers.Dense):
    """`Dense` with a stochastically quantized kernel; a filter per unit.

    Args:
        *args: As for `keras.layers.Dense`.
        **kwargs: As for `keras.layers.Dense`, and the settings of
            `keras_sq.layers.Settings`, keyword-only.

    Example:
        >>> layer = keras_sq.layers.SQDense(2, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 3))).shape
        TensorShape([1, 2])
    """


@add
class SQEinsumDense(StochasticallyQuantized, keras.layers.EinsumDense):
    """`EinsumDense` with a stochastically quantized kernel.

    A filter is what one entry of the output's axes is computed with: for
    `"abc,cde->abde"` there are `d · e` of them.

    Example:
        >>> layer = keras_sq.layers.SQEinsumDense(
        ...     "ab,bc->ac", output_shape=4, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 3))).shape
        TensorShape([1, 4])
    """

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns the kernel's axes that are axes of the output."""
        inputs, output = self.equation.replace(" ", "").split("->")
        kernel = inputs.split(",")[1]
        axes = tuple(i for i, letter in enumerate(kernel) if letter in output)
        # A kernel that is summed away whole is one filter.
        return axes


@add
class SQEmbedding(StochasticallyQuantized, keras.layers.Embedding):
    """`Embedding` with stochastically quantized rows; a filter per row.

    Example:
        >>> layer = keras_sq.layers.SQEmbedding(10, 4, kernel_quantizer="ternary")
        >>> layer(np.array([[1, 2, 3]])).shape
        TensorShape([1, 3, 4])
    """

    quantized_weights = ("embeddings",)
    takes_floats = False

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns the axis of the rows."""
        return (0,)


@add
class SQReversibleEmbedding(StochasticallyQuantized, keras.layers.ReversibleEmbedding):
    """`ReversibleEmbedding` with a stochastically quantized table; a filter per row.

    Called with `reverse=True`, it projects with the quantized table, transposed, so
    that there a filter is an output. Where the weights are not tied, the projection
    has a kernel of its own, quantized too, with a filter per output.

    Example:
        >>> layer = keras_sq.layers.SQReversibleEmbedding(
        ...     10, 4, kernel_quantizer="ternary")
        >>> hidden = layer(np.array([[1, 2, 3]]))
        >>> layer(hidden, reverse=True).shape
        TensorShape([1, 3, 10])
    """

    quantized_weights = ("embeddings", "reverse_embeddings")
    optional_weights = ("reverse_embeddings",)
    takes_floats = False

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns the axis of the vocabulary."""
        return (0,) if name == "embeddings" else (1,)
