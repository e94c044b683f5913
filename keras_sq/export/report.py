"""What `export` reports of a file: sizes, tensors, kernels, activations, error."""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from keras_sq.core import text_tables

METADATA_NAME = "keras_sq.report"
"""The entry of a file's metadata that holds its report, as compressed JSON."""


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """An input or output of the file.

    Attributes:
        name: In the file's signature.
        shape: With the batch first; `None` where the size is open.
        dtype: Of the tensor.
        scale: Of int8: the number that a step of 1 stands for.
        zero_point: Of int8: what stands for 0.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        text = f"{self.name} ({sizes}) {self.dtype}"
        if self.scale is not None:
            text += f" (scale {self.scale:.4g}, zero point {self.zero_point})"
        return text


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """A weight tensor in the file.

    Attributes:
        path: Of a quantized kernel: path of its layer and name of the weight,
            by slashes. Of another tensor: its layer, or its name in the file.
        weights: How many weights it has.
        levels: The most different values that a filter holds; `None` if they
            are more than 256.
        stored_as: How the file holds it.
        num_bytes: What its constants take in the file, tables and scales
            included.
        quantized: Whether it is a quantized kernel of the model.
        reason: Why it is stored like this.
    """

    path: str
    weights: int
    levels: int | None
    stored_as: str
    num_bytes: int
    quantized: bool
    reason: str

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes in the file."""
        return 8 * self.num_bytes / self.weights


