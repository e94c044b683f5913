"""Puts products into their form: FULLY_CONNECTED with weights of 2, 4 or 8 bits."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.core.types import Array
from keras_sq.export.lowbit.codes import MatrixCodes
from keras_sq.export.lowbit.patches import Patches
from keras_sq.export.lowbit.products import DENSE, LOOKUP, Product, products_of
from keras_sq.export.tflite import packing
from keras_sq.export.tflite.flatbuffer import (
    PACKED_BITS,
    TYPES,
    TFLiteFile,
    Use,
    indices,
    per_channel,
    shape_of,
)
from keras_sq.export.tflite.weights import WeightTensor

VERSIONS = {"INT2": 14, "INT4": 10, "INT8": 9, "FLOAT32": 4}
"""Type of the weights -> version of FULLY_CONNECTED that has them, a scale a filter."""

LOOKUP_VERSION = 4
"""Version of EMBEDDING_LOOKUP that has weights of 2 and 4 bits, a scale a row."""

MULTIPLES = {"INT2": 4, "INT4": 2}
"""Type of the weights -> what their number in a filter has to be a multiple of."""


@dataclasses.dataclass(frozen=True, eq=False)
class Direct:
    """A weight tensor that is multiplied as it is.

    Attributes:
        weight: The tensor.
        codes: Its codes.
        type_name: Type that holds them: `"INT2"` or `"INT4"`.
    """

    weight: WeightTensor
    codes: MatrixCodes
    type_name: str


def padded_channels(channels: int, type_name: str) -> int:
    """Returns a number of channels, made up to what a type's codes need."""
    step = MULTIPLES[type_name]
    return -(-channels // step) * step


def rewritten(
    content: bytes, entries: Sequence[Direct], type_name: str | None = None
) -> bytes:
    """Returns a file whose weight tensors are multiplied as they are.

    Args:
        content: The bytes of the file.
        entries: The tensors.
        type_name: Type of all of them, of the same values: `"INT8"` or `"FLOAT32"`, for
            a file to compare with. Their narrowest one, if not given.
    """
    file = TFLiteFile(content)
    rewriter = _Rewriter(file)
    by_graph: dict[int, dict[int, Direct]] = {}
    for entry in entries:
        by_graph.setdefault(entry.weight.graph, {})[entry.weight.index] = entry
    for graph, tensors in by_graph.items():
        rewriter.rewrite(file.subgraphs[graph], tensors, type_name)
    return file.pack()


class _Rewriter:
    """Changes the products of a file.

    Args:
        file: The file, changed in place.
    """

    def __init__(self, file: TFLiteFile) -> None:
        self._file = file
        self._patches = Patches(file)
        self._uses: dict[int, list[Use]] = {}

    def rewrite(
        self, subgraph: Any, tensors: Mapping[int, Direct], type_name: str | None
    ) -> None:
        """Rewrites the operators of a graph that read some weight tensors.

        Args:
            subgraph: The graph.
            tensors: Place of a weight tensor -> what it is.
            type_name: Type of the weights, see `rewritten`.
        """
        self._uses = self._file.uses(subgraph)
        products: dict[int, tuple[Product, Direct]] = {}
        for entry in tensors.values():
            for product in products_of(self._file, entry.weight.of(self._file))[0]:
                products[id(product.operator)] = product, entry
        operators: list[Any] = []
        for operator in subgraph.operators:
            if id(operator) in products:
                product, entry = products[id(operator)]
                kind = type_name or entry.type_name
                operators += self._product(subgraph, product, entry, kind)
            else:
                operators.append(operator)
        for index, entry in tensors.items():
            kind = type_name or entry.type_name
            self._store(subgraph.tensors[index], entry, kind)
        subgraph.operators = operators

    def _product(
        self, subgraph: Any, product: Product, entry: Direct, type_name: str
    ) -> list[Any]:
        """Returns the operators of a product."""
        operator = product.operator
        if product.looks_up:
            return self._lookup(subgraph, operator, entry.weight.index)
        source, weight, *biases = indices(operator.inputs)
        bias = biases[0] if biases else -1
        operators: list[Any] = []
        size = int(entry.codes.codes.shape[-1])
        channels = padded_channels(size, entry.type_name)
        if product.window is None and channels > size:
            operators, source = self._patches.padded(subgraph, source, channels)
        elif product.window is not None:
            operators, source = self._patches.rows(
                subgraph, source, product.window, channels
            )
        if type_name != "FLOAT32" and bias >= 0:
            bias = self._rescaled(subgraph, source, bias, entry.codes.scale)
        version = VERSIONS[type_name]
        if self._file.operator_name(operator) == DENSE:
            operator.inputs = np.array([source, weight, bias], np.int32)
            operator.opcodeIndex = self._file.operator_code(DENSE, version)
            operator.builtinOptions.asymmetricQuantizeInputs = True
            return [*operators, operator]
        options = schema.FullyConnectedOptionsT()
        activation = operator.builtinOptions.fusedActivationFunction
        options.fusedActivationFunction = activation
        options.keepNumDims = options.asymmetricQuantizeInputs = True
        inputs, outputs = [source, weight, bias], indices(operator.outputs)
        new = self._file.new_operator(DENSE, inputs, outputs, options, version)
        return [*operators, new]

    def _lookup(self, subgraph: Any, operator: Any, table: int) -> list[Any]:
        """Returns the operators that look rows up, in any shape of row numbers."""
        (rows,) = [index for index in indices(operator.inputs)[:2] if index != table]
        (output,) = indices(operator.outputs)
        shape = shape_of(subgraph.tensors[output])
        count, size = math.prod(shape[:-1]), shape[-1]
        flat = self._file.add_tensor(subgraph, "", (count,), "INT32")
        values = self._file.add_tensor(subgraph, "", (count, size), "FLOAT32")
        lookup = self._file.new_operator(
            LOOKUP, [flat, table], [values], None, LOOKUP_VERSION
        )
        open_first = (-1, *shape[1:])
        return [
            self._patches.reshape(rows, flat, (-1,)),
            lookup,
            self._patches.reshape(values, output, open_first),
        ]

    def _rescaled(self, subgraph: Any, source: int, bias: int, scale: Array) -> int:
        """Returns the tensor of an integer bias in multiples of the new products."""
        tensor = subgraph.tensors[bias]
        values = self._file.array(tensor)
        assert values is not None  # Kernels have biases that are constants.
        if values.dtype.kind == "f":
            return bias
        old = np.asarray(tensor.quantization.scale, "f8")
        new = bias_scale(subgraph.tensors[source], scale)
        rounded = np.rint(values * old / new).astype("<i4")
        if len(self._uses[bias]) > 1:
            return self._file.add_tensor(
                subgraph, "", rounded.shape, "INT32", rounded, per_channel(new, 0)
            )
        tensor.buffer = self._file.add_buffer(rounded)
        tensor.quantization = per_channel(new, 0)
        return bias

    def _store(self, tensor: Any, entry: Direct, type_name: str) -> None:
        """Puts codes into a weight tensor, as a matrix."""
        codes = entry.codes.codes
        missing = padded_channels(codes.shape[-1], entry.type_name) - codes.shape[-1]
        widths = [(0, 0)] * (codes.ndim - 1) + [(0, missing)]
        codes = np.pad(codes, widths)
        matrix = codes.reshape(len(codes), -1)
        tensor.shape = np.asarray(matrix.shape, np.int32)
        tensor.shapeSignature = None
        tensor.type = TYPES[type_name]
        data: Array = matrix
        tensor.quantization = per_channel(entry.codes.scale, 0)
        if type_name == "FLOAT32":
            data = matrix * entry.codes.scale[:, np.newaxis]
            tensor.quantization = None
        elif type_name in PACKED_BITS:
            data = packing.pack_bits(matrix, PACKED_BITS[type_name])
        tensor.buffer = self._file.add_buffer(data)


def bias_scale(source: Any, scale: Array) -> Array:
    """Returns what a bias of 1 stands for, of each filter.

    Args:
        source: Tensor of int8 inputs.
        scale: What a code of 1 stands for, of each filter.
    """
    step = float(source.quantization.scale[0])
    return (step * scale.astype("f8")).astype(np.float32)


def matrix_bytes(entry: Direct) -> int:
    """Returns what the weights of a tensor take in the file, scales included."""
    *outer, channels = (int(size) for size in entry.codes.codes.shape)
    count = math.prod(outer) * padded_channels(channels, entry.type_name)
    scale_bytes = 4 * len(entry.codes.scale)
    return -(-count * PACKED_BITS[entry.type_name] // 8) + scale_bytes
