"""Files of models with quantized activations: the levels of Keras, in every form."""

import functools
import json
import zlib

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.conversion import strip
from keras_sq.export import ExportError
from keras_sq.export import report as reporting
from keras_sq.export.activations import forms as activation_forms
from keras_sq.export.activations import levels as activations
from keras_sq.export.activations import ranges as activation_ranges
from keras_sq.export.conversion import inputs
from keras_sq.export.tflite import flatbuffer, runtime
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile, indices
from keras_sq.export.verification import activations as activation_checks
from keras_sq.export.verification import differences
from keras_sq.layers import (
    BinaryActivation,
    LearnedActivationQuantizer,
    UniformActivationQuantizer,
)
from keras_sq.quantizers.activations import BinaryRule, LearnedRule, UniformRule

FLOAT_TARGETS = ("float", "fast", "int4", "int2", "small")


def data(*shape, count=48, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def untrained(model, path, target="float", **kwargs):
    return keras_sq.export(model, path, target=target, allow_untrained=True, **kwargs)


def stored(report):
    return {entry.path: entry.stored_as for entry in report.activations}


def learned(model, x):
    """Moves what the activation quantizers learn towards the activations."""
    keras_sq.set_ratio(model, 1.0)
    model(x, training=True)
    return model


def awake(model, x, clip=1.0):
    """Gives learned clips a value that small activations reach.

    Without, the outputs of a small new network are zeros, or what is left of terms that
    cancel, and any file would agree.
    """
    for _, layer in keras_sq.layers.quantized_layers(model):
        if isinstance(layer.input_rule, UniformRule):
            layer.input_state()[0].assign(clip)
    spread = np.std(keras.ops.convert_to_numpy(model(x, training=False)), axis=0)
    assert np.all(spread > 1e-2)
    return model


def operators(path):
    file = TFLiteFile(path.read_bytes())
    return [file.operator_name(x) for graph in file.subgraphs for x in graph.operators]


@functools.cache  # Exports leave it alone.
def cnn(rule):
    """Normalization, a shared producer, pooling, separable, dense, stand-alone."""
    keras.utils.set_random_seed(1)
    x = image = keras.Input((10, 10, 4), name="image")
    x = kl.Conv2D(12, 3, padding="same", use_bias=False, name="first")(x)
    x = shortcut = kl.ReLU()(kl.BatchNormalization()(x))
    x = kl.Conv2D(12, 3, padding="same", use_bias=False, name="inner")(x)
    x = kl.ReLU()(kl.BatchNormalization()(x) + shortcut)
    x = kl.SeparableConv2D(16, 3, name="separable")(x)
    x = kl.MaxPooling2D()(kl.ReLU()(x))
    x = kl.Conv2D(16, 3, name="pooled")(x)
    x = BinaryActivation(name="sign")(kl.BatchNormalization()(x))
    x = kl.Dense(12, activation="relu", name="dense")(kl.Flatten()(x))
    model = keras.Model(image, kl.Dense(5, name="logits")(x), name="cnn")
    model = keras_sq.quantize_model(
        model, "ternary", input_quantizer=rule, skip=["first", "logits"], seed=0
    )
    for _, layer in keras_sq.layers.quantized_layers(model):
        if "uniform" in rule and layer.input_rule:
            layer.input_state()[0].assign(1.5)  # The clip.
    return learned(model, data(10, 10, 4))


PATHS = ["inner/input", "separable/input", "pooled/input", "sign", "dense/input"]


# Thresholds.

RULES = [
    (BinaryRule(), ()),
    (UniformRule(1), (6.0,)),
    (UniformRule(3, clip=0.7, learned=False), ()),
    (UniformRule(4), (1.7,)),
    (UniformRule(8), (2.3,)),
    (LearnedRule(1), ([0.8], 1.0)),
    (LearnedRule(2), ([0.3, 1.1], 1.0)),
    (LearnedRule(2), ([-0.3, 1.1], 1.0)),
    (LearnedRule(2), ([0.5, 0.5], 1.0)),  # Two levels are the same.
    (LearnedRule(2), ([0.0, 0.0], 1.0)),  # All are.
    (LearnedRule(6), (np.linspace(0.1, 0.9, 6) ** 2, 1.0)),
    (LearnedRule(8), (np.linspace(0.1, 0.9, 8) ** 2, 1.0)),
]
IDS = [f"{rule.name}-{number}" for number, (rule, _) in enumerate(RULES)]


def levels_of(rule, state):
    arrays = [np.asarray(value, "float32") for value in state]
    return activations.activation_levels("layer", rule, arrays, 0)


@pytest.mark.parametrize(("rule", "state"), RULES, ids=IDS)
def test_thresholds_are_the_first_float_of_each_level(rule, state):
    found = levels_of(rule, state)
    thresholds = found.thresholds
    with np.errstate(over="ignore"):
        below = np.nextafter(thresholds, np.float32(-np.inf))
        above = np.nextafter(thresholds, np.float32(np.inf))
    wide = data(2000)[0] * 3
    ties = np.round(wide * 20) / 20
    ends = np.array([0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], "float32")
    assert np.all(np.diff(thresholds) >= 0)
    x = np.concatenate([thresholds, below, above, wide, ties, ends])
    if state and not np.any(state[0]):
        x = x[np.abs(x) < 3e38]  # Nothing reaches the upper one of equal levels.
    ranks = np.searchsorted(thresholds, x, side="right")
    expected = keras.ops.convert_to_numpy(
        rule.forward(x.astype("float32"), *(np.asarray(s, "float32") for s in state))
    )
    np.testing.assert_array_equal(found.levels[ranks], expected)


def test_halves_of_a_uniform_rule_round_to_even():
    found = levels_of(UniformRule(3, clip=7.0, learned=False), ())
    ranks = np.searchsorted(found.thresholds, np.arange(0.5, 7.0), side="right")
    assert ranks.tolist() == [0, 2, 2, 4, 4, 6, 6]


def test_halves_of_a_learned_rule_go_down():
    found = levels_of(LearnedRule(2), ([1.0, 2.0], 1.0))
    ranks = np.searchsorted(found.thresholds, [0.5, 1.5, 2.5], side="right")
    assert ranks.tolist() == [0, 1, 2]


def test_which_levels_are_a_grid():
    grids = [levels_of(rule, state).is_grid for rule, state in RULES]
    assert grids == [False] + [True] * 5 + [False] * 2 + [True] + [False] * 3
    assert levels_of(LearnedRule(2), ([1.0, 2.0], 1.0)).is_grid


# Float activations.


@pytest.mark.parametrize(("rule", "state"), RULES, ids=IDS)
def test_file_gives_the_levels_to_the_bit(rule, state, tmp_path):
    layer = {
        BinaryRule: lambda: BinaryActivation(name="only"),
        LearnedRule: lambda: LearnedActivationQuantizer(rule.num_bits, name="only"),
        UniformRule: lambda: UniformActivationQuantizer(
            rule.num_bits, rule.clip, rule.learned, name="only"
        ),
    }[type(rule)]()
    model = keras.Sequential([keras.Input((300,)), layer])
    for variable, value in zip(layer.rule_state(), state, strict=True):
        variable.assign(value)
    path = tmp_path / "m.tflite"
    report = keras_sq.export(model, path)
    # Steps of 1/20: zeros and halves between levels among them.
    x = np.round(data(300, count=8) * 20) / np.float32(20)
    for delegates in (True, False):
        runner = runtime.Runner(path.read_bytes(), delegates)
        (output,) = runner({"input": x}).values()
        np.testing.assert_array_equal(output, model(x))
    assert stored(report) == {"only": "float levels"}
    assert report.activations[0].levels == len(np.unique(levels_of(rule, state).levels))
    assert report.agreeing == 1.0


@pytest.mark.parametrize(
    ("rule", "target"),
    [
        *(("lq-2", target) for target in FLOAT_TARGETS),
        ("lq-2-signed", "fast"),
        ("uniform-3", "small"),
    ],
)
def test_float_targets_agree_with_keras(rule, target, tmp_path):
    model = cnn(rule)
    path = tmp_path / "m.tflite"
    report = untrained(model, path, target)
    assert stored(report) == dict.fromkeys(PATHS, "float levels")
    assert {x.rule for x in report.activations} == {rule, "binary"}
    assert report.agreeing == 1.0
    assert operators(path).count("BUCKETIZE") == 5
    x = data(10, 10, 4, seed=1)
    (output,) = runtime.Runner(path.read_bytes())({"image": x}).values()
    expected = np.array(model(x, training=False))
    # A sum next to a threshold may jump, so not all; but no more than a few.
    close = np.abs(output - expected).max(1) < 1e-4 * np.abs(expected).max()
    assert np.mean(close) > 0.9
    kernels = {x.path: x.stored_as for x in report.kernels if x.quantized}
    assert set(kernels) == set(keras_sq.get_codes(model))
    if target == "small":
        assert kernels["inner/kernel"] == kernels["pooled/kernel"] == "INT2 codes"


def lstm(unroll=False):
    x = keras.Input((6, 5), name="steps")
    y = kl.LSTM(7, return_sequences=True, unroll=unroll, name="memory")(x)
    y = kl.TimeDistributed(kl.Dense(8, activation="relu"), name="each")(y)
    return keras.Model(x, kl.Dense(3, name="logits")(kl.Flatten()(y)))


def stacked():
    cells = [kl.GRUCell(4, name="lower"), kl.GRUCell(4, name="upper")]
    x = keras.Input((5, 3), name="steps")
    return keras.Model(x, kl.Dense(2, name="logits")(kl.RNN(cells, name="rnn")(x)))


def attention():
    x = keras.Input((6, 8), name="steps")
    y = kl.MultiHeadAttention(2, 4, name="attention")(x, x)
    return keras.Model(x, kl.Dense(2, name="logits")(kl.Flatten()(y)))


def nested():
    inner = keras.Sequential(
        [keras.Input((8,)), kl.Dense(8, activation="relu", name="dense")], name="block"
    )
    x = keras.Input((8,), name="x")  # A layer that is called twice, inside another.
    return keras.Model(x, kl.Dense(2, name="logits")(inner(inner(x))))


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lstm, {"memory/lstm_cell/input", "each/dense/input", "logits/input"}),
        (
            stacked,
            {f"rnn/stacked_rnn_cells/{x}/input" for x in ("lower", "upper")}
            | {"logits/input"},
        ),
        (
            attention,
            {f"attention/{x}/input" for x in ("query", "key", "value")}
            | {"attention/attention_output/input", "logits/input"},
        ),
        (nested, {"block/dense/input", "logits/input"}),
    ],
)
def test_layers_inside_others(make, paths, tmp_path):
    keras.backend.clear_session()  # It counts the names of layers.
    model = make()
    model = keras_sq.quantize_model(
        model, "binary", input_quantizer="uniform-3", skip=(), seed=0
    )
    awake(model, data(*model.input_shape[1:]))
    report = untrained(model, tmp_path / "m.tflite", "fast")
    assert set(stored(report)) == paths
    assert set(stored(report).values()) == {"float levels"}
    assert report.agreeing == 1.0
    if make is lstm:  # Once for all steps of time, outside of the loop.
        file = TFLiteFile((tmp_path / "m.tflite").read_bytes())
        assert len(file.subgraphs) > 1
        names = [file.operator_name(x) for x in file.subgraphs[0].operators]
        assert names.count("BUCKETIZE") == 3
        assert operators(tmp_path / "m.tflite").count("BUCKETIZE") == 3


