"""Quantized recurrent cells and layers; a filter per unit of each gate."""

from typing import Any

import keras

from keras_sq import _keras_internals as internals
from keras_sq.layers.container import QuantizedLayer
from keras_sq.layers.quantized import StochasticallyQuantized, kernels_held
from keras_sq.layers.registry import add, add_container
from keras_sq.types import Tensor


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


class QuantizedRecurrent(QuantizedLayer):
    """Base of the recurrent layers: quantizes once a call, not once a step."""

    def call(
        self,
        sequences: Tensor,
        initial_state: Any = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Any:
        """Runs the layer, with the cell's kernels computed beforehand."""
        cells = [
            layer
            for layer in internals.flatten_layers(self)
            if isinstance(layer, StochasticallyQuantized)
        ]
        with kernels_held(cells):
            return super().call(  # type: ignore[misc]
                sequences, initial_state=initial_state, mask=mask, training=training
            )


@add_container
class SQRNN(QuantizedRecurrent, keras.layers.RNN):
    """`RNN` over a cell or several, to be quantized or quantized already."""


@add_container
class SQSimpleRNN(QuantizedRecurrent, keras.layers.SimpleRNN):
    """`SimpleRNN` over an `SQSimpleRNNCell`."""


@add_container
class SQLSTM(QuantizedRecurrent, keras.layers.LSTM):
    """`LSTM` over an `SQLSTMCell`.

    Example:
        >>> layer = keras_sq.layers.SQLSTM(4, kernel_quantizer="ternary")
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """


@add_container
class SQGRU(QuantizedRecurrent, keras.layers.GRU):
    """`GRU` over an `SQGRUCell`."""
