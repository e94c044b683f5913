"""What a file is made from, and the file before it is verified."""

import dataclasses
from collections.abc import Callable, Sequence

from keras_sq.analysis.kernel_codes import KernelCodes
from keras_sq.core.types import Model
from keras_sq.export.activations.levels import ActivationLevels, StoredActivations
from keras_sq.export.conversion.convert import Converted
from keras_sq.export.conversion.inputs import InputSignature
from keras_sq.export.examples import Examples
from keras_sq.export.kinds import Kind
from keras_sq.export.report import KernelReport
from keras_sq.export.tflite.runtime import FileRunner, Runner


@dataclasses.dataclass(frozen=True)
class Request:
    """What a target makes a file from, and compares the file with.

    Attributes:
        kind: Kind of the file.
        model: Plain Keras model that computes in float32, but for layers that
            quantize activations as `activations.deploy` makes them.
        reference: Model that the file must agree with: the user's, or `model`
            where the user's computes in another precision or partly in float.
        signature: Inputs of the model.
        codes: Path of a quantized kernel -> its codes and scales.
        types: Types of codes that the oldest runtime reads, the smallest first.
        quantizers: Quantizers of the model's activations.
        examples: Examples to calibrate, compare and check the file on.
        max_decode_bytes: See `keras_sq.export`.
        optimize: See `keras_sq.export`.
        notes: Notes for the report.
    """

    kind: Kind
    model: Model
    reference: Model
    signature: InputSignature
    codes: dict[str, KernelCodes]
    types: tuple[str, ...]
    quantizers: Sequence[ActivationLevels] = ()
    examples: Examples = Examples()
    max_decode_bytes: int | None = None
    optimize: str = "size"
    notes: tuple[str, ...] = ()

    @property
    def integer(self) -> bool:
        """Whether activations are to be int8."""
        return self.kind.int8_activations and self.examples.arrays is not None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A file that is to be verified before it is written.

    Attributes:
        converted: The file, with its inputs.
        kernels: How the file stores each weight tensor.
        activations: How the file stores each quantized activation, and where; of
            the file that it must equal, if there is one.
        float_bytes: Size of the float file of the same model.
        runtimes: The oldest versions that run the file.
        equals: File whose outputs must be the same bit for bit, or `None`.
        plain: The same graph with float weights, which must agree with Keras as float
            files do; of files that round activations to int8 as they run.
        twin: The same graph with int8 weights, whose outputs must be the same bit for
            bit with XNNPACK; of files whose weights are multiplied as they are.
        load: `load(content, delegates)` returns the interpreter of a file.
        arena_bytes: Memory that the file needs on a microcontroller, or `None`.
        int8_arena_bytes: Memory that `equals` needs on one.
    """

    converted: Converted
    kernels: tuple[KernelReport, ...]
    float_bytes: int
    runtimes: tuple[str, ...]
    activations: tuple[StoredActivations, ...] = ()
    equals: bytes | None = None
    plain: bytes | None = None
    twin: bytes | None = None
    load: Callable[[bytes, bool], FileRunner] = Runner
    arena_bytes: int | None = None
    int8_arena_bytes: int | None = None

    @property
    def unpacked(self) -> bytes:
        """The file whose tensors can be looked at: `equals`, if there is one."""
        return self.equals or self.converted.content
