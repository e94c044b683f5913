"""The state of a run on disk: written as a whole, read with distrust.

A state holds all variables of the network and its optimizer (masks, codebooks and
random states are among them), how far the run is, its curve, and what it is a run of:
row, settings, seed, length and the versions of the package and of Keras. A run goes on
from it bit for bit on the same device; a state of something else is an error, and
stays as it is.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

_META = "meta"


class StateError(ValueError):
    """A state that a run cannot go on from; the message is one line."""


@dataclasses.dataclass
class Position:
    """How far a run is.

    Attributes:
        epoch: Int, epochs that are complete.
        step: Int, steps of the epoch that comes next that are done already.
        loss: Sum of the losses of these steps.
        correct: Int, training examples classified correctly in them.
        seconds: Time that they took.
        curve: One dict for each complete epoch.
        problem: Why the run cannot go on, or empty.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    problem: str = ""


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file that is there as a whole or not at all, whatever is killed.

    Args:
        path: The file; its folder is made.
        write: Gets the open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.unfinished")
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file as `write_whole` does."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def save(
    path: pathlib.Path,
    identity: Mapping[str, Any],
    position: Position,
    values: Sequence[np.ndarray],
) -> None:
    """Saves a run.

    Args:
        path: An `.npz` file.
        identity: What it is a run of, JSON-serializable.
        position: How far it is.
        values: All variables, in order.
    """
    meta = {"identity": dict(identity), "position": dataclasses.asdict(position)}
    arrays = {f"value_{number}": value for number, value in enumerate(values)}
    arrays[_META] = np.frombuffer(json.dumps(meta).encode(), "uint8")
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))


def load(
    path: pathlib.Path, identity: Mapping[str, Any], like: Sequence[np.ndarray]
) -> tuple[Position, list[np.ndarray]] | None:
    """Reads a run.

    Args:
        path: What `save` wrote.
        identity: What the run must be of.
        like: Arrays with the shapes and dtypes of the variables.

    Returns:
        How far the run is, and its variables; `None` if there is no such file.

    Raises:
        StateError: If the file is damaged, or of another version of a package, of
            other settings or of another network.
        OSError: If it cannot be read.
    """
    if not path.exists():
        return None
    remedy = "Use --restart to begin anew; the file is kept under another name."
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(file[_META].tobytes())
            saved = meta["identity"]
            values = [file[f"value_{i}"] for i in range(len(file.files) - 1)]
            position = Position(**meta["position"])
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, ValueError) as error:
        raise StateError(f"State {path} is damaged. {remedy}") from error
    except TypeError as error:
        raise StateError(f"State {path} is of another kit. {remedy}") from error
    identity = json.loads(json.dumps(dict(identity)))
    for key in identity.keys() | saved.keys():
        if identity.get(key) != saved.get(key):
            raise StateError(
                f"State {path} was saved with {key}={saved.get(key)!r}; now it is "
                f"{identity.get(key)!r}. Go on with what it was saved with. {remedy}"
            )
    shapes = [(value.shape, value.dtype) for value in values]
    if shapes != [(value.shape, value.dtype) for value in like]:
        raise StateError(f"State {path} is of another network. {remedy}")
    return position, values


def set_aside(path: pathlib.Path) -> None:
    """Renames a file, if it is there, to a name that no file has yet."""
    number = 1
    while path.exists():
        other = path.with_name(f"{path.name}.old-{number}")
        if not other.exists():
            path.rename(other)
        number += 1
