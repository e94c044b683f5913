"""The networks of the MLPerf Tiny benchmark.

As the reference's, but that classifiers end without softmax: every layer with
weights has a bias, too, where batch norm follows, so that parameters are as many as
published and the benchmark's own weights fit (`keras_sq.models.from_saved`).

References:
    - [Banbury et al., 2021](https://arxiv.org/abs/2106.07597)
    - [mlcommons/tiny](https://github.com/mlcommons/tiny), benchmark/training
"""

import keras

from keras_sq.core import checks
from keras_sq.core.types import Model, Tensor
from keras_sq.models import _blocks


def resnet8(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds the image classification network: three residual blocks.

    The 1 x 1 convolutions of the shortcuts have no batch norm.

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


DS_CNN_DROPOUT = (0.2, 0.4)
"""Of the keyword spotter: behind the first convolution, before the last layer."""


def ds_cnn(
    input_shape: tuple[int, ...], num_classes: int, *, weight_decay: float = 0.0
) -> Model:
    """Builds the keyword spotter: a convolution, then four depthwise separable ones.

    64C(10x4)/2 - drop .2 - 4 x (3x3 depthwise - 64C1) - average - drop .4 - FC,
    batch norm and ReLU after each convolution.

    Args:
        input_shape: Of one sound: (windows, coefficients, 1); (49, 10, 1) in the
            benchmark.
        num_classes: Number of logits; 12 in the benchmark.
        weight_decay: As in `keras_sq.models.get` (the reference: 2e-4, which it
            writes as `l2(1e-4)`).

    Returns:
        A `keras.Model`; kernels in conv1, block1_depthwise, block1_pointwise, ...
        and logits; 24,908 parameters for 12 words.

    References:
        - [Zhang et al., 2017](https://arxiv.org/abs/1711.07128)
    """
    inputs = keras.Input(input_shape, name="image")
    x = _blocks.conv_bn(
        inputs, 64, "conv1", weight_decay, kernel_size=(10, 4), strides=2, use_bias=True
    )
    x = keras.layers.Dropout(DS_CNN_DROPOUT[0], name="drop1")(x)
    for number in range(1, 5):
        x = _separable(x, 64, number, 1, weight_decay)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(DS_CNN_DROPOUT[1], name="drop2")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="ds_cnn")


MOBILENET_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of the 13 depthwise convolutions; their outputs' channels double at each 2."""


def mobilenet_v1(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 0.25,
    weight_decay: float = 0.0,
) -> Model:
    """Builds MobileNetV1, a quarter as wide: the visual wake words network.

    32C3/2, then 13 times a 3 x 3 depthwise and a 1 x 1 convolution, with 64 to 1024
    filters, all of them times `width`; batch norm and ReLU after each.

    Args:
        input_shape: Of one image: (height, width, channels); (96, 96, 3) in the
            benchmark.
        num_classes: Number of logits; 2 in the benchmark.
        width: Float > 0: factor of the number of filters.
        weight_decay: As in `keras_sq.models.get` (the reference: 2e-4, which it
            writes as `l2(1e-4)`).

    Returns:
        A `keras.Model`; kernels in conv1, block1_depthwise, block1_pointwise, ...
        and logits; 221,794 parameters for two classes.

    Raises:
        ValueError: If `width` leaves no filter.

    References:
        - [Howard et al., 2017](https://arxiv.org/abs/1704.04861)
    """
    if int(32 * checks.positive("width", width)) < 1:
        raise ValueError(
            f"Argument `width` must be at least 1/32. Received: width={width}"
        )
    inputs = keras.Input(input_shape, name="image")
    x = _blocks.conv_bn(
        inputs, int(32 * width), "conv1", weight_decay, strides=2, use_bias=True
    )
    filters = 64
    for number, strides in enumerate(MOBILENET_STRIDES, start=1):
        filters *= strides
        x = _separable(x, int(filters * width), number, strides, weight_decay)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="mobilenet_v1")


def _separable(
    x: Tensor, filters: int, number: int, strides: int, weight_decay: float
) -> Tensor:
    """Returns `x` after a depthwise and a 1 x 1 convolution with what follows each."""
    name = f"block{number}"
    x = _blocks.depthwise_bn(x, f"{name}_depthwise", weight_decay, strides=strides)
    return _blocks.conv_bn(
        x, filters, f"{name}_pointwise", weight_decay, kernel_size=1, use_bias=True
    )


def autoencoder(
    input_shape: tuple[int, ...],
    *,
    units: int = 128,
    latent_units: int = 8,
    weight_decay: float = 0.0,
) -> Model:
    """Builds the anomaly detection network: dense layers around a narrow one.

    The reference takes five frames of a spectrum with 128 bands, and calls a sound
    anomalous if the mean squared error of its reconstruction is large.

    Args:
        input_shape: Of one example: (features,); (640,) in the benchmark.
        units: Size of the four layers before and after the narrow one.
        latent_units: Size of that.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model` that maps `(batch, features)` to a reconstruction of that
        shape; kernels in encoder1 to encoder4, latent, decoder1 to decoder4 and
        reconstruction; 269,992 parameters for 640 features.

    References:
        - [Koizumi et al., 2020](https://arxiv.org/abs/2006.05822)
    """
    checks.integer("units", units, minimum=1)
    checks.integer("latent_units", latent_units, minimum=1)
    inputs = keras.Input(input_shape, name="features")
    x = inputs
    sizes = {f"encoder{number}": units for number in range(1, 5)}
    sizes["latent"] = latent_units
    sizes |= {f"decoder{number}": units for number in range(1, 5)}
    for name, size in sizes.items():
        x = _blocks.dense_bn(x, size, name, weight_decay, use_bias=True)
    x = keras.layers.Dense(
        input_shape[0],
        name="reconstruction",
        **_blocks.kernel_settings(weight_decay),
    )(x)
    return keras.Model(inputs, x, name="autoencoder")
