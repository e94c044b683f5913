"""Results of the runner, read and checked, and the CSV files that keep them.

The runner leaves `runs/<row>-seed<k>.json`, a file for each run, and `steps.json`. Of
these, `results.csv` and `steps.csv` in this folder keep what is at full scale. The
page is generated from the two CSV files alone, see `result_page.py`.

Columns of `results.csv`, a line a run:

| column | meaning |
|---|---|
| `row`, `seed` | which run: a row of `rows.py`, and its seed |
| `finished` | `yes`, or `no` for a run that goes on with its state or has a problem |
| `problem` | why the run ended before its length, or empty |
| `epochs`, `epochs_done` | length of the training, and how far the run is |
| `test_accuracy` | percent of the test images, of the last epoch, all quantized |
| `train_accuracy` | percent, of the last epoch, augmented images, masks as trained |
| `seconds_per_epoch` | wall time of an epoch of this run, others at its side included |
| `device`, `precision` | name of the device for JAX, and how products are computed |
| `together` | how many runs trained at once, and how |
| `keras_sq`, `keras`, `jax` | versions |
| `date` | UTC, of the result |

Columns of `steps.csv`, a line a quantity:

| column | meaning |
|---|---|
| `device`, `date`, `precision`, `keras_sq`, `jax` | as above |
| `name`, `batch_size` | network, or part of the input pipeline; examples of a step |
| `quantity`, `unit` | `float`, `sq` (ms), `ratio` (SQ / float), `rate` (images/s) |
| `median`, `low`, `high` | over the repetitions: median, first and third quartile |
| `problem` | why there is no number, or empty |
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import rows

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results.csv"
STEPS = FOLDER / "steps.csv"


class ResultError(ValueError):
    """A file is not what the runner writes; the message is one line that names it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training at full scale; the columns of `results.csv`."""

    row: str
    seed: int
    finished: bool
    problem: str
    epochs: int
    epochs_done: int
    test_accuracy: float | None
    train_accuracy: float | None
    seconds_per_epoch: float | None
    device: str
    precision: str
    together: str
    keras_sq: str
    keras: str
    jax: str
    date: str

    @property
    def key(self) -> tuple[str, int]:
        """What there is one of."""
        return self.row, self.seed


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One quantity of a step-time measurement; the columns of `steps.csv`."""

    device: str
    name: str
    batch_size: int
    quantity: str
    unit: str
    median: float | None
    low: float | None
    high: float | None
    problem: str
    precision: str
    keras_sq: str
    jax: str
    date: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one of."""
        return self.device, self.name, self.quantity


# JSON of the runner.


def read_runs(folder: pathlib.Path) -> tuple[list[Run], int]:
    """Returns the runs of a result folder, and how many rehearsals it has.

    A rehearsal is a run at another scale than 1; it is checked and left out.

    Args:
        folder: What the runner got as `--out`.

    Raises:
        ResultError: If a file is damaged, foreign, or of other settings than the row
            has now.
        OSError: If a file cannot be read.
    """
    runs, rehearsals = [], 0
    for path in sorted((folder / "runs").glob("*.json")):
        content = _read_json(path)
        try:
            scale = _number(content, "scale")
            run = _run(content, scale, path)
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign(path, error) from error
        if scale == 1:
            runs.append(run)
        else:
            rehearsals += 1
    return runs, rehearsals


def read_measurements(folder: pathlib.Path) -> list[Measurement]:
    """Returns the step times of a result folder; none of a rehearsal.

    Args:
        folder: What the runner got as `--out`.

    Raises:
        ResultError: If the file is damaged or foreign.
        OSError: If it cannot be read.
    """
    path = folder / "steps.json"
    if not path.is_file():
        return []
    content = _read_json(path)
    try:
        common = {key: _string(content, key) for key in ("device", "precision", "date")}
        common |= {key: _string(content, key) for key in ("keras_sq", "jax")}
        found = []
        for entry in content["measurements"]:
            _check(isinstance(entry, dict), "a measurement must be an object")
            problem = _string(entry, "problem")
            numbers = {
                key: None if problem else _number(entry, key)
                for key in ("median", "low", "high")
            }
            texts = {key: _string(entry, key) for key in ("name", "quantity", "unit")}
            size = _integer(entry, "batch_size")
            found.append(
                Measurement(
                    **common, **texts, **numbers, batch_size=size, problem=problem
                )
            )
        return found if _number(content, "scale") == 1 else []
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from error


def _foreign(path: pathlib.Path, error: Exception) -> ResultError:
    return ResultError(f"{path} is not a result of the runner: {_text(error)}")


def _run(content: dict[str, Any], scale: float, path: pathlib.Path) -> Run:
    row = rows.get(_string(content, "row"))
    seed = _integer(content, "seed")
    _check(path.name == f"{row.name}-seed{seed}.json", "its name is of another run")
    _check(
        content["settings"] == json.loads(json.dumps(row.settings)),
        f"the row {row.name} has other settings now; train it again",
    )
    epochs, done = _integer(content, "epochs"), _integer(content, "epochs_done")
    finished = content["finished"]
    _check(isinstance(finished, bool), "`finished` must be a bool")
    _check(done <= epochs, "`epochs_done` must be `epochs` at most")
    _check(not finished or done == epochs, "a finished run must have all its epochs")
    if scale == 1:
        planned = row.length().epochs
        _check(epochs == planned, f"the row has {planned} epochs, it has {epochs}")
        images = _integer(content, "train_examples")
        _check(
            images == rows.TRAIN_EXAMPLES,
            f"it must have all {rows.TRAIN_EXAMPLES} training images, not {images}",
        )
    accuracy = content["test_accuracy"]
    if accuracy is not None or finished:
        accuracy = _percent(content, "test_accuracy")
    curve = content["curve"]
    _check(isinstance(curve, list), "`curve` must be a list")
    _check(not finished or bool(curve), "a finished run must have a curve")
    seconds = content["seconds_per_epoch"]
    if seconds is not None:
        seconds = _number(content, "seconds_per_epoch")
    return Run(
        row=row.name,
        seed=seed,
        finished=finished,
        problem=_string(content, "problem"),
        epochs=epochs,
        epochs_done=done,
        # Of an unfinished run it is no result: the ratio may be below 1.
        test_accuracy=accuracy if finished else None,
        train_accuracy=_percent(curve[-1], "train_accuracy") if curve else None,
        seconds_per_epoch=seconds,
        **{key: _string(content, key) for key in ("device", "precision", "together")},
        **{key: _string(content, key) for key in ("keras_sq", "keras", "jax", "date")},
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"{path} is damaged: {_text(error)}") from error
    if not isinstance(content, dict):
        raise ResultError(f"{path} is not a result of the runner: it must be an object")
    return content


def _text(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"`{error.args[0]}` is missing"
    return " ".join(str(error).split())


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _number(content: dict[str, Any], key: str) -> float:
    value = content[key]
    _check(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0,
        f"`{key}` must be a number of 0 or more, not {value!r}",
    )
    return float(value)


def _percent(content: dict[str, Any], key: str) -> float:
    value = _number(content, key)
    _check(value <= 100, f"`{key}` must be in percent, not {value!r}")
    return value


def _integer(content: dict[str, Any], key: str) -> int:
    value = content[key]
    _check(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        f"`{key}` must be an integer of 0 or more, not {value!r}",
    )
    return int(value)


def _string(content: dict[str, Any], key: str) -> str:
    value = content[key]
    _check(isinstance(value, str), f"`{key}` must be a text, not {value!r}")
    return str(value)


# Merging.


def merge(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Returns what is known with the new results: one run for each row and seed.

    A newer result replaces an older one, but an unfinished run replaces none that has
    ended. Of equal dates, the later in the arguments is newer.

    Args:
        old: Runs, or measurements.
        new: Likewise.
    """
    known: dict[Any, Any] = {}
    for result in (*old, *new):
        other = known.get(result.key)
        if other is None or _rank(result) >= _rank(other):
            known[result.key] = result
    return list(known.values())


