"""Takes multiplications out of kernels that the converter folded into their rows.

A batch normalization (or any scale) before a layer multiplies what the kernel's rows
read. The converter likes to multiply it into the kernel, which then has another value
for each weight of a filter: no form but float32 holds it. Here the kernel is put back,
and what it reads is multiplied by the rows' factors: a MUL of the activations, as the
network had it. An offset stays where it was folded, in the bias.

Design note: **after the conversion, not before.** A model can be traced so that the
converter cannot fold (kernels as inputs, an operation between that it does not know).
But it does more than this with constant kernels: transposes them, folds what comes
after a layer into filters and biases, chooses operators. All that is wanted; only this
is not, and it can be undone exactly, as the quantized kernel is known.
"""

from collections.abc import Mapping

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core.types import Array
from keras_sq.export.tflite.flatbuffer import TFLiteFile, Use, shape_of
from keras_sq.export.tflite.row_scales import TOLERANCE
from keras_sq.export.tflite.weights import (
    WeightTensor,
    operator_axis,
    weight_tensors,
    with_kernels,
)

DATA_INPUTS = {
    "CONV_2D": 0,
    "CONV_3D": 0,
    "CONV_3D_TRANSPOSE": 2,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 2,
}
"""Operator -> which of its inputs its weights multiply, by the last axes."""


def without_row_scales(content: bytes, codes: Mapping[str, KernelCodes]) -> bytes:
    """Returns a float file whose quantized kernels have no factors in their rows.

    Args:
        content: The bytes of the file.
        codes: Path of a quantized kernel -> its codes.
    """
    file = TFLiteFile(content)
    file.share_constants()
    changed = False
    for entry in with_kernels(file, weight_tensors(file), codes):
        if entry.scales:
            changed |= _taken_out(file, entry)
    return file.pack() if changed else content


def _taken_out(file: TFLiteFile, entry: WeightTensor) -> bool:
    """Puts a kernel back, and the factors of its rows before; says whether it did."""
    factors = _input_factors(entry)
    if factors is None or not entry.gains:
        return False
    readers = file.uses(entry.subgraph)[entry.index]
    places = [_data(entry, use, len(factors)) for use in readers]
    if None in places:
        return False
    values = np.concatenate(
        [scales.filters[:, np.newaxis] * scales.kernel for scales in entry.scales]
    ).astype(np.float32)
    others = [size for axis, size in enumerate(entry.shape) if axis != entry.axis]
    array = np.moveaxis(values.reshape(-1, *others), 0, entry.axis)
    entry.tensor.buffer = file.add_buffer(array.astype("<f4"))
    scaled: dict[int, int] = {}
    for use, place in zip(readers, places, strict=True):
        assert place is not None  # Checked above.
        source = int(use.operator.inputs[place])
        if source not in scaled:
            scaled[source] = _multiplied(file, entry, source, factors, use)
        use.operator.inputs[place] = scaled[source]
    return True


def _input_factors(entry: WeightTensor) -> Array | None:
    """Returns the factor of each input channel; `None` if it is none of a channel.

    Channels are on the last axis but of the kernel's own, in all operators.
    """
    if entry.axis == len(entry.shape) - 1:  # As of CONV_3D.
        channels = entry.shape[-2]
    else:
        channels = entry.shape[-1]
    factors = []
    for scales in entry.scales:
        rows = scales.rows.reshape(-1, channels)
        # 1 is also of rows of zeros, which have any factor.
        counts = np.maximum(np.count_nonzero(rows != 1.0, axis=0), 1)
        means = 1.0 + np.sum(np.where(rows == 1.0, 0.0, rows - 1.0), axis=0) / counts
        different = (rows != 1.0) & (np.abs(rows - means) > TOLERANCE * np.abs(means))
        if different.any():
            return None
        factors.append(means)
    return np.concatenate(factors)


def _data(entry: WeightTensor, use: Use, channels: int) -> int | None:
    """Returns which input the factors belong to; `None` if it cannot take them."""
    if operator_axis(use, len(entry.shape)) != entry.axis:
        return None  # The kernel is transposed.
    if use.name == "BATCH_MATMUL":
        adjoint = use.operator.builtinOptions
        place = 1 - use.position
        last = not adjoint.adjX if place == 0 else adjoint.adjY
        if not last:
            return None
    elif use.name in DATA_INPUTS:
        place = DATA_INPUTS[use.name]
    else:
        return None
    shape = shape_of(entry.subgraph.tensors[use.operator.inputs[place]])
    return None if _last_axes(shape, channels) is None else place


def _last_axes(shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Returns the last axes that hold so many values together."""
    for axes in range(1, len(shape) + 1):
        if np.prod(shape[-axes:]) == size:
            return shape[-axes:]
    return None


def _multiplied(
    file: TFLiteFile, entry: WeightTensor, source: int, factors: Array, before: Use
) -> int:
    """Returns a tensor that is another, times the factors of its last axes."""
    subgraph = entry.subgraph
    tensor = subgraph.tensors[source]
    shape = shape_of(tensor)
    axes = _last_axes(shape, len(factors))
    assert axes is not None  # Checked before.
    values = factors.astype("<f4")
    constant = file.add_tensor(subgraph, f"{entry.name}/rows", axes, "FLOAT32", values)
    product = file.add_tensor(subgraph, f"{entry.name}/scaled", shape, "FLOAT32")
    subgraph.tensors[product].shapeSignature = tensor.shapeSignature
    multiply = file.new_operator(
        "MUL", [source, constant], [product], schema.MulOptionsT()
    )
    place = next(i for i, x in enumerate(subgraph.operators) if x is before.operator)
    subgraph.operators = [
        *subgraph.operators[:place],
        multiply,
        *subgraph.operators[place:],
    ]
    return product
