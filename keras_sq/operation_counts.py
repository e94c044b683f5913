"""How many multiplications a model needs for one example, kernel by kernel.

Counted are the multiply-accumulates (MACs) of kernels, and of attention's products
of queries, keys and values. Biases, activations, pooling and normalization (which a
converter mostly folds into a kernel) count nothing. Padding counts as any pixel.

The shapes are those of a call: the model is run once, in inference, on one example of
zeros, and each layer's inputs and outputs are looked at. What depends on a size that
the model leaves open (a length of sequences, of images) is unknown, and so are layers
of classes that are not in the tables below.

Design note: **why a call** and not the shapes that a graph knows. There are none
inside of subclassed models, attention and other containers. Calls with symbolic
tensors would add to the model's graph, and on JAX they hide which sizes are open.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from keras_sq import _keras_internals as internals
from keras_sq import call_hooks, memory_bounds
from keras_sq.kernel_sizes import FLOAT_BITS
from keras_sq.layers import QuantizedActivation
from keras_sq.types import Layer, Model

Shape = tuple[int, ...]

PRODUCTS = ""
"""In place of a weight's name: products of activations with each other."""

OPEN_SIZES = (64, 96)
"""What sizes that a model leaves open are tried with: a count that differs between
the two is unknown."""


class Count(NamedTuple):
    """What one kernel costs for one example.

    Attributes:
        macs: Multiply-accumulates, `None` if unknown.
        activation_bits: Bits of what is multiplied with the kernel; of several calls
            the most.
    """

    macs: int | None
    activation_bits: int = FLOAT_BITS


Counts = dict[tuple[int, str], Count]
"""`(id of the layer, name of the weight)` -> its count. A layer that has float
weights and is in none of the tables has an unknown one under `PRODUCTS`."""


def count_operations(model: Model) -> Counts | None:
    """Returns what each kernel of a model costs for one example.

    Args:
        model: A built model. It is called, and stays as it is.

    Returns:
        The counts, or `None` if nothing is known: the sizes of the model's inputs are
        not or are beyond this machine, or it cannot be called on zeros. A kernel
        without a count is not used.
    """
    specs = internals.input_specs(model)
    if specs is None:
        return None
    if not any(None in spec.shape[1:] for spec in keras.tree.flatten(specs)):
        return _counted(model, specs, OPEN_SIZES[0])
    first, second = (_counted(model, specs, size) for size in OPEN_SIZES)
    if first is None or second is None:
        return None
    return {
        key: count if second.get(key) == count else count._replace(macs=None)
        for key, count in first.items()
    }


def _counted(model: Model, specs: Any, open_size: int) -> Counts | None:
    def zeros(spec: Any) -> Any:
        sizes = [open_size if size is None else size for size in spec.shape[1:]]
        return keras.ops.zeros((1, *sizes), spec.dtype)

    watcher = _Watcher()
    try:
        memory_bounds.check_sizes(model, 1)
        with call_hooks.calls_watched(model, watcher.called, watcher.returned):
            model(keras.tree.map_structure(zeros, specs), training=False)
    except Exception:  # What a model's own code may raise on zeros is not known.
        return None
    return watcher.counts


class _Watcher:
    """Sees the calls of layers, and counts."""

    def __init__(self) -> None:
        self.counts: Counts = {}
        # Tensors are known by their identity, so they must live until the end.
        self._kept: list[Any] = []
        self._bits: dict[int, int] = {}
        self._inside_counted = 0

    def called(self, layer: Layer, args: Sequence[Any]) -> None:
        if isinstance(layer, _COUNTED_WHOLE):
            self._inside_counted += 1

    def returned(self, layer: Layer, args: Sequence[Any], result: Any) -> None:
        if isinstance(layer, _COUNTED_WHOLE):
            self._inside_counted -= 1
        if self._inside_counted:
            return
        inputs = [x for x in keras.tree.flatten(args) if hasattr(x, "shape")]
        outputs = [x for x in keras.tree.flatten(result) if hasattr(x, "shape")]
        if not inputs or not outputs:
            return
        bits = self._bits.get(id(inputs[0]), FLOAT_BITS)
        if isinstance(layer, QuantizedActivation):
            self._tag(outputs[0], layer.activation_rule.num_bits)
        elif isinstance(layer, _KEEPS_VALUES):
            self._tag(outputs[0], bits)
        # Taken from the tensors' sizes, where the batch has one example.
        shapes = [tuple(x.shape) for x in inputs]
        for key, macs in _counts_of_call(layer, shapes, tuple(outputs[0].shape)):
            seen = FLOAT_BITS
            if key[1] not in _INNER_KERNELS:
                rule = getattr(key[0], "input_rule", None)
                seen = bits if rule is None else rule.num_bits
            self._add((id(key[0]), key[1]), macs, seen)

    def _tag(self, tensor: Any, bits: int) -> None:
        self._kept.append(tensor)
        self._bits[id(tensor)] = bits

    def _add(self, key: tuple[int, str], macs: int | None, bits: int) -> None:
        old = self.counts.get(key, Count(0, 0))
        known = macs is not None and old.macs is not None
        total = old.macs + macs if known else None  # type: ignore[operator]
        self.counts[key] = Count(total, max(bits, old.activation_bits))


_KEEPS_VALUES = (
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

_INNER_KERNELS = ("pointwise_kernel", "recurrent_kernel")
"""Those that are multiplied with a result of the first kernel, or a state."""

_CELLS = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)

_COUNTED_WHOLE = (keras.layers.RNN, keras.layers.TimeDistributed)
"""What is called inside runs once a step, or not by Keras's `__call__`."""

