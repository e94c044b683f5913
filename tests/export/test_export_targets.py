"""Files of every target: exact kernels, tight forms, honest reports."""

import dataclasses
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_sq
from keras_sq.export import ExportError, building, kinds, runtimes, targets
from keras_sq.export.conversion import inputs
from keras_sq.export.tflite import choice, flatbuffer, runtime, weights
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile, indices
from keras_sq.export.verification import running

FOUR_BITS = keras_sq.quantizers.UniformQuantizer(4, num_levels=13)
FLOAT_TARGETS = ("float", "fast", "int4", "int2", "small")


def untrained(model, path, target, **kwargs):
    return keras_sq.export(model, path, target=target, allow_untrained=True, **kwargs)


# Files of packed levels only, but for codes that take a byte.
OLD = {"oldest_runtime": "tflite-runtime 2.14"}


def data(*shape, count=20, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def cnn():
    """Every way in which filters lie: first, last; large and tiny kernels."""
    x = image = keras.Input((12, 12, 8), name="image")
    x = kl.Conv2D(48, 3, use_bias=False, name="conv")(x)
    x = kl.ReLU()(kl.BatchNormalization(name="norm")(x))
    x = kl.DepthwiseConv2D(3, name="depthwise")(x)
    x = kl.Conv2D(64, 3, strides=2, activation="relu", name="strided")(x)
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(image, kl.Dense(10, name="logits")(x), name="cnn")


def with_unusual_normalization(model):
    """Negative, zero and very different factors, folded into the kernel."""
    norm = model.get_layer("norm")
    generator = np.random.default_rng(3)
    gamma = generator.normal(size=48) * 10.0 ** generator.integers(-3, 3, 48)
    gamma[5] = 0.0
    norm.gamma.assign(gamma)
    norm.moving_mean.assign(generator.normal(size=48))
    norm.moving_variance.assign(generator.uniform(0.1, 3, 48))
    return model


def stored(report):
    return {kernel.path: kernel.stored_as for kernel in report.kernels}


# Exactness.


@pytest.mark.parametrize("target", FLOAT_TARGETS)
@pytest.mark.parametrize(
    "quantizer", ["binary", "ternary", "uniform-3", FOUR_BITS, "uniform-5", "uniform-8"]
)
def test_file_gives_the_kernel_to_the_bit(quantizer, target, tmp_path):
    # With the unit vectors as inputs, a layer without a bias gives its kernel.
    model = keras.Sequential(
        [keras.Input((90,)), kl.Dense(70, use_bias=False, name="only")]
    )
    model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
    kernel = model.get_layer("only").latent()
    kernel.assign(np.where(np.arange(70) == 7, 0.0, kernel))  # A filter of zeros.
    path = tmp_path / "model.tflite"
    report = untrained(model, path, target)
    expected = keras_sq.get_codes(model)["only/kernel"].kernel
    for delegates in (True, False):
        runner = runtime.Runner(path.read_bytes(), delegates)
        (output,) = runner({"input": np.eye(90, dtype="float32")}).values()
        # `uniform` scales are found again from the values, to two roundings.
        rtol = 0.0 if quantizer in ("binary", "ternary") else 2.0**-22
        np.testing.assert_allclose(output, expected, rtol=rtol, atol=0)
    assert report.largest_error <= 2.0**-21


@pytest.mark.parametrize("target", FLOAT_TARGETS)
@pytest.mark.parametrize("quantizer", ["binary", "ternary", "uniform-3"])
def test_file_agrees_after_folding_any_normalization(quantizer, target, tmp_path):
    model = keras_sq.quantize_model(
        with_unusual_normalization(cnn()), quantizer, overrides={}
    )
    report = untrained(model, tmp_path / "m.tflite", target)
    assert report.largest_error < 2e-6
    assert {kernel.path for kernel in report.kernels} == set(keras_sq.get_codes(model))
    assert all(kernel.quantized for kernel in report.kernels)
    if target != "float":
        assert report.num_bytes < 0.6 * report.float_bytes


EXPECTED_FORMS = {
    ("binary", "fast"): ["INT8 codes"] * 4,
    ("binary", "int4"): ["INT4 codes"] * 4,
    ("binary", "int2"): ["INT2 codes"] * 4,
    ("binary", "small"): ["packed levels"] * 4,
    ("uniform-3", "int2"): ["INT4 codes"] * 4,
    ("uniform-4", "int4"): ["INT4 codes"] * 4,
    ("uniform-5", "int4"): ["INT8 codes"] * 4,
    ("uniform-5", "small"): ["packed levels"] * 4,
    ("uniform-6", "small"): ["INT8 codes"] * 4,
    ("uniform-8", "small"): ["INT8 codes"] * 4,
}


@pytest.mark.parametrize(("quantizer", "target"), EXPECTED_FORMS)
def test_tightest_form_that_the_values_allow(quantizer, target, tmp_path):
    x = keras.Input((12, 12, 64))
    y = kl.DepthwiseConv2D(7, name="depthwise")(kl.Conv2D(64, 3, name="conv")(x))
    y = kl.Conv2D(256, 3, padding="same", name="large")(y)
    model = keras.Model(x, kl.Dense(16, name="dense")(y))
    model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
    oldest = OLD if target == "small" else {}
    report = untrained(model, tmp_path / "m.tflite", target, **oldest)
    expected = dict(
        zip(
            ["conv/kernel", "depthwise/kernel", "large/kernel", "dense/kernel"],
            EXPECTED_FORMS[quantizer, target],
            strict=True,
        )
    )
    assert stored(report) == expected


def test_mixed_precision_of_layers(tmp_path):
    model = keras_sq.quantize_model(
        cnn(),
        "ternary",
        skip=["conv"],
        overrides={"strided": "uniform-3", "logits": "binary"},
    )
    report = untrained(model, tmp_path / "m.tflite", "int2")
    assert stored(report) == {
        "depthwise/kernel": "INT2 codes",
        "strided/kernel": "INT4 codes",
        "logits/kernel": "INT2 codes",
        "conv": "float32",
    }
    rows = {kernel.path: kernel for kernel in report.kernels}
    assert rows["conv"].reason == "72 values a filter"
    assert not rows["conv"].quantized
    assert rows["strided/kernel"].reason == "codes -3 to 3"
    assert (rows["logits/kernel"].levels, rows["strided/kernel"].levels) == (2, 7)
    assert report.runtimes == runtimes.INT2_RUNTIMES
    assert report.quantized_weights == 9 * 48 + 9 * 48 * 64 + 640


@pytest.mark.parametrize("num_levels", [4, 8])
def test_uneven_levels_of_a_plain_model_are_packed(num_levels, tmp_path):
    # As a learned codebook gives them: other levels in every filter.
    model = keras.Sequential(
        [keras.Input((10, 10, 32)), kl.Conv2D(64, 3, name="conv"), kl.Flatten()]
    )
    generator = np.random.default_rng(0)
    levels = np.sort(generator.normal(size=(num_levels, 64)), axis=0)
    digits = generator.integers(0, num_levels, (3, 3, 32, 64))
    layer = model.get_layer("conv")
    layer.kernel.assign(np.take_along_axis(levels[:, None, None], digits, axis=0))
    report = keras_sq.export(model, tmp_path / "m.tflite", target="small")
    (row,) = report.kernels
    bits = {4: 16 / 7, 8: 16 / 5}[num_levels]
    tables = 32 * num_levels / (9 * 32)  # Its float32 levels, over a filter.
    assert row.bits_per_weight == pytest.approx(bits + tables, rel=1e-3)
    assert (row.stored_as, row.levels) == ("packed levels", num_levels)
    report = keras_sq.export(model, tmp_path / "m.tflite", target="int4")
    assert "not multiples of one number: only target 'small'" in str(report)
    report = keras_sq.export(
        model,
        tmp_path / "m.tflite",
        target="small",
        representative_data=data(10, 10, 32),
    )
    assert report.bit_exact
    (row,) = report.kernels
    assert row.stored_as == "packed levels"
    if not tf.__version__.startswith("2.20."):  # Which calls it by no layer.
        assert row.path == "conv"
    assert report.kernels[0].reason == "rounded to int8; levels of each filter"


# Packed codes, beside a scale a filter.


@pytest.mark.parametrize(
    ("quantizer", "bits", "filters_first"),
    [
        (FOUR_BITS, 4, True),
        (FOUR_BITS, 4, False),
        ("uniform-5", 16 / 3, True),
        ("ternary", 16 / 9, False),
        ("binary", 16 / 15, False),
    ],
    ids=str,
)
def test_packed_codes_take_a_scale_a_filter(quantizer, bits, filters_first, tmp_path):
    kind = kl.Conv2D if filters_first else kl.DepthwiseConv2D
    settings = {"filters": 256} if filters_first else {"depth_multiplier": 4}
    model = keras.Sequential(
        [keras.Input((20, 20, 32 if filters_first else 64))]
        + [kind(kernel_size=3 if filters_first else 15, name="only", **settings)]
    )
    model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
    report = untrained(model, tmp_path / "m.tflite", "small", **OLD)
    (row,) = report.kernels
    assert (row.stored_as, row.reason[:6]) == ("packed levels", "codes ")
    per_filter = 288 if filters_first else 225
    assert row.bits_per_weight == pytest.approx(bits + 4 * 8 / per_filter, rel=1e-3)
    assert report.runtimes == runtimes.EVERY_RUNTIME
    for delegates in (True, False):
        runner = runtime.Runner((tmp_path / "m.tflite").read_bytes(), delegates)
        x = data(20, 20, 32 if filters_first else 64, count=2)
        (first,) = runner({"input": x}).values()
        (again,) = runner({"input": x}).values()
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first, model(x), rtol=0, atol=1e-4)


