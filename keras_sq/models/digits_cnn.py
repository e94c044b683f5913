"""A small CNN for images of about 8 x 8 pixels."""

import keras

from keras_sq.core.types import Model
from keras_sq.models import _blocks


def digits_cnn(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds 16C3-32C3-MP2-64C3-MP2-FC, batch norm and ReLU after each C.

    27 k weights: small enough for a microcontroller, large enough that a
    third of a second an epoch is spent on the digits.

    Args:
        input_shape: Of one image: (height, width, channels).
        num_classes: Number of logits.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in conv1, conv2, conv3 and logits.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _blocks.conv_bn(inputs, 16, "conv1", weight_decay)
    x = _blocks.conv_bn(x, 32, "conv2", weight_decay)
    x = keras.layers.MaxPooling2D(2, padding="same", name="pool2")(x)
    x = _blocks.conv_bn(x, 64, "conv3", weight_decay)
    x = keras.layers.GlobalAveragePooling2D(name="pool3")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="digits_cnn")
