"""Backups of training that are complete or absent, never partial.

Design note: `keras.callbacks.BackupAndRestore` saves and restores the state
of training, but it writes weights and epoch one after the other in place. A
kill between the two (or half way through one) leaves a backup that cannot be
read or, worse, one whose weights are an epoch ahead; and it saves NaN over the
last good state. So each of its backups is written to a temporary folder, which is
renamed when it is complete, with check sums, which Keras does not write. A format of
this package was rejected: Keras decides what belongs to the state of training.

Design note: **a full disk.** HDF5, which Keras writes weights with, crashes the
process (a segmentation fault) when the end of a file does not fit. So the space is
reserved first, by a file that Python writes and that can fail safely.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

import keras
import numpy as np

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Logs, Model
from keras_sq.files import file_checks
from keras_sq.layers import masks, quantized_layers

_PREFIX = "epoch-"
_UNFINISHED = "unfinished"
_NETWORK = "network.json"
"""What the backup is of. Keras would load any weights of the same shapes."""

_FILE_BYTES = 2**16
_VARIABLE_BYTES = 2**12
"""What HDF5 adds, at most: to a file, and to each variable in it."""


class AtomicBackup(keras.callbacks.Callback):
    """Saves the state of training after every epoch, and restores it.

    As `keras.callbacks.BackupAndRestore`, with three differences: a process that is
    killed at any moment, or that runs out of disk space, leaves the last whole
    backup; weights that are not finite are never saved; and the backup stays when
    `fit` is done, until `discard()`, so that nothing is lost before the model is
    saved. A `fit` of all epochs that finds the backup of the last one trains nothing.

    One folder is for one run: the same model, compiled alike, with the same data.
    The place among the callbacks does not matter.

    Args:
        folder: Where the backups live, one at a time; made when there is one. It is
            for nothing else.

    Raises:
        TypeError: If `folder` is no path.
        ValueError: When training begins, if the backup was damaged since it was
            written, or is of another network: of other weights, otherwise quantized,
            or with another optimizer.
        keras_sq.callbacks.NotFiniteError: After an epoch that leaves a weight not
            finite, unless something else stopped the training already
            (`keras.callbacks.TerminateOnNaN`); the last good backup stays.
        OSError: After an epoch, if the backup cannot be written; the one before
            stays.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((4, 3)), np.ones((4, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     backup = keras_sq.callbacks.AtomicBackup(folder)
        ...     _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[backup])
        ...     backup.initial_epoch
        2
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(
                "Argument `folder` must be a string or a path. "
                f"Received: folder={folder!r} (of type {type(folder).__name__})"
            )
        self.folder = pathlib.Path(folder)

    @property
    def initial_epoch(self) -> int:
        """The epoch that `fit` would go on with now, from 0."""
        newest = self.newest
        return 0 if newest is None else _epochs(newest)

    @property
    def newest(self) -> pathlib.Path | None:
        """The folder of the backup to go on with; `None` without one."""
        return max(self._backups(), key=_epochs, default=None)

    def _backups(self) -> list[pathlib.Path]:
        """Returns the folders of backups; anything else in the folder is not ours."""
        pattern = re.compile(f"{_PREFIX}[0-9]{{6,}}")
        return [
            path
            for path in self.folder.glob(f"{_PREFIX}*")
            if pattern.fullmatch(path.name) and path.is_dir()
        ]

    def checked_newest(self) -> pathlib.Path | None:
        """Returns the folder of the backup to go on with, if it is undamaged.

        Raises:
            ValueError: If a file of it is not as it was written.
        """
        newest = self.newest
        if newest is not None:
            try:
                file_checks.check_seal(newest)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{error} Remove the folder '{newest}' to train from the start."
                ) from error
        return newest

    def discard(self) -> None:
        """Removes the backups, and the folder unless it holds more: all is done."""
        for path in (*self._backups(), self._unfinished):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # Not empty, or not there.
            self.folder.rmdir()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Restores the newest backup, if there is one."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        newest = self.checked_newest()
        if newest is not None:
            self._check_network(newest)
            keras_backup = self._keras_backup(newest)
            keras_backup.on_train_begin()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes a backup, and removes the one before."""
        weight = not_finite_weight(self.model)
        if weight is not None:
            if self.model.stop_training:
                return  # Whoever stopped it has said why.
            raise masks.NotFiniteError(
                f"Weight '{weight}' holds NaN or infinite values after epoch {epoch} "
                "(from 0); no backup of it was made. Lower the learning rate, or clip "
                "the gradients (`clipnorm=1.0` in the optimizer)."
            )
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            _require_space(self._unfinished, _num_bytes(self.model))
            self._keras_backup(self._unfinished).on_epoch_end(epoch)
            (self._unfinished / _NETWORK).write_text(_description(self.model), "utf-8")
            self.write_more(self._unfinished)
            file_checks.seal(self._unfinished)
            target = self.folder / f"{_PREFIX}{epoch + 1:06d}"
            os.replace(self._unfinished, target)
        # HDF5 raises a RuntimeError where closing a file fails.
        except (OSError, RuntimeError) as error:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            raise OSError(
                f"Cannot write the backup of epoch {epoch} (from 0) in "
                f"'{self.folder}': {error}"
            ) from error
        try:
            for older in self._backups():
                if older != target:
                    # Not removed under its name: a part of it would count as a backup.
                    os.replace(older, self._unfinished)
                    shutil.rmtree(self._unfinished)
        except OSError as error:
            raise OSError(
                f"Wrote the backup of epoch {epoch} (from 0), but cannot remove the "
                f"one before it from '{self.folder}': {error}"
            ) from error

    def write_more(self, folder: pathlib.Path) -> None:
        """Writes what else belongs to a backup; for subclasses.

        Args:
            folder: Of the backup that is being written.
        """

    def _check_network(self, backup: pathlib.Path) -> None:
        """Raises if a backup is of another network than the one to be trained."""
        path = backup / _NETWORK
        if not path.exists():
            return  # Of an earlier version.
        saved = file_checks.read_json(path, dict)
        for settings in saved.get("quantization") or []:
            if isinstance(settings, dict):
                settings.pop("mask_seed", None)  # Of an earlier version.
        current = json.loads(_description(self.model))
        for part in current:
            if saved.get(part) != current[part]:
                raise ValueError(
                    f"The backup in '{self.folder}' is of another network: its {part} "
                    f"{_difference(saved.get(part), current[part])}. Choose another "
                    "folder, or remove this one to train from the start."
                )

    @property
    def _unfinished(self) -> pathlib.Path:
        return self.folder / _UNFINISHED

    def _keras_backup(self, folder: pathlib.Path) -> keras.callbacks.BackupAndRestore:
        backup = keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=False)
        backup.set_model(self.model)
        return backup


def _description(model: Model) -> str:
    """Returns what a backup must agree with, as JSON: three lists.

    Not names, which Keras counts up in a process; nor what may be changed on the way,
    such as the learning rate.
    """
    quantization = []
    for _, layer in quantized_layers(model):
        settings = dict(layer.quantization_settings.get_config())
        settings.pop("mask_seed")
        quantization.append(keras.saving.serialize_keras_object(settings))
    parts = {
        "weights": [f"{tuple(w.shape)} {w.dtype}" for w in model.weights],
        "quantization": quantization,
        "optimizer": [type(getattr(model, "optimizer", None)).__name__],
    }
    # A quantizer of the user's own may hold what JSON does not know.
    return json.dumps(parts, indent=2, default=lambda value: type(value).__name__)


def _difference(saved: Any, current: list[Any]) -> str:
    """Returns the first entry that two lists differ in, for a message."""
    if not isinstance(saved, list) or len(saved) != len(current):
        count = len(saved) if isinstance(saved, list) else 0
        return f"has {count} entries there and {len(current)} here"
    pairs = enumerate(zip(saved, current, strict=True))
    index, (old, new) = next(x for x in pairs if x[1][0] != x[1][1])
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(k for k in sorted(old | new) if old.get(k) != new.get(k))
        return f"has in entry {index} {key}={_shown(old, key)}, here {_shown(new, key)}"
    return f"has in entry {index} {old}, here {new}"


def _shown(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    if isinstance(value, dict) and "class_name" in value:
        return f"{value['class_name']}({value.get('config')})"
    return repr(value)


def _epochs(backup: pathlib.Path) -> int:
    """Returns how many epochs were done when a backup was written."""
    return int(backup.name.removeprefix(_PREFIX))


def _num_bytes(model: Model) -> int:
    """Returns how large a file of the state of training is at most."""
    # With optimizers of the model's own (a GAN's), which Keras saves as well.
    optimizers = [x for x in vars(model).values() if _is_optimizer(x)]
    variables = [*model.variables, *(v for x in optimizers for v in x.variables)]
    sizes = [8 if "64" in str(v.dtype) else 4 for v in variables]
    total = _FILE_BYTES
    for variable, size in zip(variables, sizes, strict=True):
        total += _VARIABLE_BYTES + size * math.prod(variable.shape)
    return total


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, keras.optimizers.Optimizer)


def _require_space(folder: pathlib.Path, num_bytes: int) -> None:
    """Raises if a file of this size does not fit, and leaves none.

    Raises:
        OSError: If it does not fit.
    """
    if not hasattr(os, "posix_fallocate"):
        return  # Not on Windows.
    path = folder / "space"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    path.unlink()


def not_finite_weight(model: Model) -> str | None:
    """Returns the path of the first weight that is not finite, if there is one.

    Args:
        model: A built model.
    """
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(internals.read(variable))
        if value.dtype.kind in "iub":
            continue
        if value.dtype.kind != "f":  # bfloat16, of which NumPy knows nothing.
            value = value.astype("float32")
        if not np.all(np.isfinite(value)):
            return str(variable.path)
    return None
