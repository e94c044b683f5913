"""From a name to batches: splits, statistics, limits, memory or files."""

import dataclasses
import math
import os

import numpy as np
import tensorflow as tf

from keras_sq.core import checks
from keras_sq.core.types import Array
from keras_sq.datasets import images, reading, streaming
from keras_sq.datasets.batches import Dataset, Memory, Source, in_order
from keras_sq.datasets.digits import DIGITS
from keras_sq.datasets.images import WHOLE
from keras_sq.datasets.reading import Prepared
from keras_sq.datasets.settings import DEFAULT_IMAGE_SIZE, Settings, settings_of

HOLDOUT_SEED = 170801001
"""Of the validation split: fixed, so that no run tunes on another's."""

MEMORY_LIMIT = 2**31
"""Bytes: data sets that take more are read from their files in every epoch."""


def load(
    name: str = DIGITS,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    validation_fraction: float | None = None,
    augment: bool | None = False,
    crop: str = "side",
    image_size: int | None = None,
    limit: int | None = None,
    download: bool = False,
) -> Dataset:
    """Loads a data set of images, or of spoken words, through TFDS.

    Images of one size that take at most `MEMORY_LIMIT` are held in memory, and so
    are the features of sounds (49 x 10 cepstral coefficients, see `sound.py`). Images
    that take more, have many sizes or are brought to another one are read from their
    files in every epoch. `Dataset.held_in` says which.

    What is known of single data sets is in the table `settings.SETTINGS`. The split
    `validation` stands in for a `test` that is not there, and a part of `train` for
    a `validation` that is not there or was taken for that.

    Args:
        name: `"digits"`, or a TFDS name (`"cifar10"`, `"mnist:3.0.1"`,
            `"imagenet2012"`, `"speech_commands"`).
        data_dir: Folder with prepared TFDS data; `None` is TFDS's own
            (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). `"digits"` is
            written there at its first use (in a temporary folder where
            `None` cannot be written to).
        batch_size: Examples a step, in all splits.
        seed: Of the order and augmentation of the training examples.
        validation_fraction: Part of `train` that is held out, in (0, 1), if
            no split is left for it; `None`: as the table says. The same examples
            whatever the seed; in memory, so many of each class.
        augment: Whether training images are mirrored at random (but for digits and
            letters) and, if they are used at their own size, shifted by up to 4
            pixels (padded with the mean, and cropped), else cropped at random;
            `None`: as the table says.
        crop: Of images that are brought to another size: `"side"`, a random square
            of 7/8 of the short side (the SQ paper's code), or `"area"`, 8 to 100 % of
            the area (LQ-Nets'). Without augmentation, and in evaluation, it is the
            square of 7/8 in the middle.
        image_size: Height and width that images are brought to (pixels); `None`: as
            the table says.
        limit: Number of training examples to use, or `None` for all. A
            smaller number uses a part of those of a larger one.
        download: Whether TFDS may download what `data_dir` does not hold.

    Returns:
        A `Dataset`.

    Raises:
        FileNotFoundError: If the data set is not in `data_dir` and
            `download` is not set. Nothing is asked of a network then.
        OSError: If it cannot be downloaded.
        ValueError: If an argument is out of its range, or the data set is
            not one of images or sounds with labels, or has no test split.
    """
    checks.integer("batch_size", batch_size, minimum=1)
    checks.integer("seed", seed, minimum=0, maximum=2**31 - 1)
    settings = settings_of(name) if isinstance(name, str) else Settings()
    if validation_fraction is None:
        validation_fraction = settings.validation_fraction
    fraction = checks.fraction("validation_fraction", validation_fraction)
    if fraction in (0.0, 1.0):
        raise ValueError(
            "Argument `validation_fraction` must be above 0 and below 1. "
            f"Received: validation_fraction={validation_fraction}"
        )
    if limit is not None:
        checks.integer("limit", limit, minimum=1)
    if image_size is not None:
        checks.integer("image_size", image_size, minimum=1)
    checks.one_of("crop", crop, images.CROPS)
    source = reading.prepared(name, data_dir, download)
    augmented = settings.augmented if augment is None else bool(augment)
    if source.is_sound and (augmented or image_size is not None):
        raise ValueError(
            "Arguments `augment` and `image_size` are for images. Received: "
            f"augment={augment}, image_size={image_size} (data set {name!r})"
        )
    parts = _Parts(source, settings, fraction, limit, batch_size)
    with tf.device("CPU:0"):
        size = _size_in_files(source, settings, image_size)
        if size is None:
            return parts.in_memory(seed, augmented)
        as_they_are = size == source.shape[:2]
        return parts.in_files(seed, augmented, size, WHOLE if as_they_are else crop)


def _size_in_files(
    source: Prepared, settings: Settings, asked: int | None
) -> tuple[int, int] | None:
    """Returns the size of images that are read from files; `None`: memory has them."""
    if source.is_sound:
        return None
    height, width, _ = source.shape
    side = settings.image_size if asked is None else asked
    if side is None and (height is None or width is None):
        side = DEFAULT_IMAGE_SIZE
    if side is not None and (height, width) != (side, side):
        return side, side
    splits = {"train", source.test, source.validation} - {None}
    examples = sum(source.size(str(split)) for split in splits)
    if examples * math.prod(x or 1 for x in source.shape) > MEMORY_LIMIT:
        return height or 1, width or 1
    return None


