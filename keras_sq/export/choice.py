"""Which form each weight tensor gets, and why.

A form is chosen on the values that are in the file: how many levels a filter has,
and whether they are integer multiples of one number. The smallest form that a
target allows is taken; where none is smaller, the constant stays.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sq.export import forms, packing
from keras_sq.export.flatbuffer import PACKED_BITS, TFLiteFile
from keras_sq.export.levels import (
    MAX_CODE,
    FilterLevels,
    UniformCodes,
    filter_levels,
    filters_first,
    uniform_codes,
)
from keras_sq.export.report import KernelReport
from keras_sq.export.weights import MAX_LEVELS, WeightTensor

Array = np.ndarray[Any, Any]

RANGES = {"INT2": (-2, 1), "INT4": (-8, 7), "INT8": (-MAX_CODE, MAX_CODE)}
"""Codes that a type holds."""

CHANNEL_BYTES = 12
"""What quantization takes a channel: a float32 scale and an int64 zero point."""

PACKED = "packed levels"
"""What reports call the forms of packed indices."""

GATHERED = "packed"
"""The form of packed indices, beside the names of the integer types."""

SHARED = "packed, shared levels"
"""The form of packed indices of levels that all filters share."""

SCALED = "packed codes"
"""The form of packed indices of codes, times a scale a filter."""

PACKED_FORMS = (GATHERED, SCALED, "INT8")
"""Of small float files that every runtime takes."""

CODE_SETS = ((-1, 1), *(tuple(range(-n, n + 1)) for n in (1, 2, 3, 6, 15)))
"""The codes of `SCALED`: kernels share digit tables, so few sets, each the largest of
as many digits an index (`packing.py`); the middle ones are 3, 5, 7 and 13 codes."""

OTHER_AXIS = "filters are not on the first axis, as packing of levels needs"

AT_ONCE = ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Readers of `SCALED`, unfolded in each run: those that need all of it, and once."""

RUN_BYTES = 1 / 20
"""Bytes that a weight has to save to be unfolded in each run."""