def test_model_of_plain_kernels(tmp_path):
    x = keras.Input((9,), name="x")
    y = LearnedActivationQuantizer(2, name="levels")(kl.Dense(20, "relu")(x))
    model = keras.Model(x, kl.Dense(3)(y))
    report = keras_sq.export(learned_alone(model, data(9)), tmp_path / "m.tflite")
    assert stored(report) == {"levels": "float levels"}
    assert report.quantized_weights == 0


def learned_alone(model, x):
    model(x, training=True)
    return model


def test_model_is_left_alone(tmp_path):
    model = cnn("lq-2")
    x = data(10, 10, 4)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    types = [type(layer) for layer in model.layers]
    expected = keras.ops.convert_to_numpy(model(x))
    untrained(model, tmp_path / "m.tflite")
    assert [type(layer) for layer in model.layers] == types
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, keras.ops.convert_to_numpy(variable))
    np.testing.assert_array_equal(model(x), expected)


def test_mixed_precision_becomes_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    x = keras.Input((9,), name="x")
    y = BinaryActivation(name="sign")(kl.Dense(20, name="one")(x))
    model = keras.Model(x, kl.Dense(3, name="two")(y))
    model = keras_sq.quantize_model(
        model, "ternary", input_quantizer="lq-3", skip=["one"], seed=0
    )
    report = untrained(model, tmp_path / "m.tflite")
    assert set(stored(report)) == {"sign", "two/input"}
    assert "computes in float32; the model does not" in report.notes


