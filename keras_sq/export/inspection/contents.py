"""What a TFLite file holds, as data: constants, weights, operators, bytes.

A weight is what the weight input of an operator gets; it may be made of several
constants by a chain of operators, and is one entry, with the bits that it takes
in the file. Reading is in `reader.py`, printing in `table.py`,
the command line in `keras_sq/inspect.py`.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Interface:
    """A tensor that the file takes or gives.

    Attributes:
        name: In the signature; without one, the tensor's.
        shape: `None` where a size is open.
        dtype: Such as `"float32"`.
        scale: Of a quantized tensor, else `None`; `None` too if not finite.
        zero_point: Of a quantized tensor, else `None`.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A way to call the file.

    Attributes:
        key: Its name; empty if the file has no signature.
        graph: Index of the graph that is run.
        inputs: What it takes.
        outputs: What it gives.
    """

    key: str
    graph: int
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]


@dataclasses.dataclass(frozen=True)
class GraphContents:
    """The main graph, or the body of a loop or branch.

    Attributes:
        name: Often empty.
        tensors: How many it has, constants and others.
        operators: Name -> how many.
    """

    name: str
    tensors: int
    operators: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor whose values are in the file.

    Attributes:
        graph: Index of its graph.
        index: Of the tensor in the graph.
        name: As the converter made it.
        shape: Of the values.
        type: Such as `"INT8"`.
        values: How many there are.
        num_bytes: What they take.
        scale_bytes: What its scales and zero points take, which are not among
            the constants but in the description of the tensor.
        bits_per_value: `num_bytes` in bits over `values`; `None` without any.
        packing: In words, how values share bytes (`"4 per byte"`) or what each
            stands for (`"9 per INT16"`, `"2-bit indices"`); else empty.
        channel_axis: From its quantization or the operator that reads it; else
            `None`.
        levels: How many different values there are; `None` if unknown.
        channel_levels: The most in a channel; `None` if unknown.
        readers: Name of an operator that reads it -> how many do.
        shares_bytes: Whether another tensor has its values at the same place.
    """

    graph: int
    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    values: int
    num_bytes: int
    scale_bytes: int
    bits_per_value: float | None
    packing: str
    channel_axis: int | None
    levels: int | None
    channel_levels: int | None
    readers: dict[str, int]
    shares_bytes: bool


@dataclasses.dataclass(frozen=True)
class Weight:
    """What the weight input of an operator gets, all of it from constants.

    Attributes:
        graph: Index of its graph.
        name: Of the tensor that the operator reads.
        shape: Of that tensor.
        type: Of that tensor.
        readers: Name of an operator that reads it -> how many do.
        weights: How many there are.
        chain: Operators that make it of constants, in their order; empty if it
            is a constant itself.
        constants: Indices, in `Contents.constants`, of what it is made of;
            the largest first.
        num_bytes: What those take in the file, with their scales and zero
            points.
        shared_bytes: As much of it as is in other weights too.
        bits_per_weight: `num_bytes` in bits over `weights`; `None` without any.
        stored_as: Packing of the constant that holds indices, else the type of
            the largest constant.
        channel_axis: The axis of the filters; `None` if unknown.
        levels: How many different values there are; `None` if unknown.
        channel_levels: The most in a filter; `None` if unknown.
    """

    graph: int
    name: str
    shape: tuple[int, ...]
    type: str
    readers: dict[str, int]
    weights: int
    chain: tuple[str, ...]
    constants: tuple[int, ...]
    num_bytes: int
    shared_bytes: int
    bits_per_weight: float | None
    stored_as: str
    channel_axis: int | None
    levels: int | None
    channel_levels: int | None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        num_bytes: Size of the file.
        constant_bytes: Of it, the constants; what several share counts once.
        weight_bytes: What the weights are made of, counted alike, with the
            scales and zero points, which are not in `constant_bytes`.
        schema_version: Of the format.
        description: By the converter.
        signatures: The ways to call it.
        graphs: The main one first.
        constants: Graph by graph, in the order of the tensors.
        weights: In the order in which operators read them.
        metadata: Name -> size (bytes).
        report: What `keras_sq.export` reported, or `None`.
        notes: What could not be worked out, and what is unusual.
    """

    num_bytes: int
    constant_bytes: int
    weight_bytes: int
    schema_version: int
    description: str
    signatures: tuple[Signature, ...]
    graphs: tuple[GraphContents, ...]
    constants: tuple[Constant, ...]
    weights: tuple[Weight, ...]
    metadata: dict[str, int]
    report: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def other_bytes(self) -> int:
        """What is no constant: graphs, names, metadata, padding."""
        return self.num_bytes - self.constant_bytes

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that a weight takes, over all; `None` without any."""
        weights = sum(weight.weights for weight in self.weights)
        return 8 * self.weight_bytes / weights if weights else None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as a dict that JSON can hold."""
        return {
            **dataclasses.asdict(self),
            "other_bytes": self.other_bytes,
            "bits_per_weight": self.bits_per_weight,
        }
