"""Target "mcu" through `keras_sq.export`: the file, its C sources, its report."""

import errno
import os

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.export import ExportError
from keras_sq.export.conversion import inputs
from keras_sq.export.micro import compression, signature
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.tflite import flatbuffer
from keras_sq.files import atomic_files


def data(*shape, count=20, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def cnn():
    x = image = keras.Input((16, 16, 3), name="image")
    x = kl.Conv2D(32, 3, use_bias=False, name="first")(x)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    x = kl.DepthwiseConv2D(3, name="depthwise")(x)
    x = kl.MaxPooling2D()(kl.Conv2D(64, 3, activation="relu", name="second")(x))
    x = kl.Dense(64, activation="relu", name="dense")(kl.Flatten()(x))
    return keras.Model(image, kl.Dense(10, name="logits")(x), name="cnn")


def export(model, path, **kwargs):
    kwargs.setdefault("representative_data", data(16, 16, 3))
    return keras_sq.export(model, path, target="mcu", allow_untrained=True, **kwargs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("mcu")
    model = keras_sq.quantize_model(cnn(), "binary", seed=0, overrides={})
    return folder, model, export(model, folder / "my-net.tflite")


def test_file_is_small_and_exact(exported):
    folder, _, report = exported
    assert report.bit_exact
    assert report.tolerance is None
    assert report.num_bytes == os.path.getsize(folder / "my-net.tflite")
    rows = {kernel.path: kernel for kernel in report.kernels}
    assert rows["dense/kernel"].stored_as == "1-bit table"
    assert rows["dense/kernel"].bits_per_weight < 1.1
    assert rows["dense/kernel"].reason.startswith("exactly -127, 0 and 127")
    assert all(kernel.quantized for kernel in report.kernels)
    assert report.quantized_weights == sum(kernel.weights for kernel in report.kernels)
    assert report.arena_bytes <= 1.5 * report.int8_arena_bytes
    assert "takes one example at a time, as microcontrollers do" in report.notes
    assert report.inputs[0].shape == (1, 16, 16, 3)
    assert report.runtime.startswith("TensorFlow Lite Micro 0.dev2026")
    text = str(report)
    assert f"arena    {report.arena_bytes:,} bytes" in text
    assert "bit for bit the int8 file" in text


def test_file_agrees_with_the_int8_file(exported, tmp_path):
    folder, model, report = exported
    plain = keras.models.clone_model(keras_sq.strip_quantization(model))
    plain.set_weights(keras_sq.strip_quantization(model).get_weights())
    # Of a fixed batch of one, as for "mcu".
    fixed = keras.Input(batch_shape=(1, 16, 16, 3), name="image")
    path = tmp_path / "int8.tflite"
    keras_sq.export(
        keras.Model(fixed, plain(fixed)),
        path,
        target="int8",
        representative_data=data(16, 16, 3),
    )
    content = (folder / "my-net.tflite").read_bytes()
    batch = np.random.default_rng(5).integers(-128, 128, (1, 16, 16, 3))
    outputs = [
        micro_runtime.MicroRunner(entry, size)([batch.astype("int8")])[0]
        for entry, size in ((content, report.arena_bytes), (path.read_bytes(), None))
    ]
    np.testing.assert_array_equal(*outputs)


def test_sources_hold_the_file(exported):
    folder, _, report = exported
    assert sorted(os.listdir(folder)) == ["my-net.cc", "my-net.h", "my-net.tflite"]
    assert sorted(report.sources) == [
        str(folder / "my-net.cc"),
        str(folder / "my-net.h"),
    ]
    header = (folder / "my-net.h").read_text()
    source = (folder / "my-net.cc").read_text()
    content = (folder / "my-net.tflite").read_bytes()
    assert f"arena_bytes = {report.arena_bytes};" in header
    assert "image" in header
    body = source[source.index("{") + 1 : source.index("}")]
    values = bytes(int(value, 16) for value in body.replace("\n", "").split(",")[:-1])
    assert values == content
    assert f"_len = {len(content)};" in source


def test_memory_is_enough_and_no_less_would_do(exported):
    folder, _, report = exported
    content = (folder / "my-net.tflite").read_bytes()
    micro_runtime.MicroRunner(content, report.arena_bytes)
    with pytest.raises(ExportError, match="cannot run the file in"):
        micro_runtime.MicroRunner(content, report.arena_bytes - 16)


def test_names_survive_the_compression(tmp_path):
    a, b = keras.Input((40,), name="left"), keras.Input((30,), name="right")
    total = kl.Dense(60, name="d1")(a) + kl.Dense(60, name="d2")(b)
    model = keras.Model([a, b], {"total": total, "other": kl.Dense(3)(a)})
    model = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    path = tmp_path / "m.tflite"
    examples = {"left": data(40), "right": data(30)}
    report = export(model, path, representative_data=examples)
    assert [entry.name for entry in report.inputs] == ["left", "right"]
    assert [entry.shape for entry in report.outputs] == [(1, 3), (1, 60)]
    file = flatbuffer.TFLiteFile(path.read_bytes())
    (signature,) = file.model.signatureDefs
    assert {entry.name.decode() for entry in signature.inputs} == {"left", "right"}
    assert {entry.name.decode() for entry in signature.outputs} == {"other", "total"}
    header = (tmp_path / "m.h").read_text()
    for name in ("left", "right", "total", "other"):
        assert name in header


def test_smaller_parts_need_less_memory(tmp_path):
    model = keras_sq.quantize_model(cnn(), "ternary", seed=0, overrides={})
    reports = [
        export(model, tmp_path / "m.tflite", max_decode_bytes=size)
        for size in (2**20, 2**12)
    ]
    assert reports[0].arena_bytes > reports[1].arena_bytes
    assert reports[0].num_bytes < reports[1].num_bytes
    assert "parts" in str(reports[1])


def test_open_sizes_become_those_of_the_data(tmp_path):
    model = keras.Sequential(
        [keras.Input((None, None, 2)), kl.Conv2D(4, 3), kl.GlobalAveragePooling2D()]
    )
    report = export(model, tmp_path / "m.tflite", representative_data=data(9, 14, 2))
    assert report.inputs[0].shape == (1, 9, 14, 2)
    assert "the sizes of its inputs are those of `representative_data`" in report.notes


def test_plain_model_without_small_kernels(tmp_path):
    report = export(cnn(), tmp_path / "m.tflite")
    assert report.quantized_weights == 0
    assert {kernel.stored_as for kernel in report.kernels} == {"int8"}
    assert report.num_bytes < report.float_bytes / 2


def test_wrong_table_is_refused(monkeypatch, tmp_path):
    original = compression.compress

    def compress(content, max_decode_bytes):
        made = original(content, max_decode_bytes)
        file = flatbuffer.TFLiteFile(made.content)
        largest = max(
            (buffer for buffer in file.model.buffers if buffer.data is not None),
            key=lambda buffer: len(buffer.data),
        )
        largest.data = np.array(largest.data) ^ 1
        return compression.MicroFile(**{**vars(made), "content": file.pack()})

    monkeypatch.setattr(compression, "compress", compress)
    model = keras_sq.quantize_model(cnn(), "binary", seed=0, overrides={})
    with pytest.raises(ExportError, match="is not that of the unpacked file"):
        export(model, tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_the_old_files(monkeypatch, tmp_path):
    for suffix in (".tflite", ".h", ".cc"):
        (tmp_path / f"m{suffix}").write_text("old")
    original, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # The last of the three files.
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    model = keras_sq.quantize_model(cnn(), "binary", seed=0, overrides={})
    with pytest.raises(OSError, match="Cannot write .*: No space left"):
        export(model, tmp_path / "m.tflite")
    assert len(calls) == 3
    assert sorted(os.listdir(tmp_path)) == ["m.cc", "m.h", "m.tflite"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}


def test_missing_package_is_named_before_the_conversion(monkeypatch, tmp_path):
    def missing():
        raise micro_runtime.missing_package(ImportError("No module"))

    monkeypatch.setattr(micro_runtime, "_interpreter_module", missing)
    model = keras_sq.quantize_model(cnn(), "binary", seed=0, overrides={})
    with pytest.raises(ImportError, match=r"pip install keras-sq\[micro\]"):
        export(model, tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"representative_data": None}, ValueError, "Target 'mcu' needs `repr"),
        ({"max_decode_bytes": 0}, ValueError, "`max_decode_bytes`.*at least 1"),
        ({"max_decode_bytes": 1.5}, TypeError, "`max_decode_bytes` must be an int"),
    ],
)
def test_bad_options_are_errors(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        export(cnn(), tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []


def test_signature_names_follow_the_files_order(tmp_path):
    model = keras_sq.quantize_model(cnn(), "binary", seed=0, overrides={})
    path = tmp_path / "m.tflite"
    export(model, path)
    load = signature.loader(path.read_bytes())
    runner = load(path.read_bytes(), False)
    assert runner.inputs == {"image": "int8"}
    (entry,) = inputs.input_signature(model).inputs
    batch = runner.quantized("image", entry.random(1, np.random.default_rng(0)))
    assert runner({"image": batch})["output_0"].shape == (1, 10)