def test_codes_of_all_filters_share_a_table(tmp_path):
    """Kernels whose largest codes are 4 to 6 unfold by the same 13 codes."""
    model = keras.Sequential(
        [keras.Input((100,))]
        + [kl.Dense(100, name=f"dense_{most}", use_bias=False) for most in (4, 5, 6)]
    )
    random = np.random.default_rng(0)
    for most in (4, 5, 6):
        codes = random.integers(-most, most + 1, (100, 100))
        scales = random.uniform(0.5, 2.0, 100) / 100
        model.get_layer(f"dense_{most}").kernel.assign(codes * scales)
    path = tmp_path / "m.tflite"
    report = keras_sq.export(model, path, target="small", **OLD)
    assert set(stored(report).values()) == {"packed levels"}
    file = TFLiteFile(path.read_bytes())
    names = [file.operator_name(operator) for operator in file.subgraphs[0].operators]
    assert names.count("CONCATENATION") == 1
    # A look-up for each kernel; two repeat the halves of the table's rows.
    assert names.count("GATHER") == 2 + 3


def test_what_is_read_in_part_or_in_loops_is_not_unfolded_in_each_run(tmp_path):
    x = keras.Input((8,), dtype="int32")
    y = kl.Embedding(500, 64, name="embedding")(x)
    y = kl.LSTM(32, name="lstm")(y)
    model = keras.Model(x, kl.Dense(200, name="dense")(y))
    model = keras_sq.quantize_model(model, FOUR_BITS, seed=0)
    report = untrained(model, tmp_path / "m.tflite", "small")
    reasons = {kernel.path: kernel.reason for kernel in report.kernels}
    assert reasons.pop("dense/kernel") == "codes -6 to 6"
    file = TFLiteFile((tmp_path / "m.tflite").read_bytes())
    for subgraph in file.subgraphs:
        made = {
            index: operator
            for operator in subgraph.operators
            for index in indices(operator.outputs)
        }
        for operator in subgraph.operators:
            if file.operator_name(operator) == "DEQUANTIZE":
                (source,) = indices(operator.inputs)
                (index,) = indices(operator.outputs)
                if source in made:  # Unfolded before.
                    readers = {use.name for use in file.uses(subgraph)[index]}
                    assert readers == {"FULLY_CONNECTED"}
                    assert subgraph is file.subgraphs[0]


