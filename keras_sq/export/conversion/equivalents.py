"""Layers that the converter is shown in another way than Keras computes them.

Keras traces some layers as chains of operators in which the converter loses the
number of channels as soon as the batch is open, or for which TensorFlow Lite has no
form, or the library for microcontrollers none, although one operator that every
runtime has computes the same, bit for bit: nearest upsampling is SHAPE, TILE and
STRIDED_SLICE, and could be RESIZE_NEAREST_NEIGHBOR. While a model is traced for the
converter, such layers are called by the functions here. Everything else, the
comparison with the file too, calls Keras's own.

Design note: **the layer, while it is traced**, and not the graph afterwards, where the
chains would have to be recognized; a layer of one's own that calls `keras.ops.repeat`
stays as it is. `convert.py` tries a batch of 1 where an open one does not work.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sq.core import call_hooks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model, Tensor

_Call = Callable[..., Any]


MASKED = -10.0
"""What masked scores of attention are below the lowest of all scores, where these are
integers: 1/22,000 of its weight. Keras's -1e9 would take all steps of int8."""


@contextlib.contextmanager
def used(model: Model, integers: bool = False) -> Iterator[None]:
    """Within, this thread calls the layers of a model in the form for the converter.

    Args:
        model: A built model. It is as before afterwards.
        integers: Whether activations are to become int8.
    """
    rules = {**_RULES, **_RULES_OF_INTEGERS} if integers else _RULES
    calls = [
        (operation, _calling(operation, rule))
        for operation in internals.operations(model)
        if (rule := _rule_of(operation, rules)) is not None
    ]
    attention = {}
    if integers or _has_open_sizes(model):
        attention = _fused_attention(model)
    calls += [
        (layer._softmax, _calling(layer._softmax, _softmax_of_attention(integers)))
        for layer in attention
    ]
    with call_hooks.calls_replaced(calls), contextlib.ExitStack() as stack:
        for layer, name in attention.items():
            stack.enter_context(internals.own_attribute(layer, name, 0.5))
        yield


def _fused_attention(model: Model) -> dict[Any, str]:
    """Returns the layers of attention that mask scores by a function of Keras's own.

    That takes all steps of int8, and has no form in TensorFlow Lite where the length is
    open. With dropout, of which there is none at inference, they do it in a layer.

    Returns:
        Layer -> name of the attribute that holds its rate of dropout.
    """
    attributes = {}
    for layer in internals.flatten_layers(model):
        if isinstance(layer, _ATTENTION):
            name = "_dropout" if hasattr(layer, "_dropout") else "dropout"
            if not getattr(layer, name):
                attributes[layer] = name
    return attributes


def _calling(operation: Any, rule: "_Rule") -> _Call:
    def call(original: _Call, *args: Any, **kwargs: Any) -> Any:
        result = rule(operation, *args, **kwargs)
        return original(*args, **kwargs) if result is None else result

    return call


def _rule_of(operation: Any, rules: "Mapping[Any, _Rule]") -> "_Rule | None":
    for known, rule in rules.items():
        # A subclass with a `call` of its own may compute anything.
        if isinstance(operation, known) and type(operation).call is known.call:
            return rule
    return None


def _has_open_sizes(model: Model) -> bool:
    specs = internals.input_specs(model)
    flat = [] if specs is None else keras.tree.flatten(specs)
    return any(None in spec.shape[1:] for spec in flat)


# Repeating.