def test_report_is_printed_and_in_the_file(tmp_path):
    path = tmp_path / "m.tflite"
    report = untrained(cnn("lq-2"), path)
    rows = str(report).split("\n\n")[-1].splitlines()
    assert rows[0].split("  ")[1] == "activations"
    assert [row.split()[0] for row in rows[1:]] == PATHS
    assert "lq-2" in rows[1] and "float levels" in rows[1] and "  4  " in rows[1]
    assert "100 % within 1e-04" in str(report)
    content = TFLiteFile(path.read_bytes()).metadata(reporting.METADATA_NAME)
    entries = json.loads(zlib.decompress(content))["activations"]
    assert entries[3] == {
        "path": "sign",
        "rule": "binary",
        "levels": 2,
        "stored_as": "float levels",
        "reason": "exact; activations are float32",
    }
    plain = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    other = keras_sq.export(plain, path)
    assert (other.activations, other.agreeing) == ((), None)
    assert "activations" not in str(other)


# Int8 activations.

INT8_FORMS = {
    "lq-1": "integer grid",
    "lq-2": "table",
    "lq-2-signed": "table",
    "uniform-3": "integer grid",
    "uniform-8": "integer grid",
    "binary": "signs",
}


def real(file, index, array):
    """Returns the numbers that the codes of an int8 tensor stand for."""
    quantization = file.subgraphs[0].tensors[index].quantization
    return (array.astype("f8") - quantization.zeroPoint[0]) * quantization.scale[0]


