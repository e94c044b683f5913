"""Finds what TFDS has prepared, and reads it; asks no network unless told to."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sq.core import checks
from keras_sq.core.types import Array
from keras_sq.datasets import sound
from keras_sq.datasets.digits import DIGITS, KerasSqDigits, prepare_digits
from keras_sq.datasets.settings import MADE_BY, base_name, settings_of


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that lies in a folder, and what it is.

    Attributes:
        name: As asked for.
        tfds_name: As TFDS knows it.
        folder: Where it lies.
        builder: TFDS's.
        example_key: The feature that holds the image or sound.
        label_key: The feature that holds the label.
        num_classes: Number of labels.
        shape: Of one example: (height, width, channels), with `None` where images
            differ; of a sound that of its features.
        is_sound: Whether examples are sounds.
        test: Split that results are reported on.
        validation: Split to choose by, or `None`: a part of `train` has to be held
            out.
    """

    name: str
    tfds_name: str
    folder: str
    builder: tfds.core.DatasetBuilder
    example_key: str
    label_key: str
    num_classes: int
    shape: tuple[int | None, int | None, int]
    is_sound: bool
    test: str
    validation: str | None

    def size(self, split: str) -> int:
        """Returns the number of examples in a split."""
        return int(self.builder.info.splits[split].num_examples)

    def bytes_per_example(self) -> float:
        """Returns what a training example takes in the files, on average."""
        split = self.builder.info.splits["train"]
        return max(float(split.num_bytes), 1.0) / max(int(split.num_examples), 1)


def prepared(
    name: str, data_dir: str | os.PathLike[str] | None, download: bool
) -> Prepared:
    """Finds a data set, fetches it if that is allowed, and looks at what it is.

    Args:
        name: As in `load`.
        data_dir: As in `load`.
        download: As in `load`.

    Raises:
        FileNotFoundError: If it is not there, and not to be fetched.
        OSError: If it cannot be fetched.
        ValueError: If it is no data set that can be used.
    """
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
            f"Data set {name!r} was not found in data_dir={str(folder)!r}. Name the "
            f"folder that holds it (`{base_name(name)}` is a folder in it)"
            f"{_how_to_get(name)}"
        )
    builder = _builder(tfds_name, folder, download)
    info = builder.info
    example_key, label_key = _keys(name, info)
    test, validation = _splits(name, info)
    example = info.features[example_key]
    is_sound = isinstance(example, tfds.features.Audio)
    return Prepared(
        name=name,
        tfds_name=tfds_name,
        folder=os.fspath(folder),
        builder=builder,
        example_key=example_key,
        label_key=label_key,
        num_classes=int(info.features[label_key].num_classes),
        shape=sound.SHAPE if is_sound else tuple(example.shape),
        is_sound=is_sound,
        test=test,
        validation=validation,
    )


def arrays(source: Prepared) -> dict[str, tuple[Array, Array]]:
    """Reads a data set into memory.

    Returns:
        `"train"`, `"test"` and, if there is a split for it, `"validation"` -> images,
        uint8, or features of sounds, float32, `(examples, height, width, channels)`,
        and labels, int32 `(examples,)`.

    Raises:
        ValueError: If a split has no labels.
    """
    wanted = {"train": "train", "validation": source.validation, "test": source.test}
    parts = {}
    for part, split in wanted.items():
        if split is not None:
            parts[part] = _features(source, split)
            if len(parts[part][1]) and parts[part][1].min() < 0:
                raise _no_labels(source.name, split)
    return parts


