"""What a model takes: names, shapes, dtypes, and inputs to check it with."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq import _checks
from keras_sq import _keras_internals as internals
from keras_sq.types import Model

Array = np.ndarray[Any, Any]

UNKNOWN_SIZE = 32
"""What stands for an unknown size that is not the batch's (time, height)."""


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
    """

    inputs: tuple[ModelInput, ...]
    structure: Any

    @property
    def batch(self) -> int | None:
        """The batch size, or `None` if the model takes any."""
        sizes = [entry.shape[0] for entry in self.inputs]
        return next((size for size in sizes if size is not None), None)

    def with_batch(self, batch: int) -> "InputSignature":
        """Returns the signature for one batch size."""
        inputs = tuple(
            dataclasses.replace(entry, shape=(batch, *entry.shape[1:]))
            for entry in self.inputs
        )
        return dataclasses.replace(self, inputs=inputs)

    def with_sizes(self, examples: Sequence[Array]) -> "InputSignature":
        """Returns the signature with the sizes of examples where they were open.

        All but the batch.
        """
        inputs = tuple(
            dataclasses.replace(entry, shape=(entry.shape[0], *array.shape[1:]))
            for entry, array in zip(self.inputs, examples, strict=True)
        )
        return dataclasses.replace(self, inputs=inputs)

    def pack(self, flat: Sequence[Any]) -> Any:
        """Returns tensors in the structure that the model is called on."""
        return keras.tree.pack_sequence_as(self.structure, list(flat))


def input_signature(model: Model, representative_data: Any = None) -> InputSignature:
    """Returns what a built model takes.

    Args:
        model: A built model.
        representative_data: As in `keras_sq.export`. Keras records the shapes
            only of what a subclassed model was called on; from here come its
            dtypes, else float32.

    Raises:
        ValueError: If the model's call takes several arguments, or an input
            is sparse or ragged.
    """
    tensors = model.inputs if internals.is_graph_model(model) else None
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
            names = sorted(structure)
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
        if representative_data is not None:
            arrays = [np.asarray(x) for x in keras.tree.flatten(representative_data)]
            if len(arrays) == len(dtypes):
                dtypes = [
                    "int32" if x.dtype.kind in "iu" else "float32" for x in arrays
                ]
    limits = _limits(model, tensors, dtypes)
    entries = zip(_identifiers(names), shapes, dtypes, limits, strict=True)
    return InputSignature(tuple(ModelInput(*entry) for entry in entries), structure)


def _shape_paths(structure: Any, path: str = "input") -> list[tuple[str, Any]]:
    """Returns names and shapes, in the order of `keras.tree.flatten`."""
    if isinstance(structure, dict):
        children = [(str(key), structure[key]) for key in sorted(structure)]
    elif isinstance(structure, list) or not all(
        size is None or isinstance(size, int) for size in structure
    ):
        children = [(f"{path}_{i}", child) for i, child in enumerate(structure)]
    else:
        return [(path, structure)]
    return [entry for name, child in children for entry in _shape_paths(child, name)]


def _identifiers(names: Sequence[str]) -> list[str]:
    """Returns the names as unique Python identifiers."""
    found: list[str] = []
    for name in names:
        name = re.sub(r"\W", "_", name)
        if re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", name):
            # Keras's own, counted through the process: two exports of one
            # model would differ.
            name = "input"
        if not name or name[0].isdigit() or name[0] == "_":
            name = f"input_{name}"
        unique, count = name, 0
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found.append(unique)
    return found


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


def representative_examples(
    signature: InputSignature, representative_data: Any
) -> list[Array]:
    """Returns checked examples, one array an input.

    Args:
        signature: What the model takes.
        representative_data: An array (for one input), or a list, tuple or
            dict by name of arrays; the first axis counts examples.

    Raises:
        TypeError: If the data is of another kind, or not numbers of the
            input's kind.
        ValueError: If its shape or number of inputs is wrong, it is empty, or
            holds values that are not finite.
    """
    columns = _columns(signature, representative_data)
    arrays = [
        _checked(entry, column)
        for entry, column in zip(signature.inputs, columns, strict=True)
    ]
    counts = {len(array) for array in arrays}
    if len(counts) > 1 or counts == {0}:
        raise ValueError(
            "Argument `representative_data` must hold the same number of examples, "
            f"at least one, for every input. Received: {sorted(counts)}"
        )
    return arrays


def _columns(signature: InputSignature, data: Any) -> list[Any]:
    names = [entry.name for entry in signature.inputs]
    if isinstance(data, Mapping):
        if set(data) == set(names):
            return [data[name] for name in names]
        received = f"the keys [{_checks.listed(sorted(map(str, data)))}]"
    elif isinstance(data, list | tuple):
        if len(data) == len(names):
            return list(data)
        received = f"{len(data)} of them"
    elif hasattr(data, "__array__"):
        if len(names) == 1:
            return [data]
        received = "one array"
    else:
        raise TypeError(
            "Argument `representative_data` must be an array, or a list, tuple or "
            f"dict of arrays. Received an object of type {type(data).__name__}."
        )
    raise ValueError(
        "Argument `representative_data` must hold one array for each input of the "
        f"model ({_checks.listed(names)}). Received: {received}."
    )


def _checked(entry: ModelInput, column: Any) -> Array:
    array = np.asarray(column)
    integers = "int" in entry.dtype
    wanted = "integers" if integers else "numbers"
    if array.dtype.kind not in ("iu" if integers else "iufb"):
        raise TypeError(
            f"Argument `representative_data` must hold {wanted} for input "
            f"'{entry.name}' (of dtype {entry.dtype}). Received: dtype={array.dtype}"
        )
    sizes = entry.shape[1:]
    if array.ndim != len(entry.shape) or any(
        size not in (None, given)
        for size, given in zip(sizes, array.shape[1:], strict=True)
    ):
        raise ValueError(
            "Argument `representative_data` must have the shape "
            f"{('examples', *sizes)} for input '{entry.name}'. "
            f"Received: shape={array.shape}"
        )
    if not np.all(np.isfinite(array)):
        raise ValueError(
            "Argument `representative_data` must be finite. Received NaN or infinite "
            f"values for input '{entry.name}'."
        )
    return array.astype(entry.dtype)
