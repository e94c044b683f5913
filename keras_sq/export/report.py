"""What `export` reports of a file: sizes, tensors, kernels, error."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """An input or output of the file.

    Attributes:
        name: In the file's signature.
        shape: With the batch first; `None` where the size is open.
        dtype: Of the tensor.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {self.dtype}"


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """A quantized kernel in the file.

    Attributes:
        path: Path of its layer and name of the weight, by slashes.
        weights: How many weights it has.
        levels: How many different values a filter may hold.
        stored_as: How the file holds it.
        bits_per_weight: What it takes in the file.
    """

    path: str
    weights: int
    levels: int
    stored_as: str
    bits_per_weight: float


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the Keras model.

    Attributes:
        path: Of the file.
        target: Its kind, see `keras_sq.export`.
        num_bytes: Size of the file.
        parameters: Weights of the model, quantized and not.
        inputs: What the file takes.
        outputs: What it gives.
        kernels: The quantized kernels.
        largest_error: Largest difference from the Keras model, relative to
            the largest absolute value of the output.
        tolerance: What was allowed.
        random_examples: How many random examples were compared.
        representative_examples: How many of the user's were.
        runtime: The interpreter that ran the file.
        notes: What differs from what one might expect.
    """

    path: str
    target: str
    num_bytes: int
    parameters: int
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    kernels: tuple[KernelReport, ...]
    largest_error: float
    tolerance: float
    random_examples: int
    representative_examples: int
    runtime: str
    notes: tuple[str, ...] = ()

    @property
    def quantized_weights(self) -> int:
        """How many weights are quantized."""
        return sum(kernel.weights for kernel in self.kernels)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that a quantized weight takes in the file; `None` without any."""
        if not self.quantized_weights:
            return None
        bits = sum(kernel.weights * kernel.bits_per_weight for kernel in self.kernels)
        return bits / self.quantized_weights

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as a dict that JSON can hold."""
        return {
            **dataclasses.asdict(self),
            "quantized_weights": self.quantized_weights,
            "bits_per_weight": self.bits_per_weight,
        }

    def __str__(self) -> str:
        examples = f"{self.random_examples} random"
        if self.representative_examples:
            examples += f" and {self.representative_examples} representative"
        lines = [
            f"{self.path}: {self.num_bytes:,} bytes, target '{self.target}'",
            f"  takes    {'; '.join(map(str, self.inputs))}",
            f"  gives    {'; '.join(map(str, self.outputs))}",
            f"  weights  {self.parameters:,}, of which {self.quantized_weights:,} "
            "quantized",
            f"  checked  {examples} examples with {self.runtime}: largest error "
            f"{self.largest_error:.1e} (allowed {self.tolerance:.0e})",
        ]
        lines += [f"  note     {note}" for note in self.notes]
        if self.kernels:
            lines += ["", *self._kernel_table()]
        return "\n".join(lines)

    def _kernel_table(self) -> list[str]:
        rows = [("kernel", "weights", "levels", "stored as", "bits")]
        rows += [
            (
                kernel.path,
                f"{kernel.weights:,}",
                str(kernel.levels),
                kernel.stored_as,
                f"{kernel.bits_per_weight:.2f}",
            )
            for kernel in self.kernels
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        left = (0, 3)  # The columns of words.
        return [
            "  "
            + "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
