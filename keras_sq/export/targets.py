"""The kinds of file that `export` makes.

A new kind is one entry of `TARGETS`; `building.py` makes the files.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core import checks
from keras_sq.core.types import Model
from keras_sq.export import runtimes
from keras_sq.export.activations.levels import ActivationLevels, Held
from keras_sq.export.conversion.convert import Converted
from keras_sq.export.conversion.inputs import Array, InputSignature
from keras_sq.export.report import KernelReport
from keras_sq.export.tflite.runtime import FileRunner


@dataclasses.dataclass(frozen=True)
class Request:
    """What a target makes a file from.

    Attributes:
        model: A plain Keras model that computes in float32, but for layers that
            quantize activations as `activations.deploy` makes them.
        signature: What it takes.
        codes: Path of a quantized kernel -> its codes and scales.
        quantizers: What quantizes its activations.
        examples: Representative examples, one array an input, or `None`.
        max_decode_bytes: See `keras_sq.export`.
        types: Types of codes that the oldest runtime reads, the smallest first.
    """

    model: Model
    signature: InputSignature
    codes: dict[str, KernelCodes]
    quantizers: Sequence[ActivationLevels] = ()
    examples: Sequence[Array] | None = None
    max_decode_bytes: int | None = None
    types: tuple[str, ...] = ("INT2", "INT4", "INT8")


@dataclasses.dataclass(frozen=True)
class Made:
    """A file that was made, to be checked.

    Attributes:
        converted: The file, with what it takes.
        kernels: How it holds each weight tensor.
        activations: How it holds each quantized activation, and where; of the
            file that it must agree with, if there is one.
        float_bytes: Size of the float file of the same model.
        runtimes: The oldest versions that run it.
        equals: A file that it must agree with bit for bit, or `None`.
        load: Makes the interpreter that runs it; `None`: LiteRT's.
        check: Checks its quantized activations, from the file, the copy that was
            converted, its quantizers and the examples; `None`:
            `verification/activations.py` does.
        arena_bytes: For microcontrollers: memory that the file needs.
        int8_arena_bytes: For microcontrollers: memory that `equals` needs.
    """

    converted: Converted
    kernels: tuple[KernelReport, ...]
    float_bytes: int
    runtimes: tuple[str, ...]
    activations: tuple[Held, ...] = ()
    equals: bytes | None = None
    load: Callable[[bytes, bool], FileRunner] | None = None
    check: (
        Callable[
            ["Made", Model, Sequence[ActivationLevels], Sequence[Array] | None], None
        ]
        | None
    ) = None
    arena_bytes: int | None = None
    int8_arena_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        description: What it is, in one line.
        make: Makes the file.
        int8_activations: Whether activations are int8, where there is
            representative data. Such files are compared with Keras only in the
            mean.
        needs_examples: Whether there must be representative data.
        micro: Whether TensorFlow Lite for Microcontrollers runs it.
        single: Who takes one example at a time, where its files do.
        type_name: The type of its codes, where a runtime may lack it.
        runtime: Whose files they are, where they are for no other.
    """

    description: str
    make: Callable[[Request], Made]
    int8_activations: bool = False
    needs_examples: bool = False
    micro: bool = False
    single: str | None = None
    type_name: str | None = None
    runtime: str | None = None


def _float_weights(*forms: str) -> Callable[[Request], Made]:
    """Returns what makes float files with the weights in these forms."""

    def make(request: Request) -> Made:
        from keras_sq.export import building

        allowed = tuple(form for form in forms if form in request.types)
        return building.float_weights(request, allowed)

    return make


def _small(request: Request) -> Made:
    from keras_sq.export import building

    if request.examples is not None:
        return building.packed_integers(request)
    return building.smallest(request)


def _int8(request: Request) -> Made:
    from keras_sq.export import building

    return building.integers(request)


def _mcu(request: Request) -> Made:
    from keras_sq.export import building

    return building.microcontroller(request)


def _lce(request: Request) -> Made:
    from keras_sq.export.lce import making

    return making.make(request)


TARGETS = {
    "float": Target("float32 weights", _float_weights()),
    "fast": Target(
        "int8 codes, unfolded to float32 when loaded", _float_weights("INT8")
    ),
    "int2": Target(
        "2-bit codes, where they fit",
        _float_weights("INT2", "INT4", "INT8"),
        type_name="INT2",
    ),
    "int4": Target(
        "4-bit codes, where they fit",
        _float_weights("INT4", "INT8"),
        type_name="INT4",
    ),
    "small": Target(
        "the smallest of packed levels, 1.07 to 5.33 bits a weight, and 2-, 4- or "
        "8-bit codes; with representative data on int8 activations",
        _small,
        int8_activations=True,
    ),
    "int8": Target(
        "int8 weights and activations",
        _int8,
        int8_activations=True,
        needs_examples=True,
    ),
    "mcu": Target(
        "int8 activations, weights in lookup tables of TensorFlow Lite for "
        "Microcontrollers, and C sources",
        _mcu,
        int8_activations=True,
        needs_examples=True,
        micro=True,
        single="microcontrollers",
        runtime="TensorFlow Lite for Microcontrollers",
    ),
    "lce": Target(
        "binary convolutions on single bits, for Larq Compute Engine",
        _lce,
        single="files for Larq Compute Engine",
        runtime="Larq Compute Engine",
    ),
}


def types(target: str, oldest_runtime: str | None) -> tuple[str, ...]:
    """Returns the types of codes that a file may have.

    Args:
        target: Its kind.
        oldest_runtime: See `keras_sq.export`.

    Raises:
        TypeError: If `oldest_runtime` has the wrong type.
        ValueError: If it has a wrong value, or the target is not for it.
    """
    chosen = get(target)
    found = runtimes.types(oldest_runtime)
    if oldest_runtime is None:
        return found
    if chosen.runtime is not None:
        raise ValueError(
            f"Target '{target}' is for {chosen.runtime}, so there is no "
            f"`oldest_runtime` to choose. Received: oldest_runtime={oldest_runtime!r}"
        )
    if chosen.type_name is not None and chosen.type_name not in found:
        needed = " or ".join(runtimes.RUNTIMES_OF_TYPES[chosen.type_name])
        raise ValueError(
            f"Target '{target}' needs {needed}. Received: oldest_runtime="
            f"{oldest_runtime!r}. Choose target 'small' for older ones."
        )
    return found


def get(name: Any) -> Target:
    """Returns a target by name.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    return TARGETS[checks.one_of("target", name, TARGETS)]
