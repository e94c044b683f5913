"""What `keras_sq.inspect` reports of files of all kinds, and of damaged ones."""

import concurrent.futures
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import zlib

import flatbuffers
import fuzzing
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from keras import layers as kl
from tensorflow.lite.python import schema_py_generated as schema

import keras_sq
from keras_sq.export import kinds, report
from keras_sq.export.inspection import command as inspect
from keras_sq.export.inspection import reader, table
from keras_sq.export.inspection.contents import REPORT_NAME, contents, count_levels
from keras_sq.export.tflite import runtime
from keras_sq.export.tflite.flatbuffer import (
    IDENTIFIER,
    TFLiteFile,
    pack_bits,
    per_channel,
)


def network():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            kl.Conv2D(8, 3, name="conv"),
            kl.DepthwiseConv2D(3, name="depthwise"),
            kl.Flatten(),
            kl.Dense(4, name="logits"),
        ],
        name="net",
    )


@pytest.fixture(scope="module")
def ternary():
    keras.utils.set_random_seed(0)
    return keras_sq.quantize_model(network(), "ternary", seed=0, overrides={})


@pytest.fixture(scope="module")
def float_file(ternary, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.tflite"
    keras_sq.export(ternary, path, allow_untrained=True)
    return path.read_bytes()


def raw_pack(model):
    """Returns the bytes of a schema object, right or wrong."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def weight_of(result, operator):
    """Returns the weight that an operator reads."""
    (weight,) = (x for x in result["weights"] if operator in x["readers"])
    return weight


def named(entries, *names):
    """Returns some of what is reported of a tensor."""
    return tuple(entries[name] for name in names)


# Files by hand: a graph of one float input, to which a test adds a weight.


class Graph:
    """A file with one float input; `read_by` adds the FULLY_CONNECTED."""

    def __init__(self, filters=6, size=20):
        self.file = TFLiteFile(empty_file())
        self.graph = self.file.subgraphs[0]
        self.x = self.file.add_tensor(self.graph, "x", (1, size), "FLOAT32")
        self.y = self.file.add_tensor(self.graph, "y", (1, filters), "FLOAT32")
        self.graph.inputs, self.graph.outputs = [self.x], [self.y]
        self.shape = (filters, size)

    def constant(self, values, type_name, name="", quantization=None, shape=None):
        shape = np.shape(values) if shape is None else shape
        return self.file.add_tensor(
            self.graph, name, shape, type_name, values, quantization
        )

    def tensor(self, shape, type_name, name=""):
        return self.file.add_tensor(self.graph, name, shape, type_name)

    def operator(self, name, inputs, outputs, options=None, version=1):
        operator = self.file.new_operator(name, inputs, outputs, options, version)
        self.graph.operators.append(operator)
        return operator

    def custom(self, name, inputs, outputs):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = name.encode()
        self.file.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.file.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        self.graph.operators.append(operator)

    def read_by(self, weight, output=None):
        output = self.y if output is None else output
        options = schema.FullyConnectedOptionsT()
        self.operator("FULLY_CONNECTED", [self.x, weight], [output], options)
        return self

    def pack(self):
        return self.file.pack()


def empty_file():
    model = schema.ModelT()
    model.version = 3
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.name = [], [], b"main"
    model.subgraphs, model.operatorCodes = [graph], []
    model.buffers = [schema.BufferT()]
    return raw_pack(model)


def gather_options(axis=0, batch_dims=0):
    options = schema.GatherOptionsT()
    options.axis, options.batchDims = axis, batch_dims
    return options


def add_packed(graph, digits, levels, table, group):
    """Adds a weight as packed digits; returns its tensor, with one name each."""
    filters, size = digits.shape
    base = levels.shape[1]
    padded = np.pad(digits.reshape(-1), (0, -digits.size % group)).reshape(-1, group)
    packed = (padded * base ** np.arange(group)[::-1]).sum(axis=1).astype("<i2")
    indices = graph.constant(packed, "INT16", "packed")
    rows = graph.tensor((len(packed), group), "INT32")
    flat = graph.tensor((padded.size,), "INT32")
    cut = graph.tensor((digits.size,), "INT32")
    square = graph.tensor(digits.shape, "INT32")
    weight = graph.tensor((filters, size), "FLOAT32", "weight")
    values = graph.constant(levels, "FLOAT32", "levels")
    shapes = [
        graph.constant(np.array(x, "<i4"), "INT32")
        for x in ([padded.size], [0], [digits.size], [1], digits.shape)
    ]
    graph.operator("GATHER", [table, indices], [rows], gather_options())
    graph.operator("RESHAPE", [rows, shapes[0]], [flat])
    options = schema.StridedSliceOptionsT()
    graph.operator("STRIDED_SLICE", [flat, *shapes[1:4]], [cut], options)
    graph.operator("RESHAPE", [cut, shapes[4]], [square])
    graph.operator("GATHER", [values, square], [weight], gather_options(1, 1))
    return weight


def digit_table(base, group):
    numbers = np.arange(base**group)[:, np.newaxis]
    return (numbers // base ** np.arange(group)[::-1] % base).astype("<i4")


def packed_file():
    generator = np.random.default_rng(0)
    graph = Graph()
    table = graph.constant(digit_table(3, 4), "INT32", "table")
    levels = np.outer(np.arange(1, 7), [-1.0, 0.0, 1.0]).astype("<f4")
    first = add_packed(graph, generator.integers(0, 3, (6, 20)), levels, table, 4)
    second = add_packed(graph, generator.integers(0, 3, (6, 20)), 9 * levels, table, 4)
    other = graph.tensor((1, 6), "FLOAT32")
    return graph.read_by(first, other).read_by(second).pack()


def header(bits, axis, length):
    return bytes([0, 1, 0, 0, 1, axis << 4 | bits, length, *[0] * 9])


def decode_file(bits=2, per_filter=True):
    generator = np.random.default_rng(1)
    graph = Graph()
    indices = generator.integers(0, 3, (6, 20))
    indices[:, :3] = [0, 1, 2]
    tables = np.array([[-127, 0, 127]] * 6 if per_filter else [[-127, 0, 127]], "i1")
    ones = "".join(f"{index:0{bits}b}" for index in indices.reshape(-1))
    ones += "0" * (-len(ones) % 8)
    encoded = np.frombuffer(int(ones, 2).to_bytes(len(ones) // 8, "big"), np.uint8)
    ancillary = header(bits, 0 if per_filter else 15, 3) + tables.tobytes()
    weight = graph.tensor((6, 20), "INT8", "weight_decoded")
    inputs = [
        graph.constant(encoded, "UINT8", "weight"),
        graph.constant(np.frombuffer(ancillary, np.uint8), "UINT8", "ancillary"),
    ]
    graph.custom("TFLM_DECODE", inputs, [weight])
    return graph.read_by(weight).pack()


VERSIONS = {"INT8": 2, "INT4": 6, "INT2": 7}
"""Versions of DEQUANTIZE for codes of a type."""


# What is reported.


def test_float_file_is_read_in_full(ternary, float_file):
    result = contents(float_file)
    file = TFLiteFile(float_file)
    assert result["num_bytes"] == len(float_file)
    assert result["other_bytes"] == len(float_file) - result["constant_bytes"]
    sizes = {t.buffer: len(file.data(t)) for _, _, t in file.constants()}
    assert result["constant_bytes"] == sum(sizes.values())
    assert len(result["constants"]) == len(list(file.constants()))
    (graph,) = result["graphs"]
    assert graph["tensors"] == len(file.subgraphs[0].tensors)
    assert graph["operators"]["CONV_2D"] == graph["operators"]["FULLY_CONNECTED"] == 1
    (signature,) = result["signatures"]
    (taken,), (returned,) = signature["inputs"], signature["outputs"]
    assert named(taken, "name", "shape") == ("image", [None, 12, 12, 3])
    expected = ("float32", None, None)
    assert named(returned, "dtype", "scale", "zero_point") == expected
    assert REPORT_NAME == report.METADATA_NAME
    assert set(result["metadata"]) >= {"min_runtime_version", REPORT_NAME}
    assert result["report"]["target"] == "float"
    assert result["notes"] == []
    kernels = keras_sq.get_codes(ternary).values()
    assert [w["weights"] for w in result["weights"]] == [x.codes.size for x in kernels]


@pytest.mark.parametrize(
    ("operator", "shape", "axis"),
    [
        ("CONV_2D", (8, 3, 3, 3), 0),
        ("DEPTHWISE_CONV_2D", (1, 3, 3, 8), 3),
        ("FULLY_CONNECTED", (4, 512), 0),
    ],
)
def test_levels_are_counted_over_the_tensor_and_by_filter(
    float_file, operator, shape, axis
):
    result = contents(float_file)
    weight = weight_of(result, operator)
    assert named(weight, "shape", "channel_axis") == (shape, axis)
    assert named(weight, "stored_as", "chain") == ("FLOAT32", [])
    assert weight["bits_per_weight"] == 32
    (index,) = weight["constants"]
    constant = result["constants"][index]
    file = TFLiteFile(float_file)
    values = file.array(file.subgraphs[0].tensors[constant["index"]])
    assert weight["levels"] == constant["levels"] == len(np.unique(values))
    rows = np.moveaxis(values, axis, 0)
    assert weight["channel_levels"] == max(len(np.unique(row)) for row in rows) == 3


@pytest.mark.parametrize("target", [x for x, y in kinds.KINDS.items() if not y.single])
def test_every_target_is_understood(target, ternary, float_file, tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 12, 12, 3)).astype("f4")
    path = tmp_path / "model.tflite"
    written = keras_sq.export(
        ternary,
        path,
        target=target,
        allow_untrained=True,
        representative_data=data if kinds.KINDS[target].needs_examples else None,
    )
    result = contents(path.read_bytes())
    weights = result["weights"]
    assert result["notes"] == []
    assert result["report"]["target"] == target
    assert [w["channel_levels"] for w in weights] == [3, 3, 3]
    assert [w["weights"] for w in weights] == [x.weights for x in written.kernels]
    if not {"INT8", "INT4", "INT2"} & {w["type"] for w in weights}:
        # Computed: the very numbers of the float file.
        floats = [w["levels"] for w in contents(float_file)["weights"]]
        assert [w["levels"] for w in weights] == floats


def test_packed_codes_are_followed_through_their_scales(tmp_path):
    model = keras.Sequential([keras.Input((12, 12, 32)), keras.layers.Conv2D(64, 3)])
    quantizer = keras_sq.quantizers.UniformQuantizer(4, num_levels=13)
    model = keras_sq.quantize_model(model, quantizer, overrides={}, seed=0)
    path = tmp_path / "model.tflite"
    keras_sq.export(
        model,
        path,
        target="small",
        allow_untrained=True,
        oldest_runtime="tflite-runtime 2.14",
    )
    # In a process of its own, as the command does.
    result = reader.read(path)
    assert result["notes"] == []
    (weight,) = result["weights"]
    assert weight["chain"][-1] == "DEQUANTIZE"
    assert named(weight, "stored_as", "channel_levels") == ("4 per INT16", 13)
    kernel = keras_sq.strip_quantization(model).layers[-1].kernel
    assert weight["levels"] == len(np.unique(kernel))


def test_packed_digits_are_followed_to_the_weight():
    result = contents(packed_file())
    first, second = result["weights"]
    assert first["chain"] == ["GATHER", "RESHAPE", "STRIDED_SLICE", "RESHAPE", "GATHER"]
    assert named(first, "stored_as", "type") == ("4 per INT16", "FLOAT32")
    assert named(first, "levels", "channel_levels") == (13, 3)
    parts = [result["constants"][index] for index in first["constants"]]
    assert {"packed", "table", "levels"} <= {x["name"] for x in parts}
    sizes = [x["num_bytes"] for x in parts]
    assert sizes == sorted(sizes, reverse=True)
    # 81 rows of the table, 30 indices, 18 levels, five numbers of shapes.
    assert first["num_bytes"] == 16 * 81 + 2 * 30 + 4 * 18 + 4 * 5
    assert first["bits_per_weight"] == 8 * first["num_bytes"] / 120
    # Equal shapes are stored once too.
    assert first["shared_bytes"] == second["shared_bytes"] == 16 * 81 + 4 * 5
    assert result["weight_bytes"] == 16 * 81 + 4 * 5 + 2 * (2 * 30 + 4 * 18)
    assert result["weight_bytes"] == result["constant_bytes"]
    assert result["bits_per_weight"] == 8 * result["weight_bytes"] / 240
    packed = [x for x in result["constants"] if x["name"] == "packed"]
    assert [x["packing"] for x in packed] == ["4 per INT16"] * 2
    assert named(packed[0], "readers", "bits_per_value") == ({"GATHER": 1}, 16)


@pytest.mark.parametrize("per_filter", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
def test_lookup_tables_of_microcontrollers_are_decoded(bits, per_filter):
    result = contents(decode_file(bits, per_filter))
    (weight,) = result["weights"]
    assert weight["chain"] == ["TFLM_DECODE"]
    assert named(weight, "stored_as", "type") == (f"{bits}-bit indices", "INT8")
    assert named(weight, "levels", "channel_levels") == (3, 3)
    tables = 16 + 3 * (6 if per_filter else 1)
    assert weight["num_bytes"] == 120 * bits // 8 + tables
    packing = [x["packing"] for x in result["constants"]]
    assert packing == [f"{bits}-bit indices", "lookup tables"]


def test_decoding_in_an_unknown_way_is_a_note():
    content = decode_file().replace(header(2, 0, 3), b"\x01" + header(2, 0, 3)[1:])
    result = contents(content)
    (weight,) = result["weights"]
    assert named(weight, "levels", "channel_levels") == (None, None)
    assert result["notes"] == [
        "levels unknown of 1 tensors (made by TFLM_DECODE: decoded in an unknown way), "
        "such as 'weight_decoded'",
    ]
    assert "?" in table.table(result, "x")


@pytest.mark.parametrize(("type_name", "bits"), [("INT2", 2), ("INT4", 4), ("INT8", 8)])
def test_codes_are_read_with_their_scales(type_name, bits):
    graph = Graph()
    codes = np.random.default_rng(0).integers(-1, 2, (6, 20)).astype("i1")
    codes[:, :3] = [-1, 0, 1]
    data = codes if bits == 8 else pack_bits(codes, bits)
    scale = np.arange(1, 7, dtype="f4")
    constant = graph.constant(
        data, type_name, "codes", per_channel(scale, 0), shape=codes.shape
    )
    weight = graph.tensor(codes.shape, "FLOAT32", "weight")
    graph.operator("DEQUANTIZE", [constant], [weight], version=VERSIONS[type_name])
    result = contents(graph.read_by(weight).pack())
    (weight,), (constant,) = result["weights"], result["constants"]
    expected = (13, 3, type_name)
    assert named(weight, "levels", "channel_levels", "stored_as") == expected
    assert constant["packing"] == {2: "4 per byte", 4: "2 per byte", 8: ""}[bits]
    assert named(constant, "levels", "bits_per_value") == (3, bits)
    assert constant["num_bytes"] == 120 * bits // 8
    # Scales and zero points.
    assert constant["scale_bytes"] == 6 * (4 + 8)
    assert weight["num_bytes"] == constant["num_bytes"] + constant["scale_bytes"]


# Files from elsewhere.


def convert(function, *specs, **settings):
    """Returns what TensorFlow's converter makes of a function."""
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    for name, value in settings.items():
        setattr(converter, name, value)
    with runtime.quiet():
        return converter.convert()


KERNEL = np.random.default_rng(0).normal(size=(64, 40)).astype("f4")


def dense(x):
    return tf.matmul(x, KERNEL)


def test_converters_half_precision_is_understood():
    content = convert(
        dense,
        tf.TensorSpec((None, 64)),
        optimizations=[tf.lite.Optimize.DEFAULT],
        target_spec=tf.lite.TargetSpec(supported_types=[tf.float16]),
    )
    result = contents(content)
    (weight,) = result["weights"]
    assert named(weight, "chain", "stored_as") == (["DEQUANTIZE"], "FLOAT16")
    assert named(weight, "shape", "bits_per_weight") == ((40, 64), 16)
    assert weight["levels"] == len(np.unique(KERNEL.astype("f2")))
    assert result["report"] is None


def test_converters_dynamic_range_is_understood():
    content = convert(
        dense, tf.TensorSpec((None, 64)), optimizations=[tf.lite.Optimize.DEFAULT]
    )
    (weight,) = contents(content)["weights"]
    assert named(weight, "chain", "type", "shape") == ([], "INT8", (40, 64))
    assert weight["levels"] <= 255


@pytest.mark.parametrize("transposed", [False, True])
def test_constant_of_a_batch_matmul_has_its_filters_last(transposed):
    matrix = np.round(KERNEL[np.newaxis, :4, :6])
    if transposed:
        matrix = matrix.transpose(0, 2, 1)

    def product(x):
        return tf.raw_ops.BatchMatMulV2(x=x, y=matrix, adj_y=transposed)

    result = contents(convert(product, tf.TensorSpec((3, 5, 4))))
    weight = weight_of(result, "BATCH_MATMUL")
    # The converter may transpose the constant itself.
    filters = weight["shape"][weight["channel_axis"]]
    assert (weight["weights"], filters) == (24, 6)
    columns = np.round(KERNEL[:4, :6]).T
    assert weight["channel_levels"] == max(len(np.unique(x)) for x in columns)


def test_embedding_is_a_weight_of_rows():
    def look_up(x):
        return tf.gather(np.sign(KERNEL), x)

    content = convert(look_up, tf.TensorSpec((3,), tf.int32))
    weight = weight_of(contents(content), "GATHER")
    assert named(weight, "shape", "channel_axis", "levels") == ((64, 40), 0, 2)


def test_loops_and_branches_are_graphs_of_their_own():
    def loop(x):
        return tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, tf.matmul(y, KERNEL[:40])), (0, x)
        )

    result = contents(convert(loop, tf.TensorSpec((2, 40))))
    assert len(result["graphs"]) == 3
    assert weight_of(result, "FULLY_CONNECTED")["graph"] > 0
    assert "graph 2: " in table.table(result, "x")


