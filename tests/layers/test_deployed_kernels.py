"""`predict` and `evaluate` compute the kernels once, and never with stale ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_sq
from keras_sq.layers import deployed_kernels
from keras_sq.layers.quantized import StochasticallyQuantized

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:Training stochastically quantized"),
]

X = np.random.default_rng(0).random((16, 6, 6, 3), "float32")
Y = np.arange(16) % 4
HALF = keras_sq.schedules.constant(0.5, allow_partial=True)


@pytest.fixture
def computed(monkeypatch):
    """A list of the kernels that were computed, by the name of the layer."""
    names = []
    original = StochasticallyQuantized.inference_kernel

    def noting(self, *args):
        names.append(self.name)
        return original(self, *args)

    monkeypatch.setattr(StochasticallyQuantized, "inference_kernel", noting)
    return names


def network(quantizer="uniform-4", **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.SeparableConv2D(4, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation="softmax", name="logits"),
        ]
    )
    settings = {"overrides": {}, "seed": 0} | settings
    model = keras_sq.quantize_model(model, quantizer, **settings)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def assert_up_to_date(model):
    """Compares `predict` and `evaluate` with a call that computes the kernels."""
    expected = ops.convert_to_numpy(model(X, training=False))
    predicted = model.predict(X, batch_size=4, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    loss = model.evaluate(X, Y, batch_size=4, verbose=0)
    np.testing.assert_allclose(
        loss, -np.mean(np.log(expected[np.arange(16), Y])), rtol=1e-5
    )


def by_assign(model):
    model.get_layer("logits").latent().assign_add(np.ones((64, 4), "float32") * 0.2)


def by_assigning_one(model):
    kernel = model.get_layer("logits").latent()
    value = ops.convert_to_numpy(kernel).copy()
    value[0] = 3.0
    kernel.assign(value)


def by_fit(model):
    callback = keras_sq.callbacks.StochasticQuantization(HALF)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback], validation_data=(X, Y))


def by_train_on_batch(model):
    model.train_on_batch(X, Y)


def by_set_weights(model):
    model.set_weights(
        [x + 0.1 if x.dtype == "float32" else x for x in model.get_weights()]
    )


@pytest.mark.parametrize("quantizer", ["ternary", "uniform-4", "lq-2"])
@pytest.mark.parametrize(
    "change",
    [by_assign, by_assigning_one, by_fit, by_train_on_batch, by_set_weights],
)
def test_kernels_follow_every_change_of_the_weights(quantizer, change):
    model = network(quantizer)
    assert_up_to_date(model)
    before = model.predict(X, verbose=0)
    change(model)
    assert_up_to_date(model)
    assert np.abs(model.predict(X, verbose=0) - before).max() > 1e-4


def test_kernels_follow_files(tmp_path):
    model, other = network(), network("uniform-4", seed=1)
    by_fit(other)
    other.save_weights(tmp_path / "other.weights.h5")
    assert_up_to_date(model)
    model.load_weights(tmp_path / "other.weights.h5")
    assert_up_to_date(model)
    np.testing.assert_array_equal(
        model.predict(X, verbose=0), other.predict(X, verbose=0)
    )


def test_kernels_follow_masks_of_hybrid_inference():
    model = network(inference="hybrid")
    for ratio in (1.0, 0.5, 0.0):
        keras_sq.set_ratio(model, ratio)
        assert_up_to_date(model)


def test_kernels_are_computed_once(computed):
    model = network()
    model.predict(X, batch_size=2, verbose=0)
    model.predict(X, batch_size=2, verbose=0)
    model.evaluate(X, Y, batch_size=2, verbose=0)
    assert computed == ["conv", "conv", "logits"]
    by_assign(model)
    model.predict(X, batch_size=2, verbose=0)
    assert computed[3:] == ["logits"]


def test_training_frees_the_memory_of_kernels():
    model = network()
    model.predict(X, verbose=0)
    layer = model.get_layer("logits")
    assert layer in deployed_kernels._kept
    callback = keras_sq.callbacks.StochasticQuantization(HALF)
    model.fit(X, Y, verbose=0, callbacks=[callback])
    assert layer not in deployed_kernels._kept


@pytest.mark.parametrize("loop", [False, True])
def test_functions_of_ones_own_compute_the_kernels(computed, loop):
    model = network()
    kernel = model.get_layer("logits").latent()
    turns = tf.range(3) if loop else range(3)

    @tf.function
    def change_and_call(x):
        result = model(x, training=False)
        for _ in turns:
            kernel.assign_add(tf.ones_like(kernel) * tf.range(4.0))
            result = model(x, training=False)
        return result

    for _ in range(2):
        found = change_and_call(X)
        expected = model(X, training=False)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not computed


def test_datasets_compute_the_kernels():
    model = network()
    data = tf.data.Dataset.from_tensors(X).map(lambda x: model(x, training=False))
    next(iter(data))
    by_assign(model)
    expected = model(X, training=False)
    np.testing.assert_allclose(next(iter(data)), expected, atol=1e-6)


class TrainsInTest(keras.Model):
    """Moves its weights in every step of `evaluate`, before it calls the network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, x, training=None):
        return self.network(x, training=training)

    def test_step(self, data):
        x, _ = data
        kernel = self.network.get_layer("logits").latent()
        kernel.assign(kernel + ops.ones_like(kernel) * ops.arange(4.0))
        return {"mean": ops.mean(self.network(x, training=False)[:, 0])}


class MovesInCall(keras.layers.Layer):
    """Writes the kernel of the layer inside, and then calls it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        kernel = self.layer.latent()
        kernel.assign(kernel + ops.ones_like(kernel) * ops.arange(4.0))
        return self.layer(x)


def test_steps_of_ones_own_compute_the_kernels(computed):
    model = TrainsInTest(network())
    model.compile("sgd")
    for _ in range(3):
        found = model.evaluate(X, Y, verbose=0, return_dict=True)["mean"]
        expected = ops.mean(model.network(X, training=False)[:, 0])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not computed


def test_kernels_that_a_call_writes_are_computed_in_it():
    quantized = keras_sq.layers.SQDense(4, kernel_quantizer="uniform-4")
    quantized.build((None, 3))
    model = keras.Sequential([keras.Input((3,)), MovesInCall(quantized)])
    for _ in range(3):
        found = model.predict(X[:, 0, 0], verbose=0)
        np.testing.assert_allclose(found, quantized(X[:, 0, 0]), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_several_steps_in_an_execution_and_mixed_precision(steps, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=steps)
    for change in (by_train_on_batch, by_assign):
        change(model)
        found = model.predict(X, batch_size=4, verbose=0)
        np.testing.assert_allclose(found, model(X, training=False), atol=2e-2)