Table = tuple[int, tuple[int, ...]]
"""A digit table, by its graph and what the digits stand for."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A form that a tensor's values allow.

    Attributes:
        form: `GATHERED`, `SHARED`, `SCALED`, or the type of the codes.
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


def store_float_weights(
    file: TFLiteFile, weights: Sequence[WeightTensor], allowed: Sequence[str]
) -> list[KernelReport]:
    """Puts the weights of a float file into the tightest forms.

    Args:
        file: The file, changed in place.
        weights: Its weight tensors.
        allowed: Forms: types of codes, `GATHERED` and `SCALED`.

    Returns:
        What became of each tensor.
    """
    plans = [_float_plan(file, weight, allowed) for weight in weights]
    return _store(file, plans)


def store_int8_weights(
    file: TFLiteFile, weights: Sequence[WeightTensor]
) -> list[KernelReport]:
    """Packs the weights of a full-integer file.

    Args:
        file: The file, changed in place.
        weights: Its weight tensors.

    Returns:
        What became of each tensor.
    """
    return _store(file, [_int8_plan(file, weight) for weight in weights])


# What the values allow.


def _float_plan(file: TFLiteFile, weight: WeightTensor, allowed: Sequence[str]) -> Plan:
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "FLOAT32":
        return _no_plan(weight, None, f"its type is {weight.type_name}")
    levels = filter_levels(filters_first(array, weight.axis), MAX_LEVELS)
    if not allowed:
        return _no_plan(weight, levels, "the target keeps float32 weights")
    if levels is None:
        return _no_plan(weight, None, f"more than {MAX_LEVELS} values a filter")
    codes = uniform_codes(levels) if set(allowed) & {SCALED, *RANGES} else None
    options = []
    for form in allowed:
        if form == GATHERED:
            options += _gathered_floats(weight, levels)
        elif codes is not None and form == SCALED:
            options += _scaled(file, weight, codes)
        elif codes is not None:
            options += _coded(weight, codes, form)
    reason = ""
    other_axis = GATHERED in allowed and weight.axis != 0
    if not options:
        reason = f"{levels.num_levels} values a filter"
        if other_axis:
            reason += f"; {OTHER_AXIS}"
        elif levels.num_levels <= packing.MAX_LEVELS and codes is None:
            reason += ", not multiples of one number: only target 'small' holds them"
    elif other_axis and all(option.table is None for option in options):
        reason = OTHER_AXIS
    elif GATHERED in allowed and levels.num_levels > packing.MAX_LEVELS:
        reason = f"more than {packing.MAX_LEVELS} levels"
    return Plan(weight, levels, array.nbytes, tuple(options), reason, codes)


def _int8_plan(file: TFLiteFile, weight: WeightTensor) -> Plan:
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "INT8":
        return _no_plan(weight, None, f"its type is {weight.type_name}")
    levels, reason = integer_levels(file, weight)
    values = np.unique(array)
    options = []
    if len(values) <= packing.MAX_LEVELS:
        count = max(len(values), 2)
        size = packing.packed_bytes(weight.size, count)
        table = (id(weight.subgraph), tuple(int(value) for value in values))
        options.append(Option(SHARED, size, size + forms.GATHER_BYTES, table))
    if levels and levels.num_levels <= packing.MAX_LEVELS and weight.axis == 0:
        count = max(levels.num_levels, 2)
        size = packing.packed_bytes(weight.size, count) + weight.shape[0] * count
        options.append(_gathered(weight, size, count))
    if not options:
        reason += f"; more than {packing.MAX_LEVELS} levels"
    return Plan(weight, levels, array.nbytes, tuple(options), reason)


def _gathered(weight: WeightTensor, size: int, count: int) -> Option:
    table = (id(weight.subgraph), tuple(range(count)))
    return Option(GATHERED, size, size + forms.GATHER_BYTES, table)


def _gathered_floats(weight: WeightTensor, levels: FilterLevels) -> list[Option]:
    """Returns the form of a list of levels a filter, if filters are in rows."""
    count = max(levels.num_levels, 2)
    if count > packing.MAX_LEVELS or weight.axis != 0:
        return []
    size = packing.packed_bytes(weight.size, count) + 4 * weight.shape[0] * count
    return [_gathered(weight, size, count)]


def _scaled(
    file: TFLiteFile, weight: WeightTensor, codes: UniformCodes
) -> list[Option]:
    """Returns the form of packed codes, if it is one for this tensor."""
    found = _code_set(codes)
    in_loop = weight.subgraph is not file.subgraphs[0]
    if found is None or in_loop or not set(weight.operators) <= set(AT_ONCE):
        return []
    size = packing.packed_bytes(weight.size, len(found))
    size += CHANNEL_BYTES * weight.shape[weight.axis]
    total = size + forms.SCALED_BYTES + round(RUN_BYTES * weight.size)
    return [Option(SCALED, size, total, (id(weight.subgraph), found))]


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


# The choice.


def _store(file: TFLiteFile, plans: Sequence[Plan]) -> list[KernelReport]:
    rewriter = forms.Rewriter(file)
    return [_put(rewriter, plan) for plan in _without_dear_tables(plans)]


def _without_dear_tables(plans: Sequence[Plan]) -> list[Plan]:
    """Drops the forms whose table takes more than they gain, all together."""
    tables = {x.table for plan in plans for x in plan.options if x.table}
    chosen: set[Table] = set()
    best = _with_tables(plans, chosen)
    while True:
        more = [
            (_with_tables(plans, {*chosen, table}), table)
            for table in sorted(tables - chosen)
        ]
        if not more:
            return best
        found, table = min(more, key=lambda entry: _total_bytes(entry[0]))
        if _total_bytes(found) >= _total_bytes(best):
            return best
        chosen.add(table)
        best = found


def _with_tables(plans: Sequence[Plan], tables: set[Table]) -> list[Plan]:
    return [
        dataclasses.replace(
            plan,
            options=tuple(
                x for x in plan.options if x.table is None or x.table in tables
            ),
            dear=any(x.table and x.table not in tables for x in plan.options),
        )
        for plan in plans
    ]


def _total_bytes(plans: Sequence[Plan]) -> int:
    best = [plan.best() for plan in plans]
    tables = {option.table for option in best if option and option.table}
    weights = sum(
        option.total_bytes if option else plan.num_bytes
        for plan, option in zip(plans, best, strict=True)
    )
    return weights + forms.TABLE_BYTES * len(tables)


def _put(rewriter: forms.Rewriter, plan: Plan) -> KernelReport:
    """Stores a tensor in its best form."""
    weight, best = plan.weight, plan.best()
    reasons = [plan.reason] if plan.reason else []
    if best is None or plan.levels is None:
        if plan.options or plan.dear:
            reasons.append("too small to gain")
        return kept(weight, plan.levels, "; ".join(reasons))
    array = rewriter.file.array(weight.tensor)
    assert array is not None  # Or there would be no option.
    matrix = filters_first(array, weight.axis)
    if best.form == SHARED:
        values = np.unique(array)
        digits = np.searchsorted(values, array).astype(np.uint8)
        levels = [int(value) for value in values]
        # One bit is the least.
        levels = levels * 2 if len(levels) == 1 else levels
        rewriter.looked_up(weight.subgraph, weight.index, digits, levels)
        reasons.append("the same levels for all filters")
    elif best.form == GATHERED:
        rewriter.gathered(
            weight.subgraph,
            weight.index,
            plan.levels.indices(matrix),
            plan.levels.values,
        )
        reasons.append("levels of each filter")
    else:
        codes = plan.codes
        assert codes is not None  # Or it would be no option.
        found = plan.levels.indices(matrix).astype(np.intp)
        whole = _in_place(np.take_along_axis(codes.codes, found, axis=1), weight)
        tensor = weight.subgraph, weight.index
        if best.form == SCALED:
            assert best.table is not None  # As of all packed forms.
            digits = np.searchsorted(best.table[1], whole).astype(np.uint8)
            rewriter.scaled(*tensor, digits, best.table[1], codes.scale, weight.axis)
        else:
            rewriter.dequantized(*tensor, whole, codes.scale, weight.axis, best.form)
        reasons.insert(0, f"codes {codes.smallest} to {codes.largest}")
    stored = f"{best.form} codes" if best.form in RANGES else PACKED
    reason = "; ".join(reasons)
    return reported(weight, plan.levels, stored, best.constant_bytes, reason)


def _in_place(matrix: Array, weight: WeightTensor) -> Array:
    """Returns a matrix `(filters, weights)` in the tensor's own layout."""
    others = [size for axis, size in enumerate(weight.shape) if axis != weight.axis]
    array = matrix.reshape(weight.shape[weight.axis], *others)
    return np.ascontiguousarray(np.moveaxis(array, 0, weight.axis))


def kept(
    weight: WeightTensor, levels: FilterLevels | None, reason: str
) -> KernelReport:
    """Returns the report of a tensor that stays as the converter stored it."""
    bits = {"FLOAT32": 32, "INT8": 8, "FLOAT16": 16}.get(weight.type_name, 32)
    size = weight.size * bits // 8
    return reported(weight, levels, weight.type_name.lower(), size, reason)


def reported(
    weight: WeightTensor,
    levels: FilterLevels | None,
    stored_as: str,
    num_bytes: int,
    reason: str,
) -> KernelReport:
    """Returns the report of a tensor."""
    return KernelReport(
        path=weight.kernel or weight.name,
        weights=weight.size,
        levels=None if levels is None else levels.num_levels,
        stored_as=stored_as,
        num_bytes=num_bytes,
        quantized=weight.kernel is not None,
        reason=reason,
    )
