"""The residual networks for CIFAR: depth 20, 32, 44, 56 and 6 n + 2 in general.

References:
    - [He et al., 2015, section 4.2](https://arxiv.org/abs/1512.03385)
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code, for
      the shortcut `"convolution"`
"""

import keras
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Model, Tensor
from keras_sq.models import _blocks

SHORTCUTS = ("identity", "convolution")


def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 20,
    shortcut: str = "identity",
    activation: str = "relu",
    weight_decay: float = 0.0,
) -> Model:
    """Builds a 3 x 3 convolution, three stages of residual blocks and a dense layer.

    The stages have 16, 32 and 64 filters; the second and third start with
    stride 2.

    Args:
        input_shape: Of one image: (height, width, channels).
        num_classes: Number of logits.
        depth: Number of layers with weights, `6 n + 2`.
        shortcut: Where the size changes. `"identity"`: every second pixel,
            new channels zero (He et al., option A). `"convolution"`: the
            network of the SQ paper's code: a 2 x 2 convolution of stride 2
            with batch norm, and no activation after any addition.
        activation: `"relu"`, or `"hard_tanh"` (`clip(x, -1, 1)`) for binary
            activations, which need negative values too.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in conv1, stage1_block1_conv1, … and logits.

    Raises:
        ValueError: If `depth` is not `6 n + 2`, or `shortcut` or `activation` not
            known.
    """
    checks.integer("depth", depth, minimum=8)
    if depth % 6 != 2:
        raise ValueError(
            "Argument `depth` must be 6 n + 2, such as 20, 32, 44 or 56. "
            f"Received: depth={depth}"
        )
    checks.one_of("shortcut", shortcut, SHORTCUTS)
    checks.one_of("activation", activation, _blocks.ACTIVATIONS)
    inputs = keras.Input(input_shape, name="image")
    x = _blocks.conv_bn(inputs, 16, "conv1", weight_decay, activation=activation)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            y = _blocks.conv_bn(
                x,
                filters,
                f"{name}_conv1",
                weight_decay,
                strides=strides,
                activation=activation,
            )
            y = _blocks.conv_bn(
                y, filters, f"{name}_conv2", weight_decay, activation=None
            )
            if strides > 1 and shortcut == "convolution":
                x = _blocks.conv_bn(
                    x,
                    filters,
                    f"{name}_shortcut",
                    weight_decay,
                    kernel_size=2,
                    strides=strides,
                    activation=None,
                )
            elif strides > 1:
                x = _narrow_and_pad(x, filters, name)
            x = keras.layers.Add(name=f"{name}_add")([x, y])
            if shortcut == "identity":
                x = _blocks.activated(x, activation, name)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    suffix = "" if shortcut == "identity" else "_sq"
    if activation != "relu":
        suffix += f"_{activation}"
    return keras.Model(inputs, x, name=f"resnet{depth}{suffix}")


def _narrow_and_pad(x: Tensor, filters: int, name: str) -> Tensor:
    """Returns every second pixel of `x`, with zero channels appended."""
    x = keras.layers.AveragePooling2D(
        1, strides=2, padding="same", name=f"{name}_narrow"
    )(x)
    return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, filters - x.shape[-1]]])
