"""The kinds of file that `export` makes.

A new kind is one entry of `TARGETS`; `building.py` makes the files.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from keras_sq import _checks
from keras_sq.export.convert import Converted
from keras_sq.export.inputs import Array, InputSignature
from keras_sq.export.report import KernelReport
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
        max_decode_bytes: See `keras_sq.export`.
    """

    model: Model
    signature: InputSignature
    codes: dict[str, KernelCodes]
    examples: Sequence[Array] | None = None
    max_decode_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Made:
    """A file that was made, to be checked.

    Attributes:
        converted: The file, with what it takes.
        kernels: How it holds each weight tensor.
        float_bytes: Size of the float file of the same model.
        runtimes: The oldest versions that run it.
        equals: A file that it must agree with bit for bit, or `None`.
        arena_bytes: For microcontrollers: memory that the file needs.
        int8_arena_bytes: For microcontrollers: memory that `equals` needs.
    """

    converted: Converted
    kernels: tuple[KernelReport, ...]
    float_bytes: int
    runtimes: tuple[str, ...]
    equals: bytes | None = None
    arena_bytes: int | None = None
    int8_arena_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        description: What it is, in one line.
        make: Makes the file.
        integer: `integer(examples given)`: whether activations are int8. Such
            files are compared with Keras only in the mean.
        needs_examples: Whether there must be representative data.
        micro: Whether TensorFlow Lite for Microcontrollers runs it.
    """

    description: str
    make: Callable[[Request], Made]
    integer: Callable[[bool], bool] = lambda examples: False
    needs_examples: bool = False
    micro: bool = False


def _float(request: Request) -> Made:
    from keras_sq.export import building

    return building.float_weights(request, ())


def _fast(request: Request) -> Made:
    from keras_sq.export import building

    return building.float_weights(request, ("INT8",))


def _int2(request: Request) -> Made:
    from keras_sq.export import building

    return building.float_weights(request, ("INT2", "INT4", "INT8"))


def _int4(request: Request) -> Made:
    from keras_sq.export import building

    return building.float_weights(request, ("INT4", "INT8"))


def _small(request: Request) -> Made:
    from keras_sq.export import building

    if request.examples is not None:
        return building.packed_integers(request)
    return building.float_weights(request, ("packed", "INT8"))


def _int8(request: Request) -> Made:
    from keras_sq.export import building

    return building.integers(request)


def _mcu(request: Request) -> Made:
    from keras_sq.export import building

    return building.microcontroller(request)


TARGETS = {
    "float": Target("float32 weights", _float),
    "fast": Target("int8 codes, unfolded to float32 when loaded", _fast),
    "int2": Target("2-bit codes, where they fit", _int2),
    "int4": Target("4-bit codes, where they fit", _int4),
    "small": Target(
        "packed levels, 1.07 to 5.33 bits a weight; with representative data on "
        "int8 activations",
        _small,
        integer=lambda examples: examples,
    ),
    "int8": Target(
        "int8 weights and activations",
        _int8,
        integer=lambda examples: True,
        needs_examples=True,
    ),
    "mcu": Target(
        "int8 activations, weights in lookup tables of TensorFlow Lite for "
        "Microcontrollers, and C sources",
        _mcu,
        integer=lambda examples: True,
        needs_examples=True,
        micro=True,
    ),
}


def get(name: Any) -> Target:
    """Returns a target by name.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    return TARGETS[_checks.one_of("target", name, TARGETS)]