def test_small_bits_of_a_large_layer(tmp_path):
    for quantizer, bits in {"binary": 1.07, "ternary": 1.78}.items():
        model = keras.Sequential([keras.Input((512,)), kl.Dense(512)])
        model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
        report = untrained(model, tmp_path / "m.tflite", "small")
        # And two or three float32 levels a filter of 512 weights.
        tables = 32 * {"binary": 2, "ternary": 3}[quantizer] / 512
        assert report.bits_per_weight == pytest.approx(bits + tables, abs=0.005)
        assert report.num_bytes == os.path.getsize(tmp_path / "m.tflite")


def test_shared_layer_is_stored_once(tmp_path):
    a, b = keras.Input((300,)), keras.Input((300,))
    shared = kl.Dense(200, name="shared")
    model = keras.Model([a, b], shared(a) + kl.ReLU()(shared(b)))
    model = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    for target, size in {"small": 22_000, "int2": 21_000, "fast": 66_000}.items():
        report = untrained(model, tmp_path / "m.tflite", target)
        assert len(report.kernels) == 1
        assert report.num_bytes < size


@pytest.mark.parametrize("target", FLOAT_TARGETS)
def test_constant_filters_and_constant_kernels(target, tmp_path):
    model = keras.Sequential(
        [keras.Input((64,)), kl.Dense(64, name="one"), kl.Dense(64, name="two")]
    )
    model.get_layer("one").kernel.assign(np.full((64, 64), 0.3))
    kernel = np.where(np.arange(64) % 2, 0.5, np.sign(np.arange(64)[:, None] - 31.5))
    model.get_layer("two").kernel.assign(kernel)
    report = keras_sq.export(model, tmp_path / "m.tflite", target=target)
    assert [kernel.levels for kernel in report.kernels] == [1, 2] or [
        kernel.levels for kernel in report.kernels
    ] == [2, 1]
    assert report.largest_error < 2e-6


