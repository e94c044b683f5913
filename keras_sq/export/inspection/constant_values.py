"""What the constants of a graph come to: chains of operators, values, levels.

A weight need not lie in a file as it is used: it may be integers that an
operator turns into floats, or indices that several operators look up. Here such
chains are followed; what the operators do is in `constant_rules.py`.

Design note: **values are worked out here and not by an interpreter**, which would
need memory for the whole model, and of which there is none for files of TFLite
Micro and none that knows every operator of a file from elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_sq.export.inspection.constant_rules import Step, UnknownValues, apply_rule
from keras_sq.export.inspection.file_structure import (
    VALUE_BITS,
    Graph,
    Operator,
    Tensor,
)
from keras_sq.export.tflite.flatbuffer import NUMPY_TYPES, PACKED_BITS, unpack_bits

Array = np.ndarray[Any, Any]

MAX_CHAIN = 1024
"""Tensors that are followed back from a weight."""

_IMPURE = ("RANDOM", "MULTINOMIAL", "CALL", "IF", "WHILE", "VAR", "READ_VARIABLE")
"""Starts of the names of operators that give no constant for constants."""


class Work:
    """How many values may be looked at, so that time and memory are bounded.

    Args:
        num_bytes: Size of the file.
    """

    def __init__(self, num_bytes: int) -> None:
        # The tightest packing has 8 weights a byte, and takes a handful of
        # operators for each.
        self._largest = 2**20 + 8 * num_bytes
        self._left = min(2**24 + 64 * num_bytes, 2**32)

    def spend(self, values: int) -> None:
        """Counts values.

        Raises:
            UnknownValues: If they are more than a sound file takes, together
                or of one tensor.
        """
        if values > min(self._largest, self._left):
            raise UnknownValues("too many values for a file of this size")
        self._left -= values


class ConstantChains:
    """The tensors of a graph whose values are in the file.

    Args:
        graph: The graph.
        work: What may be spent on it.
    """

    def __init__(self, graph: Graph, work: Work) -> None:
        self._graph = graph
        self._work = work
        produced = {index for op in graph.operators for index in op.outputs}
        given = {*graph.inputs, *produced}
        self._constants = {
            index
            for index, tensor in enumerate(graph.tensors)
            if tensor.data is not None
            # Without a value there are no bytes: the shape of a scalar.
            or (not tensor.size and index not in given and not tensor.variable)
        }
        self._producers: dict[int, Operator] = {}
        self._inputs: dict[int, tuple[int, ...]] = {}
        self._places: dict[int, int] = {}
        for place, operator in enumerate(graph.operators):
            if operator.name.startswith(_IMPURE):
                continue
            for outputs, inputs in _dependencies(operator):
                if not inputs or not all(map(self.is_constant, inputs)):
                    continue
                for output in outputs:
                    if output >= 0 and output not in self._producers:
                        self._producers[output] = operator
                        self._inputs[output] = inputs
                        self._places[output] = place

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is a constant or made of constants."""
        return index in self._constants or index in self._producers

    def is_made(self, index: int) -> bool:
        """Whether a tensor is made of constants, by operators."""
        return index not in self._constants and index in self._producers

    def trace(self, index: int) -> tuple[list[int], list[int]]:
        """Returns what a tensor is made from.

        Args:
            index: Of a tensor that `is_constant`.

        Returns:
            The tensors that operators make on the way, in the order in which
            they are made, itself last; the constants that it starts from.

        Raises:
            UnknownValues: If they are more than `MAX_CHAIN`.
        """
        seen = {index}
        waiting = [index]
        while waiting:
            current = waiting.pop()
            inputs = self._inputs[current] if self.is_made(current) else ()
            self._work.spend(100 + len(inputs))
            for other in inputs:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
            if len(seen) > MAX_CHAIN:
                raise UnknownValues(f"made from more than {MAX_CHAIN} tensors")
        made = sorted(filter(self.is_made, seen), key=self._places.__getitem__)
        return made, sorted(seen.difference(made))

    def producer(self, index: int) -> Operator:
        """Returns the operator that makes a tensor that `is_made`."""
        return self._producers[index]

    def values(self, index: int) -> Array:
        """Returns the values of a constant tensor; those of INT2, INT4 as int8.

        Args:
            index: Of a tensor that `is_constant`.

        Raises:
            UnknownValues: If they cannot be worked out.
        """
        found: dict[int, Array] = {}
        made, sources = self.trace(index)
        for source in sources:
            tensor = self._graph.tensors[source]
            self._work.spend(tensor.size)
            found[source] = stored_values(tensor)
        for current in made:
            operator = self._producers[current]
            tensor = self._graph.tensors[current]
            indices = self._inputs[current]
            self._work.spend(max(tensor.size, 0) + len(indices) + 1000)
            step = Step(
                operator,
                tensor,
                [found[other] for other in indices],
                [self._graph.tensors[other] for other in indices],
            )
            found[current] = apply_rule(step)
        return found[index]


