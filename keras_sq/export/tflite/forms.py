"""How a file can hold a kernel of few values: the tensors and operators of it.

| form | constant | unfolded by | gives |
|---|---|---|---|
| `dequantized` | codes, INT8, INT4 or INT2 | DEQUANTIZE | codes · scale |
| `gathered` | packed indices (`packing.py`) | GATHER, GATHER | a level of a filter |
| the same, of another axis | packed indices | also TRANSPOSE | a level of a filter |
| `looked_up` | packed indices | GATHER | a level of all filters |
| `scaled` | packed indices | GATHER, DEQUANTIZE | codes · scale |

Tensors between are nameless: names take more of a small file than operators. In
each form, the tensor that was the constant stays, with its name and its readers,
and becomes the output of the last operator. All operands are constants, so
runtimes unfold a kernel once, when they allocate the tensors; only the DEQUANTIZE of
`scaled`, and TRANSPOSE, run every time.

Design note: **little arithmetic.** MUL of signs and scales would be the plain form.
But XNNPACK takes a float MUL and runs it again every time; CAST is not run when
tensors are allocated either. GATHER, RESHAPE, CONCATENATION and STRIDED_SLICE are,
and what they move stays exact. The digits are brought into the kernel's shape
before they are looked up: a RESHAPE of floats is XNNPACK's again.

`scaled` is for many levels: `gathered` lists each filter's, 52 bytes for 13 of them,
a scale takes 12. And it is for kernels whose filters are not on the first axis, as
depthwise ones. The runtimes that these files are for dequantize what is not a constant
anew in every run, about a nanosecond a weight.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.tflite import packing
from keras_sq.export.tflite.flatbuffer import (
    PACKED_BITS,
    TFLiteFile,
    indices,
    pack_bits,
    per_channel,
    shape_of,
)

Array = np.ndarray[Any, Any]

DEQUANTIZE_VERSIONS = {"INT8": 5, "INT4": 6, "INT2": 7}
"""Versions of the operator that have the type, per channel."""

MAX_TABLE_BYTES = 512
"""Digit tables that take more are made from smaller ones.

The operators and tensors of that take about as much.
"""

GATHER_BYTES = 600
DEQUANTIZE_BYTES = 250
TRANSPOSE_BYTES = 200
SCALED_BYTES = 420
TABLE_BYTES = 2000
"""About what the operators and tensors of a form take in the file.

