"""The networks of the MLPerf Tiny benchmark.

References:
    - [Banbury et al., 2021](https://arxiv.org/abs/2106.07597)
    - [mlcommons/tiny](https://github.com/mlcommons/tiny), benchmark/training
"""

import keras

from keras_sq.models import _blocks
from keras_sq.types import Model


def resnet8(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds the image classification network: three residual blocks.

    As the reference: every convolution has a bias, and the 1 x 1
    convolutions of the shortcuts have no batch norm. Other than there, the
    last layer has no softmax.

    Args:
        input_shape: Of one image: (height, width, channels).
        num_classes: Number of logits.
        weight_decay: As in `keras_sq.models.get` (the reference: 2e-4, which
            it writes as `l2(1e-4)`).

    Returns:
        A `keras.Model`; 78,666 parameters for CIFAR-10.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _blocks.conv_bn(inputs, 16, "conv1", weight_decay, use_bias=True)
    for number, filters in enumerate((16, 32, 64), start=1):
        strides = 1 if number == 1 else 2
        y = _blocks.conv_bn(
            x,
            filters,
            f"block{number}_conv1",
            weight_decay,
            strides=strides,
            use_bias=True,
        )
        y = _blocks.conv_bn(
            y,
            filters,
            f"block{number}_conv2",
            weight_decay,
            activation=None,
            use_bias=True,
        )
        if strides > 1:
            x = keras.layers.Conv2D(
                filters,
                1,
                strides=strides,
                padding="same",
                name=f"block{number}_shortcut",
                **_blocks.kernel_settings(weight_decay),
            )(x)
        x = keras.layers.Add(name=f"block{number}_add")([x, y])
        x = keras.layers.ReLU(name=f"block{number}_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="resnet8")
