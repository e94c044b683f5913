"""Layers split along their output channels, so that less is decoded at a time.

A decoded kernel needs memory for as long as its operator runs. Split, a layer is
several operators, each with some of the filters, and a concatenation of what
they give. Each output value is computed as before, so the results are the same to the
bit. What decides which layers to split is in `arena_planning.py`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.micro.lookup_tables import Kernel
from keras_sq.export.tflite.flatbuffer import (
    TYPE_NAMES,
    TFLiteFile,
    Use,
    indices,
    shape_of,
)

MAX_CONCATENATED = 10
"""Most inputs of a concatenation in TensorFlow Lite Micro."""

MIN_CHANNELS = 2
"""Fewest channels of a part: with a single scale, other code would run."""

_BIAS = 2  # Position among the inputs, of both operators.


def obstacle(file: TFLiteFile, kernel: Kernel) -> str:
    """Returns why a kernel's layers cannot be split; empty if they can."""
    graph = file.subgraphs[kernel.graph]
    if kernel.axis not in (0, None):
        return "has its filters on the last axis"
    if kernel.shape[0] < 2 * MIN_CHANNELS:
        return "has too few filters to split"
    for use in kernel.uses:
        if use.name not in ("CONV_2D", "FULLY_CONNECTED"):
            return f"belongs to {use.name}, which is not split"
        inputs = indices(use.operator.inputs)
        if use.name == "CONV_2D":
            channels = shape_of(graph.tensors[inputs[0]])[-1]
            if kernel.shape[-1] != channels:
                return "belongs to a convolution in groups"
        bias = _bias(use)
        if bias is not None and file.data(graph.tensors[bias]) is None:
            return "belongs to a layer with a bias that is computed"
        (output,) = indices(use.operator.outputs)
        if shape_of(graph.tensors[output])[-1:] != kernel.shape[:1]:
            return "belongs to a layer that reshapes its output"
    return ""


