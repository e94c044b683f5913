"""What all pictures share: a size, colours, lines, marks of stages."""

import importlib
from collections.abc import Sequence
from typing import Any

from keras_sq.callbacks.history import QuantizationHistory

WIDTH = 7.0
"""Inches. At `DPI` a picture is 840 pixels wide; at 700 its text has 10 or more."""

DPI = 120

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
GREY, BLACK = "#7F7F7F", "#000000"

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito's, told apart by all kinds of colour vision."""

LINES = ("-", "--", "-.", ":")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""With the lines, what tells curves apart in black and white."""

MAX_STAGES = 30
"""More marks of stages than these would be a hatching."""


def figure(height: float) -> Any:
    """Returns an empty figure of so many inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib: `pip install "keras-sq[plots]"`.'
        ) from error
    from keras_sq.analysis.plots._picture import Picture

    return Picture(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def tidy(*all_axes: Any) -> None:
    """Takes away what shows nothing."""
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)


def mark_stages(history: QuantizationHistory, all_axes: Sequence[Any]) -> None:
    """Draws a line where a stage begins, and numbers the stages above the first axes.

    Args:
        history: The history.
        all_axes: From top to bottom; steps on their horizontal axis.
    """
    end = int(history.steps[-1])
    starts = [step for step in history.stage_starts if step < end]
    if len(starts) < 2 or len(starts) > MAX_STAGES:
        return
    for axes in all_axes:
        for step in starts[1:]:
            axes.axvline(step, color=GREY, linestyle=":", linewidth=1.0, zorder=0)
    top = all_axes[0]
    for number, (start, stop) in enumerate(
        zip(starts, [*starts[1:], end], strict=True), 1
    ):
        wide = (stop - start) > 0.09 * end
        if not wide and len(starts) > 8:
            continue
        top.annotate(
            f"stage {number}" if wide else f"{number}",
            ((start + stop) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color="#404040",
        )


def require_records(history: Any) -> None:
    """Raises if there is nothing to show.

    Raises:
        TypeError: If it is no `QuantizationHistory`.
        ValueError: If it has no record.
    """
    if not isinstance(history, QuantizationHistory):
        raise TypeError(
            "Argument `history` must be a `keras_sq.callbacks.QuantizationHistory`. "
            f"Received: history={history!r} (of type {type(history).__name__})"
        )
    if not len(history.steps):
        raise ValueError(
            "Argument `history` must hold at least one record. Pass it to `fit` first: "
            "`model.fit(..., callbacks=[sq, history])`."
        )
