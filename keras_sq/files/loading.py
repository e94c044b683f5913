"""Loads saved models of any origin, with what they may cost bounded by their size.

`load_model` is Keras's, for the commands of this package: what a file claims is
checked first (`file_checks.py`), the weights that its layers ask for while they are
made are counted against what it holds, and whatever goes wrong is one error that
names the file. Code is not run: Keras's safe mode stays on, which refuses Lambda
layers and SavedModels.

Of an `.h5` file of Keras 2, whose configuration Keras 3 does not read in full, a
temporary copy is loaded that has another one (`legacy_configs.py`).

Design note: **counted where layers add weights**, and not read out of the
configuration, which would take knowledge of every layer. A layer that makes large
arrays otherwise (the filters of a `MelSpectrogram`) is not noticed.
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import h5py
import keras

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model
from keras_sq.files import file_checks, legacy_configs

_H5 = (".h5", ".hdf5")
_CONFIG = "model_config"
_KERAS_2_ONLY = (
    *("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod"),
    *("LocallyConnected1D", "LocallyConnected2D", "ThresholdedReLU"),
)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Returns a saved model, not compiled.

    Args:
        path: Of a `.keras` file, or of an older `.h5` one, of Keras 2 as well.

    Raises:
        OSError: If the file is not there.
        ValueError: If it is damaged, claims more than a file of its size can hold,
            or if Keras cannot load it.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no model '{path}'.")
    try:
        size = os.path.getsize(path)
        if path.endswith(_H5):
            with open(path, "rb") as file:
                size = file_checks.check_h5(file, file_checks.most_bytes(size))
        elif path.endswith(".keras"):
            size = file_checks.check_model_archive(path)
        with _weights_limited(2 * size + file_checks.SLACK), _readable(path) as source:
            return keras.models.load_model(source, compile=False)
    # Whatever is wrong with a file comes out of Keras as any of many types.
    except Exception as error:
        raise ValueError(f"Model '{path}' cannot be loaded: {_why(error)}") from error


@contextlib.contextmanager
def _readable(path: str) -> Iterator[str]:
    """Within, there is a file with what a checked file holds, which Keras 3 reads."""
    changed = _modernized_config(path) if path.endswith(_H5) else None
    if changed is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="keras_sq.") as folder:
        copy = os.path.join(folder, "model.h5")
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            del file.attrs[_CONFIG]
            file.attrs[_CONFIG] = changed
        yield copy


def _modernized_config(path: str) -> str | None:
    """Returns the configuration as Keras 3 reads it, if another one is there."""
    with h5py.File(path, "r") as file:
        config = file.attrs.get(_CONFIG)
        version = file.attrs.get("keras_version")
    if config is None:
        raise ValueError(
            "it holds weights only. Build the model, and use `model.load_weights`."
        )
    if isinstance(config, bytes):
        config = config.decode("utf-8")
    if isinstance(version, bytes):
        version = version.decode("utf-8")
    if not isinstance(config, str) or len(config) > file_checks.MAX_JSON_BYTES:
        raise ValueError(
            f"its {_CONFIG} is no text, or longer than "
            f"{file_checks.MAX_JSON_BYTES:,} bytes"
        )
    if not legacy_configs.is_legacy(None if version is None else str(version)):
        return None
    return json.dumps(legacy_configs.modernized(json.loads(config)))


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
    if unknown := re.match(r"Unknown layer: '(\w{1,60})'", reason):
        reason = (
            f"it has a layer of a class that this Keras does not know, {unknown[1]!r}."
        )
        if unknown[1] in _KERAS_2_ONLY:
            return f"{reason} Keras 3 has none such: build the model anew without it."
        return f"{reason} Load it within `keras.saving.custom_object_scope`."
    if "Could not locate" in reason:
        reason += " Name the module that defines it: --import=my_layers."
    return reason
