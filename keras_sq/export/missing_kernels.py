"""Quantized kernels that a file holds as float32, or does not seem to hold.

A row for each kernel, so that no kernel gets lost without a word, and no constant is
counted twice; and the error that says so.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.export.errors import ExportError
from keras_sq.export.report import KernelReport
from keras_sq.export.request import Request
from keras_sq.export.tflite.matching import filter_axes
from keras_sq.export.tflite.plans import ROWS_SCALED, TOO_SMALL
from keras_sq.export.tflite.weights import WORTHWHILE

NOT_THERE = "not there"
"""How reports call it where no constant of a file can be the kernel."""

PART = 16
"""A constant of a kernel's weights over this may be a part of it."""


def with_missing(
    kernels: Sequence[KernelReport], request: Request
) -> tuple[KernelReport, ...]:
    """Returns the rows of a report in the model's order, with one for each kernel.

    Args:
        kernels: The rows of constants.
        request: What the file was made from.
    """
    rows = list(kernels)
    order = list(request.codes)
    present = {row.path for row in rows if row.quantized}
    for path in order:
        if path not in present:
            rows = _with_row(rows, path, request)
    return tuple(
        sorted(
            rows,
            key=lambda row: order.index(row.path) if row.quantized else len(order),
        )
    )


def _with_row(
    rows: list[KernelReport], path: str, request: Request
) -> list[KernelReport]:
    layer = path.rpartition("/")[0]
    kernel = request.codes[path]
    size = kernel.codes.size
    of_layer = [
        i for i, row in enumerate(rows) if not row.quantized and row.path == layer
    ]
    whole = [place for place in of_layer if rows[place].weights == size]
    if whole:
        how = "by the name of its constant"
        rows[whole[0]] = _named(rows[whole[0]], path, how, kernel)
        return rows
    places = _unexplained(rows, request)
    near = [place for place in places if PART * rows[place].weights >= size]
    if near:
        place = max(near, key=lambda i: (rows[i].weights == size, rows[i].weights))
        rows[place] = _named(rows[place], path, "by its size only", kernel)
        return rows
    reason = "no constant of the file has its values: the outputs do not need it"
    rows.append(KernelReport(path, size, None, NOT_THERE, 0, True, reason))
    return rows


def _named(row: KernelReport, path: str, how: str, kernel: KernelCodes) -> KernelReport:
    filters = math.prod(kernel.codes.shape[axis] for axis in filter_axes(kernel))
    # One filter is a multiple of any other, so its rows may hold whatever they do.
    if row.stored_as == "float32" and (filters == 1 or row.num_bytes < WORTHWHILE):
        how = f"{ROWS_SCALED}; {TOO_SMALL}"
    reason = "; ".join(filter(None, [row.reason, how]))
    return dataclasses.replace(row, path=path, quantized=True, reason=reason)


def _unexplained(rows: Sequence[KernelReport], request: Request) -> list[int]:
    """Returns the float constants of more weights than any variable is left with."""
    left = collections.Counter(
        math.prod(variable.shape) for variable in request.model.variables
    )
    left -= collections.Counter(kernel.codes.size for kernel in request.codes.values())
    places = []
    for place, row in enumerate(rows):
        if row.quantized or row.stored_as != "float32":
            continue
        if left[row.weights] > 0:
            left[row.weights] -= 1
        else:
            places.append(place)
    return places


def float_kernels(kernels: Sequence[KernelReport]) -> list[KernelReport]:
    """Returns the rows of quantized kernels that are float32 without need."""
    return [
        row
        for row in kernels
        if row.quantized and row.stored_as == "float32" and TOO_SMALL not in row.reason
    ]


def check(
    kernels: Sequence[KernelReport], target: str, allow_float_kernels: bool
) -> tuple[str, ...]:
    """Makes sure that a file holds no quantized kernel as float32.

    Args:
        kernels: The rows of the file's report.
        target: Its kind; files of "float" are to hold them as float32.
        allow_float_kernels: Whether to say so in a note instead.

    Returns:
        Notes for the report.

    Raises:
        ExportError: Naming the kernels.
    """
    rows = float_kernels(kernels) if target != "float" else []
    if not rows:
        return ()
    named = "; ".join(
        f"'{row.path}' ({row.weights:,} weights: {row.reason})" for row in rows[:3]
    )
    more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
    size = sum(row.num_bytes for row in rows)
    if allow_float_kernels:
        return (f"QUANTIZED KERNELS AS FLOAT32, {size:,} bytes: {named}{more}",)
    raise ExportError(
        f"Target '{target}' would store quantized kernels as float32, {size:,} bytes: "
        f"{named}{more}. Another target may hold them ('small' has most forms); or "
        "leave the layer out of quantization (`skip`), or pass "
        "`allow_float_kernels=True` to write the file as it is."
    )