def _nearest(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Repeats rows and columns of images, channels last."""
    # By the centers of pixels: else 1 / factor, rounded, may fall short of a row.
    return tf.raw_ops.ResizeNearestNeighbor(
        images=x,
        size=_enlarged(x, factors),
        align_corners=False,
        half_pixel_centers=True,
    )


def _enlarged(x: Tensor, factors: Sequence[int]) -> Any:
    """Returns the height and width of larger images, constant where they are known."""
    known = x.shape[1:3]
    if None in known:
        return tf.shape(x)[1:3] * tf.constant(factors, tf.int32)
    return [size * factor for size, factor in zip(known, factors, strict=True)]


def _repeated(x: Tensor, count: int, axis: int) -> Tensor | None:
    """Returns each slice `count` times, or `None` where no operator does it."""
    if x.dtype != tf.float32 or x.shape.rank is None:
        return None
    rank = x.shape.rank
    axis %= rank
    if (rank, axis) in ((4, 1), (4, 2)):
        return _nearest(x, (count, 1) if axis == 1 else (1, count))
    if (rank, axis) == (3, 1):
        return tf.squeeze(_nearest(tf.expand_dims(x, 2), (count, 1)), 2)
    sizes = [-1 if n is None else n for n in x.shape]
    if sizes.count(-1) > 1:
        return None
    sizes[axis] *= count if sizes[axis] > 0 else 1
    return tf.reshape(tf.stack([x] * count, axis + 1), sizes)


def _up_sampling_1d(layer: Any, x: Tensor) -> Tensor | None:
    return _repeated(x, layer.size, 1)


def _up_sampling_2d(layer: Any, x: Tensor) -> Tensor | None:
    if x.dtype != tf.float32 or layer.interpolation not in ("nearest", "bilinear"):
        return None
    first = layer.data_format == "channels_first"
    if first:
        x = tf.transpose(x, (0, 2, 3, 1))
    if layer.interpolation == "nearest":
        x = _nearest(x, layer.size)
    else:
        # Keras's own takes no open sizes.
        x = tf.image.resize(x, _enlarged(x, layer.size), "bilinear")
    return tf.transpose(x, (0, 3, 1, 2)) if first else x


def _up_sampling_3d(layer: Any, x: Tensor) -> Tensor | None:
    if x.dtype != tf.float32 or layer.data_format == "channels_first":
        return None
    return _by_planes(
        x,
        lambda planes: _nearest(planes, layer.size[1:]),
        lambda rows: _nearest(rows, (layer.size[0], 1)),
    )


def _repeat_vector(layer: Any, x: Tensor) -> Tensor | None:
    return _repeated(tf.expand_dims(x, 1), layer.n, 1)


def _repeat(operation: Any, x: Tensor) -> Tensor | None:
    if operation.axis is None or not isinstance(operation.repeats, int):
        return None
    return _repeated(x, operation.repeats, operation.axis)


# Pooling.


def _max_pooling_3d(layer: Any, x: Tensor) -> Tensor | None:
    return _pooled(layer, x, tf.nn.max_pool2d)


def _average_pooling_3d(layer: Any, x: Tensor) -> Tensor | None:
    return _pooled(layer, x, tf.nn.avg_pool2d)


def _pooled(layer: Any, x: Tensor, pool: _Call) -> Tensor | None:
    if x.dtype.name != "float32" or layer.data_format == "channels_first":
        return None
    size, strides, padding = layer.pool_size, layer.strides, layer.padding.upper()
    return _by_planes(
        x,
        lambda planes: pool(planes, size[1:], strides[1:], padding),
        lambda rows: pool(rows, (size[0], 1), (strides[0], 1), padding),
    )


def _by_planes(x: Tensor, planes: _Call, depth: _Call) -> Tensor | None:
    """Applies a separable function to volumes: to their planes, then along the depth.

    Args:
        x: Of shape `(batch, depth, height, width, channels)`.
        planes: Takes and gives images `(any, height, width, channels)`.
        depth: Takes and gives images of the rows `(any, depth, any, channels)`.
    """
    if None in x.shape[1:]:
        return None
    _, front, high, wide, channels = x.shape
    x = planes(tf.reshape(x, (-1, high, wide, channels)))
    _, high, wide, _ = x.shape
    x = depth(tf.reshape(x, (-1, front, high * wide, channels)))
    return tf.reshape(x, (-1, x.shape[1], high, wide, channels))


# Others.


def _roll(operation: Any, x: Tensor) -> Tensor | None:
    """Returns slices in another order: TensorFlow Lite has no ROLL."""
    shifts, axes = operation.shift, operation.axis
    if axes is None:
        return None
    if isinstance(axes, int):
        shifts, axes = (shifts,), (axes,)
    if not isinstance(shifts, list | tuple) or len(shifts) != len(axes):
        return None
    for shift, axis in zip(shifts, axes, strict=True):
        size = x.shape[axis]
        if size is None or not isinstance(shift, int):
            return None
        if size and (shift := shift % size):
            x = tf.concat(tf.split(x, (size - shift, shift), axis)[::-1], axis)
    return x


def _argmax(operation: Any, x: Tensor) -> Tensor | None:
    return _place(operation, x, tf.argmax)


def _argmin(operation: Any, x: Tensor) -> Tensor | None:
    return _place(operation, x, tf.argmin)


def _place(operation: Any, x: Tensor, function: _Call) -> Tensor | None:
    """Returns the index of a largest or smallest value; -0.0 counts as 0.0.

    Keras looks at the bits of the sign, for which TensorFlow Lite has no operator.
    """
    if x.dtype != tf.float32 or not x.shape.rank:
        return None
    if operation.axis is None:
        places = function(tf.reshape(x, [-1]), 0, tf.int32)
        return tf.reshape(places, [1] * x.shape.rank) if operation.keepdims else places
    places = function(x, operation.axis, tf.int32)
    return tf.expand_dims(places, operation.axis) if operation.keepdims else places


def _time_distributed(
    layer: Any, x: Tensor, training: Any = None, mask: Any = None
) -> Tensor | None:
    """Takes the steps of time as examples, where their number is open.

    Keras maps a function over them there, which becomes a loop.
    """
    if mask is not None or x.shape[1] is not None or None in x.shape[2:]:
        return None
    steps = tf.shape(x)[1]
    arguments = {"training": training} if layer.layer._call_has_training_arg else {}
    y = layer.layer.call(tf.reshape(x, (-1, *x.shape[2:])), **arguments)
    if not hasattr(y, "shape") or None in y.shape[1:]:
        return None
    return tf.reshape(y, (-1, steps, *y.shape[1:]))


def _masked_softmax(layer: Any, x: Tensor, mask: Any = None) -> Tensor | None:
    """Returns a softmax that leaves int8 its steps for the scores that count."""
    axis = _single_axis(layer)
    if mask is None or axis is None:
        return None
    if mask.dtype != tf.bool:
        mask = tf.cast(mask, tf.float32) > 0.5
    weights = tf.nn.softmax(_masked(x, mask, integers=True), axis)
    return tf.where(mask, weights, 0.0)


def _softmax_of_attention(integers: bool) -> "_Rule":
    def softmax(layer: Any, x: Tensor, mask: Any = None) -> Tensor | None:
        """Returns a softmax that is even where all scores are masked, not 0."""
        axis = _single_axis(layer)
        if mask is None or axis is None:
            return None
        return tf.nn.softmax(_masked(x, tf.cast(mask, tf.bool), integers), axis)

    return softmax


def _single_axis(layer: Any) -> int | None:
    """Returns the axis of a softmax, `None` if it has several."""
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    return axes[0] if len(axes) == 1 else None


def _masked(x: Tensor, mask: Tensor, integers: bool) -> Tensor:
    """Returns scores of which those where a mask is False are low."""
    low: Any = 0.7 * x.dtype.min
    if integers:
        low = tf.reduce_min(x, keepdims=True) + MASKED
    return tf.where(mask, x, low)


_Rule = Callable[..., Tensor | None]

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)

_RULES_OF_INTEGERS: dict[Any, _Rule] = {keras.layers.Softmax: _masked_softmax}

_RULES: dict[Any, _Rule] = {
    keras.layers.AveragePooling3D: _average_pooling_3d,
    keras.layers.MaxPooling3D: _max_pooling_3d,
    keras.layers.RepeatVector: _repeat_vector,
    keras.layers.TimeDistributed: _time_distributed,
    keras.layers.UpSampling1D: _up_sampling_1d,
    keras.layers.UpSampling2D: _up_sampling_2d,
    keras.layers.UpSampling3D: _up_sampling_3d,
    internals.Argmax: _argmax,
    internals.Argmin: _argmin,
    internals.Repeat: _repeat,
    internals.Roll: _roll,
}
"""Class of a layer, or of a function in a graph -> what computes the same. Its result
is `None` where the layer's own call is the better one."""
