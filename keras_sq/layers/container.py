"""Layers that hold quantized layers: attention, recurrent layers, your own.

The constructor of such a layer creates plain Keras layers inside, and its
configuration says no more than the constructor's arguments. A quantized container
is the same layer with two additions: its configuration also lists which layers
inside are quantized and how, and it quantizes these once they are built. So it is
saved, loaded and copied like the original.

Sequential and functional models need none of this: their configuration
describes every layer.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Config, Layer
from keras_sq.layers import promotion, registry
from keras_sq.layers import settings as settings_module
from keras_sq.layers.class_references import class_reference, find_class
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.settings import Settings, constructor_signature

ALL = "*"
"""The key of `quantized_children` that stands for every layer inside."""

_mixins: dict[type, type] = {}


@keras.saving.register_keras_serializable(registry.PACKAGE)
class QuantizedContainer:
    """Mixin: quantizes layers inside the Keras layer that it precedes."""

    float_class: ClassVar[type | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bases = (
            base
            for base in cls.__mro__
            if issubclass(base, keras.layers.Layer)
            and not issubclass(base, QuantizedContainer)
        )
        cls.float_class = next(bases, None)  # None: a mixin still.

    # `{key: Settings}`, see `child_keys`; empty while under construction.
    quantized_children: dict[str, Settings]
    _missing: list[str]

    def set_quantized_children(self, children: dict[str, Settings]) -> None:
        """Sets which layers inside are quantized, and quantizes the built ones."""
        # Not through `setattr`: Keras would wrap and track the dict.
        self.__dict__["quantized_children"] = children
        self.__dict__["_pending"] = True
        self.quantize_children()

    def quantize_children(self) -> bool:
        """Quantizes the layers inside that are to be quantized and are built.

        Returns:
            Whether a layer was quantized.
        """
        if not self.__dict__.get("_pending"):
            return False
        children = self.quantized_children
        waiting = changed = False
        keys = set()
        for key, layer in child_keys(self):
            chosen = children.get(key, children.get(ALL))
            keys.add(key)
            if chosen is None or isinstance(layer, StochasticallyQuantized):
                continue
            if promotion.quantized_class_of(layer) is None:
                continue
            if layer.built:
                promotion.promote(layer, chosen)
                changed = True
            else:
                waiting = True
        if changed:
            self._contain_recurrent()
        self.__dict__["_missing"] = sorted(set(children) - keys - {ALL})
        self.__dict__["_pending"] = bool(
            waiting or self._missing or not self.built  # type: ignore[attr-defined]
        )
        return changed

    def _contain_recurrent(self) -> None:
        """Turns recurrent layers inside into containers of their cells.

        These containers also quantize once a call: see `QuantizedRecurrent`.
        """
        for layer in internals.flatten_layers(self):
            cls = static_container(type(layer))
            if cls is None or not issubclass(cls, keras.layers.RNN):
                continue
            children = {
                key: child.quantization_settings
                for key, child in child_keys(layer)
                if isinstance(child, StochasticallyQuantized)
            }
            if children:
                layer.__class__ = cls
                layer.set_quantized_children(children)

    def _post_build(self) -> None:
        super()._post_build()  # type: ignore[misc]
        self.quantize_children()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer as Keras does, with the layers inside quantized."""
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        # If Keras could not build the layers inside beforehand, this call built
        # them, with float kernels.
        if self.quantize_children() and not _any_symbolic(outputs):
            outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if self.__dict__.get("_missing"):
            self._raise_missing()
        return outputs

    def stateless_call(self, *args: Any, **kwargs: Any) -> Any:
        """Calls Keras's method, and tells the layers inside whether it trains."""
        with internals.called(self, kwargs.get("training")):
            return super().stateless_call(*args, **kwargs)  # type: ignore[misc]

    def _raise_missing(self) -> None:
        keys = ", ".join(key for key, _ in child_keys(self))
        raise ValueError(
            f"Layer '{self.name}' holds no layer {self._missing[0]!r} (position "  # type: ignore[attr-defined]
            "and class), though its saved configuration quantizes one. It holds: "
            f"{keys}. Was the class {type(self).float_class.__name__} changed "  # type: ignore[union-attr]
            "since?"
        )

    def build_from_config(self, config: Config) -> None:
        """Builds the layer, and quantizes what this built."""
        super().build_from_config(config)  # type: ignore[misc]
        self.quantize_children()

    def get_config(self) -> Config:
        """Returns the original's configuration, and the layers quantized."""
        base = type(self).float_class
        if base is None:
            return {}
        children = {
            key: chosen.get_config() for key, chosen in self.quantized_children.items()
        }
        if isinstance(self, QuantizedLayer):
            return {**self.float_config(), "quantized_children": children}
        return {
            "float_layer": class_reference(base) | {"config": self.float_config()},
            "quantized_children": children,
        }

    def float_config(self) -> Config:
        """Returns the configuration of the original layer alone."""
        config = super().get_config()  # type: ignore[misc]
        base: Any = type(self).float_class
        return internals.with_recorded_arguments(self, base, config)

    @classmethod
    def from_config(cls, config: Config, custom_objects: Any = None) -> Layer:
        """Returns the container that `get_config` described."""
        config = dict(config)
        children = {
            key: Settings(**chosen)
            for key, chosen in config.pop("quantized_children", {}).items()
        }
        reference = config.get("float_layer")
        if reference is None:
            layer = super().from_config(config)  # type: ignore[misc]
        else:
            base = find_class(reference)
            if not issubclass(base, keras.layers.Layer):
                raise ValueError(
                    "The configuration of a quantized container must name a class of "
                    f"layers. Received: {base.__name__!r}"
                )
            container = container_class(base)
            layer = super(QuantizedContainer, container).from_config(  # type: ignore[misc]
                reference["config"]
            )
        layer.set_quantized_children(children)
        return layer


