"""Measures the statistics of batch normalization again after training.

The moving averages of batch normalization are those of the last hundred steps or so. If
a ratio schedule has just quantized the rest, or weights flip until the end, these steps
had other networks: the statistics lag behind the weights that are deployed.

References:
    - [Sun et al., 2019](https://arxiv.org/abs/1911.09738), on batch normalization and
      quantized networks
    - [Izmailov et al., 2018, section 3.2](https://arxiv.org/abs/1803.05407), for the
      same cure after the averaging of weights
"""

import contextlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sq.core import backend, checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.inputs import input_data, model_inputs
from keras_sq.layers import masks, quantized_layers


def reestimate_batch_norm(
    model: Model, data: Any, *, steps: int | None = None, batch_size: int = 64
) -> int:
    """Sets the statistics of batch normalization to those of the network as it is.

    Calls the model on the batches as training does, with the statistics of each batch,
    and keeps their averages: mean, and variance within and between the batches. No
    weight changes. Give the training data, augmented as in training.

    Args:
        model: A built model. Its quantized layers must be quantized as a whole.
        data: Arrays with the examples on the first axis: one, or a list or dict by
            name of them for several inputs. Or what yields batches or single examples,
            alone or as `(x, y)` or `(x, y, sample_weight)`: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a list, a generator or a function that returns one.
        steps: Number of batches; `None` is all. A few dozen do.
        batch_size: Examples a batch, if `data` holds whole arrays or single examples.

    Returns:
        The number of layers of batch normalization that were set; those that are not
        trainable keep their statistics.

    Raises:
        TypeError: If `data` is of another kind.
        ValueError: If the ratio of a layer is below 1, an argument is out of its
            range, `data` does not fit the model's inputs, or there is no batch. The
            model is left as it was.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.BatchNormalization()])
        >>> keras_sq.reestimate_batch_norm(model, np.array([[1.0, 0.0], [3.0, 0.0]]))
        1
        >>> keras.ops.convert_to_numpy(model.layers[-1].moving_mean)
        array([2., 0.], dtype=float32)
    """
    if steps is not None:
        checks.integer("steps", steps, minimum=1)
    checks.integer("batch_size", batch_size, minimum=1)
    if quantized_layers(model) and masks.get_ratio(model) < 1.0:
        raise ValueError(
            "Argument `model` must be quantized as a whole, since what is measured is "
            "what will be deployed: train to the end of the schedule, or call "
            f"`keras_sq.set_ratio(model, 1.0)`. Its least ratio is "
            f"{masks.get_ratio(model):g}."
        )
    layers = [
        layer
        for layer in internals.flatten_layers(model, include_self=True)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not layers:
        return 0
    batches = _batches(model, data, batch_size)
    moving = [x for layer in layers for x in (layer.moving_mean, layer.moving_variance)]
    state = model.non_trainable_variables
    before = [np.array(internals.read(variable)) for variable in state]
    try:
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(internals.own_attribute(layer, "momentum", 0.0))
            for _, quantized in quantized_layers(model):
                # It need not warn that the callback is missing.
                controlled = internals.own_attribute(
                    quantized, "ratio_is_controlled", True
                )
                stack.enter_context(controlled)
            statistics = _measured(model, batches, moving, steps)
    finally:
        # Random states, learned activations: nothing but the statistics changes.
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
    for variable, value in zip(moving, statistics, strict=True):
        variable.assign(value)
    return len(layers)


def _measured(
    model: Model, batches: Iterable[Any], moving: list[Any], steps: int | None
) -> list[Any]:
    """Returns the values of `moving` over the batches: mean, variance, mean, ..."""

    def call(x: Any) -> Any:
        model(x, training=True)
        return [internals.read(variable) for variable in moving]

    compiled = backend.compiled(call, model.variables)
    count = 0
    sums = [np.zeros(variable.shape, "float64") for variable in moving]
    squares = [np.zeros(variable.shape, "float64") for variable in moving[::2]]
    for x in batches:
        if steps is not None and count == steps:
            break
        values = [np.asarray(ops.convert_to_numpy(v), "float64") for v in compiled(x)]
        for total, value in zip(sums, values, strict=True):
            total += value
        for total, mean in zip(squares, values[::2], strict=True):
            total += mean**2
        count += 1
    if not count:
        raise ValueError("Argument `data` must hold at least one batch.")
    means = [total / count for total in sums]
    between = [
        np.maximum(square / count - mean**2, 0.0)
        for square, mean in zip(squares, means[::2], strict=True)
    ]
    means[1::2] = [
        within + more for within, more in zip(means[1::2], between, strict=True)
    ]
    return means


def _batches(model: Model, data: Any, batch_size: int) -> Iterable[Any]:
    """Yields what to call the model on."""
    try:
        signature = model_inputs.input_signature(model)
    except ValueError:  # Several arguments, or ragged tensors: as they are.
        return (_inputs(batch) for batch in data)
    if not internals.has_graph(model):
        signature = signature.with_open_sizes()
    source = input_data.read(signature, data, "data")
    return (signature.pack(batch) for batch in source.batches(batch_size))


def _inputs(batch: Any) -> Any:
    """Returns the inputs of a batch as `fit` takes it."""
    return batch[0] if isinstance(batch, tuple) else batch
