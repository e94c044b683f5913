"""The forms in which a file can hold a kernel of few values, a class each.

| form | constant | unfolded by | gives |
|---|---|---|---|
| `Codes` | codes, INT8, INT4 or INT2 | DEQUANTIZE | codes · scale |
| `PackedLevels` | packed indices | GATHER, GATHER | a level of a filter |
| `TransposedLevels` | packed indices | also TRANSPOSE | a level of a filter |
| `SharedLevels` | packed indices | GATHER | a level of all filters |
| `PackedCodes` | packed indices | GATHER, DEQUANTIZE | codes · scale |

A new form is a class and a row in `FLOAT_FORMS` or `INT8_FORMS`. Packed indices are
those of `packing.py`. All operands are constants, so runtimes unfold a kernel once,
when they allocate the tensors; only the DEQUANTIZE of `PackedCodes`, and TRANSPOSE, run
every time.

Design note: **little arithmetic.** MUL of signs and scales would be the plain form.
But XNNPACK takes a float MUL and runs it again every time; CAST is not run when
tensors are allocated either. GATHER, RESHAPE, CONCATENATION and STRIDED_SLICE are,
and what they move stays exact. The digits are brought into the kernel's shape
before they are looked up: a RESHAPE of floats is XNNPACK's again.

`PackedCodes` are for many levels: `PackedLevels` list each filter's, 52 bytes for 13 of
them, a scale takes 12. And they are for kernels whose filters are not on the first
axis, as depthwise ones. The runtimes that these files are for dequantize what is not a
constant anew in every run, about a nanosecond a weight.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.tflite import packing
from keras_sq.export.tflite.flatbuffer import per_channel
from keras_sq.export.tflite.levels import MAX_CODE, FilterLevels, UniformCodes
from keras_sq.export.tflite.rewriter import Rewriter
from keras_sq.export.tflite.weights import WeightTensor

PACKED = "packed levels"
"""What reports call the forms of packed indices."""

CHANNEL_BYTES = 4
"""What quantization takes a channel: a float32 scale. Zero points are all 0, and stored
once for all tensors of as many channels."""

GATHER_BYTES = 600
DEQUANTIZE_BYTES = 250
TRANSPOSE_BYTES = 200
SCALED_BYTES = 420
TABLE_BYTES = 2000
"""About what operators and tensors of a form or a digit table take in the file.

For the choice of a form only; reports count the bytes of constants.
"""

RUN_BYTES = 1 / 20
"""Bytes that a weight has to save to be unfolded in each run."""

Table = tuple[int, tuple[int, ...]]
"""A digit table, by the number of its graph and what the digits stand for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """The values of a weight tensor.

    Attributes:
        weight: The tensor.
        array: Array of the tensor's shape.
        matrix: The same as `(filters, weights)`.
        levels: The different values of each filter.
        codes: Integer codes of float levels, if there are any.
    """

    weight: WeightTensor
    array: Array
    matrix: Array
    levels: FilterLevels
    codes: UniformCodes | None = None

    @property
    def learned(self) -> bool:
        """Whether these are floats that are not multiples of one number."""
        return self.codes is None and self.array.dtype == np.float32

    @property
    def whole_codes(self) -> Array:
        """The int8 code of each weight, in the tensor's shape."""
        assert self.codes is not None  # Only forms of codes ask for them.
        places = self.levels.indices(self.matrix).astype(np.intp)
        matrix = np.take_along_axis(self.codes.codes, places, axis=1)
        shape, axis = self.weight.shape, self.weight.axis
        others = [size for place, size in enumerate(shape) if place != axis]
        array = np.moveaxis(matrix.reshape(shape[axis], *others), 0, axis)
        return np.ascontiguousarray(array)


