"""Quantized recurrent cells and layers; a filter per unit of each gate."""

import keras

from keras_sq.layers.container import QuantizedLayer
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.registry import add, add_container


@add
class SQSimpleRNNCell(StochasticallyQuantized, keras.layers.SimpleRNNCell):
    """`SimpleRNNCell` with both kernels stochastically quantized."""

    quantized_weights = ("kernel", "recurrent_kernel")


@add
class SQLSTMCell(StochasticallyQuantized, keras.layers.LSTMCell):
    """`LSTMCell` with both kernels stochastically quantized."""

    quantized_weights = ("kernel", "recurrent_kernel")


@add
class SQGRUCell(StochasticallyQuantized, keras.layers.GRUCell):
    """`GRUCell` with both kernels stochastically quantized."""

    quantized_weights = ("kernel", "recurrent_kernel")


@add_container
class SQSimpleRNN(QuantizedLayer, keras.layers.SimpleRNN):
    """`SimpleRNN` over an `SQSimpleRNNCell`."""


@add_container
class SQLSTM(QuantizedLayer, keras.layers.LSTM):
    """`LSTM` over an `SQLSTMCell`.

    Example:
        >>> layer = keras_sq.layers.SQLSTM(4, kernel_quantizer="ternary")
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """


@add_container
class SQGRU(QuantizedLayer, keras.layers.GRU):
    """`GRU` over an `SQGRUCell`."""
