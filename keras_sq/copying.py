"""A new model with the architecture and the state of a model.

Layers are made again from their configuration, as Keras does for saving, and
their variables are copied, those of random generators too. Metrics and the
optimizer are not part of it.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from keras_sq import _backend
from keras_sq import _keras_internals as internals
from keras_sq.types import Layer, Model


def copy_model(
    model: Model,
    copy_layer: Callable[[Layer], Layer] | None = None,
    copy_state: Callable[[Layer, Layer], None] | None = None,
) -> Model:
    """Returns a new model with the architecture and the state of a model.

    Args:
        model: A built model.
        copy_layer: Makes a new, stateless layer from an old one; by default
            from its configuration.
        copy_state: `copy_state(old, new)` copies the variables of a layer,
            not of the layers inside; by default all of them, in order.

    Raises:
        ValueError: If a layer cannot be made from its configuration.
    """
    make = _safely(copy_layer or same_copy)
    with _strategy_scope(model):
        if internals.is_graph_model(model):
            copy = _clone_graph(model, make, {})
        else:
            copy = make(model)
        if not internals.is_built(copy):
            copy.build_from_config(model.get_build_config())
        old_layers = internals.flatten_layers(model, include_self=True)
        new_layers = internals.flatten_layers(copy, include_self=True)
        if len(old_layers) != len(new_layers) or not internals.is_built(copy):
            raise ValueError(
                f"Model '{model.name}' (of type {type(model).__name__}) could not be "
                "copied: the model made from its configuration is not built, or "
                "has other layers. Its `get_config()` must describe all of its "
                "constructor's arguments, and it must be callable on its own "
                "inputs alone."
            )
        for old, new in zip(old_layers, new_layers, strict=True):
            (copy_state or copy_variables)(old, new)
            # Layers made by a custom layer's constructor got fresh names.
            if new.name != old.name:
                new.name = old.name
        # Keras leaves it at False for a subclassed model built from its config.
        copy.built = True
    return copy


def _clone_graph(
    model: Model, make: Callable[[Layer], Layer], made: dict[int, Layer]
) -> Model:
    """Returns a copy of a graph model; layers of models inside are made by `make` too.

    As `recursive=True`, which Keras 3.12 forgets below the first model inside.

    Args:
        model: A functional or Sequential model.
        make: Makes a new layer.
        made: `id` of a layer -> what was made of it: shared layers stay shared.
    """

    def make_once(layer: Layer) -> Layer:
        if id(layer) not in made:
            inside = isinstance(layer, keras.Sequential | internals.Functional)
            new = _clone_graph(layer, make, made) if inside else make(layer)
            made[id(layer)] = new
        return made[id(layer)]

    return keras.models.clone_model(model, clone_function=make_once)


def same_copy(layer: Layer) -> Layer:
    """Returns a new layer with the configuration of a layer."""
    if isinstance(layer, keras.layers.Lambda):
        # Its `from_config` refuses Python code, which here is the caller's own.
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    return type(layer).from_config(layer.get_config())


def copy_variables(old: Layer, new: Layer) -> None:
    """Copies a layer's own variables and random states to its copy.

    Raises:
        ValueError: If the copy has other variables.
    """
    pairs = [
        (internals.own_variables(old), internals.own_variables(new)),
        (internals.seed_states(old), internals.seed_states(new)),
    ]
    for sources, targets in pairs:
        if [tuple(v.shape) for v in sources] != [tuple(v.shape) for v in targets]:
            raise ValueError(
                f"Layer '{old.name}' (of type {type(old).__name__}) could not be "
                "copied: the layer made from its configuration, or from that of "
                "the layer or model that holds it, has other variables. Their "
                "`get_config()` must describe all of the constructor's arguments."
            )
        for source, target in zip(sources, targets, strict=True):
            target.assign(_backend.unshared(source))


def _safely(make: Callable[[Layer], Layer]) -> Callable[[Layer], Layer]:
    def made(layer: Layer) -> Layer:
        try:
            return make(layer)
        except Exception as error:
            raise ValueError(
                f"Layer '{layer.name}' (of type {type(layer).__name__}) could not "
                "be made again from its configuration, as copying and saving "
                "need it. Give the class a `get_config()` that returns all of "
                f"its constructor's arguments. Keras says: {error}"
            ) from error

    return made


def _strategy_scope(model: Model) -> Any:
    """Returns the scope of the strategy that a model was made under."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def require_built(model: Any) -> None:
    """Raises if there is no model with kernels to work on.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a keras.Model (of Keras 3; `tf_keras` models "
            "are not). "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )
    if not internals.is_built(model):
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no kernels yet. Call it "
            "on a batch, give it a `keras.Input`, or call `model.build(input_shape)`."
        )
