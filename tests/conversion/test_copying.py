"""A copy computes what the original computes, whatever its state is kept in."""

import copy
import os
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_sq
from keras_sq.conversion import same_outputs

pytestmark = pytest.mark.tensorflow  # Strings and tables.

PACKAGE = "test_copying"
registered = keras.saving.register_keras_serializable(PACKAGE)
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(50, 10, (64, 4)).astype("float32")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def as_arrays(x):
    return keras.ops.convert_to_numpy(x)


def quantized(model):
    """Eight bits for all layers: near the original, but where state is lost."""
    return keras_sq.quantize_model(model, "uniform-8", overrides={})


def assert_goes_the_whole_way(model, x, tmp_path, **loading):
    """Copy, save and load, strip: each computes what the one before does."""
    expected = as_arrays(model(x))
    sq_model = quantized(model)
    outputs = as_arrays(sq_model(x))
    np.testing.assert_allclose(outputs, expected, atol=0.02 * np.abs(expected).max())
    assert sq_model.quantization_report.check == same_outputs.CHECKED
    sq_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", **loading)
    np.testing.assert_array_equal(as_arrays(loaded(x)), outputs)
    stripped = keras_sq.strip_quantization(loaded)
    np.testing.assert_allclose(as_arrays(stripped(x)), outputs, atol=1e-6)
    np.testing.assert_array_equal(as_arrays(model(x)), expected)
    return sq_model, stripped


# State that is not a variable.


def adapted(layer, data):
    layer.adapt(data)
    return layer


@registered
class Memory(L.Layer):
    """Keeps a table beside its weights, and saves it by itself."""

    def build(self, shape):
        self.bias = self.add_weight(shape=(shape[-1],), name="bias")
        self.table = np.zeros(shape[-1], "float32")

    def call(self, x):
        return x * self.table + self.bias

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table = np.array(store["table"])
        super().load_own_variables({k: store[k] for k in store.keys() if k != "table"})


@registered
class Assets(L.Layer):
    """Keeps a number in a file among the model's assets."""

    factor = 1.0

    def call(self, x):
        return x * self.factor

    def save_assets(self, directory):
        with open(os.path.join(directory, "factor.txt"), "w") as file:
            file.write(str(self.factor))

    def load_assets(self, directory):
        with open(os.path.join(directory, "factor.txt")) as file:
            self.factor = float(file.read())


def remembering():
    layer = Memory()
    layer.build((None, 4))
    layer.table = np.array([3, -1, 2, 5], "float32")
    return layer


def with_factor():
    layer = Assets()
    layer.factor = 7.0
    return layer


def measured():
    layer = L.BatchNormalization()
    layer.build((None, 4))
    layer.moving_mean.assign([50, 50, 40, 60])
    layer.moving_variance.assign([100, 50, 40, 30])
    return layer


NUMBER_STATE = {
    "normalization": lambda: adapted(L.Normalization(), NUMBERS),
    "normalization of one axis": lambda: adapted(L.Normalization(axis=None), NUMBERS),
    "inverted": lambda: adapted(L.Normalization(invert=True), NUMBERS),
    "given statistics": lambda: L.Normalization(mean=50.0, variance=100.0),
    "table beside weights": remembering,
    "assets": with_factor,
    "moving statistics": measured,
}


@pytest.mark.parametrize("name", NUMBER_STATE)
@pytest.mark.parametrize("kind", ["sequential", "nested", "shared"])
def test_state_that_is_not_a_variable_comes_along(name, kind, tmp_path):
    layer = NUMBER_STATE[name]()
    if kind == "sequential":
        model = keras.Sequential([keras.Input((4,)), layer, L.Dense(3)])
    elif kind == "nested":
        x = keras.Input((4,))
        inner = keras.Sequential([keras.Input((4,)), layer])
        model = keras.Model(x, L.Dense(3)(inner(x)))
    else:
        first, second = keras.Input((4,)), keras.Input((4,))
        both = L.Concatenate()([layer(first), layer(second)])
        model = keras.Model([first, second], L.Dense(3)(both))
    x = [NUMBERS, NUMBERS[::-1]] if kind == "shared" else NUMBERS
    assert_goes_the_whole_way(model, x, tmp_path)


