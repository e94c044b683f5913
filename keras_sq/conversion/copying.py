"""A new model with the architecture and the state of a model.

Each layer is created again from its configuration, and gets its state in the way that
Keras saves and loads it: variables, assets (vocabularies), and a layer's
`load_own_variables`. Metrics and the optimizer are not copied.

Design note: **ties.** A configuration may hold another layer of the model, as an
object or serialized: the decoder of an autoencoder holds the encoder's layer whose
kernel it transposes. Keras marks such references when it saves a whole model and
follows them when it loads it. Here each layer is created by itself, so `Copier` plays
the part of the saving scope: it marks references to layers that have several parents,
and resolves them to the one copy of that layer. After copying, the variables of both
models must be shared alike.
"""

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras

from keras_sq.core import backend, keras_copying
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Config, Layer, Model
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.saving import deployed_store, loads_in_its_own_way


def copy_model(
    model: Model,
    copy_layer: "Callable[[Layer, Copier], Layer] | None" = None,
    copy_state: Callable[[Layer, Layer], None] | None = None,
) -> Model:
    """Returns a new model with the architecture and the state of a model.

    Args:
        model: A built model.
        copy_layer: Makes a new layer from an old one, by means of the copier; by
            default from its configuration.
        copy_state: `copy_state(old, new)` copies the state of a layer, not of the
            layers inside; by default all of it, see `copy_own_state`.

    Raises:
        ValueError: If a layer cannot be made from its configuration, or the copy
            has other variables or shares them in another way.
    """
    copier = Copier(model, copy_layer or same_copy)
    with _strategy_scope(model):
        copy = copier.copy(model)
        if not internals.is_built(copy):
            copy.build_from_config(model.get_build_config())
        old_layers, new_layers = stateful_layers(model), stateful_layers(copy)
        if len(old_layers) != len(new_layers) or not internals.is_built(copy):
            raise ValueError(
                f"Model '{model.name}' (of type {type(model).__name__}) could not be "
                "copied: the model made from its configuration is not built, or "
                "has other layers. Its `get_config()` must describe all of its "
                "constructor's arguments, and it must be callable on its own "
                "inputs alone."
            )
        pairs = list(zip(old_layers, new_layers, strict=True))
        _check_sharing(pairs)
        for old, new in pairs:
            (copy_state or copy_own_state)(old, new)
            # Layers made by a custom layer's constructor got fresh names.
            for one, other in (
                (old, new),
                *zip(_inputs(old), _inputs(new), strict=False),
            ):
                if other.name != one.name:
                    other.name = one.name
        # From the outside in: a layer hands its flag on to those inside.
        for old, new in pairs:
            if new.trainable != old.trainable:
                new.trainable = old.trainable
        # Keras leaves it at False for a subclassed model built from its config, and
        # a model whose layers its constructor built was not called.
        copy.built = True
        keras_copying.copy_build_shapes(model, copy)
    return copy


