"""The files of a training run: written as a whole, and read with distrust.

What a run writes, `--resume` reads: settings, histories, networks, backups. A file
that was damaged since is an error that says what to do, and not another result.
Which files there are is in `run_folder.py`.
"""

import json
import os
import pathlib
from typing import Any

from keras_sq.analysis.training_report import COLUMNS
from keras_sq.core.types import Model
from keras_sq.files import file_checks
from keras_sq.files.loading import load_model


class DamagedRunError(ValueError):
    """A run that cannot be gone on with as it is: a file of it is damaged."""


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is there as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file that is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the epochs of a training.

    Args:
        path: Of what `write_json` wrote.

    Raises:
        ValueError: If it is damaged.
        OSError: If it cannot be read.
    """
    rows: list[dict[str, Any]] = file_checks.read_json(path, list)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != set(COLUMNS):
            raise ValueError(f"File '{path}' is damaged: entry {number} is no epoch.")
        for name, value in row.items():
            fits = isinstance(value, str if name == "run" else int | float)
            if isinstance(value, bool) or not (
                fits or (value, name) == (None, "ratio")
            ):
                raise ValueError(
                    f"File '{path}' is damaged: {name!r} of entry {number} is "
                    f"{str(value)[:60]!r}."
                )
    return rows


def load_network(path: pathlib.Path) -> Model:
    """Returns a network that the run has trained.

    Raises:
        DamagedRunError: If it cannot be loaded.
    """
    try:
        return load_model(path)
    except (OSError, ValueError) as error:
        raise DamagedRunError(
            f"{error} Remove the file to train this network again, with --resume."
        ) from error
