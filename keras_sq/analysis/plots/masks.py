"""Which filters of a kernel are quantized when."""

from typing import Any

import numpy as np

from keras_sq.analysis.plots import _style
from keras_sq.callbacks.history import QuantizationHistory
from keras_sq.core import checks


def mask_plot(history: QuantizationHistory, kernel: str | None = None) -> Any:
    """Plots the masks of one kernel: a row a filter, a column a record.

    Dark is quantized, light is float; of kernels that are quantized weight by weight,
    the darker the larger the part.

    Args:
        history: Of a training, made with `masks=...`.
        kernel: Path of the kernel, `"<layer>/<weight>"`, or of the layer; by default
            the first that was kept.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `history` is something else.
        ValueError: If it has no record, or no masks of this kernel.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> sq_model.compile("sgd", "mse", jit_compile=False)
        >>> history = keras_sq.callbacks.QuantizationHistory(every=1, masks="dense*")
        >>> sq = keras_sq.callbacks.StochasticQuantization()
        >>> _ = sq_model.fit(np.ones((8, 8)), np.ones((8, 4)), batch_size=2, verbose=0,
        ...                  callbacks=[sq, history])
        >>> figure = keras_sq.plots.mask_plot(history)
        >>> figure.savefig("masks.png")  # doctest: +SKIP
    """
    _style.require_records(history)
    masks = history.masks
    if not masks:
        raise ValueError(
            "Argument `history` must hold masks: make it with "
            "`QuantizationHistory(masks='conv1')`, the layers whose masks to keep. "
            "Received one without any."
        )
    if kernel is None:
        kernel = next(iter(masks))
    if f"{kernel}/kernel" in masks:
        kernel = f"{kernel}/kernel"
    part = masks[checks.one_of("kernel", kernel, masks)]
    filters = part.shape[1]
    picture = _style.figure(height=min(6.0, 2.2 + 0.06 * filters))
    axes = picture.subplots()
    axes.set_title(f"Which filters of {kernel} are quantized", fontsize=12, pad=20)
    edges = np.concatenate([[0], history.steps])
    mesh = axes.pcolormesh(
        edges, np.arange(filters + 1), part.T, cmap="Blues", vmin=-0.05, vmax=1.25
    )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("filter")
    axes.set_ylim(filters, 0)
    axes.spines[["top", "right"]].set_visible(False)
    _style.mark_stages(history, [axes])
    if set(np.unique(part)) <= {0.0, 1.0}:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=mesh.to_rgba(value), edgecolor=_style.GREY, label=label)
            for value, label in ((1.0, "quantized"), (0.0, "float"))
        ]
        picture.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False
        )
    else:
        bar = picture.colorbar(
            mesh, ax=axes, pad=0.02, boundaries=np.linspace(0, 1, 101)
        )
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
        bar.set_label("quantized weights of the filter (%)")
    return picture