def test_file_without_a_signature_uses_the_tensors_names(float_file):
    file = TFLiteFile(float_file)
    file.model.signatureDefs = None
    (signature,) = contents(file.pack())["signatures"]
    (taken,) = signature["inputs"]
    assert (signature["key"], taken["shape"]) == ("", [None, 12, 12, 3])
    assert taken["name"].startswith("serving_default_image")


def test_several_signatures_are_told_apart(float_file):
    file = TFLiteFile(float_file)
    (entry,) = file.model.signatureDefs
    file.model.signatureDefs = [entry, entry]
    text = table.table(contents(file.pack()), "x")
    assert text.count(f"takes      {entry.signatureKey.decode()}: image") == 2


def test_sparse_and_unknown_types_are_no_error():
    graph = Graph()
    sparse = graph.constant(np.ones(7, "f4"), "FLOAT32", "sparse", shape=(6, 20))
    graph.graph.tensors[sparse].sparsity = schema.SparsityParametersT()
    unknown = graph.constant(np.ones(7, "i1"), "INT8", "unknown", shape=(3, 3))
    graph.graph.tensors[unknown].type = 99
    result = contents(graph.read_by(sparse).pack())
    entries = {x["name"]: x for x in result["constants"]}
    assert named(entries["sparse"], "packing", "levels") == ("sparse", None)
    assert named(entries["unknown"], "type", "levels") == ("TYPE_99", None)
    assert len(result["notes"]) == 2


