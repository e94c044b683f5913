"""Quantized recurrent cells and layers; a filter per unit of each gate.

And what else calls a layer once for each step of time: `TimeDistributed`.
"""

from typing import Any

import keras

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Tensor
from keras_sq.layers.container import (
    QuantizedContainer,
    QuantizedLayer,
    add_container,
    add_container_mixin,
)
from keras_sq.layers.hybrid_kernel import kernels_held
from keras_sq.layers.inputs import QuantizedInputs, inputs_quantized
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.registry import add


@add
class SQSimpleRNNCell(StochasticallyQuantized, keras.layers.SimpleRNNCell):
    """`SimpleRNNCell` with both kernels stochastically quantized.

    Example:
        >>> cell = keras_sq.layers.SQSimpleRNNCell(4, kernel_quantizer="binary")
        >>> keras.layers.RNN(cell)(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """

    quantized_weights = ("kernel", "recurrent_kernel")


@add
class SQLSTMCell(StochasticallyQuantized, keras.layers.LSTMCell):
    """`LSTMCell` with both kernels stochastically quantized.

    Example:
        >>> cell = keras_sq.layers.SQLSTMCell(4, kernel_quantizer="binary")
        >>> keras.layers.RNN(cell)(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """

    quantized_weights = ("kernel", "recurrent_kernel")


@add
class SQGRUCell(StochasticallyQuantized, keras.layers.GRUCell):
    """`GRUCell` with both kernels stochastically quantized.

    Example:
        >>> cell = keras_sq.layers.SQGRUCell(4, kernel_quantizer="binary")
        >>> keras.layers.RNN(cell)(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """

    quantized_weights = ("kernel", "recurrent_kernel")


@add
class SQConvLSTMCell(StochasticallyQuantized, internals.ConvLSTMCell):
    """The cell of `ConvLSTM1D`, `2D` and `3D` with both kernels quantized.

    Keras has no public name for it either: it comes with its layer.
    """

    quantized_weights = ("kernel", "recurrent_kernel")


class QuantizedRecurrent(QuantizedLayer):
    """Base of the recurrent layers: quantizes once a call, not once a step.

    That goes for the kernels and, by the first cell's input quantizer, for the
    sequences. A further cell of a stack, like any cell of a plain `RNN`, gets its
    inputs one step after the other. Its input quantizer, if it learns, learns at
    each, which TensorFlow refuses under a `MirroredStrategy`.
    """

    def call(
        self,
        sequences: Tensor,
        initial_state: Any = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Any:
        """Runs the layer, with kernels and first inputs quantized beforehand."""
        cells = [
            layer
            for layer in internals.flatten_layers(self)
            if isinstance(layer, StochasticallyQuantized)
        ]
        first = getattr(self.cell, "cells", [self.cell])[0]  # type: ignore[attr-defined]
        done = [first] if isinstance(first, QuantizedInputs) else []
        for cell in done:
            sequences = cell.quantize_input(sequences)
        with kernels_held(cells), inputs_quantized(done):
            return super().call(  # type: ignore[misc]
                sequences, initial_state=initial_state, mask=mask, training=training
            )


@add_container
class SQRNN(QuantizedRecurrent, keras.layers.RNN):
    """`RNN` over a cell or several, to be quantized or quantized already.

    Example:
        >>> cells = [keras.layers.GRUCell(4), keras.layers.GRUCell(3)]
        >>> layer = keras_sq.layers.SQRNN(cells, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 3])
    """


@add_container
class SQSimpleRNN(QuantizedRecurrent, keras.layers.SimpleRNN):
    """`SimpleRNN` over an `SQSimpleRNNCell`.

    Example:
        >>> layer = keras_sq.layers.SQSimpleRNN(4, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """


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
    """`GRU` over an `SQGRUCell`.

    Example:
        >>> layer = keras_sq.layers.SQGRU(4, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 4])
    """


@add_container
class SQConvLSTM1D(QuantizedRecurrent, keras.layers.ConvLSTM1D):
    """`ConvLSTM1D` with both kernels of its cell quantized.

    Example:
        >>> layer = keras_sq.layers.SQConvLSTM1D(4, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 3, 6, 2))).shape
        TensorShape([1, 4, 4])
    """


@add_container
class SQConvLSTM2D(QuantizedRecurrent, keras.layers.ConvLSTM2D):
    """`ConvLSTM2D` with both kernels of its cell quantized.

    Example:
        >>> layer = keras_sq.layers.SQConvLSTM2D(4, 3, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 3, 6, 6, 2))).shape
        TensorShape([1, 4, 4, 4])
    """


@add_container
class SQConvLSTM3D(QuantizedRecurrent, keras.layers.ConvLSTM3D):
    """`ConvLSTM3D` with both kernels of its cell quantized.

    Example:
        >>> layer = keras_sq.layers.SQConvLSTM3D(2, 2, kernel_quantizer="binary")
        >>> layer(keras.ops.ones((1, 2, 3, 3, 3, 2))).shape
        TensorShape([1, 2, 2, 2, 2])
    """


@add_container_mixin(keras.layers.TimeDistributed)
class QuantizedTimeDistributed(QuantizedContainer):
    """What makes `TimeDistributed` quantize the inputs of all steps at once."""

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Any:
        """Runs the layer, with its inputs quantized beforehand."""
        layer = self.layer  # type: ignore[attr-defined]
        done = [layer] if isinstance(layer, QuantizedInputs) else []
        for timed in done:
            inputs = timed.quantize_input(inputs)
        with inputs_quantized(done):
            return super().call(inputs, training=training, mask=mask)  # type: ignore[misc]
