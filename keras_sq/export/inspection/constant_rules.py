"""What operators make of constants, worked out in NumPy.

Those that converters and this package put between a constant and the operator
that needs it. Chains of them are followed in `constant_values.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_sq.export.inspection.file_structure import Operator, Tensor
from keras_sq.export.tflite.flatbuffer import NUMPY_TYPES

Array = np.ndarray[Any, Any]


class UnknownValues(Exception):
    """Values that cannot be worked out; the message says why."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An operator at work.

    Attributes:
        operator: The operator.
        output: The tensor that it makes.
        values: Of the inputs that this output depends on.
        tensors: Of the same inputs.
    """

    operator: Operator
    output: Tensor
    values: Sequence[Array]
    tensors: Sequence[Tensor]


def apply_rule(step: Step) -> Array:
    """Returns what an operator makes.

    Raises:
        UnknownValues: If the operator is not known here, or does not fit.
    """
    name, shape = step.operator.name, step.output.shape
    if name not in _RULES:
        raise UnknownValues(f"made by {name}")
    if min(shape, default=0) < 0:
        raise UnknownValues(f"{name} gives an open shape")
    try:
        with np.errstate(all="ignore"):
            value = _RULES[name](step)
    # What NumPy says of settings and shapes that do not fit together.
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise UnknownValues(f"{name} does not fit its inputs") from error
    if value.shape != shape:
        raise UnknownValues(f"{name} gives another shape")
    return value


def _dequantize(step: Step) -> Array:
    (value,), (tensor,) = step.values, step.tensors
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    if tensor.unfit_scale or not len(tensor.scale):
        raise UnknownValues("by scales of another form")
    shape = [1] * value.ndim
    if len(tensor.scale) > 1:
        shape[tensor.axis] = -1
    scale = tensor.scale.reshape(shape)
    if value.shape != step.output.shape:
        raise UnknownValues("DEQUANTIZE gives another shape")
    shifted = value.astype(np.float32)
    if np.any(tensor.zero_point):
        shifted -= tensor.zero_point.reshape(shape)
    shifted *= scale
    return shifted


def _gather(step: Step) -> Array:
    table, indices = step.values
    axis, batch_dims = step.operator.setting(0), step.operator.setting(1)
    if indices.dtype.kind not in "iu":
        raise UnknownValues("GATHER by no integers")
    axis += table.ndim if axis < 0 else 0
    batch_dims += indices.ndim if batch_dims < 0 else 0
    shape = (*table.shape[:axis], *indices.shape[batch_dims:], *table.shape[axis + 1 :])
    if shape != step.output.shape:
        raise UnknownValues("GATHER gives another shape")
    if indices.size and int(indices.min()) < 0:
        raise UnknownValues("GATHER has an index outside its table")
    if not batch_dims:
        return np.take(table, indices, axis=axis)
    if batch_dims != 1 or len(table) != len(indices):
        raise UnknownValues("GATHER in an unusual form")
    result = np.empty(step.output.shape, table.dtype)
    # By filters, for NumPy's indices take eight bytes each.
    for row, table_row, index_row in zip(result, table, indices, strict=True):
        row[...] = np.take(table_row, index_row, axis=axis - 1)
    return result


def _reshape(step: Step) -> Array:
    return step.values[0].reshape(step.output.shape)


def _strided_slice(step: Step) -> Array:
    value, begin, end, strides = step.values
    masks = [step.operator.setting(field) for field in range(5)]
    if masks[2] or masks[3] or len(begin) > value.ndim:
        raise UnknownValues("STRIDED_SLICE in an unusual form")
    parts: list[Any] = []
    for axis, (first, last, by) in enumerate(zip(begin, end, strides, strict=True)):
        if masks[4] >> axis & 1:
            parts.append(int(first))
            continue
        start = None if masks[0] >> axis & 1 else int(first)
        stop = None if masks[1] >> axis & 1 else int(last)
        parts.append(slice(start, stop, int(by)))
    return np.asarray(value[tuple(parts)])


def _slice(step: Step) -> Array:
    value, begin, size = step.values
    return value[
        tuple(
            slice(int(first), None if count < 0 else int(first) + int(count))
            for first, count in zip(begin, size, strict=True)
        )
    ]


def _concatenation(step: Step) -> Array:
    axis = step.operator.setting(0)
    if math.prod(step.output.shape) != sum(value.size for value in step.values):
        raise UnknownValues("CONCATENATION gives another shape")
    return np.concatenate(step.values, axis=axis)


def _transpose(step: Step) -> Array:
    return np.transpose(step.values[0], step.values[1].tolist())


def _decode(step: Step) -> Array:
    """Looks up indices of 1 to 7 bits, the first highest, in one or more tables.

    The second tensor says how: byte 0 the kind (0: lookup), 1 and 4 versions, 5
    the channels' axis (15: one table for all) and the bits, 6 the length of a
    table; from 16 on, the tables.
    """
    indices, header = (value.view(np.uint8).reshape(-1) for value in step.values)
    bits = lookup_bits(header)
    if bits is None or step.output.type not in NUMPY_TYPES:
        raise UnknownValues("decoded in an unknown way")
    axis, length = int(header[5]) >> 4, int(header[6])
    tables = header[16:].view(NUMPY_TYPES[step.output.type])
    count = step.output.size
    digits = np.unpackbits(indices)[: count * bits].reshape(count, bits)
    places = np.zeros(count, np.uint8)
    for column in range(bits):
        places = 2 * places + digits[:, column]
    if count and int(places.max()) >= length:
        raise UnknownValues("TFLM_DECODE has an index outside its table")
    entries = places.reshape(step.output.shape).astype(np.intp)
    if axis != 15:
        shape = [1] * len(step.output.shape)
        shape[axis] = -1
        entries += length * np.arange(step.output.shape[axis]).reshape(shape)
    return np.take(tables, entries)


def lookup_bits(header: Array) -> int | None:
    """Returns the bits of an index in what TFLM_DECODE looks up.

    Args:
        header: The uint8 tensor that says how it is encoded.

    Returns:
        `None` if it is encoded in another way.
    """
    if len(header) < 16 or header[[0, 1, 4]].tolist() != [0, 1, 1]:
        return None
    return (int(header[5]) & 7) or None


_RULES: dict[str, Callable[[Step], Array]] = {
    "CONCATENATION": _concatenation,
    "DEQUANTIZE": _dequantize,
    "EXPAND_DIMS": _reshape,
    "GATHER": _gather,
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _strided_slice,
    "TFLM_DECODE": _decode,
    "TRANSPOSE": _transpose,
}