@dataclasses.dataclass(frozen=True)
class _Parts:
    """How a data set is divided.

    Attributes:
        source: The data set.
        settings: What is known of it.
        fraction: Part of `train` to hold out, if need be.
        limit: Number of training examples, or `None`.
        batch_size: Examples a step.
    """

    source: Prepared
    settings: Settings
    fraction: float
    limit: int | None
    batch_size: int

    def in_memory(self, seed: int, augment: bool) -> Dataset:
        """Reads everything."""
        arrays = reading.arrays(self.source)
        if "validation" not in arrays:
            x, labels = arrays["train"]
            held_out = stratified_part(labels, self.fraction, HOLDOUT_SEED)
            arrays["validation"] = x[held_out], labels[held_out]
            arrays["train"] = x[~held_out], labels[~held_out]
        x, labels = arrays["train"]
        self._check_size(len(x))
        if self.limit is not None:
            random = np.random.default_rng(HOLDOUT_SEED)
            chosen = random.permutation(len(x))[: self.limit]
            x, labels = x[chosen], labels[chosen]
        mean, std = self.settings.mean, self.settings.std
        if mean is None or std is None:
            mean, std = _statistics(x)
        memory = Memory(
            images=tf.constant(x),
            labels=tf.constant(labels),
            mean=mean,
            std=std,
            augment=augment,
            mirror=self.settings.mirrored,
        )
        return self._dataset(
            memory,
            seed,
            x.shape[1:],
            {name: len(pair[1]) for name, pair in arrays.items()}
            | {"train": len(labels)},
            in_order(arrays["validation"], self.batch_size, mean, std),
            in_order(arrays["test"], self.batch_size, mean, std),
        )

    def in_files(
        self, seed: int, augment: bool, size: tuple[int, int], crop: str
    ) -> Dataset:
        """Reads what has to be known, and leaves the rest where it is."""
        source, total = self.source, self.source.size("train")
        validation, start = source.validation, 0
        if validation is None:
            # The files are in random order: their beginning is a random part.
            start = min(max(round(self.fraction * total), 1), total - 1)
            validation = f"train[:{start}]"
        self._check_size(total - start)
        end = total if self.limit is None else start + self.limit
        train = f"train[{start}:{end}]"
        for split in ("train", validation, source.test):
            reading.check_labels(source, split)
        mean, std = self.settings.mean, self.settings.std
        view = streaming.View(source, size, crop)
        if mean is None or std is None:
            mean, std = view.statistics(train)
        files = streaming.Files(
            view=view,
            split=train,
            size=end - start,
            mean=mean,
            std=std,
            augment=augment,
            mirror=self.settings.mirrored,
        )
        return self._dataset(
            files,
            seed,
            (*size, source.shape[-1]),
            {
                "train": end - start,
                "validation": start or source.size(validation),
                "test": source.size(source.test),
            },
            view.in_order(validation, self.batch_size, mean, std),
            view.in_order(source.test, self.batch_size, mean, std),
        )

    def _check_size(self, available: int) -> None:
        """Raises if there are fewer training examples than asked for."""
        if self.limit is not None:
            checks.integer("limit", self.limit, maximum=available)
        examples = available if self.limit is None else self.limit
        if self.batch_size > examples:
            raise ValueError(
                f"Argument `batch_size` must be at most the {examples} training "
                f"examples. Received: batch_size={self.batch_size}"
            )

    def _dataset(
        self,
        source: Source,
        seed: int,
        input_shape: tuple[int, int, int],
        sizes: dict[str, int],
        validation: tf.data.Dataset,
        test: tf.data.Dataset,
    ) -> Dataset:
        return Dataset(
            name=self.source.name,
            input_shape=input_shape,
            num_classes=self.source.num_classes,
            sizes={name: sizes[name] for name in ("train", "validation", "test")},
            batch_size=self.batch_size,
            mean=source.mean,
            std=source.std,
            validation=validation,
            test=test,
            _source=source,
            _seed=seed,
        )


def stratified_part(labels: Array, fraction: float, seed: int) -> Array:
    """Returns a mask over the examples: True for `fraction` of every class.

    Args:
        labels: Int array `(examples,)`.
        fraction: In (0, 1); at least one example of a class that has two.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    part = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        count = max(round(fraction * len(members)), 1)
        part[members[: min(count, len(members) - 1)]] = True
    return part


def _statistics(x: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, in pixel values."""
    if x.dtype != np.uint8:
        means = x.mean(axis=(0, 1, 2), dtype=np.float64)
        stds = x.std(axis=(0, 1, 2), dtype=np.float64)
        return tuple(map(float, means)), tuple(float(std) or 1.0 for std in stds)
    # Counting the 256 values needs no float copy of the images.
    counts = [
        np.bincount(x[..., channel].ravel(), minlength=256)
        for channel in range(x.shape[-1])
    ]
    values = np.arange(256)
    means = [float(np.average(values, weights=count)) for count in counts]
    stds = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=count)))
        for mean, count in zip(means, counts, strict=True)
    ]
    # A channel without contrast stays as it is (zero).
    return tuple(means), tuple(std or 1.0 for std in stds)
