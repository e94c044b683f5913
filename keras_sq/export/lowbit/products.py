"""Which operators of a file are products with a matrix of weights, or look rows up.

Runtimes multiply weights of 2 and 4 bits in FULLY_CONNECTED only. A convolution is the
same product, once the inputs of each output pixel lie in a row (`patches.py`). And they
read rows of such a matrix in EMBEDDING_LOOKUP; the converter makes a GATHER of it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, Use, indices, shape_of
from keras_sq.export.tflite.weights import WeightTensor

MULTIPLE = 4
"""What the number of inputs of a filter is made up to, at most, for short codes."""

DENSE, CONVOLUTION = "FULLY_CONNECTED", "CONV_2D"
LOOKUP = "EMBEDDING_LOOKUP"
LOOKUPS = {"GATHER": 0, LOOKUP: 1}
"""Operator that reads rows -> which of its inputs is the matrix."""


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """An operator that multiplies rows of inputs by a matrix, or reads rows of it.

    Attributes:
        operator: The schema's object.
        weight: Tensor of the weights; filters are on its first axis.
        window: How a convolution moves; `None` if inputs are rows as they are.
        looks_up: Whether it reads rows of the matrix.
    """

    operator: Any
    weight: WeightTensor
    window: "Window | None" = None
    looks_up: bool = False


@dataclasses.dataclass(frozen=True)
class Window:
    """How the kernel of a convolution moves over its input.

    Attributes:
        inputs: Height and width of the input.
        outputs: Height and width of the output.
        channels: Number of channels of the input.
        kernel: Height and width of the kernel.
        strides: Along height and width.
        dilations: Along height and width.
        padding: Rows above and below, and columns left and right, of zeros.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def copied(self) -> int:
        """Number of inputs that are copied into rows."""
        return math.prod(self.outputs) * math.prod(self.kernel) * self.channels

    @property
    def is_plain(self) -> bool:
        """Whether each input pixel is a row as it is."""
        return self.kernel == (1, 1) and self.strides == (1, 1)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input with its padding."""
        (top, bottom), (left, right) = self.padding
        height, width = self.inputs
        return height + top + bottom, width + left + right


@dataclasses.dataclass(frozen=True)
class Work:
    """What operators compute with a weight tensor, for one example.

    Attributes:
        kind: `"dense"`, for convolutions that are not depthwise too, `"depthwise"` or
            `"lookup"`.
        calls: Number of operators.
        multiplications: Number of multiplications.
        weights: Number of weights read.
        outputs: Number of outputs.
    """

    kind: str
    calls: int
    multiplications: int
    weights: int
    outputs: int


def work_of(
    file: TFLiteFile, weight: WeightTensor, shapes: Mapping[int, tuple[int, ...]]
) -> Work:
    """Returns what the operators that read a weight tensor compute.

    Args:
        file: The file.
        weight: The tensor.
        shapes: Place -> shape of the tensors of the main graph, for one example: a file
            does not tell sizes that depend on an open one.
    """
    uses = file.uses(weight.subgraph).get(weight.index, [])
    filters = weight.shape[weight.axis]
    outputs = 0
    for use in uses:
        place = indices(use.operator.outputs)[0]
        shape = shape_of(weight.subgraph.tensors[place])
        outputs += math.prod(shapes.get(place, shape) if not weight.graph else shape)
    kind = "dense"
    for use in uses:
        if use.name == "DEPTHWISE_CONV_2D":
            kind = "depthwise"
        elif use.name in LOOKUPS:
            kind = "lookup"
    return Work(
        kind=kind,
        calls=len(uses),
        multiplications=outputs * (weight.size // filters),
        weights=weight.size * len(uses),
        outputs=outputs,
    )


def products_of(file: TFLiteFile, weight: WeightTensor) -> tuple[list[Product], str]:
    """Returns the products that read a weight tensor, or why they are none.

    Args:
        file: The file.
        weight: The tensor.

    Returns:
        The products, one for each operator that reads the tensor, and an empty string;
        or an empty list and the reason.
    """
    if weight.axis != 0:
        return [], "its filters are not on the first axis"
    products = []
    for use in file.uses(weight.subgraph).get(weight.index, []):
        if use.position == LOOKUPS.get(use.name):
            product = _of_lookup(use, weight)
        elif use.position != 1 or use.name not in (DENSE, CONVOLUTION):
            return [], f"{use.name} takes no weights of 2 or 4 bits"
        else:
            product = _of_operator(file, use.operator, use.name, weight)
        if isinstance(product, str):
            return [], product
        products.append(product)
    return products, "" if products else "nothing reads it"


def _of_lookup(use: Use, weight: WeightTensor) -> Product | str:
    """Returns what reads rows of a matrix, or why it reads them in another way."""
    tensors = weight.subgraph.tensors
    options = use.operator.builtinOptions
    if use.name != LOOKUP and (options.axis or options.batchDims):
        return "it is not read by rows"
    rows = tensors[indices(use.operator.inputs)[1 - use.position]]
    output = tensors[indices(use.operator.outputs)[0]]
    if rows.type != TYPES["INT32"] or output.type != TYPES["FLOAT32"]:
        return "its rows are not looked up as floats, by int32 numbers"
    if _has_open_size(rows):
        return "an open number of its rows is looked up"
    if len(weight.shape) != 2 or weight.shape[1] % MULTIPLE:
        return "its rows are not of a multiple of 4 weights"
    return Product(use.operator, weight, looks_up=True)


def _of_operator(
    file: TFLiteFile, operator: Any, name: str, weight: WeightTensor
) -> Product | str:
    """Returns the product of an operator, or why it is none."""
    tensors = weight.subgraph.tensors
    source = tensors[indices(operator.inputs)[0]]
    sizes = shape_of(source)
    if name == DENSE:
        # A size of 1 may stand for an open one, and a shape () for any.
        last = (indices(source.shapeSignature) or sizes or (-1,))[-1]
        if last != weight.shape[-1] and weight.shape[-1] % MULTIPLE:
            return "its inputs lie on several axes, which cannot be padded together"
        return Product(operator, weight)
    if len(sizes) != 4 or len(weight.shape) != 4:
        return "its convolution is not of pictures"
    if sizes[3] != weight.shape[3]:
        return "its convolution has groups of channels"
    target = shape_of(tensors[indices(operator.outputs)[0]])
    options = operator.builtinOptions
    kernel = weight.shape[1], weight.shape[2]
    strides = int(options.strideH), int(options.strideW)
    dilations = int(options.dilationHFactor), int(options.dilationWFactor)
    inputs, outputs = sizes[1:3], target[1:3]
    window = Window(
        inputs=(inputs[0], inputs[1]),
        outputs=(outputs[0], outputs[1]),
        channels=sizes[3],
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        padding=((0, 0), (0, 0)),
    )
    if window.is_plain:
        return Product(operator, weight)
    if _has_open_size(source):
        return "height or width of its convolution is open"
    if options.padding == schema.Padding.SAME:
        height, width = (
            _same_padding(*each)
            for each in zip(inputs, outputs, kernel, strides, dilations, strict=True)
        )
        window = dataclasses.replace(window, padding=(height, width))
    return Product(operator, weight, window)


def _has_open_size(tensor: Any) -> bool:
    return any(size < 0 for size in indices(tensor.shapeSignature)[1:])


def _same_padding(
    size: int, outputs: int, kernel: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Returns the padding before and after that `padding="same"` stands for."""
    span = (kernel - 1) * dilation + 1
    total = max((outputs - 1) * stride + span - size, 0)
    return total // 2, total - total // 2
