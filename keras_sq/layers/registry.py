"""Which Keras class has which quantized class, and the step between the two.

A built layer becomes a quantized one in place: it keeps its identity, its
variables, its connections and whoever holds it, and only its class changes.
That is what lets one mechanism serve graph models, subclassed models and
layers inside custom layers alike. Classes that are made on demand, for subclasses
and for layers of keras-hub, are the matter of `derived.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_sq.core.types import Config, Layer
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.settings import Settings
from keras_sq.layers.weight_names import weights_present

PACKAGE = "keras_sq"

_quantized: dict[type, type] = {}
_containers: dict[type, type] = {}
_static_containers: set[type] = set()
_container_mixins: dict[type, type] = {}


def add(cls: type) -> type:
    """Class decorator: makes a quantized class known, to Keras as well."""
    _quantized[cls.float_class] = cls  # type: ignore[attr-defined]
    return keras.saving.register_keras_serializable(PACKAGE)(cls)  # type: ignore[no-any-return]


def add_container(cls: type) -> type:
    """Class decorator: makes a container with its own constructor known."""
    _containers[cls.float_class] = cls  # type: ignore[attr-defined]
    _static_containers.add(cls)
    return keras.saving.register_keras_serializable(PACKAGE)(cls)  # type: ignore[no-any-return]


def add_container_mixin(layer_class: type) -> Callable[[type], type]:
    """Class decorator: what the containers of a Keras class have besides."""

    def add(cls: type) -> type:
        _container_mixins[layer_class] = cls
        return cls

    return add


def quantized_class(layer_class: type) -> type | None:
    """Returns the quantized class of a layer class, made on demand if need be."""
    from keras_sq.layers.derived import derived_class

    known = _quantized.get(layer_class)
    return derived_class(layer_class) if known is None else known


def quantized_class_of(layer: Layer) -> type | None:
    """Returns the quantized class of a layer that has something to quantize.

    `None`, too, for a built layer without any of the weights: some classes have them
    on a condition.
    """
    cls = quantized_class(type(layer))
    if cls is None or not layer.built or weights_present(cls, layer):
        return cls
    return None


def covered() -> dict[type, type]:
    """Returns the classes with a quantized class of their own, not made on demand."""
    return dict(_quantized)


def is_static_container(cls: type) -> bool:
    """Whether a container class has a constructor of its own."""
    return cls in _static_containers


def static_container(layer_class: type) -> type | None:
    """Returns the container of exactly this class with its own constructor."""
    cls = _containers.get(layer_class)
    return cls if cls in _static_containers else None


def known_container_base(reference: Config) -> type | None:
    """Returns a class of this process that a reference may mean."""
    for base in _containers:
        same_module = base.__module__ == reference["module"]
        if same_module and base.__name__ == reference["class_name"]:
            return base
    return None


def container_class(base: type) -> type:
    """Returns the container class of a layer or model class.

    All of them are saved under one registered name, so that a file can be
    read where only the original class is known.
    """
    from keras_sq.layers.container import QuantizedContainer

    if base not in _containers:
        mixin = _container_mixins.get(base)
        bases = (QuantizedContainer, base) if mixin is None else (mixin, base)
        cls = type(f"SQ{base.__name__}", bases, {})
        cls.__module__ = QuantizedContainer.__module__
        cls.__doc__ = f"`{base.__name__}` with quantized layers inside."
        register_as = keras.saving.register_keras_serializable(
            PACKAGE, "QuantizedContainer"
        )
        register_as(cls)
        register_as(QuantizedContainer)  # The one that answers to the name.
        _containers[base] = cls
    return _containers[base]


def promote(layer: Layer, chosen: Settings) -> None:
    """Turns a built Keras layer into its quantized class, in place.

    Args:
        layer: A built layer with a `quantized_class_of`.
        chosen: Its settings.
    """
    cls: Any = quantized_class(type(layer))
    assert_supported(layer)
    latents = {}
    for name in cls.quantized_weights:
        # A weight that is a plain attribute moves behind the descriptor.
        if name in layer.__dict__:
            latents[f"_{name}"] = layer.__dict__.pop(name)
    layer.__dict__.update(latents)
    layer.__class__ = cls
    layer._set_settings(chosen)
    layer.add_quantization_state()
    layer.fit_codebooks()


def assert_supported(layer: Layer) -> None:
    """Raises if Keras has already quantized or extended the layer.

    Raises:
        ValueError: If it has.
    """
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"Layer '{layer.name}' has LoRA weights, whose update would bypass "
            "the quantizer. Save and reload the model to merge them, or skip the "
            f"layer: skip=[{layer.name!r}]."
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            f"Layer '{layer.name}' is already quantized by Keras "
            f"({layer.quantization_mode}). Start from the float model, or skip the "
            f"layer: skip=[{layer.name!r}]."
        )


def register(
    layer_class: type,
    quantized_weights: Sequence[str] = ("kernel",),
    filter_axes: Callable[[Layer, str], tuple[int, ...]] | None = None,
) -> type:
    """Lets `quantize_model` quantize layers of your own.

    Layers that hold layers of Keras need it not, nor do subclasses of a covered layer
    that have no more of their own than a constructor, a configuration or new methods.

    Args:
        layer_class: A subclass of `keras.layers.Layer` whose weights are
            attributes assigned in `build`.
        quantized_weights: The names of the attributes to quantize.
        filter_axes: `filter_axes(layer, name) -> axes`, for a weight whose
            filters are not told apart by the last axis.

    Returns:
        The quantized class; it takes the arguments of `layer_class` and the
        settings of every quantized layer.

    Raises:
        TypeError: If `layer_class` is no layer class or the names no strings.
        ValueError: If the class is quantized already.

    Example:
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, input_shape):
        ...         self.table = self.add_weight(shape=(input_shape[-1], 4))
        ...     def call(self, x):
        ...         return x @ self.table
        >>> SQScale = keras_sq.register(Scale, ("table",))
        >>> SQScale(kernel_quantizer="binary")(keras.ops.ones((1, 3))).shape
        TensorShape([1, 4])
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.Layer)):
        raise TypeError(
            "Argument `layer_class` must be a class derived from "
            f"keras.layers.Layer. Received: layer_class={layer_class!r}"
        )
    names = tuple(quantized_weights)
    if isinstance(quantized_weights, str) or not names:
        raise TypeError(
            "Argument `quantized_weights` must be a non-empty sequence of "
            "attribute names, such as ('kernel',). "
            f"Received: quantized_weights={quantized_weights!r}"
        )
    if issubclass(layer_class, StochasticallyQuantized):
        raise ValueError(f"{layer_class.__name__} is a quantized class already.")
    attributes: dict[str, Any] = {
        "quantized_weights": names,
        "__module__": layer_class.__module__,
        "__doc__": f"Stochastically quantized `{layer_class.__name__}`.",
    }
    if filter_axes is not None:
        attributes["filter_axes"] = filter_axes
    cls = type(
        f"SQ{layer_class.__name__}",
        (StochasticallyQuantized, layer_class),
        attributes,
    )
    return add(cls)
