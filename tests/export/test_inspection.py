"""What `keras_sq.inspect` finds in files of all kinds, and in damaged ones."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
import zlib

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers as kl
from tensorflow.lite.python import schema_py_generated as schema

import keras_sq
from keras_sq.export import kinds, report
from keras_sq.export.inspection import command as inspect
from keras_sq.export.inspection import constant_values, file_structure, reader, table
from keras_sq.export.inspection.reader import parse
from keras_sq.export.tflite import runtime
from keras_sq.export.tflite.flatbuffer import (
    IDENTIFIER,
    TFLiteFile,
    pack_bits,
    per_channel,
    unpack_bits,
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


def weight_of(contents, operator):
    (weight,) = (x for x in contents.weights if operator in x.readers)
    return weight


# Files by hand: a graph of one float input, to which a weight is made.


class Graph:
    """A file with one FULLY_CONNECTED whose weight is still to be made."""

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

    def operator(self, name, inputs, outputs, options=None):
        operator = self.file.new_operator(name, inputs, outputs, options)
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
    rows = graph.tensor((len(packed), group), "INT8")
    flat = graph.tensor((padded.size,), "INT8")
    cut = graph.tensor((digits.size,), "INT8")
    square = graph.tensor(digits.shape, "INT8")
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
    return (numbers // base ** np.arange(group)[::-1] % base).astype("i1")


def packed_file():
    generator = np.random.default_rng(0)
    graph = Graph()
    table = graph.constant(digit_table(3, 4), "INT8", "table")
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


# What is found.


def test_float_file_is_read_in_full(ternary, float_file):
    contents = parse(float_file)
    file = TFLiteFile(float_file)
    assert contents.num_bytes == len(float_file)
    assert contents.other_bytes == len(float_file) - contents.constant_bytes
    sizes = {t.buffer: len(file.data(t)) for _, _, t in file.constants()}
    assert contents.constant_bytes == sum(sizes.values())
    assert len(contents.constants) == len(list(file.constants()))
    (graph,) = contents.graphs
    assert graph.tensors == len(file.subgraphs[0].tensors)
    assert graph.operators["CONV_2D"] == graph.operators["FULLY_CONNECTED"] == 1
    (signature,) = contents.signatures
    (taken,), (given,) = signature.inputs, signature.outputs
    assert (taken.name, taken.shape) == ("image", (None, 12, 12, 3))
    assert (given.dtype, given.scale, given.zero_point) == ("float32", None, None)
    assert set(contents.metadata) >= {"min_runtime_version", report.METADATA_NAME}
    assert contents.report["target"] == "float"
    assert contents.notes == ()
    kernels = keras_sq.get_codes(ternary).values()
    assert [w.weights for w in contents.weights] == [x.codes.size for x in kernels]


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
    contents = parse(float_file)
    weight = weight_of(contents, operator)
    assert (weight.shape, weight.channel_axis) == (shape, axis)
    assert (weight.stored_as, weight.chain) == ("FLOAT32", ())
    assert weight.bits_per_weight == 32
    (index,) = weight.constants
    constant = contents.constants[index]
    file = TFLiteFile(float_file)
    values = file.array(file.subgraphs[0].tensors[constant.index])
    assert weight.levels == constant.levels == len(np.unique(values))
    rows = np.moveaxis(values, axis, 0)
    assert weight.channel_levels == max(len(np.unique(row)) for row in rows) == 3


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
    contents = reader.read(path)
    assert contents.notes == ()
    assert contents.report["target"] == target
    assert [w.channel_levels for w in contents.weights] == [3, 3, 3]
    assert [w.weights for w in contents.weights] == [x.weights for x in written.kernels]
    if "INT8" not in {w.type for w in contents.weights}:
        # Worked out: the very numbers of the float file.
        floats = [w.levels for w in parse(float_file).weights]
        assert [w.levels for w in contents.weights] == floats


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
    contents = reader.read(path)
    assert contents.notes == ()
    (weight,) = contents.weights
    assert weight.chain[-1] == "DEQUANTIZE"
    assert (weight.stored_as, weight.channel_levels) == ("4 per INT16", 13)
    kernel = keras_sq.strip_quantization(model).layers[-1].kernel
    assert weight.levels == len(np.unique(kernel))


def test_packed_digits_are_followed_to_the_weight():
    contents = parse(packed_file())
    first, second = contents.weights
    assert first.chain == ("GATHER", "RESHAPE", "STRIDED_SLICE", "RESHAPE", "GATHER")
    assert (first.stored_as, first.type) == ("4 per INT16", "FLOAT32")
    assert (first.levels, first.channel_levels) == (13, 3)
    names = [contents.constants[index].name for index in first.constants]
    assert {"packed", "table", "levels"} <= set(names)
    sizes = [contents.constants[index].num_bytes for index in first.constants]
    assert sizes == sorted(sizes, reverse=True)
    # 81 rows of the table, 30 indices, 18 levels, five numbers of shapes.
    assert first.num_bytes == 4 * 81 + 2 * 30 + 4 * 18 + 4 * 5
    assert first.bits_per_weight == 8 * first.num_bytes / 120
    # Equal shapes are stored once too.
    assert first.shared_bytes == second.shared_bytes == 4 * 81 + 4 * 5
    assert contents.weight_bytes == 4 * 81 + 4 * 5 + 2 * (2 * 30 + 4 * 18)
    assert contents.weight_bytes == contents.constant_bytes
    assert contents.bits_per_weight == 8 * contents.weight_bytes / 240
    packed = [x for x in contents.constants if x.name == "packed"]
    assert [x.packing for x in packed] == ["4 per INT16"] * 2
    assert packed[0].readers == {"GATHER": 1}
    assert packed[0].bits_per_value == 16


@pytest.mark.parametrize("per_filter", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
def test_lookup_tables_of_microcontrollers_are_decoded(bits, per_filter):
    contents = parse(decode_file(bits, per_filter))
    (weight,) = contents.weights
    assert weight.chain == ("TFLM_DECODE",)
    assert (weight.stored_as, weight.type) == (f"{bits}-bit indices", "INT8")
    assert (weight.levels, weight.channel_levels) == (3, 3)
    tables = 16 + 3 * (6 if per_filter else 1)
    assert weight.num_bytes == 120 * bits // 8 + tables
    assert [x.packing for x in contents.constants] == [
        f"{bits}-bit indices",
        "lookup tables",
    ]


def test_decoding_in_an_unknown_way_is_a_note():
    content = decode_file().replace(header(2, 0, 3), b"\x01" + header(2, 0, 3)[1:])
    contents = parse(content)
    (weight,) = contents.weights
    assert (weight.levels, weight.channel_levels) == (None, None)
    assert contents.notes == (
        "levels unknown of 1 tensors (decoded in an unknown way), such as "
        "'weight_decoded'",
    )
    assert "?" in table.table(contents, "x")


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
    graph.operator("DEQUANTIZE", [constant], [weight])
    contents = parse(graph.read_by(weight).pack())
    (weight,), (constant,) = contents.weights, contents.constants
    assert (weight.levels, weight.channel_levels, weight.stored_as) == (
        13,
        3,
        type_name,
    )
    assert constant.packing == {2: "4 per byte", 4: "2 per byte", 8: ""}[bits]
    assert (constant.levels, constant.bits_per_value) == (3, bits)
    assert constant.num_bytes == 120 * bits // 8
    # Scales and zero points.
    assert constant.scale_bytes == 6 * (4 + 8)
    assert weight.num_bytes == constant.num_bytes + constant.scale_bytes


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
    contents = parse(content)
    (weight,) = contents.weights
    assert (weight.chain, weight.stored_as) == (("DEQUANTIZE",), "FLOAT16")
    assert (weight.shape, weight.bits_per_weight) == ((40, 64), 16)
    assert weight.levels == len(np.unique(KERNEL.astype("f2")))
    assert contents.report is None


def test_converters_dynamic_range_is_understood():
    content = convert(
        dense, tf.TensorSpec((None, 64)), optimizations=[tf.lite.Optimize.DEFAULT]
    )
    (weight,) = parse(content).weights
    assert (weight.chain, weight.type, weight.shape) == ((), "INT8", (40, 64))
    assert weight.levels <= 255


@pytest.mark.parametrize("transposed", [False, True])
def test_constant_of_a_batch_matmul_has_its_filters_last(transposed):
    table = np.round(KERNEL[np.newaxis, :4, :6])
    if transposed:
        table = table.transpose(0, 2, 1)

    def product(x):
        return tf.raw_ops.BatchMatMulV2(x=x, y=table, adj_y=transposed)

    contents = parse(convert(product, tf.TensorSpec((3, 5, 4))))
    weight = weight_of(contents, "BATCH_MATMUL")
    # The converter may transpose the constant itself.
    filters = weight.shape[weight.channel_axis]
    assert (weight.weights, filters) == (24, 6)
    columns = np.round(KERNEL[:4, :6]).T
    assert weight.channel_levels == max(len(np.unique(x)) for x in columns)


def test_embedding_is_a_weight_of_rows():
    def look_up(x):
        return tf.gather(np.sign(KERNEL), x)

    weight = weight_of(parse(convert(look_up, tf.TensorSpec((3,), tf.int32))), "GATHER")
    assert (weight.shape, weight.channel_axis, weight.levels) == ((64, 40), 0, 2)


def test_loops_and_branches_are_graphs_of_their_own():
    def loop(x):
        return tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, tf.matmul(y, KERNEL[:40])), (0, x)
        )

    contents = parse(convert(loop, tf.TensorSpec((2, 40))))
    assert len(contents.graphs) == 3
    assert weight_of(contents, "FULLY_CONNECTED").graph > 0
    assert "graph 2: " in table.table(contents, "x")


def test_file_without_a_signature_uses_the_tensors_names(float_file):
    file = TFLiteFile(float_file)
    file.model.signatureDefs = None
    (signature,) = parse(file.pack()).signatures
    assert (signature.key, signature.inputs[0].shape) == ("", (None, 12, 12, 3))
    assert signature.inputs[0].name.startswith("serving_default_image")


def test_several_signatures_are_told_apart(float_file):
    file = TFLiteFile(float_file)
    (entry,) = file.model.signatureDefs
    file.model.signatureDefs = [entry, entry]
    text = table.table(parse(file.pack()), "x")
    assert text.count(f"takes      {entry.signatureKey.decode()}: image") == 2


def test_sparse_and_unknown_types_are_no_error():
    graph = Graph()
    sparse = graph.constant(np.ones(7, "f4"), "FLOAT32", "sparse", shape=(6, 20))
    graph.graph.tensors[sparse].sparsity = schema.SparsityParametersT()
    unknown = graph.constant(np.ones(7, "i1"), "INT8", "unknown", shape=(3, 3))
    graph.graph.tensors[unknown].type = 99
    half = graph.constant(np.arange(8, dtype="u2"), "UINT16", "bfloat16")
    graph.graph.tensors[half].type = 18
    contents = parse(graph.read_by(sparse).pack())
    entries = {x.name: x for x in contents.constants}
    assert (entries["sparse"].packing, entries["sparse"].levels) == ("sparse", None)
    assert (entries["unknown"].type, entries["unknown"].levels) == ("TYPE_99", None)
    assert (entries["bfloat16"].type, entries["bfloat16"].levels) == ("BFLOAT16", 8)
    assert len(contents.notes) == 2


def test_unknown_operators_leave_the_levels_open():
    graph = Graph()
    constant = graph.constant(np.ones((6, 20), "f4"), "FLOAT32", "ones")
    weight = graph.tensor((6, 20), "FLOAT32", "weight")
    graph.operator("EXP", [constant], [weight])
    contents = parse(graph.read_by(weight).pack())
    (weight,) = contents.weights
    assert (weight.chain, weight.levels) == (("EXP",), None)
    assert weight.bits_per_weight == 32
    assert contents.notes == (
        "levels unknown of 1 tensors (made by EXP), such as 'weight'",
    )


@pytest.mark.parametrize("name", ["RANDOM_UNIFORM", "CALL_ONCE"])
def test_what_changes_from_run_to_run_is_no_constant(name):
    graph = Graph()
    shape = graph.constant(np.array([6, 20], "<i4"), "INT32")
    weight = graph.tensor((6, 20), "FLOAT32")
    graph.operator(name, [shape], [weight])
    assert parse(graph.read_by(weight).pack()).weights == ()


# Values.


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "i2", "u4", "i8", "?"])
def test_levels_are_those_of_numpy(dtype, axis):
    generator = np.random.default_rng(0)
    values = generator.integers(-3, 3, (4, 5, 6)).astype(dtype)
    values[1] = 0
    work = constant_values.Work(1000)
    total, most = constant_values.count_levels(values, axis, work)
    assert total == len(np.unique(values))
    if axis is None:
        assert most is None
    else:
        rows = np.moveaxis(values, axis, 0)
        assert most == max(len(np.unique(row)) for row in rows)


def test_levels_take_both_zeros_for_one_and_nan_for_another():
    values = np.array([[0.0, -0.0], [np.nan, np.nan], [np.inf, 1.0]], "f4")
    work = constant_values.Work(1000)
    assert constant_values.count_levels(values, 0, work) == (4, 2)
    assert constant_values.count_levels(values[:0], 0, work) == (0, 0)
    assert constant_values.count_levels(np.float32(3), None, work) == (1, None)


VALUES = np.random.default_rng(0).integers(-100, 100, (4, 6, 5)).astype("i1")


def ints(*values):
    return np.array(values, "<i4")


def strided(begin=0, end=0, shrink=0):
    options = schema.StridedSliceOptionsT()
    options.beginMask, options.endMask, options.shrinkAxisMask = begin, end, shrink
    return options


def concatenation(axis):
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return options


# Name, settings, constants, shape of the result.
RULES = [
    ("GATHER", gather_options(), [VALUES, ints(3, 0, 3)], (3, 6, 5)),
    ("GATHER", gather_options(1), [VALUES, ints(5, 1)], (4, 2, 5)),
    ("GATHER", gather_options(-1), [VALUES, ints(2)], (4, 6, 1)),
    ("GATHER", gather_options(1, 1), [VALUES, np.tile(ints(2, 5), (4, 1))], (4, 2, 5)),
    ("GATHER", gather_options(2, 1), [VALUES, np.tile(ints(2, 4), (4, 1))], (4, 6, 2)),
    ("RESHAPE", None, [VALUES, ints(8, 15)], (8, 15)),
    ("EXPAND_DIMS", None, [VALUES, ints(1)], (4, 1, 6, 5)),
    ("SQUEEZE", None, [VALUES[:1]], (6, 5)),
    ("SLICE", None, [VALUES, ints(1, 0, 2), ints(2, -1, 3)], (2, 6, 3)),
    ("TRANSPOSE", None, [VALUES, ints(2, 0, 1)], (5, 4, 6)),
    ("CONCATENATION", concatenation(1), [VALUES, VALUES[:, :2]], (4, 8, 5)),
    ("CONCATENATION", concatenation(-1), [VALUES, VALUES], (4, 6, 10)),
    ("STRIDED_SLICE", strided(), [VALUES, *[ints(1, 2, 0), ints(4, 5, 5)]], (3, 3, 5)),
    ("STRIDED_SLICE", strided(1, 2), [VALUES, ints(3, 2), ints(2, 3)], (2, 4, 5)),
    ("STRIDED_SLICE", strided(shrink=2), [VALUES, ints(1, 2), ints(3, 9)], (2, 5)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[0])
def test_operators_give_what_the_interpreter_gives(rule):
    name, options, constants, shape = rule
    if name == "STRIDED_SLICE":
        constants = [*constants, np.ones_like(constants[1])]
    graph = Graph()
    types = {"int8": "INT8", "int32": "INT32"}
    inputs = [graph.constant(x, types[x.dtype.name]) for x in constants]
    result = graph.tensor(shape, "INT8")
    graph.operator(name, inputs, [result], options)
    check_values(graph, result)


@pytest.mark.parametrize("channels", [1, 6])
def test_dequantize_gives_what_the_interpreter_gives(channels):
    graph = Graph()
    scale = np.linspace(0.1, 0.7, channels, dtype="f4")
    quantization = per_channel(scale, 1)
    if channels == 1:
        quantization.zeroPoint[0] = 7
    constant = graph.constant(VALUES, "INT8", "", quantization)
    result = graph.tensor(VALUES.shape, "FLOAT32")
    graph.operator("DEQUANTIZE", [constant], [result])
    check_values(graph, result)


def check_values(graph, result):
    """Compares a tensor made of constants with what LiteRT makes of it."""
    graph.graph.inputs, graph.graph.outputs = [], [result]
    content = graph.pack()
    builtin = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=builtin
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    structure = file_structure.read_structure(content)
    work = constant_values.Work(len(content))
    chains = constant_values.ConstantChains(structure.graphs[0], work)
    actual = chains.values(result)
    expected = interpreter.get_tensor(result)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    # LiteRT multiplies before it subtracts the zero point.
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "constants", "shape", "message"),
    [
        ("GATHER", gather_options(), [VALUES, ints(4)], (1, 6, 5), "does not fit"),
        ("GATHER", gather_options(), [VALUES, ints(-1)], (1, 6, 5), "outside its"),
        ("GATHER", gather_options(), [VALUES, ints(1)], (2, 6, 5), "another shape"),
        ("GATHER", gather_options(7), [VALUES, ints(1)], (4, 6, 5, 1), "does not fit"),
        ("GATHER", gather_options(2, 2), [VALUES, ints(1)], (4, 6), "unusual form"),
        ("GATHER", None, [VALUES], (4, 6, 5), "does not fit"),
        ("RESHAPE", None, [VALUES, ints(1)], (7, 7), "does not fit"),
        ("RESHAPE", None, [VALUES, ints(1)], (-1, 5), "an open shape"),
        ("RESHAPE", None, [VALUES, ints(1)], (2**30, 2**30), "too many values"),
        ("TRANSPOSE", None, [VALUES, ints(0, 0, 1)], (4, 4, 6), "does not fit"),
        ("TRANSPOSE", None, [VALUES, ints(2, 0, 1)], (4, 5, 6), "another shape"),
        ("CONCATENATION", None, [VALUES, VALUES], (8, 6, 6), "another shape"),
        ("STRIDED_SLICE", strided(), [VALUES, ints(0), ints(1), ints(0)], (1, 6, 5),
         "does not fit"),
        ("DEQUANTIZE", None, [VALUES], (4, 6, 5), "scales of another form"),
    ],
)  # fmt: skip
def test_operators_that_do_not_fit_leave_the_values_open(
    name, options, constants, shape, message
):
    graph = Graph()
    types = {"int8": "INT8", "int32": "INT32"}
    inputs = [graph.constant(x, types[x.dtype.name]) for x in constants]
    result = graph.tensor(shape, "INT8")
    graph.operator(name, inputs, [result], options)
    structure = file_structure.read_structure(graph.pack())
    work = constant_values.Work(1000)
    chains = constant_values.ConstantChains(structure.graphs[0], work)
    with pytest.raises(constant_values.UnknownValues, match=message):
        chains.values(result)


# Our metadata.


def with_metadata(content, data):
    file = TFLiteFile(content)
    file.set_metadata(report.METADATA_NAME, data)
    return file.pack()


def test_report_in_the_metadata_is_read(float_file):
    data = zlib.compress(b'{"target": "x", "number": NaN, "a": [1e999, -1e999, 1.5]}')
    contents = parse(with_metadata(float_file, data))
    expected = {"target": "x", "number": None, "a": [None, None, 1.5]}
    assert contents.report == expected
    text = json.dumps(contents.to_dict(), allow_nan=False)
    assert json.loads(text)["report"] == expected
    assert "exported   target 'x'" in table.table(contents, "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nothing compressed", "incorrect header"),
        (zlib.compress(b"{}")[:-3], "cut off, or too large"),
        (zlib.compress(b" " * 2**25 + b"{}"), "cut off, or too large"),
        (zlib.compress(b"[1, 2]"), "no JSON object"),
        (zlib.compress(b"{"), "Expecting property name"),
        (zlib.compress(b"\xff"), "can't decode byte"),
        (zlib.compress(b"[" * 10**6), "recursion"),
        (
            zlib.compress(b'{"a": ' * 900 + b"1" + b"}" * 900),
            "nested more than 32 levels deep",
        ),
        (zlib.compress(b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"), "32 levels deep"),
    ],
)
def test_report_that_cannot_be_read_is_a_note(float_file, data, reason):
    contents = parse(with_metadata(float_file, data))
    assert contents.report is None
    (note,) = contents.notes
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
        (set_in("tensor", shape=[1] * 33), "has 33 dimensions"),
        (set_in("operator", inputs=[0, 999]), "refers to tensor 999 of"),
        (set_in("operator", outputs=[-2]), "refers to tensor -2 of"),
        (set_in("operator", opcodeIndex=9), "refers to operator code 9 of"),
        (set_constant(shape=[6, 4]), r"should have 96 bytes, and has 72"),
        (set_constant(shape=[6, -3]), "has the shape"),
        (set_constant(type=9), "should have 18 bytes, and has 72"),
        (lambda model, graph: setattr(graph, "inputs", [999]), "tensor 999 of"),
        (lambda model, graph: setattr(model, "subgraphs", []), "has no graph"),
        (add_signature(999), "refers to tensor 999 of"),
        (add_signature(0, 5), "refers to graph 5 of 1"),
        (add_metadata, "refers to buffer 999 of"),
    ],
)
def test_wrong_reference_is_an_error(change, message):
    assert parse(edited(lambda model, graph: None)).weights
    with pytest.raises(ValueError, match=message):
        parse(edited(change))


def vector(builder, start, offsets):
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def finish(builder, tensors, buffers, graphs=1):
    """Returns a file of graphs with a vector of tensors, otherwise empty."""
    made = []
    for _ in range(graphs):
        schema.SubGraphStart(builder)
        schema.SubGraphAddTensors(builder, tensors)
        made.append(schema.SubGraphEnd(builder))
    made = vector(builder, schema.ModelStartSubgraphsVector, made)
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, made)
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
        parse(finish(builder, tensors, buffers))


def test_shared_tables_are_bounded():
    # One tensor, referred to from ten million places in half a megabyte.
    builder = flatbuffers.Builder(1024)
    table = schema.TensorT().Pack(builder)
    tensors = vector(builder, schema.SubGraphStartTensorsVector, [table] * 100_000)
    schema.BufferStart(builder)
    buffer = schema.BufferEnd(builder)
    buffers = vector(builder, schema.ModelStartBuffersVector, [buffer])
    start = time.process_time()
    with pytest.raises(ValueError, match="more entries than it has room for"):
        parse(finish(builder, tensors, buffers, graphs=100))
    assert time.process_time() - start < 10


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
    if size == 9:
        with pytest.raises(ValueError, match="is damaged or cut off"):
            parse(whole)
        return
    contents = parse(whole)
    (constant,) = contents.constants
    assert (constant.name, constant.levels) == ("far", 8)
    assert contents.notes == ("the values of 1 tensors are in another file",)


DAMAGED = {"float": None, "packed": packed_file, "decode": decode_file}


def variants(content, count, seed):
    """Yields a file cut off, with bits flipped, words replaced, parts copied."""
    generator = random.Random(seed)
    for number in range(count):
        damaged = bytearray(content)
        if number % 4 == 0:
            del damaged[generator.randrange(len(content)) :]
        elif number % 4 == 1:
            for _ in range(generator.choice([1, 4, 64])):
                place = generator.randrange(len(content))
                damaged[place] ^= 1 << generator.randrange(8)
        else:
            place = 4 * generator.randrange(len(content) // 4)
            words = [
                b"\0" * 4,
                b"\xff" * 4,
                b"\xff\xff\xff\x7f",
                generator.randbytes(4),
            ]
            word = generator.choice(words)
            if number % 4 == 3:
                start = 4 * generator.randrange(len(content) // 4)
                word = content[start : start + generator.choice([4, 16, 64])]
            damaged[place : place + len(word)] = word
        yield bytes(damaged)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_gives_contents_or_a_clear_error(name, float_file):
    content = float_file if name == "float" else DAMAGED[name]()
    outcomes = {"contents": 0, "error": 0}
    for number, damaged in enumerate(variants(content, 400, seed=name)):
        start = time.process_time()
        try:
            contents = parse(damaged)
        except ValueError as error:
            assert type(error) is ValueError, number
            assert str(error).startswith("it "), number
            outcomes["error"] += 1
        else:
            json.dumps(contents.to_dict(), allow_nan=False)
            table.table(contents, "x")
            outcomes["contents"] += 1
        assert time.process_time() - start < 5, number
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize("name", ["CONCATENATION", "TFLM_DECODE", "PACK"])
def test_time_is_in_proportion_to_the_size_of_the_file(name):
    graph = Graph()
    first = graph.constant(np.ones((6, 20), "f4"), "FLOAT32")
    count = 8000
    model, (whole,) = graph.file.model, graph.file.subgraphs
    alike = whole.tensors[first]
    constants = [first] + [len(whole.tensors) + i for i in range(count)]
    whole.tensors.extend([alike] * count)
    made = [graph.tensor((6, 20), "FLOAT32") for _ in range(count)]
    if name == "TFLM_DECODE":
        graph.custom(name, constants, made)
    else:
        graph.operator(name, constants, made)
    for weight in made[::20]:
        graph.read_by(weight)
    content = raw_pack(model)
    start = time.process_time()
    contents = parse(content)
    assert time.process_time() - start < 3
    if name != "TFLM_DECODE":
        assert any("made from more than 1024 tensors" in x for x in contents.notes)


def test_claims_of_a_small_file_are_bounded():
    graph = Graph()
    # Two thousand views of one constant, of different shapes.
    buffer = graph.file.add_buffer(np.zeros(2**16, "i1"))
    for number in range(2000):
        shape = [1] * (number % 30) + [2 ** (number % 17), 2 ** (16 - number % 17)]
        tensor = graph.graph.tensors[graph.tensor(shape, "INT8")]
        tensor.buffer = buffer
    # A row that is looked up so often that it would take 8 GiB.
    row = graph.constant(np.ones((1, 2**18), "i1"), "INT8")
    often = graph.constant(np.zeros(2**15, "<i2"), "INT16")
    many = graph.tensor((2**15, 2**18), "INT8")
    graph.operator("GATHER", [row, often], [many], gather_options())
    # A chain without end.
    last = graph.constant(np.ones((6, 20), "f4"), "FLOAT32")
    for number in range(5000):
        after = graph.tensor((6, 20), "FLOAT32")
        graph.operator("RESHAPE", [last], [after])
        last = after
        if number % 2:
            graph.read_by(after)
    graph.read_by(many)
    start = time.process_time()
    contents = parse(graph.pack())
    assert time.process_time() - start < 20
    assert any("too many values" in note for note in contents.notes)
    assert any("more than 1024 tensors" in note for note in contents.notes)


# The command.


def run(*arguments):
    """Returns exit status, standard output and standard error."""
    values = flags.FlagValues()
    inspect.define_flags(values)
    rest = values(["inspect", *arguments])[1:]
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        status = inspect.main(values, rest)
    return status, output.getvalue(), error.getvalue()


def test_command_prints_a_table_of_eighty_columns(float_file, tmp_path):
    for content in (float_file, packed_file(), decode_file()):
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        status, output, error = run(str(path))
        assert (status, error) == (0, "")
        lines = output.splitlines()
        assert lines[0].startswith(f"{path}: {len(content):,} bytes")
        assert max(map(len, lines[1:])) <= 80
        assert any(line.split()[:2] == ["weight", "shape"] for line in lines)


def test_command_prints_json(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(packed_file())
    status, output, _ = run(str(path), "--json")
    content = json.loads(output)
    assert status == 0
    assert content["weights"][0]["stored_as"] == "4 per INT16"
    assert content["bits_per_weight"] == parse(packed_file()).bits_per_weight
    assert content["num_bytes"] == path.stat().st_size


def test_names_are_cut_in_the_middle_and_harmless():
    names = ["net/conv/kernel;net/norm", "net/a_rather_long_name/kernel", "net/x"]
    assert table.short_names(names, 12) == [
        "conv/kernel",
        "a_rat…kernel",
        "x",
    ]
    graph = Graph()
    red = graph.constant(np.ones((6, 20), "f4"), "FLOAT32", "\x1b[31mred")
    graph.read_by(red, graph.tensor((1, 6), "FLOAT32"))
    graph.read_by(graph.constant(np.ones((6, 20), "i1"), "INT8"))
    text = table.table(parse(graph.pack()), "x")
    assert "\x1b" not in text
    assert "?[31mred" in text
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
    status, output, error = run(str(path))
    assert (status, output) == (1, "")
    assert message in error
    assert error.startswith("keras_sq.inspect: error: '")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "there is no 'TFL3' at its start"),
        (b"\x10\0\0\0TFL3", "more than half of the memory of this machine"),
    ],
)
def test_sparse_file_of_terabytes_is_refused_at_once(start, message, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(start)
    os.truncate(path, 4 * 2**40)
    status, output, error = run(str(path))
    assert (status, output) == (1, "")
    assert message in error


def test_command_refuses_what_is_no_file(tmp_path):
    status, _, error = run(str(tmp_path))
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
    path, bad = tmp_path / "model.tflite", tmp_path / "bad.tflite"
    path.write_bytes(float_file)
    bad.write_bytes(float_file[:1000])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "keras_sq.inspect", str(argument)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argument in (path, bad, "--jsn")
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 1, 2]
    assert outputs[0][0].startswith(f"{path}: {len(float_file):,} bytes")
    for output, error in outputs[1:]:
        assert output == ""
        assert error.splitlines()[-1].startswith("keras_sq.inspect: error: ")
    for _, error in outputs:
        # TensorFlow may log, but nothing of Python's.
        assert "Traceback" not in error
        assert "Warning:" not in error


def test_packed_bits_come_back():
    # Of `keras_sq/export/tflite/flatbuffer.py`, which the tests above build on.
    codes = np.random.default_rng(0).integers(-2, 2, 13).astype("i1")
    np.testing.assert_array_equal(unpack_bits(pack_bits(codes, 2), 2, 13), codes)
