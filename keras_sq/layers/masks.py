"""The masks of a whole model: redrawing them, and setting the ratio by hand."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_sq.core import backend, checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model, Tensor, Variable
from keras_sq.layers import quantized_layers
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.selection import Selection


class NotFiniteError(ValueError):
    """Training diverged: a weight is NaN or infinite.

    Example:
        >>> issubclass(keras_sq.callbacks.NotFiniteError, ValueError)
        True
    """


def update_masks(
    layers: Sequence[StochasticallyQuantized], ratio: Tensor, due: Tensor
) -> Tensor:
    """Sets the ratio of layers, and redraws their masks where this is due.

    At ratio 1 everything is quantized, at ratio 0 nothing, and nothing is drawn. To
    be traced into one compiled call.

    Args:
        layers: Built layers.
        ratio: Float scalar in [0, 1], or one for each layer.
        due: Bool scalar: whether to redraw at a ratio below 1.

    Returns:
        Bool `(number of layers,)`: whether the layer's quantization errors
        were finite. The masks of a layer where they are not stay as they are.
    """
    ratio = ops.cast(ratio, "float32")
    if not len(ratio.shape):
        return _update_alike(layers, ratio, due)
    # Each by itself: in a layerwise schedule one layer at a time has something to
    # draw, and the others cost nothing but a look at their ratio.
    flags = [
        _update_alike([layer], ratio[index], due) for index, layer in enumerate(layers)
    ]
    return ops.concatenate(flags)


def variables_of(layers: Sequence[StochasticallyQuantized]) -> list[Variable]:
    """Returns what `update_masks` reads and assigns."""
    return [x for layer in layers for x in internals.own_variables(layer)]


def _update_alike(
    layers: Sequence[StochasticallyQuantized], ratio: Tensor, due: Tensor
) -> Tensor:
    """As `update_masks`, with one ratio for all of the layers."""
    masked = [(layer, name) for layer in layers for name in layer.mask_names]
    full, none = ratio >= 1.0, ops.logical_and(due, ratio <= 0.0)

    # What is assigned within a branch stays within on JAX: the branches get the
    # random states as values, and hand them on.
    seeds = [layer.mask_seed_state for layer in layers]
    values = [(variable, internals.read(variable)) for variable in variables_of(layers)]

    def draw() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        with keras.StatelessScope(state_mapping=values) as scope:
            masks, flags = _drawn(masked, ratio)
            return masks, flags, [scope.get_current_value(seed) for seed in seeds]

    def keep() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        now = [internals.read(layer.mask(name)) for layer, name in masked]
        some = ops.logical_not(none)
        masks = [ops.logical_or(ops.logical_and(mask, some), full) for mask in now]
        flags = [ops.ones((), "bool")] * len(masked)
        return masks, flags, [internals.read(seed) for seed in seeds]

    partly = ops.logical_and(ratio > 0.0, ratio < 1.0)
    masks, flags, states = ops.cond(ops.logical_and(due, partly), draw, keep)
    for (layer, name), mask in zip(masked, masks, strict=True):
        layer.mask(name).assign(mask)
    for seed, state in zip(seeds, states, strict=True):
        seed.assign(state)
    per_layer = []
    start = 0
    for layer in layers:
        layer.ratio.assign(backend.unshared(ratio))
        end = start + len(layer.mask_names)
        per_layer.append(ops.all(ops.stack(flags[start:end])))
        start = end
    return ops.stack(per_layer)


def _drawn(
    masked: Sequence[tuple[StochasticallyQuantized, str]], ratio: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns new masks, and whether the errors were finite."""
    masks: list[Tensor] = [None] * len(masked)
    flags: list[Tensor] = [None] * len(masked)
    # Masks with the same way of selection and, to keep the padding small, of
    # similar size (a factor of four) are drawn together.
    groups: dict[tuple[Selection, int], list[int]] = {}
    for index, (layer, name) in enumerate(masked):
        magnitude = math.prod(layer.mask(name).shape).bit_length() // 2
        groups.setdefault((layer.selection_of(name), magnitude), []).append(index)
    for (selection, _), members in groups.items():
        errors, noise, previous = [], [], []
        for index in members:
            layer, name = masked[index]
            mask = ops.reshape(internals.read(layer.mask(name)), (-1,))
            previous.append(mask)
            noise.append(layer.uniform_noise(name))
            if selection.needs_errors:
                error = ops.reshape(layer.quantization_errors(name), (-1,))
                flags[index] = ops.all(ops.isfinite(error))
            else:
                error = ops.zeros(mask.shape, "float32")
                flags[index] = ops.isfinite(_size(layer, name))
            errors.append(error)
        drawn = selection.masks(errors, ratio, noise, previous)
        for index, mask, old in zip(members, drawn, previous, strict=True):
            layer, name = masked[index]
            shape = layer.mask(name).shape
            masks[index] = ops.reshape(ops.where(flags[index], mask, old), shape)
    return masks, flags


