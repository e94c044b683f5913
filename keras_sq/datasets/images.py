"""What is done with pixels: standardizing, mirroring, shifting, cropping, resizing."""

import tensorflow as tf

from keras_sq.core.types import Tensor
from keras_sq.datasets.settings import CROPS as CROPS

PAD = 4
"""Zeros around an image before the random crop (pixels)."""

CROPPED_SIDE = 224 / 256
"""Part of an image's short side that a crop keeps."""

CROPPED_AREA = (0.08, 1.0)
"""Least and largest part of an image's area that a crop by area keeps."""

ASPECT = (3 / 4, 4 / 3)
"""Width to height of such crops."""

WHOLE = "whole"
"""No crop: images of one size, as they are; augmentation shifts them by up to `PAD`."""


def standardize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns `(images - mean) / std` as float32."""
    return (tf.cast(images, tf.float32) - mean) / std


def standardized(
    stream: tf.data.Dataset,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tf.data.Dataset:
    """Returns `(image, label)` examples as standardized batches."""
    means, stds = tf.constant(mean), tf.constant(std)
    return stream.batch(batch_size).map(lambda x, y: (standardize(x, means, stds), y))


def mirror_and_shift(
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


def central_box(shape: Tensor) -> Tensor:
    """Returns the square in the middle, of `CROPPED_SIDE`.

    Args:
        shape: Int tensor (height, width, channels).

    Returns:
        Int tensor (top, left, height, width).
    """
    side = _cropped_side(shape)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random_box(shape: Tensor, crop: str, seed: Tensor) -> Tensor:
    """Returns a crop.

    Args:
        shape: Int tensor (height, width, channels).
        crop: One of `CROPS`.
        seed: Int tensor `(2,)`; the same crop for the same seed.

    Returns:
        Int tensor (top, left, height, width).
    """
    if crop == "area":
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            seed=seed,
            aspect_ratio_range=ASPECT,
            area_range=CROPPED_AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], axis=0)
    side = _cropped_side(shape)
    draws = tf.random.stateless_uniform((2,), seed=seed)
    places = tf.cast(shape[:2] - side + 1, tf.float32)
    begin = tf.cast(draws * places, tf.int32)
    # A draw just below 1 could be rounded up.
    begin = tf.minimum(begin, shape[:2] - side)
    return tf.concat([begin, [side, side]], axis=0)


def _cropped_side(shape: Tensor) -> Tensor:
    short = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    return tf.maximum(tf.cast(tf.round(CROPPED_SIDE * short), tf.int32), 1)


def encoded_shape(content: Tensor, channels: int) -> Tensor:
    """Returns the (height, width, channels) of an encoded image."""
    return tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.extract_jpeg_shape(content),
        lambda: tf.shape(_decoded(content, channels)),
    )


def decoded(content: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Returns an encoded image of a known shape, uint8."""
    image = tf.io.decode_image(content, channels=shape[-1], expand_animations=False)
    return tf.ensure_shape(image, shape)


def cropped(content: Tensor, box: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Returns a part of an encoded image, brought to a size (bilinear).

    Args:
        content: String tensor: JPEG, PNG, GIF or BMP. Of a JPEG, only the part is
            decoded.
        box: Int tensor (top, left, height, width).
        shape: Of the result: (height, width, channels).

    Returns:
        Float32 tensor of that shape, of pixel values.
    """
    height, width, channels = shape
    part = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.image.decode_and_crop_jpeg(content, box, channels=channels),
        lambda: tf.image.crop_to_bounding_box(
            _decoded(content, channels), box[0], box[1], box[2], box[3]
        ),
    )
    return tf.ensure_shape(tf.image.resize(part, (height, width)), shape)


def _decoded(content: Tensor, channels: int) -> Tensor:
    return tf.io.decode_image(content, channels=channels, expand_animations=False)
