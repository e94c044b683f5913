"""What training runs leave behind: history, sizes, the table over all seeds.

Here numbers become text and files. How they came about is in `train.py`,
the picture in `plots/training.py`.
"""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_sq.core import text_tables

COLUMNS = (
    "run",
    "epoch",
    "ratio",
    "learning_rate",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
)
"""Of the history. `ratio` is empty for the float network; `accuracy` and
`loss` are those of the network that trained, `val_…` those of the one that
will be deployed."""

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NetworkReport:
    """What became of one network.

    Attributes:
        test_accuracy: Fraction of the test split.
        test_loss: Mean cross-entropy in nats, plus the weight decay.
        target: Kind of the exported file, see `keras_sq.export`.
        tflite_bytes: Size of the exported file.
        float_tflite_bytes: Size of a float32 file of the same network.
        parameters: Numbers that make up the network (as in Keras: four for
            each filter of a batch norm).
        quantized_weights: How many of these are quantized.
        bits_per_weight: Bits that a quantized weight takes in the file, tables
            and scales included; 32 for the float network.
        test_top_5_accuracy: Fraction of the test split whose class is among the five
            likeliest, of many classes (`network_recipes.MANY_CLASSES`), else `None`.
    """

    test_accuracy: float
    test_loss: float
    target: str
    tflite_bytes: int
    float_tflite_bytes: int
    parameters: int
    quantized_weights: int
    bits_per_weight: float
    test_top_5_accuracy: float | None = None


def network_report(
    exported: Mapping[str, Any], parameters: int, test_logs: Mapping[str, float]
) -> NetworkReport:
    """Returns the report of a trained and exported network.

    Args:
        exported: What `keras_sq.export` returned, as a dict.
        parameters: Of the float network.
        test_logs: What `evaluate` returned on the test split.
    """
    bits = exported["bits_per_weight"]
    return NetworkReport(
        test_accuracy=float(test_logs["accuracy"]),
        test_loss=float(test_logs["loss"]),
        target=exported["target"],
        tflite_bytes=exported["num_bytes"],
        float_tflite_bytes=exported["float_bytes"],
        parameters=parameters,
        quantized_weights=exported["quantized_weights"],
        bits_per_weight=32.0 if bits is None else bits,
        test_top_5_accuracy=test_logs.get("top_5_accuracy"),
    )


def table(
    runs: Sequence[Mapping[str, NetworkReport]],
    titles: Mapping[str, str],
    caption: str,
    test_size: int,
) -> str:
    """Returns the table of runs that differ in their seed, one row a method.

    Args:
        runs: For each run, method -> report.
        titles: Method -> what it is called.
        caption: What was compared, a sentence's beginning.
        test_size: Number of test examples.
    """
    reports = {method: [run[method] for run in runs] for method in titles}
    many = any(r.test_top_5_accuracy is not None for x in reports.values() for r in x)
    header = (
        "network",
        "test accuracy",
        *(("top 5",) if many else ()),
        "TFLite file",
        "as float32",
        "smaller",
        "bits a weight",
    )
    rows = [header] + [
        (
            titles[method],
            _percent([report.test_accuracy for report in of_method]),
            *((_top_5(of_method),) if many else ()),
            _kilobytes(_mean(report.tflite_bytes for report in of_method)),
            _kilobytes(_mean(report.float_tflite_bytes for report in of_method)),
            f"{_mean(r.float_tflite_bytes / r.tflite_bytes for r in of_method):.1f} x",
            f"{_mean(report.bits_per_weight for report in of_method):.2f}",
        )
        for method, of_method in reports.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = text_tables.aligned(rows)
    everything = [report for of_method in reports.values() for report in of_method]
    quantized = max(everything, key=lambda report: report.quantized_weights)
    # Of one accuracy; of a difference of two it is up to 1.4 times that.
    deviation = max(
        math.sqrt(report.test_accuracy * (1 - report.test_accuracy))
        for report in everything
    )
    lines += [
        "",
        f"{caption}; {quantized.quantized_weights:,} of "
        f"{quantized.parameters:,} parameters are quantized.",
    ]
    if len(runs) > 1:
        lines.append(
            f"Accuracy: mean and standard deviation of {len(runs)} seeds; sizes: mean."
        )
    lines += [
        f"{test_size:,} test images: the standard error of an accuracy is "
        f"{100 * deviation / math.sqrt(test_size):.2f} points.",
        f"Files of the quantized networks: target '{quantized.target}'; each was run "
        "and compared with Keras.",
    ]
    return "\n".join(lines) + "\n"


def history_csv(rows: Sequence[Row]) -> str:
    """Returns the epochs of all runs as CSV; numbers in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_history(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads a history file back.

    Args:
        path: A `history.csv` of a training run.

    Returns:
        One dict an epoch, with the keys of `COLUMNS`; numbers as numbers, and
        `None` for the ratio of the float network.

    Raises:
        ValueError: If it is not a history file, or a damaged one.
        OSError: If it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(
                    f"its columns must be {', '.join(COLUMNS)}. Received: "
                    f"{str(reader.fieldnames)[:200]}"
                )
            return [_row_of_text(row) for row in reader]
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f"File {str(path)!r} is not a training history, or damaged: {error}"
        ) from error


def _row_of_text(row: dict[str, Any]) -> dict[str, Any]:
    if row.keys() != set(COLUMNS) or None in row.values():
        raise ValueError(f"a row has not {len(COLUMNS)} values")
    parsed: dict[str, Any] = {"run": row["run"], "epoch": int(row["epoch"])}
    for name in COLUMNS[2:]:
        empty = name == "ratio" and not row[name]
        parsed[name] = None if empty else float(row[name])
    return parsed


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _top_5(reports: Sequence[NetworkReport]) -> str:
    accuracies = [report.test_top_5_accuracy for report in reports]
    known = [value for value in accuracies if value is not None]
    return _percent(known) if known else ""


def _percent(fractions: Sequence[float]) -> str:
    """Returns the mean in percent, with the spread if there are several."""
    mean = f"{100 * statistics.fmean(fractions):.2f}"
    if len(fractions) == 1:
        return f"{mean} %"
    return f"{mean} ± {100 * statistics.stdev(fractions):.2f} %"


def _kilobytes(count: float) -> str:
    return f"{count / 1000:.1f} kB"
