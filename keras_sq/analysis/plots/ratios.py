"""Ratio, loss and flips of one training, over its steps."""

from typing import Any

from keras_sq.analysis.plots import _style
from keras_sq.callbacks.history import QuantizationHistory


def ratio_plot(history: QuantizationHistory) -> Any:
    """Plots the ratio, the loss, and how many codes change a step.

    Dotted lines stand where a stage of the schedule begins.

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
        >>> figure = keras_sq.plots.ratio_plot(history)
        >>> figure.savefig("ratio.png")  # doctest: +SKIP
    """
    _style.require_records(history)
    picture = _style.figure(height=6.2)
    ratio, loss, flips = picture.subplots(
        3, 1, sharex=True, height_ratios=(1.2, 2.2, 1.6)
    )
    picture.suptitle("Stochastic quantization over a training run", fontsize=12)
    steps = history.steps
    common = {"linewidth": 1.8, "color": _style.BLUE}
    # A record knows the ratio that held up to its step.
    ratio.step(steps, 100 * history.ratio, where="pre", **common)
    ratio.set_ylim(-5, 108)
    ratio.set_ylabel("quantized\nweights (%)")
    loss.plot(steps, history.loss, **common, label="training")
    validated = [row for row in history.epochs if "val_loss" in row]
    if validated:
        loss.plot(
            [row["step"] for row in validated],
            [row["val_loss"] for row in validated],
            color=_style.VERMILION,
            linestyle="--",
            marker="o",
            markersize=4,
            linewidth=1.6,
            label="validation, after each epoch",
        )
        loss.legend(frameon=False)
    loss.set_ylabel("loss")
    weights = history.sizes.sum()
    flips.plot(steps, 1e6 * history.flips.sum(axis=1) / weights, **common)
    flips.set_ylabel("codes that change\na step (per million)")
    flips.set_ylim(bottom=0)
    flips.set_xlabel("optimizer step")
    _style.tidy(ratio, loss, flips)
    _style.mark_stages(history, (ratio, loss, flips))
    picture.align_ylabels()
    return picture
