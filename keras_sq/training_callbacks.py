"""Callbacks of `keras_sq.train`: history, restorable state, progress.

Design note: `keras.callbacks.BackupAndRestore` saves and restores the state
of training, but it writes weights and epoch one after the other in place. A
kill between the two (or half way through one) leaves a backup that is broken
or, worse, one whose weights are an epoch ahead. So each of its backups is
moved, together with the history up to there, into a folder of its own; a
folder is there as a whole or not at all, and holds check sums of its files, which
Keras does not write.
"""

import math
import os
import pathlib
import shutil
import sys
import time
from typing import Any, TextIO

import keras

from keras_sq import training_files

_HISTORY = "history.json"
_PREFIX = "epoch-"


class Backup:
    """The restorable state of one phase, as a list of callbacks.

    Attributes:
        rows: The history so far, of earlier processes too.
        initial_epoch: The epoch to go on with.

    Args:
        folder: Where the state lives; made if there is something to keep.
        run: Name of the phase, for the history.

    Raises:
        DamagedRunError: If the state is damaged.
    """

    def __init__(self, folder: pathlib.Path, run: str) -> None:
        self.run = run
        self._folder = folder
        self._live = folder / "live"
        self.rows: list[dict[str, Any]] = []
        self._start_from_newest()
        self.initial_epoch = len(self.rows)

    def callbacks(self) -> list[Any]:
        """Returns what goes around the other callbacks: first and last."""
        return [
            keras.callbacks.BackupAndRestore(str(self._live), delete_checkpoint=False),
            _KeepEpoch(self),
        ]

    def keep(self) -> None:
        """Moves the backup just written to where it counts."""
        training_files.write_json(self._live / _HISTORY, self.rows)
        training_files.seal(self._live)
        target = self._folder / f"{_PREFIX}{len(self.rows):06d}"
        os.replace(self._live, target)
        for older in self._kept():
            if older != target:
                shutil.rmtree(older)

    def discard(self) -> None:
        """Removes everything: the phase is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"))

    def _start_from_newest(self) -> None:
        shutil.rmtree(self._live, ignore_errors=True)
        kept = self._kept()
        if not kept:
            return
        try:
            training_files.check_seal(kept[-1])
            self.rows = training_files.read_history(kept[-1] / _HISTORY)
        except (OSError, ValueError) as error:
            raise training_files.DamagedRunError(
                f"{error} Remove the folder '{kept[-1]}' to train this network again "
                "from its start, with --resume."
            ) from error
        shutil.copytree(kept[-1], self._live)


class _KeepEpoch(keras.callbacks.Callback):
    """Adds the epoch to the history, then keeps the backup."""

    def __init__(self, backup: Backup) -> None:
        super().__init__()
        self._backup = backup

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Runs after `BackupAndRestore` has written."""
        logs = logs or {}
        ratio = None if self._backup.run == "float" else 1.0
        row = {
            "run": self._backup.run,
            "epoch": epoch,
            "ratio": logs.get("quantized_ratio", ratio),
            "learning_rate": float(
                keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            ),
        }
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            row[name] = float(logs[name])
        self._backup.rows.append(row)
        self._backup.keep()


class Progress(keras.callbacks.Callback):
    """One line that is updated in a terminal, else a few lines a phase.

    Args:
        title: What is trained.
        stream: Where to write; `None` is the standard error stream.
        lines: How many lines a phase gets where the line cannot be updated.
    """

    def __init__(
        self, title: str, stream: TextIO | None = None, lines: int = 4
    ) -> None:
        super().__init__()
        self._title = title
        self._stream = stream or sys.stderr
        self._lines = lines
        self._updates = self._stream.isatty()
        self._width = 0
        self._written = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the time."""
        self._begin = time.monotonic()
        self._first: int | None = None
        self._last = ""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes where the run begins, for the time left."""
        self._epoch = epoch
        if self._first is None:
            self._first = epoch

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Updates the line, a few times a second."""
        if self._updates and time.monotonic() - self._written > 0.2:
            self._show((batch + 1) / (self.params.get("steps") or math.inf), end="")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows the numbers of the epoch."""
        logs = logs or {}
        parts = [
            f"loss {logs['loss']:.3f}",
            f"val accuracy {100 * logs['val_accuracy']:.2f} %",
        ]
        if "quantized_ratio" in logs:
            parts.append(f"ratio {logs['quantized_ratio']:.3g}")
        self._last = ", ".join(parts)
        epochs = self.params["epochs"]
        every = math.ceil(epochs / self._lines)
        if self._updates:
            self._show(1.0, end="")
        elif (epoch + 1) % every == 0 or epoch + 1 == epochs:
            self._show(1.0, end="\n")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the last line standing."""
        if self._updates and self._first is not None:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, part_of_epoch: float, end: str) -> None:
        self._written = time.monotonic()
        epochs = self.params["epochs"]
        done = self._epoch - (self._first or 0) + part_of_epoch
        elapsed = self._written - self._begin
        left = elapsed / done * (epochs - self._epoch - part_of_epoch) if done else 0
        text = f"{self._title}: epoch {self._epoch + 1}/{epochs}"
        if self._last:
            text += f", {self._last}"
        text += f", {left:.0f} s left" if left >= 0.5 else f", {elapsed:.0f} s"
        if self._updates:
            columns = shutil.get_terminal_size().columns
            text = text[: columns - 1]
            padded = text.ljust(self._width)
            self._width = len(text)
            text = f"\r{padded}"
        self._stream.write(text + end)
        self._stream.flush()
