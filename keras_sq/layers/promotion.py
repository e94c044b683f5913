"""The step from a Keras layer to its quantized class.

A built layer becomes a quantized one in place: only its class changes. It keeps its
identity, its variables, its connections and its place in other layers. So one
mechanism serves graph models, subclassed models and layers inside custom layers.
"""

from typing import Any

from keras_sq.core.types import Layer
from keras_sq.layers import registry
from keras_sq.layers.derived import derived_class
from keras_sq.layers.settings import Settings
from keras_sq.layers.weight_names import weights_present


def quantized_class(layer_class: type) -> type | None:
    """Returns the quantized class of a layer class, derived if possible, or `None`."""
    known = registry.covered().get(layer_class)
    return derived_class(layer_class) if known is None else known


def quantized_class_of(layer: Layer) -> type | None:
    """Returns the quantized class of a layer that has something to quantize.

    Some classes create their weights on a condition. For a built layer that has none
    of them the result is `None`, too.
    """
    cls = quantized_class(type(layer))
    if cls is None or not layer.built or weights_present(cls, layer):
        return cls
    return None


def promote(layer: Layer, chosen: Settings) -> None:
    """Turns a built Keras layer into its quantized class, in place.

    Args:
        layer: A built layer with a `quantized_class_of`.
        chosen: Its settings.
    """
    cls: Any = quantized_class(type(layer))
    registry.assert_supported(layer)
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
