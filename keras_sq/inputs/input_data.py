"""Reads the inputs of a model from the kinds of data that people have.

Arrays, by name or by position; lists of examples or batches; and what `fit` and
TensorFlow Lite's converter take: a `tf.data.Dataset`, a `keras.utils.PyDataset`,
generators, and functions that return one. The model's inputs decide how data is
understood. Data that Keras would refuse is refused or read as Keras reads it.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq.core import checks
from keras_sq.core.types import Array
from keras_sq.inputs import input_structure
from keras_sq.inputs.model_inputs import COUNTED, InputSignature, ModelInput

KINDS = (
    "an array, a dict, list or tuple of arrays, a `tf.data.Dataset`, a "
    "`keras.utils.PyDataset`, a generator, a function that returns one, or a list of "
    "examples"
)
"""What `read` takes, for a message."""


@dataclasses.dataclass(frozen=True)
class InputData:
    """Data of a model's inputs, to be iterated over once.

    Attributes:
        columns: One array an input, with the examples on the first axis; `None` if the
            data comes in parts.
        parts: The parts: one array an input, with the examples on the first axis, and
            whether the part is a single example that had no such axis. Empty if there
            are columns.
    """

    columns: list[Any] | None
    parts: Iterator[tuple[list[Any], bool]]

    def batches(self, size: int) -> Iterator[list[Any]]:
        """Yields batches: one array an input.

        Args:
            size: Examples in a batch of columns, and of single examples. Parts that are
                batches stay as they are.
        """
        if self.columns is not None:
            for start in range(0, len(self.columns[0]), size):
                yield [column[start : start + size] for column in self.columns]
        waiting: list[list[Any]] = []
        for part, single in self.parts:
            if single:
                waiting.append(part)
            if waiting and (not single or len(waiting) == size):
                yield _joined(waiting)
                waiting = []
            if not single:
                yield part
        if waiting:
            yield _joined(waiting)


def read(signature: InputSignature, data: Any, argument: str) -> InputData:
    """Returns the inputs that are in the data.

    Args:
        signature: What the model takes.
        data: See `KINDS`. Elements of data sets, generators and lists are batches or
            single examples of the inputs, alone or as `(x, y)` or `(x, y,
            sample_weight)`.
        argument: What the data is called in errors.

    Raises:
        TypeError: If the data is of another kind.
        ValueError: If it does not fit the model's inputs, or may be understood in two
            ways. Parts are looked at when they are read.
    """
    reader = _Reader(signature, argument)
    if isinstance(data, Mapping) or input_structure.is_array(data):
        return reader.columns(data)
    if isinstance(data, list | tuple):
        return reader.sequence(data)
    return reader.parts(_elements(data, argument))


def _elements(data: Any, argument: str) -> Iterable[Any]:
    """Returns what an object yields.

    Raises:
        TypeError: If it yields nothing.
    """
    data = getattr(data, "input_gen", data)  # Of `tf.lite.RepresentativeDataset`.
    if callable(data) and not isinstance(data, Iterable):
        try:
            inspect.signature(data).bind()
        except (TypeError, ValueError):
            pass  # Refused below, by what it is.
        else:
            data = data()
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        indices = itertools.count() if count is None else range(count)
        return (data[index] for index in indices)
    if isinstance(data, str | bytes) or input_structure.is_array(data):
        pass  # Refused below: no text has inputs, and no function returns arrays.
    elif isinstance(data, Iterable):
        return data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    made_dense = ""
    if hasattr(data, "ragged_rank") or hasattr(data, "dense_shape"):
        made_dense = " Make it dense."
    raise TypeError(
        f"Argument `{argument}` must be {KINDS}. "
        f"Received an object of type {type(data).__name__}.{made_dense}"
    )


class _Reader:
    """Understands data by what a model takes.

    Args:
        signature: What the model takes.
        argument: What the data is called in errors.
    """

    def __init__(self, signature: InputSignature, argument: str) -> None:
        self.signature = signature
        self.argument = argument
        # Each input's place in the order of `keras.tree.flatten`.
        self.places = signature.pack(range(len(signature.inputs)))
        names = [entry.name for entry in signature.inputs]
        self.keys = list(signature.keys) or names
        self.names = [set(pair) for pair in zip(names, self.keys, strict=True)]

    def columns(self, data: Any) -> InputData:
        """Returns whole arrays.

        Raises:
            ValueError: If they are not those of the model's inputs.
        """
        leaves = self.matched(data, input_structure.is_column)
        if leaves is None:
            raise self.mismatch(data)
        return InputData(self.arrays(leaves, examples=False)[0], iter(()))

    def sequence(self, data: Sequence[Any]) -> InputData:
        """Returns what is in a list or tuple: arrays, one an input, or examples.

        Raises:
            ValueError: If it may be both, or is neither.
        """
        count = len(self.signature.inputs)
        arrays = all(map(input_structure.is_array, data))
        if count == len(data) == 1 and arrays and self.fits(data, examples=False):
            return self.columns(data[0])
        parts = not data or self.holds_inputs(data[0])
        if count == 1 and parts:
            if isinstance(data, tuple) and arrays and len(data) in (2, 3):
                raise ValueError(
                    f"Argument `{self.argument}` must hold one array for each input of "
                    f"the model ({self.listed()}). Received: {len(data)} of them. A "
                    "tuple may be (x, y): pass x alone, or a list of examples."
                )
            return self.parts(data)
        leaves = self.matched(data, input_structure.is_column)
        both = leaves is not None and self.fits(leaves, examples=False)
        if both and all(map(self.holds_inputs, data)):
            raise ValueError(
                f"Argument `{self.argument}` can be understood in two ways: as one "
                f"list for each of the {count} inputs, and as {len(data)} examples. "
                "Pass one array for each input. Received: "
                f"{self.argument}={input_structure.described(data)}"
            )
        return self.parts(data) if parts and not both else self.columns(data)

    def parts(self, elements: Iterable[Any]) -> InputData:
        """Returns batches and examples, one after the other."""
        return InputData(None, self._parts(elements))

    def _parts(self, elements: Iterable[Any]) -> Iterator[tuple[list[Any], bool]]:
        for number, element in enumerate(elements):
            leaves = self.inputs_of(element)
            if leaves is None:
                raise self.mismatch(element, f" in element {number}")
            yield self.arrays(leaves, examples=True, where=f" in element {number}")

    def holds_inputs(self, element: Any) -> bool:
        leaves = self.inputs_of(element)
        return leaves is not None and self.fits(leaves, examples=True)

    def inputs_of(self, element: Any) -> list[Any] | None:
        """Returns the inputs in an element, or `None` if there are none.

        An element is what the model is called on, or `(x, y)` or `(x, y,
        sample_weight)` with this as x.

        Raises:
            ValueError: If it may be both `(x, y)` and several examples.
        """
        if (
            len(self.signature.inputs) == 1
            and isinstance(element, list)
            and len(element) in (2, 3)
            and all(input_structure.is_array(x) and np.ndim(x) for x in element)
            and all(self.fits([x], examples=True) for x in element)
        ):
            raise ValueError(
                f"Argument `{self.argument}` can be understood in two ways: a list of "
                f"{len(element)} arrays may be x and y, or so many examples. Pass x "
                "and y as a tuple, and examples one by one or as one array. Received: "
                f"{input_structure.described(element)}"
            )
        candidates = [self.matched(element, input_structure.is_leaf)]
        if isinstance(element, list | tuple) and 1 <= len(element) <= 3:
            candidates.append(self.matched(element[0], input_structure.is_leaf))
            if len(self.signature.inputs) == 1 and isinstance(element, tuple):
                candidates.reverse()
        matching = [leaves for leaves in candidates if leaves is not None]
        fitting = [leaves for leaves in matching if self.fits(leaves, examples=True)]
        return next(iter([*fitting, *matching]), None)

    def matched(self, data: Any, is_leaf: Callable[[Any], bool]) -> list[Any] | None:
        """Returns the inputs of a structure in order, or `None` if it is another."""
        count = len(self.signature.inputs)
        leaves: dict[int, Any] = {}
        if input_structure.match(self.places, data, is_leaf, leaves):
            return [leaves[place] for place in range(count)]
        if isinstance(data, Mapping):
            return self.by_name(data, is_leaf)
        if count == 1 and is_leaf(data):
            return [data]
        if not isinstance(data, list | tuple) or len(data) != count:
            return None
        if input_structure.holds_dict(self.places) or not all(map(is_leaf, data)):
            return None
        return list(data)  # Keras, too, flattens what is nested.

    def by_name(
        self, data: Mapping[Any, Any], is_leaf: Callable[[Any], bool]
    ) -> list[Any] | None:
        """Returns the inputs by what they are called, in the model or in the file."""
        files = [entry.name for entry in self.signature.inputs]
        # All by one kind of names, if possible: one input's may be another's in the
        # file.
        keys: list[Any] = next(
            (names for names in (self.keys, files) if all(x in data for x in names)),
            [next((key for key in data if key in pair), None) for pair in self.names],
        )
        if None in keys or len(set(keys)) < len(keys):
            return None
        if not all(is_leaf(data[key]) for key in keys):
            return None
        # Keras, too, takes what it needs, but for inputs in a dict.
        if input_structure.holds_dict(self.places) and len(data) > len(keys):
            return None
        return [data[key] for key in keys]

    def fits(self, leaves: Sequence[Any], examples: bool) -> bool:
        """Whether `arrays` takes these."""
        try:
            self.arrays(leaves, examples)
        except (TypeError, ValueError):
            return False
        return True

    def arrays(
        self, leaves: Sequence[Any], examples: bool, where: str = ""
    ) -> tuple[list[Any], bool]:
        """Returns arrays with the examples on the first axis.

        And whether there is a single example that had no such axis.

        Args:
            leaves: Arrays, or lists that become one, one an input.
            examples: Whether they may be single examples.
            where: Where they stand in the data, for errors.

        Raises:
            TypeError: If they are no arrays.
            ValueError: If they have other shapes than the inputs.
        """
        batches, single = [], []
        for entry, leaf in zip(self.signature.inputs, leaves, strict=True):
            array = self.array(entry, leaf, where)
            batch, alone = input_structure.with_batch(entry, array, examples)
            if batch is None:
                shape = ("examples", *entry.shape[1:])
                raise ValueError(
                    f"Argument `{self.argument}` must have the shape {shape} for input "
                    f"'{entry.name}'{where}. Received: shape={tuple(array.shape)} "
                    f"(of dtype {getattr(array, 'dtype', 'unknown')})"
                )
            batches.append(batch)
            single.append(alone)
        counts = sorted({len(array) for array in batches})
        if len(counts) > 1:
            raise ValueError(
                f"Argument `{self.argument}` must hold the same number of examples, at "
                f"least one, for every input{where}. Received: {counts}"
            )
        return batches, all(single)

    def array(self, entry: ModelInput, leaf: Any, where: str) -> Any:
        """Returns an array, tensor or list as what has a shape."""
        if isinstance(leaf, np.ndarray) or keras.ops.is_tensor(leaf):
            return leaf
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            raise ValueError(
                f"Argument `{self.argument}` must hold examples of one shape for input "
                f"'{entry.name}'{where}. Received: {input_structure.described(leaf)} "
                f"({error})"
            ) from error
        if array.dtype == object:
            raise TypeError(
                f"Argument `{self.argument}` must hold arrays for input "
                f"'{entry.name}'{where}. Received: {input_structure.described(leaf)}"
            )
        return array

    def listed(self) -> str:
        """Returns what the inputs are called; not by Keras, which only counts."""
        inputs = self.signature.inputs
        return checks.listed(
            entry.name if COUNTED.fullmatch(key) else key
            for key, entry in zip(self.keys, inputs, strict=True)
        )

    def mismatch(self, data: Any, where: str = "") -> Exception:
        """Returns the error for data that is not of the model's inputs."""
        received = input_structure.described(data)
        if isinstance(data, Mapping) and {*map(str, data)} != {*self.keys}:
            received = f"the keys [{checks.listed(sorted(map(str, data)))}]"
        elif isinstance(data, list | tuple) and not where:
            received = f"{len(data)} of them, {received}"
        if input_structure.holds_dict(self.places) and not isinstance(data, Mapping):
            return ValueError(
                f"Argument `{self.argument}` must be a dict with the keys "
                f"{self.listed()}{where}: the model takes its inputs by name, and a "
                f"list has no names. Received: {received}"
            )
        if not input_structure.is_leaf(data) and not isinstance(
            data, Mapping | list | tuple
        ):
            return TypeError(
                f"Argument `{self.argument}` must hold arrays{where}. "
                f"Received: {received}"
            )
        return ValueError(
            f"Argument `{self.argument}` must hold one array for each input of the "
            f"model ({self.listed()}){where}. Received: {received}."
        )


def _joined(examples: Sequence[Sequence[Any]]) -> list[Array]:
    """Returns single examples as a batch: one array an input."""
    return [
        np.concatenate([np.asarray(array) for array in column])
        for column in zip(*examples, strict=True)
    ]
