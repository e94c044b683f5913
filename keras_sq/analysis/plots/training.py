"""Loss, ratio and accuracy over the epochs of runs of `keras_sq.train`."""

import os
from collections.abc import Sequence
from typing import Any

from keras_sq.analysis import training_report
from keras_sq.analysis.plots import _style

STYLES = {
    "float": ("#000000", ":", "float"),
    "direct": ("#E69F00", "--", "quantized directly"),
    "sq": ("#0072B2", "-", "quantized with SQ"),
}
"""Colour (Okabe and Ito's, told apart by all kinds of colour vision), line
and name of each run; the lines differ in black and white too."""

COLOURS = ("#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#E69F00", "#0072B2")
LINES = ("-", "--", "-.")
"""Of runs with other names, in turn."""


def training_plot(
    history: str | os.PathLike[str] | Sequence[training_report.Row],
) -> Any:
    """Plots loss, ratio and accuracy over the epochs of a training run.

    Args:
        history: Path of a `history.csv`, or the rows of one (see
            `keras_sq.analysis.training_report.read_history`).

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no epoch to plot.

    Example:
        >>> row = {"run": "sq", "epoch": 0, "ratio": 0.5, "learning_rate": 0.1,
        ...        "loss": 1.0, "accuracy": 0.5, "val_loss": 1.2, "val_accuracy": 0.4}
        >>> figure = keras_sq.plots.training_plot([row, {**row, "epoch": 1}])
        >>> figure.savefig("training.png")  # doctest: +SKIP
    """
    if isinstance(history, str | os.PathLike):
        history = training_report.read_history(os.fspath(history))
    if not history:
        raise ValueError("Argument `history` must hold at least one epoch.")
    picture = _style.figure(height=7.5)
    from matplotlib import ticker

    loss, ratio, accuracy = picture.subplots(
        3, 1, sharex=True, height_ratios=(3, 1.4, 3)
    )
    runs = list(dict.fromkeys(row["run"] for row in history))
    others = [run for run in runs if run not in STYLES]
    for run in runs:
        rows = [row for row in history if row["run"] == run]
        colour, line, label = STYLES.get(run) or _style_of(run, others.index(run))
        epochs = [row["epoch"] + 1 for row in rows]
        common = {"color": colour, "linestyle": line, "linewidth": 1.8}
        loss.plot(epochs, [row["loss"] for row in rows], label=label, **common)
        accuracy.plot(
            epochs, [100 * row["val_accuracy"] for row in rows], label=label, **common
        )
        if rows[0]["ratio"] is not None:
            ratio.step(
                epochs, [100 * row["ratio"] for row in rows], where="mid", **common
            )
    loss.set_ylabel("training loss\n(nats, with weight decay)")
    loss.set_yscale("log")
    loss.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    loss.yaxis.set_minor_formatter(ticker.LogFormatter())
    ratio.set_ylabel("quantized\nfilters (%)")
    ratio.set_ylim(-5, 108)
    accuracy.set_ylabel("validation accuracy (%)\nof the network to deploy")
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if len(runs) <= len(STYLES):
        accuracy.legend(loc="lower right")
    else:
        handles, labels = accuracy.get_legend_handles_labels()
        picture.legend(handles, labels, ncols=4, loc="outside lower center")
    _style.tidy(loss, ratio, accuracy)
    return picture


def _style_of(run: str, index: int) -> tuple[str, str, str]:
    return COLOURS[index % len(COLOURS)], LINES[index % len(LINES)], run
