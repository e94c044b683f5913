"""Images that are read from their files in every epoch: what memory does not hold.

The order of an epoch is that of the shuffled files, then of a shuffled window of
`WINDOW_BYTES`, both drawn from (seed, epoch); so are crops and mirror images. Images
are cropped and resized to squares (`images.py`).

Design note: TensorFlow combines the seeds of shuffling with the seed of the process,
and of a graph, if there is one. So each epoch is made in a graph with a fixed seed:
its order is the same whatever `keras.utils.set_random_seed` was told. And each epoch
is a pipeline of its own, since TFDS wants its seeds as numbers; making one takes a
tenth of a second, when training starts.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sq.core.types import Array, Tensor
from keras_sq.datasets import images
from keras_sq.datasets.reading import Prepared

WINDOW_BYTES = 2**28
"""Of encoded images among which the next one is drawn."""

LEAST_WINDOW = 1000
"""Images in that window, at least, whatever they take."""

STATISTICS_EXAMPLES = 2000
"""Training images that mean and standard deviation are computed of."""

_GRAPH_SEED = 170801001


@dataclasses.dataclass(frozen=True)
class View:
    """The images of a data set, at one size.

    Attributes:
        source: The data set.
        size: Height and width that are given out (pixels).
        crop: One of `keras_sq.datasets.images.CROPS`, or `WHOLE` where all images
            have this size.
    """

    source: Prepared
    size: tuple[int, int]
    crop: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (height, width, channels)."""
        return (*self.size, self.source.shape[-1])

    def central(self, content: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Returns an encoded image as evaluation sees it, and its label."""
        if self.crop == images.WHOLE:
            return images.decoded(content, self.shape), label
        box = images.central_box(images.encoded_shape(content, self.shape[-1]))
        return images.cropped(content, box, self.shape), label

    def random(
        self, content: Tensor, seed: Tensor, mirror: bool, fill: tuple[float, ...]
    ) -> Tensor:
        """Returns an encoded image as training sees it.

        Args:
            content: String tensor.
            seed: Int64 tensor `(2,)`: the same image for the same seed. The next seed
                is used, too.
            mirror: Whether it may be mirrored.
            fill: What comes in where a shifted image ends, per channel.
        """
        draw = tf.random.stateless_uniform((), seed + tf.constant([0, 1], tf.int64))
        mirrored = tf.logical_and(mirror, draw < 0.5)
        if self.crop == images.WHOLE:
            image = tf.cast(images.decoded(content, self.shape), tf.float32) - fill
            shift = tf.random.stateless_uniform(
                (2, 1), seed, 0, 2 * images.PAD + 1, dtype=tf.int32
            )
            sides = tf.cast(mirrored, tf.int32)[None]
            image = images.mirror_and_shift(image[None], sides, shift[0], shift[1])[0]
            return image + fill
        shape = images.encoded_shape(content, self.shape[-1])
        box = images.random_box(shape, self.crop, seed)
        image = images.cropped(content, box, self.shape)
        return tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)

    def in_order(
        self,
        split: str,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> tf.data.Dataset:
        """Returns all examples of a split as standardized batches."""
        examples = encoded(self.source, split, None).map(
            self.central, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return images.standardized(examples, batch_size, mean, std).prefetch(
            tf.data.AUTOTUNE
        )

    def statistics(self, split: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation per channel, in pixel values.

        Of the first `STATISTICS_EXAMPLES` images; TFDS has shuffled them when it
        wrote them.
        """
        count = 0
        total: Array = np.zeros(self.shape[-1])
        squares: Array = np.zeros(self.shape[-1])
        chosen = encoded(self.source, split, None).take(STATISTICS_EXAMPLES)
        for image, _ in tfds.as_numpy(chosen.map(self.central)):
            pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
            count += len(pixels)
            total = total + pixels.sum(axis=0)
            squares = squares + np.square(pixels).sum(axis=0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        # A channel without contrast stays as it is (zero).
        return tuple(map(float, mean)), tuple(float(x) or 1.0 for x in std)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Training examples in the files of TFDS.

    Attributes:
        view: The images.
        split: Which part, in the notation of TFDS: `"train[10:]"`.
        size: Number of examples in it.
        mean: Per channel.
        std: Per channel.
        augment: Whether images are cropped or shifted at random.
        mirror: Whether images are mirrored then, too.
    """

    view: View
    split: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    mirror: bool
    held_in: str = "files"

    def train(
        self, seed: int, batch_size: int, initial_epoch: int, epochs: int
    ) -> tf.data.Dataset:
        """Returns the batches of some epochs."""
        count = self.size // batch_size * batch_size
        # Of no epoch it would not be known what it does not hold.
        stream = self._epoch(
            seed, initial_epoch, count if epochs > initial_epoch else 0
        )
        for epoch in range(initial_epoch + 1, epochs):
            stream = stream.concatenate(self._epoch(seed, epoch, count))
        stream = stream.map(
            self._example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return images.standardized(stream, batch_size, self.mean, self.std)

    def _epoch(self, seed: int, epoch: int, count: int) -> tf.data.Dataset:
        """Returns seed, content and label of the examples of an epoch."""
        drawn = np.random.SeedSequence((seed, epoch)).generate_state(3) >> 1
        of_files, of_window, of_crops = (int(number) for number in drawn)
        source = self.view.source
        window = max(int(WINDOW_BYTES / source.bytes_per_example()), LEAST_WINDOW)
        window = min(window, self.size)

        def examples(crops: Tensor) -> tf.data.Dataset:
            tf.random.set_seed(_GRAPH_SEED)  # Of this function's graph only.
            pairs = encoded(source, self.split, of_files)
            pairs = pairs.shuffle(window, of_window, reshuffle_each_iteration=False)
            pairs = pairs.take(count).enumerate()
            return pairs.map(lambda i, pair: (tf.stack([crops, 2 * i]), *pair))

        one = tf.data.Dataset.from_tensors(tf.constant(of_crops, tf.int64))
        # It calls TFDS, which is no code of tensors.
        return one.flat_map(tf.autograph.experimental.do_not_convert(examples))

    def _example(
        self, seed: Tensor, content: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.augment:
            return self.view.central(content, label)
        return self.view.random(content, seed, self.mirror, self.mean), label


def encoded(source: Prepared, split: str, seed: int | None) -> tf.data.Dataset:
    """Returns encoded images and labels of a split.

    Args:
        source: The data set.
        split: Which part, in the notation of TFDS.
        seed: Of the order of files; `None`: as they come.
    """
    options = tfds.ReadConfig(shuffle_seed=seed, try_autocache=False)
    options.options.deterministic = True
    examples = source.builder.as_dataset(
        split=split,
        shuffle_files=seed is not None,
        decoders={source.example_key: tfds.decode.SkipDecoding()},
        read_config=options,
    )

    def pair(example: dict[str, Any]) -> tuple[Tensor, Tensor]:
        label = tf.cast(example[source.label_key], tf.int32)
        return example[source.example_key], label

    return examples.map(pair)
