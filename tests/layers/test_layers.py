"""Every quantized layer against the Keras layer it stands for."""

import importlib
import inspect
import sys
import warnings

import keras
import numpy as np
import pytest
from backends import array as numpy
from backends import gradients
from keras import ops
from layer_table import ROWS, as_model, cell_call, randomize

import keras_sq
from keras_sq import layers as sq
from keras_sq.conversion.plan import plan_quantization
from keras_sq.layers import Settings, quantized_layers

SETTINGS = list(inspect.signature(Settings).parameters)


every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.note)
every_class = pytest.mark.parametrize(
    "row", {row.name: row for row in ROWS}.values(), ids=lambda row: row.name
)


def per_filter(kernel, axes):
    """Sum over the axes that do not tell filters apart, kept as ones."""
    others = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    return lambda values, of=np.sum: of(values, axis=others, keepdims=True)


def binary(kernel, axes):
    scale = per_filter(kernel, axes)(np.abs(kernel), np.mean)
    return np.where(kernel >= 0, scale, -scale)


def ternary(kernel, axes):
    over = per_filter(kernel, axes)
    large = np.abs(kernel) > 0.7 * np.abs(kernel).mean()
    scale = over(np.abs(kernel) * large) / np.maximum(over(large), 1)
    return scale * np.sign(kernel) * large


def seven_bits(kernel, axes):
    scale = per_filter(kernel, axes)(np.abs(kernel), np.max) / 63
    return scale * np.round(kernel / scale)


ORACLES = {"binary": binary, "ternary": ternary, "uniform-7": seven_bits}


def test_table_has_every_layer():
    classes = {
        getattr(sq, name)
        for name in dir(sq)
        if name.startswith("SQ") and isinstance(getattr(sq, name), type)
    }
    assert classes == {row.quantized_class for row in ROWS}


@every_row
def test_ratio_zero_in_training_equals_keras_layer(row):
    layer = row.built()
    keras_sq.set_ratio(layer, 0.0)
    twin = row.float_twin(layer)
    x = row.data(2)
    np.testing.assert_array_equal(
        numpy(row.call(layer, x, training=True)),
        numpy(row.call(twin, x, training=True)),
    )


@pytest.mark.parametrize(
    "row, quantizer",
    [(row, list(ORACLES)[i % 3]) for i, row in enumerate(ROWS)]
    + [(ROWS[0], quantizer) for quantizer in ORACLES if quantizer != "binary"],
    ids=str,
)
def test_inference_equals_keras_layer_with_quantized_kernel(row, quantizer):
    layer = row.built(kernel_quantizer=quantizer)
    twin = row.float_twin(layer, ORACLES[quantizer])
    x = row.data(2)
    expected = numpy(row.call(twin, x))
    # The ratio is 1 from the start, and for inference whatever it is.
    np.testing.assert_allclose(
        numpy(row.call(layer, x)), expected, rtol=2e-5, atol=2e-5
    )
    keras_sq.set_ratio(layer, 0.0)
    np.testing.assert_allclose(
        numpy(row.call(layer, x)), expected, rtol=2e-5, atol=2e-5
    )
    keras_sq.set_ratio(layer, 1.0)
    trained = numpy(row.call(layer, x, training=True))
    np.testing.assert_allclose(trained, expected, rtol=2e-5, atol=2e-5)


@every_row
def test_half_quantized_kernel_mixes_both_by_the_mask(row):
    layer = row.built(kernel_quantizer="binary")
    keras_sq.set_ratio(layer, 0.5)

    def hybrid(part, name, axes):
        latent = numpy(part.latent(name))
        return np.where(numpy(part.mask(name)), binary(latent, axes), latent)

    twin = row.float_twin(layer)
    for (part, name, axes), (float_part, _, _) in zip(
        row.kernels(layer), row.kernels(twin), strict=True
    ):
        getattr(float_part, name).assign(hybrid(part, name, axes))
    x = row.data(2)
    np.testing.assert_allclose(
        numpy(row.call(layer, x, training=True)),
        numpy(row.call(twin, x, training=True)),
        rtol=2e-5,
        atol=2e-5,
    )


