"""From a float model to a quantized one and back, for every kind of model."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import custom_layers
import keras
import numpy as np
import pytest
from backends import array as numpy
from backends import gradients
from keras import layers, ops

import keras_sq
import keras_sq.models
from keras_sq import layers as sq
from keras_sq.layers import Settings, layer_paths, quantized_layers

# Keras says so of any layer without a `build` that it loads.
pytestmark = pytest.mark.filterwarnings("ignore:`build..` was called on layer")

# The zoo. Every model takes a list of arrays, `inputs(model)`.


def sequential():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(2, name="depthwise"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, name="logits"),
        ],
        name="small",
    )


def built_by_a_call():
    model = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(3)])
    model(np.ones((2, 5), "float32"))
    return model


def multi_input_output():
    image = keras.Input((5, 5, 2), name="image")
    words = keras.Input((4,), dtype="int32", name="words")
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 2)(image))
    y = layers.LSTM(4)(layers.Embedding(9, 3, mask_zero=True)(words))
    z = layers.Concatenate()([x, y])
    outputs = {"a": layers.Dense(2, name="a")(z), "b": [layers.Dense(3, name="b")(x)]}
    return keras.Model({"image": image, "words": words}, outputs)


def nested():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="deep"), layers.ReLU()], name="inner"
    )
    inputs = keras.Input((4,))
    middle = keras.Model(
        inputs, layers.Dense(4, name="after")(inner(inputs)), name="mid"
    )
    inputs = keras.Input((4,))
    x = layers.Add()([middle(inputs), middle(middle(inputs))])
    return keras.Model(inputs, layers.Dense(2, name="last")(x))


def shared_layer():
    shared = layers.Dense(4, activation="tanh", name="shared")
    left, right = keras.Input((4,)), keras.Input((4,))
    x = layers.Concatenate()([shared(left), shared(shared(right))])
    return keras.Model([left, right], layers.Dense(2)(x))


def with_a_lambda():
    inputs = keras.Input((5,))
    x = layers.Lambda(lambda x, factor: x * factor, arguments={"factor": 3.0})(inputs)
    return keras.Model(inputs, layers.Dense(2)(ops.exp(-ops.abs(x))))


def on_sequence(*stack):
    return lambda: keras.Sequential(
        [keras.Input((4, 5)), *(make() for make in stack), layers.Dense(2)]
    )


def on_vector(*stack):
    return lambda: keras.Sequential([keras.Input((5,)), *(make() for make in stack)])


def stacked_cells():
    return layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True)


def transformer():
    words = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 8)(words)
    x = custom_layers.TransformerBlock(2, 8)(x)
    return keras.Model(words, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def subclassed():
    model = custom_layers.Subclassed()
    model(np.ones((2, 5), "float32"))
    return model


def subclassed_inside():
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(2)(custom_layers.Subclassed()(inputs)))


def mixed_float16():
    inputs = keras.Input((5,))
    x = layers.Dense(4, activation="relu", dtype="mixed_float16")(inputs)
    x = custom_layers.MadeInInit(3, dtype="mixed_float16")(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x))


# name -> (model, number of quantized layers)
ZOO = {
    "sequential": (sequential, 3),
    "built by a call": (built_by_a_call, 2),
    "multi-input/output": (multi_input_output, 5),
    "nested": (nested, 3),
    "shared layer": (shared_layer, 2),
    "lambda": (with_a_lambda, 1),
    "made in init": (on_vector(lambda: custom_layers.MadeInInit(3)), 1),
    "without build": (on_vector(lambda: custom_layers.WithoutBuild(3)), 4),
    "made in build": (on_vector(lambda: custom_layers.MadeInBuild(3)), 2),
    "bidirectional": (
        on_sequence(
            lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True))
        ),
        3,
    ),
    "two directions": (
        on_sequence(
            lambda: layers.Bidirectional(
                layers.GRU(3), backward_layer=layers.LSTM(3, go_backwards=True)
            )
        ),
        3,
    ),
    "time distributed": (
        on_sequence(
            lambda: layers.TimeDistributed(layers.Dense(3)),
            lambda: layers.TimeDistributed(custom_layers.MadeInInit(3)),
        ),
        3,
    ),
    "stacked cells": (on_sequence(stacked_cells), 3),
    "transformer": (transformer, 8),
    "subclassed": (subclassed, 4),
    "functional subclass": (custom_layers.FunctionalSubclass, 2),
    "subclassed inside": (subclassed_inside, 5),
    "mixed_float16": (mixed_float16, 3),
}
every_model = pytest.mark.parametrize("name", ZOO)


def build(name):
    model = ZOO[name][0]()
    randomize(model)
    return model


def randomize(model, seed=1):
    """Gives all state (of batch normalization too) values of its own."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / 2)
    for variable in model.non_trainable_variables:
        if "moving" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def data(model, count=3, seed=2):
    rng = np.random.default_rng(seed)

    def array(tensor):
        shape = (count, *tensor.shape[1:])
        if keras.backend.standardize_dtype(tensor.dtype) == "int32":
            return rng.integers(0, 9, shape).astype("int32")
        return rng.normal(size=shape).astype("float32")

    tensors = getattr(model, "inputs", None)
    if not tensors:
        return rng.normal(size=(count, 5)).astype("float32")
    if {tensor.name for tensor in tensors} == {"image", "words"}:
        return {tensor.name: array(tensor) for tensor in tensors}
    arrays = [array(tensor) for tensor in tensors]
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model, x, **kwargs):
    return [numpy(tensor) for tensor in keras.tree.flatten(model(x, **kwargs))]