@dataclasses.dataclass(frozen=True)
class ActivationReport:
    """Quantized activations in the file.

    Attributes:
        path: Of the layer; of a layer's quantized input with `/input` behind.
        rule: Short name of the rule, such as `"lq-2"`.
        levels: How many different values they take.
        stored_as: `"float levels"`, `"integer grid"` (the steps of an int8 tensor
            are the levels), `"signs"` (of an int8 tensor, computed), `"table"` (looked
            up, by the codes of an int8 tensor), `"bits"` (32 signs to a number) or
            several of these, if the layer is called several times.
        reason: Why, and how exactly.
    """

    path: str
    rule: str
    levels: int
    stored_as: str
    reason: str


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How an output of the file compares with Keras's, by entries of its last axis.

    Measured on the representative examples, or the random ones without any.

    Attributes:
        name: Of the output.
        mean_error: Square root of the mean square of the difference, relative to that
            of the output; to 1 where that is 0.
        largest: The largest absolute value that Keras gave; `None` if that was not
            measured, as where the size of the last axis differs from batch to batch.
        entries: Size of the last axis; `None` as for `largest`.
        worst_entry: The entry with the largest error; `None` if all are constant.
        worst_error: Its error: square root of the mean square of the difference,
            relative to the standard deviation of the entry over the examples.
        narrow_entries: Entries that span less than 4 steps of int8, but are not
            constant: pairs of the first and the last of each row of neighbours.
        narrow_span: The largest span of these: what lies between the least and the
            largest value of an entry.
        nan_entries: Entries that were NaN on every example, in such pairs.
    """

    name: str
    mean_error: float
    largest: float | None = None
    entries: int | None = None
    worst_entry: int | None = None
    worst_error: float | None = None
    narrow_entries: tuple[tuple[int, int], ...] = ()
    narrow_span: float | None = None
    nan_entries: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the Keras model.

    Attributes:
        path: Of the file.
        target: Its kind, see `keras_sq.export`.
        num_bytes: Size of the file.
        float_bytes: Size of the float32 file of the same model.
        parameters: Weights of the model, quantized and not.
        inputs: What the file takes.
        outputs: What it gives.
        kernels: The weight tensors: the quantized kernels, then the others.
        activations: The quantized activations.
        largest_error: Largest difference from the Keras model, relative to
            the largest absolute value of the output (to 1 where that is 0). Quantized
            activations may make it large without a fault: see `agreeing`.
        mean_error: Square root of the mean square of the difference, relative
            to that of the output (to 1 where that is 0).
        tolerance: What was allowed of the largest error; `None` for int8
            activations, where it depends on the model. With quantized
            activations, what was allowed where nothing is rounded to levels.
        agreeing: The fraction of the examples that agree with Keras within the
            tolerance, of a float file with quantized activations; `None` for
            others, where all have to. In the rest an activation lies so close to a
            threshold that the order of a sum decides which level it takes.
        bit_exact: Whether the file was found to agree bit for bit with the
            unpacked int8 file; `None` where there is no such file.
        random_examples: How many random examples were run.
        representative_examples: How many of the user's were.
        runtime: The interpreter that ran the file.
        runtimes: The oldest versions that run it.
        arena_bytes: Memory that the file needs on a microcontroller; `None`
            for other targets.
        int8_arena_bytes: Memory that the unpacked int8 file needs there.
        sources: C files written beside it.
        output_errors: The errors of each output of floats, entry by entry.
        notes: What differs from what one might expect.
    """

    path: str
    target: str
    num_bytes: int
    float_bytes: int
    parameters: int
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    kernels: tuple[KernelReport, ...]
    largest_error: float
    mean_error: float
    tolerance: float | None
    bit_exact: bool | None
    random_examples: int
    representative_examples: int
    runtime: str
    runtimes: tuple[str, ...]
    arena_bytes: int | None = None
    int8_arena_bytes: int | None = None
    activations: tuple[ActivationReport, ...] = ()
    agreeing: float | None = None
    sources: tuple[str, ...] = ()
    output_errors: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def quantized_weights(self) -> int:
        """How many weights are quantized."""
        return sum(kernel.weights for kernel in self.kernels if kernel.quantized)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that a quantized weight takes in the file; `None` without any."""
        if not self.quantized_weights:
            return None
        size = sum(kernel.num_bytes for kernel in self.kernels if kernel.quantized)
        return 8 * size / self.quantized_weights

    @property
    def file_bits_per_weight(self) -> float:
        """Bits of the whole file over all weights of the model."""
        return 8 * self.num_bytes / max(self.parameters, 1)

    @property
    def times_smaller(self) -> float:
        """Size of the float32 file over that of this one."""
        return self.float_bytes / self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as a dict that JSON can hold."""
        content = dataclasses.asdict(self)
        for entry, kernel in zip(content["kernels"], self.kernels, strict=True):
            entry["bits_per_weight"] = kernel.bits_per_weight
        return {
            **content,
            "quantized_weights": self.quantized_weights,
            "bits_per_weight": self.bits_per_weight,
            "file_bits_per_weight": self.file_bits_per_weight,
            "times_smaller": self.times_smaller,
        }

    def to_metadata(self, targets: Iterable[str] = ()) -> bytes:
        """Returns what the file says of itself, see `METADATA_NAME`.

        All but where the file is and how large: it does not contain itself.

        Args:
            targets: Names of targets. Filled up with zeros, it takes no fewer bytes
                than with one of these: files of two targets that are the same but for
                the name are of one size.
        """
        content = self.to_dict()
        left_out = ("path", "num_bytes", "sources", "times_smaller")
        for key in (*left_out, "file_bits_per_weight"):
            del content[key]
        sizes = [len(_compressed({**content, "target": name})) for name in targets]
        metadata = _compressed(content)
        return metadata.ljust(max(sizes, default=0), b"\0")

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.num_bytes:,} bytes, target '{self.target}', "
            f"{self.times_smaller:.1f} times smaller than float32",
            f"  takes    {'; '.join(map(str, self.inputs))}",
            f"  gives    {'; '.join(map(str, self.outputs))}",
            f"  weights  {self._weights()}",
            f"  checked  {self._checked()}",
            f"  runs on  {self._runs_on()}",
        ]
        if self.arena_bytes is not None:
            arena = f"  arena    {self.arena_bytes:,} bytes"
            if self.int8_arena_bytes:
                arena += f" ({self.int8_arena_bytes:,} for the unpacked int8 file)"
            lines.append(arena)
        if self.sources:
            lines.append(f"  sources  {', '.join(self.sources)}")
        lines += [f"  note     {note}" for note in self.notes]
        if self.kernels:
            lines += ["", *self._kernel_table()]
        if self.activations:
            lines += ["", *self._activation_table()]
        return "\n".join(lines)

    def _weights(self) -> str:
        text = f"{self.parameters:,}, of which {self.quantized_weights:,} quantized"
        if self.bits_per_weight is not None:
            text += f", at {self.bits_per_weight:.2f} bits each"
        return f"{text}; {self.file_bits_per_weight:.2f} over the whole file"

    def _runs_on(self) -> str:
        text = ", ".join(self.runtimes)
        young = any(x.stored_as in ("INT2 codes", "INT4 codes") for x in self.kernels)
        if young and self.target == "small":
            text += " (for older ones, pass `oldest_runtime`)"
        return text

    def _checked(self) -> str:
        examples = f"{self.random_examples} random"
        if self.representative_examples:
            examples += f" and {self.representative_examples} representative"
        text = f"{examples} examples with {self.runtime}: "
        if self.bit_exact:
            text += "bit for bit the int8 file; "
        if self.agreeing is not None:
            return (
                f"{text}{100 * self.agreeing:.3g} % within {self.tolerance:.0e}, mean "
                f"error {self.mean_error:.1e}; each part on its own"
            )
        if self.tolerance is not None:
            return (
                f"{text}largest error {self.largest_error:.1e} "
                f"(allowed {self.tolerance:.0e})"
            )
        text += (
            f"against Keras, largest error {self.largest_error:.1e}, "
            f"mean {self.mean_error:.1e}"
        )
        worst = max((x.worst_error or 0.0 for x in self.output_errors), default=0.0)
        if not worst:
            return text
        return f"{text}; of the worst entry, {worst:.1e} of its spread"

    def _kernel_table(self) -> list[str]:
        rows = [("kernel", "weights", "levels", "stored as", "bits", "because")]
        rows += [
            (
                kernel.path,
                f"{kernel.weights:,}",
                "many" if kernel.levels is None else str(kernel.levels),
                kernel.stored_as,
                f"{kernel.bits_per_weight:.2f}",
                kernel.reason,
            )
            for kernel in self.kernels
        ]
        return _indented(text_tables.aligned(rows, words=(0, 3, 5)))

    def _activation_table(self) -> list[str]:
        rows = [("activations", "rule", "levels", "held as", "because")]
        rows += [
            (entry.path, entry.rule, str(entry.levels), entry.stored_as, entry.reason)
            for entry in self.activations
        ]
        return _indented(text_tables.aligned(rows, words=(0, 1, 3, 4)))


def _compressed(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":"))
    return zlib.compress(text.encode(), 9)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
