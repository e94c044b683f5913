"""How a file holds quantized activations, and putting them into integer forms.

The converter makes two operators of each: BUCKETIZE, with the thresholds, and
GATHER, from a table of the levels. In a file of int8 activations it leaves the
first one float, with a DEQUANTIZE before. There, a table of all 256 int8 inputs
takes its place:

| form | operators | when |
|---|---|---|
| float levels | BUCKETIZE, GATHER | activations are float32 |
| integer grid | MINIMUM, after a MUL by 1 where the input has other steps | levels \
are the multiples of a step from 0 on |
| signs | MUL, ADD with an activation that cuts off at -1 and 1 | levels are -1 and 1 |
| table | CAST, ADD, GATHER | else |

Design note: **MUL, not QUANTIZE**, to bring an int8 tensor to other steps: XNNPACK
does the latter with a factor of eight binary places (to steps 30 times as large, 68
of the 256 codes came out wrong). And not a table, if it can be avoided: its operators
need eight bytes of memory an activation, for want of a GATHER by int8.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.activations.levels import (
    FLOAT_LEVELS,
    GRID,
    NODE_NAME,
    SIGNS,
    TABLE,
    ActivationLevels,
    StoredActivations,
)
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TYPES, TFLiteFile, indices


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a file quantizes activations.

    Attributes:
        subgraph: The graph.
        rank: The BUCKETIZE operator.
        gather: The GATHER operator.
        quantizers: Whose levels these are; several if they are the same.
    """

    subgraph: Any
    rank: Any
    gather: Any
    quantizers: tuple[ActivationLevels, ...]

    @property
    def input(self) -> int:
        """The tensor of activations."""
        return indices(self.rank.inputs)[0]

    @property
    def output(self) -> int:
        """The tensor of quantized activations."""
        return indices(self.gather.outputs)[0]


def find(file: TFLiteFile, quantizers: Sequence[ActivationLevels]) -> list[Place]:
    """Returns where a file quantizes activations.

    A place is known by its thresholds; its levels are compared elsewhere. Equal
    thresholds are told apart by the name of the node; where the converter merged
    operators, one of the names is left.
    """
    places: list[tuple[Place, list[ActivationLevels]]] = []
    for subgraph in file.subgraphs:
        uses = file.uses(subgraph)
        for operator in subgraph.operators:
            if file.operator_name(operator) != "BUCKETIZE":
                continue
            boundaries = np.asarray(operator.builtinOptions.boundaries, np.float32)
            same = [x for x in quantizers if np.array_equal(x.thresholds, boundaries)]
            (ranks,) = indices(operator.outputs)
            name = (subgraph.tensors[ranks].name or b"").decode()
            numbers = {int(x) for x in re.findall(rf"{NODE_NAME}(\d+)", name)}
            named = [x for x in same if x.number in numbers]
            for use in uses.get(ranks, []):
                if use.name == "GATHER" and use.position == 1 and same:
                    place = Place(subgraph, operator, use.operator, tuple(named))
                    places.append((place, same))
    named_anywhere = {id(x) for place, _ in places for x in place.quantizers}
    return [
        dataclasses.replace(
            place,
            quantizers=tuple(
                x
                for x in same
                if x in place.quantizers
                or id(x) not in named_anywhere
                or not place.quantizers
            ),
        )
        for place, same in places
    ]


def float_forms(
    file: TFLiteFile, quantizers: Sequence[ActivationLevels]
) -> list[StoredActivations]:
    """Returns how a file of float activations holds the quantized ones."""
    return [
        StoredActivations(
            place.quantizers,
            _index(file.subgraphs, place.subgraph),
            place.input,
            place.output,
            FLOAT_LEVELS,
            "exact; activations are float32",
        )
        for place in find(file, quantizers)
    ]


def without_quantizers(content: bytes, quantizers: Sequence[ActivationLevels]) -> bytes:
    """Returns a float file whose activations pass as they are: to check the rest."""
    file = TFLiteFile(content)
    for place in find(file, quantizers):
        x = place.input
        same = file.new_operator(
            "MAXIMUM", [x, x], [place.output], schema.MaximumMinimumOptionsT()
        )
        operators = place.subgraph.operators
        operators[_index(operators, place.gather)] = same
        if any(entry is place.rank for entry in operators):
            del operators[_index(operators, place.rank)]
    return file.pack()


# Integers.


