"""What a call of each layer class multiplies: the tables of `operation_counts.py`.

A rule returns `{name of a weight: multiply-accumulates}` for one call, of which it
gets the layer, the shapes of the tensors that went in and that of what came out. The
batch has one example.
"""

import math
from collections.abc import Callable

import keras

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer
from keras_sq.layers.derived import ELSEWHERE, name_elsewhere, redefined
from keras_sq.layers.quantized import StochasticallyQuantized

Shape = tuple[int, ...]
Macs = dict[str, int | None]
Rule = Callable[[Layer, list[Shape], Shape], Macs]

PRODUCTS = ""
"""In place of a weight's name: products of activations with each other."""

KEEPS_VALUES = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.RepeatVector,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
)
"""Layers that take values from place to place, so that levels stay levels."""

INNER_KERNELS = ("pointwise_kernel", "recurrent_kernel")
"""Those that are multiplied with a result of the first kernel, or a state."""

REPEATS = (keras.layers.RNN, keras.layers.TimeDistributed)
"""What is called inside runs once a step, or not by Keras's `__call__`."""

FREE = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
    keras.layers.SpectralNormalization,  # Works in training only.
    keras.layers.PReLU,
    keras.layers.Normalization,
)
"""Layers with weights whose arithmetic does not count."""


def float_class(layer: Layer) -> type:
    """Returns the Keras class of a layer, quantized or not."""
    return getattr(type(layer), "float_class", None) or type(layer)


def rule_of(layer: Layer) -> Rule | None:
    """Returns the rule of a layer's class, or of the one that it computes like."""
    kind = float_class(layer)
    known = RULES.get(kind) or RULES_ELSEWHERE.get(name_elsewhere(kind))
    base = _base_with_rule(kind)
    if known is None and base is not None and not redefined(kind, base):
        known = RULES[base]
    return known


def is_unknown(layer: Layer) -> bool:
    """Whether a layer without a rule may multiply, by itself, by its weights.

    A vector, such as the factors of a normalization, counts nothing whatever its
    layer is. A class derived from one with a rule may do the same as it and more.
    """
    kind = float_class(layer)
    if issubclass(kind, FREE):
        return False
    if isinstance(layer, StochasticallyQuantized) or _base_with_rule(kind) is not None:
        return True
    shapes = [tuple(variable.shape) for variable in internals.own_variables(layer)]
    return any(math.prod(shape[:-1]) > 1 for shape in shapes)


def _base_with_rule(kind: type) -> type | None:
    return next((base for base in kind.__mro__ if base in RULES), None)


def _shape(layer: Layer, name: str) -> Shape:
    """Returns the shape of a kernel, without computing a quantized one."""
    variable = layer.__dict__.get(f"_{name}", None)
    return tuple((getattr(layer, name) if variable is None else variable).shape)


