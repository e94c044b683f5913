"""AlexNet with batch normalization, for ImageNet.

References:
    - [Krizhevsky et al., 2012](https://papers.nips.cc/paper/4824)
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code
"""

import keras

from keras_sq.core.types import Model
from keras_sq.models import _blocks


def alexnet_bn(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds the AlexNet-BN of the SQ paper's code.

    96C11/4 - MP3/2 - 256C5 - MP3/2 - 384C3 - 384C3 - 256C3 - MP3/2 - FC4096 -
    drop .5 - FC4096 - drop .5 - FC, each convolution and dense layer but the last
    followed by batch norm and ReLU, without biases. Convolutions are not grouped.

    LQ-Nets' AlexNet is another one: batch norm after pooling, no padding of the
    image, no dropout, biases in the dense layers.

    Args:
        input_shape: Of one image: (height, width, channels); 224 x 224 in the
            paper, 63 x 63 or more.
        num_classes: Number of logits.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in conv1 to conv5, dense1, dense2 and logits.
    """
    settings = _blocks.kernel_settings(weight_decay)
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.ZeroPadding2D(2, name="conv1_pad")(inputs)
    x = _blocks.conv_bn(
        x, 96, "conv1", weight_decay, kernel_size=11, strides=4, padding="valid"
    )
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _blocks.conv_bn(x, 256, "conv2", weight_decay, kernel_size=5)
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)
    for number, filters in ((3, 384), (4, 384), (5, 256)):
        x = _blocks.conv_bn(x, filters, f"conv{number}", weight_decay)
    x = keras.layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number in (1, 2):
        x = _blocks.dense_bn(x, 4096, f"dense{number}", weight_decay)
        x = keras.layers.Dropout(0.5, name=f"drop{number}")(x)
    x = keras.layers.Dense(num_classes, name="logits", **settings)(x)
    return keras.Model(inputs, x, name="alexnet_bn")
