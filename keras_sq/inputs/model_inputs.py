"""The inputs that a model takes: names, shapes and dtypes.

Data for them: `input_data.py`.
"""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array as Array
from keras_sq.core.types import Model

UNKNOWN_SIZE = 32
"""What stands for an unknown size that is not the batch's (time, height)."""


COUNTED = re.compile(r"(keras_tensor|input_layer)(_\d+)?")
"""Keras's own names, counted through the process: two exports would differ."""


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One tensor that a model takes.

    Attributes:
        name: A Python identifier, unique in the model.
        shape: With the batch first; `None` where the size is open.
        dtype: Of the tensor.
        limit: For integers: every value from 0 up to here, exclusive, is one
            the model can take.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    limit: int | None = None

    def random(self, batch: int, generator: np.random.Generator) -> Array:
        """Returns a random batch: standard normal, or integers below `limit`."""
        shape = [UNKNOWN_SIZE if size is None else size for size in self.shape]
        shape[0] = batch
        if self.limit is not None:
            return generator.integers(0, self.limit, shape).astype(self.dtype)
        return generator.standard_normal(shape).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class InputSignature:
    """All that a model takes.

    Attributes:
        inputs: The tensors, in the order of `keras.tree.flatten`.
        structure: The nested structure that the model is called on.
        keys: What the user calls the inputs: keys of a dict, or names of tensors, as
            they are. `ModelInput.name` is made of them.
    """

    inputs: tuple[ModelInput, ...]
    structure: Any
    keys: tuple[str, ...] = ()

    @property
    def batch(self) -> int | None:
        """The batch size, or `None` if the model takes any."""
        sizes = [entry.shape[0] for entry in self.inputs]
        return next((size for size in sizes if size is not None), None)

    def with_batch(self, batch: int) -> "InputSignature":
        """Returns the signature for one batch size."""
        return self._with_shapes((batch, *entry.shape[1:]) for entry in self.inputs)

    def with_sizes(self, examples: Sequence[Array]) -> "InputSignature":
        """Returns the signature with the sizes of examples, but for the batch."""
        pairs = zip(self.inputs, examples, strict=True)
        return self._with_shapes((x.shape[0], *array.shape[1:]) for x, array in pairs)

    def with_open_sizes(self) -> "InputSignature":
        """Returns the signature for inputs of any size."""
        return self._with_shapes((None,) * len(entry.shape) for entry in self.inputs)

    def _with_shapes(
        self, shapes: Iterable[tuple[int | None, ...]]
    ) -> "InputSignature":
        pairs = zip(self.inputs, shapes, strict=True)
        inputs = tuple(
            dataclasses.replace(entry, shape=shape) for entry, shape in pairs
        )
        return dataclasses.replace(self, inputs=inputs)

    def pack(self, flat: Sequence[Any]) -> Any:
        """Returns tensors in the structure that the model is called on."""
        return keras.tree.pack_sequence_as(self.structure, list(flat))