def part_sizes(channels: int, most: int) -> tuple[int, ...]:
    """Returns how many channels each part has.

    As few parts as possible, all of one size but the last, for equal parts share
    their tables. The size is a multiple of 4, which fast code likes, where that
    costs no part.

    Args:
        channels: Of the layer, at least `2 * MIN_CHANNELS`.
        most: Channels of a part, at least `MIN_CHANNELS`.
    """
    parts = -(-channels // max(most, MIN_CHANNELS))
    if parts == 1:
        return (channels,)
    size = max(-(-channels // parts), MIN_CHANNELS)
    if -(-size // 4) * 4 <= most:
        size = -(-size // 4) * 4
    full, rest = divmod(channels, size)
    sizes = [size] * full + ([rest] if rest else [])
    if sizes[-1] < MIN_CHANNELS:
        sizes[-2:] = [sizes[-2] - 1, sizes[-1] + 1]
        if sizes[-2] < MIN_CHANNELS:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
    return tuple(sizes)


def split(file: TFLiteFile, kernel: Kernel, sizes: Sequence[int]) -> list[int]:
    """Splits the layers of a kernel.

    Args:
        file: The file, which is changed.
        kernel: One of its kernels, without `obstacle`.
        sizes: Channels of the parts.

    Returns:
        Indices of the parts of the kernel, in the same graph.
    """
    graph = file.subgraphs[kernel.graph]
    bounds = [0, *np.cumsum(sizes).tolist()]
    ranges = list(zip(bounds[:-1], bounds[1:], strict=True))
    # Before the tensors change, whose entries the first parts take over.
    biases = {bias for use in kernel.uses if (bias := _bias(use)) is not None}
    readers = file.uses(graph)
    here = {id(use.operator) for use in kernel.uses}
    slices = {
        index: _slices(
            file,
            graph,
            index,
            ranges,
            replace=all(id(use.operator) in here for use in readers[index]),
        )
        for index in (kernel.index, *sorted(biases))
    }
    for use in kernel.uses:
        place = next(i for i, x in enumerate(graph.operators) if x is use.operator)
        graph.operators[place : place + 1] = _parts(file, graph, use, slices, sizes)
    return slices[kernel.index]


def _bias(use: Use) -> int | None:
    inputs = indices(use.operator.inputs)
    return inputs[_BIAS] if len(inputs) > _BIAS and inputs[_BIAS] >= 0 else None


def _slices(
    file: TFLiteFile,
    graph: Any,
    index: int,
    ranges: Sequence[tuple[int, int]],
    replace: bool,
) -> list[int]:
    """Adds the parts of a constant along its first axis; returns their indices."""
    tensor = graph.tensors[index]
    values = file.array(tensor)
    assert values is not None
    channels = len(values)
    parts = []
    for number, (start, stop) in enumerate(ranges):
        part = copy.copy(tensor)
        part.buffer = file.add_buffer(values[start:stop])
        part.shape = np.asarray((stop - start, *values.shape[1:]), np.int32)
        part.shapeSignature = None
        part.quantization = _sliced(tensor.quantization, start, stop, channels)
        if number == 0 and replace:
            graph.tensors[index] = part
            parts.append(index)
        else:
            if number > 0:
                part.name = None
            graph.tensors.append(part)
            parts.append(len(graph.tensors) - 1)
    return parts


def _sliced(quantization: Any, start: int, stop: int, channels: int) -> Any:
    """Returns the quantization of some channels of a tensor."""
    part = copy.copy(quantization)
    for field in ("scale", "zeroPoint", "min", "max"):
        values = getattr(quantization, field, None)
        if values is not None and len(values) == channels > 1:
            setattr(part, field, np.asarray(values)[start:stop].copy())
    return part


def _parts(
    file: TFLiteFile,
    graph: Any,
    use: Use,
    slices: dict[int, list[int]],
    sizes: Sequence[int],
) -> list[Any]:
    """Returns the operators that take the place of one."""
    (output,) = indices(use.operator.outputs)
    items = []
    for number, size in enumerate(sizes):
        part = copy.copy(use.operator)
        inputs = indices(part.inputs)
        # A kernel or bias is replaced where it stands; other inputs stay.
        part.inputs = np.asarray(
            [
                slices[index][number] if position and index in slices else index
                for position, index in enumerate(inputs)
            ],
            np.int32,
        )
        piece = _like_output(file, graph, output, size)
        part.outputs = np.asarray([piece], np.int32)
        items.append(([part], piece, size))
    while len(items) > MAX_CONCATENATED:
        items = [
            _joined(file, graph, items[start : start + MAX_CONCATENATED], output, None)
            for start in range(0, len(items), MAX_CONCATENATED)
        ]
    return _joined(file, graph, items, output, output)[0]


def _joined(
    file: TFLiteFile,
    graph: Any,
    items: Sequence[tuple[list[Any], int, int]],
    output: int,
    into: int | None,
) -> tuple[list[Any], int, int]:
    """Concatenates pieces of an output, in a new tensor or `into` a given one.

    The concatenation follows its pieces at once, so that they soon need no memory.
    """
    if len(items) == 1:
        return items[0]
    channels = sum(size for _, _, size in items)
    target = into
    if target is None:
        target = _like_output(file, graph, output, channels)
    options = schema.ConcatenationOptionsT()
    options.axis = len(shape_of(graph.tensors[output])) - 1
    join = file.new_operator(
        "CONCATENATION", [piece for _, piece, _ in items], [target], options, 2
    )
    operators = [operator for before, _, _ in items for operator in before]
    return [*operators, join], target, channels


def _like_output(file: TFLiteFile, graph: Any, output: int, channels: int) -> int:
    tensor = graph.tensors[output]
    shape = (*shape_of(tensor)[:-1], channels)
    kind = TYPE_NAMES[tensor.type]
    return file.add_tensor(graph, "", shape, kind, None, tensor.quantization)