def test_batch_stays_open(tmp_path):
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    for target in FLOAT_TARGETS:
        report = untrained(model, tmp_path / "m.tflite", target)
        assert report.inputs[0].shape == (None, 12, 12, 8)
    report = untrained(
        model, tmp_path / "m.tflite", "small", representative_data=data(12, 12, 8)
    )
    assert report.inputs[0].shape == (None, 12, 12, 8)


# What must never be in a file.


@pytest.mark.parametrize("target", ["int2", "int4"])
def test_packed_types_feed_nothing_but_dequantize(target, tmp_path):
    # Convolutions take INT2 without an error and compute garbage.
    model = keras_sq.quantize_model(cnn(), "binary", overrides={})
    path = tmp_path / "m.tflite"
    untrained(model, path, target)
    file = TFLiteFile(path.read_bytes())
    readers = set()
    for subgraph in file.subgraphs:
        for index, uses in file.uses(subgraph).items():
            if TYPE_NAMES[subgraph.tensors[index].type] in ("INT2", "INT4"):
                readers |= {use.name for use in uses}
    assert readers == {"DEQUANTIZE"}


@pytest.mark.parametrize("target", FLOAT_TARGETS)
def test_constants_are_aligned_and_stored_once(target, tmp_path):
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    path = tmp_path / "m.tflite"
    untrained(model, path, target)
    content = path.read_bytes()
    root = flatbuffer.schema.Model.GetRootAsModel(content, 0)
    seen = []
    for number in range(root.BuffersLength()):
        buffer = root.Buffers(number)
        if buffer.DataLength():
            start = buffer._tab.Vector(buffer._tab.Offset(4))
            assert start % 16 == 0
            seen.append(content[start : start + buffer.DataLength()])
    assert len(seen) == len(set(seen)) > 4


