"""TFLite files of any origin come back bit for bit; wrong files are refused."""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import packed_samples
import pytest
import tensorflow as tf
from absl import flags
from keras import layers as kl

import keras_sq
from keras_sq.export import kinds
from keras_sq.export.inspection import command as inspect
from keras_sq.export.inspection import reader
from keras_sq.export.packed import buffers, command, container, segments

TARGETS = sorted(kinds.KINDS.keys() - {"lce"})


def network():
    x = image = keras.Input((12, 12, 8), name="image")
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(32, 3, use_bias=False)(x)))
    x = kl.BatchNormalization()(kl.DepthwiseConv2D(3)(x))
    x = kl.ReLU()(kl.Conv2D(64, 3)(x))
    return keras.Model(image, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Target -> path of a file of a ternary network, made when it is asked for."""
    folder = tmp_path_factory.mktemp("exported")
    keras.utils.set_random_seed(0)
    model = keras_sq.quantize_model(network(), "ternary", seed=0, overrides={})

    def export(target):
        path = folder / f"{target}.tflite"
        if not path.exists():
            examples = np.random.default_rng(0).random((8, 12, 12, 8), np.float32)
            keras_sq.export(
                model,
                path,
                target=target,
                representative_data=examples if target in ("int8", "mcu") else None,
                allow_untrained=True,
            )
        return path

    return export


@pytest.fixture(scope="module")
def packed(exported):
    return keras_sq.pack_file(exported("fast"))


@pytest.mark.parametrize("target", TARGETS)
def test_file_of_target_comes_back(target, exported, tmp_path):
    if target == "mcu":
        pytest.importorskip("tflite_micro")
    path = exported(target)
    packed = keras_sq.pack_file(path, tmp_path / "model.tflite.sq")
    assert (tmp_path / "model.tflite.sq").read_bytes() == packed
    assert len(packed) < len(gzip.compress(path.read_bytes()))
    unpacked = keras_sq.unpack_file(tmp_path / "model.tflite.sq", tmp_path / "m.tflite")
    assert unpacked == (tmp_path / "m.tflite").read_bytes() == path.read_bytes()


def test_targets_have_about_the_same_size_when_packed(exported):
    sizes = [
        len(keras_sq.pack_file(exported(target)))
        for target in ("fast", "int2", "float")
    ]
    assert max(sizes) < 1.1 * min(sizes)


def test_file_of_another_converter_comes_back():
    converter = tf.lite.TFLiteConverter.from_keras_model(network())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    packed = keras_sq.pack_file(content)
    assert len(packed) < len(content)
    assert keras_sq.unpack_file(packed) == content


def test_bytes_can_be_of_any_type(exported, packed):
    content = exported("fast").read_bytes()
    assert keras_sq.pack_file(bytearray(content)) == packed
    assert keras_sq.unpack_file(memoryview(packed)) == content


def test_kernels_take_two_percent_more_than_their_entropy_at_most(exported):
    content = exported("fast").read_bytes()
    array = np.frombuffer(content, np.uint8)
    chosen = segments.choose(array, buffers.constants(content))
    kernels = [segment for segment in chosen if segment.size > 2000]
    assert len(kernels) >= 2
    for kernel in kernels:
        # Against the file without the bytes of the kernel.
        others = np.delete(array, slice(kernel.start, kernel.start + kernel.size))
        rest = container.write(others.tobytes(), without(kernel, chosen))
        num_bytes = len(container.write(content, chosen)) - len(rest)
        _, counts = np.unique(kernel.blocks[0], return_counts=True)
        entropy = counts @ np.log2(kernel.size / counts) / 8
        assert num_bytes < 1.02 * entropy + 24


def without(removed, chosen):
    """Returns the segments of a file from which the bytes of one are removed."""
    return [
        dataclasses.replace(x, start=x.start - removed.size * (x.start > removed.start))
        for x in chosen
        if x is not removed
    ]


def test_tables_are_shared_when_there_are_many(monkeypatch):
    content, constants = packed_samples.content_and_constants()
    chosen = segments.choose(np.frombuffer(content, np.uint8), constants)
    many = container.write(content, chosen)
    monkeypatch.setattr(container, "MAX_TABLES", 3)
    few = container.write(content, chosen)
    assert len(many) < len(few)
    assert few[28] == 3  # Number of tables.
    assert container.read(few) == content


# What is wrong.


def file_with(tmp_path, content):
    path = tmp_path / "wrong"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\3\4 and more", "no TFLite file (there is no 'TFL3' at its start)"),
        (b"\x1c\0\0\0TFL3", "it is damaged or cut off"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(40), "it is damaged or cut off"),
    ],
)
def test_what_is_no_tflite_file_is_not_packed(content, message, tmp_path):
    path = file_with(tmp_path, content)
    for source, name in [
        (path, f"source='{path}'"),
        (content, f"source of {len(content)} bytes"),
    ]:
        expected = f"Argument `source` must be a TFLite file. Received: {name}: "
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            keras_sq.pack_file(source, tmp_path / "model.sq")
        assert message in str(caught.value)
    assert not (tmp_path / "model.sq").exists()


def test_packed_file_is_not_packed_again(packed):
    with pytest.raises(ValueError, match="which is packed already"):
        keras_sq.pack_file(packed)


def test_constant_that_ends_beyond_the_file_is_refused(exported):
    content = exported("float").read_bytes()
    largest = max(buffers.constants(content), key=lambda constant: constant.size)
    changed = bytearray(content)
    changed[largest.start - 4 : largest.start] = (2**30).to_bytes(4, "little")
    with pytest.raises(ValueError, match="it is damaged or cut off"):
        keras_sq.pack_file(bytes(changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: b"", "it is empty"),
        (lambda x: b"TFL3" + x[4:], "it is no packed file (there is no 'SQPK' at"),
        (lambda x: x[:20], "it is cut off"),
        (lambda x: x[:-2], "it is damaged or cut off: it should have"),
        (lambda x: x[:4] + b"\2" + x[5:], "of version 2, and this release reads"),
        (lambda x: x[:30] + b"\xee" + x[31:], "the check sum of its header is wrong"),
        (lambda x: x[:-2] + b"\xee\xee", "it is damaged"),
        (
            lambda x: packed_samples.resealed(x[:16] + b"\1\2\3\4" + x[20:]),
            "the check sum of the unpacked file is wrong",
        ),
    ],
)
def test_damaged_file_is_not_unpacked(change, message, packed, tmp_path):
    path = file_with(tmp_path, change(packed))
    expected = re.escape(f"`source` must be a packed file. Received: source='{path}'")
    with pytest.raises(ValueError, match=expected) as caught:
        keras_sq.unpack_file(path, tmp_path / "model.tflite")
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["wrong"]


@pytest.mark.parametrize("function", [keras_sq.pack_file, keras_sq.unpack_file])
def test_wrong_source_is_refused(function, tmp_path):
    with pytest.raises(
        TypeError, match="`source` must be a path or bytes. Received: s"
    ):
        function(3)
    with pytest.raises(ValueError, match="`source` must name a regular file. Received"):
        function(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        function(tmp_path / "missing")


def test_wrong_destination_is_refused_before_anything_is_read(tmp_path):
    for function, path, error, message in [
        (keras_sq.pack_file, "model.tflite", ValueError, "must end in '.sq'"),
        (keras_sq.unpack_file, "model.sq", ValueError, "must end in '.tflite'"),
        (keras_sq.pack_file, "no/model.sq", FileNotFoundError, "directory that exists"),
        (keras_sq.unpack_file, "no/model.tflite", FileNotFoundError, "that exists"),
        (keras_sq.unpack_file, 3, TypeError, "must be a string or a path"),
    ]:
        path = tmp_path / path if isinstance(path, str) else path
        with pytest.raises(error, match=message):
            function("missing", path)
    assert not os.listdir(tmp_path)


def test_file_that_does_not_come_back_is_not_written(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(container, "read", lambda content: b"else")
    with pytest.raises(RuntimeError, match="does not unpack to the same bytes"):
        keras_sq.pack_file(exported("fast"), tmp_path / "model.sq")
    assert not os.listdir(tmp_path)


# Commands.


def run(module, arguments):
    values = flags.FlagValues()
    module.define_flags(values)
    _, *rest = values(["program", *map(str, arguments)])
    return module.main(values, rest)


def test_command_packs_and_unpacks(exported, tmp_path, capsys):
    source, packed = exported("fast"), tmp_path / "model.tflite.sq"
    assert run(command, [source, packed]) == 0
    size, packed_size = source.stat().st_size, packed.stat().st_size
    expected = f"{source}: {size:,} bytes; {packed}: {packed_size:,} bytes\n"
    assert capsys.readouterr().out == expected
    assert run(command, ["--unpack", packed, tmp_path / "model.tflite"]) == 0
    assert (tmp_path / "model.tflite").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "expected the paths of the file to read and of the file to write"),
        (["a", "b", "c"], 2, "got 3 arguments"),
        (["missing", "out.sq"], 1, "'missing': No such file or directory."),
        (["missing", "no/out.sq"], 1, "must be in a directory that exists"),
        ([__file__, "out.sq"], 1, "it is no TFLite file"),
        (["--unpack", __file__, "out.tflite"], 1, "it is no packed file"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(
    arguments, status, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(command, arguments) == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("keras_sq.pack: error: ") and message in printed.err
    assert not os.listdir(tmp_path)


def test_command_runs_as_a_process(packed, tmp_path):
    paths = [str(tmp_path / name) for name in ("model.sq", "model.tflite")]
    (tmp_path / "model.sq").write_bytes(packed)
    result = subprocess.run(
        [sys.executable, "-m", "keras_sq.pack", "--unpack", *paths],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model.tflite").read_bytes() == keras_sq.unpack_file(packed)


def test_packed_file_is_inspected(exported, packed, tmp_path, capsys):
    path = tmp_path / "model.tflite.sq"
    path.write_bytes(packed)
    contents = reader.read(path)
    expected = reader.read(exported("fast"))
    assert expected["packed_bytes"] is None
    assert contents == {**expected, "packed_bytes": len(packed)}
    assert run(inspect, [path]) == 0
    title, second, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{path}: {expected['num_bytes']:,} bytes (")
    assert (
        second == f"  packed     {len(packed):,} bytes; other sizes are those unpacked"
    )
    assert run(inspect, ["--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["packed_bytes"] == len(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-2], "it is damaged or cut off: it should have"),
        (lambda x: x[:4] + b"\2" + x[5:], "it is of version 2"),
        (lambda x: container.write(x, []), "it is packed twice"),
        (lambda x: container.write(b"text", []), "it is no TFLite file"),
    ],
)
def test_damaged_packed_file_is_not_inspected(change, message, packed, tmp_path):
    path = file_with(tmp_path, change(packed))
    with pytest.raises(ValueError, match=message):
        reader.read(path)
