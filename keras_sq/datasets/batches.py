"""Batches of images, in an order that can be gone on with.

Design note: the examples are held in memory, as uint8 (CIFAR-10: 184 MB),
and each epoch is an exact permutation of them drawn from (seed, epoch). A
shuffle buffer over the files would do for larger data, but it has a state
that no checkpoint holds, so that a resumed run would see another order.

References:
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code, for
      the CIFAR augmentation: mean subtraction, mirror, pad 4, random crop
"""

import dataclasses

import tensorflow as tf

from keras_sq import _checks
from keras_sq.datasets.reading import Array
from keras_sq.types import Tensor

PAD = 4
"""Zeros around an image before the random crop (pixels)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready to train on; made by `load`.

    Attributes:
        name: As given to `load`.
        input_shape: Of one image: (height, width, channels).
        num_classes: Number of labels.
        sizes: Examples in `"train"`, `"validation"` and `"test"`.
        batch_size: Examples a step.
        mean: Per channel, of the training split, in pixel values.
        std: Likewise.
        validation: `(image, label)` batches in a fixed order.
        test: Likewise.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    sizes: dict[str, int]
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: tf.data.Dataset
    test: tf.data.Dataset
    _images: Tensor = dataclasses.field(repr=False)
    _labels: Tensor = dataclasses.field(repr=False)
    _augment: bool
    _seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return self.sizes["train"] // self.batch_size

    def with_seed(self, seed: int) -> "Dataset":
        """Returns the same data in the order, and augmented, as of another seed."""
        return dataclasses.replace(self, _seed=seed)

    def train(self, initial_epoch: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """Returns the batches of the epochs `initial_epoch <= epoch < epochs`.

        Every epoch is a fresh permutation (and augmentation) that depends on
        the seed and the epoch's number alone, so a run that goes on at epoch
        7 sees what it would have seen. The examples that do not fill the
        last batch of an epoch are left out of that epoch.

        Args:
            initial_epoch: As in `fit`.
            epochs: As in `fit`: the epoch at which to stop.

        Returns:
            A `tf.data.Dataset` of `(epochs - initial_epoch) *
            steps_per_epoch` pairs: images, float32 `(batch_size, height,
            width, channels)`, and labels, int32 `(batch_size,)`.

        Example:
            ```python
            data = keras_sq.datasets.load("digits", batch_size=64, seed=0)
            model.fit(
                data.train(epochs=10),
                steps_per_epoch=data.steps_per_epoch,
                epochs=10,
                validation_data=data.validation,
            )
            ```
        """
        _checks.integer("initial_epoch", initial_epoch, minimum=0)
        _checks.integer("epochs", epochs, minimum=initial_epoch)
        # What the functions below capture is handed over by reference; the
        # attributes are read once, outside of the graphs.
        images, labels = self._images, self._labels
        size, augment, seed = self.sizes["train"], self._augment, self._seed
        mean, std = tf.constant(self.mean), tf.constant(self.std)

        def one_epoch(epoch: Tensor) -> tf.data.Dataset:
            def draw(purpose: int, maxval: int | None) -> Tensor:
                return tf.random.stateless_uniform(
                    (size,),
                    seed=tf.stack([tf.constant(seed, tf.int64), 4 * epoch + purpose]),
                    minval=None if maxval is None else 0,
                    maxval=maxval,
                    dtype=tf.int32,
                )

            order = tf.argsort(draw(0, None), stable=True)
            if augment:
                shifts = (draw(1, 2), draw(2, 2 * PAD + 1), draw(3, 2 * PAD + 1))
                rows = tf.stack((order, *shifts), axis=1)
            else:
                rows = order[:, None]
            batches = tf.data.Dataset.from_tensor_slices(rows)
            return batches.batch(self.batch_size, drop_remainder=True)

        def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
            index = rows[:, 0]
            batch = _standardize(tf.gather(images, index), mean, std)
            if augment:
                batch = _mirror_and_crop(batch, rows[:, 1], rows[:, 2], rows[:, 3])
            return batch, tf.gather(labels, index)

        steps = (epochs - initial_epoch) * self.steps_per_epoch
        return (
            tf.data.Dataset.range(initial_epoch, epochs)
            .flat_map(one_epoch)
            .map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .apply(tf.data.experimental.assert_cardinality(steps))
            .prefetch(tf.data.AUTOTUNE)
        )


def in_order(
    arrays: tuple[Array, Array],
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tf.data.Dataset:
    """Returns all examples as standardized batches, the last one smaller."""
    mean, std = tf.constant(mean), tf.constant(std)
    return (
        tf.data.Dataset.from_tensor_slices(arrays)
        .batch(batch_size)
        .map(lambda images, labels: (_standardize(images, mean, std), labels))
        .prefetch(tf.data.AUTOTUNE)
    )


def _standardize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (tf.cast(images, tf.float32) - mean) / std


def _mirror_and_crop(
    images: Tensor, mirrored: Tensor, down: Tensor, right: Tensor
) -> Tensor:
    """Mirrors and shifts every image by its own draw.

    Args:
        images: Float tensor `(batch, height, width, channels)`.
        mirrored: Int tensor `(batch,)`, 1 = mirrored.
        down: Int tensor `(batch,)`: first row of the crop, 0 to 2 * PAD.
        right: Likewise its first column.

    Returns:
        Tensor of the shape of `images`.
    """
    _, height, width, _ = images.shape
    border = [[0, 0], [PAD, PAD], [PAD, PAD], [0, 0]]
    padded = tf.pad(images, border)
    rows = down[:, None] + tf.range(height)
    # A mirrored image reads its columns from the right.
    columns = tf.range(width)
    columns = tf.where(mirrored[:, None] == 1, width - 1 - columns, columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, right[:, None] + columns, axis=2, batch_dims=1)
