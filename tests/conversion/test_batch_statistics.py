"""Statistics of batch normalization against NumPy."""

import backends
import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq

X = np.random.default_rng(3).normal(2.0, 3.0, (96, 5)).astype("float32")


def network():
    """Returns a quantized network with batch normalization and dropout."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((5,), name="x"),
            kl.Dense(4, name="dense1"),
            kl.BatchNormalization(name="bn1"),
            kl.ReLU(),
            kl.Dropout(0.0),
            kl.Dense(3, name="dense2"),
            kl.BatchNormalization(name="bn2"),
        ]
    )
    return keras_sq.quantize_model(model, "ternary", overrides={})


def statistics(model, name):
    """Returns mean and variance of a layer."""
    layer = model.get_layer(name)
    return [
        keras.ops.convert_to_numpy(value)
        for value in (layer.moving_mean, layer.moving_variance)
    ]


def normalized(values):
    """Returns values after batch normalization by their own statistics."""
    return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-3)


class Batches(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return 3

    def __getitem__(self, index):
        return X[32 * index :][:32], np.zeros(32)


@pytest.mark.parametrize(
    "kind",
    ["array", "batches", "pairs", "PyDataset", "function", "examples", "dict"],
)
def test_statistics_are_those_of_the_batches(kind):
    model = network()
    batches = [X[i : i + 32] for i in range(0, 96, 32)]
    data = {
        "array": X,
        "batches": batches,
        "pairs": [(x, np.zeros(32)) for x in batches],
        "PyDataset": Batches(),
        "function": lambda: iter(batches),
        "examples": zip(X, np.zeros(96), strict=True),
        "dict": {"x": X},
    }[kind]
    weights = model.get_weights()
    assert keras_sq.reestimate_batch_norm(model, data, batch_size=32) == 2
    kernels = [
        keras.ops.convert_to_numpy(model.get_layer(name).quantized_kernel())
        for name in ("dense1", "dense2")
    ]
    first = [x.astype("float64") @ kernels[0] for x in batches]
    mean, variance = statistics(model, "bn1")
    everything = np.concatenate(first)
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, everything.var(0), rtol=1e-4)
    # The second sees what the first makes of each batch.
    second = [np.maximum(normalized(x), 0) @ kernels[1] for x in first]
    mean, variance = statistics(model, "bn2")
    np.testing.assert_allclose(mean, np.concatenate(second).mean(0), rtol=1e-3)
    np.testing.assert_allclose(variance, np.concatenate(second).var(0), rtol=1e-3)
    for old, new, variable in zip(
        weights, model.get_weights(), model.weights, strict=True
    ):
        if "moving" not in variable.name:
            np.testing.assert_array_equal(old, new)


def test_steps_stop_early():
    model, other = network(), network()
    keras_sq.reestimate_batch_norm(model, X, steps=2, batch_size=32)
    keras_sq.reestimate_batch_norm(other, X[:64], batch_size=32)
    for name in ("bn1", "bn2"):
        for left, right in zip(
            statistics(model, name), statistics(other, name), strict=True
        ):
            np.testing.assert_array_equal(left, right)


def test_momentum_and_random_states_stay():
    model = keras.Sequential(
        [keras.Input((5,)), kl.Dropout(0.5, seed=4), kl.BatchNormalization()]
    )
    state = backends.array(model.layers[0].seed_generator.state)
    keras_sq.reestimate_batch_norm(model, X)
    assert model.layers[1].momentum == 0.99
    after = backends.array(model.layers[0].seed_generator.state)
    np.testing.assert_array_equal(state, after)


def test_frozen_layers_keep_their_statistics():
    model = network()
    model.get_layer("bn1").trainable = False
    before = statistics(model, "bn1")
    assert keras_sq.reestimate_batch_norm(model, X) == 1
    for old, new in zip(before, statistics(model, "bn1"), strict=True):
        np.testing.assert_array_equal(old, new)


def test_half_quantized_network_is_refused():
    model = network()
    keras_sq.set_ratio(model, 0.5)
    with pytest.raises(ValueError, match=r"quantized as a whole.*least ratio is 0.5"):
        keras_sq.reestimate_batch_norm(model, X)


def test_no_batch_is_refused_and_nothing_changed():
    model = network()
    before = statistics(model, "bn1")
    with pytest.raises(ValueError, match="Argument `data` must hold at least one"):
        keras_sq.reestimate_batch_norm(model, [])
    for old, new in zip(before, statistics(model, "bn1"), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_layer("bn1").momentum == 0.99


def test_several_inputs_find_their_place():
    a, b = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    norm = kl.BatchNormalization()
    by_name = keras.Model({"b": a, "a": b}, norm(a - 2.0 * b))
    first, second = X[:, :2], X[:, 2:4]
    data = {"a": second, "b": first}
    assert keras_sq.reestimate_batch_norm(by_name, data, batch_size=96) == 1
    expected = (first - 2.0 * second).mean(0)
    found = keras.ops.convert_to_numpy(norm.moving_mean)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="Argument `data` must be a dict with the k"):
        keras_sq.reestimate_batch_norm(by_name, [first, second])


def test_data_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="Argument `data` must be an array"):
        keras_sq.reestimate_batch_norm(network(), 3)


def test_bad_steps_are_refused():
    with pytest.raises(ValueError, match="Argument `steps` must be"):
        keras_sq.reestimate_batch_norm(network(), X, steps=0)
