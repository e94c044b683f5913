"""Accuracy against the size of the file, over runs of `keras_sq.train`."""

import itertools
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_sq.analysis.plots import _style
from keras_sq.files import file_checks

RESULTS = "results.json"


class _Point(NamedTuple):
    label: str
    kilobytes: float
    accuracy: float
    deviation: float


def size_plot(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    names: Sequence[str] | None = None,
) -> Any:
    """Plots the test accuracy of networks against the size of their TFLite files.

    Runs that differ in nothing but their seed make one point, at their mean, with a
    bar of one standard deviation to either side.

    Args:
        runs: Folders of finished runs (`keras_sq.train`'s `output_dir`, also of one
            with several seeds), or their `results.json`.
        names: What to call each of `runs` in the legend; by default, if there are
            several, that in which they differ: quantizer or preset, network,
            data set.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        FileNotFoundError: If a run has no results.
        ImportError: If matplotlib is not installed.
        ValueError: If there is no run, a file is damaged, or `names` are not as many.

    Example:
        >>> import json, pathlib, tempfile
        >>> run = {"config": {"quantizer": "ternary", "model": "m", "dataset": "d"},
        ...        "networks": {"sq": {"tflite_bytes": 9000, "test_accuracy": 0.9}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "results.json")
        ...     _ = path.write_text(json.dumps(run))  # As a run of `keras_sq.train`.
        ...     figure = keras_sq.plots.size_plot(folder)
    """
    folders = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not folders:
        raise ValueError("Argument `runs` must name at least one run. Received: none.")
    if names is not None and len(names) != len(folders):
        raise ValueError(
            "Argument `names` must have one entry for each of `runs`. Received: "
            f"{len(names)} names for {len(folders)} runs."
        )
    points = _points(folders, names)
    picture = _style.figure(height=4.4)
    axes = picture.subplots()
    picture.suptitle("Accuracy against file size", fontsize=12)
    for index, point in enumerate(points):
        count = len(_style.COLOURS)
        colour = _style.COLOURS[(index + index // count) % count]
        # There are seven markers: each is hollow at one turn, and not at the next.
        hollow = index % 2 == 1
        axes.errorbar(
            point.kilobytes,
            100 * point.accuracy,
            100 * point.deviation or None,
            color=colour,
            marker=_style.MARKERS[index % len(_style.MARKERS)],
            # Every second one is hollow, so that points on each other are two.
            markerfacecolor="none" if hollow else colour,
            markeredgewidth=1.8,
            markersize=9 if hollow else 7,
            capsize=4,
            linestyle="none",
            label=point.label,
        )
    _size_axis(axes, [point.kilobytes for point in points])
    axes.set_xlabel("TFLite file (kB)")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(0.08)
    _style.tidy(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return picture


def _size_axis(axes: Any, sizes: Sequence[float]) -> None:
    from matplotlib import ticker

    axes.set_xscale("log")
    formatter = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    if max(sizes) < 3 * min(sizes):
        axes.set_xscale("linear")


def _points(
    folders: Sequence[str | os.PathLike[str]], names: Sequence[str] | None
) -> list[_Point]:
    values_by_group: dict[tuple[tuple[str, ...], str], list[tuple[float, float]]] = {}
    for index, folder in enumerate(folders):
        for path in _files(pathlib.Path(folder)):
            group, networks = _read(path)
            if names is not None:
                group = (names[index],)
            for name, values in networks.items():
                values_by_group.setdefault((group, name), []).append(values)
    # Of what the groups are called, that in which they differ.
    parts = list(zip(*{group for group, _ in values_by_group}, strict=True))
    telling = [len(set(part)) > 1 for part in parts]
    return [
        _Point(
            ", ".join([name, *itertools.compress(group, telling)]),
            statistics.fmean(size for size, _ in values) / 1000,
            statistics.fmean(accuracy for _, accuracy in values),
            statistics.stdev(a for _, a in values) if len(values) > 1 else 0.0,
        )
        for (group, name), values in values_by_group.items()
    ]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if folder.is_file():
        return [folder]
    if (folder / RESULTS).exists():
        return [folder / RESULTS]
    seeds = sorted(folder.glob(f"seed-*/{RESULTS}"))
    if not seeds:
        raise FileNotFoundError(
            f"There is no '{RESULTS}' in '{folder}', nor in folders 'seed-*' of it. It "
            "is written when a run of `python -m keras_sq.train` is finished."
        )
    return seeds


def _read(
    path: pathlib.Path,
) -> tuple[tuple[str, ...], dict[str, tuple[float, float]]]:
    """Returns what was run, and `(bytes, accuracy)` of each network."""
    results: dict[str, Any] = file_checks.read_json(path, dict)
    try:
        config = results["config"]
        how = config.get("preset") or config["quantizer"]
        group = (str(how), str(config["model"]), str(config["dataset"]))
        networks = {
            str(name): (float(row["tflite_bytes"]), float(row["test_accuracy"]))
            for name, row in results["networks"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"File '{path}' holds no results of `keras_sq.train`, or is damaged: "
            f"{error!r}."
        ) from error
    return group, networks
