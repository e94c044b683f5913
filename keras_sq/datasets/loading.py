"""From a name to batches: splits, statistics, limits."""

import os

import numpy as np
import tensorflow as tf

from keras_sq import _checks
from keras_sq.datasets.batches import Dataset, in_order
from keras_sq.datasets.digits import DIGITS
from keras_sq.datasets.reading import Array, read

HOLDOUT_SEED = 170801001
"""Of the validation split: fixed, so that no run tunes on another's."""


def load(
    name: str = DIGITS,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    validation_fraction: float = 0.1,
    augment: bool = False,
    limit: int | None = None,
    download: bool = False,
) -> Dataset:
    """Loads an image classification data set through `tfds.load`.

    Args:
        name: `"digits"`, or a TFDS name (`"cifar10"`, `"mnist/3.0.1"`).
        data_dir: Folder with prepared TFDS data; `None` is TFDS's own
            (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). `"digits"` is
            written there at its first use (in a temporary folder where
            `None` cannot be written to).
        batch_size: Examples a step, in all splits.
        seed: Of the order and augmentation of the training examples.
        validation_fraction: Part of `train` that is held out, in (0, 1), if
            the data set has no split `validation`. Stratified; the same
            examples whatever the seed.
        augment: Whether training images are mirrored at random and shifted
            by up to 4 pixels (padded with the mean, and cropped).
        limit: Number of training examples to use, or `None` for all. A
            smaller number uses a part of those of a larger one.
        download: Whether TFDS may download what `data_dir` does not hold.

    Returns:
        A `Dataset`.

    Raises:
        FileNotFoundError: If the data set is not in `data_dir` and
            `download` is not set. Nothing is asked of a network then.
        ValueError: If an argument is out of its range, or the data set is
            not one of images of one size with labels, or has no test split.
    """
    _checks.integer("batch_size", batch_size, minimum=1)
    _checks.integer("seed", seed, minimum=0, maximum=2**31 - 1)
    fraction = _checks.fraction("validation_fraction", validation_fraction)
    if fraction in (0.0, 1.0):
        raise ValueError(
            "Argument `validation_fraction` must be above 0 and below 1. "
            f"Received: validation_fraction={validation_fraction}"
        )
    if limit is not None:
        _checks.integer("limit", limit, minimum=1)
    arrays, num_classes = read(name, data_dir, download)
    if "validation" not in arrays:
        images, labels = arrays["train"]
        held_out = stratified_part(labels, fraction, HOLDOUT_SEED)
        arrays["validation"] = images[held_out], labels[held_out]
        arrays["train"] = images[~held_out], labels[~held_out]
    images, labels = arrays["train"]
    if limit is not None:
        _checks.integer("limit", limit, maximum=len(images))
        chosen = np.random.default_rng(HOLDOUT_SEED).permutation(len(images))[:limit]
        images, labels = images[chosen], labels[chosen]
    if batch_size > len(images):
        raise ValueError(
            f"Argument `batch_size` must be at most the {len(images)} training "
            f"examples. Received: batch_size={batch_size}"
        )
    mean, std = _statistics(images)
    with tf.device("CPU:0"):
        return Dataset(
            name=name,
            input_shape=images.shape[1:],
            num_classes=num_classes,
            sizes={
                "train": len(images),
                "validation": len(arrays["validation"][0]),
                "test": len(arrays["test"][0]),
            },
            batch_size=batch_size,
            mean=mean,
            std=std,
            validation=in_order(arrays["validation"], batch_size, mean, std),
            test=in_order(arrays["test"], batch_size, mean, std),
            _images=tf.constant(images),
            _labels=tf.constant(labels),
            _augment=augment,
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


def _statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, in pixel values."""
    # Counting the 256 values needs no float copy of the images.
    counts = [
        np.bincount(images[..., channel].ravel(), minlength=256)
        for channel in range(images.shape[-1])
    ]
    values = np.arange(256)
    means = [float(np.average(values, weights=count)) for count in counts]
    stds = [
        float(np.sqrt(np.average((values - mean) ** 2, weights=count)))
        for mean, count in zip(means, counts, strict=True)
    ]
    # A channel without contrast stays as it is (zero).
    return tuple(means), tuple(std or 1.0 for std in stds)