def test_nothing_is_unfolded_by_arithmetic(tmp_path):
    # XNNPACK would take MUL, ADD or a RESHAPE of floats, and run it every time, as
    # others do with DEQUANTIZE, which is worth it for some kernels.
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    path = tmp_path / "m.tflite"
    report = untrained(model, path, "small", **OLD)
    assert "packed levels" in stored(report).values()
    plain = tmp_path / "plain.tflite"
    untrained(model, plain, "float")

    def counts(name):
        file = TFLiteFile(name.read_bytes())
        (subgraph,) = file.subgraphs
        names = [file.operator_name(operator) for operator in subgraph.operators]
        floats = [
            file.operator_name(operator)
            for operator in subgraph.operators
            if TYPE_NAMES[subgraph.tensors[indices(operator.outputs)[0]].type]
            == "FLOAT32"
        ]
        return names, floats

    added = set(counts(path)[0]) - set(counts(plain)[0])
    moves = {"GATHER", "RESHAPE", "CONCATENATION", "STRIDED_SLICE"}
    assert added in (moves, {*moves, "DEQUANTIZE"})
    assert "RESHAPE" not in counts(path)[1]


# Full integers.


def test_int8_kernels_are_on_the_grid(tmp_path):
    for quantizer in ("binary", "ternary"):
        model = keras_sq.quantize_model(cnn(), quantizer, overrides={})
        path = tmp_path / "m.tflite"
        report = untrained(model, path, "int8", representative_data=data(12, 12, 8))
        assert {kernel.reason for kernel in report.kernels} == {
            "exactly -127, 0 and 127"
        }
        file = TFLiteFile(path.read_bytes())
        found = weights.with_kernels(
            file, weights.weight_tensors(file), keras_sq.get_codes(model)
        )
        assert len(found) == 4
        for weight in found:
            array = file.array(weight.tensor)
            assert set(np.unique(array)) <= {-127, 0, 127}
            assert (len(np.unique(array)) == 2) == (quantizer == "binary")
        assert report.tolerance is None
        assert 0 < report.mean_error < 0.1
        assert [x.dtype for x in (*report.inputs, *report.outputs)] == ["int8"] * 2
        assert report.inputs[0].scale > 0
        assert "(scale 0." in str(report)


def test_small_on_integers_is_the_int8_file_to_the_bit(tmp_path):
    model = keras_sq.quantize_model(
        with_unusual_normalization(cnn()), "ternary", overrides={}
    )
    first, second = tmp_path / "int8.tflite", tmp_path / "small.tflite"
    examples = data(12, 12, 8)
    whole = untrained(model, first, "int8", representative_data=examples)
    report = untrained(model, second, "small", representative_data=examples)
    assert (whole.bit_exact, report.bit_exact) == (None, True)
    assert report.num_bytes < whole.num_bytes / 2
    assert "bit for bit the int8 file" in str(report)
    runners = [runtime.Runner(x.read_bytes(), False) for x in (first, second)]
    batch = {"image": np.random.default_rng(9).integers(-128, 128, (8, 12, 12, 8))}
    batch = {"image": batch["image"].astype("int8")}
    outputs = [runner(batch)["output_0"] for runner in runners]
    np.testing.assert_array_equal(*outputs)
    assert len(np.unique(outputs[0])) > 10


def test_integer_inputs_stay_integers(tmp_path):
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    x = kl.GlobalAveragePooling1D()(kl.Embedding(50, 32)(tokens))
    model = keras_sq.quantize_model(
        keras.Model(tokens, kl.Dense(3)(x)), "ternary", overrides={}
    )
    examples = np.random.default_rng(0).integers(0, 50, (30, 10))
    report = untrained(
        model, tmp_path / "m.tflite", "int8", representative_data=examples
    )
    assert (report.inputs[0].dtype, report.inputs[0].scale) == ("int32", None)


@pytest.mark.parametrize("part", ["all", "some", "mask"])
def test_row_numbers_as_floats_are_an_error_for_integers(part, tmp_path):
    tokens = keras.Input((10,), name="tokens")
    x = tokens[:, :6] if part == "some" else tokens
    x = kl.Embedding(50, 8, mask_zero=part == "mask", name="words")(x)
    model = keras.Model(tokens, kl.Dense(3)(kl.GlobalAveragePooling1D()(x)))
    examples = np.random.default_rng(0).integers(0, 50, (30, 10)).astype("float32")
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"'tokens' .* row numbers of layer 'words'"):
        keras_sq.export(model, path, target="int8", representative_data=examples)
    assert not path.exists()
    keras_sq.export(model, path, representative_data=examples)


