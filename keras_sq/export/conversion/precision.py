"""Float32 copies of models that compute in another float type."""

from typing import Any

import keras

from keras_sq.conversion import copying
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Config, Layer, Model

OTHER_FLOATS = ("float16", "bfloat16", "float64")
OTHER_POLICIES = (*OTHER_FLOATS, "mixed_float16", "mixed_bfloat16")


def in_float32(model: Model) -> Model:
    """Returns the model, or a copy that computes in float32.

    A file of float16 operations would run on few runtimes, and a rounding of
    1e-3 hide real differences. The weights of mixed-precision models are
    float32 anyway.

    Args:
        model: A plain Keras model.
    """
    if not computes_otherwise(model):
        return model
    return copying.copy_model(model, _float32_copy)


def computes_otherwise(model: Model) -> bool:
    """Whether a layer computes or stores in a float type but float32."""
    for layer in internals.flatten_layers(model, include_self=True):
        # These compute nothing themselves, and keep the policy of the day.
        idle = isinstance(layer, keras.layers.InputLayer)
        if idle or internals.has_graph(layer):
            continue
        policy = layer.dtype_policy
        if policy.compute_dtype in OTHER_FLOATS:
            return True
        if policy.variable_dtype in OTHER_FLOATS:
            return True
    return False


def _float32_copy(layer: Layer, copier: copying.Copier) -> Layer:
    if isinstance(layer, keras.layers.Lambda):
        copy = copying.same_copy(layer, copier)
        copy.dtype_policy = keras.DTypePolicy("float32")
        return copy
    config = _float32_config(copier.config(layer, layer.get_config))
    return copier.from_config(layer, type(layer), config)


def _float32_config(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(_float32_config(entry) for entry in config)
    if not isinstance(config, dict):
        return config
    new: Config = {key: _float32_config(value) for key, value in config.items()}
    if new.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
        new["config"] = {"name": "float32"}
    if new.get("dtype") in OTHER_POLICIES:
        new["dtype"] = "float32"
    return new