@dataclasses.dataclass(frozen=True, eq=False)
class Form(abc.ABC):
    """How a file holds one weight tensor.

    Attributes:
        values: Values of the tensor.
        constant_bytes: Bytes that the constants take.
        total_bytes: About what it takes with operators and tensors, and what its time
            is worth.
        table: Digit table that the form needs, or `None`.
    """

    values: Values
    constant_bytes: int
    total_bytes: int
    table: Table | None = None

    name: ClassVar[str]  # By which targets allow the form.
    stored_as: ClassVar[str] = PACKED  # In reports.

    @classmethod
    @abc.abstractmethod
    def of(cls, values: Values) -> "Form | None":
        """Returns the form for a tensor; `None` if it cannot hold the values."""

    @abc.abstractmethod
    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Puts the tensor of a file into this form.

        Args:
            rewriter: What changes the file.
            weight: The tensor, in this copy of the file.
        """

    @abc.abstractmethod
    def described(self, reason: str) -> str:
        """Returns a reason for the report, with what there is to say of the form."""


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


class PackedLevels(Form):
    """Packed indices into a list of levels a filter."""

    name = "packed"

    @classmethod
    def of(cls, values: Values) -> Form | None:
        """Returns the form, if filters are on the first axis."""
        return cls._of(values, 0) if values.weight.axis == 0 else None

    @classmethod
    def _of(cls, values: Values, other_bytes: int) -> Form | None:
        weight = values.weight
        count = max(values.levels.num_levels, 2)  # One bit is the least.
        # Learned levels of a quantized kernel have no other form.
        any_number = values.learned and weight.kernel is not None
        if count > packing.MAX_LEVELS and not any_number:
            return None
        lists = values.array.itemsize * weight.shape[weight.axis] * count
        size = packing.packed_bytes(weight.size, count) + lists
        table: Table | None = (weight.graph, tuple(range(count)))
        if packing.digits_per_index(count) == 1:
            table = None
        return cls(values, size, size + GATHER_BYTES + other_bytes, table)

    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Makes a constant the output of a GATHER of levels by digits."""
        operators = self._gathered(rewriter, weight, weight.shape, weight.index)
        rewriter.unfold(weight.subgraph, weight.index, operators)

    def _gathered(
        self,
        rewriter: Rewriter,
        weight: WeightTensor,
        shape: tuple[int, ...],
        output: int,
    ) -> list[Any]:
        """Returns the operators that make a tensor with filters on the first axis."""
        file, subgraph = rewriter.file, weight.subgraph
        digits = self.values.levels.indices(self.values.matrix)
        levels = self.values.levels.values
        if levels.shape[1] == 1:  # One bit is the least.
            levels = np.repeat(levels, 2, axis=1)
        operators: list[Any] = []
        if self.table is None:
            numbers = digits.reshape(shape).astype("<i2")
            places = file.add_tensor(subgraph, "", shape, "INT16", numbers)
        else:
            table = rewriter.table(subgraph, "INT16", self.table[1])
            operators, places = rewriter.gathered_digits(
                subgraph, digits, levels.shape[1], table, "INT16", shape
            )
        kind = {"float32": "FLOAT32", "int8": "INT8"}[levels.dtype.name]
        lists = file.add_tensor(subgraph, "", levels.shape, kind, levels)
        options = schema.GatherOptionsT()
        options.axis = options.batchDims = 1
        gather = file.new_operator("GATHER", [lists, places], [output], options, 6)
        return [*operators, gather]

    def described(self, reason: str) -> str:
        """Returns a reason for the report, before what the levels are of."""
        return _joined(reason, "levels of each filter")


class TransposedLevels(PackedLevels):
    """Packed levels of filters that are on another axis than the first."""

    name = "packed, transposed"

    @classmethod
    def of(cls, values: Values) -> Form | None:
        """Returns the form, if there is none of codes, which do with any axis."""
        if values.weight.axis == 0 or not values.learned:
            return None
        time = round(RUN_BYTES * values.weight.size)
        return cls._of(values, TRANSPOSE_BYTES + time)

    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Makes a constant the output of a TRANSPOSE of gathered levels."""
        axes = range(len(weight.shape))
        order = [weight.axis, *(axis for axis in axes if axis != weight.axis)]
        shape = tuple(weight.shape[axis] for axis in order)
        file, subgraph = rewriter.file, weight.subgraph
        transposed = file.add_tensor(subgraph, "", shape, "FLOAT32")
        operators = self._gathered(rewriter, weight, shape, transposed)
        back = rewriter.constant(subgraph, np.argsort(order).astype("<i4"))
        options = schema.TransposeOptionsT()
        operators.append(
            file.new_operator("TRANSPOSE", [transposed, back], [weight.index], options)
        )
        rewriter.unfold(subgraph, weight.index, operators)


class SharedLevels(Form):
    """Packed indices of int8 values that all filters share."""

    name = "packed, shared levels"

    @classmethod
    def of(cls, values: Values) -> Form | None:
        """Returns the form, if there are few values in all filters together."""
        levels = tuple(int(value) for value in np.unique(values.array))
        if len(levels) > packing.MAX_LEVELS:
            return None
        levels = levels * 2 if len(levels) == 1 else levels  # One bit is the least.
        size = packing.packed_bytes(values.weight.size, len(levels))
        return cls(values, size, size + GATHER_BYTES, (values.weight.graph, levels))

    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Makes an int8 constant the output of a GATHER of values."""
        assert self.table is not None  # As of all forms of this class.
        operators = rewriter.looked_up(
            weight, self.values.array, self.table[1], weight.index
        )
        rewriter.unfold(weight.subgraph, weight.index, operators)

    def described(self, reason: str) -> str:
        """Returns a reason for the report, before what the levels are of."""
        return _joined(reason, "the same levels for all filters")