def no_tensor_is_left_over(path):
    # Microcontrollers reserve memory for them.
    (graph,) = TFLiteFile(path.read_bytes()).subgraphs
    used = {
        index
        for operator in graph.operators
        for index in [*indices(operator.inputs), *indices(operator.outputs)]
    }
    assert used - {-1} == set(range(len(graph.tensors)))
    assert "FLOAT32" not in {TYPE_NAMES[tensor.type] for tensor in graph.tensors}


def kernel_inputs(path, x):
    """Returns name of the operator -> numbers that it takes, of those with weights."""
    content = path.read_bytes()
    file = TFLiteFile(content)
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    found = [
        (file.operator_name(operator), indices(operator.inputs)[0])
        for operator in file.subgraphs[0].operators
        if file.operator_name(operator) in names
    ]
    runner = runtime.Runner(content, False)
    batch = {"image": runner.quantized("image", x)}
    arrays = runtime.AllTensors(content).values(batch, [index for _, index in found])
    return [
        (name, real(file, index, array))
        for (name, index), array in zip(found, arrays, strict=True)
    ]


@pytest.mark.parametrize("rule", INT8_FORMS)
def test_int8_activations_are_on_the_levels(rule, tmp_path):
    model = cnn(rule)
    path = tmp_path / "m.tflite"
    x = data(10, 10, 4)
    report = untrained(model, path, "int8", representative_data=x)
    expected = dict.fromkeys(PATHS, INT8_FORMS[rule]) | {"sign": "signs"}
    # Between the two quantizers there is nothing: signs of signs, for example.
    assert {k: v for k, v in stored(report).items() if k != "dense/input"} == {
        k: v for k, v in expected.items() if k != "dense/input"
    }
    assert not {"BUCKETIZE", "DEQUANTIZE", "QUANTIZE"} & set(operators(path))
    no_tensor_is_left_over(path)
    taken = kernel_inputs(path, x)
    # Those of `first`, `inner`, `separable` twice, `pooled`, `dense`, `logits`.
    assert len(taken) == 7
    layers = {1: "inner", 2: "separable", 4: "pooled", 5: "dense"}
    for place, name in layers.items():
        layer = model.get_layer(name)
        levels = np.array(layer.input_rule.levels(*layer.input_state()))
        used = np.unique(taken[place][1])
        nearest = np.abs(used[:, None] - levels).min(1)
        bound = 1e-6 if INT8_FORMS[rule] != "table" else 1 / 500
        assert nearest.max() <= bound * (levels.max() - min(levels.min(), 0))
        # What comes out of a ReLU has one sign.
        assert (rule != "binary") < len(used) <= len(levels)
    assert not any("in float" in note for note in report.notes)


