"""What is used of Keras below its public names still behaves as it is used."""

import concurrent.futures
import threading
import tracemalloc

import keras
import numpy as np
import pytest

from keras_sq.core import call_hooks, keras_copying
from keras_sq.core import keras_internals as internals


class PhaseRecorder(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x):  # No `training` argument, like Dense.
        self.seen.append(internals.training_phase())
        return x


def test_training_phase_reaches_layers_without_the_argument():
    layer = PhaseRecorder()
    model = keras.Sequential([keras.Input((2,)), layer])
    layer.seen.clear()
    x = np.ones((1, 2), "float32")
    model(x, training=True)
    model(x, training=False)
    model(x)
    assert [bool(phase) for phase in layer.seen] == [True, False, False]
    assert internals.training_phase() is None


def test_training_phase_during_fit_and_evaluate():
    layer = PhaseRecorder()
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((4, 2), "float32")
    layer.seen.clear()
    model.fit(x, x[:, :1], verbose=0)
    assert layer.seen
    assert layer.seen[-1] is True
    layer.seen.clear()
    model.evaluate(x, x[:, :1], verbose=0)
    model.predict(x, verbose=0)
    assert layer.seen
    assert not any(layer.seen)


class InferenceRecorder(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x):
        self.seen.append(internals.in_keras_inference())
        return x


class OverridesSteps(keras.Sequential):
    def test_step(self, data):
        return super().test_step(data)

    def predict_step(self, data):
        return super().predict_step(data)


def steps_seen(model):
    """Returns what the recorder sees in a call, `fit`, `evaluate` and `predict`."""
    model.compile("sgd", "mse")
    x = np.ones((4, 2), "float32")
    seen = []
    for run in (
        lambda: model(x),
        lambda: model.fit(x, x[:, :1], verbose=0),
        lambda: model.evaluate(x, x[:, :1], verbose=0),
        lambda: model.predict(x, verbose=0),
    ):
        model.layers[0].seen.clear()
        run()
        seen.append(set(model.layers[0].seen))
    return seen


def test_keras_own_inference_is_told_apart():
    layers = [keras.Input((2,)), InferenceRecorder(), keras.layers.Dense(1)]
    assert steps_seen(keras.Sequential(layers)) == [{False}, {False}, {True}, {True}]


def test_steps_that_a_class_overrides_are_not_keras_own_inference():
    layers = [keras.Input((2,)), InferenceRecorder(), keras.layers.Dense(1)]
    assert steps_seen(OverridesSteps(layers)) == [{False}] * 4


