"""Which forms the values of each weight tensor allow, and what they take.

What counts is what is in the file: how many levels a filter has, and whether they are
integer multiples of one number. `choice.py` takes one of the forms.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sq.export.tflite import forms, packing
from keras_sq.export.tflite.flatbuffer import PACKED_BITS, TFLiteFile
from keras_sq.export.tflite.levels import (
    MAX_CODE,
    FilterLevels,
    UniformCodes,
    filter_levels,
    filters_first,
    uniform_codes,
)
from keras_sq.export.tflite.matching import MAX_LEVELS
from keras_sq.export.tflite.weights import WeightTensor

Array = np.ndarray[Any, Any]

RANGES = {"INT2": (-2, 1), "INT4": (-8, 7), "INT8": (-MAX_CODE, MAX_CODE)}
"""Codes that a type holds."""

CHANNEL_BYTES = 12
"""What quantization takes a channel: a float32 scale and an int64 zero point."""

GATHERED = "packed"
"""The form of packed indices, beside the names of the integer types."""

TRANSPOSED = "packed, transposed"
"""As `GATHERED`, of a kernel whose filters are not on the first axis."""

SHARED = "packed, shared levels"
"""The form of packed indices of levels that all filters share."""

SCALED = "packed codes"
"""The form of packed indices of codes, times a scale a filter."""

PACKED_FORMS = (GATHERED, TRANSPOSED, SCALED)
"""Of packed indices, which every runtime takes, for a float constant."""

CODE_SETS = ((-1, 1), *(tuple(range(-n, n + 1)) for n in (1, 2, 3, 6, 15)))
"""The codes of `SCALED`: kernels share digit tables, so few sets, each the largest of
as many digits an index (`packing.py`); the middle ones are 3, 5, 7 and 13 codes."""

OTHER_AXIS = "filters are not on the first axis, as packing of levels needs"

AT_ONCE = ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Readers of `SCALED`, unfolded in each run: those that need all of it, and once."""

RUN_BYTES = 1 / 20
"""Bytes that a weight has to save to be unfolded in each run."""

TOO_SMALL = "too small to gain"
"""Why a constant stays as it is, though there is a form for its values."""

ROWS_SCALED = "its rows hold a multiplication before it"

