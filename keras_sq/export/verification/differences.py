"""How far outputs of a file are from Keras's, in figures that nothing makes infinite.

A size to divide by may be 0: an output that is silent on all examples (a ReLU that
never opens) is as good as any. What differs from it is measured against 1, or, where
the file has steps, against some of these.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from keras_sq.core.types import Array
from keras_sq.export.report import OutputError

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a float file from Keras, see `comparison.py`."""

SILENT = 2.0**-23
"""Outputs that are no larger count as 0: terms of about 1 that cancel leave as much."""

SILENT_STEPS = 4
"""Steps of int8 that are the least size of an output to compare with.

A rounding to the other side is a step.
"""

FEW_STEPS = 4
"""Steps of int8 that an entry must span to be told apart."""

AT_ONCE = 2**20
"""Values that are looked at together: more take too much memory."""

CONSTANT = 1e-6
"""Spread, relative to the largest absolute value, up to which an entry is constant."""


class Errors:
    """Errors of one output over all batches.

    Args:
        least_size: The least root mean square to compare with.

    Attributes:
        largest: The largest of those that were added.
    """

    def __init__(self, least_size: float = 0.0) -> None:
        self.largest = 0.0
        self._least_size = least_size
        self._count = 0
        self._of_difference = 0.0
        self._of_value = 0.0

    def add(self, largest: float, actual: Array, expected: Array) -> None:
        """Adds a batch, and the largest error in it."""
        self.largest = max(self.largest, largest)
        if largest == float("inf"):
            self._of_difference = float("inf")
        elif actual.dtype.kind == "f":
            finite = np.isfinite(expected)
            value = expected[finite].astype("f8")
            self._count += value.size
            self._of_difference += float(np.sum((actual[finite] - value) ** 2))
            self._of_value += float(np.sum(value**2))

    @property
    def silent(self) -> bool:
        """Whether there is no size to compare with."""
        return self._size <= SILENT

    @property
    def _size(self) -> float:
        size = np.sqrt(self._of_value / max(self._count, 1))
        return max(float(size), self._least_size)

    @property
    def mean(self) -> float:
        """Root mean square of the differences, over that of the expected values.

        Over 1 where these are 0.
        """
        difference = float(np.sqrt(self._of_difference / max(self._count, 1)))
        return difference if self.silent else difference / self._size


def size_of(values: Array) -> float:
    """Returns the largest absolute value of those that are finite; 1 for zeros."""
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    return largest if largest > SILENT else 1.0


def _with_infinities(values: Array) -> Array:
    """Returns values with infinity for the largest float32, which some kernels give."""
    if values.dtype.kind != "f":
        return values
    largest = np.abs(values) >= np.finfo(np.float32).max
    result: Array = np.where(largest, np.copysign(np.inf, values), values)
    return result