def integer_forms(
    content: bytes, quantizers: Sequence[ActivationLevels]
) -> tuple[bytes, list[StoredActivations]]:
    """Returns an int8 file that quantizes activations on integers.

    A table computes what the operators before do, to the bit; on a grid, halves may
    be rounded to the other side.

    Args:
        content: The file as the converter makes it of `with_ranges`.
        quantizers: Of the model.

    Returns:
        The file, and how it holds each place.
    """
    file = TFLiteFile(content)
    entries = [_to_integers(file, place) for place in find(file, quantizers)]
    for graph in file.subgraphs:
        _drop_unused_tensors(file, graph)
    return file.pack(), [entry.stored(file) for entry in entries]


@dataclasses.dataclass(frozen=True)
class _IntegerPlace:
    """A place in an integer form, while tensors may still move."""

    place: Place
    input: Any
    output: Any
    stored_as: str
    reason: str

    def stored(self, file: TFLiteFile) -> StoredActivations:
        graph = self.place.subgraph
        return StoredActivations(
            self.place.quantizers,
            _index(file.subgraphs, graph),
            _index(graph.tensors, self.input),
            _index(graph.tensors, self.output),
            self.stored_as,
            self.reason,
        )


def _to_integers(file: TFLiteFile, place: Place) -> _IntegerPlace:
    graph = place.subgraph
    tensors, operators = graph.tensors, graph.operators
    before = next(
        (x for x in operators if place.input in indices(x.outputs)),
        None,
    )
    levels = file.array(tensors[indices(place.gather.inputs)[0]])
    if (
        before is None
        or file.operator_name(before) != "DEQUANTIZE"
        or TYPE_NAMES[tensors[indices(before.inputs)[0]].type] != "INT8"
        or levels is None
        or levels.dtype != np.int8
    ):
        why = "exact; what follows has no int8 form"
        if levels is not None and levels.dtype == np.int8:
            why = f"of a float32 input; {_accuracy(place, levels)}"
        ends = tensors[place.input], tensors[place.output]
        return _IntegerPlace(place, *ends, FLOAT_LEVELS, why)
    (source,) = indices(before.inputs)
    quantizer = place.quantizers[0]
    if quantizer.is_grid and _params(tensors[place.output])[1] == -128:
        form, new = GRID, _on_grid(file, place, source, levels)
        reason = f"codes 0 to {len(quantizer.levels) - 1}, in steps of the levels"
        if len(new) > 1:
            reason += f", from an input in steps of {_params(tensors[source])[0]:.3g}"
    elif quantizer.is_sign:
        form, new = SIGNS, _signs(file, place, source)
        reason = f"exact, of an input in steps of {_params(tensors[source])[0]:.3g}"
    else:
        form, new = TABLE, _look_up(file, place, source, levels)
        reason = (
            f"of an input in steps of {_params(tensors[source])[0]:.3g}; "
            f"{_accuracy(place, levels)}"
        )
    at = _index(operators, place.gather)
    operators[at : at + 1] = new
    _drop_unread(file, graph, place.rank)
    _drop_unread(file, graph, before)
    return _IntegerPlace(place, tensors[source], tensors[place.output], form, reason)


def _on_grid(file: TFLiteFile, place: Place, source: int, levels: Array) -> list[Any]:
    """Returns operators that round an int8 tensor to multiples of a step."""
    graph = place.subgraph
    grid = graph.tensors[place.output].quantization
    new = []
    if _params(graph.tensors[source]) != _params(graph.tensors[place.output]):
        rounded = _like(file, graph, source, "INT8", grid)
        new.append(_product(file, graph, source, 1.0, rounded))
        source = rounded
    top = file.add_tensor(graph, "", (), "INT8", np.array(levels.max(), np.int8), grid)
    options = schema.MaximumMinimumOptionsT()
    new.append(file.new_operator("MINIMUM", [source, top], [place.output], options, 2))
    return new


def _signs(file: TFLiteFile, place: Place, source: int) -> list[Any]:
    """Returns operators that give the signs of an int8 tensor, and 1 for 0.

    Of n steps they make 2 n, which may saturate, then 2 n + 1, cut off at -1 and 1.
    """
    graph = place.subgraph
    doubled = _like(file, graph, source, "INT8", _quantization(1.0))
    step = _params(graph.tensors[source])[0]
    one = file.add_tensor(
        graph, "", (), "INT8", np.array(127, np.int8), _quantization(1 / 127)
    )
    options = schema.AddOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU_N1_TO_1
    return [
        _product(file, graph, source, 2 / step, doubled),
        file.new_operator("ADD", [doubled, one], [place.output], options, 2),
    ]