_FREE = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
    keras.layers.PReLU,
    keras.layers.Normalization,
)
"""Layers with weights whose arithmetic does not count."""


def float_class(layer: Layer) -> type:
    """Returns the Keras class of a layer, quantized or not."""
    return getattr(type(layer), "float_class", None) or type(layer)


_Call = Iterator[tuple[tuple[Layer, str], int | None]]


def _counts_of_call(layer: Layer, inputs: list[Shape], output: Shape) -> _Call:
    """Yields the kernels that a call multiplies with, and how often."""
    kind = float_class(layer)
    if issubclass(kind, keras.layers.TimeDistributed):
        steps = inputs[0][1]
        below = [layer.layer, *internals.flatten_layers(layer.layer)]
        if len(below) > 1:
            for inside in below:
                if internals.own_variables(inside):
                    yield (inside, PRODUCTS), None
            return
        one = (inputs[0][0], *inputs[0][2:])
        for key, macs in _counts_of_call(layer.layer, [one], (1, *output[2:])):
            yield key, None if macs is None else steps * macs
    elif issubclass(kind, keras.layers.RNN):
        yield from _of_recurrent(layer, inputs[0])
    elif kind in _KERNELS:
        for name, macs in _KERNELS[kind](layer, inputs, output).items():
            yield (layer, name), macs
    elif internals.own_variables(layer) and not issubclass(kind, _FREE):
        yield (layer, PRODUCTS), None


def _of_recurrent(layer: Layer, sequences: Shape) -> _Call:
    steps = sequences[1]
    for inside in [layer, *internals.flatten_layers(layer)]:
        if float_class(inside) in _CELLS:
            for name in ("kernel", "recurrent_kernel"):
                yield (inside, name), steps * math.prod(_shape(inside, name))
        elif internals.own_variables(inside):
            yield (inside, PRODUCTS), None


def _shape(layer: Layer, name: str) -> Shape:
    """Returns the shape of a kernel, without computing a quantized one."""
    found = layer.__dict__.get(f"_{name}", None)
    return tuple((getattr(layer, name) if found is None else found).shape)


def _dense(layer: Layer, inputs: list[Shape], output: Shape) -> dict[str, int | None]:
    return {"kernel": math.prod(output) * inputs[0][-1]}


def _einsum(layer: Layer, inputs: list[Shape], output: Shape) -> dict[str, int | None]:
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


def _conv(layer: Layer, inputs: list[Shape], output: Shape) -> dict[str, int | None]:
    kernel = _shape(layer, "kernel")
    return {"kernel": _places(layer, output) * math.prod(kernel)}


def _transposed(
    layer: Layer, inputs: list[Shape], output: Shape
) -> dict[str, int | None]:
    kernel = _shape(layer, "kernel")
    return {"kernel": _places(layer, inputs[0]) * math.prod(kernel)}


def _separable(
    layer: Layer, inputs: list[Shape], output: Shape
) -> dict[str, int | None]:
    places = _places(layer, output)
    names = ("depthwise_kernel", "pointwise_kernel")
    return {name: places * math.prod(_shape(layer, name)) for name in names}


def _embedding(
    layer: Layer, inputs: list[Shape], output: Shape
) -> dict[str, int | None]:
    return {"embeddings": 0}


def _cell(layer: Layer, inputs: list[Shape], output: Shape) -> dict[str, int | None]:
    names = ("kernel", "recurrent_kernel")
    return {name: math.prod(_shape(layer, name)) for name in names}


def _heads(layer: Layer, inputs: list[Shape], output: Shape) -> dict[str, int | None]:
    queries, values = (math.prod(x[1:-1]) for x in (*inputs, inputs[0])[:2])
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    key_dim = getattr(layer, "key_dim", None) or layer.head_dim
    value_dim = getattr(layer, "value_dim", None) or key_dim
    along = getattr(layer, "_attention_axes", None)
    if along is not None and len(along) != len(output) - 2:
        return {PRODUCTS: None}  # Attention along some of the axes only.
    return {PRODUCTS: heads * queries * values * (key_dim + value_dim)}


def _attention(
    layer: Layer, inputs: list[Shape], output: Shape
) -> dict[str, int | None]:
    query, value = inputs[0], inputs[1]
    return {PRODUCTS: query[1] * value[1] * (query[-1] + value[-1])}


_Rule = Callable[[Layer, list[Shape], Shape], dict[str, int | None]]

_KERNELS: dict[type, _Rule] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum,
    keras.layers.Embedding: _embedding,
    keras.layers.MultiHeadAttention: _heads,
    keras.layers.GroupQueryAttention: _heads,
    keras.layers.Attention: _attention,
    **dict.fromkeys(_CELLS, _cell),
}
for _rule, _names in (
    (_conv, ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")),
    (_transposed, ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")),
    (_separable, ("SeparableConv1D", "SeparableConv2D")),
):
    _KERNELS.update({getattr(keras.layers, name): _rule for name in _names})
"""Exact Keras class -> its rule. A subclass may compute anything."""


def macs_of(counts: Counts | None, layer: Layer, names: Sequence[str]) -> Count:
    """Returns the count of some weights of a layer, taken together.

    Args:
        counts: What `count_operations` returned.
        layer: The layer.
        names: Of its weights, or `PRODUCTS`.
    """
    if counts is None:
        return Count(None)
    found = [counts[id(layer), name] for name in names if (id(layer), name) in counts]
    if not found:
        return Count(0)
    if any(count.macs is None for count in found):
        return Count(None, max(count.activation_bits for count in found))
    total = sum(count.macs or 0 for count in found)
    return Count(total, max(count.activation_bits for count in found))
