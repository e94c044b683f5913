"""Quantized attention: the projections are quantized `EinsumDense` layers."""

import keras

from keras_sq.layers.container import QuantizedLayer, add_container


@add_container
class SQMultiHeadAttention(QuantizedLayer, keras.layers.MultiHeadAttention):
    """`MultiHeadAttention` with stochastically quantized projections.

    Example:
        >>> layer = keras_sq.layers.SQMultiHeadAttention(2, 4)
        >>> x = keras.ops.ones((1, 3, 8))
        >>> layer(x, x).shape
        TensorShape([1, 3, 8])
    """
