"""The masks of a whole model: redrawing them, and setting the ratio by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_sq.core import backend, checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, Model, Tensor, Variable
from keras_sq.layers import quantized_layers
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.ranking import Rows
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
    """As `update_masks`, with one ratio for all of the layers.

    The masks go through the condition as one vector, and the random states as one
    matrix: what is traced for each mask is what makes a training start late.
    """
    masked = [(layer, name) for layer in layers for name in layer.mask_names]
    sizes = [math.prod(layer.mask(name).shape) for layer, name in masked]
    full, none = ratio >= 1.0, ops.logical_and(due, ratio <= 0.0)

    # What is assigned within a branch stays within on JAX, and so nothing is.
    now = ops.concatenate(
        [ops.reshape(internals.read(layer.mask(name)), (-1,)) for layer, name in masked]
    )
    seeds = [layer.mask_seed_state for layer in layers]
    states = ops.stack([internals.read(seed) for seed in seeds])

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        return _drawn(masked, sizes, ratio, now, states)

    def keep() -> tuple[Tensor, Tensor, Tensor]:
        some = ops.logical_not(none)
        mask = ops.logical_or(ops.logical_and(now, some), full)
        return mask, ops.ones((len(masked),), "bool"), states

    partly = ops.logical_and(ratio > 0.0, ratio < 1.0)
    new, flags, states = ops.cond(ops.logical_and(due, partly), draw, keep)
    for (layer, name), mask in zip(masked, _parts(new, sizes), strict=True):
        variable = layer.mask(name)
        variable.assign(ops.reshape(mask, variable.shape))
    for seed, state in zip(seeds, ops.unstack(states, len(seeds)), strict=True):
        seed.assign(state)
    for layer in layers:
        layer.ratio.assign(backend.unshared(ratio))
    names = [len(layer.mask_names) for layer in layers]
    if max(names) == 1:
        return flags
    return ops.stack([ops.all(part) for part in _parts(flags, names)])


def _parts(vector: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Returns a vector in parts."""
    if len(sizes) == 1:
        return [vector]
    return list(ops.split(vector, np.cumsum(sizes)[:-1].tolist()))


def _drawn(
    masked: Sequence[tuple[StochasticallyQuantized, str]],
    sizes: Sequence[int],
    ratio: Tensor,
    now: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns new masks, whether the errors were finite, and the next random states.

    Args:
        masked: What has a mask: layers, each with one of its `mask_names`.
        sizes: The sizes of the masks.
        ratio: Float32 scalar.
        now: Bool, the masks as they are, one behind the other.
        states: Int `(layers, 2)`, the random states.
    """
    masks: list[Tensor] = [None] * len(masked)
    # Masks with the same way of selection and, to keep the padding small, of
    # similar size (a factor of four) are drawn together.
    groups: dict[tuple[Selection, int], list[int]] = {}
    for index, (layer, name) in enumerate(masked):
        magnitude = sizes[index].bit_length() // 2
        groups.setdefault((layer.selection_of(name), magnitude), []).append(index)
    order = sum(groups.values(), [])
    noise, states = _noise(masked, sizes, order, states)
    previous = _parts(now, sizes)
    finite = []
    for (selection, _), members in groups.items():
        rows = Rows([sizes[index] for index in members])
        matrix, flags = _errors([masked[index] for index in members], selection, rows)
        finite.append(flags)
        drawn = selection.drawn(
            rows,
            matrix,
            ratio,
            [noise[index] for index in members],
            [previous[index] for index in members],
        )
        kept = ops.unstack(flags, len(members))
        for index, mask, flag in zip(members, rows.split(drawn), kept, strict=True):
            masks[index] = ops.where(flag, mask, previous[index])
    all_flags = ops.take(ops.concatenate(finite), np.argsort(order), axis=0)
    return ops.concatenate(masks), all_flags, states


def _errors(
    masked: Sequence[tuple[StochasticallyQuantized, str]],
    selection: Selection,
    rows: Rows,
) -> tuple[Tensor, Tensor]:
    """Returns the quantization errors as a matrix, and which rows are finite.

    Args:
        masked: As for `_drawn`, those of one selection.
        selection: If it looks at no errors, they are 0.
        rows: Joins the errors.
    """
    if not selection.needs_errors:
        matrix = ops.zeros((len(masked), rows.width), "float32")
        sizes = [_size(layer, name) for layer, name in masked]
        return matrix, ops.isfinite(ops.stack(sizes))
    errors = [layer.quantization_errors(name) for layer, name in masked]
    # Those of filters are vectors already.
    flat = [x if len(x.shape) == 1 else ops.reshape(x, (-1,)) for x in errors]
    matrix = rows.join(flat)
    return matrix, ops.all(ops.isfinite(matrix), axis=-1)


def _noise(
    masked: Sequence[tuple[StochasticallyQuantized, str]],
    sizes: Sequence[int],
    order: Sequence[int],
    states: Tensor,
) -> tuple[dict[int, Tensor], Tensor]:
    """Returns random numbers for every mask, and the next random states.

    The numbers are those of `keras.random.uniform` with the layer's generator, one
    draw after the other: float32 in [0, 1), `numbers_per_entry` for each entry.

    Args:
        masked: As for `_drawn`.
        sizes: As for `_drawn`.
        order: The indices of the masks in the order of their draws.
        states: Int `(layers, 2)`: seed and number of draws.
    """
    rows = {id(layer): row for row, (layer, _) in enumerate(_first_masks(masked))}
    draws = [0] * len(rows)
    of_layer, earlier, lengths = [], [], []
    for index in order:
        layer, name = masked[index]
        row = rows[id(layer)]
        of_layer.append(row)
        earlier.append(draws[row])
        lengths.append(layer.selection_of(name).numbers_per_entry * sizes[index])
        draws[row] += 1
    seeds = ops.take(states, np.array(of_layer, "int32"), axis=0)
    seeds = seeds + _second_column(earlier, states)
    numbers = backend.uniform_numbers(seeds, lengths)
    return (
        dict(zip(order, numbers, strict=True)),
        states + _second_column(draws, states),
    )


def _first_masks(
    masked: Sequence[tuple[StochasticallyQuantized, str]],
) -> list[tuple[StochasticallyQuantized, str]]:
    """Returns one entry a layer, in order."""
    return list({id(entry[0]): entry for entry in masked}.values())


def _second_column(values: Sequence[int] | Array, like: Tensor) -> Tensor:
    column = np.stack([np.zeros(len(values), "int64"), np.array(values)], axis=1)
    return ops.convert_to_tensor(column, like.dtype)


def _size(layer: StochasticallyQuantized, name: str) -> Tensor:
    """Returns the sum of `|w|` of a kernel; 0 for an input."""
    if name not in layer.quantized_weights:
        return ops.zeros(())
    value = internals.read(layer.latent(name))
    return ops.sum(ops.abs(ops.cast(value, "float32")))


def _array_size(array: Any) -> Any:
    """As `_size`, of an array."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sum(np.abs(array.astype("float32", copy=False)))


def finite_kernels(layers: Sequence[StochasticallyQuantized]) -> Tensor:
    """Returns, per layer, whether all its latent kernels are finite.

    So must be the sum of their absolute values, which the errors are found by.
    """
    # NaN and infinity survive the sum, so that one number a layer tells.
    kernels = [
        [backend.array_in_memory(x.latent(name)) for name in x.quantized_weights]
        for x in layers
    ]
    if all(kernel is not None for arrays in kernels for kernel in arrays):
        # A tenth of the time of as many small operations.
        return np.isfinite([sum(map(_array_size, arrays)) for arrays in kernels])
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
