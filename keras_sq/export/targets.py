"""The targets of `export`: how each kind of file is made, verified and written.

A new target is a row in `TARGETS`, of a class of its own if it is verified or written
in its own way, and a row in `kinds.KINDS`, which says what users read of it.
"""

import pathlib
from collections.abc import Callable, Mapping

from keras_sq.export import building
from keras_sq.export.lce import checks as lce_checks
from keras_sq.export.lce import making as lce_making
from keras_sq.export.lowbit import checks as lowbit_checks
from keras_sq.export.lowbit import making as lowbit_making
from keras_sq.export.micro import c_source
from keras_sq.export.micro import making as micro_making
from keras_sq.export.report import ExportReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.verification import activations as activation_checks
from keras_sq.export.verification import comparison
from keras_sq.export.verification.comparison import Comparison

Writers = Mapping[str, Callable[[bytes], None]]
"""Suffix of a path -> function that writes the bytes there."""


class Target:
    """How one kind of file is made, verified and written.

    Args:
        make: Function that returns the file, which is not verified yet.

    Attributes:
        source_suffixes: Suffixes of the source files written beside the file.
    """

    source_suffixes: tuple[str, ...] = ()

    def __init__(self, make: Callable[[Request], Candidate]) -> None:
        self.make = make

    def verify(self, candidate: Candidate, request: Request) -> Comparison:
        """Returns how a file compares with Keras.

        Raises:
            ExportError: If the file computes something else.
        """
        if request.quantizers:
            activation_checks.check_copy(candidate, request)
            self.verify_activations(candidate, request)
        return comparison.compare(candidate, request)

    def verify_activations(self, candidate: Candidate, request: Request) -> None:
        """Checks a file with quantized activations part by part.

        Raises:
            ExportError: If a part differs.
        """
        activation_checks.check(candidate, request)

    def write(
        self, content: bytes, report: ExportReport, path: pathlib.Path, writers: Writers
    ) -> None:
        """Writes the file, and what belongs to it.

        Args:
            content: The bytes of the file.
            report: Report of the file.
            path: Path of the file.
            writers: Suffix of a path -> function that writes the bytes there.
        """
        writers[".tflite"](content)


class MicroTarget(Target):
    """Files for TensorFlow Lite for Microcontrollers, with C sources."""

    source_suffixes = (".cc", ".h")

    def write(
        self, content: bytes, report: ExportReport, path: pathlib.Path, writers: Writers
    ) -> None:
        """Writes the file and its C sources."""
        super().write(content, report, path, writers)
        assert report.arena_bytes is not None  # It was measured.
        c_source.write(content, path, report.arena_bytes, writers)


class LarqTarget(Target):
    """Files for Larq Compute Engine, whose interpreter shows no tensors inside."""

    def verify_activations(self, candidate: Candidate, request: Request) -> None:
        """Checks a file with quantized activations by a second file."""
        lce_checks.check_parts(candidate, request)


class LowBitTarget(Target):
    """Files whose weights of 2 and 4 bits the runtime multiplies as they are."""

    def verify(self, candidate: Candidate, request: Request) -> Comparison:
        """Also compares the file with what its weights stand for."""
        lowbit_checks.check(candidate, request)
        return super().verify(candidate, request)


def _floats(*forms: str) -> Callable[[Request], Candidate]:
    """Returns what makes float files with weights in those forms that runtimes have."""

    def make(request: Request) -> Candidate:
        allowed = tuple(form for form in forms if form in request.types)
        return building.float_weights(request, allowed)

    return make


def _small(request: Request) -> Candidate:
    make = building.packed_integers if request.integer else building.smallest
    return make(request)


TARGETS = {
    "float": Target(_floats()),
    "fast": Target(_floats("INT8")),
    "int2": Target(_floats("INT2", "INT4", "INT8")),
    "int4": Target(_floats("INT4", "INT8")),
    "lowbit": LowBitTarget(lowbit_making.make),
    "small": Target(_small),
    "int8": Target(building.integers),
    "mcu": MicroTarget(micro_making.make),
    "lce": LarqTarget(lce_making.make),
}
"""Name of a kind -> target."""
