"""Which forms the values of each weight tensor allow.

What counts is what is in the file: how many levels a filter has, and whether they are
integer multiples of one number. `choice.py` takes one of the forms.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_sq.export.tflite import packing
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.forms import (
    FLOAT_FORMS,
    INT8_FORMS,
    PACKED_FORMS,
    Codes,
    Form,
    PackedLevels,
    Values,
)
from keras_sq.export.tflite.levels import (
    MAX_CODE,
    FilterLevels,
    filter_levels,
    filters_first,
    uniform_codes,
)
from keras_sq.export.tflite.matching import MAX_LEVELS
from keras_sq.export.tflite.weights import WeightTensor

OTHER_AXIS = "filters are not on the first axis, as packing of levels needs"

TOO_SMALL = "too small to gain"
"""Why a constant stays as it is, though there is a form for its values."""

ROWS_SCALED = "its rows hold a multiplication before it"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a weight tensor before its form is chosen.

    Attributes:
        weight: The tensor.
        levels: Its values, `None` if a filter has more than `MAX_LEVELS`.
        num_bytes: What it takes as it is.
        options: The forms that its values allow.
        reason: Why there is none, or what there is to say of the values.
        has_codes: Whether its levels are multiples of one number.
        dear: Whether there were forms that gain less than their table takes.
    """

    weight: WeightTensor
    levels: FilterLevels | None
    num_bytes: int
    options: tuple[Form, ...]
    reason: str
    has_codes: bool = False
    dear: bool = False

    def best(self) -> Form | None:
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
    matrix = filters_first(array, weight.axis)
    options = _options(FLOAT_FORMS, Values(weight, array, matrix, levels, codes))
    return Plan(weight, levels, array.nbytes, options, "", codes is not None)


def _options(classes: Sequence[type[Form]], values: Values) -> tuple[Form, ...]:
    forms = [form.of(values) for form in classes]
    return tuple(form for form in forms if form is not None)


def allowed(plan: Plan, forms: Sequence[str]) -> Plan:
    """Returns a plan with the forms that a file may have.

    A quantized kernel without any of them is packed in a form that every runtime
    takes: learned levels are not multiples of one number.

    Args:
        plan: Of `float_plan`.
        forms: Names of forms; none for float32 weights.
    """
    levels = plan.levels
    if not forms:
        reason = "the target keeps float32 weights"
        return dataclasses.replace(plan, options=(), reason=plan.reason or reason)
    if plan.reason or levels is None:
        return plan
    options = tuple(x for x in plan.options if x.name in forms)
    if not options and plan.weight.kernel is not None:
        options = tuple(x for x in plan.options if x.name in PACKED_FORMS)
    packed = PackedLevels.name in forms
    other_axis = packed and plan.weight.axis != 0
    reason = ""
    if not options:
        reason = f"{levels.num_levels} values a filter"
        if other_axis:
            reason += f"; {OTHER_AXIS}"
        elif levels.num_levels <= packing.MAX_LEVELS and not plan.has_codes:
            reason += ", not multiples of one number: only target 'small' holds them"
    elif other_axis and all(isinstance(x, Codes) for x in options):
        reason = OTHER_AXIS
    elif packed and levels.num_levels > packing.MAX_LEVELS and plan.has_codes:
        reason = f"more than {packing.MAX_LEVELS} levels"
    return dataclasses.replace(plan, options=options, reason=reason)


def int8_plan(file: TFLiteFile, weight: WeightTensor) -> Plan:
    """Returns the forms that the values of an int8 constant allow."""
    array = file.array(weight.tensor)
    if array is None or weight.type_name != "INT8":
        return _no_plan(weight, None, f"its type is {weight.type_name}")
    levels, reason = integer_levels(file, weight)
    if levels is None:
        return _no_plan(weight, None, reason)
    matrix = filters_first(array, weight.axis)
    options = _options(INT8_FORMS, Values(weight, array, matrix, levels))
    if not options:
        reason += f"; more than {packing.MAX_LEVELS} levels"
    return Plan(weight, levels, array.nbytes, options, reason)


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