@every_class
def test_constructor_signature_is_the_keras_one_plus_settings(row):
    ours = dict(inspect.signature(row.quantized_class).parameters)
    extra = {name: ours.pop(name) for name in SETTINGS}
    theirs = dict(inspect.signature(row.keras_class.__init__).parameters)
    del theirs["self"]
    assert list(ours.items()) == list(theirs.items())
    assert {p.kind for p in extra.values()} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = Settings()
    for name in SETTINGS[1:]:
        assert extra[name].default == getattr(defaults, name)


@every_row
def test_config_round_trip(row):
    settings = dict(
        kernel_quantizer=keras_sq.quantizers.TernaryQuantizer("filter", 0.5),
        granularity="element",
        probability="sigmoid",
        selection="fixed",
        quantized_gradient="blocked",
        inference="hybrid",
        mask_seed=11,
    )
    layer = row.layer(**settings)
    row.call(layer, row.data())
    copy = type(layer).from_config(layer.get_config())
    assert type(copy) is type(layer)
    row.call(copy, row.data())
    assert copy.get_config() == layer.get_config()
    for part, _, _ in row.kernels(copy):
        assert part.quantization_settings == Settings(**settings)


def state(model):
    """The state of a model that is to be saved."""
    found = {}
    for path, layer in quantized_layers(model):
        for name in layer.quantized_weights:
            found[path, name, "latent"] = numpy(layer.latent(name))
            found[path, name, "mask"] = numpy(layer.mask(name))
        found[path, "ratio"] = numpy(layer.ratio)
        found[path, "seed"] = numpy(layer.mask_seed_generator.state)
    for index, variable in enumerate(model.trainable_variables):
        found[index] = numpy(variable)
    return found


def assert_same_state(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], err_msg=str(key))


# Stands first among the regression tests: Keras's own savers of Dense, Embedding
# and the convolutions write `self.kernel`, here the quantized one.
@every_row
def test_saving_keeps_the_latent_kernel(row, tmp_path):
    model = as_model(row, row.layer())
    randomize(model)
    keras_sq.set_ratio(model, 0.5)
    before = state(model)
    x = row.data(2)
    if row.call is cell_call:
        x = np.repeat(x[:, None], 4, axis=1)
    expected = numpy(model(x))

    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert_same_state(state(model), before)

    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(state(loaded), before)
    np.testing.assert_array_equal(numpy(loaded(x)), expected)

    other = keras.models.model_from_json(model.to_json())
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_state(state(other), before)

    # And all of them draw the same mask next.
    keras_sq.set_ratio(model, 0.3)
    keras_sq.set_ratio(loaded, 0.3)
    assert_same_state(state(loaded), state(model))


@every_row
def test_gradients_are_those_of_the_float_layer_given_the_hybrid_kernel(row):
    layer = row.built(kernel_quantizer="binary")
    x = row.data(2)
    twin = row.float_twin(layer, binary)
    keras_sq.set_ratio(layer, 1.0)

    def found(of):
        return gradients(
            lambda: ops.sum(ops.square(row.call(of, x, training=True))),
            variables=of.trainable_variables,
        )[1]

    for ours, theirs in zip(found(layer), found(twin), strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-3, atol=1e-4)


@every_row
def test_mask_has_one_entry_per_filter(row):
    layer = row.built()
    for part, name, axes in row.kernels(layer):
        kernel = part.latent(name)
        expected = tuple(n if i in axes else 1 for i, n in enumerate(kernel.shape))
        mask = part.mask(name)
        assert tuple(mask.shape) == expected
        assert mask.dtype == "bool" and not mask.trainable
        assert numpy(mask).all()
        assert tuple(part.filter_axes(name)) == axes
        filters = np.prod(expected)
        errors = numpy(part.quantization_errors(name))
        assert errors.shape == (filters,)
        quantized = ternary(numpy(kernel), axes)
        over = per_filter(numpy(kernel), axes)
        by_hand = over(np.abs(numpy(kernel) - quantized)) / over(np.abs(numpy(kernel)))
        np.testing.assert_allclose(errors, by_hand.reshape(-1), rtol=1e-4)
    keras_sq.set_ratio(layer, 0.5)
    for part, name, _ in row.kernels(layer):
        mask = numpy(part.mask(name))
        # The rounding favours quantizing.
        assert mask.sum() == mask.size - int(0.5 * mask.size)