def test_few_row_numbers_may_be_floats(tmp_path):
    flags = keras.Input((4,))
    x = kl.Flatten()(kl.Embedding(2, 8)(flags))
    model = keras.Model(flags, kl.Dense(3)(x))
    examples = np.random.default_rng(0).integers(0, 2, (30, 4)).astype("float32")
    report = keras_sq.export(
        model, tmp_path / "m.tflite", target="int8", representative_data=examples
    )
    assert report.mean_error < 0.05


def test_operators_that_stay_float_are_named(tmp_path):
    x = keras.Input((6, 8, 8, 2))
    model = keras.Model(x, kl.Conv3D(4, 3)(x))
    report = keras_sq.export(
        model,
        tmp_path / "m.tflite",
        target="int8",
        representative_data=data(6, 8, 8, 2),
    )
    assert any("in float, for want of int8 forms: CONV_3D" in x for x in report.notes)


def looping():
    return keras.Sequential([keras.Input((7, 3)), kl.LSTM(5, name="memory")])


@pytest.mark.parametrize("target", ["int8", "small"])
def test_loops_over_time_are_an_error_for_integers(target, tmp_path):
    # TensorFlow's own quantization ends the process on them.
    model = keras_sq.quantize_model(looping(), "ternary", overrides={})
    with pytest.raises(ExportError, match="loops over time .*'memory'.*unroll=True"):
        untrained(model, tmp_path / "m.tflite", target, representative_data=data(7, 3))
    assert os.listdir(tmp_path) == []


def test_unrolled_recurrent_layer_becomes_integers(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), kl.GRU(20, unroll=True)])
    model = keras_sq.quantize_model(model, "ternary", overrides={})
    report = untrained(
        model, tmp_path / "m.tflite", "int8", representative_data=data(5, 3)
    )
    assert report.quantized_weights == 60 * 23


def test_every_kind_has_a_target():
    assert list(kinds.KINDS) == list(targets.TARGETS)


# The check.


def corrupted(monkeypatch, change):
    """Puts a hook behind the function that stores the weights."""
    original = choice._store

    def store(file, found):
        reports = original(file, found)
        for tensor in (tensor for _, _, tensor in file.constants()):
            if TYPE_NAMES[tensor.type] in ("INT16", "INT8", "INT2"):
                buffer = file.model.buffers[tensor.buffer]
                if len(buffer.data) > 500:
                    buffer.data = change(np.array(buffer.data))
        return reports

    monkeypatch.setattr(choice, "_store", store)


def one_bit(array):
    array[100] ^= 1
    return array


@pytest.mark.parametrize("target", ["fast", "int2", "small"])
def test_one_wrong_weight_is_refused(target, monkeypatch, tmp_path):
    corrupted(monkeypatch, one_bit)
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    with pytest.raises(ExportError, match="does not compute what the model does"):
        untrained(model, tmp_path / "m.tflite", target)
    assert os.listdir(tmp_path) == []


def test_one_wrong_integer_weight_is_refused(monkeypatch, tmp_path):
    corrupted(monkeypatch, one_bit)
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    with pytest.raises(ExportError, match="is not that of the unpacked file"):
        untrained(
            model, tmp_path / "m.tflite", "small", representative_data=data(12, 12, 8)
        )
    assert os.listdir(tmp_path) == []


def test_integers_that_differ_in_the_mean_are_refused(monkeypatch, tmp_path):
    def wrong(request):
        made = building.integers(request)
        file = TFLiteFile(made.converted.content)
        for _, _, tensor in file.constants():
            if TYPE_NAMES[tensor.type] == "INT8":
                buffer = file.model.buffers[tensor.buffer]
                buffer.data = np.roll(np.array(buffer.data), 1)
        converted = dataclasses.replace(made.converted, content=file.pack())
        return dataclasses.replace(made, converted=converted)

    monkeypatch.setattr(targets.TARGETS["int8"], "make", wrong)
    model = keras_sq.quantize_model(cnn(), "binary", overrides={})
    with pytest.raises(ExportError, match="in the mean. The difference begins at "):
        untrained(
            model, tmp_path / "m.tflite", "int8", representative_data=data(12, 12, 8)
        )
    assert os.listdir(tmp_path) == []