def assert_same(left, right, **tolerance):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


@functools.cache
def triple(name):
    """A float model, its quantized form and what is stripped of that again."""
    model = build(name)
    quantized = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    keras_sq.set_ratio(quantized, 0.5)
    return model, quantized, keras_sq.strip_quantization(quantized)


def values(model):
    """All state that Keras saves: not that of Dropout's random generators."""
    return [
        numpy(variable)
        for variable in model.variables
        if "seed_generator" not in variable.path or "mask_seed" in variable.path
    ]


@every_model
def test_copy_computes_what_the_original_does_at_ratio_zero(name):
    model = build(name)
    quantized = keras_sq.quantize_model(
        model, "ternary", inference="hybrid", seed=0, overrides={}
    )
    assert len(quantized_layers(quantized)) == ZOO[name][1]
    keras_sq.set_ratio(quantized, 0.0)
    x = data(model)
    assert_same(outputs(quantized, x), outputs(model, x))
    keras_sq.set_ratio(quantized, 1.0)
    changed = outputs(quantized, x)
    assert not all(map(np.array_equal, changed, outputs(model, x)))
    # With the default, inference does not depend on the ratio.
    deployed = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    keras_sq.set_ratio(deployed, 0.0)
    assert_same(outputs(deployed, x), changed)


@every_model
def test_original_is_left_alone_and_names_carry_over(name):
    model = build(name)
    before = values(model)
    classes = [type(layer) for _, layer in layer_paths(model)]
    quantized = keras_sq.quantize_model(model, "binary", overrides={})
    assert [type(layer) for _, layer in layer_paths(model)] == classes
    assert_same(values(model), before)
    assert quantized_layers(model) == []

    assert quantized.name == model.name
    assert [path for path, _ in layer_paths(quantized)] == [
        path for path, _ in layer_paths(model)
    ]
    # The same trainable variables, in the same order, and none shared.
    assert_same(
        [numpy(v) for v in quantized.trainable_variables],
        [numpy(v) for v in model.trainable_variables],
    )
    assert not {id(v) for v in model.variables} & {id(v) for v in quantized.variables}

    # And it still trains.
    x = data(model)

    def loss():
        return sum(ops.sum(y) for y in keras.tree.flatten(model(x, training=True)))

    _, found = gradients(loss, variables=model.trainable_variables)
    assert all(gradient is not None for gradient in found)


@every_model
def test_stripped_model_is_plain_and_computes_the_same(name):
    model, quantized, plain = triple(name)
    assert "keras_sq" not in json.dumps(keras.saving.serialize_keras_object(plain))
    pairs = zip(layer_paths(plain), layer_paths(model), strict=True)
    for (path, layer), (float_path, float_layer) in pairs:
        assert path == float_path
        assert type(layer) is type(float_layer)
    x = data(model)
    assert_same(outputs(plain, x), outputs(quantized, x), rtol=1e-6, atol=1e-6)
    assert [v.name for v in plain.variables] == [v.name for v in model.variables]


