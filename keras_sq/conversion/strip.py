"""From a quantized model back to a plain Keras model.

The plain model has the quantized kernels as its weights. Its layers are created again
from the configurations of the float layers.
"""

from typing import Any

import keras

from keras_sq import layers as sq_layers
from keras_sq.conversion.copying import (
    Copier,
    copy_model,
    copy_own_state,
    copy_saved_state,
    require_built,
    same_copy,
)
from keras_sq.conversion.same_outputs import check_same
from keras_sq.core import backend
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, Model
from keras_sq.layers import container, derived
from keras_sq.layers.class_references import class_reference
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.settings import Settings


def strip_quantization(model: Model) -> Model:
    """Returns a plain Keras model with the quantized kernels as weights.

    It computes what the quantized model computes at inference, and loads
    without this package. Layers that were not quantized keep their weights.

    Models with quantized activations are refused: no plain Keras layer rounds its
    input to levels, so the plain model would compute something else.

    Args:
        model: A built model from `quantize_model`, or with layers of
            `keras_sq.layers`. It is left alone.

    Returns:
        The plain model, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is not built, has no quantized layer, has quantized
            activations, cannot be copied, or the plain model computes something
            else.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> plain = keras_sq.strip_quantization(sq_model)
        >>> type(plain.layers[0]).__name__
        'Dense'
        >>> x = np.ones((2, 8), "float32")
        >>> bool(np.allclose(plain(x), sq_model(x), atol=1e-6))
        True
    """
    require_built(model)
    path = quantized_activation(model)
    if path is not None:
        raise ValueError(
            f"Model '{model.name}' has quantized activations (layer '{path}'), which "
            "plain Keras layers cannot express: a stripped model would compute "
            "something else. Save the quantized model as it is, "
            "`model.save('model.keras')`; loading it needs this package."
        )
    if not sq_layers.quantized_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no quantized layer: nothing to strip."
        )
    plain = plain_copy(model)
    if not computes_hybrid(model):
        check_same(model, plain, "strip_quantization")
    return plain


def computes_hybrid(model: Model) -> bool:
    """Whether a layer computes with its hybrid kernel at inference, too."""
    return any(
        layer.quantization_settings.inference == "hybrid"
        for _, layer in sq_layers.quantized_layers(model)
    )


def plain_copy(model: Model) -> Model:
    """Returns a copy with plain layers that hold the quantized kernels.

    Without the input quantizers of its layers: `strip_quantization` refuses models
    that have any.

    Args:
        model: A built model.

    Raises:
        ValueError: If the model cannot be copied.
    """
    return copy_model(model, _float_copy, _copy_quantized_kernels)


def quantized_activation(model: Model) -> str | None:
    """Returns the path of the first layer that quantizes activations, if any."""
    for path, layer in sq_layers.layer_paths(model):
        stands_alone = isinstance(layer, sq_layers.QuantizedActivation)
        if stands_alone or getattr(layer, "input_rule", None) is not None:
            return path
    return None


def _float_copy(layer: Layer, copier: Copier) -> Layer:
    if isinstance(layer, StochasticallyQuantized | container.QuantizedContainer):
        config = _float_config(copier.config(layer, layer.float_config))
        return copier.from_config(layer, type(layer).float_class, config)  # type: ignore[arg-type]
    return same_copy(layer, copier)


def _float_config(config: Any) -> Any:
    """Returns a configuration with the quantized layers inside made plain.

    Wrappers such as TimeDistributed describe the layer they wrap.
    """
    if isinstance(config, list | tuple):
        return type(config)(_float_config(entry) for entry in config)
    if not isinstance(config, dict):
        return config
    new = {key: _float_config(value) for key, value in config.items()}
    quantized = None
    if isinstance(new.get("registered_name"), str):
        quantized = keras.saving.get_registered_object(new["registered_name"])
    if quantized is derived.QuantizedSubclass:
        return new | new["config"][derived.FLOAT_LAYER]
    if isinstance(quantized, type) and issubclass(quantized, StochasticallyQuantized):
        ours = set(Settings().get_config())
        inner = {k: v for k, v in new["config"].items() if k not in ours}
        return new | class_reference(quantized.float_class) | {"config": inner}
    if isinstance(quantized, type) and issubclass(quantized, container.QuantizedLayer):
        inner = dict(new["config"])
        inner.pop("quantized_children", None)
        base = quantized.float_class
        return new | class_reference(base) | {"config": inner}  # type: ignore[arg-type]
    return new


def _copy_quantized_kernels(old: Layer, new: Layer) -> None:
    if not isinstance(old, StochasticallyQuantized):
        copy_own_state(old, new)
        return
    copy_saved_state(old, new)
    # These have no counterpart; the others are in the same order.
    quantized = {id(old.latent(name)): name for name in old.quantized_weights}
    extra = {id(v) for v in old.quantization_state()}
    sources = [v for v in internals.own_variables(old) if id(v) not in extra]
    for source, target in zip(sources, internals.own_variables(new), strict=True):
        name = quantized.get(id(source))
        value = source if name is None else old.quantized_kernel(name)
        target.assign(backend.unshared(value))
    seeds = zip(internals.seed_states(old), internals.seed_states(new), strict=True)
    for source, target in seeds:
        target.assign(backend.unshared(source))
