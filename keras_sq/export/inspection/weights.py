"""The weights of a graph: where they are, what makes them, which values they have.

A weight is what the weight input of an operator gets. It need not lie in the file as it
is used: it may be integers that an operator turns into floats, or indices that several
operators look up. The operators that make a weight of constants are cut out as a file
of their own, which the interpreter runs; other operators of the file may be unknown to
it.
"""

import copy
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.inspection.tensors import Operator, Tensor, Unknown, item
from keras_sq.export.tflite.flatbuffer import NUMPY_TYPES, TFLiteFile, indices

Array = np.ndarray[Any, Any]

WEIGHT_INPUTS: dict[str, dict[int, int]] = {
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
"""Operator -> position of a weight among its inputs -> axis of the filters."""

_IMPURE = ("RANDOM", "MULTINOMIAL", "CALL", "IF", "WHILE", "VAR", "READ_VARIABLE")
"""Starts of the names of operators whose outputs change from run to run."""


class Weight:
    """A weight, all of it from constants.

    Args:
        graph: The graph that it is in.
        tensor: The tensor that an operator reads.

    Attributes:
        tensor: The same.
        constants: The constants that it is made of, the largest first.
        chain: The operators that make it, in the order in which they run.
        buffers: Index of a buffer that it is in -> bytes of it.
    """

    def __init__(self, graph: "Graph", tensor: Tensor) -> None:
        self._graph = graph
        self.tensor = tensor
        seen, waiting = {tensor}, [tensor]
        while waiting:
            producer = waiting.pop().producer
            new = set(producer[1]) - seen if producer else set()
            seen |= new
            waiting += new
        self._tensors = seen
        self.constants = [part for part in seen if len(part.data)]
        self.constants.sort(key=lambda part: (-len(part.data), part.index))
        makers = {part.producer[0] for part in seen if part.producer}
        self.chain = [operator for operator in graph.operators if operator in makers]
        self.buffers = {part.table.buffer: len(part.data) for part in self.constants}

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, with scales and zero points."""
        scales = sum(part.scale_bytes for part in self.constants)
        return sum(self.buffers.values()) + scales

    @property
    def stored_as(self) -> str:
        """Packing of the constant that holds indices, else type of the largest one."""
        packed = [p.packing for p in self.constants if p.packing.endswith(_INDICES)]
        return [*packed, *(part.type for part in self.constants), ""][0]

    def values(self) -> Array:
        """Returns the values.

        Raises:
            Unknown: If they cannot be computed.
        """
        if not self.chain:
            return self.tensor.stored()
        names = sorted({operator.name for operator in self.chain})
        try:
            if self.tensor.producer and names == [_DECODE]:
                return _decoded(self.tensor, *self.tensor.producer[1])
            return _run(self._file())
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise Unknown(f"made by {', '.join(names)}: {reason}") from error

    def _file(self) -> bytes:
        """Returns the operators that make the weight as a file of their own."""
        part = copy.copy(self._graph.file)
        part.model, graph = copy.copy(part.model), schema.SubGraphT()
        part.model.subgraphs, part.model.operatorCodes = [graph], []
        part.model.metadata = part.model.signatureDefs = None
        graph.tensors = [
            copy.copy(tensor.table) if tensor in self._tensors else schema.TensorT()
            for tensor in self._graph.tensors
        ]
        graph.operators = [copy.copy(operator.table) for operator in self.chain]
        for place, operator in enumerate(graph.operators):
            codes = self._graph.file.model.operatorCodes
            part.model.operatorCodes.append(codes[operator.opcodeIndex])
            operator.opcodeIndex = place
        graph.inputs, graph.outputs = [], [self.tensor.index]
        return part.pack()


class Graph:
    """The main graph, or the body of a loop or branch.

    Args:
        file: The file.
        table: The graph in the schema's classes.

    Attributes:
        file: The same.
        table: The same.
        tensors: By index.
        operators: In the order in which they run.
        inputs: Tensors.
        outputs: Tensors.
        weights: Tensor -> weight, in the order in which operators read them.
    """

    def __init__(self, file: TFLiteFile, table: Any) -> None:
        self.file, self.table = file, table
        self.tensors = [
            Tensor(file, entry, index)
            for index, entry in enumerate(table.tensors or [])
        ]
        self.operators = [
            Operator(file, entry, self.tensors) for entry in table.operators or []
        ]
        self.inputs, self.outputs = (
            [item(self.tensors, index, "tensor") for index in indices(ends)]
            for ends in (table.inputs, table.outputs)
        )
        self.weights: dict[Tensor, Weight] = {}
        computed = {tensor for op in self.operators for tensor in op.outputs}
        computed |= set(self.inputs)
        # What has no bytes and is not computed is the shape of a scalar.
        self._constants = {
            tensor
            for tensor in self.tensors
            if len(tensor.data)
            or not (tensor.size or tensor in computed or tensor.table.isVariable)
        }
        for operator in self.operators:
            for tensor in {*filter(None, operator.inputs)}:
                tensor.readers[operator.name] += 1
            self._note_packing(operator)
            if not self._makes_constants(operator):
                self._note_weights(operator)

    def _is_constant(self, tensor: Tensor | None) -> bool:
        return tensor in self._constants or bool(tensor and tensor.producer)

    def _makes_constants(self, operator: Operator) -> bool:
        """Notes what an operator makes of constants alone; returns if it does so."""
        outputs = [tensor for tensor in operator.outputs if tensor is not None]
        for output in outputs:
            sources = operator.sources(output)
            known = sources and all(map(self._is_constant, sources))
            if known and not operator.name.startswith(_IMPURE):
                output.producer = output.producer or (operator, sources)
        return any(output.producer for output in outputs)

    def _note_packing(self, operator: Operator) -> None:
        if None in operator.inputs:
            return
        inputs: list[Any] = operator.inputs
        if operator.name == _DECODE:
            for encoded, header in zip(inputs[::2], inputs[1::2], strict=False):
                bits = _lookup_bits(header.data)
                if bits:
                    encoded.packing = f"{bits}{_INDICES[0]}"
                    header.packing = "lookup tables"
        elif operator.name == "GATHER" and len(inputs) == 2:
            rows, packed = inputs[0].shape, inputs[1]
            if packed.type == "INT16" and len(rows) == 2 and rows[1] > 1:
                packed.packing = f"{rows[1]}{_INDICES[1]}"

    def _note_weights(self, operator: Operator) -> None:
        for position, axis in WEIGHT_INPUTS.get(operator.name, {}).items():
            tensor = [*operator.inputs, *[None] * 9][position]
            if tensor is None or not self._is_constant(tensor):
                continue
            rank = len(tensor.shape)
            if operator.setting(("adjX", "adjY")[position % 2]):
                axis = -3 - axis  # A transposed side of BATCH_MATMUL.
            axis += rank if axis < 0 else 0
            # GATHER along another axis looks up something else than rows.
            rows = operator.name != "GATHER" or not operator.setting("axis")
            if tensor.axis is None and rank > 1 and 0 <= axis < rank and rows:
                tensor.axis = axis
            if tensor not in self.weights:
                self.weights[tensor] = Weight(self, tensor)


_DECODE = "TFLM_DECODE"
_INDICES = ("-bit indices", " per INT16")
"""Ends of the packing of constants that hold indices."""


def _lookup_bits(header: Array) -> int:
    """Returns the bits of an index in what TFLM_DECODE looks up, 0 if it does not."""
    if len(header) < 16 or header[[0, 1, 4]].tolist() != [0, 1, 1]:
        return 0
    return int(header[5]) & 7


def _decoded(tensor: Tensor, encoded: Tensor, settings: Tensor) -> Array:
    """Returns what TensorFlow Lite Micro's DECODE looks up in tables.

    Args:
        tensor: The result.
        encoded: Indices of 1 to 7 bits, the first highest.
        settings: Bytes 0, 1 and 4 are kind and versions, 5 the axis of the filters
            (15: one table for all) and the bits, 6 the length of a table; from 16 on,
            the tables.
    """
    header, shape = settings.data, tensor.shape
    bits = _lookup_bits(header)
    if not bits:
        raise ValueError("decoded in an unknown way")
    axis, length = int(header[5]) >> 4, int(header[6])
    digits = np.unpackbits(encoded.data)[: tensor.size * bits].reshape(-1, bits)
    entries = (digits @ (1 << np.arange(bits)[::-1])).reshape(shape)
    if axis != 15:
        filters = [-1 if i == axis else 1 for i in range(len(shape))]
        entries = entries + length * np.arange(shape[axis]).reshape(filters)
    return np.asarray(header[16:].view(NUMPY_TYPES[tensor.type])[entries])


def _run(content: bytes) -> Array:
    """Returns the output of a file without inputs."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter  # noqa: N806
        OpResolverType = tf.lite.experimental.OpResolverType  # noqa: N806
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    return np.array(
        interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    )
