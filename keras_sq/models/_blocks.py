"""What the networks of this folder share: layers with weights, and what follows."""

from typing import Any

import keras

from keras_sq.core.types import Tensor

BATCH_NORM_MOMENTUM = 0.9
"""That of the papers' code. Keras's own averages over hundreds of steps, so
that its statistics lag behind weights that were quantized a moment ago."""

ACTIVATIONS = ("relu", "hard_tanh")
"""What the residual networks may have; the second, `clip(x, -1, 1)`, is for binary
activations, which need negative values too."""


def kernel_settings(weight_decay: float) -> dict[str, Any]:
    """Returns initializer and regularizer arguments of a kernel."""
    return {
        "kernel_initializer": "he_normal",
        "kernel_regularizer": (
            keras.regularizers.L2(weight_decay / 2) if weight_decay else None
        ),
    }


def batch_norm(x: Tensor, name: str) -> Tensor:
    """Returns `x` after batch normalization."""
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=name)(x)


def conv_bn(
    x: Tensor,
    filters: int,
    name: str,
    weight_decay: float,
    *,
    kernel_size: int | tuple[int, int] = 3,
    strides: int = 1,
    padding: str = "same",
    activation: str | None = "relu",
    use_bias: bool = False,
) -> Tensor:
    """Returns `x` after convolution, batch normalization and the activation."""
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        name=name,
        **kernel_settings(weight_decay),
    )(x)
    x = batch_norm(x, f"{name}_bn")
    return x if activation is None else activated(x, activation, name)


def depthwise_bn(
    x: Tensor, name: str, weight_decay: float, *, strides: int = 1
) -> Tensor:
    """Returns `x` after a 3 x 3 depthwise convolution with bias, batch norm, ReLU."""
    settings = kernel_settings(weight_decay)
    x = keras.layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        name=name,
        # The layer's own names of them.
        **{key.replace("kernel_", "depthwise_"): settings[key] for key in settings},
    )(x)
    return activated(batch_norm(x, f"{name}_bn"), "relu", name)


def dense_bn(
    x: Tensor, units: int, name: str, weight_decay: float, *, use_bias: bool = False
) -> Tensor:
    """Returns `x` after a dense layer, batch normalization and ReLU."""
    x = keras.layers.Dense(
        units, use_bias=use_bias, name=name, **kernel_settings(weight_decay)
    )(x)
    return activated(batch_norm(x, f"{name}_bn"), "relu", name)


def activated(x: Tensor, activation: str, name: str) -> Tensor:
    """Returns `x` after an activation, in a layer `{name}_{activation}`."""
    name = f"{name}_{activation}"
    if activation == "relu":
        return keras.layers.ReLU(name=name)(x)
    return keras.layers.Activation(activation, name=name)(x)
