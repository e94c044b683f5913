"""Files of Keras 2: what they say is read as it was meant, or refused."""

import json
import tempfile
import warnings

import h5py
import keras
import numpy as np
import pytest

from keras_sq import models
from keras_sq.files import file_checks, legacy_configs
from keras_sq.files.loading import load_model

kl = keras.layers
RNG = np.random.default_rng(0)


def entry(class_name, name, inbound=(), **config):
    """A layer as Keras 2 describes it; `inbound` are the calls it is given."""
    node = [[call, 0, 0, {}] if isinstance(call, str) else call for call in inbound]
    return {
        "class_name": class_name,
        "name": name,
        "config": {"name": name, "trainable": True, "dtype": "float32", **config},
        "inbound_nodes": [node] if node else [],
    }


def image(*shape, name="image"):
    return entry("InputLayer", name, batch_input_shape=[None, *shape], sparse=False)


def functional(layers, outputs=None, name="model"):
    """A model; by default its first layer is its input, its last its output."""
    return {
        "class_name": "Functional",
        "name": name,
        "inbound_nodes": [],
        "config": {
            "name": name,
            "layers": layers,
            "input_layers": [[layers[0]["name"], 0, 0]],
            "output_layers": outputs or [[layers[-1]["name"], 0, 0]],
        },
    }


def sequential(layers, name="model"):
    config = {"name": name, "layers": layers}
    return {
        "class_name": "Sequential",
        "name": name,
        "inbound_nodes": [],
        "config": config,
    }


def write(path, config, weights, version="2.4.0"):
    """Writes what Keras 2 writes.

    Args:
        path: Of the file.
        config: Of the model.
        weights: Layer -> its weights, in the order of the layers.
        version: Of Keras.
    """
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode("utf8")
        file.attrs["keras_version"] = version.encode("utf8")
        file.attrs["backend"] = b"tensorflow"
        # Keras 2 before 2.3 also wrote `lr`, which nothing reads any more.
        optimizer = {"class_name": "Adam", "config": {"lr": 0.001}}
        file.attrs["training_config"] = json.dumps({"optimizer_config": optimizer})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode("utf8") for name in weights]
        for name, values in weights.items():
            layer = group.create_group(name)
            names = [f"{name}/weight_{number}:0" for number in range(len(values))]
            layer.attrs["weight_names"] = [x.encode("utf8") for x in names]
            for weight, value in zip(names, values, strict=True):
                layer[weight] = value
    return path


def normal(*shape):
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def batch_norm(channels):
    return [normal(channels), normal(channels), normal(channels), normal(channels) ** 2]


def test_depthwise_network_of_keras_2_computes_what_it_did(tmp_path):
    layers = [
        image(8, 8, 2),
        entry("ZeroPadding2D", "pad", ["image"], padding=[[0, 1], [0, 1]]),
        entry(
            "DepthwiseConv2D",
            "depthwise",
            ["pad"],
            kernel_size=[3, 3],
            strides=[2, 2],
            padding="valid",
            groups=1,
            depth_multiplier=1,
            depthwise_initializer={"class_name": "VarianceScaling", "config": {}},
        ),
        entry("BatchNormalization", "bn", ["depthwise"], axis=[3], epsilon=1e-3),
        entry("ReLU", "relu", ["bn"], max_value=6.0, negative_slope=0.0, threshold=0.0),
        entry("Flatten", "flatten", ["relu"], data_format="channels_last"),
        entry("Dense", "dense", ["flatten"], units=3, activation="softmax"),
    ]
    weights = {
        "depthwise": [normal(3, 3, 2, 1), normal(2)],
        "bn": batch_norm(2),
        "dense": [normal(32, 3), normal(3)],
    }
    path = write(tmp_path / "model.h5", functional(layers), weights)
    content = path.read_bytes()
    model = load_model(path)
    expected = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            kl.ZeroPadding2D(((0, 1), (0, 1))),
            kl.DepthwiseConv2D(3, 2),
            kl.BatchNormalization(),
            kl.ReLU(6.0),
            kl.Flatten(),
            kl.Dense(3, activation="softmax"),
        ]
    )
    expected.set_weights([x for values in weights.values() for x in values])
    x = normal(4, 8, 8, 2)
    np.testing.assert_allclose(model(x), expected(x), atol=1e-6)
    assert type(model.get_layer("depthwise")) is kl.DepthwiseConv2D
    assert path.read_bytes() == content


