"""The check that every exported file passes: it is run, and compared with Keras.

- A file of floats must agree with Keras on random and on representative inputs
  (`Comparer.compare_float`).
- So must one with quantized activations, but in the mean (`compare_rounded`): single
  examples may take another level. `activations.py` is strict in place of this.
- A file of int8 activations is compared on representative inputs, which are what its
  ranges are for, and in the mean (`compare_int8`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_sq.core.types import Array, Model
from keras_sq.export.conversion.convert import Converted
from keras_sq.export.errors import ExportError
from keras_sq.export.examples import Batch, Examples
from keras_sq.export.report import OutputError, TensorReport
from keras_sq.export.request import Candidate, Request
from keras_sq.export.tflite.runtime import FileRunner, Runner
from keras_sq.export.verification import locating
from keras_sq.export.verification.differences import (
    FLOAT_TOLERANCE,
    SILENT_STEPS,
    EntryErrors,
    Errors,
    agreeing,
    relative_error,
)
from keras_sq.export.verification.running import (
    Loader,
    check_equal,
    file_outputs,
    keras_outputs,
    loaded,
    refusal,
)

MAX_MEAN_ERROR = 0.5
"""Mean difference of an int8 file from Keras beyond which it is refused.

Or of a float file with quantized activations. Rounding stays far below. Of Keras's
outputs rounded as the file rounds its own: the int8 softmax has steps of 1/256, and a
thousand equal classes are 0 in it.
"""

LEAST_AGREEING = 0.5
"""Fraction of the examples that agree, where an output is silent and has no size."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a file that passed compares with the model.

    Attributes:
        largest_error: The largest difference of an output value, relative to
            the largest absolute value of that output in its batch.
        mean_error: Square root of the mean square of the difference, over that
            of the output; of the output where it is largest.
        random_examples: Number of random examples compared.
        representative_examples: Number of representative examples compared.
        runtime: Name and version of the interpreter.
        inputs: Inputs of the file.
        outputs: Outputs of the file.
        output_errors: The errors of each output of floats, entry by entry.
        tolerance: Largest relative difference allowed; `None` of int8 activations.
        agreeing: Fraction of the examples on which all outputs agree within the
            tolerance; `None` where all have to.
        bit_exact: Whether the file agreed with another bit for bit; `None` if
            there was none to agree with.
        equal_integers: Name of an output of integers or bools -> the fraction of them
            that are Keras's; of a file of int8 activations.
        explain: Function that returns a sentence on where a mean error comes from,
            or `None`.
    """

    largest_error: float
    mean_error: float
    random_examples: int
    representative_examples: int
    runtime: str
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    output_errors: tuple[OutputError, ...]
    tolerance: float | None = None
    agreeing: float | None = None
    bit_exact: bool | None = None
    equal_integers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    explain: Callable[[float], str] | None = None


def compare(candidate: Candidate, request: Request) -> Comparison:
    """Compares a file with Keras, as strictly as its kind allows.

    Raises:
        ExportError: See `Comparer`.
    """
    comparer = Comparer(
        candidate.converted,
        request.reference,
        request.examples,
        candidate.load,
        candidate.equals,
    )
    if request.integer:
        explain = None
        if not request.quantizers:
            explain = locating.explanation(candidate, request)
        return comparer.compare_int8(explain)
    if request.quantizers:
        return comparer.compare_rounded()
    if candidate.plain is not None:
        return comparer.compare_mean()
    return comparer.compare_float()


class Comparer:
    """Runs a file and a model on the same examples, and compares their outputs.

    Args:
        converted: The file.
        reference: Model that the file should compute.
        examples: Examples to compare on.
        load: Function that returns the interpreter.
        equals: File with which all outputs must agree bit for bit, or `None`.

    Raises:
        ExportError: If the file cannot be run or computes something else, or an
            output of the model is never a number.
    """

    def __init__(
        self,
        converted: Converted,
        reference: Model,
        examples: Examples,
        load: Loader = Runner,
        equals: bytes | None = None,
    ) -> None:
        self._converted, self._reference = converted, reference
        self._examples = examples
        self._runner = loaded(converted.content, load, True)
        self._pair: list[FileRunner] = []
        if equals is not None:
            # The kernels of XNNPACK round int8 in another way, and do not take all
            # of an unfolded file.
            alone = self._runner
            if alone.delegated:
                alone = loaded(converted.content, load, False)
            self._pair = [alone, loaded(equals, load, False)]
        self._errors: dict[str, Errors] = {}
        self._entries: dict[str, dict[str, EntryErrors]] = {}
        self._are_numbers: dict[str, bool] = {}
        self._counts = {"random": 0, "representative": 0}

    def compare_float(self, tolerance: float = FLOAT_TOLERANCE) -> Comparison:
        """Compares a float file with Keras, batch by batch.

        Args:
            tolerance: Largest relative difference allowed.
        """
        for batch, actual, expected in self._outputs():
            for name, value in expected.items():
                difference = relative_error(actual[name], value)
                if not difference <= tolerance:
                    raise refusal(
                        f"on {batch.kind} inputs, output '{name}' differs by "
                        f"{difference:.2g} of its largest value (allowed: "
                        f"{tolerance:.0e})"
                    )
                self._add(batch, name, actual[name], value)
        return self._comparison(tolerance=tolerance)

    def compare_rounded(self, tolerance: float = FLOAT_TOLERANCE) -> Comparison:
        """Compares a float file whose activations are rounded to levels, in the mean.

        Args:
            tolerance: Largest relative difference of an example that agrees.
        """
        agree: list[bool] = []
        for batch, actual, expected in self._outputs():
            agree += agreeing(actual, expected, batch.size, tolerance)
            for name, value in expected.items():
                if value.dtype.kind == "f":
                    self._add(batch, name, actual[name], value)
        fraction = float(np.mean(agree))
        for name, error in self._errors.items():
            silent = error.silent and fraction >= LEAST_AGREEING
            if not error.mean <= MAX_MEAN_ERROR and not silent:
                raise refusal(
                    f"output '{name}' differs by {error.mean:.2g} of its size in the "
                    "mean (though each part agrees: many sums lie on a threshold, "
                    "where the last bit decides; train the network, or normalize "
                    "before it rounds)"
                )
        return self._comparison(tolerance=tolerance, agreeing=fraction)

    def compare_mean(self) -> Comparison:
        """Compares a float file that rounds activations to int8 as it runs."""
        for batch, actual, expected in self._outputs():
            for name, value in expected.items():
                if value.dtype.kind == "f":
                    self._add(batch, name, actual[name], value)
        for name, error in self._errors.items():
            if not error.mean <= MAX_MEAN_ERROR and not error.silent:
                raise refusal(
                    f"output '{name}' differs by {error.mean:.2g} of its size in the "
                    "mean, though the same products in float agree: int8 is too coarse "
                    "for its activations"
                )
        return self._comparison()

    def compare_int8(self, explain: Callable[[float], str] | None = None) -> Comparison:
        """Compares a file of int8 activations with Keras, in the mean.

        Args:
            explain: Function that returns a sentence on where a mean error comes from.
                `None` where activations are rounded to levels: no bound holds then.
        """
        rounded: dict[str, Errors] = {}
        equal: dict[str, list[Array]] = {}
        runner = self._runner
        for batch, actual, expected in self._outputs("representative"):
            for name, value in expected.items():
                if not np.all(np.isfinite(value)):
                    raise ExportError(
                        f"Output '{name}' of model '{self._reference.name}' is NaN or "
                        "infinite on `representative_data`; int8 has no such values. "
                        "Is the data prepared like the training data?"
                    )
                if value.dtype.kind != "f":
                    # Which is the largest of values may hang on a step.
                    equal.setdefault(name, []).append(_equal(name, actual[name], value))
                    continue
                self._add(batch, name, actual[name], value)
                again = runner.dequantized(name, runner.quantized(name, value))
                errors = Errors(SILENT_STEPS * runner.step(name))
                rounded.setdefault(name, errors).add(
                    relative_error(actual[name], again), actual[name], again
                )
        for name, error in rounded.items():
            if explain is not None and not error.mean <= MAX_MEAN_ERROR:
                remedy = "Is `representative_data` prepared like the training data?"
                raise refusal(
                    f"on representative inputs, output '{name}' differs by "
                    f"{error.mean:.2g} of its size in the mean. "
                    f"{explain(error.mean) or remedy}"
                )
        fractions = {
            name: float(np.mean(np.concatenate(parts)))
            for name, parts in equal.items()
            if any(part.size for part in parts)
        }
        return self._comparison(
            bit_exact=True if self._pair else None,
            equal_integers=fractions,
            explain=explain,
        )

    def _outputs(
        self, *kinds: str
    ) -> Iterator[tuple[Batch, dict[str, Array], dict[str, Array]]]:
        """Yields each batch with the outputs of the file and of Keras, as floats.

        Args:
            *kinds: Kinds of batches that are compared with Keras; all without any.
        """
        signature = self._converted.signature
        for batch in self._examples.comparison(signature):
            outputs = file_outputs(self._runner, batch)
            if self._pair:
                alone, other = self._pair
                first = outputs
                if alone is not self._runner:
                    first = file_outputs(alone, batch)
                second = file_outputs(other, batch)
                check_equal(first, second, batch.kind)
            self._counts[batch.kind] += batch.size
            if kinds and batch.kind not in kinds:
                continue
            expected = keras_outputs(self._reference, signature, batch)
            for name in expected:
                if name not in outputs:
                    raise refusal(f"it has no output '{name}'")
            actual = {k: self._runner.dequantized(k, x) for k, x in outputs.items()}
            yield batch, actual, expected
        for name, are_numbers in self._are_numbers.items():
            if not are_numbers:
                raise self._never_a_number(name)

    def _add(self, batch: Batch, name: str, actual: Array, expected: Array) -> None:
        """Adds the errors of an output on a batch."""
        difference = relative_error(actual, expected)
        self._errors.setdefault(name, Errors()).add(difference, actual, expected)
        if expected.dtype.kind == "f":
            entries = self._entries.setdefault(batch.kind, {})
            entries.setdefault(name, EntryErrors()).add(actual, expected)
            known = bool(np.any(~np.isnan(expected)) or not expected.size)
            self._are_numbers[name] = self._are_numbers.get(name, False) or known

    def _comparison(self, **details: Any) -> Comparison:
        """Returns the sum of all errors added, with what else was measured."""
        runner = self._runner
        shown = self._entries.get("representative", self._entries.get("random", {}))
        errors = self._errors.values()
        return Comparison(
            largest_error=max((entry.largest for entry in errors), default=0.0),
            mean_error=max((entry.mean for entry in errors), default=0.0),
            random_examples=self._counts["random"],
            representative_examples=self._counts["representative"],
            runtime=runner.runtime,
            inputs=tuple(
                _tensor(runner, entry.name, entry.shape, runner.inputs[entry.name])
                for entry in self._converted.signature.inputs
            ),
            outputs=tuple(
                _tensor(runner, name, *runner.outputs[name])
                for name in sorted(runner.outputs)
            ),
            output_errors=tuple(
                entry.result(name, self._errors[name].mean, runner.step(name) or None)
                for name, entry in sorted(shown.items())
            ),
            **details,
        )

    def _never_a_number(self, name: str) -> ExportError:
        """Returns the error for an output that is NaN on everything that was tried."""
        model, remedy = self._reference, ""
        layer = locating.first_nan(self._converted, model, self._examples)
        begins = f", and the first NaN is that of layer '{layer}'" if layer else ""
        if self._examples.arrays is None:
            remedy = " (or pass `representative_data` on which its outputs are numbers)"
        return ExportError(
            f"Output '{name}' of model '{model.name}' is NaN on every input that was "
            f"tried{begins}. Go back to a checkpoint from before that{remedy}. No file "
            "was written."
        )


def _equal(name: str, actual: Array, expected: Array) -> Array:
    """Returns which integers of an output are Keras's."""
    if actual.shape != expected.shape:
        raise refusal(
            f"output '{name}' has shape {actual.shape}, that of Keras {expected.shape}"
        )
    return np.ravel(actual == expected)


def _tensor(
    runner: FileRunner, name: str, shape: tuple[int | None, ...], dtype: str
) -> TensorReport:
    return TensorReport(name, shape, dtype, *runner.quantization.get(name, ()))
