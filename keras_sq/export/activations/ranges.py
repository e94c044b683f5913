"""The ranges of int8 tensors around quantized activations.

The converter measures the range of every tensor. For quantized activations other ones
are better: the levels have to be int8 numbers, if possible exactly, and where nothing
else reads the input of a quantizer, its 256 steps should lie between the thresholds.
Where levels are evenly spaced from 0, these steps are the levels: the operation before
rounds to them by itself.

Design note: **ranges, not scales.** Changed ranges go through the converter, which
makes scales, constants and biases of them; of a file already made of integers,
all these would have to be computed again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.activations.forms import Place, find
from keras_sq.export.activations.levels import ActivationLevels
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices

ORDER_PRESERVING = ("MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS")
"""Operators that only move values: a narrower range may as well hold before them."""

REQUANTIZING = (
    "ADD",
    "BATCH_MATMUL",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "MUL",
    "SUB",
    "TRANSPOSE_CONV",
)
"""Operators whose int8 output has any scale."""

SMALLEST_LIMIT = 1e-6
"""Ranges that reach no farther from 0 are of zeros."""

NOTHING = 1e-30
"""What stands for a limit of 0 in ranges that were measured is smaller."""

LARGEST_RATIO = 256
"""Step of the sums over that of the output that XNNPACK's kernels no longer take."""

STEP_OF_NOTHING = 1e-8
"""Steps up to here are those that TensorFlow gives a tensor of zeros."""

MARGIN = 1 / 32
"""What a range reaches beyond the thresholds, as a fraction of their span."""


def with_ranges(content: bytes, quantizers: Sequence[ActivationLevels]) -> bytes:
    """Returns a calibrated float file with the ranges that quantizers need.

    Args:
        content: A float file with the measured ranges of its tensors.
        quantizers: Of the model.
    """
    file = TFLiteFile(content)
    places = find(file, quantizers)
    _give_nothing_a_range(file, SMALLEST_LIMIT)
    for place in places:
        others = [x for x in places if x.subgraph is place.subgraph]
        others = [x for x in others if x.input == place.input]
        output = level_range(place.quantizers[0])
        chain = _movable(file, place, len({id(x.rank) for x in others}))
        levels = place.quantizers[0]
        tensors = place.subgraph.tensors
        if chain and levels.is_grid and len(others) == 1:
            step = float(levels.levels[-1]) / (len(levels.levels) - 1)
            limits = 0.0, 255 * step
        else:
            limits = _threshold_range(
                [x.quantizers[0].thresholds for x in others],
                tensors[place.input].quantization,
            )
        set_range(tensors[place.output], *output)
        for index in chain:
            set_range(tensors[index], *limits)
    return file.pack()


def widened(content: bytes, factors: Mapping[bytes, float]) -> bytes:
    """Returns a calibrated float file without ranges that are too narrow for kernels.

    Args:
        content: A float file with the measured ranges of its tensors.
        factors: Name of a tensor -> how many times as wide its range must be.
    """
    file = TFLiteFile(content)
    _give_nothing_a_range(file, NOTHING)
    for subgraph in file.subgraphs:
        wider = dict(factors)
        for operator in subgraph.operators:
            if file.operator_name(operator) not in ORDER_PRESERVING:
                continue
            factor = wider.get(subgraph.tensors[indices(operator.inputs)[0]].name)
            if factor is not None:
                output = subgraph.tensors[indices(operator.outputs)[0]]
                wider[output.name] = factor
        for tensor in subgraph.tensors:
            quantization, factor = tensor.quantization, wider.get(tensor.name)
            if factor is None or quantization is None or quantization.min is None:
                continue
            low, high = float(quantization.min[0]), float(quantization.max[0])
            set_range(tensor, factor * low, factor * high)
    return file.pack()


