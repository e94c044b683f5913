"""The output folder of a training run: what is in it, and who may write there.

`claim_folder` decides whether a run may start in, or go on in, a folder. What a run
is, is in `config.py`; how its files are read and written, in
`training_files.py`.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_sq.experiments.training_files import write_json
from keras_sq.files import file_checks

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder go unnoticed there.
    fcntl = None  # type: ignore[assignment]

_DESCRIPTION = "config.json"
_STATE = "state"
_RESULTS = "results.json"
_OUTPUTS = ("history.csv", _RESULTS, "training.png")


@contextlib.contextmanager
def only_process(output_dir: str) -> Iterator[None]:
    """Keeps every other process out of an output folder, while the block runs.

    The lock is of the folder itself and goes with the process, however that ends. On
    file systems without locks there is none.

    Args:
        output_dir: The folder; made if it is not there.

    Raises:
        FileExistsError: If another process has the folder.
        OSError: If the folder cannot be made.
    """
    path = pathlib.Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY) if fcntl else None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        if descriptor is not None:
            _lock(descriptor, output_dir)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, output_dir: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileExistsError(
            f"Another process trains in folder {output_dir!r}. Wait for it, stop it, "
            "or choose another `--output_dir`."
        ) from error
    except OSError:
        pass  # No locks on this file system.


def claim_folder(
    output_dir: str,
    description: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> "RunFolder":
    """Makes the output folder ready: empty of results, or to be gone on with.

    A run is only ever replaced by the same run (which gives the same
    result), or if `overwrite` is set.

    Args:
        output_dir: The folder; made if it is not there.
        description: What determines the result, JSON-serializable; `"methods"` are
            the names of its networks.
        resume: Whether to go on with the run in the folder.
        overwrite: Whether to replace it.

    Raises:
        FileExistsError: If the folder holds an unfinished run, or one with
            other settings, and neither `resume` nor `overwrite` is set.
        ValueError: If `resume` is set and the run has other settings.
        OSError: If the folder cannot be made.
    """
    folder = RunFolder(pathlib.Path(output_dir))
    outputs = folder.outputs(description["methods"])
    earlier = folder.earlier_description()
    if earlier is not None:
        changes = differences(earlier, description)
        if resume and changes:
            raise ValueError(
                f"The run in {output_dir!r} has other settings: {changes}. "
                "Resume it with those, or choose another `--output_dir`."
            )
        if resume:
            folder.tidy({_DESCRIPTION, *outputs})
            folder.state.mkdir(exist_ok=True)
            return folder
        if changes and not overwrite:
            raise FileExistsError(
                f"Folder {output_dir!r} holds a run with other settings: "
                f"{changes}. Choose another `--output_dir`, or replace the run by "
                "`--overwrite`."
            )
        if not folder.is_finished and not overwrite:
            raise FileExistsError(
                f"Folder {output_dir!r} holds an unfinished run. Go on with "
                "it by `--resume`, or replace it by `--overwrite`."
            )
        folder.clear(outputs | folder.outputs(earlier["methods"]))
    else:
        strangers = [name for name in sorted(outputs) if (folder.path / name).exists()]
        if strangers and not overwrite:
            raise FileExistsError(
                f"Folder {output_dir!r} holds files that this run would "
                f"replace: {', '.join(strangers)}. Choose another `--output_dir`, "
                "or allow it by `--overwrite`."
            )
        folder.clear(outputs)
    try:
        folder.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder.path, error) from error
    write_json(folder.path / _DESCRIPTION, dict(description))
    return folder


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are.

    Attributes:
        path: The output folder.
    """

    path: pathlib.Path

    @property
    def state(self) -> pathlib.Path:
        """What only `--resume` reads."""
        return self.path / _STATE

    def model(self, method: str) -> pathlib.Path:
        """The trained network; there only when its training is finished."""
        return self.path / f"{method}.keras"

    def tflite(self, method: str) -> pathlib.Path:
        """The exported network."""
        return self.path / f"{method}.tflite"

    def history(self, method: str) -> pathlib.Path:
        """The epochs of a finished training."""
        return self.state / f"{method}.json"

    def snapshots(self, method: str) -> pathlib.Path:
        """The state of an unfinished training."""
        return self.state / method

    @property
    def results(self) -> pathlib.Path:
        """The table's numbers; there only when the run is finished."""
        return self.path / _RESULTS

    @property
    def is_finished(self) -> bool:
        """Whether the run in the folder came to its end."""
        return self.results.exists()

    def earlier_description(self) -> dict[str, Any] | None:
        """Returns what was asked of the run in the folder, if there is one."""
        path = self.path / _DESCRIPTION
        try:
            description: dict[str, Any] = file_checks.read_json(path, dict)
            methods: Any = description.get("methods")
            known = "version" in description and isinstance(methods, list)
            # They become names of files.
            if not known or not all(re.fullmatch(r"[\w-]+", str(x)) for x in methods):
                raise ValueError("it names no methods")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise FileExistsError(
                f"File {str(path)!r} is not of a training run, or damaged. Choose "
                "another `--output_dir`, or remove the file."
            ) from error
        return description

    def outputs(self, methods: Sequence[str]) -> set[str]:
        """Returns the names of the files that a run of these methods leaves."""
        files = (self.model, self.tflite)
        return {*_OUTPUTS, *(file(name).name for name in methods for file in files)}

    def clear(self, outputs: Iterable[str]) -> None:
        """Removes these files and the state of a run, and nothing else.

        In an order that leaves, wherever it is killed, an unfinished run of the old
        settings: results say that a run is finished, and a network that it was
        trained, which the state is needed for.
        """
        for name in (_RESULTS, *outputs):
            (self.path / name).unlink(missing_ok=True)
        self.tidy(outputs)
        shutil.rmtree(self.state, ignore_errors=True)
        (self.path / _DESCRIPTION).unlink(missing_ok=True)

    def tidy(self, outputs: Iterable[str]) -> None:
        """Removes what a kill left half written beside these files."""
        for name in outputs:
            # As `write_text` and `keras_sq.export` name them; names have no wildcards.
            for pattern in (f".{name}.unfinished", f".{name}.*.tmp"):
                for path in self.path.glob(pattern):
                    path.unlink(missing_ok=True)


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns what two descriptions of a run differ in; empty if in nothing."""
    return ", ".join(
        f"{key}={repr(earlier.get(key))[:200]} there, {now.get(key)!r} asked for"
        for key in sorted(earlier.keys() | now.keys())
        if earlier.get(key) != now.get(key)
    )


def check_writable(path: pathlib.Path) -> None:
    """Raises if the folder could not be made; makes nothing."""
    if not str(path) or str(path) == ".":
        return
    for parent in (path, *path.absolute().parents):
        try:
            exists = parent.exists()
        except OSError as error:
            raise unwritable(path, error) from error
        if not exists:
            continue
        if not parent.is_dir():
            raise unwritable(path, f"{str(parent)!r} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise unwritable(path, f"no permission to write in {str(parent)!r}")
        return


def unwritable(path: pathlib.Path, reason: object) -> OSError:
    """Returns the error that says why a folder cannot be written to."""
    return OSError(
        f"Argument `output_dir` must be a folder that can be written to. "
        f"Received: output_dir={str(path)!r} ({reason})"
    )
