"""Images on the accelerator: order of an epoch, standardizing, mirroring, cropping.

Everything is a pure function of a seed and the position in the run, so that a run
that is resumed sees the same images. The same augmentation as that of
`keras_sq.datasets`, which needs TensorFlow: mirror, pad by 4 pixels, random crop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PAD = 4
"""Border around an image before the random crop (pixels); it has the mean's value."""


class Images(NamedTuple):
    """A data set on the accelerator.

    Attributes:
        train: Uint8 array `(examples, height, width, channels)`.
        train_labels: Int32 array `(examples,)`.
        test: As `train`.
        test_labels: As `train_labels`.
        mean: Float32 array `(channels,)`, of the training images (pixel values).
        std: As `mean`.
    """

    train: jax.Array
    train_labels: jax.Array
    test: jax.Array
    test_labels: jax.Array
    mean: jax.Array
    std: jax.Array


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel, float32.

    Args:
        images: Uint8 array `(examples, height, width, channels)`.
    """
    # Exact integers, in parts: squares of all images at once would take gigabytes.
    channels = images.shape[-1]
    total = np.zeros(channels, "int64")
    squares = np.zeros(channels, "int64")
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].reshape(-1, channels).astype("int64")
        total += part.sum(0)
        squares += (part * part).sum(0)
    count = images.size // channels
    mean = total / count
    variance = squares / count - mean**2
    return mean.astype("float32"), np.sqrt(np.maximum(variance, 1e-12)).astype(
        "float32"
    )


def standardize(images: jax.Array, data: Images) -> jax.Array:
    """Returns `(images - mean) / std` as float32."""
    return (images.astype("float32") - data.mean) / data.std


def epoch_order(seed: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
    """Returns the order in which an epoch takes the examples, int32 `(examples,)`.

    Args:
        seed: Int scalar, the run's.
        epoch: Int scalar, from 0.
        examples: Number of training examples.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
    return jax.random.permutation(key, examples)


def mirror_and_shift(
    images: jax.Array, seed: jax.Array, epoch: jax.Array, step: jax.Array
) -> jax.Array:
    """Mirrors every second image on average, and shifts each by up to `PAD` pixels.

    Args:
        images: Float array `(batch, height, width, channels)`; zero is the mean.
        seed: Int scalar, the run's.
        epoch: Int scalar, from 0.
        step: Int scalar, the step in the epoch, from 0.

    Returns:
        Array of the shape of `images`.
    """
    batch, height, width, _ = images.shape
    # Another stream than that of the order.
    key = jax.random.key(seed, impl="threefry2x32")
    for number in (2**31 - 1, epoch, step):
        key = jax.random.fold_in(key, number)
    of_mirror, of_down, of_right = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(of_mirror, shape=(batch, 1))
    down = jax.random.randint(of_down, (batch, 1), 0, 2 * PAD + 1)
    right = jax.random.randint(of_right, (batch, 1), 0, 2 * PAD + 1)
    padded = jnp.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    rows = down + jnp.arange(height)
    columns = jnp.arange(width)
    # A mirrored image reads its columns from the right.
    columns = right + jnp.where(mirrored, width - 1 - columns, columns)
    which = jnp.arange(batch)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]
