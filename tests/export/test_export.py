"""The exported file: what is in it, what is checked, what is refused."""

import builtins
import dataclasses
import errno
import importlib
import json
import os
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_sq
from keras_sq.export import ExportError, ExportReport, errors, examples, targets
from keras_sq.export.conversion import convert, inputs, precision
from keras_sq.export.tflite import flatbuffer, runtime
from keras_sq.export.verification import comparison as comparing
from keras_sq.export.verification import differences
from keras_sq.files import atomic_files


def small_model():
    return keras.Sequential(
        [
            keras.Input((6,), name="features"),
            kl.Dense(5, activation="relu", name="hidden"),
            kl.Dense(3, name="logits"),
        ],
        name="small",
    )


def untrained(model, path, **kwargs):
    return keras_sq.export(model, path, allow_untrained=True, **kwargs)


# Models.


def convolutions():
    x = image = keras.Input((12, 12, 3), name="image")
    x = kl.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    x = x + kl.SeparableConv2D(8, 3, padding="same")(x)
    x = kl.Conv2DTranspose(4, 2, strides=2)(kl.DepthwiseConv2D(3)(x))
    return keras.Model(image, kl.Dense(4, "softmax")(kl.GlobalAveragePooling2D()(x)))


def transformer():
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    x = kl.Embedding(50, 16)(tokens)
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(2, 8)(x, x))
    x = x + kl.Dense(16)(kl.Dense(32, activation="gelu")(x))
    return keras.Model(tokens, kl.Dense(3)(kl.GlobalAveragePooling1D()(x)))


def recurrent():
    return keras.Sequential(
        [
            keras.Input((7, 3)),
            kl.Bidirectional(kl.GRU(4, return_sequences=True)),
            kl.LSTM(5),
            kl.Dense(2),
        ]
    )


def several_inputs():
    a, b = keras.Input((4,), name="alpha"), keras.Input((5,), name="beta")
    shared = kl.Dense(3)
    total = shared(kl.Dense(4)(a)) + shared(kl.Dense(4)(b))
    return keras.Model({"alpha": a, "beta": b}, {"total": total, "first": shared(a)})


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 2)), kl.Conv1D(4, 3), kl.Flatten()], name="inner"
    )
    x = keras.Input((8, 2))
    return keras.Model(x, [kl.Dense(2)(inner(x)), kl.Dense(1)(inner(x))])


