"""The table of quantized layers that stand for a Keras layer each."""

import keras
import numpy as np
from backends import BACKEND
from backends import array as numpy
from keras import ops

from keras_sq import layers as sq


def alone(layer):
    return [layer]


def cell_of(layer):
    return [layer.cell]


def cells_of(layer):
    return layer.cell.cells


def projections(layer):
    return [layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense]


def plain_call(layer, x, **kwargs):
    return layer(x, **kwargs)


def cell_call(layer, x, **kwargs):
    size = layer.state_size
    sizes = size if isinstance(size, list | tuple) else [size]
    return layer(x, [ops.ones((len(x), n)) / 3 for n in sizes], **kwargs)[0]


def there_and_back(layer, x, **kwargs):
    return layer(layer(x, **kwargs), reverse=True, **kwargs)


def self_attention(layer, x, **kwargs):
    return layer(x, x[:, :2], **kwargs)


class Row:
    """One layer: constructor arguments, input, and its kernels' filter axes."""

    def __init__(
        self, name, args, kwargs, shape, axes, call=plain_call, parts=alone, note=""
    ):
        self.name, self._args, self.kwargs = name, args, kwargs
        self.shape, self.axes, self.call, self.parts = shape, axes, call, parts
        self.note = f"{name}-{note}" if note else name

    @property
    def takes_indices(self):
        return self.name.endswith("Embedding")

    @property
    def quantized_class(self):
        return getattr(sq, f"SQ{self.name}")

    @property
    def keras_class(self):
        return getattr(keras.layers, self.name)

    @property
    def args(self):
        return self._args() if callable(self._args) else self._args

    def __str__(self):
        return self.note

    def data(self, seed=0):
        rng = np.random.default_rng(seed)
        if self.takes_indices:
            return rng.integers(0, self.args[0], self.shape)
        return rng.normal(size=self.shape).astype("float32")

    def layer(self, **settings):
        settings = {"kernel_quantizer": "ternary", "mask_seed": 3} | settings
        return self.quantized_class(*self.args, **self.kwargs, **settings)

    def built(self, **settings):
        """The layer, called once, its variables far from any special value."""
        layer = self.layer(**settings)
        self.call(layer, self.data())
        randomize(layer)
        return layer

    def float_twin(self, layer, quantize=None):
        """The Keras layer with the weights, or with their `quantize(w, axes)`."""
        twin = self.keras_class(*self.args, **self.kwargs)
        self.call(twin, self.data())
        pairs = zip(layer.trainable_variables, twin.trainable_variables, strict=True)
        for source, target in pairs:
            target.assign(source)
        if quantize is not None:
            for part, axes in zip(self.parts(twin), self.axes_of_parts(), strict=True):
                for name, filter_axes in axes.items():
                    kernel = getattr(part, name)
                    kernel.assign(quantize(numpy(kernel), filter_axes))
        return twin

    def axes_of_parts(self):
        return self.axes if isinstance(self.axes, list) else [self.axes]

    def kernels(self, layer):
        """`(quantized layer, weight name, filter axes)` of every kernel."""
        return [
            (part, name, filter_axes)
            for part, axes in zip(self.parts(layer), self.axes_of_parts(), strict=True)
            for name, filter_axes in axes.items()
        ]


KERNEL = {"kernel": (1,)}


BOTH_GATES = {"kernel": (1,), "recurrent_kernel": (1,)}


HEADS = {"kernel": (1, 2)}


