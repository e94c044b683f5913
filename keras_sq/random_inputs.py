"""Random inputs that a model can be called on, to see what it computes.

Of the right shapes and dtypes, and of values that mean something to the model: row
numbers within the tables, words of the vocabularies.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_sq import _backend
from keras_sq import _keras_internals as internals
from keras_sq.types import Layer, Model

Array = np.ndarray[Any, Any]

MAX_ENTRIES = 2**24
"""Entries of an example, above which no input is made."""

WIDE = 30.0
"""Mean and spread of the second example: statistics, bins and clips are seen there."""


class NoInputsError(ValueError):
    """There is no telling what a model can be called on."""


class Domain(NamedTuple):
    """Which values an input takes.

    Attributes:
        limit: For numbers of rows: those from 0 up to here, exclusive.
        words: Entries of the vocabulary that it is looked up in.
    """

    limit: int | None = None
    words: tuple[Any, ...] = ()


def random_inputs(model: Model, unknown_size: int, batch: int = 2) -> Any:
    """Returns random inputs in the structure that a model is called on.

    The first example of floats is standard normal, the others have large values.

    Args:
        model: A built model.
        unknown_size: What stands for sizes that are open, but for the batch's.
        batch: How many examples, if the model takes any number.

    Raises:
        NoInputsError: If shapes are not known, or absurd, or an input is sparse or
            ragged.
    """
    specs = internals.input_specs(model)
    if specs is None:
        raise NoInputsError("the shapes of its inputs are not known")
    flat = keras.tree.flatten(specs)
    generator = np.random.default_rng(0)
    arrays = []
    for spec, domain in zip(flat, domains(model, flat), strict=True):
        if getattr(spec, "sparse", False) or getattr(spec, "ragged", False):
            raise NoInputsError(f"input '{spec.name}' is sparse or ragged")
        shape = [unknown_size if size is None else size for size in spec.shape]
        if shape and spec.shape[0] is None:
            shape[0] = batch
        # In Python's integers, which do not overflow.
        entries = 1
        for size in shape:
            entries *= int(size)
        if entries > MAX_ENTRIES:
            raise NoInputsError(f"its input of shape {tuple(spec.shape)} is too large")
        dtype = keras.backend.standardize_dtype(spec.dtype)
        arrays.append(_random(shape, dtype, domain, generator))
    return keras.tree.pack_sequence_as(specs, arrays)


def _random(
    shape: Sequence[int], dtype: str, domain: Domain, generator: np.random.Generator
) -> Any:
    if dtype == "string":
        words = [word for word in domain.words if isinstance(word, str)]
        return _backend.strings(generator.choice([*words, "word"], shape))
    if domain.words and "int" in dtype:
        numbers = [word for word in domain.words if not isinstance(word, str)]
        return generator.choice([*numbers, 1], shape).astype(dtype)
    if domain.limit is not None:
        return generator.integers(0, domain.limit, shape).astype(dtype)
    values = generator.standard_normal(shape)
    if len(shape) and shape[0] > 1:
        values[1:] = values[1:] * WIDE + WIDE
    return keras.ops.convert_to_numpy(keras.ops.cast(values, dtype))


def domains(model: Model, inputs: Sequence[Any]) -> list[Domain]:
    """Returns which values each input of a model takes.

    An input that goes straight into a table or a vocabulary takes its row numbers
    or words. Otherwise the smallest table bounds all integers, every vocabulary is
    drawn from, and with no table 0 and 1 are safe in whatever integers mean.

    Args:
        model: A built model.
        inputs: Its `keras.KerasTensor`s, flat.
    """
    direct: dict[int, Domain] = {}
    sizes: list[int] = []
    words: list[Any] = []
    for layer in internals.flatten_layers(model):
        domain = _domain_of(layer)
        if domain is None:
            continue
        words += domain.words
        if domain.limit is not None:
            sizes.append(domain.limit)
        try:
            direct.setdefault(id(layer.input), domain)
        except AttributeError:  # Not part of a graph.
            pass
    found = []
    for tensor in inputs:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        fixed = {"bool": 2, "uint8": 256}.get(dtype)
        if fixed is not None:
            found.append(Domain(fixed))
        elif id(tensor) in direct:
            found.append(direct[id(tensor)])
        elif dtype == "string":
            found.append(Domain(words=tuple(words)))
        elif "int" in dtype:
            found.append(Domain(min(sizes, default=2)))
        elif sizes and not internals.has_graph(model):
            found.append(Domain(min(sizes)))  # Row numbers as floats.
        else:
            found.append(Domain())
    return found


def _domain_of(layer: Layer) -> Domain | None:
    """Returns what a layer looks up, or `None` if it is no table."""
    if isinstance(layer, keras.layers.Embedding):
        return Domain(layer.input_dim)
    if isinstance(
        layer,
        keras.layers.StringLookup
        | keras.layers.IntegerLookup
        | keras.layers.TextVectorization,
    ):
        return Domain(words=tuple(layer.get_vocabulary()))
    return None