MODELS = {
    "convolutions": (convolutions, None, ["output_0"]),
    "transformer": (transformer, None, ["output_0"]),
    "recurrent": (recurrent, 1, ["output_0"]),
    "several_inputs": (several_inputs, None, ["first", "total"]),
    "nested": (nested, None, ["output_0", "output_1"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_quantized_model_gives_a_file_that_computes_the_same(name, tmp_path):
    make, batch, outputs = MODELS[name]
    model = keras_sq.quantize_model(make(), "ternary", seed=0, overrides={})
    path = tmp_path / "model.tflite"
    report = untrained(model, path)
    assert path.stat().st_size == report.num_bytes
    assert report.num_bytes > 4 * report.parameters  # The weights are inside.
    assert report.largest_error < 1e-5
    assert [entry.shape[0] for entry in report.inputs] == [batch] * len(report.inputs)
    assert [entry.name for entry in report.outputs] == outputs
    assert report.quantized_weights == sum(
        codes.codes.size for codes in keras_sq.get_codes(model).values()
    )
    # The files run on their own too, and agree on inputs of the test's.
    generator = np.random.default_rng(1)
    signature = inputs.input_signature(model)
    example = [entry.random(1, generator) for entry in signature.inputs]
    names = [entry.name for entry in signature.inputs]
    actual = runtime.Runner(path.read_bytes())(dict(zip(names, example, strict=True)))
    expected = model(signature.pack(example), training=False)
    for output, value in zip(outputs, keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(actual[output], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [convolutions, recurrent])
def test_large_models_take_another_way_to_the_same_file(make, monkeypatch):
    model = make()
    signature = inputs.input_signature(model)
    small = convert.float_file(model, signature)
    monkeypatch.setattr(convert, "MAX_CONSTANT_BYTES", 0)
    large = convert.float_file(model, signature)
    assert large.signature == small.signature
    assert len(large.content) > 4 * model.count_params()
    none = examples.Examples()
    comparison = comparing.Comparer(large, model, none).compare_float(1e-5)
    expected = comparing.Comparer(small, model, none).compare_float(1e-5)
    assert comparison.outputs == expected.outputs


def test_plain_model_is_exported_as_it_is(tmp_path):
    model = small_model()
    report = keras_sq.export(model, tmp_path / "model.tflite")
    assert (report.parameters, report.quantized_weights) == (53, 0)
    assert report.bits_per_weight is None
    assert [kernel.quantized for kernel in report.kernels] == [False, False]
    paths = {kernel.path for kernel in report.kernels}
    # TensorFlow 2.20 leaves no trace of the layer whose result the model returns.
    old = tf.__version__.startswith("2.20.")
    named = {"hidden"} if old else {"hidden", "logits"}
    assert named <= paths
    assert len(paths) == 2


def test_file_holds_the_quantized_kernel(tmp_path):
    model = keras_sq.quantize_model(small_model(), "binary", overrides={})
    path = tmp_path / "model.tflite"
    untrained(model, path)
    kernel = keras_sq.get_codes(model)["hidden/kernel"].kernel
    assert np.ascontiguousarray(kernel.T).tobytes() in path.read_bytes()


def test_trained_model_loaded_without_its_optimizer_is_exported(tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", seed=0, overrides={})
    model.compile("sgd", "mse")
    callback = keras_sq.callbacks.StochasticQuantization()
    model.fit(
        np.ones((8, 6)), np.ones((8, 3)), epochs=8, callbacks=[callback], verbose=0
    )
    keras_sq.export(model, tmp_path / "model.tflite")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    keras_sq.export(loaded, tmp_path / "loaded.tflite")
    first, second = (tmp_path / name for name in ("model.tflite", "loaded.tflite"))
    assert first.read_bytes() == second.read_bytes()


def test_export_leaves_the_model_alone(tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    untrained(model, tmp_path / "model.tflite")
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_two_exports_of_one_model_are_equal(tmp_path):
    model = keras.Sequential([keras.Input((6,)), kl.Dense(3)])
    first, second = tmp_path / "first.tflite", tmp_path / "second.tflite"
    report = keras_sq.export(model, first)
    keras_sq.export(model, second)
    assert first.read_bytes() == second.read_bytes()
    assert report.inputs[0].name == "input"  # Not Keras's counter.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_reduced_precision_becomes_a_float32_file(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((8, 2)),
            kl.Conv1D(4, 3),
            kl.Lambda(lambda x: x * 2),
            kl.TimeDistributed(kl.Dense(3)),
            kl.Flatten(),
            kl.Dense(2, dtype="float32"),
        ]
    )
    model = keras_sq.quantize_model(model, "binary", overrides={})
    report = untrained(model, tmp_path / "model.tflite")
    assert report.largest_error < 1e-5
    assert report.outputs[0].dtype == "float32"
    assert report.notes == ("computes in float32; the model does not",)
    copy = precision.in_float32(keras_sq.strip_quantization(model))
    assert not precision.computes_otherwise(copy)


def test_hybrid_inference_is_exported_fully_quantized(tmp_path):
    model = keras_sq.quantize_model(
        small_model(), "binary", inference="hybrid", overrides={}
    )
    keras_sq.set_ratio(model, 0.5)
    path = tmp_path / "model.tflite"
    untrained(model, path, allow_partial=True)
    kernel = keras_sq.get_codes(model)["hidden/kernel"].kernel
    assert np.ascontiguousarray(kernel.T).tobytes() in path.read_bytes()


# What is compared.


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = kl.Embedding(10, 3)
        self.top = kl.Dense(2)

    def call(self, inputs):
        return self.top(keras.ops.mean(self.table(inputs), axis=1))


def test_subclassed_model_takes_its_dtypes_from_the_data(tmp_path):
    model = Subclassed()
    tokens = np.arange(15, dtype="int64").reshape(3, 5) % 10
    model(tokens)
    report = keras_sq.export(
        model, tmp_path / "model.tflite", representative_data=tokens
    )
    assert [str(entry) for entry in report.inputs] == ["input (any, 5) int32"]
    assert report.representative_examples == 3
    report = keras_sq.export(model, tmp_path / "model.tflite")
    assert [str(entry) for entry in report.inputs] == ["input (any, 5) float32"]


def test_random_inputs_stay_within_the_embeddings():
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    segments = keras.Input((4,), dtype="int32", name="segments")
    other = keras.Input((4,), dtype="int32", name="other")
    pixels = keras.Input((4,), dtype="uint8", name="pixels")
    flags = keras.Input((4,), dtype="bool", name="flags")
    numbers = keras.Input((4,), name="numbers")
    x = kl.Embedding(50, 2)(tokens) + kl.Embedding(3, 2)(segments)
    x = kl.Flatten()(x + kl.Embedding(7, 2)(other + 0))
    rest = [keras.ops.cast(y, "float32") for y in (pixels, flags)]
    model = keras.Model(
        [tokens, segments, other, pixels, flags, numbers], [x, *rest, numbers * 2]
    )
    signature = inputs.input_signature(model)
    limits = {entry.name: entry.limit for entry in signature.inputs}
    assert limits == {
        "tokens": 50,
        "segments": 3,
        "other": 3,  # Goes through an addition: the smallest table is safe.
        "pixels": 256,
        "flags": 2,
        "numbers": None,
    }
    generator = np.random.default_rng(0)
    for entry in signature.inputs:
        batch = entry.random(100, generator)
        assert batch.shape == (100, 4)
        assert batch.dtype == entry.dtype
        if entry.limit is not None:
            assert (batch.min(), batch.max()) == (0, entry.limit - 1)


def test_unknown_sizes_stay_open(tmp_path):
    model = keras.Sequential(
        [keras.Input((None, None, 1)), kl.Conv2D(2, 3), kl.GlobalAveragePooling2D()]
    )
    data = np.random.default_rng(0).normal(size=(2, 9, 14, 1))
    report = keras_sq.export(model, tmp_path / "model.tflite", representative_data=data)
    assert report.inputs[0].shape == (None, None, None, 1)


def test_representative_examples_fill_up_a_fixed_batch(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(4, 6)), kl.Dense(2)])
    data = np.random.default_rng(0).normal(size=(7, 6))
    report = keras_sq.export(model, tmp_path / "model.tflite", representative_data=data)
    assert report.inputs[0].shape == (4, 6)
    assert (report.random_examples, report.representative_examples) == (8, 8)


def test_many_representative_examples_are_thinned_out():
    signature = inputs.input_signature(small_model())
    data = np.arange(6000.0).reshape(1000, 6)
    batches = [
        batch.arrays[0]
        for batch in examples.Examples([data]).comparison(signature)
        if batch.kind == "representative"
    ]
    seen = np.concatenate(batches)
    assert len(seen) == examples.MAX_COMPARED
    np.testing.assert_array_equal(seen[[0, -1]], data[[0, -1]])


@pytest.mark.parametrize(
    "data",
    [
        {"alpha": np.ones((3, 4)), "beta": np.ones((3, 5))},
        {"beta": tf.ones((3, 5)), "alpha": np.ones((3, 4), "int32")},
    ],
)
def test_representative_data_by_name(data):
    _, prepared, _ = inputs.prepare(several_inputs(), data)
    arrays = prepared.arrays
    assert [array.shape for array in arrays] == [(3, 4), (3, 5)]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}


BAD_DATA = {
    "shape": (np.ones((3, 5)), ValueError, r"shape \('examples', 6\) for input 'feat"),
    "rank": (np.ones(6), ValueError, r"Received: shape=\(6,\)"),
    "nan": (np.full((2, 6), np.nan), ValueError, "NaN or infinite values for input"),
    "dtype": (np.full((2, 6), "a"), TypeError, "must hold numbers for input 'features"),
    "empty": (np.ones((0, 6)), ValueError, r"at least one, .* Received: \[0\]"),
    "kind": (3.5, TypeError, "must be an array, a dict, .* object of type float"),
    "count": (
        (np.ones((2, 6)),) * 2,
        ValueError,
        r"each input .*\('features'\).*: 2 of",
    ),
    "names": ({"x": np.ones((2, 6))}, ValueError, r"Received: the keys \['x'\]"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_representative_data_is_an_error(case, tmp_path):
    data, error, match = BAD_DATA[case]
    with pytest.raises(error, match=match):
        keras_sq.export(small_model(), tmp_path / "m.tflite", representative_data=data)
    assert os.listdir(tmp_path) == []


def test_floats_for_an_integer_input_are_an_error(tmp_path):
    with pytest.raises(TypeError, match="must hold integers for input 'tokens'"):
        keras_sq.export(
            transformer(), tmp_path / "m.tflite", representative_data=np.ones((2, 10))
        )


def test_different_numbers_of_examples_are_an_error():
    data = {"alpha": np.ones((2, 4)), "beta": np.ones((3, 5))}
    with pytest.raises(ValueError, match=r"same number of examples.*\[2, 3\]"):
        inputs.prepare(several_inputs(), data)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0.0),
        ([0.25], [0.0], 0.25),  # Of 1: nothing is divided by 0.
        ([1e-40, 0.0], [0.0, 1e-40], 1e-40),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([0.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_relative_error(actual, expected, error):
    assert differences.relative_error(np.array(actual), np.array(expected)) == error


# Refusals.


def corrupting(monkeypatch, corrupt):
    """Puts a hook behind the converter."""
    original = targets.TARGETS["float"].make

    def make(request):
        candidate = original(request)
        content = corrupt(candidate.converted.content, request.model)
        converted = dataclasses.replace(candidate.converted, content=content)
        return dataclasses.replace(candidate, converted=converted)

    monkeypatch.setattr(targets.TARGETS["float"], "make", make)


def kernel_bytes(model):
    kernel = keras.ops.convert_to_numpy(model.get_layer("hidden").kernel)
    return np.ascontiguousarray(kernel.T).tobytes()


def test_file_with_one_wrong_weight_is_refused(monkeypatch, tmp_path):
    def corrupt(content, model):
        old = kernel_bytes(model)
        assert content.count(old) == 1
        wrong = np.frombuffer(old, "float32").copy()
        wrong[np.argmax(wrong)] *= 1.05
        return content.replace(old, wrong.tobytes())

    corrupting(monkeypatch, corrupt)
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    match = r"on random inputs, output 'output_0' differs by .* No file was written"
    with pytest.raises(ExportError, match=match):
        untrained(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


def test_file_without_weights_is_refused(monkeypatch, tmp_path):
    def corrupt(content, model):
        old = kernel_bytes(model)
        return content.replace(old, bytes(len(old)))

    corrupting(monkeypatch, corrupt)
    with pytest.raises(ExportError, match="does not compute what the model does"):
        keras_sq.export(small_model(), tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


def test_difference_on_representative_inputs_only_is_refused(monkeypatch, tmp_path):
    def corrupt(content, model):
        return content.replace(np.float32(50.0).tobytes(), np.float32(9.0).tobytes())

    corrupting(monkeypatch, corrupt)
    x = keras.Input((6,))
    model = keras.Model(x, keras.ops.minimum(x, 50.0))
    with pytest.raises(ExportError, match="on representative inputs, output"):
        keras_sq.export(
            model, tmp_path / "m.tflite", representative_data=np.full((2, 6), 99.0)
        )
    assert os.listdir(tmp_path) == []


def test_refusal_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "model.tflite"
    model = small_model()
    keras_sq.export(model, path)
    old = path.read_bytes()
    corrupting(monkeypatch, lambda content, model: content[: len(content) // 2])
    with pytest.raises(ExportError, match="cannot be loaded"):
        keras_sq.export(model, path)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert path.read_bytes() == old


def test_file_of_another_model_is_refused(monkeypatch, tmp_path):
    other = several_inputs()
    content = convert.float_file(other, inputs.input_signature(other)).content
    corrupting(monkeypatch, lambda *_: content)
    with pytest.raises(ExportError, match=r"takes \['alpha', 'beta'\], not \['feat"):
        keras_sq.export(small_model(), tmp_path / "model.tflite")


def test_interrupted_export_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(content, model):
        raise KeyboardInterrupt("stop")

    corrupting(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        keras_sq.export(small_model(), tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


# Bad arguments. All are noticed before the conversion starts.


@pytest.fixture
def no_conversion(monkeypatch):
    def fail(*args):
        raise AssertionError("The conversion was started.")

    monkeypatch.setattr(convert, "_convert", fail)


def test_unknown_target_lists_the_known(no_conversion, tmp_path):
    with pytest.raises(ValueError, match="must be one of 'float'.*target='flaot'.*Did"):
        keras_sq.export(small_model(), tmp_path / "m.tflite", target="flaot")


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        (7, TypeError, "must be a string or a path. Received: path=7"),
        (b"m.tflite", TypeError, "must be a string or a path"),
        (
            "model.keras",
            ValueError,
            r"must end in '\.tflite'. Received: .*model\.keras",
        ),
        ("missing/m.tflite", FileNotFoundError, "create '.*missing' first"),
        ("folder.tflite", IsADirectoryError, "folder.tflite', which is a directory"),
        ("file.txt/m.tflite", FileNotFoundError, "in a directory that exists"),
    ],
)
def test_bad_path_is_an_error(path, error, match, no_conversion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(error, match=match):
        keras_sq.export(small_model(), path)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder.tflite"]


def test_unwritable_directory_is_an_error(no_conversion, monkeypatch, tmp_path):
    def refuse(path, flags, mode):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(atomic_files.os, "open", refuse)
    match = "Cannot write the exported file: Permission denied.*model.tflite'"
    with pytest.raises(PermissionError, match=match):
        keras_sq.export(small_model(), tmp_path / "model.tflite")


def test_full_disk_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(OSError, match="Cannot write .*: No space left.*model.tflite'"):
        keras_sq.export(small_model(), path)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert path.read_bytes() == b"old"


def test_link_is_followed_and_readable_by_others(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.tflite"
    link.symlink_to(tmp_path / "real" / "model.tflite")
    keras_sq.export(small_model(), link)
    assert link.is_symlink()
    reference = tmp_path / "reference"
    reference.touch()
    assert link.stat().st_mode == reference.stat().st_mode


def test_no_keras_model_is_an_error(no_conversion, tmp_path):
    with pytest.raises(TypeError, match="must be a Keras model. Received .* Dense"):
        keras_sq.export(kl.Dense(3), tmp_path / "m.tflite")


def test_unbuilt_model_is_an_error(no_conversion, tmp_path):
    model = keras.Sequential([kl.Dense(3)], name="open")
    with pytest.raises(ValueError, match="Model 'open' is not built.*Call it"):
        keras_sq.export(model, tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_untrained_model_is_an_error(no_conversion, tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    match = "Model 'small' was not trained since .*`allow_untrained=True`"
    with pytest.raises(ValueError, match=match):
        keras_sq.export(model, tmp_path / "m.tflite")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=match):
        keras_sq.export(model, tmp_path / "m.tflite")


def test_directly_quantized_model_counts_as_trained(tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    keras_sq.set_ratio(model, 1.0)
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0)
    keras_sq.export(model, tmp_path / "m.tflite")


def test_partly_trained_model_is_an_error_with_its_ratio(tmp_path, monkeypatch):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    keras_sq.set_ratio(model, 0.625)
    with pytest.raises(
        ValueError, match="part of the way: .* is 0.625,.*allow_partial"
    ):
        keras_sq.export(model, tmp_path / "m.tflite")
    # Drawn masks are a sign of training, so only this is left to allow.
    report = keras_sq.export(model, tmp_path / "m.tflite", allow_partial=True)
    assert report.quantized_weights == 45


@pytest.mark.parametrize("quantized", [False, True])
def test_weights_that_are_not_finite_are_an_error(quantized, no_conversion, tmp_path):
    model = small_model()
    if quantized:
        model = keras_sq.quantize_model(model, "ternary", overrides={})
        keras_sq.set_ratio(model, 0.5)
        keras_sq.set_ratio(model, 1.0)
    model.layers[-1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="'.*logits/bias' of model 'small' holds NaN"):
        keras_sq.export(model, tmp_path / "m.tflite")


def test_stateful_layer_is_an_error(no_conversion, tmp_path):
    layer = kl.LSTM(3, stateful=True, name="memory")
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 3)), layer])
    with pytest.raises(ValueError, match="Layer 'memory' keeps its state"):
        keras_sq.export(model, tmp_path / "m.tflite")


def test_other_backend_is_an_error(no_conversion, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="needs Keras's TensorFlow backend.*'jax'"):
        keras_sq.export(small_model(), tmp_path / "m.tflite")


def test_sparse_input_is_an_error(no_conversion, tmp_path):
    x = keras.Input((4,), sparse=True, name="counts")
    model = keras.Model(x, kl.Dense(2)(x))
    with pytest.raises(ValueError, match="Input 'counts' .* is sparse or ragged"):
        keras_sq.export(model, tmp_path / "m.tflite")


class TwoArguments(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = kl.Dense(2), kl.Dense(2)

    def build(self, left_shape, right_shape):
        self.left.build(left_shape)
        self.right.build(right_shape)

    def call(self, left, right):
        return self.left(left) + self.right(right)


def test_model_of_several_arguments_is_an_error(no_conversion, tmp_path):
    model = TwoArguments(name="pair")
    model(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(
        ValueError, match="'pair' .* in one argument .*functional model"
    ):
        keras_sq.export(model, tmp_path / "m.tflite")


class Special(kl.Layer):
    def call(self, inputs):
        return keras.ops.erfinv(keras.ops.tanh(inputs))


def test_operation_that_tflite_lacks_is_named_with_its_layer(tmp_path, capfd):
    inner = keras.Sequential([keras.Input((4,)), Special(name="odd")], name="inner")
    x = keras.Input((6,))
    model = keras.Model(x, inner(kl.Dense(4)(x)), name="outer")
    match = (
        "Model 'outer' cannot become .* stopped at operation Erfinv "
        r"\(has no builtin form\) of layer 'inner/odd'\. Replace"
    )
    with pytest.raises(ExportError, match=match) as caught:
        keras_sq.export(model, tmp_path / "m.tflite")
    assert len(str(caught.value)) < 400
    assert os.listdir(tmp_path) == []
    # The converter's own pages of it stay away.
    assert capfd.readouterr() == ("", "")


def test_other_failures_are_shortened():
    error = errors.conversion_error(RuntimeError("first\n" * 99), small_model())
    assert str(error) == (
        "Model 'small' cannot be converted to TFLite: RuntimeError: first"
    )


# The runtime.


def test_tensorflows_interpreter_is_used_without_litert(monkeypatch, tmp_path):
    find = builtins.__import__

    def without_litert(name, *args, **kwargs):
        if name.startswith("ai_edge_litert"):
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_litert)
    report = keras_sq.export(small_model(), tmp_path / "model.tflite")
    assert report.runtime == f"TensorFlow Lite {tf.__version__}"
    monkeypatch.delattr(tf.lite, "Interpreter")
    with pytest.raises(ImportError, match="pip install ai-edge-litert"):
        keras_sq.export(small_model(), tmp_path / "model.tflite")


def test_litert_is_used_where_it_is_installed(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is optional")
    report = keras_sq.export(small_model(), tmp_path / "model.tflite")
    assert report.runtime.startswith("LiteRT 2.")


def test_export_prints_nothing(tmp_path, capfd):
    keras_sq.export(small_model(), tmp_path / "model.tflite")
    assert capfd.readouterr() == ("", "")


def test_quiet_keeps_python_and_native_output_apart(capfd):
    with runtime.quiet():
        os.write(2, b"native\n")
    print("mine", file=sys.stderr)
    assert capfd.readouterr().err == "mine\n"


def test_quiet_works_without_a_standard_error():
    code = (
        "import os\n"
        "from keras_sq.export.tflite.runtime import quiet\n"
        "os.close(2)\n"
        "with quiet():\n"
        "    print('inside')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, "inside\n")


# The report, and the name.


def test_report_prints_and_becomes_json(tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    data = np.ones((5, 6))
    path = tmp_path / "model.tflite"
    report = untrained(model, path, representative_data=data)
    assert isinstance(report, ExportReport)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["quantized_weights"] == 45
    assert content["bits_per_weight"] == 32.0
    assert content["times_smaller"] == report.float_bytes / report.num_bytes
    assert content["file_bits_per_weight"] == 8 * report.num_bytes / 53
    assert content["kernels"][0] == {
        "path": "hidden/kernel",
        "weights": 30,
        "levels": 3,
        "stored_as": "float32",
        "num_bytes": 120,
        "quantized": True,
        "reason": "the target keeps float32 weights",
        "bits_per_weight": 32.0,
    }
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{path}: {report.num_bytes:,} bytes, target 'float', ")
    assert lines[1:3] == [
        "  takes    features (any, 6) float32",
        "  gives    output_0 (any, 3) float32",
    ]
    assert lines[3].startswith("  weights  53, of which 45 quantized, at 32.00 bits")
    assert "checked  4 random and 5 representative examples with" in lines[4]
    assert lines[5].startswith("  runs on  tflite-runtime >= 2.14, ")
    assert lines[7:] == [
        "  kernel         weights  levels  stored as   bits  because",
        "  hidden/kernel       30       3  float32    32.00  the target keeps float32"
        " weights",
        "  logits/kernel       15       3  float32    32.00  the target keeps float32"
        " weights",
    ]


def test_report_is_in_the_files_metadata(tmp_path):
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    path = tmp_path / "model.tflite"
    report = untrained(model, path)
    metadata = flatbuffer.TFLiteFile(path.read_bytes()).metadata("keras_sq.report")
    content = json.loads(zlib.decompress(metadata))
    everything = json.loads(json.dumps(report.to_dict()))
    assert set(everything) - set(content) == {
        "path",
        "num_bytes",
        "sources",
        "times_smaller",
        "file_bits_per_weight",
    }
    assert content == {key: everything[key] for key in content}


def test_the_function_keeps_its_name_whatever_is_imported():
    package = importlib.import_module("keras_sq.export")
    assert callable(keras_sq.export)
    assert package.export is keras_sq.export
    assert package.ExportReport is ExportReport
    namespace = {}
    exec("import keras_sq.export\nfrom keras_sq import export", namespace)
    assert namespace["keras_sq"].export is namespace["export"] is package.export
