"""The kinds of file that `export` makes.

A new kind is one entry of `TARGETS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from keras_sq import _checks
from keras_sq.export import convert
from keras_sq.export.inputs import Array, InputSignature
from keras_sq.kernel_codes import KernelCodes
from keras_sq.types import Model


@dataclasses.dataclass(frozen=True)
class Request:
    """What a target makes a file from.

    Attributes:
        model: A plain Keras model that computes in float32.
        signature: What it takes.
        codes: Path of a quantized kernel -> its codes and scales.
        examples: Representative examples, one array an input, or `None`.
    """

    model: Model
    signature: InputSignature
    codes: dict[str, KernelCodes]
    examples: Sequence[Array] | None


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        description: What it is, in one line.
        make: Makes the file.
        stored_as: `stored_as(path)`: how the file holds a quantized kernel,
            and its bits a weight.
        tolerance: Largest difference from the Keras model, relative to the
            largest absolute value of an output.
    """

    description: str
    make: Callable[[Request], convert.Converted]
    stored_as: Callable[[str], tuple[str, float]]
    tolerance: float


TARGETS = {
    "float": Target(
        "float32 weights and builtin operations, for every runtime",
        lambda request: convert.float_file(request.model, request.signature),
        lambda path: ("float32", 32.0),
        1e-4,
    ),
}


def get(name: Any) -> Target:
    """Returns a target by name.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    return TARGETS[_checks.one_of("target", name, TARGETS)]