def _dependencies(
    operator: Operator,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns outputs of an operator, with the inputs that these depend on.

    All on all, but for TensorFlow Lite Micro's DECODE, which decodes several tensors.
    """
    if operator.name == "TFLM_DECODE":
        return [
            ((output,), operator.inputs[2 * place : 2 * place + 2])
            for place, output in enumerate(operator.outputs)
        ]
    return [(operator.outputs, tuple(index for index in operator.inputs if index >= 0))]


def stored_values(tensor: Tensor) -> Array:
    """Returns a constant as an array; INT2 and INT4 as int8.

    Raises:
        UnknownValues: If the type has no NumPy form.
    """
    data = np.empty(0, np.uint8) if tensor.data is None else tensor.data
    if tensor.sparse:
        raise UnknownValues("stored sparsely")
    if tensor.type in PACKED_BITS:
        values = unpack_bits(data, PACKED_BITS[tensor.type], tensor.size)
    elif tensor.type in NUMPY_TYPES:
        values = data.view(NUMPY_TYPES[tensor.type])
    else:
        raise UnknownValues(f"of type {tensor.type}")
    return values.reshape(tensor.shape)


def count_levels(values: Array, axis: int | None, work: Work) -> tuple[int, int | None]:
    """Returns how many different values there are.

    Args:
        values: Of any shape and dtype that can be sorted.
        axis: The channels' axis, or `None`.
        work: What may be spent.

    Returns:
        In all, and the most in a channel (`None` without an axis).

    Raises:
        UnknownValues: If the work is too much.
    """
    if not values.size:
        return 0, None if axis is None else 0
    work.spend(values.size)
    channels = 1 if axis is None else values.shape[axis]
    if axis is not None:
        values = np.moveaxis(values, axis, 0)
    if values.dtype.kind == "f":
        # Zero has two signs, and no NaN equals itself: compare the bits.
        with np.errstate(all="ignore"):
            values = values + values.dtype.type(0)
        values = values.view(f"u{values.dtype.itemsize}")
    ordered = np.sort(values.reshape(channels, -1), axis=1)
    new = _first_of_equals(ordered)
    if axis is None:
        return int(np.count_nonzero(new)), None
    most = int(np.max(np.count_nonzero(new, axis=1)))
    # Not `np.unique`, which is slow where most values differ.
    together = np.sort(ordered[new])[np.newaxis]
    return int(np.count_nonzero(_first_of_equals(together))), most


def _first_of_equals(ordered: Array) -> Array:
    """Returns which values of sorted rows differ from the one before."""
    new = np.ones(ordered.shape, bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=new[:, 1:])
    return new


def storage_values(tensor: Tensor) -> Array:
    """Returns a constant for `count_levels`: of all types with a fixed width.

    Raises:
        UnknownValues: If the type has none.
    """
    bits = VALUE_BITS.get(tensor.type, 0)
    if tensor.type in NUMPY_TYPES or tensor.type in PACKED_BITS or tensor.sparse:
        return stored_values(tensor)
    data = np.empty(0, np.uint8) if tensor.data is None else tensor.data
    if bits == 4:
        values = unpack_bits(data, bits, tensor.size)
    elif bits in (16, 64):
        values = data.view(f"<u{bits // 8}")
    else:
        raise UnknownValues(f"of type {tensor.type}")
    return values.reshape(tensor.shape)


class LevelCounter:
    """Counts levels, once for each tensor of the same bytes and form.

    Args:
        work: What may be spent on it.

    Attributes:
        work: The same.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._known: dict[Any, tuple[int | None, int | None]] = {}
        self._unknown: dict[str, list[str]] = {}

    def of(
        self, tensor: Tensor, axis: int | None, values: Callable[[], Array]
    ) -> tuple[int | None, int | None]:
        """Returns the levels of a tensor and the most in a channel.

        Args:
            tensor: The tensor.
            axis: The channels' axis, if known.
            values: Works out the values.
        """
        key: Any = (tensor.place, tensor.type, tensor.shape, axis)
        if tensor.data is None:
            key = tensor
        if key not in self._known:
            try:
                self._known[key] = count_levels(values(), axis, self.work)
            except UnknownValues as error:
                self._known[key] = (None, None)
                self.give_up(tensor, error)
        return self._known[key]

    def give_up(self, tensor: Tensor, reason: object) -> None:
        """Notes that nothing can be said of a tensor."""
        self._unknown.setdefault(str(reason), []).append(tensor.name)

    def notes(self) -> list[str]:
        """Returns what could not be worked out, and why."""
        found = []
        for reason, names in self._unknown.items():
            example = next(filter(None, names), "")
            found.append(
                f"levels unknown of {len(names)} tensors ({reason})"
                + (f", such as '{example}'" if example else "")
            )
        return found
