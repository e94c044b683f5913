"""The tensors and operators that unfold a packed kernel, added to a file.

What the forms (`forms.py`) share: tables of digits, the operators that look digits up,
and where in a graph they go.

Tensors between are nameless: names take more of a small file than operators. The
tensor that was the constant stays, with its name and its readers, and becomes the
output of the last operator.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.tflite import packing
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.tflite.weights import WeightTensor

MAX_TABLE_BYTES = 512
"""Digit tables that take more are made from smaller ones.

The operators and tensors of that take about as much.
"""


class Rewriter:
    """Adds to a file what unfolds packed kernels, tables once for all of them.

    Args:
        file: The file, changed in place.
    """

    def __init__(self, file: TFLiteFile) -> None:
        self.file = file
        # (subgraph, type, values) -> tensor.
        self._tables: dict[tuple[int, str, tuple[int, ...]], int] = {}
        # (subgraph, dtype, bytes) -> tensor.
        self._constants: dict[tuple[int, str, bytes], int] = {}

    def looked_up(
        self, weight: WeightTensor, values: Array, table: tuple[int, ...], output: int
    ) -> list[Any]:
        """Returns the operators that make an int8 tensor of the values of a table.

        Args:
            weight: The weight tensor, for its graph.
            values: Int8 array of its shape.
            table: The values that digits stand for, ascending.
            output: The tensor.
        """
        digits = np.searchsorted(table, values).astype(np.uint8)
        index = self.table(weight.subgraph, "INT8", table)
        operators, _ = self.gathered_digits(
            weight.subgraph, digits, len(table), index, "INT8", values.shape, output
        )
        return operators

    def gathered_digits(
        self,
        subgraph: Any,
        digits: Array,
        count: int,
        table: int,
        type_name: str,
        shape: Sequence[int],
        output: int | None = None,
    ) -> tuple[list[Any], int]:
        """Returns the operators that look digits up, and the tensor they make.

        Args:
            subgraph: The graph.
            digits: Uint8 array, in the order of the tensor.
            count: Number of values that a digit has.
            table: Tensor of the digit table.
            type_name: Type of the table.
            shape: Shape of the tensor.
            output: The tensor, or `None` for a new one.
        """
        packed = packing.pack_digits(digits.reshape(-1), count)
        group = packing.digits_per_index(count)
        size, total = digits.size, len(packed) * group
        stored = self.file.add_tensor(subgraph, "", packed.shape, "INT16", packed)
        rows = self.file.add_tensor(subgraph, "", (len(packed), group), type_name)
        options = schema.GatherOptionsT()
        gather = self.file.new_operator("GATHER", [table, stored], [rows], options, 6)
        operators, last = [gather], rows
        if size < total:
            flat = self.file.add_tensor(subgraph, "", (total,), type_name)
            operators.append(self._reshape(last, flat, (total,)))
            last = self.file.add_tensor(subgraph, "", (size,), type_name)
            operators.append(self._head(subgraph, flat, last, size, type_name))
        if output is None:
            output = self.file.add_tensor(subgraph, "", shape, type_name)
        operators.append(self._reshape(last, output, shape))
        return operators, output

    def table(self, subgraph: Any, type_name: str, values: tuple[int, ...]) -> int:
        """Returns the tensor whose rows are all rows of digits, as values."""
        key = (id(subgraph), type_name, values)
        if key not in self._tables:
            group = packing.digits_per_index(len(values))
            operators, index = self._rows(subgraph, type_name, values, group)
            subgraph.operators = [*operators, *subgraph.operators]
            self._tables[key] = index
        return self._tables[key]

    def _rows(
        self, subgraph: Any, type_name: str, values: tuple[int, ...], digits: int
    ) -> tuple[list[Any], int]:
        """Returns the operators that make a table, and its tensor."""
        count = len(values)
        dtype = np.dtype("<i2" if type_name == "INT16" else "i1")
        rows = count**digits
        high, low = digits - digits // 2, digits // 2
        operators: list[Any] = []
        sizes = count**high, count**low
        parts: list[int] = []
        tables: dict[int, int] = {}
        for width, axis in ((high, 1), (low, 0)):
            # Every row of the one for every row of the other: by an axis of
            # size 1, gathered as often as needed.
            shape = [*sizes, width]
            flat = [*shape[:axis], 1, *shape[axis + 1 :]]
            if _is_small(count, width, dtype):
                data = np.asarray(values, dtype)[packing.digit_rows(count, width)]
                view = self.file.add_tensor(subgraph, "", flat, type_name, data)
            else:
                if width not in tables:
                    more, tables[width] = self._rows(subgraph, type_name, values, width)
                    operators += more
                view = self.file.add_tensor(subgraph, "", flat, type_name)
                operators.append(self._reshape(tables[width], view, flat))
            zeros = np.zeros(sizes[axis], "<i2")
            full = self.file.add_tensor(subgraph, "", shape, type_name)
            options = schema.GatherOptionsT()
            options.axis = axis
            repeat = [view, self.constant(subgraph, zeros)]
            operators.append(
                self.file.new_operator("GATHER", repeat, [full], options, 6)
            )
            parts.append(full)
        joined = self.file.add_tensor(subgraph, "", (*sizes, digits), type_name)
        concatenation = schema.ConcatenationOptionsT()
        concatenation.axis = 2
        version = 3 if type_name == "INT16" else 2
        operators.append(
            self.file.new_operator(
                "CONCATENATION", parts, [joined], concatenation, version
            )
        )
        table = self.file.add_tensor(subgraph, "", (rows, digits), type_name)
        operators.append(self._reshape(joined, table, (rows, digits)))
        return operators, table

    def constant(self, subgraph: Any, values: Array) -> int:
        """Returns the tensor of a small constant, one for all equal ones."""
        key = (id(subgraph), values.dtype.name, values.tobytes())
        if key not in self._constants:
            kind = {"int16": "INT16", "int32": "INT32"}[values.dtype.name]
            self._constants[key] = self.file.add_tensor(
                subgraph, "", values.shape, kind, values
            )
        return self._constants[key]

    def _reshape(self, source: int, target: int, shape: Sequence[int]) -> Any:
        options = schema.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        return self.file.new_operator("RESHAPE", [source], [target], options)

    def _head(
        self, subgraph: Any, source: int, target: int, size: int, type_name: str
    ) -> Any:
        """Returns the operator that cuts off what fills up the last index."""
        operands = [
            self.constant(subgraph, np.array([value], "<i4")) for value in (0, size, 1)
        ]
        return self.file.new_operator(
            "STRIDED_SLICE",
            [source, *operands],
            [target],
            schema.StridedSliceOptionsT(),
            2 if type_name == "INT8" else 1,
        )

    def unfold(self, subgraph: Any, index: int, operators: list[Any]) -> None:
        """Makes a constant the output of operators, before it is first read."""
        subgraph.tensors[index].buffer = 0
        readers = [
            place
            for place, operator in enumerate(subgraph.operators)
            if index in indices(operator.inputs)
        ]
        first = readers[0] if readers else len(subgraph.operators)
        subgraph.operators = [
            *subgraph.operators[:first],
            *operators,
            *subgraph.operators[first:],
        ]


def _is_small(num_levels: int, digits: int, dtype: np.dtype[Any]) -> bool:
    size = num_levels**digits * digits * dtype.itemsize
    return digits == 1 or size <= MAX_TABLE_BYTES