def test_temporary_copy_is_removed(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    layers = [image(4), entry("Dense", "dense", ["image"], units=2)]
    path = write(
        tmp_path / "model.h5", functional(layers), {"dense": [normal(4, 2), normal(2)]}
    )
    made = []
    original = tempfile.TemporaryDirectory

    def noticed(*args, **kwargs):
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryDirectory", noticed)
    load_model(path)
    assert len(made) == 1
    assert made[0].name.startswith(str(folder))
    assert not list(folder.iterdir())
    # Files of Keras 3 are loaded from where they are.
    keras.Sequential([keras.Input((3,)), kl.Dense(2)]).save(path)
    load_model(path)
    assert len(made) == 1


LAYERS = {
    **{f"DepthwiseConv{n}D": {"kernel_size": 3} for n in (1, 2)},
    **{f"SeparableConv{n}D": {"filters": 4, "kernel_size": 3} for n in (1, 2)},
    **{f"Conv{n}DTranspose": {"filters": 4, "kernel_size": 3} for n in (1, 2, 3)},
    **{name: {"units": 3} for name in ("SimpleRNN", "LSTM", "GRU")},
    **{f"ConvLSTM{n}D": {"filters": 4, "kernel_size": 3} for n in (1, 2, 3)},
    **{f"SpatialDropout{n}D": {"rate": 0.5} for n in (1, 2, 3)},
    "RandomFlip": {"mode": "horizontal"},
    "RandomCrop": {"height": 4, "width": 4},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
}


@pytest.mark.parametrize("name", sorted(legacy_configs.GONE))
def test_layer_is_made_without_the_arguments_of_keras_2(name):
    layer = getattr(keras.layers, name, None)
    if layer is None:  # Keras 3 lacks it altogether.
        assert name in ("RandomHeight", "RandomWidth")
        return
    settings = LAYERS.get(name, {"factor": 0.1})
    if name == "RNN":
        settings = {"cell": keras.saving.serialize_keras_object(kl.LSTMCell(3))}
    gone = legacy_configs.GONE[name]
    kept = {
        argument: True if value is legacy_configs.ANY else value
        for argument, value in gone.items()
    }
    config = {"class_name": name, "config": {"name": "x", **settings, **kept}}
    changed = legacy_configs.modernized(config)["config"]
    assert changed == {"name": "x", **settings}
    assert layer.from_config(changed).name == "x"
    for argument, value in gone.items():
        if value is not legacy_configs.ANY:
            other = {"name": "y", argument: 2}
            with pytest.raises(ValueError, match=rf"'y' \({name}\) has {argument}=2,"):
                legacy_configs.modernized({"class_name": name, "config": other})


def test_arguments_of_inner_layers_and_cells_are_dropped_too():
    inner = entry("DepthwiseConv2D", "inner", kernel_size=3, groups=1)
    config = sequential([entry("TimeDistributed", "outer", layer=inner)])
    changed = legacy_configs.modernized(config)
    assert "groups" not in changed["config"]["layers"][0]["config"]["layer"]["config"]


@pytest.mark.parametrize("kind", ["Functional", "Sequential"])
@pytest.mark.parametrize("calls", [1, 2])
def test_calls_of_a_nested_model_are_counted_from_one_in_keras_2(kind, calls, tmp_path):
    layers = [image(4, name="inner_in"), entry("Dense", "inner", ["inner_in"], units=4)]
    if kind == "Sequential":
        nested = sequential(
            [{k: x[k] for k in ("class_name", "config")} for x in layers]
        )
        nested["name"] = nested["config"]["name"] = "nested"
    else:
        nested = functional(layers, name="nested")
    nested["inbound_nodes"] = [[["image", 0, 0, {}]]]
    if calls == 2:
        nested["inbound_nodes"].append([["nested", 1, 0, {}]])
    # The nested model at the end, and in the middle.
    scaled = entry(
        "Rescaling", "scaled", [["nested", calls, 0, {}]], scale=2.0, offset=0.0
    )
    kernel, bias = normal(4, 4), normal(4)
    for last, factor in ((["nested", calls, 0], 1.0), (["scaled", 0, 0], 2.0)):
        config = functional([image(4), nested, scaled], outputs=[last])
        path = write(tmp_path / "model.h5", config, {"nested": [kernel, bias]})
        x = normal(3, 4)
        expected = x
        for _ in range(calls):
            expected = expected @ kernel + bias
        found = load_model(path)(x)
        np.testing.assert_allclose(found, factor * expected, rtol=1e-5, atol=1e-5)


def test_calls_that_are_counted_from_zero_stay():
    nested = sequential([image(4)], name="nested")
    nested["inbound_nodes"] = [[["image", 0, 0, {}]]]
    layers = [image(4), nested, entry("ReLU", "relu", ["nested"])]
    changed = legacy_configs.modernized(functional(layers))
    assert changed["config"]["layers"][2]["inbound_nodes"] == [[["nested", 0, 0, {}]]]


def test_policy_of_keras_2_is_understood(tmp_path):
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    layers = [image(4), entry("Dense", "dense", ["image"], units=2, dtype=policy)]
    weights = {"dense": [normal(4, 2), normal(2)]}
    model = load_model(write(tmp_path / "model.h5", functional(layers), weights))
    assert model.get_layer("dense").compute_dtype == "float16"
    assert model.get_layer("dense").variable_dtype == "float32"


def test_shape_that_is_said_twice_is_no_warning(tmp_path):
    shape = [None, 4]
    layers = [
        entry("InputLayer", "in", batch_input_shape=shape),
        entry("Dense", "dense", units=2, batch_input_shape=shape),
    ]
    weights = {"dense": [normal(4, 2), normal(2)]}
    path = write(tmp_path / "model.h5", sequential(layers), weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(path).input_shape == (None, 4)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            entry("Lambda", "x", ["image"], function=["4wEAAAA=", None, None]),
            "Lambda",
        ),
        (
            entry("TFOpLambda", "x", ["image"], function="math.multiply"),
            "Keras 3 has n",
        ),
        (entry("MyLayer", "x", ["image"]), "'MyLayer'. Load it within"),
        (
            entry("DepthwiseConv1D", "x", ["image"], kernel_size=[1], groups=2),
            r"layer 'x' \(DepthwiseConv1D\) has groups=2, for which",
        ),
        (entry("Dense", "x", ["image"], units=10**9), "more than the file holds"),
    ],
)
def test_what_cannot_be_loaded_safely_is_refused(layer, message, tmp_path):
    path = write(tmp_path / "model.h5", functional([image(4, 4), layer]), {})
    with pytest.raises(ValueError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_known_class_of_ones_own_is_used(tmp_path):
    class MyLayer(kl.Layer):
        def call(self, inputs):
            return inputs + 1

    layers = [image(4), entry("MyLayer", "mine", ["image"])]
    path = write(tmp_path / "model.h5", functional(layers), {})
    with keras.saving.custom_object_scope({"MyLayer": MyLayer}):
        model = load_model(path)
    np.testing.assert_array_equal(model(np.zeros((1, 4))), np.ones((1, 4)))


def test_file_without_a_sound_configuration_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "model.h5", functional([image(4)]), {})
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        file.attrs["model_config"] = b'{"class_name": '
    with pytest.raises(ValueError, match="Expecting value"):
        load_model(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = np.zeros(3)
    with pytest.raises(ValueError, match="model_config is no text"):
        load_model(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = config
    with monkeypatch.context() as patch:
        patch.setattr(file_checks, "MAX_JSON_BYTES", 10)
        with pytest.raises(ValueError, match="or longer than 10 bytes"):
            load_model(path)
    load_model(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    with pytest.raises(ValueError, match="it holds weights only"):
        load_model(path)


@pytest.mark.parametrize(
    ("version", "legacy"),
    [(None, True), ("1.2.2", True), ("2.15.0-tf", True), ("3.0.0", False)],
)
def test_version_decides(version, legacy):
    assert legacy_configs.is_legacy(version) == legacy


# Networks with the weights of such files.


def reference_ds_cnn(path):
    """Writes the keyword spotter as the benchmark's reference has it."""
    shape, regularizer = [2, 2], {"class_name": "L2", "config": {"l2": 1e-4}}
    layers = [image(50, 10, 1, name="input_1")]
    weights = {}

    def add(class_name, name, values=None, **config):
        layers.append(entry(class_name, name, [layers[-1]["name"]], **config))
        if values is not None:
            weights[name] = values

    def normalized(number):
        add("BatchNormalization", f"bn_{number}", batch_norm(64), axis=[3])
        add("Activation", f"relu_{number}", activation="relu")

    settings = {"padding": "same", "kernel_regularizer": regularizer}
    add(
        *("Conv2D", "conv2d", [normal(10, 4, 1, 64), normal(64)]),
        **settings | {"filters": 64, "kernel_size": [10, 4], "strides": shape},
    )
    normalized(0)
    add("Dropout", "dropout", rate=0.2, noise_shape=None, seed=None)
    for number in range(4):
        add(
            *("DepthwiseConv2D", f"dw_{number}", [normal(3, 3, 64, 1), normal(64)]),
            **{"kernel_size": [3, 3], "padding": "same", "groups": 1},
        )
        normalized(2 * number + 1)
        add(
            *("Conv2D", f"pw_{number}", [normal(1, 1, 64, 64), normal(64)]),
            **settings | {"filters": 64, "kernel_size": [1, 1], "groups": 1},
        )
        normalized(2 * number + 2)
    add("Dropout", "dropout_1", rate=0.4)
    add("AveragePooling2D", "pool", pool_size=[25, 5], strides=[25, 5])
    add("Flatten", "flatten")
    add("Dense", "dense", [normal(64, 12), normal(12)], units=12, activation="softmax")
    write(path, functional(layers), weights)
    return weights


def test_keyword_spotter_of_the_benchmark_becomes_one_of_ours(tmp_path):
    path = tmp_path / "kws.h5"
    weights = reference_ds_cnn(path)
    model = models.from_saved("ds_cnn", path, weight_decay=1e-4)
    assert [layer.name for layer in model.layers] == [
        layer.name for layer in models.get("ds_cnn", (50, 10, 1), 12).layers
    ]
    # That outputs agree was checked; the names are those that they belong to.
    for ours, theirs in {"conv1": "conv2d", "block3_pointwise": "pw_2"}.items():
        for found, value in zip(
            model.get_layer(ours).get_weights(), weights[theirs], strict=True
        ):
            np.testing.assert_array_equal(found, value)
    x = normal(5, 50, 10, 1)
    np.testing.assert_allclose(
        keras.ops.softmax(model(x)), load_model(path)(x), rtol=1e-3, atol=1e-6
    )
    assert len(model.losses) == 10


def test_autoencoder_of_the_benchmark_takes_vectors(tmp_path):
    flat = models.get("autoencoder", (640,))
    inputs = keras.Input((5, 128, 1))
    x = kl.Reshape((5, 128, 1))(flat(kl.Flatten()(inputs)))
    keras.Model([inputs], [x]).save(tmp_path / "model.keras")
    model = models.from_saved("autoencoder", tmp_path / "model.keras")
    x = normal(2, 640)
    np.testing.assert_allclose(model(x), flat(x), atol=1e-6)


@pytest.mark.parametrize("end", ["argument", "layer", "activation", "logits"])
def test_softmax_is_left_out(end, tmp_path):
    layers = [
        keras.Input((4, 4, 1)),
        kl.Flatten(),
        *(kl.Dense(256, use_bias=False), kl.BatchNormalization(epsilon=0.1), kl.ReLU()),
        *(kl.Dense(256, use_bias=False), kl.BatchNormalization(), kl.ReLU()),
        kl.Dense(3, activation="softmax" if end == "argument" else None),
    ]
    layers += {"layer": [kl.Softmax()], "activation": [kl.Activation("softmax")]}.get(
        end, []
    )
    source = keras.Sequential(layers)
    for norm in (layers[3], layers[6]):
        norm.set_weights([np.abs(x) + 0.1 for x in batch_norm(256)])
    source.save(tmp_path / "model.keras")
    model = models.from_saved("mlp", tmp_path / "model.keras")
    assert model.get_layer("dense1_bn").epsilon == 0.1
    x = normal(2, 4, 4, 1)
    found = model(x) if end == "logits" else keras.ops.softmax(model(x))
    np.testing.assert_allclose(found, source(x), rtol=1e-4)


@keras.saving.register_keras_serializable("test_legacy_files")
class Subclassed(keras.Model):
    """A model without a graph."""

    def call(self, inputs):
        return inputs


def other_models():
    """Yields networks that are not `"mlp"`, and what is said of them."""
    image = keras.Input((4, 4, 1))
    x = kl.Flatten()(image)
    two = keras.Model(image, [kl.Dense(3)(x), kl.Dense(3)(x)])
    yield two, "has several inputs or outputs"
    subclassed = Subclassed()
    subclassed(np.zeros((1, 2)))
    yield subclassed, "is no model of layers in a graph"
    yield keras.Model(image, kl.Conv2D(3, 1)(image)), "is .None, 4, 4, 3., and not log"
    side = keras.Input((None, None, 1))
    pooled = kl.Dense(3)(kl.GlobalMaxPooling2D()(side))
    yield keras.Model(side, pooled), "its input has no fixed size"
    flat = keras.Input((16,))
    yield keras.Model(flat, kl.Dense(3)(flat)), r"its input is \(16,\)"
    yield keras.Model(image, kl.Dense(3)(x)), "for layer 'dense1' it has no .further"
    mlp = models.get("mlp", (4, 4, 1), 3)
    more = kl.BatchNormalization(name="more")(mlp.output)
    yield keras.Model(mlp.input, more), r"'more', .* \(3,\), is too many"
    inverse = kl.Rescaling(-1.0)(mlp.output)
    yield keras.Model(mlp.input, inverse), "compute something else"


def test_network_of_absurd_images_is_refused_before_it_is_run(tmp_path):
    x = keras.Input((2**20, 2**20, 1))
    path = tmp_path / "model.keras"
    keras.Model(x, kl.Dense(3)(kl.GlobalMaxPooling2D()(x))).save(path)
    with pytest.raises(ValueError, match="is refused: .* too large to be run here"):
        models.from_saved("mlp", path)


@pytest.mark.parametrize("number", range(8))
def test_other_network_is_refused(number, tmp_path):
    model, message = list(other_models())[number]
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ValueError, match=message) as error:
        models.from_saved("mlp", path)
    assert f"Model '{path}' does not have the layers" in str(error.value)


def test_bad_request_raises(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'mlp'"):
        models.from_saved("mpl", tmp_path / "model.keras")
    with pytest.raises(FileNotFoundError, match="There is no model"):
        models.from_saved("mlp", tmp_path / "model.keras")