class _OfCodes(Form):
    """A form of integer codes and a scale a filter."""

    @property
    def codes(self) -> UniformCodes:
        """The codes of the levels."""
        assert self.values.codes is not None  # Or `of` returns no form.
        return self.values.codes

    def dequantized(
        self, rewriter: Rewriter, weight: WeightTensor, source: int, version: int
    ) -> Any:
        """Returns the operator that makes the tensor from one of codes."""
        options = schema.DequantizeOptionsT()
        return rewriter.file.new_operator(
            "DEQUANTIZE", [source], [weight.index], options, version
        )

    def described(self, reason: str) -> str:
        """Returns a reason for the report, after the range of the codes."""
        return _joined(f"codes {self.codes.smallest} to {self.codes.largest}", reason)


class PackedCodes(_OfCodes):
    """Packed indices of codes, and a scale a filter; unfolded in each run."""

    name = "packed codes"

    sets = ((-1, 1), *(tuple(range(-n, n + 1)) for n in (1, 2, 3, 6, 15)))
    """The codes of digits: kernels share digit tables, so few sets, each the largest of
    as many digits an index (`packing.py`); the middle ones are 3, 5, 7 and 13 codes."""

    readers = frozenset({"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
    """Operators that need all of the kernel, and once."""

    @classmethod
    def of(cls, values: Values) -> Form | None:
        """Returns the form, outside of loops, which would unfold it in each step."""
        weight = values.weight
        if values.codes is None or weight.graph:
            return None
        present = set(np.unique(values.codes.codes).tolist())
        codes = next((entry for entry in cls.sets if present <= set(entry)), None)
        if codes is None or not cls.readers.issuperset(weight.operators):
            return None
        size = packing.packed_bytes(weight.size, len(codes))
        size += CHANNEL_BYTES * weight.shape[weight.axis]
        total = size + SCALED_BYTES + round(RUN_BYTES * weight.size)
        return cls(values, size, total, (weight.graph, codes))

    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Makes a float constant the output of a DEQUANTIZE of gathered codes."""
        assert self.table is not None  # As of all forms of this class.
        scales = per_channel(self.codes.scale, weight.axis)
        unfolded = rewriter.file.add_tensor(
            weight.subgraph, "", weight.shape, "INT8", quantization=scales
        )
        operators = rewriter.looked_up(
            weight, self.values.whole_codes, self.table[1], unfolded
        )
        version = Int8Codes.version
        operators.append(self.dequantized(rewriter, weight, unfolded, version))
        rewriter.unfold(weight.subgraph, weight.index, operators)


class Codes(_OfCodes):
    """Integer codes of 8, 4 or 2 bits, and a scale a filter."""

    low: ClassVar[int]
    high: ClassVar[int]
    bits: ClassVar[int]
    version: ClassVar[int]  # Of DEQUANTIZE that has the type, per channel.

    @classmethod
    def of(cls, values: Values) -> Form | None:
        """Returns the form, if there are codes in the range of the type."""
        codes, weight = values.codes, values.weight
        if codes is None or codes.smallest < cls.low or codes.largest > cls.high:
            return None
        size = -(-weight.size * cls.bits // 8)
        size += CHANNEL_BYTES * weight.shape[weight.axis]
        return cls(values, size, size + DEQUANTIZE_BYTES)

    def store(self, rewriter: Rewriter, weight: WeightTensor) -> None:
        """Makes a float constant the output of a DEQUANTIZE."""
        codes = self.values.whole_codes
        stored = rewriter.file.add_tensor(
            weight.subgraph,
            "",
            codes.shape,
            self.name,
            codes if self.bits == 8 else packing.pack_bits(codes, self.bits),
            per_channel(self.codes.scale, weight.axis),
        )
        operator = self.dequantized(rewriter, weight, stored, self.version)
        rewriter.unfold(weight.subgraph, weight.index, [operator])


class Int2Codes(Codes):
    """Codes of 2 bits, four to a byte."""

    name, stored_as = "INT2", "INT2 codes"
    low, high, bits, version = -2, 1, 2, 7


class Int4Codes(Codes):
    """Codes of 4 bits, two to a byte."""

    name, stored_as = "INT4", "INT4 codes"
    low, high, bits, version = -8, 7, 4, 6


class Int8Codes(Codes):
    """Codes of 8 bits."""

    name, stored_as = "INT8", "INT8 codes"
    low, high, bits, version = -MAX_CODE, MAX_CODE, 8, 5


CODE_TYPES = (Int2Codes.name, Int4Codes.name, Int8Codes.name)
"""Names of the forms of codes."""

PACKED_FORMS = (PackedLevels.name, TransposedLevels.name, PackedCodes.name)
"""Names of the packed forms of a float constant, which every runtime takes."""

FLOAT_FORMS: tuple[type[Form], ...] = (
    PackedLevels,
    TransposedLevels,
    PackedCodes,
    Int2Codes,
    Int4Codes,
    Int8Codes,
)
"""Forms of a float constant; of equally small ones, the first is taken."""

INT8_FORMS: tuple[type[Form], ...] = (SharedLevels, PackedLevels)
"""Forms of an int8 constant."""