@pytest.mark.parametrize("rule", ["lq-2", "uniform-4", "binary"])
def test_int8_file_follows_keras_from_level_to_level(rule, tmp_path):
    x = image = keras.Input((8, 8, 4), name="image")
    x = kl.Conv2D(16, 3, name="first")(x)
    x = kl.ReLU()(kl.BatchNormalization()(x)) if rule != "binary" else x
    x = kl.Conv2D(16, 3, name="inner")(x)
    model = keras.Model(image, x)
    model = keras_sq.quantize_model(
        model, "ternary", input_quantizer=rule, skip=["first"], seed=0
    )
    examples = data(8, 8, 4)
    learned(model, examples)
    path = tmp_path / "m.tflite"
    untrained(model, path, "int8", representative_data=examples)
    first = keras.Model(image_of(model), model.get_layer("inner").input)
    layer = model.get_layer("inner")
    expected = np.array(layer.input_rule.forward(first(examples), *layer.input_state()))
    found = kernel_inputs(path, examples)[1][1]
    gap = np.diff(np.array(layer.input_rule.levels(*layer.input_state()))).min()
    # Int8 sums may take the next level, rarely.
    assert np.mean(np.abs(found - expected) > gap / 2) < 0.02
    runner = runtime.Runner(path.read_bytes())
    (output,) = runner({"image": runner.quantized("image", examples)}).values()
    assert output.dtype == np.int8
    outputs = runner.dequantized("output_0", output)
    kept = np.array(model(examples))
    error = np.sqrt(np.mean((outputs - kept) ** 2) / np.mean(kept**2))
    assert error < 0.15


def image_of(model):
    return model.inputs[0]


def test_small_on_integers_is_the_int8_file_to_the_bit(tmp_path):
    x = data(10, 10, 4)
    path = tmp_path / "m.tflite"
    report = untrained(cnn("uniform-3"), path, "small", representative_data=x)
    assert report.bit_exact
    assert set(stored(report)) == set(PATHS)


def test_unrolled_recurrent_layer_becomes_integers(tmp_path):
    model = keras_sq.quantize_model(
        lstm(unroll=True), "binary", input_quantizer="uniform-3", skip=(), seed=0
    )
    awake(model, data(6, 5), clip=0.5)
    report = untrained(
        model, tmp_path / "m.tflite", "int8", representative_data=data(6, 5)
    )
    assert set(stored(report).values()) == {"integer grid"}


def test_layer_called_twice_has_both_forms(tmp_path):
    model = keras_sq.quantize_model(
        nested(), "ternary", input_quantizer="lq-2", skip=(), seed=0
    )
    awake(learned(model, data(8)), data(8))
    report = untrained(
        model, tmp_path / "m.tflite", "int8", representative_data=data(8)
    )
    assert stored(report) == {"block/dense/input": "table", "logits/input": "table"}
    assert "levels to" in report.activations[0].reason


