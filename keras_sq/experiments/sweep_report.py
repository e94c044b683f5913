"""The tables of a sweep: one row a network, over all seeds, and its CSV.

How the numbers came about is in `train.py` and `sweep.py`.
"""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from keras_sq.experiments.catalogue import Experiment
from keras_sq.experiments.training_files import DamagedRunError
from keras_sq.files import file_checks

NUMBERS = ("test_accuracy", "test_loss", "tflite_bytes", "bits_per_weight")
"""What a result keeps of a network's report."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One network of one run.

    Attributes:
        experiment: Name.
        title: For people.
        protocol: `"paper"` or `"equal"`.
        network: Name of the method within the run.
        seed: Of the run.
        epochs: How long the network was trained.
        test_accuracy: Fraction of the test split.
        test_loss: Nats.
        tflite_bytes: Size of the file.
        bits_per_weight: Of the quantized weights, in the file.
        test_top_5_accuracy: As `test_accuracy`, if there are many classes.
        published: As the experiment's, in a line.
    """

    experiment: str
    title: str
    protocol: str
    network: str
    seed: int
    epochs: int
    test_accuracy: float
    test_loss: float
    tflite_bytes: int
    bits_per_weight: float
    test_top_5_accuracy: float | None
    published: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))


def read(
    path: pathlib.Path, experiment: Experiment, protocol: str, seed: int
) -> list[Result]:
    """Returns the networks of a finished run.

    Args:
        path: Its `results.json`.
        experiment: What was run.
        protocol: One of `training_config.PROTOCOLS`.
        seed: Of the run.

    Raises:
        DamagedRunError: If the file is damaged.
    """
    try:
        content: dict[str, Any] = file_checks.read_json(path, dict)
        networks = content["networks"]
        epochs = content["epochs"]
        return [
            Result(
                experiment=experiment.name,
                title=experiment.title,
                protocol=protocol,
                network=name,
                seed=seed,
                epochs=int(_number(epochs[name], "epochs")),
                published=experiment.published_text,
                test_top_5_accuracy=_optional(report.get("test_top_5_accuracy")),
                **{key: _number(report[key], key) for key in NUMBERS},  # type: ignore[arg-type]
            )
            for name, report in networks.items()
        ]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DamagedRunError(
            f"File '{path}' is damaged: {reason}. Remove it to write it again."
        ) from error


def _number(value: Any, name: str) -> float:
    """Returns a finite number; JSON as Python reads it has others, and of any size."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
    raise ValueError(f"{name!r} is {str(value)[:60]!r}, and no finite number")


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value, "test_top_5_accuracy")


def csv_text(results: Sequence[Result]) -> str:
    """Returns all results as CSV, numbers in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(result) for result in results)
    return text.getvalue()


def markdown(results: Sequence[Result]) -> str:
    """Returns the table of mean and standard deviation over the seeds."""
    many = any(result.test_top_5_accuracy is not None for result in results)
    header = (
        "experiment",
        "network",
        "protocol",
        "epochs",
        "seeds",
        "test accuracy, %",
        *(("top 5, %",) if many else ()),
        "file, kB",
        "published, %",
    )
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        key = (result.title, result.network, result.protocol)
        groups.setdefault(key, []).append(result)
    rows = [
        (
            *key,
            f"{results_of_key[0].epochs}",
            f"{len(results_of_key)}",
            _spread([100 * result.test_accuracy for result in results_of_key]),
            *((_top_5(results_of_key),) if many else ()),
            f"{statistics.fmean(r.tflite_bytes for r in results_of_key) / 1000:.1f}",
            results_of_key[0].published,
        )
        for key, results_of_key in groups.items()
    ]
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _top_5(results: Sequence[Result]) -> str:
    known = [
        r.test_top_5_accuracy for r in results if r.test_top_5_accuracy is not None
    ]
    return _spread([100 * value for value in known]) if known else ""


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"