def test_weight_of_an_unknown_operator_leaves_the_levels_open():
    graph = Graph()
    constant = graph.constant(np.ones((6, 20), "f4"), "FLOAT32", "ones")
    weight, other = (graph.tensor((6, 20), "FLOAT32", name) for name in "ab")
    graph.custom("Mystery", [constant], [weight])
    graph.operator("EXP", [constant], [other])
    output = graph.tensor((1, 6), "FLOAT32")
    result = contents(graph.read_by(other, output).read_by(weight).pack())
    known, unknown = result["weights"]
    assert named(known, "chain", "levels") == (["EXP"], 1)
    assert named(unknown, "chain", "levels") == (["Mystery"], None)
    assert unknown["bits_per_weight"] == 32
    (note,) = result["notes"]
    assert note.startswith("levels unknown of 1 tensors (made by Mystery: ")


@pytest.mark.parametrize("name", ["RANDOM_UNIFORM", "CALL_ONCE"])
def test_what_changes_from_run_to_run_is_no_constant(name):
    graph = Graph()
    shape = graph.constant(np.array([6, 20], "<i4"), "INT32")
    weight = graph.tensor((6, 20), "FLOAT32")
    graph.operator(name, [shape], [weight])
    assert contents(graph.read_by(weight).pack())["weights"] == []


