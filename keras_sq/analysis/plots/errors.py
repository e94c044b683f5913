"""Quantization error of the kernels of one training, over its steps."""

from typing import Any

import numpy as np

from keras_sq.analysis.plots import _style
from keras_sq.callbacks.history import QuantizationHistory

MAX_LINES = 7
"""More kernels than these are shown as a map, a row each."""


def error_plot(history: QuantizationHistory) -> Any:
    """Plots the quantization error `‖W − Q‖₁ / ‖W‖₁` of each kernel.

    Up to seven kernels as lines, more as a map with a row each.

    Args:
        history: Of a training.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `history` is something else.
        ValueError: If it has no record.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> sq_model.compile("sgd", "mse", jit_compile=False)
        >>> history = keras_sq.callbacks.QuantizationHistory(every=1)
        >>> sq = keras_sq.callbacks.StochasticQuantization()
        >>> _ = sq_model.fit(np.ones((8, 8)), np.ones((8, 4)), batch_size=2, verbose=0,
        ...                  callbacks=[sq, history])
        >>> figure = keras_sq.plots.error_plot(history)
        >>> figure.savefig("errors.png")  # doctest: +SKIP
    """
    _style.require_records(history)
    lines = len(history.paths) <= MAX_LINES
    height = 4.2 if lines else max(3.6, 1.6 + 0.19 * len(history.paths))
    picture = _style.figure(height)
    axes = picture.subplots()
    picture.suptitle("Quantization error of each kernel", fontsize=12)
    if lines:
        _lines(axes, history)
        axes.set_ylabel("quantization error\n‖W − Q(W)‖₁ / ‖W‖₁ (%)")
        _style.tidy(axes)
        _style.mark_stages(history, [axes])
    else:
        mesh = _map(axes, history)
        bar = picture.colorbar(mesh, ax=axes, pad=0.02)
        bar.set_label("‖W − Q(W)‖₁ / ‖W‖₁ (%)")
    axes.set_xlabel("optimizer step")
    return picture


def _lines(axes: Any, history: QuantizationHistory) -> None:
    steps, errors = history.steps, 100 * history.errors
    every = max(1, len(steps) // 8)
    for index, path in enumerate(history.paths):
        axes.plot(
            steps,
            errors[:, index],
            label=path.removesuffix("/kernel"),
            color=_style.COLOURS[index % len(_style.COLOURS)],
            linestyle=_style.LINES[index % len(_style.LINES)],
            marker=_style.MARKERS[index % len(_style.MARKERS)],
            # Not all at the same steps, where curves are close.
            markevery=(index * every // len(history.paths), every),
            markersize=4.5,
            linewidth=1.6,
        )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _map(axes: Any, history: QuantizationHistory) -> Any:
    edges = np.concatenate([[0], history.steps])
    rows = np.arange(len(history.paths) + 1)
    # Lightness grows with the error: it reads the same in black and white.
    mesh = axes.pcolormesh(edges, rows, 100 * history.errors.T, cmap="cividis")
    axes.set_yticks(rows[:-1] + 0.5, [x.removesuffix("/kernel") for x in history.paths])
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.invert_yaxis()
    for step in history.stage_starts[1:]:
        if len(history.stage_starts) <= _style.MAX_STAGES and step < edges[-1]:
            axes.axvline(step, color="white", linestyle=":", linewidth=1.2)
    return mesh
