"""Batches of examples, in an order that can be gone on with.

Design note: where the examples fit, they are held in memory, images as uint8
(CIFAR-10: 184 MB), and each epoch is an exact permutation of them drawn from
(seed, epoch). Larger sets are read from their files, see `streaming.py`; their order
depends on the same two numbers. Either way nothing has a state that a checkpoint
would have to hold: a run that goes on at epoch 7 sees what it would have seen.

References:
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code, for
      the CIFAR augmentation: mean subtraction, mirror, pad 4, random crop
"""

import dataclasses
from typing import Protocol

import tensorflow as tf

from keras_sq.core import checks
from keras_sq.core.types import Array, Tensor
from keras_sq.datasets.images import (
    PAD,
    mirror_and_shift,
    standardize,
    standardized,
)


class Source(Protocol):
    """Where training examples come from.

    Attributes:
        mean: Per channel.
        std: Per channel.
        held_in: `"memory"` or `"files"`.
    """

    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def held_in(self) -> str: ...  # noqa: D102

    def train(
        self, seed: int, batch_size: int, initial_epoch: int, epochs: int
    ) -> tf.data.Dataset:
        """Returns the batches of some epochs, without the cardinality said."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready to train on; made by `load`.

    Attributes:
        name: As given to `load`.
        input_shape: Of one example: (height, width, channels).
        num_classes: Number of labels.
        sizes: Examples in `"train"`, `"validation"` and `"test"`.
        batch_size: Examples a step.
        mean: Per channel, in pixel values (of sound in those of its features).
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
    _source: Source = dataclasses.field(repr=False)
    _seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return self.sizes["train"] // self.batch_size

    @property
    def held_in(self) -> str:
        """Where training examples are: `"memory"`, or `"files"` that are read anew."""
        return self._source.held_in

    def with_seed(self, seed: int) -> "Dataset":
        """Returns the same data in the order, and augmented, as of another seed."""
        return dataclasses.replace(self, _seed=seed)

    def train(self, initial_epoch: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """Returns the batches of the epochs `initial_epoch <= epoch < epochs`.

        Every epoch has an order (and augmentation) of its own, which depends on the
        seed and the epoch's number alone, so a run that goes on at epoch 7 sees what
        it would have seen. In memory the order is an exact permutation; from files
        it is that of shuffled files and a shuffled window. The examples that do not
        fill the last batch of an epoch are left out of that epoch.

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
        checks.integer("initial_epoch", initial_epoch, minimum=0)
        checks.integer("epochs", epochs, minimum=initial_epoch)
        steps = (epochs - initial_epoch) * self.steps_per_epoch
        return (
            self._source.train(self._seed, self.batch_size, initial_epoch, epochs)
            .apply(tf.data.experimental.assert_cardinality(steps))
            .prefetch(tf.data.AUTOTUNE)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """Training examples in memory.

    Attributes:
        images: Tensor `(examples, height, width, channels)`.
        labels: Int32 tensor `(examples,)`.
        mean: Per channel.
        std: Per channel.
        augment: Whether images are shifted.
        mirror: Whether they are mirrored then, too.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    mirror: bool
    held_in: str = "memory"

    def train(
        self, seed: int, batch_size: int, initial_epoch: int, epochs: int
    ) -> tf.data.Dataset:
        """Returns the batches of some epochs, each an exact permutation."""
        # What the functions below capture is handed over by reference; the
        # attributes are read once, outside of the graphs.
        images, labels, augment = self.images, self.labels, self.augment
        size, sides = int(images.shape[0]), 2 if self.mirror else 1
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
                shifts = (draw(1, sides), draw(2, 2 * PAD + 1), draw(3, 2 * PAD + 1))
                rows = tf.stack((order, *shifts), axis=1)
            else:
                rows = order[:, None]
            batches = tf.data.Dataset.from_tensor_slices(rows)
            return batches.batch(batch_size, drop_remainder=True)

        def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
            index = rows[:, 0]
            batch = standardize(tf.gather(images, index), mean, std)
            if augment:
                batch = mirror_and_shift(batch, rows[:, 1], rows[:, 2], rows[:, 3])
            return batch, tf.gather(labels, index)

        return (
            tf.data.Dataset.range(initial_epoch, epochs)
            .flat_map(one_epoch)
            .map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        )


def in_order(
    arrays: tuple[Array, Array],
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tf.data.Dataset:
    """Returns all examples as standardized batches, the last one smaller."""
    stream = tf.data.Dataset.from_tensor_slices(arrays)
    return standardized(stream, batch_size, mean, std).prefetch(tf.data.AUTOTUNE)
