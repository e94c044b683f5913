"""The VGG-style networks of the SQ and LQ-Nets papers.

References:
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code
    - [Zhang et al., 2018](https://arxiv.org/abs/1807.10029), released code
"""

import keras

from keras_sq.core.types import Model
from keras_sq.models import _blocks


def vgg9(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds VGG-9.

    2 x 64C3 - MP2 - drop .25 - 2 x 128C3 - MP2 - drop .25 - 2 x 256C3 - MP2 -
    drop .25 - FC512 - drop .5 - FC512 - drop .5 - FC, each convolution and
    dense layer but the last followed by batch norm and ReLU.

    Args:
        input_shape: Of one image: (height, width, channels), 8 x 8 or more.
        num_classes: Number of logits.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in conv1 to conv6, dense1, dense2 and logits.
    """
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for stage, filters in enumerate((64, 128, 256)):
        for number in (2 * stage + 1, 2 * stage + 2):
            x = _blocks.conv_bn(x, filters, f"conv{number}", weight_decay)
        x = keras.layers.MaxPooling2D(2, name=f"pool{stage + 1}")(x)
        x = keras.layers.Dropout(0.25, name=f"drop{stage + 1}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number in (1, 2):
        x = _blocks.dense_bn(x, 512, f"dense{number}", weight_decay)
        x = keras.layers.Dropout(0.5, name=f"drop{number + 3}")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="vgg9")


def vgg_small(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds VGG-Small of LQ-Nets.

    2 x 128C3 - MP2 - 2 x 256C3 - MP2 - 2 x 512C3 - MP2 - FC, each convolution
    followed by batch norm and ReLU; these come after the pooling where there is one.

    Args:
        input_shape: Of one image: (height, width, channels), 8 x 8 or more.
        num_classes: Number of logits.
        weight_decay: As in `keras_sq.models.get` (the released code: 5e-4).

    Returns:
        A `keras.Model`; kernels in conv1 to conv6 and logits.
    """
    settings = _blocks.kernel_settings(weight_decay)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for stage, filters in enumerate((128, 256, 512)):
        x = _blocks.conv_bn(x, filters, f"conv{2 * stage + 1}", weight_decay)
        name = f"conv{2 * stage + 2}"
        x = keras.layers.Conv2D(
            filters, 3, padding="same", use_bias=False, name=name, **settings
        )(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool{stage + 1}")(x)
        x = _blocks.activated(_blocks.batch_norm(x, f"{name}_bn"), "relu", name)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(num_classes, name="logits", **settings)(x)
    return keras.Model(inputs, x, name="vgg_small")