def test_what_has_no_int8_form_keeps_float_levels(tmp_path):
    x = keras.Input((5, 5, 5, 2), name="x")
    y = LearnedActivationQuantizer(2, name="levels")(kl.Conv3D(3, 3)(x))
    model = learned_alone(keras.Model(x, kl.Conv3D(2, 2)(y)), data(5, 5, 5, 2))
    report = keras_sq.export(
        model,
        tmp_path / "m.tflite",
        target="int8",
        representative_data=data(5, 5, 5, 2),
    )
    assert stored(report) == {"levels": "float levels"}
    assert "of a float32 input; levels to 0." in report.activations[0].reason


# Microcontrollers.


def test_microcontroller_file_agrees_to_the_bit(tmp_path):
    x = image = keras.Input((6, 6, 4), name="image")
    x = kl.ReLU()(kl.Conv2D(8, 3, name="first")(x))
    x = BinaryActivation(name="sign")(kl.Conv2D(16, 3, name="inner")(x))
    model = keras.Model(image, kl.Dense(5, name="logits")(kl.Flatten()(x)))
    model = keras_sq.quantize_model(
        model,
        "binary",
        input_quantizer="lq-2",
        skip=["first"],
        overrides={
            "logits": {"kernel_quantizer": "ternary", "input_quantizer": "uniform-3"}
        },
        seed=0,
    )
    examples = data(6, 6, 4, count=8)
    awake(learned(model, examples), examples)
    report = untrained(
        model, tmp_path / "m.tflite", "mcu", representative_data=examples
    )
    assert report.bit_exact
    assert stored(report) == {
        "inner/input": "table",
        "sign": "signs",
        "logits/input": "integer grid",
    }
    assert report.kernels[0].stored_as == "1-bit table"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m.cc", "m.h", "m.tflite"]


# The check.


def changed(monkeypatch, change):
    """Puts a change of the file between its making and its checking."""
    original = activation_forms.float_forms

    def forms(file, quantizers):
        held = original(file, quantizers)
        change(file, activation_forms.find(file, quantizers))
        return held

    monkeypatch.setattr(activation_forms, "float_forms", forms)


def buffer_of(file, place, position):
    tensor = place.subgraph.tensors[indices(place.gather.inputs)[position]]
    return file.model.buffers[tensor.buffer]


def other_level(file, places):
    buffer = buffer_of(file, places[0], 0)
    values = np.array(buffer.data).view("<f4")
    values[1] *= 1.001
    buffer.data = values.view(np.uint8)


def other_threshold(file, places):
    options = places[0].rank.builtinOptions
    options.boundaries = np.array(options.boundaries)
    options.boundaries[1] = np.nextafter(options.boundaries[1], np.float32(9))


