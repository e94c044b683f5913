"""Loads saved models of any origin, with what they may cost bounded by their size.

`load_model` is Keras's, for the commands of this package: what a file claims is
checked first (`file_checks.py`), the weights that its layers ask for while they are
made are counted against what it holds, and whatever goes wrong is one error that
names the file. Code is not run: Keras's safe mode stays on, which refuses Lambda
layers and SavedModels.

Design note: **counted where layers add weights**, and not read out of the
configuration, which would take knowledge of every layer. A layer that makes large
arrays otherwise (the filters of a `MelSpectrogram`) is not noticed.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence

import keras

from keras_sq import _keras_internals as internals
from keras_sq import file_checks
from keras_sq.types import Model

_H5 = (".h5", ".hdf5")


def load_model(path: str | os.PathLike[str]) -> Model:
    """Returns a saved model, not compiled.

    Args:
        path: Of a `.keras` file, or of an older `.h5` one.

    Raises:
        OSError: If the file is not there.
        ValueError: If it is damaged, claims more than a file of its size can hold,
            or if Keras cannot load it.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no model '{path}'.")
    try:
        held = os.path.getsize(path)
        if path.endswith(_H5):
            with open(path, "rb") as file:
                held = file_checks.check_h5(file, file_checks.most_bytes(held))
        elif path.endswith(".keras"):
            held = file_checks.check_model_archive(path)
        with _weights_limited(2 * held + file_checks.SLACK):
            return keras.models.load_model(path, compile=False)
    # Whatever is wrong with a file comes out of Keras as any of many types.
    except Exception as error:
        raise ValueError(f"Model '{path}' cannot be loaded: {_why(error)}") from error


@contextlib.contextmanager
def _weights_limited(limit: int) -> Iterator[None]:
    """Within, layers made by this thread get so many bytes of weights in all."""
    left = limit

    def count(layer: str, shape: Sequence[int], dtype: str) -> None:
        nonlocal left
        bits = re.search(r"\d+", dtype)
        size = math.prod(shape) * (int(bits[0]) + 7 if bits else 8) // 8
        left -= max(size, 0)
        if left < 0:
            raise ValueError(
                f"layer {layer[:60]!r} asks for a weight of shape {tuple(shape)}, "
                "more than the file holds."
            )

    with internals.weights_watched(count):
        yield


def _why(error: Exception) -> str:
    """Returns the reason, around which Keras prints the settings of all layers."""
    inner = str(error).split("Exception encountered: ")[-1]
    inner = inner.split("Full object config:")[0].strip()
    paragraphs = inner.split("\n\n")
    if paragraphs[0].startswith("A total of ") and len(paragraphs) > 1:
        paragraphs = paragraphs[1:]  # It counts first, and says why then.
    reason = paragraphs[0][:600] or type(error).__name__
    if "Could not locate" in reason:
        reason += " Name the module that defines it: --import=my_layers."
    return reason