def input_signature(model: Model, examples: Any = None) -> InputSignature:
    """Returns what a built model takes.

    Args:
        model: A built model.
        examples: Arrays, one an input. Keras records only the shapes of what a
            subclassed model was called on; the dtypes are those of these arrays, or
            float32 without any.

    Raises:
        ValueError: If the model's call takes several arguments, or an input
            is sparse or ragged.
    """
    tensors = model.inputs if internals.has_graph(model) else None
    if tensors is not None:
        # A Sequential model takes one tensor, and knows its structure as a
        # layer only once it has been called.
        sequential = isinstance(model, keras.Sequential)
        structure = tensors[0] if sequential else model.input
        tensors = keras.tree.flatten(structure)
        for tensor in tensors:
            if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
                raise ValueError(
                    f"Input '{tensor.name}' of model '{model.name}' is sparse or "
                    "ragged, which a TFLite file cannot take. Make it dense."
                )
        shapes = [tuple(tensor.shape) for tensor in tensors]
        dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors]
        names = [tensor.name for tensor in tensors]
        if isinstance(structure, dict) and len(structure) == len(names):
            names = [str(key) for key in flat_keys(structure)]
    else:
        structure = (model.get_build_config() or {}).get("input_shape")
        if structure is None:
            raise ValueError(
                f"Model '{model.name}' (of type {type(model).__name__}) must take "
                "all its inputs in one argument (a tensor, list or dict) to be "
                "exported. Wrap it in a functional model: "
                "`keras.Model(inputs, model(...))`."
            )
        structure = keras.tree.map_shape_structure(tuple, structure)
        paths = _shape_paths(structure)
        shapes = [(None, *shape[1:]) for _, shape in paths]
        names = [name for name, _ in paths]
        structure = keras.tree.map_shape_structure(lambda _: 0, structure)
        dtypes = ["float32"] * len(shapes)
        if examples is not None:
            arrays = [np.asarray(x) for x in keras.tree.flatten(examples)]
            if len(arrays) == len(dtypes):
                dtypes = [
                    "int32" if x.dtype.kind in "iu" else "float32" for x in arrays
                ]
    limits = _limits(model, tensors, dtypes)
    entries = zip(_identifiers(names), shapes, dtypes, limits, strict=True)
    inputs = tuple(ModelInput(*entry) for entry in entries)
    return InputSignature(inputs, structure, tuple(names))


def flat_keys(structure: Mapping[Any, Any]) -> list[Any]:
    """Returns the keys of a dict, in the order of `keras.tree.flatten`.

    Which sorts those of a dict, but not of an `OrderedDict`.
    """
    kind = OrderedDict if isinstance(structure, OrderedDict) else dict
    keys = list(structure)
    places = keras.tree.flatten(kind(zip(keys, range(len(keys)), strict=True)))
    return [keys[place] for place in places]


def _shape_paths(structure: Any, path: str = "input") -> list[tuple[str, Any]]:
    """Returns names and shapes, in the order of `keras.tree.flatten`."""
    if isinstance(structure, dict):
        children = [(str(key), structure[key]) for key in flat_keys(structure)]
    elif isinstance(structure, list) or not all(
        size is None or isinstance(size, int) for size in structure
    ):
        children = [(f"{path}_{i}", child) for i, child in enumerate(structure)]
    else:
        return [(path, structure)]
    return [entry for name, child in children for entry in _shape_paths(child, name)]


def _identifiers(names: Sequence[str]) -> list[str]:
    """Returns the names as unique Python identifiers."""
    identifiers: list[str] = []
    for name in names:
        name = re.sub(r"\W", "_", name)
        if COUNTED.fullmatch(name):
            name = "input"
        if not name or name[0].isdigit() or name[0] == "_":
            name = f"input_{name}"
        unique, count = name, 0
        while unique in identifiers:
            count += 1
            unique = f"{name}_{count}"
        identifiers.append(unique)
    return identifiers


def _limits(
    model: Model, tensors: Sequence[Any] | None, dtypes: Sequence[str]
) -> list[int | None]:
    """Returns a bound of the values of each input, `None` for floats.

    An input that goes into an Embedding holds row numbers; where it goes is
    known if it does so directly. Else the smallest table bounds all integers,
    and with no table 0 and 1 are safe in whatever the integers mean.
    """
    tables: dict[int, int] = {}
    sizes = [2**31]
    for layer in internals.flatten_layers(model):
        if isinstance(layer, keras.layers.Embedding):
            sizes.append(layer.input_dim)
            try:
                tables[id(layer.input)] = layer.input_dim
            except AttributeError:  # Not part of a graph.
                pass
    anywhere = min(sizes) if len(sizes) > 1 else 2
    limits: list[int | None] = []
    for index, dtype in enumerate(dtypes):
        table = tables.get(id(tensors[index])) if tensors is not None else None
        if dtype in ("bool", "uint8"):  # A bool; a pixel.
            limits.append({"bool": 2, "uint8": 256}[dtype])
        elif "int" in dtype:
            limits.append(table or anywhere)
        elif table or (tensors is None and len(sizes) > 1):
            limits.append(table or anywhere)  # Row numbers as floats.
        else:
            limits.append(None)
    return limits
