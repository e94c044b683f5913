"""A multilayer perceptron: the network whose weights are all in dense layers."""

import keras

from keras_sq.core import checks
from keras_sq.core.types import Model
from keras_sq.models import _blocks


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    units: tuple[int, ...] = (256, 256),
    weight_decay: float = 0.0,
) -> Model:
    """Builds dense layers, each followed by batch norm and ReLU but the last.

    Args:
        input_shape: Of one image; it is flattened.
        num_classes: Number of logits.
        units: Size of each hidden layer.
        weight_decay: As in `keras_sq.models.get`.

    Returns:
        A `keras.Model`; kernels in dense1, dense2, … and logits.
    """
    for size in units:
        checks.integer("units", size, minimum=1)
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for number, size in enumerate(units, start=1):
        x = _blocks.dense_bn(x, size, f"dense{number}", weight_decay)
    x = keras.layers.Dense(
        num_classes, name="logits", **_blocks.kernel_settings(weight_decay)
    )(x)
    return keras.Model(inputs, x, name="mlp")