def _dense(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    return {"kernel": math.prod(output) * inputs[0][-1]}


def _einsum(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    left, result = layer.equation.replace(" ", "").split("->")
    data, kernel = left.split(",")
    sizes = dict(zip(kernel, _shape(layer, "kernel"), strict=True))
    if "..." not in data:
        sizes |= dict(zip(data, inputs[0], strict=True))
    summed = {x for x in data + kernel if x.isalpha()} - set(result)
    if not summed <= set(sizes):
        return {"kernel": None}
    return {"kernel": math.prod(output) * math.prod(sizes[x] for x in summed)}


def _places(layer: Layer, shape: Shape) -> int:
    """Returns the number of pixels of a feature map."""
    first = layer.data_format == "channels_first"
    return math.prod(shape[2:] if first else shape[1:-1])


def _conv(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    kernel = _shape(layer, "kernel")
    return {"kernel": _places(layer, output) * math.prod(kernel)}


def _transposed(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    kernel = _shape(layer, "kernel")
    return {"kernel": _places(layer, inputs[0]) * math.prod(kernel)}


def _separable(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    places = _places(layer, output)
    names = ("depthwise_kernel", "pointwise_kernel")
    return {name: places * math.prod(_shape(layer, name)) for name in names}


def _embedding(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    return {"embeddings": 0}


def _cell(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    names = ("kernel", "recurrent_kernel")
    return {name: math.prod(_shape(layer, name)) for name in names}


def _heads(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    queries, values = (math.prod(x[1:-1]) for x in (*inputs, inputs[0])[:2])
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    key_dim = getattr(layer, "key_dim", None) or layer.head_dim
    value_dim = getattr(layer, "value_dim", None) or key_dim
    along = getattr(layer, "_attention_axes", None)
    if along is not None and len(along) != len(output) - 2:
        return {PRODUCTS: None}  # Attention along some of the axes only.
    return {PRODUCTS: heads * queries * values * (key_dim + value_dim)}


def _attention(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    query, value = inputs[0], inputs[1]
    return {PRODUCTS: query[1] * value[1] * (query[-1] + value[-1])}


def _additive(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    query, value = inputs[0], inputs[1]
    # Without a scale, scores are sums.
    of_score = query[-1] if layer.use_scale else 0
    return {PRODUCTS: query[1] * value[1] * (of_score + value[-1])}


def _reversible(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    looked_up = len(output) > len(inputs[0])
    if looked_up:
        return {"embeddings": 0}
    name = "embeddings" if layer.tie_weights else "reverse_embeddings"
    return {name: math.prod(output) * inputs[0][-1]}


def _conv_cell(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    places = _places(layer, output)
    names = ("kernel", "recurrent_kernel")
    return {name: places * math.prod(_shape(layer, name)) for name in names}


def _spectrogram(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    bins = math.prod(output) // (2 if layer.mode == "stft" else 1)
    unused = {"real": "imag_kernel", "imag": "real_kernel"}.get(layer.mode)
    names = {"real_kernel", "imag_kernel"} - {unused}
    return dict.fromkeys(sorted(names), bins * layer.frame_length)


def _table(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    return {PRODUCTS: 0}


def _masked_head(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    if layer.token_embedding is not None:
        return {}
    return {"_kernel": math.prod(output) * _shape(layer, "_kernel")[0]}


def _experts(layer: Layer, inputs: list[Shape], output: Shape) -> Macs:
    # Each computes all tokens; the router's weights are 0 for most.
    tokens = math.prod(inputs[0][:-1])
    names = ELSEWHERE[name_elsewhere(float_class(layer))].weights
    return {name: tokens * math.prod(_shape(layer, name)) for name in names}


RULES: dict[type, Rule] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum,
    keras.layers.Embedding: _embedding,
    keras.layers.ReversibleEmbedding: _reversible,
    keras.layers.MultiHeadAttention: _heads,
    keras.layers.GroupQueryAttention: _heads,
    keras.layers.Attention: _attention,
    keras.layers.AdditiveAttention: _additive,
    keras.layers.STFTSpectrogram: _spectrogram,
    keras.layers.SimpleRNNCell: _cell,
    keras.layers.LSTMCell: _cell,
    keras.layers.GRUCell: _cell,
    internals.ConvLSTMCell: _conv_cell,
}
for _rule, _names in (
    (_conv, ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")),
    (_transposed, ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")),
    (_separable, ("SeparableConv1D", "SeparableConv2D")),
):
    RULES.update({getattr(keras.layers, name): _rule for name in _names})
"""Exact Keras class -> its rule. A subclass may compute anything."""

RULES_ELSEWHERE: dict[tuple[str, str], Rule] = {
    ("keras_hub", "CachedMultiHeadAttention"): _heads,
    ("keras_hub", "MaskedLMHead"): _masked_head,
    ("keras_hub", "PositionEmbedding"): _table,
    ("keras_hub", "RelativeEmbedding"): _table,
    ("keras_hub", "MixtralMoeExperts"): _experts,
    ("keras_hub", "QwenMoeExperts"): _experts,
    ("keras_hub", "Qwen3MoeExperts"): _experts,
}
"""`(package, class)` -> the rule of a class that need not be there."""
