"""A small network and its data, trained in eight steps."""

import keras
import numpy as np
from backends import JIT_COMPILE
from backends import array as numpy
from keras import layers

import keras_sq
from keras_sq.layers import quantized_layers

# 2 epochs of 4 batches.
COUNT, BATCH, EPOCHS = 16, 4, 2


def data(count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0)


def float_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(7, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )


def make(optimizer=None, compile_arguments=None, **settings):
    model = keras_sq.quantize_model(
        float_model(), **({"seed": 0, "overrides": {}} | settings)
    )
    arguments = {"jit_compile": JIT_COMPILE} | (compile_arguments or {})
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    return model


def masks(model):
    return {
        path: numpy(layer.mask()).reshape(-1) for path, layer in quantized_layers(model)
    }


def state(model):
    found = [numpy(v) for v in model.variables]
    found += [numpy(v) for v in model.optimizer.variables]
    return found


def assert_same(left, right, **tolerance):
    for a, b in zip(left, right, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)