Table = tuple[int, tuple[int, ...]]
"""A digit table, by the number of its graph and what the digits stand for."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A form that a tensor's values allow.

    Attributes:
        form: `GATHERED`, `TRANSPOSED`, `SHARED`, `SCALED`, or the type of the codes.
        constant_bytes: What its constants take.
        total_bytes: About what it takes with its operators and tensors, and what its
            time is worth.
        table: The digit table that it needs, or `None`.
    """

    form: str
    constant_bytes: int
    total_bytes: int
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a weight tensor before its form is chosen.

    Attributes:
        weight: The tensor.
        levels: Its values, `None` if a filter has more than `MAX_LEVELS`.
        num_bytes: What it takes as it is.
        options: The forms that its values allow.
        reason: Why there is none, or what there is to say of the values.
        codes: Integer codes of the levels, if there are any.
        dear: Whether there were forms that gain less than their table takes.
    """

    weight: WeightTensor
    levels: FilterLevels | None
    num_bytes: int
    options: tuple[Option, ...]
    reason: str
    codes: UniformCodes | None = None
    dear: bool = False

    def best(self) -> Option | None:
        """Returns the smallest form, `None` if the constant stays."""
        smaller = [x for x in self.options if x.total_bytes < self.num_bytes]
        return min(smaller, key=lambda option: option.total_bytes, default=None)


def float_plan(file: TFLiteFile, weight: WeightTensor) -> Plan:
    """Returns all forms that the values of a float constant allow."""
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "FLOAT32":
        return _no_plan(weight, None, f"its type is {weight.type_name}")
    levels = filter_levels(filters_first(array, weight.axis), MAX_LEVELS)
    if weight.scales:
        reason = "" if weight.gains else f"; {TOO_SMALL}"
        return _no_plan(weight, levels, f"{ROWS_SCALED}{reason}")
    if levels is None:
        return _no_plan(weight, None, f"more than {MAX_LEVELS} values a filter")
    codes = uniform_codes(levels)
    options = _gathered_floats(weight, levels, learned=codes is None)
    if codes is not None:
        options += _scaled(weight, codes)
        for form in RANGES:
            options += _coded(weight, codes, form)
    return Plan(weight, levels, array.nbytes, tuple(options), "", codes)


def allowed(plan: Plan, forms: Sequence[str]) -> Plan:
    """Returns a plan with the forms that a file may have.

    A quantized kernel without any of them is packed in a form that every runtime
    takes: learned levels are not multiples of one number.

    Args:
        plan: Of `float_plan`.
        forms: Types of codes, and `PACKED_FORMS`; none for float32 weights.
    """
    levels = plan.levels
    if not forms:
        reason = "the target keeps float32 weights"
        return dataclasses.replace(plan, options=(), reason=plan.reason or reason)
    if plan.reason or levels is None:
        return plan
    options = tuple(x for x in plan.options if x.form in forms)
    if not options and plan.weight.kernel is not None:
        options = tuple(x for x in plan.options if x.form in PACKED_FORMS)
    packed = GATHERED in forms
    other_axis = packed and plan.weight.axis != 0
    reason = ""
    if not options:
        reason = f"{levels.num_levels} values a filter"
        if other_axis:
            reason += f"; {OTHER_AXIS}"
        elif levels.num_levels <= packing.MAX_LEVELS and plan.codes is None:
            reason += ", not multiples of one number: only target 'small' holds them"
    elif other_axis and all(x.form in RANGES for x in options):
        reason = OTHER_AXIS
    elif packed and levels.num_levels > packing.MAX_LEVELS and plan.codes is not None:
        reason = f"more than {packing.MAX_LEVELS} levels"
    return dataclasses.replace(plan, options=options, reason=reason)


def int8_plan(file: TFLiteFile, weight: WeightTensor) -> Plan:
    """Returns the forms that the values of an int8 constant allow."""
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "INT8":
        return _no_plan(weight, None, f"its type is {weight.type_name}")
    levels, reason = integer_levels(file, weight)
    values = np.unique(array)
    options = []
    if len(values) <= packing.MAX_LEVELS:
        count = max(len(values), 2)
        size = packing.packed_bytes(weight.size, count)
        table = (weight.graph, tuple(int(value) for value in values))
        options.append(Option(SHARED, size, size + forms.GATHER_BYTES, table))
    if levels and levels.num_levels <= packing.MAX_LEVELS and weight.axis == 0:
        count = max(levels.num_levels, 2)
        size = packing.packed_bytes(weight.size, count) + weight.shape[0] * count
        options.append(_gathered(weight, size, count))
    if not options:
        reason += f"; more than {packing.MAX_LEVELS} levels"
    return Plan(weight, levels, array.nbytes, tuple(options), reason)


def _gathered(
    weight: WeightTensor, size: int, count: int, transposed: bool = False
) -> Option:
    table: Table | None = (weight.graph, tuple(range(count)))
    if packing.digits_per_index(count) == 1:
        table = None
    total = size + forms.GATHER_BYTES
    if not transposed:
        return Option(GATHERED, size, total, table)
    total += forms.TRANSPOSE_BYTES + round(RUN_BYTES * weight.size)
    return Option(TRANSPOSED, size, total, table)


def _gathered_floats(
    weight: WeightTensor, levels: FilterLevels, learned: bool
) -> list[Option]:
    """Returns the form of a list of levels a filter.

    Args:
        weight: The tensor.
        levels: Its values.
        learned: Whether they have no codes. Then filters may be on another axis than
            the first, and a quantized kernel may have any number of levels.
    """
    count = max(levels.num_levels, 2)
    other_axis = weight.axis != 0
    if other_axis and not learned:
        return []
    if count > packing.MAX_LEVELS and not (learned and weight.kernel is not None):
        return []
    filters = weight.shape[weight.axis]
    size = packing.packed_bytes(weight.size, count) + 4 * filters * count
    return [_gathered(weight, size, count, transposed=other_axis)]


def _scaled(weight: WeightTensor, codes: UniformCodes) -> list[Option]:
    """Returns the form of packed codes, if it is one for this tensor.

    Not in loops over time, which would unfold it in each step.
    """
    found = _code_set(codes)
    if found is None or weight.graph or not set(weight.operators) <= set(AT_ONCE):
        return []
    size = packing.packed_bytes(weight.size, len(found))
    size += CHANNEL_BYTES * weight.shape[weight.axis]
    total = size + forms.SCALED_BYTES + round(RUN_BYTES * weight.size)
    return [Option(SCALED, size, total, (weight.graph, found))]


def _coded(weight: WeightTensor, codes: UniformCodes, form: str) -> list[Option]:
    """Returns the form of codes of an integer type, if they are in its range."""
    low, high = RANGES[form]
    if codes.smallest < low or codes.largest > high:
        return []
    size = -(-weight.size * PACKED_BITS.get(form, 8) // 8)
    size += CHANNEL_BYTES * weight.shape[weight.axis]
    return [Option(form, size, size + forms.DEQUANTIZE_BYTES)]


def _code_set(codes: UniformCodes) -> tuple[int, ...] | None:
    """Returns the smallest of the sets that has all codes."""
    there = set(np.unique(codes.codes).tolist())
    return next((found for found in CODE_SETS if there <= set(found)), None)


def _no_plan(weight: WeightTensor, levels: FilterLevels | None, reason: str) -> Plan:
    return Plan(weight, levels, 0, (), reason)


def integer_levels(
    file: TFLiteFile, weight: WeightTensor
) -> tuple[FilterLevels | None, str]:
    """Returns the levels of an int8 weight tensor, and what they say of it."""
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "INT8":
        return None, f"its type is {weight.type_name}"
    levels = filter_levels(filters_first(array, weight.axis), MAX_LEVELS)
    if np.isin(array, (-MAX_CODE, 0, MAX_CODE)).all():
        return levels, "exactly -127, 0 and 127"
    return levels, "rounded to int8"