@every_class
def test_element_mask_has_the_shape_of_the_kernel(row):
    layer = row.built(granularity="element")
    keras_sq.set_ratio(layer, 0.3)
    for part, name, axes in row.kernels(layer):
        latent = numpy(part.latent(name))
        mask = numpy(part.mask(name))
        assert mask.shape == latent.shape
        assert mask.sum() == mask.size - int(0.7 * mask.size + 1e-6)
        # Scales are still those of the filters.
        np.testing.assert_allclose(
            numpy(part.quantized_kernel(name)), ternary(latent, axes), rtol=1e-5
        )
        errors = np.abs(latent - ternary(latent, axes)) / np.abs(latent)
        np.testing.assert_allclose(
            numpy(part.quantization_errors(name)), errors, rtol=1e-4, atol=1e-6
        )
    assert row.call(layer, row.data(), training=True) is not None


@pytest.mark.parametrize("row", ROWS[:1] + ROWS[9:10] + ROWS[22:23], ids=str)
def test_lora_and_keras_quantization_are_refused(row):
    layer = row.built()
    with pytest.raises(ValueError, match="cannot take LoRA.*float model"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match="strip_quantization"):
        layer.quantize("int8")


def test_hybrid_inference_computes_with_the_hybrid_kernel():
    layer = sq.SQDense(4, kernel_quantizer="binary", inference="hybrid", mask_seed=0)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    layer(x)
    keras_sq.set_ratio(layer, 0.5)
    latent, mask = numpy(layer.latent()), numpy(layer.mask())
    hybrid = np.where(mask, binary(latent, (1,)), latent)
    np.testing.assert_allclose(numpy(layer(x)), x @ hybrid, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_fits_scales_in_the_dtype_of_the_variable(dtype):
    layer = sq.SQDense(4, kernel_quantizer="binary", use_bias=False, dtype=dtype)
    x = np.eye(50, dtype="float32")
    kernel = numpy(layer(x))
    compute = layer.compute_dtype
    assert keras.backend.standardize_dtype(layer(x).dtype) == compute
    latent = numpy(ops.cast(layer.latent(), "float32"))
    expected = numpy(ops.cast(binary(latent, (1,)), compute))
    tolerance = 2e-2 if dtype == "mixed_bfloat16" else 2e-3
    np.testing.assert_allclose(
        kernel.astype("float32"), expected.astype("float32"), rtol=tolerance
    )
    if dtype.startswith("mixed"):
        # Rounded once, from a scale that is exact: one magnitude per filter.
        np.testing.assert_array_equal(kernel, expected)


def test_kernel_before_build_says_so():
    with pytest.raises(AttributeError, match="build the layer.*`kernel`.*'early'"):
        _ = sq.SQDense(4, name="early").kernel


def test_direct_training_warns_once_and_names_the_callback():
    model = keras.Sequential([keras.Input((3,)), sq.SQDense(4), sq.SQDense(2)])
    model.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, x[:, :2], verbose=0, epochs=2)
        model.fit(x, x[:, :2], verbose=0)
    messages = [str(w.message) for w in caught]
    assert len(messages) == 1
    assert "callbacks=[keras_sq.callbacks.StochasticQuantization()]" in messages[0]


