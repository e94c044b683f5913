"""Random inputs that a model can be called on, to see what it computes.

They have the right shapes and dtypes, and values that the model can use: row numbers
within its tables, words of its vocabularies.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sq.core import backend, memory_bounds
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.inputs import model_inputs

MAX_ENTRIES = 2**24
"""Entries of an example, above which no input is made."""

WIDE = 30.0
"""Mean and spread of the second example: statistics, bins and clips are seen there."""


class NoInputsError(ValueError):
    """The inputs that a model can be called on are unknown."""


def random_inputs(model: Model, unknown_size: int, batch: int = 2) -> Any:
    """Returns random inputs in the structure that a model is called on.

    The first example of floats is standard normal, the others have large values.

    Args:
        model: A built model.
        unknown_size: What stands for sizes that are open, but for the batch's.
        batch: How many examples, if the model takes any number.

    Raises:
        NoInputsError: If the model takes several arguments or ragged tensors, or
            inputs of absurd shapes.
    """
    try:
        signature = model_inputs.input_signature(model)
        memory_bounds.check_sizes(model, batch)
    except ValueError as error:
        raise NoInputsError(str(error)) from error
    generator = np.random.default_rng(0)
    words = _vocabularies(model, len(signature.inputs))
    arrays = []
    for entry, known in zip(signature.inputs, words, strict=True):
        shape = [unknown_size if size is None else size for size in entry.shape]
        if shape and entry.shape[0] is None:
            shape[0] = batch
        # In Python's integers, which do not overflow.
        if math.prod(map(int, shape)) > MAX_ENTRIES:
            raise NoInputsError(f"its input of shape {entry.shape} is too large")
        arrays.append(_random(shape, entry, known, generator))
    return signature.pack(arrays)


def _random(
    shape: Sequence[int],
    entry: model_inputs.ModelInput,
    words: Sequence[Any],
    generator: np.random.Generator,
) -> Any:
    if entry.dtype == "string":
        return backend.strings(generator.choice([*map(str, words), "word"], shape))
    if words:
        return generator.choice([*words, 1], shape).astype(entry.dtype)
    if entry.limit is not None:
        return generator.integers(0, entry.limit, shape).astype(entry.dtype)
    values = generator.standard_normal(shape)
    if shape and shape[0] > 1:
        values[1:] = values[1:] * WIDE + WIDE
    return keras.ops.convert_to_numpy(keras.ops.cast(values, entry.dtype))


def _vocabularies(model: Model, count: int) -> list[tuple[Any, ...]]:
    """Returns the words of each input of a model; of integers, none but these.

    An input that goes straight into a vocabulary takes its words; strings that go
    elsewhere, those of all vocabularies.
    """
    by_input: dict[int, tuple[Any, ...]] = {}
    every: list[Any] = []
    for layer in internals.flatten_layers(model):
        if isinstance(
            layer,
            keras.layers.StringLookup
            | keras.layers.IntegerLookup
            | keras.layers.TextVectorization,
        ):
            words = tuple(layer.get_vocabulary())
            every += [word for word in words if isinstance(word, str)]
            with contextlib.suppress(AttributeError):  # Not part of a graph.
                by_input.setdefault(id(layer.input), words)
    tensors = keras.tree.flatten(model.inputs) if internals.has_graph(model) else []
    if len(tensors) != count:
        return [tuple(every)] * count
    return [
        by_input.get(id(x), tuple(every) if x.dtype == "string" else ())
        for x in tensors
    ]