def _features(source: Prepared, split: str) -> tuple[Array, Array]:
    options = {"split": split, "data_dir": source.folder, "download": False}
    if not source.is_sound:
        batch = tfds.as_numpy(tfds.load(source.tfds_name, batch_size=-1, **options))
        labels = np.asarray(batch[source.label_key]).astype(np.int32)
        return np.asarray(batch[source.example_key]), labels

    def features(example: dict[str, Any]) -> tuple[Any, Any]:
        label = tf.cast(example[source.label_key], tf.int32)
        return sound.mfcc(example[source.example_key]), label

    clips = tfds.load(source.tfds_name, **options)
    clips = clips.map(features, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    pieces = list(tfds.as_numpy(clips.batch(1024)))
    x, y = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    return x, y


def check_labels(source: Prepared, split: str) -> None:
    """Raises if the first example of a split has no label.

    Raises:
        ValueError: If so.
    """
    skip = {source.example_key: tfds.decode.SkipDecoding()}
    first = source.builder.as_dataset(split=split, decoders=skip).take(1)
    for example in tfds.as_numpy(first):
        if example[source.label_key] < 0:
            raise _no_labels(source.name, split)


def _no_labels(name: str, split: str) -> ValueError:
    return ValueError(f"Data set {name!r} has no labels in its split {split!r}.")


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
        try:
            builder.download_and_prepare()
        # No network, no room, a file that is to be fetched by hand, another check
        # sum: TFDS raises what its parts raise, of many types.
        except Exception as error:
            reason = " ".join(str(error).split())[:600] or type(error).__name__
            raise OSError(
                f"Data set {tfds_name!r} could not be fetched into data_dir="
                f"{str(folder)!r}: {reason}{_without_network(tfds_name)}"
            ) from error
    return builder


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Returns the features that hold the image or sound and the label.

    Those that the data set is said to be supervised by; where that is not said, as in
    what `tfds.dataset_builders.store_as_tfds_dataset` writes, the only ones there are.
    """
    features = info.features
    keys = info.supervised_keys
    if keys is None and isinstance(features, tfds.features.FeaturesDict):
        examples = [key for key in features if _is_example(features[key])]
        labels = [
            key
            for key in features
            if isinstance(features[key], tfds.features.ClassLabel)
        ]
        if len(examples) == len(labels) == 1:
            keys = examples[0], labels[0]
    if isinstance(keys, tuple) and len(keys) == 2:
        example, label = (features[str(key)] for key in keys)
        if isinstance(label, tfds.features.ClassLabel) and _is_example(example):
            if isinstance(example, tfds.features.Audio):
                _check_sound(name, example)
            return str(keys[0]), str(keys[1])
    raise ValueError(
        f"Data set {name!r} is not one of uint8 images, or sounds, with class labels. "
        f"Its features: {info.features}"
    )


def _is_example(feature: tfds.features.FeatureConnector) -> bool:
    """Whether a feature is a sound, or images of uint8 in gray or color."""
    if isinstance(feature, tfds.features.Image):
        return feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3)
    return isinstance(feature, tfds.features.Audio)


def _check_sound(name: str, feature: tfds.features.Audio) -> None:
    integers = np.issubdtype(feature.np_dtype, np.integer)
    if feature.sample_rate != sound.SAMPLE_RATE or not integers:
        raise ValueError(
            f"Data set {name!r} must have sounds of integers at {sound.SAMPLE_RATE} "
            f"Hz. It has {np.dtype(feature.np_dtype).name} at {feature.sample_rate} Hz."
        )


def _splits(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str | None]:
    """Returns the split to report on, and that to choose by, if there is one."""
    test = settings_of(name).test
    if test is None:
        test = "test" if "test" in info.splits else "validation"
    missing = [split for split in ("train", test) if split not in info.splits]
    if missing:
        # Of a set that has neither, the test split is what it lacks.
        lacks = "test" if missing[0] == "validation" else missing[0]
        raise ValueError(
            f"Data set {name!r} has no split {lacks!r}, only "
            f"{', '.join(map(repr, info.splits))}. Choose one with a train and a test "
            "(or validation) split."
        )
    others = "validation" in info.splits and test != "validation"
    return test, "validation" if others else None


def _default_data_dir() -> str:
    # TFDS reads the variable once, at its import.
    return os.path.expanduser(
        os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    )


def _is_prepared(name: str, folder: str | os.PathLike[str]) -> bool:
    """Whether some version and config is there; touches the folder only."""
    base = pathlib.Path(folder) / base_name(name)
    patterns = ("*/dataset_info.json", "*/*/dataset_info.json")
    return any(True for pattern in patterns for _ in base.glob(pattern))


def _how_to_get(name: str) -> str:
    """Returns the end of a sentence: where a data set that is not here is from."""
    unknown = _unknown_name(name)
    if unknown:
        return f".{unknown}"
    return (
        ", or let TFDS fetch it: `--download` on the command line, `download=True` in "
        f"Python.{_without_network(name)}"
    )


def _without_network(name: str) -> str:
    return (
        " Without a network: prepare it on a computer that has one (`python -c "
        f"\"import tensorflow_datasets; tensorflow_datasets.load('{name}', "
        f"data_dir='data')\"`), copy the folder `data/{base_name(name)}` into a folder "
        "here, and name that one by `--data_dir`, without `--download`."
    )


def _unknown_name(name: str) -> str:
    script = MADE_BY.get(base_name(name))
    if script is not None:
        return f" It is none of TFDS's: `{script}` of the repository makes it."
    known = [DIGITS, *tfds.list_builders(with_community_datasets=False)]
    if base_name(name) in known:
        return ""
    return f" TFDS knows no such name.{checks.did_you_mean(base_name(name), known)}"
