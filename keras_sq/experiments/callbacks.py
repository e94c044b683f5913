"""Callbacks of `keras_sq.train`: history, restorable state, progress."""

import math
import pathlib
import shutil
import sys
import time
from typing import Any, TextIO

import keras

from keras_sq.callbacks.backup import AtomicBackup
from keras_sq.experiments import training_files

_HISTORY = "history.json"


class Backup(AtomicBackup):
    """The restorable state of one phase, and its history.

    To be put behind the callbacks that add to the logs.

    Attributes:
        rows: The history so far, of earlier processes too.

    Args:
        folder: Where the state lives; made if there is something to keep.
        run: Name of the phase, for the history.

    Raises:
        DamagedRunError: If the state is damaged.
    """

    def __init__(self, folder: pathlib.Path, run: str) -> None:
        super().__init__(folder)
        self.run = run
        self.rows: list[dict[str, Any]] = []
        try:
            newest = self.checked_newest()
            if newest is not None:
                self.rows = training_files.read_history(newest / _HISTORY)
        except (OSError, ValueError) as error:
            raise training_files.DamagedRunError(str(error)) from error

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch to the history, then writes the backup."""
        logs = logs or {}
        ratio = None if self.run == "float" else 1.0
        row = {
            "run": self.run,
            "epoch": epoch,
            "ratio": logs.get("quantized_ratio", ratio),
            "learning_rate": float(
                keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            ),
        }
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            row[name] = float(logs[name])
        self.rows.append(row)
        super().on_epoch_end(epoch, logs)

    def write_more(self, folder: pathlib.Path) -> None:
        """Writes the history."""
        training_files.write_json(folder / _HISTORY, self.rows)


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