def stateful_layers(model: Model) -> list[Layer]:
    """Returns a model's layers and itself, but for the inputs.

    Several models may have an input in common, and each copy has its own.
    """
    return [
        layer
        for layer in internals.flatten_layers(model, include_self=True)
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def _inputs(layer: Layer) -> list[Layer]:
    return [
        child
        for child in internals.sublayers(layer)
        if isinstance(child, keras.layers.InputLayer)
    ]


class Copier:
    """Makes every layer of a model once more: a shared one once.

    Args:
        model: The model whose layers are copied.
        copy_layer: `copy_layer(layer, copier)` makes a new, stateless layer.
    """

    def __init__(
        self, model: Model, copy_layer: "Callable[[Layer, Copier], Layer]"
    ) -> None:
        self._copy_layer = copy_layer
        self._copies: dict[int, Layer] = {}
        self._originals = {
            id(layer): layer for layer in internals.flatten_layers(model, True)
        }
        holders = Counter(
            id(child)
            for layer in self._originals.values()
            for child in internals.sublayers(layer)
        )
        self._shared = {key for key, count in holders.items() if count > 1}

    def copy(self, layer: Layer) -> Layer:
        """Returns the copy of a layer: always the same one.

        Raises:
            ValueError: If it cannot be made from its configuration.
        """
        if id(layer) not in self._copies:
            if keras_copying.describes_layers(layer):
                # Not `recursive=True`, which Keras 3.12 forgets below the first
                # model inside.
                new = keras.models.clone_model(layer, clone_function=self.copy)
            else:
                new = self._copied(layer)
            self._copies[id(layer)] = new
        return self._copies[id(layer)]

    def from_config(self, layer: Layer, cls: type, config: Config) -> Layer:
        """Returns a layer from its configuration, tied as the original is.

        Args:
            layer: The original.
            cls: The class to make.
            config: Its configuration.
        """
        with keras_copying.shared_objects(self._shared_copy):
            return cls.from_config(self._with_copies(config, layer))  # type: ignore[attr-defined]

    def config(self, layer: Layer, get_config: Callable[[], Config]) -> Config:
        """Returns a layer's configuration, with its references to shared layers.

        Args:
            layer: The layer.
            get_config: Returns its configuration.
        """
        with keras_copying.shared_references(self._shared - {id(layer)}):
            return get_config()

    def _copied(self, layer: Layer) -> Layer:
        try:
            return self._copy_layer(layer, self)
        except Exception as error:
            raise ValueError(
                f"Layer '{layer.name}' (of type {type(layer).__name__}) could not "
                "be made again from its configuration, as copying and saving "
                "need it. Give the class a `get_config()` that returns all of "
                f"its constructor's arguments. Keras says: {error}"
            ) from error

    def _shared_copy(self, key: int) -> Layer | None:
        if key not in self._shared:
            return None
        layer = self._originals[key]
        new = self.copy(layer)
        # As Keras does it after deserializing; no graph may call it.
        config = layer.get_build_config() if layer.built and not new.built else None
        if config:
            new.build_from_config(config)
            new.built = True
        return new

    def _with_copies(self, config: Any, layer: Layer) -> Any:
        """Returns a configuration with copies of the layers that it holds."""
        if isinstance(config, keras.layers.Layer):
            self._shared.add(id(config))
            self._originals[id(config)] = config
            return self._shared_copy(id(config))
        if isinstance(config, dict):
            return {k: self._with_copies(v, layer) for k, v in config.items()}
        if type(config) in (list, tuple):
            return type(config)(self._with_copies(v, layer) for v in config)
        return config


def same_copy(layer: Layer, copier: Copier) -> Layer:
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
    config = copier.config(layer, layer.get_config)
    return copier.from_config(layer, type(layer), config)


# State.


def copy_own_state(old: Layer, new: Layer) -> None:
    """Copies the state of a layer to its copy, not that of the layers inside.

    Raises:
        ValueError: If the copy has other variables.
    """
    copy_saved_state(old, new)
    copy_variables(old, new)


def copy_saved_state(old: Layer, new: Layer) -> None:
    """Copies the state that a layer saves and loads by its own methods.

    Examples are statistics and vocabularies. `copy_variables` copies the state of
    layers that save nothing but their variables.

    Raises:
        ValueError: If the layer cannot load what it saved.
    """
    try:
        if loads_in_its_own_way(type(new)):
            deployed = isinstance(old, StochasticallyQuantized) and not isinstance(
                new, StochasticallyQuantized
            )
            store: dict[str, Any] = {}
            if deployed:
                store = deployed_store(old)
            else:
                old.save_own_variables(store)
            # As arrays, which is what a file would give.
            new.load_own_variables({k: _array(v) for k, v in store.items()})
        if hasattr(old, "save_assets") and hasattr(new, "load_assets"):
            with tempfile.TemporaryDirectory() as directory:
                folder = os.path.join(directory, "assets")
                os.mkdir(folder)
                old.save_assets(folder)
                # Keras calls `load_assets` in any case; with nothing saved there
                # is nothing to read.
                if os.listdir(folder):
                    new.load_assets(folder)
    except Exception as error:
        raise ValueError(
            f"Layer '{old.name}' (of type {type(old).__name__}) could not be copied: "
            "its `load_own_variables` or `load_assets` does not read what it saves, "
            f"so that Keras cannot load it either. It says: {error}"
        ) from error


def _array(value: Any) -> Any:
    if isinstance(value, keras.Variable) or keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    return value


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
            target.assign(backend.unshared(source))
    copy_recurrent_states(old, new)


def copy_recurrent_states(old: Layer, new: Layer) -> None:
    """Copies what a recurrent layer keeps from call to call.

    Keras has it in variables that belong to no layer's list.
    """
    if getattr(old, "stateful", False) and getattr(old, "states", None) is not None:
        states = keras.tree.flatten(old.states), keras.tree.flatten(new.states)
        for source, target in zip(*states, strict=True):
            target.assign(backend.unshared(source))


def _check_sharing(pairs: list[tuple[Layer, Layer]]) -> None:
    """Raises if variables are tied in one of two models only, or across them."""
    copies: dict[int, tuple[int, str]] = {}
    origins: dict[int, str] = {}
    variables = [
        (old.name, source, target)
        for old, new in pairs
        for source, target in zip(
            internals.own_variables(old), internals.own_variables(new), strict=False
        )
    ]
    old_ids = {id(source) for _, source, _ in variables}
    for name, source, target in variables:
        known, first = copies.setdefault(id(source), (id(target), name))
        if known != id(target):
            raise ValueError(
                f"Layers '{first}' and '{name}' share weight '{source.path}', and "
                "made from their configurations they do not: a copy, like a model "
                "saved and loaded, would have two weights there. Let the "
                "`get_config()` of the layer that borrows return the other layer by "
                "`keras.saving.serialize_keras_object(layer)`, and its `from_config` "
                "take it by `keras.saving.deserialize_keras_object`."
            )
        if id(target) in old_ids:
            raise ValueError(
                f"The layer made from the configuration of layer '{name}' uses weight "
                f"'{source.path}' of the original itself. Its `get_config()` must not "
                "return variables or objects that hold them."
            )
        if origins.setdefault(id(target), source.path) != source.path:
            raise ValueError(
                f"The layer made from the configuration of layer '{name}' has one "
                f"weight where the original has two: '{origins[id(target)]}' and "
                f"'{source.path}'."
            )


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