def test_read_is_not_autocast():
    dtypes = []

    class Reader(keras.layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(shape=(2,), initializer="ones")

        def call(self, x):
            dtypes.append(
                (
                    keras.backend.standardize_dtype(internals.read(self.weight).dtype),
                    keras.backend.standardize_dtype((self.weight * 1).dtype),
                    internals.in_autocast(),
                )
            )
            return x

    Reader(dtype="mixed_float16")(np.ones((1, 2), "float32"))
    assert dtypes[-1] == ("float32", "float16", True)
    assert not internals.in_autocast()


def test_flatten_layers_enters_custom_layers_in_a_fixed_order():
    def names():
        attention = keras.layers.MultiHeadAttention(1, 2)
        x = keras.Input((3, 4))
        model = keras.Model(x, attention(x, x))
        return [type(layer).__name__ for layer in internals.flatten_layers(model)]

    assert names() == names()
    assert names().count("EinsumDense") == 4


def test_own_variables_leave_out_those_of_sublayers():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert internals.own_variables(model) == []
    dense = model.layers[0]
    assert internals.own_variables(dense) == [dense.kernel, dense.bias]


def test_seed_states_of_dropout():
    dropout = keras.layers.Dropout(0.5, seed=3)
    assert len(internals.seed_states(dropout)) == 1


def test_unlocked_allows_new_variables_and_locks_again():
    dense = keras.layers.Dense(1, name="locked")
    dense.build((None, 2))
    with internals.unlocked(dense):
        extra = dense.add_weight(shape=(), name="extra")
    assert extra.path == "locked/extra"
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        dense.add_weight(shape=(), name="more")


def test_graph_models_are_told_from_subclassed_ones():
    class Own(keras.Model):
        def call(self, x):
            return x

    class Styled(keras.Model):
        def __init__(self, units):
            x = keras.Input((2,))
            super().__init__(inputs=x, outputs=keras.layers.Dense(units)(x))

    class Stepping(keras.Model):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    x = keras.Input((2,))
    # Has a graph; its configuration describes the layers one by one.
    for model, graph, layers in (
        (keras.Model(x, x + 1), True, True),
        (keras.Sequential([x]), True, True),
        (Stepping(x, x + 1), True, True),
        (Styled(3), True, False),
        (Own(), False, False),
    ):
        assert internals.has_graph(model) == graph, type(model)
        assert keras_copying.describes_layers(model) == layers, type(model)


def test_references_to_shared_objects_are_answered():
    layer, copy = keras.layers.Dense(2), keras.layers.Dense(2)
    serialize = keras.saving.serialize_keras_object
    deserialize = keras.saving.deserialize_keras_object
    with keras_copying.shared_references({id(layer)}):
        config = serialize(layer)
        other = serialize(copy), serialize(copy)
    assert config["shared_object_id"] == id(layer)
    assert not any("shared_object_id" in entry for entry in other)
    with keras_copying.shared_objects({id(layer): copy}.get):
        assert deserialize(config) is copy
    assert deserialize(config) is not copy


def threads(count, work):
    """Runs `work(i)` in threads at once; returns what they return or raise."""
    start = threading.Barrier(count)

    def run(index):
        start.wait()
        return work(index)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, index) for index in range(count)]
        return [future.exception() or future.result() for future in futures]


METHODS = [
    (cls, name, cls.__dict__[name])
    for cls in (keras.layers.Layer, keras.Operation, keras.layers.Dense, keras.Variable)
    for name in ("__init__", "__call__", "call", "add_weight", "build")
    if name in cls.__dict__
]


def require_keras_as_it_was():
    for cls, name, method in METHODS:
        assert cls.__dict__[name] is method, f"{cls.__name__}.{name}"


def test_watching_in_threads_never_changes_keras():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="d")])
    x = np.ones((1, 8), "float32")

    def work(index):
        seen = []

        def see(*entry):
            require_keras_as_it_was()
            seen.append(entry)

        for _ in range(20):
            if index % 2:
                with internals.weights_watched(see):
                    keras.layers.Dense(2, name=f"of_{index}").build((None, index))
            else:
                with call_hooks.calls_watched(model, see, see):
                    model(x)
        return seen

    for index, seen in enumerate(threads(8, work)):
        if index % 2:
            kernel = (f"of_{index}", (index, 2), "float32")
            assert seen == [kernel, (f"of_{index}", (2,), "float32")] * 20
        else:
            assert {entry[0].name for entry in seen} == {model.name, "d"}
            assert len([x for x in seen if len(x) == 3 and x[0].name == "d"]) == 20
    require_keras_as_it_was()
    assert "call" not in model.layers[0].__dict__


def test_weights_are_seen_before_they_take_memory():
    def refuse(layer, shape, dtype):
        raise ValueError(f"{layer} {shape} {dtype}")

    tracemalloc.start()
    inside = keras.Sequential([keras.layers.Dense(10**9, name="inside")], name="outer")
    for layer, message in (
        (inside, r"outer/inside \(8, 1000000000\) float32"),
        (keras.layers.Embedding(10**9, 8, name="e"), r"e \(1000000000, 8\) float32"),
        (keras.layers.LSTM(10**6, name="r"), r"r/lstm_cell \(8, 4000000\) float32"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            internals.weights_watched(refuse),
        ):
            layer.build((None, 3, 8))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    with internals.weights_watched(lambda *_: None):
        layer = keras.layers.Dense(
            2,
            kernel_initializer=lambda shape, dtype: np.full(shape, 3.0, dtype),
            bias_initializer=keras.initializers.Constant([1.0, 2.0]),
        )
        layer.build((None, 1))
    assert layer.kernel.numpy().tolist() == [[3.0, 3.0]]
    assert layer.bias.numpy().tolist() == [1.0, 2.0]