def _product(
    file: TFLiteFile, graph: Any, source: int, factor: float, target: int
) -> Any:
    constant = file.add_tensor(
        graph, "", (), "INT8", np.array(127, np.int8), _quantization(factor / 127)
    )
    options = schema.MulOptionsT()
    return file.new_operator("MUL", [source, constant], [target], options, 2)


def _quantization(scale: float, zero_point: int = 0) -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.array([scale], np.float32)
    quantization.zeroPoint = np.array([zero_point], np.int64)
    return quantization


def _params(tensor: Any) -> tuple[float, int]:
    """Returns scale and zero point of an int8 tensor."""
    return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def _like(
    file: TFLiteFile, graph: Any, source: int, type_name: str, quantization: Any = None
) -> int:
    """Adds a tensor with the shape of another one."""
    shape = graph.tensors[source].shape
    index = file.add_tensor(graph, "", shape, type_name, None, quantization)
    graph.tensors[index].shapeSignature = graph.tensors[source].shapeSignature
    return index


def _look_up(file: TFLiteFile, place: Place, source: int, levels: Array) -> list[Any]:
    """Returns operators that take the levels of an int8 tensor from a table."""
    graph = place.subgraph
    scale, zero = _params(graph.tensors[source])
    values = ((np.arange(-128, 128) - zero) * scale).astype(np.float32)
    thresholds = place.quantizers[0].thresholds
    table = levels[np.searchsorted(thresholds, values, side="right")]
    wide = _like(file, graph, source, "INT32")
    ranks = _like(file, graph, source, "INT32")
    shift = file.add_tensor(graph, "", (), "INT32", np.array(128, np.int32))
    quantization = graph.tensors[place.output].quantization
    rows = file.add_tensor(graph, "", table.shape, "INT8", table, quantization)
    cast = schema.CastOptionsT()
    cast.inDataType, cast.outDataType = TYPES["INT8"], TYPES["INT32"]
    options = schema.GatherOptionsT()
    return [
        file.new_operator("CAST", [source], [wide], cast),
        file.new_operator("ADD", [wide, shift], [ranks], schema.AddOptionsT()),
        file.new_operator("GATHER", [rows, ranks], [place.output], options, 2),
    ]


def _accuracy(place: Place, codes: Array) -> str:
    """Returns how well int8 codes hold the levels, in words."""
    scale, zero = _params(place.subgraph.tensors[place.output])
    values = (codes.astype("f8") - zero) * scale
    levels = place.quantizers[0].levels
    error = np.max(np.abs(values - levels)) / np.max(np.abs(levels), initial=1e-30)
    return "levels exact" if error < 1e-6 else f"levels to {error:.1g} of the largest"


def _drop_unread(file: TFLiteFile, graph: Any, operator: Any) -> None:
    if not any(file.uses(graph).get(index) for index in indices(operator.outputs)):
        if any(entry is operator for entry in graph.operators):
            del graph.operators[_index(graph.operators, operator)]


def _drop_unused_tensors(file: TFLiteFile, graph: Any) -> None:
    """Drops what nothing refers to: microcontrollers reserve memory for it."""
    signatures = [
        entry
        for definition in file.model.signatureDefs or []
        if definition.subgraphIndex == _index(file.subgraphs, graph)
        for entry in [*(definition.inputs or []), *(definition.outputs or [])]
    ]
    fields = [(graph, "inputs"), (graph, "outputs")] + [
        (operator, name)
        for operator in graph.operators
        for name in ("inputs", "outputs", "intermediates")
    ]
    used = {entry.tensorIndex for entry in signatures}
    for holder, name in fields:
        used.update(index for index in indices(getattr(holder, name)) if index >= 0)
    places = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in sorted(used)]
    for holder, name in fields:
        if getattr(holder, name) is not None:
            new = [places[index] for index in indices(getattr(holder, name))]
            setattr(holder, name, np.asarray(new, np.int32))
    for entry in signatures:
        entry.tensorIndex = places[entry.tensorIndex]


def _index(entries: Sequence[Any], wanted: Any) -> int:
    """Returns the place of an object."""
    return next(i for i, entry in enumerate(entries) if entry is wanted)