For the choice of a form only; reports count the bytes of the file.
"""


class Rewriter:
    """Puts kernels of a file into other forms.

    Args:
        file: The file, changed in place.
    """

    def __init__(self, file: TFLiteFile) -> None:
        self.file = file
        # (subgraph, type, values) -> tensor.
        self._tables: dict[tuple[int, str, tuple[int, ...]], int] = {}
        # (subgraph, dtype, bytes) -> tensor.
        self._constants: dict[tuple[int, str, bytes], int] = {}

    def dequantized(
        self,
        subgraph: Any,
        index: int,
        codes: Array,
        scale: Array,
        axis: int,
        type_name: str,
    ) -> None:
        """Stores a float constant as integer codes and a scale a channel.

        Args:
            subgraph: The constant's graph.
            index: The constant's place in it.
            codes: Int8 array of the constant's shape.
            scale: Float32 array `(channels,)`.
            axis: The channels' axis.
            type_name: `"INT8"`, `"INT4"` or `"INT2"`.
        """
        data = codes
        if type_name in PACKED_BITS:
            data = pack_bits(codes, PACKED_BITS[type_name])
        stored = self.file.add_tensor(
            subgraph,
            "",
            codes.shape,
            type_name,
            data,
            per_channel(scale, axis),
        )
        version = DEQUANTIZE_VERSIONS[type_name]
        operator = self.file.new_operator(
            "DEQUANTIZE", [stored], [index], schema.DequantizeOptionsT(), version
        )
        self._unfold(subgraph, index, [operator])

    def gathered(
        self, subgraph: Any, index: int, digits: Array, levels: Array, axis: int = 0
    ) -> None:
        """Stores a constant as packed levels, with a list of levels a filter.

        Args:
            subgraph: The constant's graph.
            index: The constant's place in it.
            digits: Uint8 array `(filters, weights)`, in the constant's order.
            levels: Array `(filters, levels)` of the constant's dtype.
            axis: The filters' axis. Other constants than those with filters on the
                first axis are transposed to their shape, in each run.
        """
        if levels.shape[1] == 1:  # One bit is the least.
            levels = np.repeat(levels, 2, axis=1)
        count = levels.shape[1]
        shape = shape_of(subgraph.tensors[index])
        order = [axis, *(other for other in range(len(shape)) if other != axis)]
        shape = tuple(shape[other] for other in order)
        operators: list[Any] = []
        if packing.digits_per_index(count) == 1:
            numbers = digits.reshape(shape).astype("<i2")
            found = self.file.add_tensor(subgraph, "", shape, "INT16", numbers)
        else:
            table = self._table(subgraph, "INT16", tuple(range(count)))
            operators, found = self._gathered_digits(
                subgraph, digits, count, table, "INT16", shape
            )
        made = index
        if axis:
            made = self.file.add_tensor(subgraph, "", shape, _type_name(levels))
        values = self.file.add_tensor(
            subgraph, "", levels.shape, _type_name(levels), levels
        )
        options = schema.GatherOptionsT()
        options.axis = options.batchDims = 1
        operators.append(
            self.file.new_operator("GATHER", [values, found], [made], options, 6)
        )
        if axis:
            back = self._constant(subgraph, np.argsort(order).astype("<i4"))
            options = schema.TransposeOptionsT()
            operators.append(
                self.file.new_operator("TRANSPOSE", [made, back], [index], options)
            )
        self._unfold(subgraph, index, operators)

    def looked_up(
        self, subgraph: Any, index: int, digits: Array, levels: Sequence[int]
    ) -> None:
        """Stores an int8 constant as packed levels that all filters share.

        Args:
            subgraph: The constant's graph.
            index: The constant's place in it.
            digits: Uint8 array, in the constant's order.
            levels: The int8 values that the digits stand for.
        """
        tensor = subgraph.tensors[index]
        table = self._table(subgraph, "INT8", tuple(levels))
        operators, found = self._gathered_digits(
            subgraph,
            digits,
            len(levels),
            table,
            "INT8",
            shape_of(tensor),
            output=index,
        )
        self._unfold(subgraph, index, operators)

    def scaled(
        self,
        subgraph: Any,
        index: int,
        digits: Array,
        codes: Sequence[int],
        scale: Array,
        axis: int,
    ) -> None:
        """Stores a float constant as packed codes and a scale a channel.

        Args:
            subgraph: The constant's graph.
            index: The constant's place in it.
            digits: Uint8 array, in the constant's order.
            codes: The int8 codes that the digits stand for.
            scale: Float32 array `(channels,)`.
            axis: The channels' axis.
        """
        shape = shape_of(subgraph.tensors[index])
        quantization = per_channel(scale, axis)
        unfolded = self.file.add_tensor(
            subgraph, "", shape, "INT8", quantization=quantization
        )
        table = self._table(subgraph, "INT8", tuple(codes))
        operators, _ = self._gathered_digits(
            subgraph, digits, len(codes), table, "INT8", shape, output=unfolded
        )
        options = schema.DequantizeOptionsT()
        version = DEQUANTIZE_VERSIONS["INT8"]
        operators.append(
            self.file.new_operator("DEQUANTIZE", [unfolded], [index], options, version)
        )
        self._unfold(subgraph, index, operators)

    def _gathered_digits(
        self,
        subgraph: Any,
        digits: Array,
        count: int,
        table: int,
        type_name: str,
        shape: Sequence[int],
        output: int | None = None,
    ) -> tuple[list[Any], int]:
        """Returns the operators that look digits up, and the tensor they make."""
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

    def _table(self, subgraph: Any, type_name: str, values: tuple[int, ...]) -> int:
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
            repeat = [view, self._constant(subgraph, zeros)]
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

    def _constant(self, subgraph: Any, values: Array) -> int:
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
            self._constant(subgraph, np.array([value], "<i4")) for value in (0, size, 1)
        ]
        return self.file.new_operator(
            "STRIDED_SLICE",
            [source, *operands],
            [target],
            schema.StridedSliceOptionsT(),
            2 if type_name == "INT8" else 1,
        )

    def _unfold(self, subgraph: Any, index: int, operators: list[Any]) -> None:
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


def _type_name(array: Array) -> str:
    return {"float32": "FLOAT32", "int8": "INT8"}[array.dtype.name]