def test_operators_that_do_not_fit_leave_the_levels_open():
    graph = Graph()
    constant = graph.constant(np.ones((6, 20), "f4"), "FLOAT32")
    order = graph.constant(np.array([0, 5], "<i4"), "INT32")
    weight = graph.tensor((6, 20), "FLOAT32", "weight")
    graph.operator("TRANSPOSE", [constant, order], [weight])
    result = contents(graph.read_by(weight).pack())
    assert result["weights"][0]["levels"] is None
    assert "(made by TRANSPOSE: " in result["notes"][0]


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("dtype", ["f4", "i1", "?"])
def test_levels_are_those_of_numpy(dtype, axis):
    generator = np.random.default_rng(0)
    values = generator.integers(-3, 3, (4, 5, 6)).astype(dtype)
    values[1] = 0
    total, most = count_levels(values, axis)
    assert total == len(np.unique(values))
    rows = [] if axis is None else np.moveaxis(values, axis, 0)
    assert most == max((len(np.unique(row)) for row in rows), default=None)


def test_levels_take_both_zeros_for_one_and_nan_for_another():
    values = np.array([[0.0, -0.0], [np.nan, np.nan], [np.inf, 1.0]], "f4")
    assert count_levels(values, 0) == (4, 2)
    assert count_levels(values[:0], 0) == (0, 0)
    assert count_levels(np.float32(3), None) == (1, None)