def too_fine(content: bytes) -> dict[bytes, float]:
    """Returns the tensors of an int8 file whose steps are too fine for its kernels.

    Sums in an operator have a step of their own: the product of those of its inputs.
    XNNPACK refuses a file in which it is `LARGEST_RATIO` times that of the output or
    more, and other kernels end the process, or give anything. So it is where a ReLU
    hardly ever opens.

    Returns:
        Name of a tensor -> how many times as wide its range must be; 1 for one that
        may never have been anything but 0.
    """
    file = TFLiteFile(content)
    factors: dict[bytes, float] = {}
    for subgraph in file.subgraphs:
        tensors = subgraph.tensors
        for operator in subgraph.operators:
            for index in indices(operator.outputs):
                if 0.0 < _step(tensors[index]) <= STEP_OF_NOTHING:
                    factors[tensors[index].name] = 1.0
            name = file.operator_name(operator)
            output = tensors[indices(operator.outputs)[0]]
            step = _step(output)
            if name not in REQUANTIZING or not step:
                continue
            # The first input of a transposed convolution is a shape.
            places = indices(operator.inputs)[1 if name == "TRANSPOSE_CONV" else 0 :]
            steps = [_step(tensors[index]) for index in places[:2]]
            sums = max(steps) if name in ("ADD", "SUB") else steps[0] * steps[1]
            if sums / step >= LARGEST_RATIO:
                factors[output.name] = 2 * sums / step / LARGEST_RATIO
    return factors


def _step(tensor: Any) -> float:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return 0.0
    return float(np.max(quantization.scale, initial=0.0))


def _give_nothing_a_range(file: TFLiteFile, limit: float) -> None:
    for subgraph in file.subgraphs:
        for tensor in subgraph.tensors:
            if _is_nothing(tensor.quantization, limit):
                set_range(tensor, 0.0, 1.0)


def level_range(quantizer: ActivationLevels) -> tuple[float, float]:
    """Returns the range whose 256 steps hold the levels best, with 0 among them."""
    low, high = float(quantizer.levels[0]), float(quantizer.levels[-1])
    if quantizer.is_grid:
        return 0.0, 255 * high / (len(quantizer.levels) - 1)
    if low == high == 0.0:  # A codebook that collapsed.
        return 0.0, 1.0
    if low == -high:
        return -high * 128 / 127, high
    return min(low, 0.0), max(high, 0.0)


def _threshold_range(thresholds: Sequence[Array], measured: Any) -> tuple[float, float]:
    """Returns the range in which an input is told apart, with 0 in it."""
    joined = np.concatenate([[0.0], *thresholds])
    joined = joined[joined < np.finfo(np.float32).max]  # Levels never reached.
    low, high = float(joined.min()), float(joined.max())
    margin = MARGIN * (high - low)
    if margin == 0.0:
        limits = [0.0] if measured is None else [*measured.min, *measured.max]
        margin = MARGIN * max(float(np.max(np.abs(limits))), 1e-3)
    return low - margin, high + margin


def _movable(file: TFLiteFile, place: Place, readers: int) -> list[int]:
    """Returns the tensors up to the operation before, if their range is free.

    That is, if nothing reads them but so many quantizers.
    """
    subgraph = place.subgraph
    uses = file.uses(subgraph)
    producers = {
        index: operator
        for operator in subgraph.operators
        for index in indices(operator.outputs)
    }
    index, chain = place.input, [place.input]
    while True:
        if len(uses[index]) > readers or index in indices(subgraph.outputs):
            return []
        operator = producers.get(index)
        name = "" if operator is None else file.operator_name(operator)
        if name in REQUANTIZING:
            return chain
        if operator is None or name not in ORDER_PRESERVING:
            return []
        readers, index = 1, indices(operator.inputs)[0]
        chain.append(index)


def _is_nothing(quantization: Any, limit: float) -> bool:
    """Whether only zeros were measured: a layer that is never above 0.

    Steps made of such a range are so small that XNNPACK refuses the file.
    """
    if quantization is None or quantization.min is None or quantization.max is None:
        return False
    limits = [*quantization.min, *quantization.max]
    return bool(limits) and float(np.max(np.abs(limits))) < limit


def set_range(tensor: Any, low: float, high: float) -> None:
    """Gives a tensor of a calibrated float file a range."""
    quantization = tensor.quantization or schema.QuantizationParametersT()
    quantization.min = np.array([low], np.float32)
    quantization.max = np.array([high], np.float32)
    tensor.quantization = quantization