def _size(layer: StochasticallyQuantized, name: str) -> Tensor:
    """Returns the sum of `|w|` of a kernel; 0 for an input."""
    if name not in layer.quantized_weights:
        return ops.zeros(())
    value = internals.read(layer.latent(name))
    return ops.sum(ops.abs(ops.cast(value, "float32")))


def finite_kernels(layers: Sequence[StochasticallyQuantized]) -> Tensor:
    """Returns, per layer, whether all its latent kernels are finite.

    So must be the sum of their absolute values, which the errors are found by.
    """
    # NaN and infinity survive the sum, so that one number a layer tells.
    sizes = [
        sum(_size(layer, name) for name in layer.quantized_weights) for layer in layers
    ]
    return ops.isfinite(ops.stack(sizes))


def set_ratio(model: Model, ratio: float) -> None:
    """Sets the ratio of every quantized layer by hand, and draws the masks.

    Afterwards training without the callback keeps these masks, and does not
    warn. With the callback, the schedule takes over.

    Args:
        model: A model with quantized layers, or one such layer.
        ratio: Float in [0, 1]: fraction of the filters to quantize.

    Raises:
        TypeError: If `ratio` is no number.
        ValueError: If `ratio` is outside [0, 1], nothing in the model is
            quantized, or a kernel is not finite.

    Example:
        >>> layer = keras_sq.layers.SQDense(4, kernel_quantizer="binary")
        >>> layer.build((None, 3))
        >>> keras_sq.set_ratio(layer, 0.5)
        >>> int(keras.ops.sum(keras.ops.cast(layer.mask(), "int32")))
        2
    """
    ratio = checks.fraction("ratio", ratio)
    pairs = require_quantized(model)
    layers = [layer for _, layer in pairs]
    require_finite([path for path, _ in pairs], finite_kernels(layers))
    # Not compiled as a whole: tracing takes longer than the single call.
    update_masks(layers, ops.convert_to_tensor(ratio, "float32"), ops.ones((), "bool"))
    for layer in layers:
        layer.ratio_is_controlled = True


def get_ratio(model: Model) -> float:
    """Returns the least ratio of the quantized layers of a model.

    1.0 means that training computes with the network that will be deployed.

    Args:
        model: A model with quantized layers, or one such layer.

    Raises:
        ValueError: If nothing in the model is quantized.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> keras_sq.set_ratio(sq_model, 0.75)
        >>> keras_sq.get_ratio(sq_model)
        0.75
    """
    layers = [layer for _, layer in require_quantized(model)]
    return min(float(internals.read(layer.ratio)) for layer in layers)


def ratios_drawn(layers: Sequence[StochasticallyQuantized]) -> np.ndarray:
    """Returns the ratio that each layer was drawn for, float `(layers,)`.

    0 where nothing was drawn yet: the ratio of a new layer is 1.
    """
    ratios = np.array([float(internals.read(layer.ratio)) for layer in layers])
    # A seed and a counter of draws.
    states = [
        ops.convert_to_numpy(internals.read(layer.mask_seed_generator.state))
        for layer in layers
    ]
    return np.where([np.any(state[1:]) for state in states], ratios, 0.0)


def require_quantized(model: Model) -> list[tuple[str, StochasticallyQuantized]]:
    """Returns the quantized layers of a model with their paths.

    Raises:
        ValueError: If there is none, or one is not built.
    """
    pairs = quantized_layers(model)
    if not pairs:
        raise ValueError(
            f"Model '{getattr(model, 'name', model)}' has no quantized layer. Make "
            "it a quantized model with `keras_sq.quantize_model(model)`."
        )
    for path, layer in pairs:
        if not layer.built:  # type: ignore[attr-defined]
            raise ValueError(
                f"Layer '{path}' is not built, so it has no masks yet. Call the "
                "model on a batch first, or give it a `keras.Input`."
            )
    return pairs


def require_finite(paths: Sequence[str], flags: Tensor) -> None:
    """Raises if a flag is False.

    Raises:
        NotFiniteError: Naming the layers.
    """
    finite = ops.convert_to_numpy(flags)
    bad = [path for path, good in zip(paths, finite, strict=True) if not good]
    if bad:
        raise NotFiniteError(
            f"The kernel of layer {checks.listed(bad)} holds NaN or infinite "
            "values, or such that their sum is; no mask was drawn. Lower the "
            "learning rate, clip the gradients (`clipnorm=1.0` in the optimizer), "
            "and start again from the last good checkpoint."
        )
