"""Operators of int8 files whose operands have the scale of their result.

TensorFlow's quantization gives MAXIMUM, MINIMUM and SELECT one scale for all that they
read and give: that of the range of the result. Operands are clipped to it. The result
is right all the same, but what else reads an operand is not: of
`maximum(x, 0.1 * x)`, the product would be that of an `x` cut off at the least result.
Other operators copy int8 numbers, but get scales that differ: REVERSE_V2 where a range
was measured too wide (the sum behind it may use its memory), ONE_HOT always.
"""

from typing import Any

import numpy as np

from keras_sq.export.activations.ranges import ORDER_PRESERVING, set_range
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, indices

CHOOSING = ("MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2")
"""Operators whose result is one operand or another."""

MOVING = (
    *ORDER_PRESERVING,
    "BROADCAST_TO",
    "GATHER",
    "REDUCE_MAX",
    "REDUCE_MIN",
    "RESIZE_NEAREST_NEIGHBOR",
    "REVERSE_V2",
    "SLICE",
    "STRIDED_SLICE",
    "TILE",
)
"""Operators that hand the scale of their result on to their first operand."""

COMPARING = ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
"""Operators that give the same of a clipped operand, compared with 0."""


def clipped(content: bytes) -> bool:
    """Whether a file, of floats or of int8, has operands clipped for other readers."""
    file = TFLiteFile(content)
    return any(_groups(file, subgraph) for subgraph in file.subgraphs)


def joined(content: bytes) -> bytes:
    """Returns a calibrated float file in which no operand is clipped.

    Operands that others read, and the results, get the range that holds both.

    Args:
        content: A float file with the measured ranges of its tensors. It is returned
            itself if no operand reaches beyond its result.
    """
    file = TFLiteFile(content)
    wider = False
    for subgraph in file.subgraphs:
        groups = _groups(file, subgraph)
        changed = True
        while changed:
            changed = False
            for group in groups:
                limits = {
                    index: span
                    for index in group
                    if (span := _range(subgraph.tensors[index])) is not None
                }
                if not limits:
                    continue
                low = min(limit[0] for limit in limits.values())
                high = max(limit[1] for limit in limits.values())
                for index in group:
                    if limits.get(index) != (low, high):
                        set_range(subgraph.tensors[index], low, high)
                        changed = True
                # The last one is that whose range TensorFlow would take.
                wider = wider or limits.get(group[-1]) != (low, high)
    return file.pack() if wider else content


def with_one_hot_codes(content: bytes) -> bytes:
    """Returns an int8 file in which the constants of ONE_HOT have the output's scale.

    The operator copies them, whatever scale each has.
    """
    file = TFLiteFile(content)
    changed = False
    for subgraph in file.subgraphs:
        for operator in list(subgraph.operators):
            if file.operator_name(operator) != "ONE_HOT":
                continue
            output = subgraph.tensors[indices(operator.outputs)[0]]
            wanted = _codes(output)
            for place in (2, 3):
                index = indices(operator.inputs)[place]
                tensor = subgraph.tensors[index]
                codes, values = _codes(tensor), file.array(tensor)
                if None in (wanted, codes) or values is None or codes == wanted:
                    continue
                assert wanted is not None and codes is not None  # See above.
                exact = (values.astype("f8") - codes[1]) * codes[0] / wanted[0]
                rounded = np.clip(np.round(exact) + wanted[1], -128, 127).astype("i1")
                name = (tensor.name or b"").decode()
                # Other operators may read the constant.
                operator.inputs = np.array(operator.inputs)
                operator.inputs[place] = file.add_tensor(
                    subgraph, name, rounded.shape, "INT8", rounded, output.quantization
                )
                changed = True
    return file.pack() if changed else content


def _groups(file: TFLiteFile, subgraph: Any) -> list[list[int]]:
    """Returns the tensors that must have one range, those of each operator together.

    Only where others read an operand, or it has to have the range of another group.
    """
    uses = file.uses(subgraph)
    outputs = set(indices(subgraph.outputs))
    producers: dict[int, Any] = {}
    groups: list[list[int]] = []
    joint: set[int] = set()
    for operator in subgraph.operators:  # Each one after those that it reads from.
        producers.update((index, operator) for index in indices(operator.outputs))
        name = file.operator_name(operator)
        if name == "REVERSE_V2" and _differ(subgraph, operator):
            group = [*indices(operator.outputs), indices(operator.inputs)[0]]
            groups.append(group)
            joint.update(group)
        if name not in CHOOSING:
            continue
        group = []
        for index in indices(operator.inputs):
            chain, reader, needed = list[int](), operator, False
            while _is_activation(file, subgraph.tensors[index]):
                chain.append(index)
                needed = needed or index in joint or index in outputs
                needed = needed or any(
                    use.operator is not reader
                    and not _tells_signs(file, subgraph, use.operator)
                    for use in uses[index]
                )
                reader = producers.get(index)
                if reader is None or file.operator_name(reader) not in MOVING:
                    break
                index = indices(reader.inputs)[0]
            if needed:
                group += chain
        if group:
            groups.append([*group, *indices(operator.outputs)])
            joint.update(groups[-1])
    return groups


def _is_activation(file: TFLiteFile, tensor: Any) -> bool:
    return tensor.type in (TYPES["FLOAT32"], TYPES["INT8"]) and (
        file.data(tensor) is None
    )


def _tells_signs(file: TFLiteFile, subgraph: Any, operator: Any) -> bool:
    """Whether an operator compares with 0, which is in every range."""
    if file.operator_name(operator) not in COMPARING:
        return False
    constants = [
        file.array(subgraph.tensors[index])
        for index in indices(operator.inputs)
        if file.data(subgraph.tensors[index]) is not None
    ]
    return bool(constants) and not any(np.any(x) for x in constants)


def _differ(subgraph: Any, operator: Any) -> bool:
    """Whether the input and the output of an operator differ in range or scale."""
    source = subgraph.tensors[indices(operator.inputs)[0]]
    output = subgraph.tensors[indices(operator.outputs)[0]]
    if source.type == TYPES["INT8"]:
        return _codes(source) != _codes(output)
    return _range(source) != _range(output)


def _codes(tensor: Any) -> tuple[float, int] | None:
    """Returns the scale and the zero point of an int8 tensor with one of each."""
    quantization = tensor.quantization
    if tensor.type != TYPES["INT8"] or quantization is None:
        return None
    if quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def _range(tensor: Any) -> tuple[float, float] | None:
    quantization = tensor.quantization
    if quantization is None or quantization.min is None or not len(quantization.min):
        return None
    return float(quantization.min[0]), float(quantization.max[0])
