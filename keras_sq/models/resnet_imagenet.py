"""The residual networks for ImageNet: depth 18, 34 and 50; and for small images.

References:
    - [He et al., 2015, table 1](https://arxiv.org/abs/1512.03385)
    - [Dong et al., 2017](https://arxiv.org/abs/1708.01001), released code, for
      `project_first`
"""

from typing import Any

import keras

from keras_sq.core import checks
from keras_sq.core.types import Model, Tensor
from keras_sq.models import _blocks

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Depth -> number of blocks a stage. From 50 on, a block has three convolutions."""

STEMS = ("imagenet", "cifar")


def resnet_imagenet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 18,
    project_first: bool = False,
    stem: str = "imagenet",
    activation: str = "relu",
    weight_decay: float = 0.0,
) -> Model:
    """Builds 64C7/2 - MP3/2, four stages of residual blocks and a dense layer.

    The stages have 64, 128, 256 and 512 filters, four times as many at the end of
    the blocks of depth 50; the second to fourth start with stride 2, which depth 50
    has in the 3 x 3 convolution (He et al.: in the first 1 x 1; LQ-Nets as here).
    Shortcuts are 1 x 1 convolutions with batch norm where the size or the number of
    channels changes (option B).

    Padding is Keras's `"same"`: for even sizes one column more on the right than on
    the left, where other frameworks pad both sides. Weights trained there fit, but
    see the image shifted by a pixel.

    LQ-Nets' code puts batch norm and ReLU before the convolutions where activations
    are quantized; these networks put them after.

    Args:
        input_shape: Of one image: (height, width, channels); 224 x 224 in the
            papers.
        num_classes: Number of logits.
        depth: Number of layers with weights on the longest way: 18, 34 or 50.
        project_first: Whether the first shortcut of all is a convolution too, as in
            the SQ paper's code. Depth 50 has it anyway.
        stem: What comes first. `"imagenet"`: 64C7/2 - MP3/2; `"cifar"`: 64C3, for
            images of 32 x 32.
        activation: `"relu"`, or `"hard_tanh"` (`clip(x, -1, 1)`) for binary
            activations, which need negative values too.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in conv1, stage1_block1_conv1, ...,
        stage2_block1_shortcut, ... and logits.

    Raises:
        ValueError: If `depth`, `stem` or `activation` is not one of these.
    """
    checks.integer("depth", depth)
    if depth not in BLOCKS:
        raise ValueError(
            f"Argument `depth` must be 18, 34 or 50. Received: depth={depth}"
        )
    checks.one_of("stem", stem, STEMS)
    checks.one_of("activation", activation, _blocks.ACTIVATIONS)
    block_settings: dict[str, Any] = {
        "weight_decay": weight_decay,
        "activation": activation,
    }
    inputs = keras.Input(input_shape, name="image")
    if stem == "imagenet":
        x = _blocks.conv_bn(
            inputs, 64, "conv1", kernel_size=7, strides=2, **block_settings
        )
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    else:
        x = _blocks.conv_bn(inputs, 64, "conv1", **block_settings)
    for stage, count in enumerate(BLOCKS[depth], start=1):
        filters = 32 * 2**stage
        for block in range(1, count + 1):
            name = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            y = _branch(x, filters, strides, name, depth, **block_settings)
            channels = y.shape[-1]
            first = project_first and stage == block == 1
            if first or strides > 1 or x.shape[-1] != channels:
                x = _blocks.conv_bn(
                    x,
                    channels,
                    f"{name}_shortcut",
                    weight_decay,
                    kernel_size=1,
                    strides=strides,
                    activation=None,
                )
            x = keras.layers.Add(name=f"{name}_add")([x, y])
            x = _blocks.activated(x, activation, name)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    suffix = "_sq" if project_first else ""
    suffix += "_cifar" if stem == "cifar" else ""
    suffix += f"_{activation}" if activation != "relu" else ""
    return keras.Model(inputs, x, name=f"resnet{depth}{suffix}")


def _branch(
    x: Tensor,
    filters: int,
    strides: int,
    name: str,
    depth: int,
    *,
    weight_decay: float,
    activation: str,
) -> Tensor:
    """Returns the branch of a block: two convolutions, from depth 50 on three."""
    layers = [(filters, 3, strides), (filters, 3, 1)]
    if depth >= 50:
        layers = [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]
    for number, (channels, size, stride) in enumerate(layers, start=1):
        x = _blocks.conv_bn(
            x,
            channels,
            f"{name}_conv{number}",
            weight_decay,
            kernel_size=size,
            strides=stride,
            activation=activation if number < len(layers) else None,
        )
    return x