def _rank(result: Any) -> tuple[bool, str]:
    if isinstance(result, Run):
        return result.finished or bool(result.problem), result.date
    return not result.problem, result.date


# CSV.


def read_csv(path: pathlib.Path, kind: type[Any]) -> list[Any]:
    """Returns the results that a CSV file keeps; none if there is no file.

    Args:
        path: `RESULTS` or `STEPS`.
        kind: `Run` or `Measurement`.

    Raises:
        ResultError: If the file has other columns or values.
        OSError: If it cannot be read.
    """
    if not path.is_file():
        return []
    types = typing.get_type_hints(kind)
    found = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(types):
            raise ResultError(f"{path} must have the columns {','.join(types)}.")
        for line in reader:
            try:
                values = {key: _parse(line[key], types[key]) for key in types}
            except (KeyError, TypeError, ValueError) as error:
                raise ResultError(
                    f"Line {reader.line_num} of {path} is damaged: {_text(error)}"
                ) from error
            if kind is Run and values["row"] not in _names():
                raise ResultError(
                    f"Line {reader.line_num} of {path} has the row {values['row']!r}, "
                    "which rows.py does not know."
                )
            found.append(kind(**values))
    return found


def csv_text(results: Iterable[Any], kind: type[Any]) -> str:
    """Returns results as the text of a CSV file, sorted by what they are of.

    Args:
        results: Runs or measurements.
        kind: `Run` or `Measurement`.
    """
    if kind is Run:
        order = _names()
        results = sorted(results, key=lambda run: (order.index(run.row), run.seed))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [field.name for field in dataclasses.fields(kind)]
    writer.writerow(columns)
    for result in results:
        writer.writerow([_format(getattr(result, column)) for column in columns])
    return text.getvalue()


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file in one step: it is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def _names() -> list[str]:
    return [row.name for row in rows.all_rows()]


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        _check(text in ("yes", "no"), f"must be yes or no, not {text!r}")
        return text == "yes"
    if kind is str:
        _check(isinstance(text, str), "a value is missing")
        return text
    if kind is int:
        return int(text)
    if text == "":
        return None
    _check(math.isfinite(float(text)), f"must be a finite number, not {text!r}")
    return float(text)