# Our metadata.


def with_report(content, data):
    file = TFLiteFile(content)
    file.set_metadata(REPORT_NAME, data)
    return file.pack()


def test_report_in_the_metadata_is_read(float_file, tmp_path):
    data = zlib.compress(b'{"target": "x", "number": NaN, "a": [1e999, -1e999, 1.5]}')
    path = tmp_path / "model.tflite"
    path.write_bytes(with_report(float_file, data))
    result = reader.read(path)
    expected = {"target": "x", "number": None, "a": [None, None, 1.5]}
    assert result["report"] == expected
    json.dumps(result, allow_nan=False)
    assert "exported   target 'x'" in table.table(result, "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nothing compressed", "incorrect header"),
        (zlib.compress(b"{}")[:-3], "too large"),
        (zlib.compress(b" " * 2**25 + b"{}"), "Expecting value"),
        (zlib.compress(b"[1, 2]"), "no JSON object"),
        (zlib.compress(b"{"), "Expecting property name"),
        (zlib.compress(b"\xff"), "can't decode byte"),
        (zlib.compress(b"[" * 10**6), "recursion"),
    ],
)
def test_report_that_cannot_be_read_is_a_note(float_file, data, reason):
    result = contents(with_report(float_file, data))
    assert result["report"] is None
    (note,) = result["notes"]
    assert note.startswith("the metadata 'keras_sq.report' cannot be read")
    assert reason in note