def test_metadata_that_breaks_the_file_is_noticed():
    model = cnn()
    signature = inputs.input_signature(model)
    from keras_sq.export.conversion import convert

    converted = convert.float_file(model, signature)
    running.check_same(converted, converted.content)
    other = convert.float_file(cnn(), signature)
    with pytest.raises(ExportError, match="is not that of the unpacked file"):
        running.check_same(converted, other.content)


# Bad arguments.


def test_integers_need_representative_data(tmp_path):
    with pytest.raises(ValueError, match="Target 'int8' needs `representative_data`"):
        keras_sq.export(cnn(), tmp_path / "m.tflite", target="int8")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"target": "small", "max_decode_bytes": 100},
            ValueError,
            "is for target 'mcu' only. Received: max_decode_bytes=100",
        ),
        ({"target": "tiny"}, ValueError, "must be one of 'float', 'fast', 'int2'"),
    ],
)
def test_bad_options_are_errors(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        keras_sq.export(cnn(), tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []


def test_values_that_are_not_finite_name_the_layer(tmp_path):
    # TensorFlow's quantization ends the process on them.
    model = keras.Sequential(
        [
            keras.Input((4,)),
            kl.Dense(8, name="fine"),
            kl.Rescaling(1e30),
            kl.ReLU(),
            kl.Rescaling(1e30, name="huge"),
            kl.Softmax(),
            kl.Dense(3),
        ],
        name="wild",
    )
    match = "Layer 'huge' of model 'wild' gives NaN or infinite values on `repr"
    with pytest.raises(ExportError, match=match):
        keras_sq.export(
            model, tmp_path / "m.tflite", target="int8", representative_data=data(4)
        )
    assert os.listdir(tmp_path) == []


def test_coarse_int8_outputs_are_noted(tmp_path):
    # A softmax over 1,000 equal classes: the steps of its int8 form are 1/256.
    model = keras.Sequential([keras.Input((4,)), kl.Dense(1000, "softmax")])
    model.layers[0].kernel.assign(model.layers[0].kernel * 1e-3)
    report = keras_sq.export(
        model, tmp_path / "m.tflite", target="int8", representative_data=data(4)
    )
    (note,) = report.notes
    assert "outputs differ from Keras's by 1 of their size in the mean" in note
    assert "the steps of int8 are output_0: 0.0039" in note


def test_biases_beside_packed_kernels_have_no_scales(tmp_path):
    # Twelve bytes a filter, which nothing reads but XNNPACK, which stays away.
    model = keras_sq.quantize_model(cnn(), "ternary", overrides={})
    path = tmp_path / "m.tflite"
    report = untrained(model, path, "small", representative_data=data(12, 12, 8))
    packed = {path for path, form in stored(report).items() if "packed" in form}
    assert packed and packed != set(stored(report))
    before = bias_scales(path)
    untrained(model, path, "int8", representative_data=data(12, 12, 8))
    plain = bias_scales(path)
    assert len(before) == len(plain) == 3
    for (unfolded, scales), (_, kept) in zip(before, plain, strict=True):
        assert scales == (0 if unfolded else kept)
    assert {unfolded for unfolded, _ in before} == {True, False}
    assert min(kept for _, kept in plain) > 0


def bias_scales(path):
    """Returns, by operator: is its kernel unfolded, how many scales has its bias."""
    file = TFLiteFile(path.read_bytes())
    (subgraph,) = file.subgraphs
    found = []
    for operator in subgraph.operators:
        places = indices(operator.inputs)
        if file.operator_name(operator) in building.BIASED and places[2] >= 0:
            _, kernel, bias = (subgraph.tensors[place] for place in places)
            scale = bias.quantization and bias.quantization.scale
            count = 0 if scale is None else len(scale)
            found.append((file.data(kernel) is None, count))
    return found
