"""Finds out what a TFLite file holds, whichever converter made it.

`read` and `parse` return `Contents`. The structure comes from
`file_structure.py`, values from `constant_values.py`.
"""

import collections
import os
import pathlib
import stat

import numpy as np

from keras_sq.core import memory_bounds
from keras_sq.export.inspection.constant_rules import UnknownValues, lookup_bits
from keras_sq.export.inspection.constant_values import (
    ConstantChains,
    LevelCounter,
    Work,
    storage_values,
)
from keras_sq.export.inspection.contents import (
    Constant,
    Contents,
    GraphContents,
    Interface,
    Signature,
    Weight,
)
from keras_sq.export.inspection.file_structure import (
    VALUE_BITS,
    FileStructure,
    Graph,
    Operator,
    Tensor,
    check_identifier,
    read_structure,
)
from keras_sq.export.inspection.metadata import embedded_report
from keras_sq.export.report import METADATA_NAME

# Operator -> position of a weight input -> channels' axis.
_WEIGHT_INPUTS: dict[str, dict[int, int]] = {
    "BATCH_MATMUL": {0: -2, 1: -1},
    "CONV_2D": {1: 0},
    "CONV_3D": {1: 4},
    "CONV_3D_TRANSPOSE": {1: 3},
    "DEPTHWISE_CONV_2D": {1: 3},
    "EMBEDDING_LOOKUP": {1: 0},
    "FULLY_CONNECTED": {1: 0},
    "GATHER": {0: 0},
    "RNN": {1: 0, 2: 0},
    "TRANSPOSE_CONV": {1: 0},
    "UNIDIRECTIONAL_SEQUENCE_LSTM": dict.fromkeys(range(1, 9), 0),
    "UNIDIRECTIONAL_SEQUENCE_RNN": {1: 0, 2: 0},
}


def read(path: str | os.PathLike[str]) -> Contents:
    """Reads a file.

    Args:
        path: Of the file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no TFLite file, or a damaged one.
    """
    file = pathlib.Path(path)
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"'{path}' is a directory, not a TFLite file.")
    if not stat.S_ISREG(mode):  # A device may never come to an end.
        raise ValueError(f"'{path}' is not a regular file.")
    try:
        return parse(_content(file))
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be inspected: {error}.") from error
    except MemoryError as error:
        raise ValueError(
            f"'{path}' cannot be inspected: it takes more memory than there is."
        ) from error