# Damaged files.


def edited(change):
    """Returns a sound file, with a change that its writer would not make."""
    model = TFLiteFile(packed_file()).model
    change(model, model.subgraphs[0])
    return raw_pack(model)


def set_in(kind, **values):
    def change(model, graph):
        entry = {"tensor": graph.tensors[-1], "operator": graph.operators[-1]}[kind]
        for name, value in values.items():
            setattr(entry, name, value)

    return change


def set_constant(**values):
    def change(model, graph):
        tensor = next(x for x in graph.tensors if x.name == b"levels")
        for name, value in values.items():
            setattr(tensor, name, value)

    return change


def add_signature(tensor, graph_index=0):
    def change(model, graph):
        entry, name = schema.SignatureDefT(), schema.TensorMapT()
        name.name, name.tensorIndex = b"x", tensor
        entry.inputs, entry.outputs = [name], []
        entry.signatureKey, entry.subgraphIndex = b"serve", graph_index
        model.signatureDefs = [entry]

    return change


def add_metadata(model, graph):
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"x", 999
    model.metadata = [entry]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("tensor", buffer=999), "refers to buffer 999 of"),
        (set_in("operator", inputs=[0, 999]), "refers to tensor 999 of"),
        (set_in("operator", outputs=[-2]), "refers to tensor -2 of"),
        (set_in("operator", opcodeIndex=9), "refers to operator code 9 of"),
        (set_constant(shape=[6, 4]), r"should have 96 bytes, and has 72"),
        (set_constant(shape=[6, -3]), "has a negative size"),
        (set_constant(type=9), "should have 18 bytes, and has 72"),
        (lambda model, graph: setattr(graph, "inputs", [999]), "tensor 999 of"),
        (lambda model, graph: setattr(model, "subgraphs", []), "has no graph"),
        (add_signature(999), "refers to tensor 999 of"),
        (add_signature(0, 5), "refers to graph 5 of 1"),
        (add_metadata, "refers to buffer 999 of"),
    ],
)
def test_wrong_reference_is_an_error(change, message):
    assert contents(edited(lambda model, graph: None))["weights"]
    with pytest.raises(ValueError, match=message):
        contents(edited(change))


