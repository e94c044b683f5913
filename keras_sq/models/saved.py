"""Weights of a saved model for a network of this folder that has the same layers.

Names, nesting and the softmax at the end may differ. What counts is the layers'
weights, and that both models compute the same: that is tried on random inputs, as
layers of one shape could be in another order than assumed.
"""

import math
import os
from typing import Any

import keras
import numpy as np

from keras_sq.core import keras_internals as internals
from keras_sq.core import memory_bounds
from keras_sq.core.types import Layer, Model, Tensor
from keras_sq.files.loading import load_model
from keras_sq.models.describing import Network

EXAMPLES = 8
"""Random inputs on which the two models are compared."""

TOLERANCE = 1e-3
"""Largest difference of two outputs, as a part of the largest output."""


def load_source(
    name: str, network: Network, path: str | os.PathLike[str]
) -> tuple[Model, tuple[int, ...]]:
    """Loads a saved model, without the softmax at its end.

    Args:
        name: Of the network that it is loaded for.
        network: What that takes.
        path: Of the file.

    Returns:
        The model, and the shape of one example for the network.

    Raises:
        OSError: If the file is not there.
        ValueError: If it cannot be loaded or has inputs or outputs of another kind.
    """
    source = load_model(path)
    if not (internals.has_graph(source) and source.built):
        raise _other_network(name, path, "it is no model of layers in a graph")
    if len(source.inputs) != 1 or len(source.outputs) != 1:
        raise _other_network(name, path, "it has several inputs or outputs")
    shape = tuple(source.inputs[0].shape[1:])
    if None in shape:
        raise _other_network(name, path, f"its input has no fixed size, {shape}")
    try:
        memory_bounds.check_sizes(source, EXAMPLES)
    except ValueError as error:
        raise ValueError(f"Model '{os.fspath(path)}' is refused: {error}") from error
    if len(network.axes) == 1:
        shape = (math.prod(shape),)
    if network.classifies:
        if len(source.outputs[0].shape) != 2 or (source.output_shape[-1] or 0) < 2:
            output_shape = source.output_shape
            raise _other_network(
                name, path, f"its output is {output_shape}, and not logits"
            )
    try:
        network.check_input(name, shape)
    except ValueError as error:
        raise _other_network(name, path, f"its input is {shape}") from error
    end = _before_softmax(source) if network.classifies else source.outputs[0]
    # A model of its own, as some take their one input in a list only.
    return keras.Model(source.inputs[0], end), shape


def _before_softmax(model: Model) -> Tensor:
    """Returns the output of a model, but for its softmax if it has one."""
    last = model.layers[-1]
    softmax = keras.activations.softmax
    if isinstance(last, keras.layers.Softmax) or (
        isinstance(last, keras.layers.Activation) and last.activation is softmax
    ):
        return last.input
    if getattr(last, "activation", None) is softmax:
        last.activation = keras.activations.linear
    return model.outputs[0]


def take_over(
    source: Model, target: Model, name: str, path: str | os.PathLike[str]
) -> None:
    """Sets the weights of one model to those of another.

    Args:
        source: The model that has them.
        target: The network that gets them.
        name: What that is called.
        path: Where the other came from.

    Raises:
        ValueError: If the layers do not match, or if both compute different things.
            `target` is of no use then.
    """
    waiting: dict[Any, list[Layer]] = {}
    for layer in _with_weights(source):
        waiting.setdefault(_shapes(layer), []).append(layer)
    for layer in _with_weights(target):
        alike = waiting.get(_shapes(layer))
        if not alike:
            raise _other_network(
                name,
                path,
                f"for layer {layer.name!r} it has no (further) layer with weights of "
                f"the shapes {_text(_shapes(layer))}",
            )
        other = alike.pop(0)
        layer.set_weights(other.get_weights())
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = getattr(other, "epsilon", layer.epsilon)
    left = [layer for layers in waiting.values() for layer in layers]
    if left:
        raise _other_network(
            name,
            path,
            f"its layer {left[0].name[:60]!r}, with weights of the shapes "
            f"{_text(_shapes(left[0]))}, is too many",
        )
    _compare(source, target, name, path)


def _compare(
    source: Model, target: Model, name: str, path: str | os.PathLike[str]
) -> None:
    shape = (EXAMPLES, *source.inputs[0].shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = _outputs(source, x)
    outputs = _outputs(target, x.reshape(EXAMPLES, *target.input_shape[1:]))
    error = np.abs(outputs - expected.reshape(outputs.shape)).max()
    if not error <= TOLERANCE * max(np.abs(expected).max(), 1e-6):
        raise _other_network(
            name,
            path,
            f"its layers fit, but compute something else (by {error:.3g} on random "
            "inputs): they are in another order, or have other strides or activations",
        )


def _outputs(model: Model, x: Any) -> Any:
    return keras.ops.convert_to_numpy(model(x, training=False)).astype(np.float32)


def _with_weights(model: Model) -> list[Layer]:
    """Returns the innermost layers that have weights, in the order of the model."""
    layers: dict[int, Layer] = {}

    def visit(layer: Layer) -> None:
        if internals.own_variables(layer):
            layers.setdefault(id(layer), layer)
        for inner in internals.sublayers(layer):
            visit(inner)

    visit(model)
    return list(layers.values())


def _shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(weight.shape) for weight in layer.weights)


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(map(str, shapes))


def _other_network(name: str, path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(
        f"Model '{os.fspath(path)}' does not have the layers of the network {name!r}: "
        f"{reason}."
    )
