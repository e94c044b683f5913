"""The layout of data: structures of arrays, with the examples on the first axis."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_sq.core.types import Array
from keras_sq.inputs.model_inputs import ModelInput


def is_array(value: Any) -> bool:
    """Whether NumPy takes a value for an array: tensors, data frames and pictures."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def match(
    places: Any, data: Any, is_leaf: Callable[[Any], bool], leaves: dict[int, Any]
) -> bool:
    """Whether data has a structure; collects its leaves by their place."""
    if isinstance(places, dict):
        if not isinstance(data, Mapping):
            return False
        by_key = {str(key): value for key, value in data.items()}
        if set(by_key) != {str(key) for key in places}:
            return False
        return all(
            match(places[key], by_key[str(key)], is_leaf, leaves) for key in places
        )
    if isinstance(places, list | tuple):  # Keras takes one for the other.
        if not isinstance(data, list | tuple) or len(data) != len(places):
            return False
        return all(
            match(place, entry, is_leaf, leaves)
            for place, entry in zip(places, data, strict=True)
        )
    leaves[places] = data
    return is_leaf(data)


def holds_dict(places: Any) -> bool:
    """Whether inputs have names, which a list does not have."""
    if isinstance(places, dict):
        return len(places) > 1 or any(map(holds_dict, places.values()))
    return isinstance(places, list | tuple) and any(map(holds_dict, places))


def is_leaf(value: Any) -> bool:
    """Whether a value is an array, a number, or lists of numbers."""
    inside = isinstance(value, list | tuple)
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if inside and is_array(value) and np.ndim(value):
        return False
    return isinstance(value, numbers.Number | str | bytes) or is_array(value)


def is_column(value: Any) -> bool:
    """Whether a value is an array, a number, or lists of arrays or numbers."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, numbers.Number | str | bytes) or is_array(value)


def with_batch(entry: ModelInput, array: Any, examples: bool) -> tuple[Any, bool]:
    """Returns an array with the examples on its first axis, and whether it had none.

    As in Keras, a last axis of size 1 may be missing, or there in excess.

    Args:
        entry: The input.
        array: The array.
        examples: Whether it may be a single example.

    Returns:
        The array, or `None` if it has the shape of neither.
    """
    shape, sizes = tuple(array.shape), entry.shape[1:]
    if shape and _same(shape[1:], sizes):
        return array, False
    if examples and _same(shape, sizes):
        return array[None], True
    if sizes and sizes[-1] == 1:
        if shape and _same(shape[1:], sizes[:-1]):
            return _shaped(array, (*shape, 1)), False
        if examples and _same(shape, sizes[:-1]):
            return _shaped(array, (1, *shape, 1)), True
    if len(shape) > 1 and shape[-1] == 1 and _same(shape[1:-1], sizes):
        return _shaped(array, shape[:-1]), False
    return None, False


def _same(shape: Sequence[int], sizes: Sequence[int | None]) -> bool:
    return len(shape) == len(sizes) and all(
        size in (None, size_here) for size, size_here in zip(sizes, shape, strict=True)
    )


def _shaped(array: Any, shape: tuple[int, ...]) -> Array:
    result: Array = np.reshape(np.asarray(array), shape)
    return result


def described(data: Any) -> str:
    """Returns what data is, in short."""
    if isinstance(data, Mapping):
        entries = [f"{key!r}: {described(x)}" for key, x in list(data.items())[:4]]
        return f"{{{', '.join(entries)}{', ...' if len(data) > 4 else ''}}}"
    if isinstance(data, list | tuple):
        entries = [described(x) for x in data[:4]]
        more = ", ..." if len(data) > 4 else ""
        return f"{type(data).__name__} ({', '.join(entries)}{more})"
    if is_array(data) and hasattr(data, "shape"):
        return f"array of shape {tuple(data.shape)}"
    if isinstance(data, numbers.Number):
        return "number"
    return type(data).__name__