def vector(builder, start, offsets):
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def finish(builder, tensors, buffers, graphs=1):
    """Returns a file of graphs with a vector of tensors, otherwise empty."""
    subgraphs = []
    for _ in range(graphs):
        schema.SubGraphStart(builder)
        schema.SubGraphAddTensors(builder, tensors)
        subgraphs.append(schema.SubGraphEnd(builder))
    subgraphs = vector(builder, schema.ModelStartSubgraphsVector, subgraphs)
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, subgraphs)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def test_overlapping_constants_are_an_error():
    builder = flatbuffers.Builder(1024)
    # Read from anywhere in its first half, the length of what follows.
    whole = builder.CreateNumpyVector(np.full(1000, 2000, "<u4"))
    buffers, tensors = [], []
    for number in range(100):
        schema.BufferStart(builder)
        builder.PrependUOffsetTRelativeSlot(0, whole - 4 - 4 * number, 0)
        buffers.append(schema.BufferEnd(builder))
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = [2000], 3, max(number, 1)
        tensors.append(tensor.Pack(builder))
    tensors = vector(builder, schema.SubGraphStartTensorsVector, tensors)
    buffers = vector(builder, schema.ModelStartBuffersVector, buffers)
    with pytest.raises(ValueError, match="its constants overlap"):
        contents(finish(builder, tensors, buffers))


