"""The kernels of a model before and after training."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_sq.analysis.plots import _style
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, LayerKeys, Model
from keras_sq.layers import layer_paths
from keras_sq.layers.layer_keys import as_keys, quantized_paths
from keras_sq.layers.masks import require_quantized
from keras_sq.layers.quantized import StochasticallyQuantized

MAX_KERNELS = 8
"""Shown if no layers are named."""

BINS = 61


def histogram_plot(before: Model, after: Model, layers: LayerKeys | None = None) -> Any:
    """Plots how the weights of kernels are spread, before and after a training.

    Grey: the weights before. Blue: the latent weights after. Orange: what these are
    quantized to; each filter has its own scale, so that the levels of a kernel are
    heaps, not lines.

    Args:
        before: The model before: the float model, or a copy of `after`.
        after: The quantized model after training.
        layers: Which layers to show: names, paths, patterns, as in
            `keras_sq.quantize_model(skip=)`; by default the first eight kernels.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If nothing in `after` is quantized, a name matches none of its
            quantized layers, or `before` has other kernels.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "ternary")
        >>> figure = keras_sq.plots.histogram_plot(model, sq_model)
        >>> figure.savefig("kernels.png")  # doctest: +SKIP
    """
    kernels = _kernels(before, after, layers)
    columns = min(2, len(kernels))
    rows = math.ceil(len(kernels) / columns)
    picture = _style.figure(height=1.1 + 1.75 * rows)
    picture.suptitle("Weights before and after training", fontsize=12)
    grid = np.atleast_1d(picture.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (path, old, latent, quantized) in zip(grid, kernels, strict=False):
        _histogram(axes, old, latent, quantized)
        axes.set_title(path.removesuffix("/kernel"), fontsize=10)
        _style.tidy(axes)
    for axes in grid[len(kernels) :]:
        axes.remove()
    for axes in grid[: len(kernels) : columns]:
        axes.set_ylabel("weights (%)")
    for axes in grid[max(0, len(kernels) - columns) : len(kernels)]:
        axes.set_xlabel("weight")
    handles, labels = grid[0].get_legend_handles_labels()
    picture.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return picture


def _histogram(axes: Any, old: Array, latent: Array, quantized: Array) -> None:
    # Outliers would press everything else together.
    limit = max(np.quantile(np.abs(old), 0.999), np.quantile(np.abs(latent), 0.999))
    limit = max(limit, np.abs(quantized).max()) * 1.05 or 1.0
    bins = np.linspace(-limit, limit, BINS)

    def share(values: Array) -> Array:
        return np.full(values.size, 100 / values.size)

    axes.hist(old, bins, weights=share(old), color="#BFBFBF", label="before, float")
    heights = np.histogram(latent, bins, weights=share(latent))[0]
    axes.stairs(heights, bins, color=_style.BLUE, linewidth=1.7, label="after, latent")
    top = 1.15 * max(
        np.histogram(old, bins, weights=share(old))[0].max(), heights.max()
    )
    levels = np.histogram(quantized, bins, weights=share(quantized))[0]
    axes.stairs(
        levels,
        bins,
        fill=True,
        facecolor=_style.ORANGE,
        edgecolor=_style.VERMILION,
        alpha=0.55,
        hatch="////",
        linewidth=0.8,
        label="after, quantized",
    )
    axes.set_xlim(-limit, limit)
    cut = max(top, min(levels.max() * 1.1, 2.5 * top))
    axes.set_ylim(0, cut)
    over = np.flatnonzero(levels > cut)
    # Neighbours have one label: each its own would be on top of the other.
    for heap in np.split(over, np.flatnonzero(np.diff(over) > 1) + 1):
        if not heap.size:
            continue
        axes.annotate(
            f"{levels[heap].sum():.0f} %",
            (bins[heap[-1] + 1], cut),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#803000",
        )


def _kernels(
    before: Model, after: Model, keys: LayerKeys | None
) -> list[tuple[str, Array, Array, Array]]:
    """Returns path, weights before, latent and quantized weights after, all flat."""
    quantized = dict(require_quantized(after))
    chosen = set(quantized)
    if keys is not None:
        chosen = set()
        for key in as_keys(keys, "layers"):
            chosen |= quantized_paths("layers", key, after, quantized)
    others = dict(layer_paths(before))
    kernels = []
    for path, layer in quantized.items():
        if path not in chosen:
            continue
        for name in layer.quantized_weights:
            latent = _flat(layer.latent(name))
            old = _weight(others.get(path), name)
            if old is None or old.size != latent.size:
                raise ValueError(
                    "Argument `before` must be the model that `after` was made of, or "
                    f"one with the same layers. It has no kernel of {latent.size:,} "
                    f"weights at '{path}/{name}'."
                )
            kernel = ops.convert_to_numpy(layer.quantized_kernel(name)).ravel()
            kernels.append((f"{path}/{name}", old, latent, kernel))
    return kernels if keys is not None else kernels[:MAX_KERNELS]


def _weight(layer: Any, name: str) -> Array | None:
    if isinstance(layer, StochasticallyQuantized):
        return _flat(layer.latent(name))
    value = getattr(layer, name, None)
    return None if value is None else _flat(value)


def _flat(variable: Any) -> Array:
    value: Array = ops.convert_to_numpy(internals.read(variable))
    return value.astype("float32").ravel()