def _content(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_identifier(file.read(8))
        # The values of a constant are copied once, to be sorted.
        memory = memory_bounds.memory_bytes()
        if 2 * size > memory:
            raise ValueError(
                f"it has {size:,} bytes, more than half of the memory of this machine "
                f"({memory:,} bytes)"
            )
        file.seek(0)
        return file.read()


def parse(content: bytes) -> Contents:
    """Reads the content of a file.

    Args:
        content: Its bytes.

    Raises:
        ValueError: If they are those of no TFLite file, or of a damaged one.
    """
    structure = read_structure(content)
    levels = LevelCounter(Work(len(content)))
    readers: list[_GraphReader] = []
    first = 0
    for number, graph in enumerate(structure.graphs):
        readers.append(_GraphReader(number, graph, levels, first))
        first += len(readers[-1].constants)
    uses = collections.Counter(
        place for reader in readers for place in reader.constant_places()
    )
    weight_uses = collections.Counter(
        place for reader in readers for place in reader.weight_places()
    )
    constant_bytes = sum(size for _, size in uses)
    if constant_bytes > len(content):
        raise ValueError("it is damaged: its constants overlap")
    report, notes = embedded_report(structure.metadata.get(METADATA_NAME))
    constants = [entry for r in readers for entry in r.read_constants(uses)]
    weights = [entry for r in readers for entry in r.read_weights(weight_uses)]
    external = sum(t.external for graph in structure.graphs for t in graph.tensors)
    if external:
        notes.append(f"the values of {external} tensors are in another file")
    return Contents(
        num_bytes=structure.num_bytes,
        constant_bytes=constant_bytes,
        weight_bytes=sum(size for _, size in weight_uses)
        + sum(reader.weight_scale_bytes() for reader in readers),
        schema_version=structure.schema_version,
        description=structure.description,
        signatures=_signatures(structure),
        graphs=tuple(
            GraphContents(
                graph.name,
                len(graph.tensors),
                dict(collections.Counter(op.name for op in graph.operators)),
            )
            for graph in structure.graphs
        ),
        constants=tuple(constants),
        weights=tuple(weights),
        metadata={name: len(data) for name, data in structure.metadata.items()},
        report=report,
        notes=(*notes, *levels.notes()),
    )


_Place = tuple[int, int]  # Where bytes are in the file, and how many.


class _GraphReader:
    """Reads one graph.

    Args:
        number: Of the graph.
        graph: The graph.
        levels: To count levels with.
        first: How many constants the graphs before it have.

    Attributes:
        constants: Indices of the constant tensors.
    """

    def __init__(
        self, number: int, graph: Graph, levels: LevelCounter, first: int
    ) -> None:
        self._number = number
        self._graph = graph
        self._levels = levels
        self._chains = ConstantChains(graph, levels.work)
        self.constants = [i for i, t in enumerate(graph.tensors) if t.data is not None]
        self._order = {index: first + i for i, index in enumerate(self.constants)}
        self._readers: dict[int, collections.Counter[str]] = {}
        self._axes: dict[int, int] = {}
        # Of constants that hold indices, and of what else goes with them.
        self._packing: dict[int, str] = {}
        self._tables: set[int] = set()
        # Weight -> tensors made on the way, and constants; the largest first.
        self._weights: dict[int, tuple[list[int], list[int]]] = {}
        for operator in graph.operators:
            for index in set(operator.inputs):
                self._readers.setdefault(index, collections.Counter())[
                    operator.name
                ] += 1
            self._note_packing(operator)
            if not any(map(self._chains.is_made, operator.outputs)):
                self._note_weights(operator)

    def _note_weights(self, operator: Operator) -> None:
        for position, axis in _WEIGHT_INPUTS.get(operator.name, {}).items():
            if position >= len(operator.inputs):
                continue
            index = operator.inputs[position]
            if index < 0 or not self._chains.is_constant(index):
                continue
            rank = len(self._graph.tensors[index].shape)
            if operator.name == "BATCH_MATMUL" and operator.setting(position, "?"):
                axis = -3 - axis  # Transposed.
            axis += rank if axis < 0 else 0
            if operator.name == "GATHER" and operator.setting(0):
                axis = rank  # Looks up something else than rows.
            if rank > 1 and 0 <= axis < rank:
                self._axes.setdefault(index, axis)
            if index not in self._weights:
                try:
                    made, sources = self._chains.trace(index)
                except UnknownValues as error:
                    self._levels.give_up(self._graph.tensors[index], error)
                    continue
                sources = [i for i in sources if i in self._order]
                sources.sort(key=lambda i: -self._place(i)[1])
                self._weights[index] = (made, sources)

    def _note_packing(self, operator: Operator) -> None:
        tensors = self._graph.tensors
        if operator.name == "TFLM_DECODE":
            pairs = zip(operator.inputs[::2], operator.inputs[1::2], strict=False)
            for encoded, header in pairs:
                data = tensors[header].data
                bits = None if data is None else lookup_bits(data)
                if bits is not None:
                    self._packing[encoded] = f"{bits}-bit indices"
                    self._tables.add(header)
        elif operator.name == "GATHER" and len(operator.inputs) == 2:
            table, indices = operator.inputs
            if min(table, indices) < 0 or not self._chains.is_constant(table):
                return
            rows = tensors[table].shape
            if tensors[indices].type == "INT16" and len(rows) == 2 and rows[1] > 1:
                self._packing[indices] = f"{rows[1]} per INT16"

    def _place(self, index: int) -> _Place:
        tensor = self._graph.tensors[index]
        return tensor.place, 0 if tensor.data is None else len(tensor.data)

    def constant_places(self) -> list[_Place]:
        """Returns where each constant is."""
        return [self._place(index) for index in self.constants]

    def weight_places(self) -> list[_Place]:
        """Returns where the constants of each weight are."""
        return [
            place
            for _, sources in self._weights.values()
            for place in {self._place(index) for index in sources}
        ]

    def weight_scale_bytes(self) -> int:
        """Returns what the scales of all that weights are made of take."""
        used = {index for _, sources in self._weights.values() for index in sources}
        return sum(self._scale_bytes(index) for index in used)

    def _scale_bytes(self, index: int) -> int:
        tensor = self._graph.tensors[index]
        return tensor.scale.nbytes + tensor.zero_point.nbytes

    def read_constants(self, uses: collections.Counter[_Place]) -> list[Constant]:
        """Returns the constants.

        Args:
            uses: How many constants are at a place.
        """
        return [self._read_constant(index, uses) for index in self.constants]

    def _read_constant(self, index: int, uses: collections.Counter[_Place]) -> Constant:
        tensor = self._graph.tensors[index]
        place = self._place(index)
        axis = self._axis(index)
        levels, channel_levels = self._levels.of(
            tensor, axis, lambda: storage_values(tensor)
        )
        return Constant(
            graph=self._number,
            index=index,
            name=tensor.name,
            shape=tensor.shape,
            type=tensor.type,
            values=tensor.size,
            num_bytes=place[1],
            scale_bytes=self._scale_bytes(index),
            bits_per_value=8 * place[1] / tensor.size if tensor.size else None,
            packing=self._packing_of(index),
            channel_axis=axis,
            levels=levels,
            channel_levels=channel_levels,
            readers=dict(self._readers.get(index, {})),
            shares_bytes=uses[place] > 1,
        )

    def read_weights(self, uses: collections.Counter[_Place]) -> list[Weight]:
        """Returns the weights.

        Args:
            uses: How many weights the bytes at a place are in.
        """
        return [self._read_weight(index, uses) for index in self._weights]

    def _read_weight(self, index: int, uses: collections.Counter[_Place]) -> Weight:
        tensor = self._graph.tensors[index]
        made, sources = self._weights[index]
        places = {self._place(source) for source in sources}
        num_bytes = sum(size for _, size in places)
        num_bytes += sum(self._scale_bytes(source) for source in sources)
        axis = self._axis(index)
        levels, channel_levels = self._levels.of(
            tensor, axis, lambda: self._chains.values(index)
        )
        # Tables may be larger than the indices into them.
        packed = [self._packing[i] for i in sources if i in self._packing]
        types = [self._graph.tensors[i].type for i in sources]
        return Weight(
            graph=self._number,
            name=tensor.name,
            shape=tensor.shape,
            type=tensor.type,
            readers=dict(self._readers[index]),
            weights=tensor.size,
            chain=tuple(self._chains.producer(step).name for step in made),
            constants=tuple(self._order[source] for source in sources),
            num_bytes=num_bytes,
            shared_bytes=sum(place[1] for place in places if uses[place] > 1),
            bits_per_weight=8 * num_bytes / tensor.size if tensor.size else None,
            stored_as=next(iter([*packed, *types]), ""),
            channel_axis=axis,
            levels=levels,
            channel_levels=channel_levels,
        )

    def _axis(self, index: int) -> int | None:
        tensor = self._graph.tensors[index]
        if len(tensor.scale) > 1 and not tensor.unfit_scale:
            return tensor.axis
        return self._axes.get(index)

    def _packing_of(self, index: int) -> str:
        tensor = self._graph.tensors[index]
        if tensor.sparse:
            return "sparse"
        bits = VALUE_BITS.get(tensor.type, 8)
        shared = f"{8 // bits} per byte" if bits < 8 else ""
        if index in self._tables:
            return "lookup tables"
        return self._packing.get(index, shared)


def _signatures(structure: FileStructure) -> tuple[Signature, ...]:
    if structure.signatures:
        return tuple(
            Signature(
                entry.key,
                entry.graph,
                _interfaces(structure.graphs[entry.graph], entry.inputs),
                _interfaces(structure.graphs[entry.graph], entry.outputs),
            )
            for entry in structure.signatures
        )
    graph = structure.graphs[0]
    inputs, outputs = (
        {graph.tensors[index].name: index for index in indices}
        for indices in (graph.inputs, graph.outputs)
    )
    return (Signature("", 0, _interfaces(graph, inputs), _interfaces(graph, outputs)),)


def _interfaces(graph: Graph, names: dict[str, int]) -> tuple[Interface, ...]:
    return tuple(_interface(name, graph.tensors[i]) for name, i in names.items())


def _interface(name: str, tensor: Tensor) -> Interface:
    scale = zero_point = None
    if len(tensor.scale) == 1 and not tensor.unfit_scale:
        value = float(tensor.scale[0])
        scale = value if np.isfinite(value) else None
        zero_point = int(tensor.zero_point[0]) if len(tensor.zero_point) else 0
    return Interface(name, tensor.open_shape, tensor.type.lower(), scale, zero_point)