def test_file_that_takes_too_much_is_refused(tmp_path, monkeypatch):
    # One tensor, referred to from a hundred million places in half a megabyte.
    builder = flatbuffers.Builder(1024)
    tensor = schema.TensorT().Pack(builder)
    tensors = vector(builder, schema.SubGraphStartTensorsVector, [tensor] * 100_000)
    schema.BufferStart(builder)
    buffer = schema.BufferEnd(builder)
    buffers = vector(builder, schema.ModelStartBuffersVector, [buffer])
    path = tmp_path / "model.tflite"
    path.write_bytes(finish(builder, tensors, buffers, graphs=1000))
    monkeypatch.setattr(reader, "MAX_SECONDS", 3.0)
    with pytest.raises(ValueError, match="it takes more than 4 seconds"):
        reader.read(path)
    monkeypatch.setattr(reader, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(reader, "MEMORY", 2**20)
    with pytest.raises(ValueError, match="it takes more than .* bytes of memory"):
        reader.read(path)


def test_claims_of_a_small_file_are_bounded(tmp_path):
    graph = Graph()
    # A row that is looked up so often that it would take 8 GiB.
    row = graph.constant(np.ones((1, 2**18), "i1"), "INT8")
    often = graph.constant(np.zeros(2**15, "<i2"), "INT16")
    many = graph.tensor((2**15, 2**18), "INT8")
    graph.operator("GATHER", [row, often], [many], gather_options())
    path = tmp_path / "model.tflite"
    path.write_bytes(graph.read_by(many).pack())
    (note,) = reader.read(path)["notes"]
    assert note.startswith("levels unknown of 1 tensors (made by GATHER: ")


@pytest.mark.parametrize("size", [8, 9])
def test_constants_behind_the_tables_are_found(size):
    # As in files above 2 GB, whose offsets do not reach so far.
    def content(place):
        builder = flatbuffers.Builder(1024)
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = b"far", [8], 3, 1
        tensors = [tensor.Pack(builder)]
        builder.StartObject(11)
        builder.PrependUint32Slot(10, 1, 0)  # In another file.
        tensors.append(builder.EndObject())
        buffers = []
        for values in ((0, 0), (place, size)):
            builder.StartObject(3)
            for field, value in zip((1, 2), values, strict=True):
                builder.PrependUint64Slot(field, value, 0)
            buffers.append(builder.EndObject())
        tensors = vector(builder, schema.SubGraphStartTensorsVector, tensors)
        buffers = vector(builder, schema.ModelStartBuffersVector, buffers)
        return finish(builder, tensors, buffers)

    far = len(content(2**20))
    whole = content(far) + bytes(range(8))
    far = len(content(2**20))
    whole = content(far) + bytes(range(8))
    if size == 9:
        with pytest.raises(ValueError, match="is damaged or cut off"):
            contents(whole)
        return
    result = contents(whole)
    (constant,) = result["constants"]
    assert named(constant, "name", "levels") == ("far", 8)
    assert result["notes"] == ["the values of 1 tensors are in another file"]


def test_damaged_file_is_read_in_a_process_of_its_own(tmp_path):
    # With operators for the interpreter, which may crash; other damaged files are
    # among those of `fuzzing.py`.
    generator = random.Random(0)
    paths = [tmp_path / f"{number}.tflite" for number in range(16)]
    for number, path in enumerate(paths):
        content = (packed_file, decode_file)[number % 2]()
        path.write_bytes(fuzzing.damaged(content, generator))

    def outcome(path):
        try:
            return table.table(reader.read(path), "x")
        except ValueError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = [*pool.map(outcome, paths)]
    refused = [text.startswith("'") and text.count("\n") == 0 for text in texts]
    assert 0 < sum(refused) < len(paths)
    assert all(text.startswith(("x: ", "'")) for text in texts)


# The command.


def run(*arguments):
    """Returns exit status, standard output and standard error."""
    values = flags.FlagValues()
    inspect.define_flags(values)
    rest = values(["inspect", *map(str, arguments)])[1:]
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        status = inspect.main(values, rest)
    return status, output.getvalue(), error.getvalue()


def test_command_prints_a_table_of_eighty_columns(float_file, tmp_path):
    for content in (float_file, packed_file(), decode_file()):
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        status, output, error = run(path)
        assert (status, error) == (0, "")
        lines = output.splitlines()
        assert lines[0].startswith(f"{path}: {len(content):,} bytes")
        assert max(map(len, lines[1:])) <= 80
        assert any(line.split()[:2] == ["weight", "shape"] for line in lines)


def test_command_prints_json(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(packed_file())
    status, output, _ = run(path, "--json")
    assert status == 0
    assert json.loads(output) == json.loads(json.dumps(contents(packed_file())))


def test_names_are_harmless():
    graph = Graph()
    red = graph.constant(np.ones((6, 20), "f4"), "FLOAT32", "\x1b[31mred;fused\n")
    graph.read_by(red, graph.tensor((1, 6), "FLOAT32"))
    graph.read_by(graph.constant(np.ones((6, 20), "i1"), "INT8"))
    text = table.table(contents(graph.pack()), "x")
    assert "\x1b" not in text
    assert "\n?[31mred  " in text
    assert "(of FULLY_CONNECTED)" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be inspected: it is empty."),
        (b"PK\x03\x04 and so on", "there is no 'TFL3' at its start"),
        (b"\x00\x00\x00\x01TFL3", "it is damaged or cut off"),
        (None, "No such file or directory."),
    ],
)
def test_command_says_what_is_wrong_in_one_line(tmp_path, content, message):
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    status, output, error = run(path)
    assert (status, output) == (1, "")
    assert message in error
    assert error.startswith("keras_sq.inspect: error: '")
    assert error.count("\n") == 1


def test_sparse_file_of_terabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x10\0\0\0TFL3")
    os.truncate(path, 4 * 2**40)
    status, output, error = run(path)
    assert (status, output) == (1, "")
    assert "more than the memory of this machine" in error


def test_command_refuses_what_is_no_file(tmp_path):
    status, _, error = run(tmp_path)
    assert status == 1
    assert "is a directory, not a TFLite file" in error
    with pytest.raises(ValueError, match="is not a regular file"):
        reader.read("/dev/zero")


@pytest.mark.parametrize("arguments", [(), ("a.tflite", "b.tflite")])
def test_command_takes_one_path(arguments):
    status, _, error = run(*arguments)
    assert status == 2
    assert f"expected the path of one file, got {len(arguments)} arguments" in error


def test_command_runs_as_a_process(float_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(float_file)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "keras_sq.inspect", str(argument)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argument in (path, "--jsn")
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 2]
    assert outputs[0][0].startswith(f"{path}: {len(float_file):,} bytes")
    for output, error in outputs[1:]:
        assert output == ""
        assert error.splitlines()[-1].startswith("keras_sq.inspect: error: ")
    for _, error in outputs:
        # TensorFlow may log, but nothing of Python's.
        assert "Traceback" not in error
        assert "Warning:" not in error