def other_kernel(file, places):
    for _, _, tensor in file.constants():
        if len(flatbuffer.shape_of(tensor)) == 4:
            buffer = file.model.buffers[tensor.buffer]
            values = np.array(buffer.data).view("<f4")
            values[3] += 0.01
            buffer.data = values.view(np.uint8)
            return


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_level, "activations of 'inner/input' are not on the levels of rule 'lq"),
        (other_threshold, "the thresholds of 'inner/input' are not in it"),
        (other_kernel, "on random inputs, output 'output_0' differs by"),
    ],
)
def test_one_wrong_number_is_refused(change, match, monkeypatch, tmp_path):
    changed(monkeypatch, change)
    with pytest.raises(ExportError, match=match):
        untrained(cnn("lq-2"), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_thresholds_that_are_not_the_rules_are_refused(monkeypatch, tmp_path):
    # In the copy that is converted: by comparison with the model, and the rule.
    original = activations.activation_levels

    def shifted(*args):
        found = original(*args)
        found.thresholds = found.thresholds * np.float32(1.02)
        return found

    monkeypatch.setattr(activations, "activation_levels", shifted)
    with pytest.raises(ExportError, match="could not be taken over"):
        untrained(cnn("lq-2"), tmp_path / "m.tflite")
    monkeypatch.setattr(activation_checks, "check_copy", lambda *args: None)
    with pytest.raises(ExportError, match="are not on the levels of rule 'lq-2'"):
        untrained(cnn("lq-2"), tmp_path / "m.tflite")


def integers_changed(monkeypatch, change):
    original = activation_forms.integer_forms

    def forms(content, quantizers):
        content, held = original(content, quantizers)
        file = TFLiteFile(content)
        change(file)
        return file.pack(), held

    monkeypatch.setattr(activation_forms, "integer_forms", forms)


def other_table(file):
    for _, _, tensor in file.constants():
        if flatbuffer.shape_of(tensor) == (256,):
            buffer = file.model.buffers[tensor.buffer]
            buffer.data = np.roll(np.array(buffer.data), 3)


def other_top(file):
    for _, _, tensor in file.constants():
        if not len(flatbuffer.shape_of(tensor)) and tensor.type == 9:
            buffer = file.model.buffers[tensor.buffer]
            buffer.data = (np.array(buffer.data).view(np.int8) - 1).view(np.uint8)


def other_weights(file):
    for _, _, tensor in file.constants():
        if len(flatbuffer.shape_of(tensor)) == 4 and tensor.type == 9:
            buffer = file.model.buffers[tensor.buffer]
            buffer.data = np.roll(np.array(buffer.data), 1)


@pytest.mark.parametrize(
    ("rule", "change", "match"),
    [
        ("lq-2", other_table, "are not on the levels of rule 'lq-2'"),
        ("uniform-3", other_top, "are not on the levels of rule 'uniform-3'"),
        ("lq-2", other_weights, "the levels of 'inner/input' differ by .* in the mean"),
    ],
)
def test_wrong_integers_are_refused(rule, change, match, monkeypatch, tmp_path):
    integers_changed(monkeypatch, change)
    with pytest.raises(ExportError, match=match):
        untrained(
            cnn(rule),
            tmp_path / "m.tflite",
            "int8",
            representative_data=data(10, 10, 4),
        )
    assert not list(tmp_path.iterdir())


def test_agreement_counts_examples():
    expected = {"a": np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 0.0]], "float32")}
    actual = {"a": expected["a"] + np.array([[0.0], [1e-3], [0.0]], "float32")}
    assert differences.agreeing(actual, expected, 3) == [True, False, True]
    assert differences.agreeing({}, expected, 3) == [False] * 3
    classes = {"c": np.array([1, 2, 3])}
    assert differences.agreeing({"c": np.array([1, 5, 3])}, classes, 3) == [
        True,
        False,
        True,
    ]


def test_ranges_hold_the_levels_exactly():
    def steps(rule, *state):
        found = levels_of(rule, state)
        low, high = activation_ranges.level_range(found)
        assert low <= 0.0 <= high
        return np.abs(found.levels / ((high - low) / 255))

    for bits in range(1, 9):
        whole = steps(UniformRule(bits), 6.0)
        np.testing.assert_allclose(whole, np.arange(2**bits), rtol=1e-6)
    np.testing.assert_allclose(steps(BinaryRule()), [127, 127], rtol=1e-6)
    assert steps(LearnedRule(2), [0.3, 1.1], 1.0).max() == pytest.approx(255)
    assert activation_ranges.level_range(levels_of(LearnedRule(1), ([0.0], 1.0))) == (
        0.0,
        1.0,
    )


def test_copy_quantizes_like_the_model():
    # Against Keras alone, without a file: the inputs of every quantized layer.
    model = cnn("lq-2")
    plain = strip.plain_copy(model)
    quantizers = activations.deploy(model, plain)
    assert [x.path for x in quantizers] == PATHS
    x = data(10, 10, 4, seed=5)
    np.testing.assert_array_equal(plain(x), model(x))
    with activations.changed("active", dict.fromkeys(quantizers, False)):
        assert not np.allclose(plain(x), model(x), atol=0.1)
    np.testing.assert_array_equal(plain(x), model(x))
    assert inputs.input_signature(plain).inputs == inputs.input_signature(model).inputs
