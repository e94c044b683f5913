"""Full-integer files made small for microcontrollers.

`compress` stores the kernels of an int8 file that hold few values as 1 to 7 bits a
weight, within a bound on memory. The parts: `lookup_tables.py` (what can be
compressed, and how), `splitting.py`, `arena_planning.py` (which kernels, whole or in
parts) and `runtime.py` (running with TensorFlow Lite Micro). What makes the int8 file,
what checks that the result computes the same to the bit (`verification/comparison.py`),
and the C sources of the result (`c_source.py`) are not here.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from keras_sq.export.micro import lookup_tables, splitting
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.micro.arena_planning import Choice, Plan, Planner
from keras_sq.export.micro.lookup_tables import Kernel
from keras_sq.export.tflite.flatbuffer import TFLiteFile

ARENA_RATIO = 1.2
"""Memory that the compressed file may take, as a multiple of the int8 file's."""

MORE_ARENA_RATIO = 1.5
"""What it may take if that makes the file smaller by `WORTHWHILE`."""

WORTHWHILE = 0.1
"""Fraction of the file that more memory has to save."""

LAST_ARENA_RATIOS = (2.0, 3.0, 4.0, 6.0, 8.0, math.inf)
"""What it may take as long as less saves under `ENOUGH` of what can be saved."""

ENOUGH = 0.75
"""Fraction of what can be saved with any memory."""

_MEASUREMENTS = 6  # Most plans that are made and measured for one of the bounds.