def relative_error(actual: Array, expected: Array) -> float:
    """Returns the largest difference over the largest absolute value.

    Over 1 where all that is expected is 0. Infinite if the shapes or the places of
    values that are not finite differ, or if integers or bools differ at all.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if actual.dtype.kind != "f" or expected.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    actual, expected = _with_infinities(actual), _with_infinities(expected)
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    actual, expected = actual[finite].astype("f8"), expected[finite].astype("f8")
    if not np.all(np.isfinite(actual)):
        return float("inf")
    return float(np.max(np.abs(actual - expected), initial=0.0)) / size_of(expected)


def agreeing(
    actual: Mapping[str, Array],
    expected: Mapping[str, Array],
    count: int,
    tolerance: float = FLOAT_TOLERANCE,
) -> list[bool]:
    """Returns for each example of a batch whether all outputs agree.

    Args:
        actual: Outputs by name.
        expected: Outputs by name.
        count: How many examples there are. Outputs without them on the first axis
            go for all.
        tolerance: Largest difference, relative to the largest value in the batch.
    """
    agree = np.ones(count, bool)
    for name, value in expected.items():
        other = actual.get(name, np.zeros(0))
        if other.shape != value.shape:
            return [False] * count
        if value.dtype.kind == "f":
            other, value = _with_infinities(other), _with_infinities(value)
            bound = tolerance * size_of(value)
            with np.errstate(invalid="ignore"):  # Infinity less infinity.
                equal = (other == value) | (np.abs(other - value) <= bound)
            equal |= np.isnan(other) & np.isnan(value)
        else:
            equal = other == value
        by_example = value.ndim > 0 and len(value) == count
        agree &= equal.reshape(count, -1).all(axis=1) if by_example else equal.all()
    return [bool(entry) for entry in agree]


class EntryErrors:
    """Errors of one output by the entries of its last axis, over all batches.

    An output of boxes and class scores side by side has one mean, which the boxes
    make; each entry is measured against its own spread over the examples.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Array] | None = None
        self._same_size = True

    def add(self, actual: Array, expected: Array) -> None:
        """Adds a batch."""
        if actual.shape != expected.shape or expected.dtype.kind != "f":
            return
        columns = expected.shape[-1] if expected.ndim > 1 else 1
        if not columns:
            return
        values, other = expected.reshape(-1, columns), actual.reshape(-1, columns)
        if self._sums is None:
            self._sums = _start(values)
        if len(self._sums["origin"]) != columns:  # An open size, such as of time.
            self._same_size = False
            return
        rows = max(AT_ONCE // columns, 1)
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            self._add(self._sums, other[part].astype("f8"), values[part].astype("f8"))

    def _add(self, sums: dict[str, Array], result: Array, value: Array) -> None:
        sums["numbers"] += (~np.isnan(value)).sum(axis=0)
        known = np.isfinite(value) & np.isfinite(result)
        sums["count"] += known.sum(axis=0)
        for key, choose, other in (
            ("low", np.minimum, np.inf),
            ("high", np.maximum, -np.inf),
        ):
            limits = choose.reduce(np.where(known, value, other), axis=0)
            sums[key] = choose(sums[key], limits)
        value, result = np.where(known, value, 0.0), np.where(known, result, 0.0)
        sums["error"] += ((result - value) ** 2).sum(axis=0)
        # Around a value of each entry: what is far from 0 may differ by little.
        off = np.where(known, value - sums["origin"], 0.0)
        sums["sum"] += off.sum(axis=0)
        sums["square"] += (off**2).sum(axis=0)

    def result(self, name: str, mean: float, step: float | None) -> OutputError:
        """Returns what is to report of the output.

        Args:
            name: Of the output.
            mean: Its mean error as a whole.
            step: Of int8, or `None`.
        """
        if self._sums is None or not self._same_size:
            return OutputError(name, mean)
        sums = self._sums
        count = np.maximum(sums["count"], 1)
        variance = sums["square"] / count - (sums["sum"] / count) ** 2
        spread = np.sqrt(np.maximum(variance, 0.0))
        size = np.where(
            sums["count"] > 0, np.maximum(np.abs(sums["low"]), np.abs(sums["high"])), 0
        )
        varies = (sums["count"] > 0) & (spread > np.maximum(CONSTANT * size, SILENT))
        if step is None:
            # Differences below the tolerance say nothing of a float file.
            largest = float(np.max(size, initial=0.0))
            varies &= spread > FLOAT_TOLERANCE * largest
        errors = np.sqrt(sums["error"] / count) / np.where(varies, spread, 1.0)
        errors[~varies] = -1.0
        worst = int(np.argmax(errors)) if np.any(varies) else None
        span = np.where(varies, sums["high"] - sums["low"], np.inf)
        narrow = span < FEW_STEPS * (step or 0.0)
        return OutputError(
            name,
            mean,
            entries=len(count),
            worst_entry=worst,
            worst_error=None if worst is None else float(errors[worst]),
            narrow_entries=spans(np.flatnonzero(narrow)),
            narrow_span=float(np.max(span[narrow])) if np.any(narrow) else None,
            largest=float(np.max(size, initial=0.0)),
            nan_entries=spans(np.flatnonzero(sums["numbers"] == 0)),
        )


def _start(values: Array) -> dict[str, Array]:
    columns = values.shape[1]
    keys = ("count", "numbers", "sum", "square", "error")
    sums = {key: np.zeros(columns) for key in keys}
    first = values[:1].astype("f8") if len(values) else np.zeros((1, columns))
    sums["origin"] = np.where(np.isfinite(first[0]), first[0], 0.0)
    sums["low"] = np.full(columns, np.inf)
    sums["high"] = np.full(columns, -np.inf)
    return sums


def spans(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Returns ascending numbers as first and last of each row of neighbours.

    Example:
        >>> spans([1, 4, 5, 6])
        ((1, 1), (4, 6))
    """
    entries: list[tuple[int, int]] = []
    for number in map(int, numbers):
        if entries and entries[-1][1] == number - 1:
            entries[-1] = entries[-1][0], number
        else:
            entries.append((number, number))
    return tuple(entries)


def listed(entries: Sequence[tuple[int, int]], most: int = 4) -> str:
    """Returns spans of entries in words, with the noun before them.

    Example:
        >>> listed([(4, 6)]), listed([(1, 1)]), listed([(0, 0), (2, 3)])
        ('entries 4 to 6', 'entry 1', 'entries 0, 2 to 3')
    """
    words = [f"{x}" if x == y else f"{x} to {y}" for x, y in entries[:most]]
    noun = (
        "entry" if len(entries) == 1 and entries[0][0] == entries[0][1] else "entries"
    )
    return f"{noun} {', '.join(words)}{', ...' if len(entries) > most else ''}"