def test_stripping_leaves_the_quantized_model_alone():
    _, quantized, _ = triple("transformer")
    before = values(quantized)
    plain = keras_sq.strip_quantization(quantized)
    for variable in plain.variables:
        variable.assign(ops.zeros(variable.shape, variable.dtype))
    assert_same(values(quantized), before)


@every_model
def test_codes_times_scale_is_the_stripped_kernel(name):
    _, quantized, plain = triple(name)
    codes = keras_sq.get_codes(quantized)
    expected = {
        f"{path}/{weight}"
        for path, layer in quantized_layers(quantized)
        for weight in layer.quantized_weights
    }
    assert set(codes) == expected
    held = dict(layer_paths(plain))
    for path, kernel in codes.items():
        layer, _, weight = path.rpartition("/")
        assert kernel.codes.dtype == np.int8
        assert set(np.unique(kernel.codes)) <= {-1, 0, 1}
        stripped = numpy(getattr(held[layer], weight))
        np.testing.assert_array_equal(kernel.kernel, stripped)
        np.testing.assert_array_equal(kernel.codes * kernel.scale, stripped)


def test_codes_of_several_bits():
    quantized = keras_sq.quantize_model(build("sequential"), "uniform-4", overrides={})
    plain = keras_sq.strip_quantization(quantized)
    for path, kernel in keras_sq.get_codes(quantized).items():
        assert np.abs(kernel.codes).max() == 7
        stripped = numpy(plain.get_layer(path.split("/")[0]).kernel)
        np.testing.assert_array_equal(kernel.kernel, stripped)


def test_binary_codes_are_signs():
    quantized = keras_sq.quantize_model(build("sequential"), "binary", overrides={})
    for kernel in keras_sq.get_codes(quantized).values():
        assert set(np.unique(kernel.codes)) == {-1, 1}
    with pytest.raises(ValueError, match="No quantized layer.*quantize_model"):
        keras_sq.get_codes(build("sequential"))


