"""Reads what TFDS has prepared, as arrays; asks no network unless told to."""

import os
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from keras_sq import _checks
from keras_sq.datasets.digits import DIGITS, SPLITS, KerasSqDigits, prepare_digits

Array = npt.NDArray[Any]


def read(
    name: str, data_dir: str | os.PathLike[str] | None, download: bool
) -> tuple[dict[str, tuple[Array, Array]], int]:
    """Returns the splits as arrays, and the number of classes."""
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"Argument `name` must be the name of a data set. Received: name={name!r}"
        )
    folder = _default_data_dir() if data_dir is None else os.path.expanduser(data_dir)
    tfds_name = name
    if name == DIGITS:
        tfds_name = KerasSqDigits.name
        folder = prepare_digits(folder, fall_back=data_dir is None)
    elif not download and not _is_prepared(name, folder):
        raise FileNotFoundError(
            f"Data set {name!r} was not found in data_dir={str(folder)!r}."
            f"{_unknown_name(name)} Name the folder that holds it "
            f"(`{_base_name(name)}` is a folder in it), or let TFDS fetch it: "
            "`--download` on the command line, `download=True` in Python."
        )
    builder = _builder(tfds_name, folder, download)
    image_key, label_key = _keys(name, builder.info)
    splits = [split for split in SPLITS if split in builder.info.splits]
    for required in ("train", "test"):
        if required not in splits:
            raise ValueError(
                f"Data set {name!r} has no split {required!r}, only "
                f"{', '.join(map(repr, builder.info.splits))}. Choose one with "
                "a train and a test split."
            )
    read = tfds.load(
        tfds_name, split=splits, data_dir=folder, batch_size=-1, download=False
    )
    arrays = {}
    for split, examples in zip(splits, tfds.as_numpy(read), strict=True):
        labels = np.asarray(examples[label_key]).astype(np.int32)
        if len(labels) and labels.min() < 0:
            raise ValueError(f"Data set {name!r} has no labels in its split {split!r}.")
        arrays[split] = np.asarray(examples[image_key]), labels
    return arrays, int(builder.info.features[label_key].num_classes)


def _builder(
    tfds_name: str, folder: str | os.PathLike[str], download: bool
) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(tfds_name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        # TFDS's message is a list of hundreds of names.
        raise ValueError(
            f"Data set {tfds_name!r} is not known to TFDS.{_unknown_name(tfds_name)}"
        ) from None
    if download:
        builder.download_and_prepare()
    return builder


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Returns the features that hold the image and the label."""
    keys = info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2:
        image, label = (info.features[str(key)] for key in keys)
        if (
            isinstance(label, tfds.features.ClassLabel)
            and image.np_dtype == np.uint8
            and len(image.shape) == 3
            and all(image.shape)
        ):
            return str(keys[0]), str(keys[1])
    raise ValueError(
        f"Data set {name!r} is not one of uint8 images of one size with class "
        f"labels. Its features: {info.features}"
    )


def _default_data_dir() -> str:
    # TFDS reads the variable once, at its import.
    return os.path.expanduser(
        os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    )


def _base_name(name: str) -> str:
    return name.split("/")[0].split(":")[0]


def _is_prepared(name: str, folder: str | os.PathLike[str]) -> bool:
    """Whether some version and config is there; touches the folder only."""
    base = pathlib.Path(folder) / _base_name(name)
    patterns = ("*/dataset_info.json", "*/*/dataset_info.json")
    return any(True for pattern in patterns for _ in base.glob(pattern))


def _unknown_name(name: str) -> str:
    known = [DIGITS, *tfds.list_builders(with_community_datasets=False)]
    if _base_name(name) in known:
        return ""
    return f" TFDS knows no such name.{_checks.did_you_mean(_base_name(name), known)}"
