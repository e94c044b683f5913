"""The one network that all peers train: MLPerf Tiny's ResNet-8.

A function of the constructors of its layers, so that a peer with layers of its own
has the same network from the same weights. `keras_sq.models.get("resnet8", ...)`,
which a test compares, for Keras 2 and Keras 3 alike; no peer is imported here.
"""

FILTERS = (16, 32, 64)
"""Of the three blocks."""


def resnet8(keras, input_shape, classes, *, conv=None, dense=None, relu=None):
    """Builds the network.

    Args:
        keras: The module: `keras` or `tf_keras`.
        input_shape: Of one image: (height, width, channels).
        classes: Number of logits.
        conv: Called as `keras.layers.Conv2D`, which it is if not given.
        dense: Likewise `keras.layers.Dense`.
        relu: Likewise `keras.layers.ReLU`.

    Returns:
        A model; its layers have the names of the package's.
    """
    layers = keras.layers
    conv = conv or layers.Conv2D
    dense = dense or layers.Dense
    relu = relu or layers.ReLU

    def conv_bn(x, filters, strides, name):
        x = conv(filters, 3, strides=strides, padding="same", name=name)(x)
        return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)

    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, FILTERS[0], 1, "conv1")
    x = relu(name="conv1_relu")(x)
    for number, filters in enumerate(FILTERS, start=1):
        strides = 1 if number == 1 else 2
        y = conv_bn(x, filters, strides, f"block{number}_conv1")
        y = relu(name=f"block{number}_conv1_relu")(y)
        y = conv_bn(y, filters, 1, f"block{number}_conv2")
        if strides > 1:
            name = f"block{number}_shortcut"
            x = conv(filters, 1, strides=strides, padding="same", name=name)(x)
        x = layers.Add(name=f"block{number}_add")([x, y])
        x = relu(name=f"block{number}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = dense(classes, name="logits")(x)
    return keras.Model(inputs, x, name="resnet8")


PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""Attributes of layers that hold the weights of a float network."""


def get_start(model):
    """Returns the weights of a float network: `{"conv1/kernel": array, ...}`."""
    found = {}
    for layer in model.layers:
        for part in PARTS:
            variable = getattr(layer, part, None)
            if variable is not None:
                found[f"{layer.name}/{part}"] = variable.numpy()
    return found


def set_start(model, start):
    """Gives the layers of a network the weights of a float one, by their names.

    Raises:
        ValueError: If a layer of `start` is not there, or lacks the weight, so that
            no peer begins with less than the others.
    """
    by_name = {layer.name: layer for layer in model.layers}
    for key, value in start.items():
        name, part = key.split("/")
        layer = by_name.get(name)
        variable = getattr(layer, f"_{part}", None)
        if not hasattr(variable, "assign"):
            variable = getattr(layer, part, None)
        if not hasattr(variable, "assign"):
            raise ValueError(f"The network has no variable {key!r} to begin with.")
        variable.assign(value)
