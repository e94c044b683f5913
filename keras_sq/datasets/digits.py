"""The data set inside the package, as TFDS knows it."""

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from keras_sq.datasets.settings import DIGITS as DIGITS

SPLITS = ("train", "validation", "test")

_FILE = pathlib.Path(__file__).parent / "data" / "digits.npz"


class KerasSqDigits(tfds.core.GeneratorBasedBuilder):
    """8 x 8 images of handwritten digits, in TFDS as `keras_sq_digits`.

    Pixels are 0 (empty) to 16. Reads a file of this package, not the network.

    References:
        - [Alpaydin and Kaynak, 1998](https://doi.org/10.24432/C50P49), CC BY 4.0
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8 x 8 images of handwritten digits, values 0 to 16.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        with np.load(_FILE) as file:
            arrays = {name: file[name] for name in ("images", "labels", "split")}
        return {
            name: self._generate_examples(arrays, number)
            for number, name in enumerate(SPLITS)
        }

    def _generate_examples(
        self, arrays: dict[str, npt.NDArray[Any]], split: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in np.flatnonzero(arrays["split"] == split):
            yield (
                int(index),
                {
                    "image": arrays["images"][index, :, :, None],
                    "label": int(arrays["labels"][index]),
                },
            )


_temporary: dict[str, tempfile.TemporaryDirectory[str]] = {}
"""Unwritable folder -> what stands in for it until the process ends."""


def prepare_digits(folder: str | os.PathLike[str], fall_back: bool) -> str:
    """Writes the digits into `folder` unless they are there; returns the folder.

    Several processes may do so at once: each writes a folder of its own
    beside the final one and renames it; the first to come wins.
    """
    final = pathlib.Path(folder) / KerasSqDigits.name / str(KerasSqDigits.VERSION)
    info = final / "dataset_info.json"
    if info.exists():
        return os.fspath(folder)
    if os.fspath(folder) in _temporary and fall_back:
        return _temporary[os.fspath(folder)].name
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=f".{KerasSqDigits.name}."
        ) as unfinished:
            builder = KerasSqDigits(data_dir=unfinished)
            # TFDS prints lines and bars that are meant for downloads.
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                builder.download_and_prepare()
            try:
                os.rename(builder.data_dir, final)
            except OSError:
                if not info.exists():
                    raise
    except OSError as error:
        if not fall_back:
            raise OSError(
                f"The digits data set could not be written to "
                f"data_dir={os.fspath(folder)!r}: "
                f"{error}. Name another folder, or none."
            ) from error
        instead = tempfile.TemporaryDirectory(prefix="keras_sq.")
        _temporary[os.fspath(folder)] = instead
        return prepare_digits(instead.name, fall_back=False)
    return os.fspath(folder)
