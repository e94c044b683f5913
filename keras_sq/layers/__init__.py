"""Stochastically quantized layers.

`SQ` and the name of the Keras layer; the same constructor, plus the fields of
`Settings` as keyword arguments. `keras_sq.quantize_model` makes them from the
layers of a float model. The layers that quantize activations, and nothing else, have
names of their own.
"""

from keras_sq.core import keras_internals as _internals
from keras_sq.core.types import Layer as _Layer
from keras_sq.layers.activations import BinaryActivation as BinaryActivation
from keras_sq.layers.activations import (
    LearnedActivationQuantizer as LearnedActivationQuantizer,
)
from keras_sq.layers.activations import QuantizedActivation as QuantizedActivation
from keras_sq.layers.activations import (
    UniformActivationQuantizer as UniformActivationQuantizer,
)
from keras_sq.layers.attention import SQMultiHeadAttention as SQMultiHeadAttention
from keras_sq.layers.container import QuantizedContainer as QuantizedContainer
from keras_sq.layers.convolutional import SQConv1D as SQConv1D
from keras_sq.layers.convolutional import SQConv1DTranspose as SQConv1DTranspose
from keras_sq.layers.convolutional import SQConv2D as SQConv2D
from keras_sq.layers.convolutional import SQConv2DTranspose as SQConv2DTranspose
from keras_sq.layers.convolutional import SQConv3D as SQConv3D
from keras_sq.layers.convolutional import SQConv3DTranspose as SQConv3DTranspose
from keras_sq.layers.convolutional import SQDepthwiseConv1D as SQDepthwiseConv1D
from keras_sq.layers.convolutional import SQDepthwiseConv2D as SQDepthwiseConv2D
from keras_sq.layers.convolutional import SQSeparableConv1D as SQSeparableConv1D
from keras_sq.layers.convolutional import SQSeparableConv2D as SQSeparableConv2D
from keras_sq.layers.dense import SQDense as SQDense
from keras_sq.layers.dense import SQEinsumDense as SQEinsumDense
from keras_sq.layers.dense import SQEmbedding as SQEmbedding
from keras_sq.layers.dense import SQReversibleEmbedding as SQReversibleEmbedding
from keras_sq.layers.quantized import (
    StochasticallyQuantized as StochasticallyQuantized,
)
from keras_sq.layers.recurrent import SQGRU as SQGRU
from keras_sq.layers.recurrent import SQLSTM as SQLSTM
from keras_sq.layers.recurrent import SQRNN as SQRNN
from keras_sq.layers.recurrent import SQConvLSTM1D as SQConvLSTM1D
from keras_sq.layers.recurrent import SQConvLSTM2D as SQConvLSTM2D
from keras_sq.layers.recurrent import SQConvLSTM3D as SQConvLSTM3D
from keras_sq.layers.recurrent import SQGRUCell as SQGRUCell
from keras_sq.layers.recurrent import SQLSTMCell as SQLSTMCell
from keras_sq.layers.recurrent import SQSimpleRNN as SQSimpleRNN
from keras_sq.layers.recurrent import SQSimpleRNNCell as SQSimpleRNNCell
from keras_sq.layers.registry import register as register
from keras_sq.layers.settings import Settings as Settings


def layer_paths(model: _Layer) -> list[tuple[str, _Layer]]:
    """Returns every layer below a model with its path, each once.

    The path joins the names of the layers that hold it by slashes:
    `"encoder/attention/query"`.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4, name="hidden")])
        >>> keras_sq.layers.layer_paths(model)[-1][0]
        'hidden'
    """
    paths: list[tuple[str, _Layer]] = []
    seen: set[int] = set()

    def visit(layer: _Layer, prefix: str) -> None:
        for child in _internals.sublayers(layer):
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = f"{prefix}{child.name}"
            paths.append((path, child))
            visit(child, f"{path}/")

    visit(model, "")
    return paths


def quantized_layers(model: _Layer) -> list[tuple[str, StochasticallyQuantized]]:
    """Returns the quantized layers of a model (or itself) with their paths.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4, name="hidden")])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> ((path, layer),) = keras_sq.layers.quantized_layers(sq_model)
        >>> path, tuple(layer.mask().shape)
        ('hidden', (1, 4))
    """
    if isinstance(model, StochasticallyQuantized):
        return [(model.name, model)]  # type: ignore[attr-defined]
    return [
        (path, layer)
        for path, layer in layer_paths(model)
        if isinstance(layer, StochasticallyQuantized)
    ]
