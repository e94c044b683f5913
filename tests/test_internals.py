"""What is used of Keras below its public names still behaves as it is used."""

import keras
import numpy as np
import pytest

from keras_sq import _keras_internals as internals


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
        assert internals.describes_layers(model) == layers, type(model)


def test_references_to_shared_objects_are_answered():
    layer, copy = keras.layers.Dense(2), keras.layers.Dense(2)
    serialize = keras.saving.serialize_keras_object
    deserialize = keras.saving.deserialize_keras_object
    with internals.shared_references({id(layer)}):
        config = serialize(layer)
        other = serialize(copy), serialize(copy)
    assert config["shared_object_id"] == id(layer)
    assert not any("shared_object_id" in entry for entry in other)
    with internals.shared_objects({id(layer): copy}.get):
        assert deserialize(config) is copy
    assert deserialize(config) is not copy
