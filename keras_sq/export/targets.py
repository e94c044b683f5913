"""The targets of `export`: how each kind of file is made, verified and written.

A new target is a class (or an object of one) and a row in `TARGETS`, and a row in
`kinds.KINDS`, which says what users read of it.
"""

import abc
import pathlib
from collections.abc import Callable, Mapping

from keras_sq.export import building
from keras_sq.export.lce import checks as lce_checks
from keras_sq.export.lce import making as lce_making
from keras_sq.export.micro import c_source
from keras_sq.export.micro import making as micro_making
from keras_sq.export.report import ExportReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.verification import activations as activation_checks
from keras_sq.export.verification import comparison
from keras_sq.export.verification.comparison import Comparison


class Target(abc.ABC):
    """How one kind of file is made, verified and written.

    Attributes:
        source_suffixes: Suffixes of the source files written beside the file.
    """

    source_suffixes: tuple[str, ...] = ()

    @abc.abstractmethod
    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""

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
        self,
        content: bytes,
        report: ExportReport,
        destination: pathlib.Path,
        writers: Mapping[str, Callable[[bytes], None]],
    ) -> None:
        """Writes the file, and what belongs to it.

        Args:
            content: The bytes of the file.
            report: Report of the file.
            destination: Path of the file.
            writers: Suffix of a path -> function that writes the bytes there.
        """
        writers[".tflite"](content)


class FloatTarget(Target):
    """Files of float operations, with weights in the smallest of some forms.

    Args:
        *forms: Forms that weights may have; those that the runtime lacks are left
            out. None for float32 weights.
    """

    def __init__(self, *forms: str) -> None:
        self._forms = forms

    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""
        allowed = tuple(form for form in self._forms if form in request.types)
        return building.float_weights(request, allowed)


class SmallTarget(Target):
    """The smallest files: of int8 activations with examples, else of floats."""

    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""
        if request.integer:
            return building.packed_integers(request)
        return building.smallest(request)


class IntegerTarget(Target):
    """Files of int8 weights and activations."""

    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""
        return building.integers(request)


class MicroTarget(Target):
    """Files for TensorFlow Lite for Microcontrollers, with C sources."""

    source_suffixes = (".cc", ".h")

    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""
        return micro_making.make(request)

    def write(
        self,
        content: bytes,
        report: ExportReport,
        destination: pathlib.Path,
        writers: Mapping[str, Callable[[bytes], None]],
    ) -> None:
        """Writes the file and its C sources."""
        super().write(content, report, destination, writers)
        assert report.arena_bytes is not None  # `make` measured it.
        c_source.write(content, destination, report.arena_bytes, writers)


class LarqTarget(Target):
    """Files for Larq Compute Engine."""

    def make(self, request: Request) -> Candidate:
        """Returns the file, which is not verified yet."""
        return lce_making.make(request)

    def verify_activations(self, candidate: Candidate, request: Request) -> None:
        """Checks a file, whose interpreter shows no tensors but the outputs."""
        lce_checks.check_parts(candidate, request)


TARGETS: dict[str, Target] = {
    "float": FloatTarget(),
    "fast": FloatTarget("INT8"),
    "int2": FloatTarget("INT2", "INT4", "INT8"),
    "int4": FloatTarget("INT4", "INT8"),
    "small": SmallTarget(),
    "int8": IntegerTarget(),
    "mcu": MicroTarget(),
    "lce": LarqTarget(),
}
"""Name of a kind -> target."""
