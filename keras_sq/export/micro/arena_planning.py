"""Which kernels to compress and which layers to split, so that memory suffices.

A decoded kernel lies in the interpreter's memory (the arena) while its operator runs,
beside the activations that are needed then. So the largest kernels are best decoded
where activations are small, or in parts (`splitting.py`), or not at all: a kernel
that stays as it is takes no memory. What lives here chooses among these for each
kernel, by estimates; `runtime.py` measures what was chosen.

Design note: **a limit on the memory, not on the parts.** One bound on the size of
all decoded parts serves badly: it must be small for the early layers, whose
activations fill the arena, and then cuts the late ones, which hold most weights,
into so many operators that these fill it. A network of half a million weights, with
35 KB of arena as int8, needed 1.9 times that with the best bound tried; this way 1.5,
with one kernel of 18 KB left as it was.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sq.export.micro import splitting
from keras_sq.export.micro.lookup_tables import FILE_BYTES_PER_KERNEL, Kernel
from keras_sq.export.tflite.flatbuffer import (
    NUMPY_TYPES,
    TYPE_NAMES,
    TFLiteFile,
    indices,
    shape_of,
)

FILE_BYTES_PER_PART = 400
"""What each part of a split layer takes in the file besides its indices."""

ARENA_BYTES_PER_KERNEL = 200
"""What the interpreter keeps of a decoder and its tensors. Measured, as the others
are that begin with this name; they matter only to what is tried first."""

ARENA_BYTES_PER_PART = 400
"""What it keeps of a part of a split layer: its decoder, operator and tensors."""

ARENA_BYTES_PER_SPLIT = 1200
"""What it keeps of the concatenations of a split layer."""

_LIMITS = 32  # How many limits on the decoded kernels and activations are tried,
_LEAST_SAVED = 16  # each with so many limits on what a kernel has to save.


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a kernel is to be stored.

    Attributes:
        kernel: The kernel.
        sizes: Channels of its parts: several if its layers are split, one if it
            is compressed as a whole, none if it stays as it is.
        reason: Why it stays.
        peak: Bytes of activations and decoded kernel while its layers run.
        file_bytes: What it takes in the file.
        kept_bytes: What the interpreter keeps of its decoders and parts.
    """

    kernel: Kernel
    sizes: tuple[int, ...]
    reason: str
    peak: int
    file_bytes: int
    kept_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How all kernels are to be stored.

    Attributes:
        choices: For each kernel.
        peak: Bytes of activations and decoded kernels at the worst time.
    """

    choices: tuple[Choice, ...]
    peak: int

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """What makes a plan different from others."""
        return tuple(choice.sizes for choice in self.choices)

    @property
    def file_bytes(self) -> int:
        """Size of the kernels in the file, estimated."""
        return sum(choice.file_bytes for choice in self.choices)

    @property
    def arena_bytes(self) -> int:
        """Size of what it adds to the memory, estimated, but for a constant."""
        return self.peak + sum(choice.kept_bytes for choice in self.choices)


class Planner:
    """Makes plans for a file.

    Args:
        file: The file, which is not changed.
        kernels: All its kernels.
    """

    def __init__(self, file: TFLiteFile, kernels: Sequence[Kernel]) -> None:
        self._kernels = kernels
        self._during: dict[int, int] = {}
        self._joining: dict[int, int] = {}
        for graph in file.subgraphs:
            self._add_activations(file, graph)
        self._base = max(self._during.values(), default=0)
        self._unsplit = {
            id(kernel): kernel.obstacle or splitting.obstacle(file, kernel)
            for kernel in kernels
        }

    def with_parts_of(self, most_bytes: int) -> Plan:
        """Returns the plan that decodes at most some bytes at a time."""
        return self._plan(
            [
                self._choice(
                    kernel,
                    most_bytes,
                    True,
                    f"would decode more than {most_bytes} bytes at a time",
                )
                for kernel in self._kernels
            ]
        )

    def plans(self) -> list[Plan]:
        """Returns plans from the smallest memory to the smallest file."""
        wholes = [
            self._activations(kernel) + kernel.weights for kernel in self._kernels
        ]
        highest = max(wholes, default=self._base)
        limits = np.geomspace(max(self._base, 1), max(highest, self._base, 1), _LIMITS)
        saved = sorted({0, *(kernel.saved_bytes + 1 for kernel in self._kernels)})
        chosen = np.linspace(0, len(saved) - 1, min(len(saved), _LEAST_SAVED))
        least_saved = [saved[place] for place in chosen.astype(int)]
        by_sizes: dict[tuple[tuple[int, ...], ...], Plan] = {}
        for limit in np.ceil(limits).astype(int).tolist():
            for least in least_saved:
                plan = self._within(limit, least)
                by_sizes.setdefault(plan.sizes, plan)
        return list(by_sizes.values())

    def unchanged(self) -> Plan:
        """Returns the plan that leaves all kernels as they are."""
        return self._plan([self._stays(kernel, "") for kernel in self._kernels])

    def _within(self, limit: int, least_saved: int) -> Plan:
        """Returns the plan for a limit on activations and decoded kernels."""
        reason = "would take too much memory when decoded"
        return self._plan(
            [
                self._stays(kernel, reason)
                if kernel.saved_bytes < least_saved
                else self._choice(
                    kernel,
                    limit - self._activations(kernel),
                    self._most_joining(kernel) <= limit,
                    reason,
                )
                for kernel in self._kernels
            ]
        )

    def _choice(
        self, kernel: Kernel, most_bytes: int, may_split: bool, reason: str
    ) -> Choice:
        """Returns the smallest form of which `most_bytes` are decoded at a time."""
        if kernel.obstacle:
            return self._stays(kernel, kernel.obstacle)
        activations = self._activations(kernel)
        decoders = _decoders(kernel)
        if kernel.weights <= most_bytes:
            return Choice(
                kernel,
                kernel.shape[:1],
                "",
                activations + kernel.weights,
                kernel.compressed_bytes + decoders * FILE_BYTES_PER_KERNEL,
                decoders * ARENA_BYTES_PER_KERNEL,
            )
        if not may_split:
            return self._stays(kernel, reason)
        if self._unsplit[id(kernel)]:
            return self._stays(kernel, f"{reason}, and {self._unsplit[id(kernel)]}")
        channel_bytes = kernel.weights // kernel.shape[0]
        if most_bytes < splitting.MIN_CHANNELS * channel_bytes:
            return self._stays(kernel, reason)
        sizes = splitting.part_sizes(kernel.shape[0], most_bytes // channel_bytes)
        parts = len(sizes) * decoders
        file_bytes = kernel.compressed_bytes + parts * FILE_BYTES_PER_PART
        if file_bytes >= kernel.num_bytes:
            return self._stays(kernel, f"{reason}, and would not shrink in parts")
        return Choice(
            kernel,
            sizes,
            "",
            max(activations + max(sizes) * channel_bytes, self._most_joining(kernel)),
            file_bytes,
            parts * ARENA_BYTES_PER_PART + decoders * ARENA_BYTES_PER_SPLIT,
        )

    def _stays(self, kernel: Kernel, reason: str) -> Choice:
        return Choice(
            kernel,
            (),
            kernel.obstacle or reason,
            self._activations(kernel),
            kernel.num_bytes,
            0,
        )

    def _plan(self, choices: Sequence[Choice]) -> Plan:
        peaks = [choice.peak for choice in choices]
        return Plan(tuple(choices), max([self._base, *peaks]))

    def _activations(self, kernel: Kernel) -> int:
        return max(self._during[id(use.operator)] for use in kernel.uses)

    def _most_joining(self, kernel: Kernel) -> int:
        return max(self._joining[id(use.operator)] for use in kernel.uses)

    def _add_activations(self, file: TFLiteFile, graph: Any) -> None:
        """Adds up what lives in memory at each operator of a graph.

        While it runs, and while its output, which the parts of a split layer made
        piece by piece, is put together: the inputs that no one else needs are gone
        then, but there are two copies of the output.
        """
        first: dict[int, int] = {index: 0 for index in indices(graph.inputs)}
        last: dict[int, int] = {index: 0 for index in indices(graph.inputs)}
        for number, operator in enumerate(graph.operators):
            for index in indices(operator.outputs):
                first.setdefault(index, number)
            for index in (*indices(operator.inputs), *indices(operator.outputs)):
                last[index] = number
        last |= {index: len(graph.operators) for index in indices(graph.outputs)}
        sizes = {index: _num_bytes(graph.tensors[index]) for index in first}
        live = np.zeros(len(graph.operators) + 1, np.int64)
        for index, start in first.items():
            live[start : last[index] + 1] += sizes[index]
        for number, operator in enumerate(graph.operators):
            ending = {
                index
                for index in indices(operator.inputs)
                if index in first and last[index] == number
            }
            during = int(live[number])
            joining = during - sum(sizes[index] for index in ending)
            joining += sum(sizes[index] for index in indices(operator.outputs))
            self._during[id(operator)] = during
            self._joining[id(operator)] = joining


def _decoders(kernel: Kernel) -> int:
    return len({id(use.operator) for use in kernel.uses})


def _num_bytes(tensor: Any) -> int:
    """Returns the size of an activation."""
    kind = NUMPY_TYPES.get(TYPE_NAMES.get(tensor.type, ""), "<i4")
    return int(np.prod(shape_of(tensor), dtype=np.int64)) * np.dtype(kind).itemsize