@dataclasses.dataclass(frozen=True)
class MicroKernel:
    """A kernel in a compressed file.

    Attributes:
        name: Of its tensor in the int8 file.
        shape: Of the tensor.
        levels: Most different values in a filter; 0 if it was not looked at.
        bits: Bits of an index, `None` if the kernel stayed as it was.
        num_bytes: What its indices and tables take in the file, or its values.
        parts: How many parts it is decoded in; 0 if it stayed as it was.
        decoded_bytes: What is decoded at a time.
        reason: Why it stayed as it was.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    bits: int | None
    num_bytes: int
    parts: int
    decoded_bytes: int
    reason: str

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class MicroFile:
    """A file for TensorFlow Lite Micro.

    Attributes:
        content: Its bytes.
        arena_bytes: The memory that it needs, see `runtime.arena_bytes`.
        int8_bytes: Size of the file that it was made from.
        int8_arena_bytes: The memory that that file needs.
        kernels: All kernels, compressed or not.
        operators: Names of its operators, sorted.
    """

    content: bytes
    arena_bytes: int
    int8_bytes: int
    int8_arena_bytes: int
    kernels: tuple[MicroKernel, ...]
    operators: tuple[str, ...]


def compress(content: bytes, max_decode_bytes: int | None = None) -> MicroFile:
    """Returns an int8 file with small kernels, for TensorFlow Lite Micro.

    A kernel is compressed if it has at most 128 different values in each filter,
    and gets smaller; those that do not save a few hundred bytes stay as they are.
    The interpreter decodes a kernel each time that its operator runs, into memory.
    To bound that, layers are split along their output channels, which takes
    convolutions without groups and fully connected layers; other kernels that
    would take too much stay as they are.

    With `max_decode_bytes=None`, kernels and parts are chosen by the memory that
    the whole file takes. It is the smallest file found that runs in 1.2 times the
    memory of the int8 file; or in 1.5 times, where that makes it smaller by a tenth.
    If this saves less than three quarters of what can be saved with any memory, as
    with networks of dense layers alone, whose activations take next to none, more
    is allowed, step by step.

    Args:
        content: The bytes of a full-integer `.tflite` file with a fixed batch.
        max_decode_bytes: Most bytes of a kernel that are decoded at a time.

    Raises:
        ImportError: If the package `tflite-micro` is not installed.
        TypeError: If `max_decode_bytes` is no integer.
        ValueError: If `max_decode_bytes` is below 1.
        ExportError: If TensorFlow Lite Micro cannot run the file.
    """
    if max_decode_bytes is not None:
        if isinstance(max_decode_bytes, bool) or not isinstance(max_decode_bytes, int):
            raise TypeError(
                "Argument `max_decode_bytes` must be `None` or a number of bytes. "
                f"Received: max_decode_bytes={max_decode_bytes!r} "
                f"(of type {type(max_decode_bytes).__name__})"
            )
        if max_decode_bytes < 1:
            raise ValueError(
                "Argument `max_decode_bytes` must be at least 1. "
                f"Received: max_decode_bytes={max_decode_bytes}"
            )
    maker = _Maker(content)
    if max_decode_bytes is not None:
        return maker.measured(maker.planner.with_parts_of(max_decode_bytes))
    plans = maker.planner.plans()
    small = maker.smallest(plans, ARENA_RATIO)
    smaller = maker.smallest(plans, MORE_ARENA_RATIO)
    if len(smaller.content) <= (1 - WORTHWHILE) * len(small.content):
        small = smaller
    most = maker.planner.unchanged().file_bytes - min(x.file_bytes for x in plans)
    for ratio in LAST_ARENA_RATIOS:
        if len(content) - len(small.content) >= ENOUGH * most:
            break
        small = maker.smallest(plans, ratio)
    return small


def operators(file: TFLiteFile) -> tuple[str, ...]:
    """Returns the names of the operators of a file, sorted."""
    return tuple(
        sorted(
            {
                file.operator_name(operator)
                for graph in file.subgraphs
                for operator in graph.operators
            }
        )
    )


class _Maker:
    """Makes and measures compressed forms of a file."""

    def __init__(self, content: bytes) -> None:
        self._int8 = content
        self._arena_bytes = micro_runtime.arena_bytes(content)
        file = TFLiteFile(content)
        # Equal constants become one first, which tells of kernels that are shared.
        self._packed = file.pack()
        self._kernels = lookup_tables.find_kernels(file)
        self.planner = Planner(file, self._kernels)
        self._made: dict[tuple[tuple[int, ...], ...], MicroFile] = {}
        # What the estimates leave out, by the last measurement.
        self._offset: int | None = None

    def smallest(self, plans: Sequence[Plan], ratio: float) -> MicroFile:
        """Returns the smallest file within `ratio` times the int8 file's memory."""
        limit = ratio * self._arena_bytes
        best = self.measured(self.planner.unchanged())
        for _ in range(_MEASUREMENTS):
            fitting = [plan for plan in plans if self._expected_arena(plan) <= limit]
            if not fitting:
                break
            plan = min(fitting, key=lambda plan: plan.file_bytes)
            known = plan.sizes in self._made
            packed = self.measured(plan)
            if packed.arena_bytes <= limit and len(packed.content) < len(best.content):
                best = packed
            if known:
                break
        return best

    def _expected_arena(self, plan: Plan) -> int:
        if plan.sizes in self._made:
            return self._made[plan.sizes].arena_bytes
        offset = self._offset
        if offset is None:
            offset = self._arena_bytes - self.planner.unchanged().arena_bytes
        return plan.arena_bytes + offset

    def measured(self, plan: Plan) -> MicroFile:
        """Returns the file of a plan, measured."""
        if plan.sizes not in self._made:
            self._made[plan.sizes] = self._make(plan)
        return self._made[plan.sizes]

    def _make(self, plan: Plan) -> MicroFile:
        content, arena = self._int8, self._arena_bytes
        reports = [_unchanged(choice) for choice in plan.choices]
        if any(choice.sizes for choice in plan.choices):
            content, reports = self._compressed(plan)
            arena = micro_runtime.arena_bytes(content)
            self._offset = arena - plan.arena_bytes
        return MicroFile(
            content=content,
            arena_bytes=arena,
            int8_bytes=len(self._int8),
            int8_arena_bytes=self._arena_bytes,
            kernels=tuple(reports),
            operators=operators(TFLiteFile(content)),
        )

    def _compressed(self, plan: Plan) -> tuple[bytes, list[MicroKernel]]:
        file = TFLiteFile(self._packed)
        kernels = lookup_tables.find_kernels(file)
        parts: list[list[Kernel]] = []
        for choice, kernel in zip(plan.choices, kernels, strict=True):
            places = [kernel.index] if choice.sizes else []
            if len(choice.sizes) > 1:
                places = splitting.split(file, kernel, choice.sizes)
            parts.append([lookup_tables.part(file, kernel, x) for x in places])
        content = lookup_tables.compress(
            file.pack(), [part for group in parts for part in group]
        )
        result = TFLiteFile(content)
        reports = [
            _compressed(result, choice, group) if group else _unchanged(choice)
            for choice, group in zip(plan.choices, parts, strict=True)
        ]
        return content, reports


def _unchanged(choice: Choice) -> MicroKernel:
    kernel = choice.kernel
    return MicroKernel(
        name=kernel.name,
        shape=kernel.shape,
        levels=kernel.levels,
        bits=None,
        num_bytes=kernel.num_bytes,
        parts=0,
        decoded_bytes=0,
        reason=choice.reason,
    )


def _compressed(
    file: TFLiteFile, choice: Choice, parts: Sequence[Kernel]
) -> MicroKernel:
    kernel = choice.kernel
    places = [part.index for part in parts]
    return MicroKernel(
        name=kernel.name,
        shape=kernel.shape,
        levels=kernel.levels,
        bits=max(part.bits for part in parts),
        num_bytes=lookup_tables.stored_bytes(file, kernel.graph, places),
        parts=len(parts),
        decoded_bytes=max(part.weights for part in parts),
        reason="",
    )