ROWS = [
    Row("Dense", (4,), {"activation": "relu"}, (3, 5), KERNEL),
    Row("Dense", (4,), {"use_bias": False}, (2, 3, 5), KERNEL, note="3d"),
    Row(
        "EinsumDense", ("abc,cd->abd",), {"output_shape": (None, 4)}, (2, 3, 5), KERNEL
    ),
    Row(
        "EinsumDense",
        ("abc,cde->abde",),
        {"output_shape": (None, 2, 3), "bias_axes": "de"},
        (2, 3, 5),
        {"kernel": (1, 2)},
        note="two output axes",
    ),
    Row(
        "EinsumDense",
        ("abcd,cde->abe",),
        {"output_shape": (None, 4), "bias_axes": "e"},
        (2, 3, 2, 5),
        {"kernel": (2,)},
        note="two input axes",
    ),
    Row(
        "EinsumDense",
        ("...x,xy->...y",),
        {"output_shape": 4, "bias_axes": "y"},
        (2, 3, 5),
        KERNEL,
        note="ellipsis",
    ),
    Row(
        "EinsumDense",
        ("ab,cb->ac",),
        {"output_shape": 4},
        (2, 5),
        {"kernel": (0,)},
        note="output axis first",
    ),
    Row(
        "EinsumDense",
        ("abc,bcd->abd",),
        {"output_shape": (3, 4)},
        (2, 3, 5),
        {"kernel": (0, 2)},
        note="a kernel per position",
    ),
    Row(
        "EinsumDense",
        ("abc,dce->aebd",),
        {"output_shape": (4, 3, 2)},
        (2, 3, 5),
        {"kernel": (0, 2)},
        note="outer axes",
    ),
    Row("Conv1D", (4, 3), {"dilation_rate": 2}, (2, 9, 5), {"kernel": (2,)}),
    Row(
        "Conv1D",
        (4, 3),
        {"padding": "causal"},
        (2, 9, 5),
        {"kernel": (2,)},
        note="causal",
    ),
    Row(
        "Conv2D",
        (4, (3, 2)),
        {"strides": 2, "padding": "same", "activation": "tanh"},
        (2, 5, 6, 3),
        {"kernel": (3,)},
    ),
    Row("Conv2D", (4, 3), {"groups": 2}, (2, 5, 6, 6), {"kernel": (3,)}, note="groups"),
    Row("Conv3D", (4, 2), {}, (1, 3, 4, 3, 2), {"kernel": (4,)}),
    Row("Conv1DTranspose", (4, 3), {"strides": 2}, (2, 5, 3), {"kernel": (1,)}),
    Row("Conv2DTranspose", (4, 3), {"strides": 2}, (2, 3, 4, 5), {"kernel": (2,)}),
    Row("Conv3DTranspose", (4, 2), {}, (1, 3, 2, 2, 3), {"kernel": (3,)}),
    Row("DepthwiseConv1D", (3,), {}, (2, 7, 3), {"kernel": (1, 2)}),
    Row("DepthwiseConv2D", (3,), {}, (2, 5, 5, 3), {"kernel": (2, 3)}),
    Row(
        "DepthwiseConv2D",
        (3,),
        {"depth_multiplier": 2, "padding": "same"},
        (2, 5, 5, 3),
        {"kernel": (2, 3)},
        note="multiplier",
    ),
    Row(
        "SeparableConv1D",
        (4, 3),
        {"depth_multiplier": 2},
        (2, 7, 3),
        {"depthwise_kernel": (1, 2), "pointwise_kernel": (2,)},
    ),
    Row(
        "SeparableConv2D",
        (4, 3),
        {"depth_multiplier": 2},
        (2, 5, 5, 3),
        {"depthwise_kernel": (2, 3), "pointwise_kernel": (3,)},
    ),
    Row("Embedding", (6, 4), {}, (2, 5), {"embeddings": (0,)}),
    Row(
        "ReversibleEmbedding",
        (6, 4),
        {"logit_soft_cap": 5.0},
        (2, 5),
        {"embeddings": (0,)},
        there_and_back,
    ),
    Row(
        "ReversibleEmbedding",
        (6, 4),
        {"tie_weights": False},
        (2, 5),
        {"embeddings": (0,), "reverse_embeddings": (1,)},
        there_and_back,
        note="untied",
    ),
    Row("SimpleRNNCell", (4,), {}, (3, 5), BOTH_GATES, cell_call),
    Row("LSTMCell", (4,), {}, (3, 5), BOTH_GATES, cell_call),
    Row("GRUCell", (4,), {}, (3, 5), BOTH_GATES, cell_call),
    Row("SimpleRNN", (4,), {}, (2, 3, 5), BOTH_GATES, parts=cell_of),
    Row("LSTM", (4,), {"return_sequences": True}, (2, 3, 5), BOTH_GATES, parts=cell_of),
    Row("GRU", (4,), {"reset_after": False}, (2, 3, 5), BOTH_GATES, parts=cell_of),
    Row(
        "RNN",
        lambda: ([keras.layers.LSTMCell(3), keras.layers.GRUCell(4)],),
        {"return_sequences": True},
        (2, 3, 5),
        [BOTH_GATES, BOTH_GATES],
        parts=cells_of,
    ),
    Row(
        "ConvLSTM1D",
        (4, 3),
        {"return_sequences": True, "dilation_rate": 2, "padding": "same"},
        (2, 3, 7, 5),
        {"kernel": (2,), "recurrent_kernel": (2,)},
        parts=cell_of,
    ),
    Row(
        "ConvLSTM2D",
        (2, (3, 2)),
        {"strides": 2, "use_bias": False},
        (2, 3, 5, 6, 3),
        {"kernel": (3,), "recurrent_kernel": (3,)},
        parts=cell_of,
    ),
    Row(
        "ConvLSTM3D",
        (2, 2),
        {},
        (1, 2, 3, 3, 2, 2),
        {"kernel": (4,), "recurrent_kernel": (4,)},
        parts=cell_of,
    ),
    Row(
        "MultiHeadAttention",
        (2, 3),
        # On JAX, Keras's attention does not run with another size of values.
        {"value_dim": 4 if BACKEND == "tensorflow" else 3},
        (2, 4, 5),
        [HEADS, HEADS, HEADS, {"kernel": (2,)}],
        self_attention,
        projections,
    ),
]


def randomize(layer, seed=1):
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))


def as_model(row, layer):
    """A model around one layer, with an input that it can be called on."""
    if row.call is cell_call:
        inputs = keras.Input((4, row.shape[-1]))
        return keras.Model(inputs, keras.layers.RNN(layer)(inputs))
    dtype = "int32" if row.takes_indices else "float32"
    inputs = keras.Input(row.shape[1:], dtype=dtype)
    outputs = row.call(layer, inputs)
    return keras.Model(inputs, outputs)
