"""Which weights a file holds as bits, and why it does not hold others so."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from flatbuffers import flexbuffers

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core.types import Model
from keras_sq.export.lce import signs
from keras_sq.export.report import KernelReport
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices, shape_of
from keras_sq.export.tflite.levels import filter_levels, filters_first
from keras_sq.export.tflite.matching import kernel_paths
from keras_sq.export.tflite.weights import WeightTensor
from keras_sq.layers import layer_paths

CONVOLUTION = "LceBconv2d"
"""The operator; its inputs: signs, weights, and by filter factors, biases, thresholds.
"""

STORED_AS = "1-bit words"
"""What reports call weights of which 32 share an int32 number."""

OTHERS = {
    "FULLY_CONNECTED": "dense layers",
    "BATCH_MATMUL": "dense layers",
    "DEPTHWISE_CONV_2D": "depthwise convolutions",
    "TRANSPOSE_CONV": "transposed convolutions",
}
"""Operators that take weights and have no counterpart on bits."""


@dataclasses.dataclass
class _Packed:
    """Weights of binary convolutions, read by one operator or several."""

    tensor: Any
    channels: int
    num_bytes: int


def reports(file: TFLiteFile, codes: Mapping[str, KernelCodes]) -> list[KernelReport]:
    """Returns the weights of the binary convolutions, as the file holds them.

    Args:
        file: The file.
        codes: Path of a quantized kernel -> its codes.
    """
    packed: dict[int, _Packed] = {}
    for graph in file.subgraphs:
        for operator in graph.operators:
            if file.operator_name(operator) != CONVOLUTION:
                continue
            _, place, *rest = indices(operator.inputs)
            weights = graph.tensors[place]
            others = [graph.tensors[index] for index in rest if index >= 0]
            channels = _options(operator)["channels_in"]
            entry = packed.setdefault(
                weights.buffer, _Packed(weights, channels, _num_bytes(file, weights))
            )
            entry.num_bytes += sum(_num_bytes(file, x) for x in others)
    arrays = [_unpacked(file, entry) for entry in packed.values()]
    paths = kernel_paths([filters_first(array, 0) for array in arrays], codes)
    return [
        KernelReport(
            path=path or (entry.tensor.name or b"").decode(),
            weights=array.size,
            levels=2,
            stored_as=STORED_AS,
            num_bytes=entry.num_bytes,
            quantized=path is not None,
            reason=_words(entry.channels),
        )
        for entry, array, path in zip(packed.values(), arrays, paths, strict=True)
    ]


def _num_bytes(file: TFLiteFile, tensor: Any) -> int:
    data = file.data(tensor)
    return 0 if data is None else len(data)


def _unpacked(file: TFLiteFile, entry: _Packed) -> np.ndarray[Any, Any]:
    words = file.array(entry.tensor)
    assert words is not None  # Weights of such a convolution are constants.
    return signs.unpacked(words, entry.channels)


def _words(channels: int) -> str:
    reason = "all its inputs are signs"
    if channels % signs.WORD:
        reason += f"; {channels} channels, in words of {signs.WORD}"
    return reason


def with_layer(file: TFLiteFile, weight: WeightTensor, model: Model) -> WeightTensor:
    """Returns a float weight tensor with the path of its layer as the name.

    By its values, if the converter gave it a name of its own: those of dense layers
    it does not change.
    """
    array = file.array(weight.tensor)
    if weight.kernel or not weight.name.startswith("arith.") or array is None:
        return weight
    values = np.sort(array, axis=None)
    for path, layer in layer_paths(model):
        for variable in layer.weights:
            if math.prod(variable.shape) == values.size and np.array_equal(
                np.sort(keras.ops.convert_to_numpy(variable), axis=None), values
            ):
                return dataclasses.replace(weight, name=path)
    return weight


def has_groups(file: TFLiteFile) -> bool:
    """Whether there is a binary convolution with groups."""
    return any(
        _options(operator)["channels_in"]
        > signs.WORD * shape_of(graph.tensors[indices(operator.inputs)[1]])[-1]
        for graph in file.subgraphs
        for operator in graph.operators
        if file.operator_name(operator) == CONVOLUTION
    )


def _options(operator: Any) -> Any:
    return flexbuffers.Loads(bytes(operator.customOptions))


def why_float(file: TFLiteFile, weight: WeightTensor) -> str:
    """Returns why weights are not held as bits."""
    for name in weight.operators:
        if name in OTHERS:
            return f"Larq Compute Engine has no {OTHERS[name]} on bits"
        if name != "CONV_2D":
            return "Larq Compute Engine computes on bits in Conv2D only"
    array = file.array(weight.tensor)
    if array is None or not _is_binary(filters_first(array, weight.axis)):
        return "its weights are not binary"
    for operator in weight.subgraph.operators:
        places = indices(operator.inputs)
        if places[1:2] == [weight.index]:
            channels = shape_of(weight.subgraph.tensors[places[0]])[-1]
            if channels != weight.shape[-1]:
                return "grouped convolutions are not computed on bits"
    return "it does not read binary activations directly"


def _is_binary(matrix: np.ndarray[Any, Any]) -> bool:
    levels = filter_levels(np.abs(matrix), 1)
    return levels is not None and bool(np.all(levels.values > 0))


def with_reason(report: KernelReport, reason: str) -> KernelReport:
    """Returns the report of a quantized kernel with a reason before its own."""
    if not report.quantized:
        return report
    last = f"; {report.reason}" if report.reason else ""
    return dataclasses.replace(report, reason=reason + last)
