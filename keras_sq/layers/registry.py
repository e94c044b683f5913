"""Which Keras class has which quantized class, and which container.

How a layer becomes a quantized one is in `promotion.py`. Classes that are created on
demand, for subclasses and for layers of keras-hub, are in `derived.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_sq.core.types import Config, Layer
from keras_sq.layers.quantized import StochasticallyQuantized

PACKAGE = "keras_sq"

_quantized: dict[type, type] = {}

containers: dict[type, type] = {}
"""Class of a layer or model -> its container class; `container.py` fills it."""


def add(cls: type) -> type:
    """Class decorator: registers a quantized class, with Keras as well."""
    _quantized[cls.float_class] = cls  # type: ignore[attr-defined]
    return keras.saving.register_keras_serializable(PACKAGE)(cls)  # type: ignore[no-any-return]


def new_class(layer_class: type, bases: tuple[type, ...], attributes: Config) -> type:
    """Returns a new class `SQ<name>`, derived from bases and a layer class.

    Args:
        layer_class: The Keras class, or a user's.
        bases: The classes with what this package adds.
        attributes: Attributes of the new class.
    """
    usual = {
        "__module__": layer_class.__module__,
        "__doc__": f"Stochastically quantized `{layer_class.__name__}`.",
    }
    name = f"SQ{layer_class.__name__}"
    return type(name, (*bases, layer_class), usual | attributes)


def save_under_name_of(owner: type, cls: type) -> None:
    """Registers a class, for saving, under the name of another class.

    Keras then loads what is saved by the `from_config` of the owner of the name.
    """
    register_as = keras.saving.register_keras_serializable(PACKAGE, owner.__name__)
    register_as(cls)
    register_as(owner)


def covered() -> dict[type, type]:
    """Returns the quantized classes by their float classes, without derived ones."""
    return dict(_quantized)


def known_container_base(reference: Config) -> type | None:
    """Returns a class of this process with the module and name of a reference."""
    for base in containers:
        same_module = base.__module__ == reference["module"]
        if same_module and base.__name__ == reference["class_name"]:
            return base
    return None


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

    Layers that contain Keras layers do not need it. Neither do subclasses of a covered
    layer that override only the constructor or the configuration, or add methods.

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
    attributes: dict[str, Any] = {"quantized_weights": names}
    if filter_axes is not None:
        attributes["filter_axes"] = filter_axes
    return add(new_class(layer_class, (StochasticallyQuantized,), attributes))