# A fresh process.


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Saves all models, loads them in one new process, and returns its word."""
    folder = tmp_path_factory.mktemp("fresh")
    expected = {}
    for index, name in enumerate(ZOO):
        _, quantized, plain = triple(name)
        quantized.save(folder / f"quantized-{index}.keras")
        plain.save(folder / f"plain-{index}.keras")
        x = data(quantized)
        flat = keras.tree.flatten(x)
        np.savez(folder / f"x-{index}.npz", *flat)
        expected[name] = outputs(quantized, x)
    script = textwrap.dedent(
        """
        import json, pathlib, sys
        import keras, numpy as np
        import custom_layers

        folder = pathlib.Path(sys.argv[1])
        structures = json.loads(sys.argv[2])
        words = {}

        def look(kind, index):
            try:
                model = keras.models.load_model(
                    folder / f"{kind}-{index}.keras", safe_mode=False
                )
                flat = list(np.load(folder / f"x-{index}.npz").values())
                x = keras.tree.pack_sequence_as(structures[index], flat)
                y = [keras.ops.convert_to_numpy(t).astype("float32") for t in
                     keras.tree.flatten(model(x))]
                np.savez(folder / f"{kind}-y-{index}.npz", *y)
                classes = sorted(
                    {type(layer).__name__ for layer in model._flatten_layers()}
                )
                return ["loaded", classes]
            except Exception as error:
                return [repr(error), []]

        for index in range(len(structures)):
            words[f"plain-{index}"] = look("plain", index)
        words["imported"] = "keras_sq" in sys.modules
        import keras_sq
        for index in range(len(structures)):
            words[f"quantized-{index}"] = look("quantized", index)
        (folder / "words.json").write_text(json.dumps(words))
        """
    )
    structures = []
    for name in ZOO:
        structure = data(triple(name)[0])
        structures.append(keras.tree.map_structure(lambda _: 0, structure))
    tests = pathlib.Path(__file__).parents[1]
    path = f"{tests / 'support'}:{tests.parent}"
    environment = {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [sys.executable, "-c", script, str(folder), json.dumps(structures)],
        check=True,
        env=os.environ | environment,
        capture_output=True,
        timeout=300,
    )
    return folder, json.loads((folder / "words.json").read_text()), expected


@pytest.mark.parametrize("kind", ["plain", "quantized"])
@every_model
def test_saved_model_loads_in_a_fresh_process(name, kind, fresh):
    folder, words, expected = fresh
    assert words["imported"] is False
    index = list(ZOO).index(name)
    word, classes = words[f"{kind}-{index}"]
    assert word == "loaded"
    arrays = list(np.load(folder / f"{kind}-y-{index}.npz").values())
    assert_same(arrays, expected[name], rtol=1e-5, atol=1e-5)
    assert any(name.startswith("SQ") for name in classes) == (kind == "quantized")


@every_model
def test_loaded_model_is_still_quantized(name, fresh):
    _, quantized, plain = triple(name)
    path = fresh[0] / f"quantized-{list(ZOO).index(name)}.keras"
    loaded = keras.models.load_model(path, safe_mode=False)
    assert_same(values(loaded), values(quantized))
    assert len(quantized_layers(loaded)) == ZOO[name][1]
    assert keras_sq.get_ratio(loaded) == 0.5
    # Loaded, it can be stripped as well.
    x = data(quantized)
    again = keras_sq.strip_quantization(loaded)
    assert_same(outputs(again, x), outputs(plain, x))


def test_weights_file_restores_a_model_made_anew(tmp_path):
    for name in ("sequential", "transformer", "subclassed"):
        quantized = keras_sq.quantize_model(
            build(name), "ternary", seed=0, overrides={}
        )
        keras_sq.set_ratio(quantized, 0.5)
        quantized.save_weights(tmp_path / "model.weights.h5")
        other = keras_sq.quantize_model(ZOO[name][0](), "ternary", seed=1, overrides={})
        other.load_weights(tmp_path / "model.weights.h5")
        assert_same(values(other), values(quantized))


# What carries over.


def test_states_of_normalization_and_dropout_carry_over():
    model = build("sequential")
    x = data(model)
    model(x, training=True)
    quantized = keras_sq.quantize_model(model, inference="hybrid", overrides={})
    plain = keras_sq.strip_quantization(quantized)
    keras_sq.set_ratio(quantized, 0.0)
    norm = [layer for layer in model.layers if "norm" in layer.name][0].name
    for other in (quantized, plain):
        assert_same(values(other.get_layer(norm)), values(model.get_layer(norm)))
    # The same dropout is drawn next.
    assert_same(outputs(quantized, x, training=True), outputs(model, x, training=True))
    (seed,) = [v for v in model.variables if "seed" in v.path]
    (other,) = [v for v in plain.variables if "seed" in v.path]
    assert numpy(other).tolist() != numpy(seed).tolist()  # One draw behind.
    plain(x, training=True)
    assert numpy(other).tolist() == numpy(seed).tolist()


def test_frozen_layers_stay_frozen():
    model = build("sequential")
    model.get_layer("conv").trainable = False
    quantized = keras_sq.quantize_model(model, overrides={})
    plain = keras_sq.strip_quantization(quantized)
    for other in (quantized, plain):
        assert not other.get_layer("conv").trainable
        assert len(other.trainable_variables) == len(model.trainable_variables)


def test_shared_layers_stay_shared():
    quantized = keras_sq.quantize_model(build("shared layer"), overrides={})
    plain = keras_sq.strip_quantization(quantized)
    assert len(plain.get_layer("shared")._inbound_nodes) == 3
    assert len(quantized.variables) == 4 + 2 * 3  # Two masks, ratios and seeds.
    quantized = keras_sq.quantize_model(build("nested"), overrides={})
    paths = [path for path, _ in quantized_layers(quantized)]
    assert sorted(paths) == ["last", "mid/after", "mid/inner/deep"]


def test_gradients_reach_layers_inside_containers():
    for name in ("without build", "transformer", "subclassed", "stacked cells"):
        model = keras_sq.quantize_model(build(name), "binary", overrides={})
        keras_sq.set_ratio(model, 0.5)
        x = data(model)

        def loss(model=model, x=x):
            outputs = keras.tree.flatten(model(x, training=True))
            return sum(ops.sum(ops.square(y)) for y in outputs)

        for gradient in gradients(loss, variables=model.trainable_variables)[1]:
            assert gradient is not None
            assert np.isfinite(numpy(gradient)).all()


def test_seed_decides_all_masks():
    def masks(seed):
        model = keras_sq.quantize_model(
            build("transformer"), "binary", seed=seed, overrides={}
        )
        keras_sq.set_ratio(model, 0.5)
        return [
            numpy(layer.mask(weight)).reshape(-1).tolist()
            for _, layer in quantized_layers(model)
            for weight in layer.quantized_weights
        ]

    first = masks(0)
    assert masks(0) == first
    assert masks(1) != first
    # Layers alike draw different masks.
    assert len({str(mask) for mask in first}) > 4


@pytest.mark.parametrize(
    "make, count",
    [
        (lambda: keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None), 53),
        pytest.param(
            lambda: keras.applications.ResNet50V2(
                weights=None, input_shape=(32, 32, 3), classes=10
            ),
            54,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["MobileNetV2", "ResNet50V2"],
)
def test_applications(make, count):
    model = make()
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    quantized = keras_sq.quantize_model(
        model, "binary", skip="predictions", inference="hybrid", seed=0, overrides={}
    )
    assert len(quantized_layers(quantized)) == count - 1
    keras_sq.set_ratio(quantized, 0.0)
    assert_same(outputs(quantized, x), outputs(model, x))
    keras_sq.set_ratio(quantized, 1.0)
    plain = keras_sq.strip_quantization(quantized)
    assert_same(outputs(plain, x), outputs(quantized, x), rtol=1e-5, atol=1e-6)


# Choosing layers.


def chosen(model, **arguments):
    quantized = keras_sq.quantize_model(
        model, "ternary", **{"overrides": {}, **arguments}
    )
    return {
        path: repr(layer.quantization_settings.kernel_quantizer).split("(")[0]
        for path, layer in quantized_layers(quantized)
    }


@pytest.mark.parametrize(
    "key, skipped",
    [
        ("logits", {"logits"}),
        ("de*", {"depthwise"}),
        (layers.Conv2D, {"conv"}),
        (lambda layer: layer.name == "conv", {"conv"}),
        (["conv", layers.Dense], {"conv", "logits"}),
        ({"conv", "logits"}, {"conv", "logits"}),
    ],
    ids=["name", "pattern", "class", "predicate", "list", "set"],
)
def test_skip_by_every_kind_of_key(key, skipped):
    model = sequential()
    assert set(chosen(model, skip=key)) == {"conv", "depthwise", "logits"} - skipped
    if not isinstance(key, list | set):
        overridden = chosen(model, overrides={key: "binary"})
        for path, quantizer in overridden.items():
            expected = "BinaryQuantizer" if path in skipped else "TernaryQuantizer"
            assert quantizer == expected
        dropped = chosen(model, overrides={key: None})
        assert set(dropped) == {"conv", "depthwise", "logits"} - skipped


def kept_float(model):
    report = model.quantization_report
    return {o.path: o.reason for o in report if o.quantizer is None}


def test_skip_by_place():
    model = keras_sq.models.get("resnet8", (32, 32, 3), 10)
    assert kept_float(keras_sq.quantize_model(model, "binary", overrides={})) == {}
    quantized = keras_sq.quantize_model(
        model, "binary", skip=["@first", "@last", "@downsampling"], overrides={}
    )
    assert kept_float(quantized) == {
        "conv1": "named by skip='@first'",
        "block2_shortcut": "named by skip='@downsampling'",
        "block3_shortcut": "named by skip='@downsampling'",
        "logits": "named by skip='@last'",
    }
    overridden = keras_sq.quantize_model(
        model, "binary", overrides={"@last": "uniform-8"}
    )
    assert overridden.quantization_report[-1].quantizer.startswith("UniformQuantizer")


def test_skip_of_down_sampling_layers_may_find_none():
    model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
    quantized = keras_sq.quantize_model(
        model, "binary", skip="@downsampling", overrides={}
    )
    assert kept_float(quantized) == {}


def test_skip_by_unknown_place():
    model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
    with pytest.raises(
        ValueError, match="'@first', '@last', '@downsampling', '@small'.*'@frist'"
    ):
        keras_sq.quantize_model(model, "binary", skip="@frist", overrides={})


def quantizers_of(model):
    return {o.path: o.quantizer for o in model.quantization_report}


def test_small_layers_have_four_bits_by_default():
    """Three tenths of 77,360 weights; layers of one size go together."""
    model = keras_sq.models.get("resnet8", (32, 32, 3), 10)
    found = quantizers_of(keras_sq.quantize_model(model, "binary"))
    small = {path for path, name in found.items() if "Uniform" in name}
    # 432, 512, 640, 2,048, two of 2,304, 4,608 and 9,216; the next has 18,432.
    assert small == {
        "conv1",
        "block1_conv1",
        "block1_conv2",
        "block2_conv1",
        "block2_conv2",
        "block2_shortcut",
        "block3_shortcut",
        "logits",
    }
    assert {found[path] for path in small} == {
        repr(keras_sq.quantizers.UniformQuantizer(4, num_levels=13))
    }
    assert {found[path] for path in set(found) - small} == {"BinaryQuantizer()"}


def test_layers_of_one_size_are_small_together_or_not_at_all():
    def model(branches):
        inputs = x = keras.Input((10,))
        for number in range(branches):
            x = keras.layers.Dense(10, name=f"equal{number}")(x)
        x = keras.layers.Dense(40, name="large")(x)
        return keras.Model(inputs, x)

    assert "Uniform" in quantizers_of(keras_sq.quantize_model(model(1)))["equal0"]
    # 200 of 600 weights are more than three tenths.
    found = quantizers_of(keras_sq.quantize_model(model(2)))
    assert {name.split("(")[0] for name in found.values()} == {"TernaryQuantizer"}


@pytest.mark.parametrize(
    "settings",
    [
        {"overrides": {}},
        {"kernel_quantizer": "uniform-4"},
        {"kernel_quantizer": "uniform-8"},
        {"kernel_quantizer": "binary", "input_quantizer": "binary", "skip": ()},
        {"overrides": {"logits": "ternary"}},
    ],
)
def test_small_layers_are_like_the_others_where(settings):
    model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
    found = quantizers_of(keras_sq.quantize_model(model, **settings))
    assert len({name.split("(")[0] for name in found.values()}) == 1


def test_small_is_a_place_like_others():
    model = keras_sq.models.get("resnet8", (32, 32, 3), 10)
    floats = kept_float(keras_sq.quantize_model(model, "binary", skip="@small"))
    assert set(floats.values()) == {"named by skip='@small'"}
    assert len(floats) == 8
    found = quantizers_of(
        keras_sq.quantize_model(model, overrides={"@small": "binary", "conv1": None})
    )
    assert found["conv1"] is None and found["logits"] == "BinaryQuantizer()"
    assert "Ternary" in found["block3_conv2"]


def test_a_model_of_one_layer_has_no_small_one():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    (found,) = quantizers_of(keras_sq.quantize_model(model, "binary")).values()
    assert found == "BinaryQuantizer()"


def test_first_and_last_stay_float_by_default_where_inputs_are_quantized():
    model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
    quantized = keras_sq.quantize_model(model, "lq-2", input_quantizer="lq-2")
    why = "by default where inputs are quantized"
    assert kept_float(quantized) == {
        "conv1": f"'@first', {why}",
        "logits": f"'@last', {why}",
    }
    shown = str(keras_sq.summary(quantized, print_fn=lambda text: None))
    assert f"'@first', {why}" in shown and f"'@last', {why}" in shown


def test_default_for_first_and_last_gives_way_to_what_is_said():
    model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
    everything = keras_sq.quantize_model(model, "lq-2", input_quantizer="lq-2", skip=())
    assert kept_float(everything) == {}
    overridden = keras_sq.quantize_model(
        model,
        "lq-2",
        input_quantizer="lq-2",
        overrides={"logits": {"kernel_quantizer": "uniform-8"}},
    )
    assert list(kept_float(overridden)) == ["conv1"]


def test_skip_by_path_and_by_a_layer_that_holds_others():
    model = nested()
    assert set(chosen(model, skip="mid/inner/deep")) == {"mid/after", "last"}
    assert set(chosen(model, skip="mid/*")) == {"last"}
    assert set(chosen(model, skip="inner")) == {"mid/after", "last"}
    assert set(chosen(model, skip=["mid"])) == {"last"}
    paths = set(chosen(transformer(), skip=layers.MultiHeadAttention))
    assert not any("attention" in path for path in paths)
    assert len(paths) == 4


def test_overrides_take_quantizers_dicts_and_settings():
    model = sequential()
    quantized = keras_sq.quantize_model(
        model,
        "ternary",
        probability="softmax",
        overrides={
            "*": {"granularity": "element"},
            "conv": keras_sq.quantizers.UniformQuantizer(4),
            "logits": {"kernel_quantizer": "binary", "inference": "hybrid"},
            "depthwise": Settings("uniform-8"),
        },
    )
    settings = {
        path: x.quantization_settings for path, x in quantized_layers(quantized)
    }
    base = Settings("ternary", probability="softmax")
    assert settings == {  # The last match wins.
        "conv": base.replace(kernel_quantizer="uniform-4"),
        "depthwise": Settings("uniform-8"),
        "logits": base.replace(kernel_quantizer="binary", inference="hybrid"),
    }


def test_report_says_what_happened_to_every_layer_and_why():
    class Own(layers.Dense):
        def call(self, x, training=None):
            return 2 * super().call(x)

    class Table(layers.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(shape=(input_shape[-1], 4), name="table")
            self.token = self.add_weight(shape=(1, 1, 4), name="token")

        def call(self, x):
            return x @ self.table + self.token

    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            Own(4, name="own"),
            Table(name="table"),
            layers.GroupNormalization(2),
            layers.Dense(4, name="skipped"),
            layers.Dense(4, name="dropped"),
            layers.Dense(4, name="quantized"),
        ]
    )
    quantized = keras_sq.quantize_model(
        model, "binary", skip="skip*", overrides={"dropped": None}
    )
    report = {entry.path: entry for entry in quantized.quantization_report}
    assert set(report) == {"own", "table", "skipped", "dropped", "quantized"}
    assert report["quantized"].quantizer == "BinaryQuantizer()"
    assert report["quantized"].reason == ""
    assert report["quantized"].layer_type == "Dense"
    assert report["own"].quantizer is None
    assert "subclass of Dense with `call` of its own" in report["own"].reason
    assert "keras_sq.register" in report["own"].reason
    assert "no quantized class for Table (table 4 x 4)" in report["table"].reason
    assert "skip='skip*'" in report["skipped"].reason
    assert "overrides['dropped']" in report["dropped"].reason


# Bad input: a clear error, and nothing changed.


def bad(match, error=ValueError, **arguments):
    return pytest.param(arguments, error, match, id=match[:40])


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        bad(
            "'binary', 'ternary'.*Received.*'ternery'.*Did you mean 'ternary'",
            kernel_quantizer="ternery",
        ),
        bad("quantizer must be", TypeError, kernel_quantizer=3),
        bad("`granularity` must be one of 'filter', 'element'", granularity="row"),
        bad("`probability` must be one of", probability="uniform"),
        bad("`selection` must be one of", selection="random"),
        bad("`draw` must be one of", draw="code"),
        bad("takes no other probability", draw="released", probability="softmax"),
        bad("`quantized_gradient` must be one of", quantized_gradient="none"),
        bad("`full_precision` must be one of 'identity'", full_precision="none"),
        bad("`input_granularity` must be one of 'all'", input_granularity="filter"),
        bad("`inference` must be one of", inference="float"),
        bad("`seed` must be an integer", TypeError, seed=0.5),
        bad("`seed` must be at least 0", seed=-1),
        bad(
            "`skip` names 'logit', which matches no layer.*Did you mean 'logits'",
            skip="logit",
        ),
        bad("`skip` names.*GRU.*matches no layer", skip=layers.GRU),
        bad("`overrides` names 'cnov'.*Did you mean 'conv'", overrides={"cnov": None}),
        bad("`skip` must hold names", TypeError, skip=[3]),
        bad("`skip` must be a layer name", TypeError, skip=3),
        bad("`overrides` must be a dict", TypeError, overrides=["conv"]),
        bad(
            "Unknown quantization setting 'granularty'.*Did you mean 'granularity'",
            overrides={"conv": {"granularty": "element"}},
        ),
        bad("'sign'.*Did you mean 'sign'", overrides={"conv": "signs"}),
        bad(
            "nothing to quantize.*'conv': named by skip",
            skip=lambda layer: True,
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match):
    model = build("sequential")
    before = values(model)
    with pytest.raises(error, match=match):
        keras_sq.quantize_model(model, **{"overrides": {}, **arguments})
    assert_same(values(model), before)
    assert quantized_layers(model) == []


def test_bad_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model.*of type str"):
        keras_sq.quantize_model("model.keras", overrides={})
    unbuilt = keras.Sequential([layers.Dense(2)], name="unbuilt")
    with pytest.raises(ValueError, match="'unbuilt' is not built.*Call it on a batch"):
        keras_sq.quantize_model(unbuilt, overrides={})
    with pytest.raises(ValueError, match="'unbuilt' is not built"):
        keras_sq.strip_quantization(unbuilt)
    nothing = keras.Sequential([keras.Input((3,)), layers.ReLU()], name="empty")
    with pytest.raises(
        ValueError, match="'empty' has nothing to quantize.*Covered are"
    ):
        keras_sq.quantize_model(nothing, overrides={})
    with pytest.raises(ValueError, match="'empty' has no quantized layer"):
        keras_sq.strip_quantization(nothing)
    quantized = keras_sq.quantize_model(build("nested"), overrides={})
    with pytest.raises(ValueError, match="quantized already.*strip_quantization"):
        keras_sq.quantize_model(quantized, overrides={})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kernel_that_is_not_finite_is_refused(value):
    model = build("nested")
    kernel = dict(layer_paths(model))["mid/inner/deep"].kernel
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(
        ValueError, match="'kernel' of layer 'mid/inner/deep' holds NaN"
    ):
        keras_sq.quantize_model(model, overrides={})
    # Skipped, it is nobody's business.
    keras_sq.quantize_model(model, skip="mid/inner/deep", overrides={})


def test_layers_that_keras_quantized_or_extended_are_refused():
    model = build("built by a call")
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="has LoRA weights.*skip the layer"):
        keras_sq.quantize_model(model, overrides={})
    model = build("built by a call")
    model.layers[1].quantize("int8")
    with pytest.raises(
        ValueError, match=r"quantized by Keras \(int8\).*skip the layer"
    ):
        keras_sq.quantize_model(model, overrides={})


def test_layers_without_a_configuration_are_named():
    class NoConfig(layers.Layer):
        def __init__(self, units):
            super().__init__(name="stubborn")
            self.inner = layers.Dense(units)

        def build(self, input_shape):
            self.inner.build(input_shape)

        def call(self, x):
            return self.inner(x)

    model = keras.Sequential([keras.Input((3,)), NoConfig(2)])
    with pytest.raises(ValueError, match="'stubborn' .of type NoConfig.*get_config"):
        keras_sq.quantize_model(model, overrides={})


def test_configuration_that_forgets_an_argument_is_noticed():
    class Forgetful(layers.Layer):
        def __init__(self, units=2, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(units)

        def build(self, input_shape):
            self.inner.build(input_shape)

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return {"name": self.name}

    model = keras.Sequential([keras.Input((3,)), Forgetful(5, name="forgetful")])
    with pytest.raises(
        ValueError, match="that holds it, has other variables.*get_config"
    ):
        keras_sq.quantize_model(model, overrides={})


def test_two_processes_worth_of_names_do_not_matter():
    """A container made anew under other automatic names is the same."""
    quantized = keras_sq.quantize_model(
        build("without build"), "binary", seed=0, overrides={}
    )
    config = quantized.get_config()
    custom_layers.WithoutBuild(3)  # Uses up names.
    copy = keras.Sequential.from_config(config)
    copy.set_weights(quantized.get_weights())
    x = data(quantized)
    assert_same(outputs(copy, x), outputs(quantized, x))
    assert sq.quantized_layers(copy)


def test_container_whose_class_has_changed_says_so():
    quantized = keras_sq.quantize_model(
        build("without build"), "binary", seed=0, overrides={}
    )
    config = quantized.get_config()
    inside = config["layers"][1]["config"]["quantized_children"]
    inside["7:Conv2D"] = next(iter(inside.values()))
    with pytest.raises(ValueError, match="holds no layer '7:Conv2D'.*changed"):
        keras.Sequential.from_config(config)


def test_training_one_of_several_models_leaves_the_others_alone():
    # On JAX a training step overwrites the arrays of its model's variables.
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]
    )
    quantized = keras_sq.quantize_model(model, "binary", skip=(), seed=0, overrides={})
    keras_sq.set_ratio(quantized, 1.0)
    plain = keras_sq.strip_quantization(quantized)
    models = [model, quantized, plain]
    kept = [one.get_weights() for one in models]
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    for index, one in enumerate(models):
        one.compile(keras.optimizers.SGD(0.1), "mse")
        one.fit(x, y, epochs=2, batch_size=4, verbose=0)
        for other, weights in zip(models[index + 1 :], kept[index + 1 :], strict=True):
            for now, before in zip(other.get_weights(), weights, strict=True):
                np.testing.assert_array_equal(now, before)
        assert not np.array_equal(one.get_weights()[0], kept[index][0])