class QuantizedLayer(QuantizedContainer):
    """Base of the containers with a constructor of their own (`SQLSTM`…).

    The settings given to the constructor hold for every layer inside.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.float_class is not None:
            cls.__signature__ = constructor_signature(cls.float_class)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        chosen, rest = settings_module.split(kwargs)
        self.__dict__["quantized_children"] = {}
        super().__init__(*args, **rest)
        self.set_quantized_children({ALL: chosen})


def add_container(cls: type) -> type:
    """Class decorator: registers a container that has its own constructor."""
    registry.containers[cls.float_class] = cls  # type: ignore[attr-defined]
    return keras.saving.register_keras_serializable(registry.PACKAGE)(cls)  # type: ignore[no-any-return]


def add_container_mixin(layer_class: type) -> Callable[[type], type]:
    """Class decorator: sets the mixin of the containers of a Keras class."""

    def add(cls: type) -> type:
        _mixins[layer_class] = cls
        return cls

    return add


def static_container(layer_class: type) -> type | None:
    """Returns the container of exactly this class with its own constructor."""
    cls = registry.containers.get(layer_class)
    return cls if cls is not None and issubclass(cls, QuantizedLayer) else None


def container_class(base: type) -> type:
    """Returns the container class of a layer or model class.

    All container classes are saved under one registered name. A process that knows
    only the original class can read the file.
    """
    if base not in registry.containers:
        attributes = {
            "__module__": QuantizedContainer.__module__,
            "__doc__": f"`{base.__name__}` with quantized layers inside.",
        }
        mixin = _mixins.get(base, QuantizedContainer)
        cls = registry.new_class(base, (mixin,), attributes)
        registry.save_under_name_of(QuantizedContainer, cls)
        registry.containers[base] = cls
    return registry.containers[base]


@add_container_mixin(keras.layers.SpectralNormalization)
class QuantizedSpectralNormalization(QuantizedContainer):
    """Makes `SpectralNormalization` normalize the latent kernel."""

    def build(self, input_shape: Any) -> None:
        """Builds the layer; `kernel` is the variable that it is to write."""
        super().build(input_shape)  # type: ignore[misc]
        layer = self.layer  # type: ignore[attr-defined]
        if isinstance(layer, StochasticallyQuantized):
            self.kernel = layer.latent(layer.quantized_weights[0])


def child_keys(container: Layer) -> list[tuple[str, Layer]]:
    """Returns the layers inside with keys that are the same in every process.

    The keys consist of position and class; Keras counts names up in a process
    (`dense_7` is `dense` in the next one).
    """
    children = internals.flatten_layers(container)
    pairs = []
    for index, child in enumerate(children):
        base = getattr(type(child), "float_class", None) or type(child)
        pairs.append((f"{index}:{base.__name__}", child))
    return pairs


def _any_symbolic(outputs: Any) -> bool:
    return any(
        isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(outputs)
    )
