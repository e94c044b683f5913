"""Tables that fit a terminal: columns are dropped, long cells broken, nothing cut off.

Knows nothing of models; `analysis/model_summary.py` says what stands in the columns.
"""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence

MIN_WIDTH = 40
"""Columns (characters) that a table needs at least."""

GAP = "  "


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        cells: One text a row.
        importance: Columns of the least one are dropped first; of two alike, the
            right one.
        right: Whether numbers are aligned at their ends.
    """

    title: str
    cells: Sequence[str]
    importance: int
    right: bool = False

    @property
    def width(self) -> int:
        """Characters of the longest cell or the heading."""
        return max(map(len, (self.title, *self.cells)))


def aligned(rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> list[str]:
    """Returns rows as lines of columns as wide as they need to be.

    Args:
        rows: Cells, the same number in each row; the heading first.
        words: Columns of words, which begin at the left. Others are numbers, which
            end at the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def terminal_width() -> int:
    """Returns the columns of the terminal, or 80 where there is none."""
    return max(MIN_WIDTH, shutil.get_terminal_size().columns)


def layout(
    columns: Sequence[Column], notes: Sequence[str], footer: Sequence[str], width: int
) -> str:
    """Returns a table of at most so many characters a line.

    The first column always stays. Empty columns are not shown.

    Args:
        columns: From left to right.
        notes: One text a row, empty or not, beside or beneath it in brackets.
        footer: Paragraphs below the table.
        width: Characters a line, `MIN_WIDTH` at least.
    """
    shown = [x for x in columns if x is columns[0] or any(x.cells)]
    first_width = min(shown[0].width, max(16, width // 3))
    dropped = []
    while len(shown) > 1 and _total(first_width, shown) > width:
        least = min(reversed(shown[1:]), key=lambda column: column.importance)
        shown.remove(least)
        dropped.append(least)
    room = width - _total(0, shown)
    first_width = min(shown[0].width, room)
    widths = [first_width, *(column.width for column in shown[1:])]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(size) if column.right else cell.ljust(size)
            for column, cell, size in zip(shown, cells, widths, strict=True)
        ]
        return GAP.join(parts).rstrip()

    beside = width - sum(widths) - len(GAP) * len(shown)
    lines = [line([column.title for column in shown])]
    lines.append("-" * (sum(widths) + len(GAP) * (len(shown) - 1)))
    for index, note in enumerate(notes):
        name, *rest = _broken(shown[0].cells[index], first_width)
        text = line([name, *(column.cells[index] for column in shown[1:])])
        note = f"[{note}]" if note else ""
        if note and len(note) <= beside:
            text = f"{text.ljust(sum(widths) + len(GAP) * (len(shown) - 1))}{GAP}{note}"
            note = ""
        lines += [text, *rest]
        if note:
            lines += textwrap.wrap(
                note, width, initial_indent="    ", subsequent_indent="     "
            )
    lines.append(lines[1])
    if dropped:
        names = [column.title for column in columns if column in dropped]
        footer = [*footer, f"Not shown at {width} columns: {', '.join(names)}."]
    for paragraph in footer:
        lines += textwrap.wrap(paragraph, width, subsequent_indent="  ")
    return "\n".join(lines)


def short(number: float | None, unit: str = "") -> str:
    """Returns a number in three digits with a prefix: 1.23 M, 45.6 k, 789.

    Args:
        number: Not negative, or `None`: unknown.
        unit: What it counts.
    """
    if number is None:
        return "?"
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.5 of anything is 1 of the next.
        if number >= 0.9995 * size:
            value = number / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def _total(first_width: int, columns: Sequence[Column]) -> int:
    others = sum(column.width for column in columns[1:])
    return first_width + others + len(GAP) * (len(columns) - 1)


def _broken(text: str, width: int) -> list[str]:
    """Returns a path in lines, broken behind slashes and underscores if possible."""
    lines = []
    indent = ""
    while len(indent + text) > width:
        room = width - len(indent)
        at = max(text.rfind("/", 0, room), text.rfind("_", 0, room)) + 1
        at = at if at > room // 3 else room
        lines.append(indent + text[:at])
        text, indent = text[at:], "  "
    return [*lines, indent + text]