def test_ratio_set_by_hand_does_not_warn():
    model = keras.Sequential([keras.Input((3,)), sq.SQDense(4), sq.SQDense(2)])
    model.compile("sgd", "mse")
    keras_sq.set_ratio(model, 0.5)
    masks = [numpy(layer.mask()) for layer in model.layers]
    x = np.ones((4, 3), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(x, x[:, :2], verbose=0)
    for layer, mask in zip(model.layers, masks, strict=True):
        np.testing.assert_array_equal(numpy(layer.mask()), mask)
    assert keras_sq.get_ratio(model) == 0.5


def test_bad_settings_are_refused_by_the_constructor():
    with pytest.raises(ValueError, match="'binary'.*'ternary'.*Received: .*'trenary'"):
        sq.SQDense(4, kernel_quantizer="trenary")
    with pytest.raises(ValueError, match="`granularity` must be one of.*'channel'"):
        sq.SQConv2D(4, 3, granularity="channel")
    with pytest.raises(ValueError, match="`inference` must be one of.*'float'"):
        sq.SQLSTM(4, inference="float")
    with pytest.raises(ValueError, match="`quantized_gradient`.*'ste'"):
        sq.SQMultiHeadAttention(2, 4, quantized_gradient="ste")
    with pytest.raises(ValueError, match="`mask_seed` must be at least 0"):
        sq.SQDense(4, mask_seed=-1)
    with pytest.raises(TypeError, match="quantizer must be a .*TernaryQuantizer"):
        sq.SQDense(4, kernel_quantizer=keras_sq.quantizers.TernaryQuantizer)


def test_set_ratio_refuses_bad_values_and_changes_nothing():
    layer = sq.SQDense(8)
    layer.build((None, 3))
    for bad, error in (
        (1.2, ValueError),
        (-0.1, ValueError),
        (float("nan"), ValueError),
    ):
        with pytest.raises(
            error, match=r"`ratio` must be in \[0, 1\]. Received: ratio="
        ):
            keras_sq.set_ratio(layer, bad)
    with pytest.raises(TypeError, match="`ratio` must be a number"):
        keras_sq.set_ratio(layer, "0.5")
    assert keras_sq.get_ratio(layer) == 1.0
    with pytest.raises(ValueError, match="no quantized layer.*quantize_model"):
        keras_sq.set_ratio(keras.layers.Dense(2), 0.5)
    with pytest.raises(ValueError, match="'late' is not built"):
        keras_sq.set_ratio(sq.SQDense(2, name="late"), 0.5)
    layer.latent().assign(np.full((3, 8), np.nan))
    with pytest.raises(ValueError, match=f"layer '{layer.name}' holds NaN"):
        keras_sq.set_ratio(layer, 0.5)
    assert keras_sq.get_ratio(layer) == 1.0 and numpy(layer.mask()).all()


# Layers of one's own.


@keras.saving.register_keras_serializable("test_layers")
class TwoTables(keras.layers.Layer):
    """A layer whose second weight has its filters on the first axis."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.down = self.add_weight(shape=(input_shape[-1], self.units), name="down")
        self.up = self.add_weight(shape=(self.units, 3), name="up")

    def call(self, x):
        return ops.matmul(ops.matmul(x, self.down), self.up)

    def get_config(self):
        return super().get_config() | {"units": self.units}


@pytest.fixture(scope="module")
def own_class():
    return keras_sq.register(
        TwoTables, ("down", "up"), lambda layer, name: (1,) if name == "down" else (0,)
    )


def test_registered_layer_is_quantized(own_class, tmp_path):
    model = keras.Sequential([keras.Input((5,)), TwoTables(4, name="tables")])
    quantized = keras_sq.quantize_model(model, "binary", seed=0, overrides={})
    layer = quantized.get_layer("tables")
    assert type(layer) is own_class
    assert tuple(layer.mask("up").shape) == (4, 1)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    down, up = (numpy(v) for v in model.trainable_variables)
    expected = x @ binary(down, (1,)) @ binary(up, (0,))
    np.testing.assert_allclose(numpy(quantized(x)), expected, rtol=1e-4, atol=1e-5)
    keras_sq.set_ratio(quantized, 0.5)
    np.testing.assert_array_equal(numpy(layer.mask("up")).sum(), 2)

    quantized.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")
    assert_same_state(state(loaded), state(quantized))
    plain = keras_sq.strip_quantization(loaded)
    assert type(plain.get_layer("tables")) is TwoTables
    np.testing.assert_allclose(numpy(plain(x)), expected, rtol=1e-4, atol=1e-5)
    assert "units" in inspect.signature(own_class).parameters


# Classes that are made on demand.


@keras.saving.register_keras_serializable("test_layers")
class HeNormal(keras.layers.Conv2D):
    """A subclass that computes as its base does."""

    scale_of_init = 2.0

    def __init__(self, filters, kernel_size, activation="relu", **kwargs):
        super().__init__(filters, kernel_size, activation=activation, **kwargs)

    def number_of_filters(self):
        return self.filters


@keras.saving.register_keras_serializable("test_layers")
class Standardized(HeNormal):
    """A subclass that does something to the kernel."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel))


def reloaded(model, path):
    model.save(path)
    return keras.models.load_model(path)


def test_subclass_that_computes_as_its_base_is_quantized_as_it(tmp_path):
    inputs = keras.Input((3, 6, 6, 2))
    timed = keras.layers.TimeDistributed(HeNormal(4, 3, name="inner"), name="timed")
    outputs = keras.layers.TimeDistributed(keras.layers.Flatten())(timed(inputs))
    outputs = keras.layers.Dense(2, name="logits")(outputs)
    for model in (
        keras.Model(inputs, outputs),
        keras.Sequential([keras.Input((6, 6, 2)), HeNormal(4, 3, name="inner")]),
    ):
        randomize(model)
        quantized = keras_sq.quantize_model(model, "binary", seed=0, overrides={})
        path = next(p for p, x in quantized_layers(quantized) if p.endswith("inner"))
        layer = dict(quantized_layers(quantized))[path]
        assert isinstance(layer, sq.SQConv2D) and layer.float_class is HeNormal
        x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
        expected = numpy(quantized(x))
        plain = keras_sq.strip_quantization(quantized)
        np.testing.assert_allclose(numpy(plain(x)), expected, rtol=1e-5, atol=1e-5)
        kernel = next(v for v in plain.variables if len(v.shape) == 4)
        by_hand = binary(numpy(layer.latent()), (3,))
        np.testing.assert_allclose(numpy(kernel), by_hand, rtol=1e-5)
        keras_sq.set_ratio(quantized, 0.5)
        loaded = reloaded(quantized, tmp_path / "model.keras")
        assert_same_state(state(loaded), state(quantized))
        again = reloaded(loaded, tmp_path / "model.keras")
        np.testing.assert_array_equal(numpy(again(x)), expected)
        types = {type(x) for x in keras_sq.strip_quantization(again)._flatten_layers()}
        assert HeNormal in types


def test_subclass_that_changes_the_kernel_stays_float_and_says_why():
    layers = [keras.Input((6, 6, 2)), Standardized(4, 3, name="own")]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    quantized = keras_sq.quantize_model(model, "binary", overrides={})
    outcome = quantized.quantization_report[0]
    assert (outcome.path, outcome.quantizer) == ("own", None)
    assert "a subclass of Conv2D with `convolution_op` of its own" in outcome.reason


def of_keras_hub(cls):
    """A stand-in for a class of keras-hub, by its module and name."""
    cls.__module__ = "keras_hub.src.layers.stand_in"
    return keras.saving.register_keras_serializable("keras_hub")(cls)


@of_keras_hub
class PositionEmbedding(keras.layers.Layer):
    def __init__(self, sequence_length, **kwargs):
        super().__init__(**kwargs)
        self.sequence_length = sequence_length

    def build(self, inputs_shape):
        shape = [self.sequence_length, inputs_shape[-1]]
        self.position_embeddings = self.add_weight(name="embeddings", shape=shape)
        self.built = True

    def call(self, inputs, start_index=0):
        shape = ops.shape(inputs)
        table = ops.convert_to_tensor(self.position_embeddings)
        return ops.broadcast_to(
            ops.slice(table, (start_index, 0), (shape[-2], shape[-1])), shape
        )

    def get_config(self):
        return super().get_config() | {"sequence_length": self.sequence_length}


@of_keras_hub
class ReversibleEmbedding(keras.layers.ReversibleEmbedding):
    pass


@of_keras_hub
class MaskedLMHead(keras.layers.Layer):
    def __init__(self, vocabulary_size=None, token_embedding=None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size, self.token_embedding = vocabulary_size, token_embedding

    def build(self, inputs_shape):
        if self.token_embedding is None:
            shape = [inputs_shape[-1], self.vocabulary_size]
            self._kernel = self.add_weight(name="output_kernel", shape=shape)
        self._bias = self.add_weight(name="output_bias", shape=[self.vocabulary_size])
        self.built = True

    def call(self, inputs):
        if self.token_embedding is None:
            return ops.matmul(inputs, self._kernel) + self._bias
        return self.token_embedding(inputs, reverse=True) + self._bias

    def get_config(self):
        return super().get_config() | {"vocabulary_size": self.vocabulary_size}


def test_layers_of_keras_hub_are_known_without_it(tmp_path):
    tokens = keras.Input((5,), dtype="int32")
    table = ReversibleEmbedding(11, 6, name="tokens")
    x = table(tokens)
    x = x + PositionEmbedding(8, name="positions")(x)
    own = MaskedLMHead(11, name="own")(x)
    model = keras.Model(tokens, [table(x, reverse=True), own])
    randomize(model)
    quantized = keras_sq.quantize_model(
        model, "binary", seed=0, input_quantizer="lq-2", skip=(), overrides={}
    )
    kernels = {
        path: {name: layer.filter_axes(name) for name in layer.quantized_weights}
        for path, layer in quantized_layers(quantized)
    }
    assert kernels == {
        "tokens": {"embeddings": (0,)},
        "positions": {"position_embeddings": (0,)},
        "own": {"_kernel": (1,)},
    }
    # They have no input that is multiplied with a kernel directly.
    assert not any(o.input_quantizer for o in quantized.quantization_report)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (2, 5))
    rows = binary(numpy(model.get_layer("tokens").embeddings), (0,))
    places = model.get_layer("positions").position_embeddings
    hidden = rows[ids] + binary(numpy(places), (0,))[:5]
    head = model.get_layer("own")
    scores = hidden @ binary(numpy(head._kernel), (1,)) + numpy(head._bias)
    for one in (quantized, reloaded(quantized, tmp_path / "hub.keras")):
        np.testing.assert_allclose(
            numpy(one(ids)[0]), hidden @ rows.T, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(numpy(one(ids)[1]), scores, rtol=1e-4, atol=1e-4)
    plain = keras_sq.strip_quantization(one)
    assert type(plain.get_layer("positions")) is PositionEmbedding
    np.testing.assert_allclose(numpy(plain(ids)[1]), scores, rtol=1e-4, atol=1e-4)
    keras_sq.set_ratio(quantized, 0.0)
    for ours, theirs in zip(quantized(ids, training=True), model(ids), strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-5)


def test_modules_of_keras_own_libraries_are_imported_to_load(tmp_path, monkeypatch):
    for package in ("keras_nlp", "another_package"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "import keras\n\n\nclass Plain(keras.layers.Dense):\n    pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path)

    def saved(package):
        layers = [keras.Input((3,)), importlib.import_module(package).Plain(2)]
        model = keras_sq.quantize_model(keras.Sequential(layers), overrides={})
        model.save(tmp_path / "model.keras")
        monkeypatch.delitem(sys.modules, package)
        return numpy(model(np.ones((1, 3)))), tmp_path / "model.keras"

    expected, path = saved("keras_nlp")
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(numpy(loaded(np.ones((1, 3)))), expected)
    assert type(loaded.layers[0]).float_class.__module__ == "keras_nlp"
    _, path = saved("another_package")
    with pytest.raises(ValueError, match="Could not locate the class 'Plain'"):
        keras.models.load_model(path)
    assert "another_package" not in sys.modules


def test_layer_built_without_an_optional_weight_is_nothing_to_quantize():
    table = keras.layers.ReversibleEmbedding(11, 6, name="tokens")
    table.build()
    model = keras.Sequential(
        [keras.Input((5, 6)), MaskedLMHead(11, table, name="head")]
    )
    plan = plan_quantization(model, Settings("binary"), (), {})
    reports = [entry.outcome for entry in plan if entry.outcome is not None]
    assert [(o.path, bool(o.quantizer)) for o in reports] == [("head/tokens", True)]


def test_spectral_normalization_goes_on_rewriting_the_latent_kernel(tmp_path):
    inner = keras.layers.Dense(4, name="inner")
    layers = [keras.layers.SpectralNormalization(inner, name="normalized")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    randomize(model)
    quantized = keras_sq.quantize_model(model, "binary", seed=0, overrides={})
    report = [(o.path, bool(o.quantizer)) for o in quantized.quantization_report]
    assert report == [("normalized/inner", True)]
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    loaded = reloaded(quantized, tmp_path / "normalized.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(quantized(x)))
    keras_sq.set_ratio(model=loaded, ratio=1.0)
    for _ in range(30):
        normalized, expected = loaded(x, training=True), model(x, training=True)
    # The float layer's kernel, its largest singular value 1, and quantized then.
    kernel = numpy(model.get_layer("normalized").layer.kernel)
    assert np.linalg.norm(kernel, 2) == pytest.approx(1, abs=1e-3)
    wrapped = loaded.get_layer("normalized").layer
    np.testing.assert_allclose(numpy(wrapped.latent()), kernel, rtol=1e-4, atol=1e-5)
    assert numpy(expected).shape == numpy(normalized).shape
    by_hand = x @ binary(kernel, (1,)) + numpy(wrapped.bias)
    np.testing.assert_allclose(numpy(normalized), by_hand, rtol=1e-3, atol=1e-4)


@keras.saving.register_keras_serializable("test_layers")
class Undescribed(keras.layers.Layer):
    """Leaves its configuration to Keras, which records the constructor's arguments."""

    def __init__(self, units, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.dense = keras.layers.Dense(units)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.factor * self.dense(x)


def test_layers_that_leave_their_configuration_to_keras_are_saved(tmp_path):
    layers = [Undescribed(3, factor=2.0), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    quantized = keras_sq.quantize_model(model, "binary", overrides={})
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    expected = numpy(quantized(x))
    loaded = reloaded(quantized, tmp_path / "model.keras")
    again = reloaded(loaded, tmp_path / "model.keras")
    for one in (loaded, again, keras_sq.strip_quantization(again)):
        np.testing.assert_allclose(numpy(one(x)), expected, rtol=1e-5, atol=1e-6)


def test_register_refuses_what_is_no_layer(own_class):
    with pytest.raises(TypeError, match="`layer_class` must be a class derived from"):
        keras_sq.register(keras.layers.Dense(2))
    with pytest.raises(TypeError, match="`quantized_weights` must be a non-empty"):
        keras_sq.register(TwoTables, "kernel")
    with pytest.raises(TypeError, match="`quantized_weights` must be a non-empty"):
        keras_sq.register(TwoTables, ())
    with pytest.raises(ValueError, match="SQTwoTables is a quantized class already"):
        keras_sq.register(own_class)


def test_registered_layer_without_the_weight_says_so():
    class Other(keras.layers.Layer):
        def build(self, input_shape):
            self.matrix = self.add_weight(shape=(input_shape[-1], 2))

        def call(self, x):
            return ops.matmul(x, self.matrix)

    keras_sq.register(Other, ("kernel",))
    model = keras.Sequential([keras.Input((3,)), Other(name="other")])
    with pytest.raises(ValueError, match="'other'.*no weight `kernel`"):
        keras_sq.quantize_model(model, overrides={})