@registered
class Own(keras.Model):
    """A subclassed model around a layer."""

    def __init__(self, name_of_state, **kwargs):
        super().__init__(**kwargs)
        self.name_of_state = name_of_state
        self.first = NUMBER_STATE[name_of_state]()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(self.first(x))

    def get_config(self):
        return {"name_of_state": self.name_of_state}


@pytest.mark.parametrize("name", ["normalization", "assets", "moving statistics"])
def test_state_of_subclassed_models_comes_along(name, tmp_path):
    model = Own(name)
    model(NUMBERS)
    # Not what the constructor makes.
    if name == "normalization":
        model.first.adapt(NUMBERS * 3)
    elif name == "assets":
        model.first.factor = 2.0
    assert_goes_the_whole_way(model, NUMBERS, tmp_path)


WORDS = np.array([["cat"], ["dog"], ["eel"], ["newt"]])
INTEGERS = np.array([[10], [20], [30], [77]])
TABLES = {
    "strings": (lambda: adapted(L.StringLookup(), WORDS[:3]), WORDS, "string"),
    "given strings": (
        lambda: L.StringLookup(vocabulary=["cat", "eel"]),
        WORDS,
        "string",
    ),
    "multi-hot": (
        lambda: adapted(L.StringLookup(output_mode="multi_hot"), WORDS[:3]),
        WORDS,
        "string",
    ),
    "tf-idf": (
        lambda: adapted(L.StringLookup(output_mode="tf_idf"), WORDS[:3]),
        WORDS,
        "string",
    ),
    "integers": (lambda: adapted(L.IntegerLookup(), INTEGERS[:3]), INTEGERS, "int64"),
    "text": (
        lambda: adapted(
            L.TextVectorization(output_mode="multi_hot"), ["a cat", "the dog"]
        ),
        np.array([["a cat"], ["the dog"], ["dog cat"]]),
        "string",
    ),
    "bins": (
        lambda: adapted(
            L.Discretization(num_bins=4, output_mode="one_hot"), NUMBERS[:, :1]
        ),
        NUMBERS[:8, :1],
        "float32",
    ),
    "hashes": (
        lambda: L.Hashing(num_bins=5, output_mode="one_hot"),
        WORDS,
        "string",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_vocabularies_come_along(name, tmp_path):
    import tensorflow as tf

    make, x, dtype = TABLES[name]
    inputs = keras.Input((1,), dtype=dtype)
    found = make()(inputs)
    if "int" in keras.backend.standardize_dtype(found.dtype):
        found = L.Flatten()(L.Embedding(8, 4)(found))
    model = keras.Model(inputs, L.Dense(3)(found))
    values = tf.constant(x.tolist(), dtype)
    assert np.ptp(as_arrays(model(values)), axis=0).max() > 0  # Not all unknown.
    assert_goes_the_whole_way(model, values, tmp_path)


def test_a_registered_class_goes_on_to_save_its_own_state(tmp_path):
    @registered
    class Gated(L.Dense):
        gate = 1.0

        def call(self, x):
            return super().call(x) * self.gate

        def save_own_variables(self, store):
            store["kernel"], store["bias"] = self.kernel, self.bias
            store["gate"] = np.array(self.gate)

        def load_own_variables(self, store):
            self.kernel.assign(store["kernel"])
            self.bias.assign(store["bias"])
            self.gate = float(np.array(store["gate"]))

    keras_sq.register(Gated, ("kernel",))
    layer = Gated(3)
    layer.gate = 5.0
    model = keras.Sequential([keras.Input((4,)), layer])
    latent = as_arrays(layer.kernel)
    sq_model, stripped = assert_goes_the_whole_way(model, NUMBERS, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    (kept,) = [x for _, x in keras_sq.layers.quantized_layers(loaded)]
    np.testing.assert_array_equal(as_arrays(kept.latent()), latent)
    keras_sq.set_ratio(sq_model, 0.5)
    sq_model.save_weights(tmp_path / "half.weights.h5")
    loaded.load_weights(tmp_path / "half.weights.h5")
    assert keras_sq.get_ratio(loaded) == 0.5
    np.testing.assert_array_equal(
        as_arrays(kept.mask()), as_arrays(sq_model.layers[-1].mask())
    )
    assert stripped.layers[-1].gate == 5.0


@registered
class Pair(keras.Model):
    """Its constructor is given built models: nothing need be built by a call."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {"first": serialize(self.first), "second": serialize(self.second)}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls(**{key: deserialize(config[key]) for key in ("first", "second")})


def test_models_made_of_models_keep_their_optimizer(tmp_path):
    first = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    second = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    model = Pair(first, second)
    model(NUMBERS)
    sq_model = quantized(model)
    sq_model.compile("adam", "mse")
    keras_sq.set_ratio(sq_model, 1.0)
    sq_model.fit(NUMBERS / 50, NUMBERS[:, :2] / 50, verbose=0)
    sq_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(
        sq_model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(as_arrays(one), as_arrays(other))


def test_flags_of_layers_inside_others_come_along():
    @registered
    class Block(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.second = L.Dense(4), L.Dense(4)

        def call(self, x):
            return self.second(self.first(x))

    model = keras.Sequential([keras.Input((4,)), Block(), L.Dense(2)])
    model.layers[0].first.trainable = False
    sq_model = quantized(model)
    assert not sq_model.layers[0].first.trainable
    assert len(sq_model.trainable_weights) == len(model.trainable_weights) == 4
    stripped = keras_sq.strip_quantization(sq_model)
    assert len(stripped.trainable_weights) == 4


@pytest.mark.parametrize("cls", [L.LSTM, L.GRU, L.SimpleRNN])
def test_states_between_calls_come_along(cls):
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 5, 8)), cls(6, stateful=True), L.Dense(2)]
    )
    x = RNG.normal(size=(4, 5, 8)).astype("float32")
    model(x)
    expected = [as_arrays(v) for v in keras.tree.flatten(model.layers[0].states)]
    sq_model = quantized(model)
    assert sq_model.quantization_report.check == same_outputs.CHECKED
    for copied in (sq_model, keras_sq.strip_quantization(sq_model)):
        for one, other in zip(
            expected, keras.tree.flatten(copied.layers[0].states), strict=True
        ):
            np.testing.assert_array_equal(as_arrays(other), one)


# The check.


class Forgetful(L.Layer):
    """Has state in an attribute, which neither configuration nor saving knows."""

    offset = 0.0

    def call(self, x):
        return x + self.offset


def forgetting(where):
    layer = Forgetful(name="forgetful")
    x = keras.Input((4,))
    if where == "nested":
        model = keras.Model(x, L.Dense(3)(keras.Sequential([x, layer])(x)))
    else:
        model = keras.Model(x, L.Dense(3)(layer(x)))
    layer.offset = 3.0
    return model


@pytest.mark.parametrize("where", ["graph", "nested"])
def test_state_that_a_copy_loses_is_an_error_that_names_the_layer(where):
    model = forgetting(where)
    before = as_arrays(model(NUMBERS))
    with pytest.raises(
        ValueError, match=r"computes something else.*'forgetful' \(of type Forgetful\)"
    ):
        quantized(model)
    np.testing.assert_array_equal(as_arrays(model(NUMBERS)), before)


def test_state_that_stripping_loses_is_an_error():
    sq_model = quantized(keras.Sequential([keras.Input((4,)), Forgetful(), L.Dense(3)]))
    sq_model.layers[0].offset = 3.0
    with pytest.raises(ValueError, match="`strip_quantization` made a copy"):
        keras_sq.strip_quantization(sq_model)


def test_small_statistics_are_seen_behind_a_saturated_end():
    """The second example has large values, the first small ones: both count."""
    layer = Forgetful(name="forgetful")
    model = keras.Sequential([keras.Input((4,)), layer, L.Dense(3), L.Softmax()])
    model.layers[1].kernel.assign(np.ones((4, 3)) * [10, 0, -10])
    layer.offset = 0.01
    with pytest.raises(ValueError, match="'forgetful'"):
        quantized(model)


class Noisy(L.Layer):
    def call(self, x):
        return x + np.random.default_rng().normal()


class TwoArguments(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(3)

    def call(self, x, y):
        return self.dense(x + y)

    def build(self, x_shape, y_shape):
        self.dense.build(x_shape)


class OnlyMultiplesOf48(L.Layer):
    def call(self, x):
        if x.shape[1] is not None and x.shape[1] % 48:
            raise ValueError("not this size")
        return x


def large():
    x = keras.Input((60000, 60000, 1))
    return keras.Model(x, L.Conv2D(2, 3)(x))


def two_arguments():
    model = TwoArguments()
    model.build((None, 4), (None, 4))
    return model


def of_one_size():
    x = keras.Input((None, 4))
    return keras.Model(x, L.Dense(3)(OnlyMultiplesOf48()(x)))


@pytest.mark.parametrize(
    "make, reason",
    [
        (
            lambda: keras.Sequential([keras.Input((4,)), Noisy(), L.Dense(3)]),
            "its outputs are random",
        ),
        (two_arguments, "all its inputs in one argument"),
        (large, r"too large.*60000, 60000, 1"),
        (of_one_size, "not this size"),
    ],
    ids=["random", "two arguments", "large", "refuses"],
)
def test_what_cannot_be_tried_is_said(make, reason):
    report = quantized(make()).quantization_report
    assert report.check.startswith("not checked: ")
    assert re.search(reason, report.check), report.check


def test_checking_changes_nothing_of_the_original():
    class Counting(L.Layer):
        def build(self, shape):
            self.calls = self.add_weight((), "zeros", name="calls", trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            self.add_loss(keras.ops.sum(x))
            return x

    model = keras.Sequential(
        [keras.Input((4,)), Counting(), L.Dropout(0.5, seed=1), L.Dense(3)]
    )
    before = [as_arrays(v) for v in model.variables]
    sq_model = quantized(model)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(as_arrays(variable), old)
    assert float(sq_model.layers[0].calls) == 0
    assert len(model.losses) <= 1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_models_of_low_precision_are_checked(policy):
    dtype = keras.DTypePolicy(policy)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3, dtype=dtype), L.Flatten(dtype=dtype)]
    )
    assert quantized(model).quantization_report.check == same_outputs.CHECKED


def test_a_layer_of_low_precision_inside_another_is_no_difference():
    inner = L.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((5, 8)), L.TimeDistributed(inner)])
    assert quantized(model).quantization_report.check == same_outputs.CHECKED


# Ties.


@registered
class Transposed(L.Layer):
    """Multiplies by the transposed kernel of another layer."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.other = other

    def build(self, shape):
        size = self.other.kernel.shape[0]
        self.bias = self.add_weight(shape=(size,), name="bias")

    def call(self, x):
        kernel = keras.ops.transpose(self.other.kernel)
        return keras.ops.matmul(x, kernel) + self.bias

    def get_config(self):
        other = keras.saving.serialize_keras_object(self.other)
        return {**super().get_config(), "other": other}

    @classmethod
    def from_config(cls, config):
        other = keras.saving.deserialize_keras_object(config["other"])
        return cls(**{**config, "other": other})


def tied(cls=Transposed):
    x = keras.Input((4,))
    encoder = L.Dense(3, name="encoder", activation="tanh")
    return keras.Model(x, cls(encoder, name="decoder")(encoder(x)))


def test_tied_weights_stay_tied(tmp_path):
    model = tied()
    sq_model, stripped = assert_goes_the_whole_way(model, NUMBERS / 50, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for copied in (sq_model, stripped, loaded):
        assert copied.get_layer("decoder").other is copied.get_layer("encoder")
        assert copied.get_layer("encoder") is not model.get_layer("encoder")
    assert len(stripped.weights) == len(model.weights) == 3
    # Quantized once, and the gradients of both uses reach the one latent kernel.
    (layer,) = [x for _, x in keras_sq.layers.quantized_layers(sq_model)]
    before = as_arrays(layer.latent())
    sq_model.compile("sgd", "mse")
    keras_sq.set_ratio(sq_model, 1.0)
    sq_model.fit(NUMBERS / 50, NUMBERS / 50, verbose=0)
    assert np.abs(as_arrays(layer.latent()) - before).max() > 0


def test_layers_in_a_configuration_are_copied_too():
    """Keras cannot load such a model, but there is no need to share its weights."""

    class Holds(Transposed):
        def get_config(self):
            return {**L.Layer.get_config(self), "other": self.other}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    model = tied(Holds)
    sq_model = quantized(model)
    assert sq_model.get_layer("decoder").other is sq_model.get_layer("encoder")
    kept = as_arrays(model.get_layer("encoder").kernel)
    sq_model.get_layer("encoder").latent().assign(kept * 0)
    np.testing.assert_array_equal(as_arrays(model.get_layer("encoder").kernel), kept)


def test_two_layers_may_hold_a_third_that_no_graph_has():
    """Keras cannot load such a model, quantized or not."""
    x = keras.Input((3,))
    third = L.Dense(3, name="third")
    third.build((None, 3))
    first, second = Transposed(third), Transposed(third)
    model = keras.Model(x, L.Dense(2)(second(first(x))))
    sq_model = quantized(model)
    assert sq_model.quantization_report.check == same_outputs.CHECKED
    for copied in (sq_model, keras_sq.strip_quantization(sq_model)):
        assert copied.layers[1].other is copied.layers[2].other


def test_a_layer_wrapped_twice_over_stays_by_itself(tmp_path):
    """Two bidirectional layers: nothing of one leaks into the other."""
    x = keras.Input((5, 4))
    y = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    model = keras.Model(x, L.Bidirectional(L.LSTM(2))(y))
    data = RNG.normal(size=(2, 5, 4)).astype("float32")
    assert_goes_the_whole_way(model, data, tmp_path)


def test_a_tie_that_the_configuration_forgets_is_an_error():
    class Forgets(Transposed):
        @classmethod
        def from_config(cls, config):
            config = dict(config)
            # Made anew, with weights of its own.
            other = L.Dense.from_config(config["other"]["config"])
            other.build((None, 4))
            return cls(**{**config, "other": other})

    with pytest.raises(ValueError, match="could not be copied|share weight"):
        quantized(tied(Forgets))


def test_a_weight_of_the_original_in_a_copy_is_an_error():
    class Borrows(L.Layer):
        def __init__(self, get, **kwargs):
            super().__init__(**kwargs)
            self.get = get
            self.lent = get()

        def call(self, x):
            return x * self.lent

        def get_config(self):
            return {**super().get_config(), "get": self.get}

    weight = keras.Variable([1.0, 2.0, 3.0, 4.0])
    model = keras.Sequential([keras.Input((4,)), Borrows(lambda: weight), L.Dense(2)])
    with pytest.raises(ValueError, match="of the original itself"):
        quantized(model)


@pytest.mark.parametrize("kind", ["lambda", "function"])
def test_functions_that_use_weights_of_the_original_are_an_error(kind):
    dense = L.Dense(4, name="dense")

    def by_kernel(x):
        return keras.ops.matmul(x, dense.kernel)

    class Calls(L.Layer):
        def __init__(self, function, **kwargs):
            super().__init__(**kwargs)
            self.function = function

        def call(self, x):
            return self.function(x)

        def get_config(self):
            return {**super().get_config(), "function": self.function}

    x = keras.Input((4,))
    layer = L.Lambda(by_kernel) if kind == "lambda" else Calls(by_kernel)
    with pytest.raises(ValueError, match="compute with weights of the original"):
        quantized(keras.Model(x, layer(dense(x))))


def test_functions_that_use_no_weights_are_none():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(3)(L.Lambda(lambda x: x * 2)(x)))
    assert quantized(model).quantization_report.check == same_outputs.CHECKED


# Functional style.


@registered
class Classifier(keras.Model):
    """As the task models of keras-hub: made of arguments, called as a graph."""

    def __init__(self, units, activation="relu", **kwargs):
        tokens = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
        x = L.Concatenate()([tokens["a"], tokens["b"]])
        x = L.Dense(units, activation=activation, name="hidden")(x)
        super().__init__(inputs=tokens, outputs=L.Dense(2, name="out")(x), **kwargs)
        self.units, self.activation = units, activation

    def get_config(self):
        return {"units": self.units, "activation": self.activation, "name": self.name}


class Stepper(keras.Model):
    """A class with a training step of its own around any graph."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def train_step(self, data):
        self.steps = getattr(self, "steps", 0) + 1
        return super().train_step(data)


@pytest.mark.parametrize("style", ["arguments", "graph"])
def test_classes_in_functional_style_go_the_whole_way(style, tmp_path):
    if style == "arguments":
        model = Classifier(5)
        x = {"a": NUMBERS / 50, "b": NUMBERS[::-1] / 70}
    else:
        inputs = keras.Input((4,))
        model = Stepper(inputs, L.Dense(2, name="out")(L.Dense(5)(inputs)))
        x = NUMBERS / 50
    scope = {"Stepper": Stepper}
    sq_model, stripped = assert_goes_the_whole_way(
        model, x, tmp_path, custom_objects=scope
    )
    assert isinstance(sq_model, type(model)) and type(stripped) is type(model)
    sq_model.compile("sgd", "mse")
    callback = keras_sq.callbacks.StochasticQuantization()
    y = NUMBERS[:, :2] / 50
    sq_model.fit(x, y, batch_size=2, verbose=0, callbacks=[callback])
    report = keras_sq.export(sq_model, tmp_path / "model.tflite", target="small")
    assert [i.name for i in report.inputs] == (["a", "b"] if len(x) == 2 else ["input"])
    if style == "graph":
        assert sq_model.steps
    loss = keras_sq.summary(sq_model, print_fn=lambda text: None)
    assert {row.path for row in loss.rows} >= {"out"}


# Reports and latent kernels.


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_pickled_models_keep_their_report(duplicate):
    model = keras_sq.quantize_model(
        keras.Sequential([keras.Input((4,)), L.Dense(3, name="a"), L.Dense(2)]),
        "binary",
        skip="a",
    )
    twin = duplicate(duplicate(model))
    assert twin is not model
    assert twin.quantization_report == model.quantization_report
    assert twin.quantization_report.check == same_outputs.CHECKED
    np.testing.assert_array_equal(as_arrays(twin(NUMBERS)), as_arrays(model(NUMBERS)))


def test_assigning_a_kernel_sets_the_latent_variable():
    model = quantized(keras.Sequential([keras.Input((4,)), L.Dense(3)]))
    (layer,) = model.layers
    new = RNG.normal(size=(4, 3)).astype("float32")
    layer.kernel.assign(new)
    np.testing.assert_array_equal(as_arrays(layer.latent()), new)
    np.testing.assert_allclose(as_arrays(layer.kernel), new, atol=0.02)
