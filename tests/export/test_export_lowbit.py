"""Target "lowbit": weights of 2 and 4 bits that the runtime multiplies as they are."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers as kl
from tensorflow.lite.python import schema_py_generated as schema

import keras_sq
from keras_sq.export import ExportError
from keras_sq.export.lowbit import checks, choosing, codes, costs, patches
from keras_sq.export.lowbit.choosing import Form, Option
from keras_sq.export.lowbit.products import Window, products_of
from keras_sq.export.tflite.flatbuffer import (
    TYPE_NAMES,
    TFLiteFile,
    indices,
    per_channel,
    shape_of,
)
from keras_sq.export.tflite.plans import Plan
from keras_sq.export.tflite.runtime import AllTensors, Runner
from keras_sq.export.tflite.weights import WeightTensor

DIRECT = ("INT2 weights", "INT4 weights")


def data(*shape, count=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def quantized(layer, shape, quantizer="ternary", seed=0):
    """A network of one layer, with biases that are not 0."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.path.endswith("bias"):
            variable.assign(0.1 * generator.normal(size=variable.shape))
    return keras_sq.quantize_model(model, quantizer, overrides={})


def exported(model, path, examples=None, **options):
    return keras_sq.export(
        model,
        path,
        target="lowbit",
        allow_untrained=True,
        representative_data=examples,
        **options,
    )


def stored(report):
    return {kernel.path: kernel.stored_as for kernel in report.kernels}


def operators(path):
    file = TFLiteFile(path.read_bytes())
    return [
        (file.operator_name(operator), operator)
        for operator in file.subgraphs[0].operators
    ]


# Graphs: the exporter compares each with Keras with its weights as floats, which rounds
# nothing, and with int8 weights bit for bit.

GRAPHS = {
    "dense": (lambda: kl.Dense(24), (32,)),
    "dense of 30 inputs": (lambda: kl.Dense(256, activation="relu"), (30,)),
    "dense of sequences": (lambda: kl.Dense(40), (5, 64)),
    "1 x 1": (lambda: kl.Conv2D(64, 1, activation="relu"), (6, 5, 64)),
    "1 x 1, strides": (lambda: kl.Conv2D(128, 1, strides=2), (7, 6, 64)),
    "3 x 3, same": (lambda: kl.Conv2D(96, 3, padding="same"), (6, 7, 32)),
    "3 x 3, valid": (lambda: kl.Conv2D(96, 3), (6, 7, 32)),
    "3 x 3, strides": (
        lambda: kl.Conv2D(96, 3, strides=(2, 3), padding="same"),
        (7, 8, 32),
    ),
    "3 x 3, strides, valid": (lambda: kl.Conv2D(96, 3, strides=2), (8, 9, 32)),
    "5 x 1": (lambda: kl.Conv2D(96, (5, 1), padding="same"), (6, 4, 32)),
    "dilated": (lambda: kl.Conv2D(96, 3, dilation_rate=2, padding="same"), (9, 8, 32)),
    "30 channels": (lambda: kl.Conv2D(96, 3, padding="same"), (5, 5, 30)),
    "one dimension": (lambda: kl.Conv1D(96, 5, padding="same"), (12, 32)),
    "one dimension, causal": (
        lambda: kl.Conv1D(96, 3, padding="causal", dilation_rate=2),
        (12, 32),
    ),
    "separable": (lambda: kl.SeparableConv2D(128, 3, padding="same"), (6, 6, 96)),
    "einsum": (lambda: kl.EinsumDense("abc,cde->abde", (None, 4, 16)), (5, 64)),
}


@pytest.mark.parametrize("quantizer", ["ternary", "uniform-4"])
@pytest.mark.parametrize("name", list(GRAPHS))
def test_products_are_those_of_keras(tmp_path, name, quantizer):
    make, shape = GRAPHS[name]
    model = quantized(make(), shape, quantizer)
    path = tmp_path / "model.tflite"
    expected = {"ternary": "INT2 weights", "uniform-4": "INT4 weights"}[quantizer]
    for examples in (None, data(*shape)):
        report = exported(model, path, examples)
        pointwise = [row for row in report.kernels if "depthwise" not in row.path]
        assert [row.stored_as for row in pointwise] == [expected]
        assert report.mean_error < 0.05
        names = [name for name, _ in operators(path)]
        assert "FULLY_CONNECTED" in names
        assert "CONV_2D" not in names


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (lambda: kl.Conv2D(64, 3, groups=2), (6, 6, 32), "groups of channels"),
        (lambda: kl.Conv2DTranspose(64, 3), (6, 6, 32), "TRANSPOSE_CONV"),
        (lambda: kl.DepthwiseConv2D(3), (9, 9, 256), "not on the first axis"),
        (lambda: kl.Conv2D(64, 3), (None, 6, 32), "is open"),
    ],
)
def test_other_kernels_say_why_they_are_not_multiplied(tmp_path, make, shape, reason):
    path = tmp_path / "model.tflite"
    report = exported(quantized(make(), shape), path)
    (kernel,) = report.kernels
    assert kernel.stored_as not in DIRECT
    assert reason in kernel.reason


def test_shared_layers_and_shared_inputs_have_one_matrix_and_one_set_of_rows(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 64))
    shared = kl.Conv2D(64, 3, padding="same", name="shared")
    first = shared(inputs)
    other = kl.Conv2D(64, 3, padding="same", name="other")(inputs)
    outputs = kl.Add()([shared(first), other])
    model = keras_sq.quantize_model(
        keras.Model(inputs, outputs), "ternary", overrides={}
    )
    path = tmp_path / "model.tflite"
    report = exported(model, path)
    assert stored(report) == dict.fromkeys(
        ("shared/kernel", "other/kernel"), "INT2 weights"
    )
    names = [name for name, _ in operators(path)]
    # Of the inputs, and of the first layer's outputs.
    assert names.count("GATHER") == 2
    assert names.count("FULLY_CONNECTED") == 3


def test_rows_of_embeddings_are_looked_up_as_they_are(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), dtype="int32")
    x = kl.Embedding(200, 32, name="embedding")(inputs)
    model = keras_sq.quantize_model(keras.Model(inputs, x), "ternary", overrides={})
    path = tmp_path / "model.tflite"
    report = exported(model, path)
    assert stored(report) == {"embedding/embeddings": "INT2 weights"}
    assert "looked up as they are" in report.kernels[0].reason
    rows = np.random.default_rng(0).integers(0, 200, (3, 12)).astype("int32")
    runner = Runner(path.read_bytes())
    (name,), (output,) = runner.inputs, runner.outputs
    expected = keras.ops.convert_to_numpy(model(rows))
    assert np.array_equal(runner({name: rows})[output], expected)
    names = [name for name, _ in operators(path)]
    assert "EMBEDDING_LOOKUP" in names
    assert "DEQUANTIZE" not in names


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "reason"),
    [
        ((None,), 32, "int32", "an open number of its rows is looked up"),
        ((6,), 30, "int32", "its rows are not of a multiple of 4 weights"),
        ((6,), 32, "int64", "its rows are not looked up as floats, by int32 numbers"),
    ],
)
def test_other_rows_say_why_they_are_not_looked_up(
    tmp_path, shape, size, dtype, reason
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype)
    model = keras.Model(inputs, kl.Embedding(200, size)(inputs))
    sq_model = keras_sq.quantize_model(model, "ternary", overrides={})
    (row,) = exported(sq_model, tmp_path / "model.tflite").kernels
    assert row.stored_as not in DIRECT
    assert row.reason.split("; ")[1] == reason


@pytest.mark.parametrize(("shape", "signature"), [((1, 1), [-1, -1]), ((), None)])
def test_inputs_of_an_open_size_are_not_padded(shape, signature):
    """Each of them alone is a row: zeros between them would be rows, too."""
    file, weight = tensor_of(np.ones((8, 1), "i1"), np.ones(8, "f4"))
    graph = weight.subgraph
    file.model.operatorCodes = []
    source = file.add_tensor(graph, "", shape, "INT8")
    if signature is not None:
        graph.tensors[source].shapeSignature = np.array(signature, "i4")
    output = file.add_tensor(graph, "", (1, 8), "INT8")
    inputs = [source, weight.index, -1]
    graph.operators = [file.new_operator("FULLY_CONNECTED", inputs, [output])]
    assert products_of(file, weight) == (
        [],
        "its inputs lie on several axes, which cannot be padded together",
    )


def test_loops_over_time_multiply_too(tmp_path):
    model = quantized(kl.LSTM(64), (4, 32))
    report = exported(model, tmp_path / "model.tflite")
    assert set(stored(report).values()) <= {*DIRECT, "packed levels"}
    assert any(kind in DIRECT for kind in stored(report).values())


@pytest.mark.parametrize("quantizer", ["binary", "ternary", "uniform-4"])
def test_weights_come_back_from_the_file(tmp_path, quantizer):
    model = quantized(kl.Conv2D(64, 3, padding="same"), (6, 6, 32), quantizer)
    path = tmp_path / "model.tflite"
    exported(model, path)
    file = TFLiteFile(path.read_bytes())
    (matrix,) = [
        (file.array(tensor), np.asarray(tensor.quantization.scale))
        for _, _, tensor in file.constants()
        if TYPE_NAMES[tensor.type] in ("INT2", "INT4")
    ]
    values, scale = matrix
    (kernel,) = keras_sq.strip_quantization(model).layers[1].get_weights()[:1]
    expected = np.moveaxis(kernel, 3, 0).reshape(64, -1)
    assert np.allclose(values * scale[:, np.newaxis], expected, rtol=2.0**-21, atol=0)


def test_int8_sums_are_those_of_an_oracle(tmp_path):
    """A strided convolution, by loops over its pixels in float64."""
    layer = kl.Conv2D(64, 3, strides=2, padding="same")
    model = quantized(layer, (5, 6, 32))
    path = tmp_path / "model.tflite"
    examples = data(5, 6, 32)
    report = exported(model, path, examples)
    file = TFLiteFile(path.read_bytes())
    tensors = file.subgraphs[0].tensors
    ((_, operator),) = [x for x in operators(path) if x[0] == "FULLY_CONNECTED"]
    source, weight, bias = indices(operator.inputs)
    kernel = file.array(tensors[weight]).reshape(64, 3, 3, 32).astype("f8")
    scale = np.asarray(tensors[weight].quantization.scale, "f8")
    offset = file.array(tensors[bias]).astype("f8")
    runner = Runner(path.read_bytes())
    (name,), (output,) = runner.inputs, runner.outputs
    step, zero = runner.quantization[name]
    out_step, out_zero = runner.quantization[output]
    example = runner.quantized(name, examples[:1])
    actual = runner({name: example})[output][0]
    padded = np.zeros((7, 8, 32))
    # Keras pads strided convolutions more below and on the right.
    padded[1:6, 0:6] = example[0].astype("f8") - zero
    expected = np.zeros((3, 3, 64))
    for row in range(3):
        for column in range(3):
            window = padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            sums = (kernel * window).sum(axis=(1, 2, 3)) + offset
            expected[row, column] = sums * scale * step / out_step + out_zero
    rounded = np.clip(np.rint(expected), -128, 127)
    assert np.max(np.abs(rounded - actual)) <= 1
    assert np.mean(rounded == actual) > 0.99
    assert report.bit_exact


def test_files_take_a_quarter_of_int8_and_any_batch(tmp_path):
    inputs = keras.Input((256,))
    x = kl.Dense(512, activation="relu")(inputs)
    model = keras.Model(inputs, kl.Dense(256)(kl.Dense(512)(x)))
    sq_model = keras_sq.quantize_model(model, "ternary", overrides={})
    examples = data(256)
    path, other = tmp_path / "model.tflite", tmp_path / "int8.tflite"
    report = exported(sq_model, path, examples)
    eight = keras_sq.export(
        sq_model,
        other,
        target="int8",
        representative_data=examples,
        allow_untrained=True,
    )
    assert report.bits_per_weight < 2.2
    assert 3.5 * report.num_bytes < eight.num_bytes
    runner = Runner(path.read_bytes())
    (name,), (output,) = runner.inputs, runner.outputs
    batch = runner.quantized(name, data(256, count=7, seed=1))
    together = runner({name: batch})[output]
    alone = np.concatenate([runner({name: batch[i : i + 1]})[output] for i in range(7)])
    assert np.array_equal(together, alone)


def test_levels_of_activations_are_not_rounded_again(tmp_path):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((64,))
    for _ in range(4):
        x = kl.Dense(64, activation="relu")(x)
    sq_model = keras_sq.quantize_model(
        keras.Model(inputs, x), "ternary", input_quantizer="uniform-2", overrides={}
    )
    sq_model(data(64))
    report = exported(sq_model, tmp_path / "model.tflite")
    kernels = [row for row in report.kernels if row.quantized]
    assert len(kernels) == 2
    assert not {row.stored_as for row in kernels} & set(DIRECT)
    assert all("representative_data" in row.reason for row in kernels)
    report = exported(sq_model, tmp_path / "model.tflite", data(64, count=64))
    kernels = [row for row in report.kernels if row.quantized]
    assert all("steps of its output" in row.reason for row in kernels)
    assert report.bit_exact


# Choice of forms.


def form(size, time, direct=False, packed=False):
    plan = Plan(None, None, 0, (), "")
    codes_of = choosing.Direct(None, None, "INT2") if direct else None
    return Form(size, time, plan, codes_of, packed)


def option(*forms):
    return Option(Plan(None, None, 0, (), ""), forms)


@pytest.fixture
def choice(monkeypatch):
    """Returns a function from options to the forms chosen."""

    def chosen(options, optimize):
        taken = []
        monkeypatch.setattr(
            choosing, "_taken", lambda option, form, total: taken.append(form)
        )
        choosing.choose(options, optimize)
        return taken

    return chosen


def test_size_takes_what_is_faster_within_eight_percent(choice):
    small, large = form(1000, 90), form(1060, 10)
    assert choice([option(small, large)], "size") == [large]
    too_large = form(1100, 10)
    assert choice([option(small, too_large)], "size") == [small]


def test_speed_takes_what_is_smaller_within_five_percent(choice):
    fast, small = form(4000, 100), form(1000, 104)
    assert choice([option(fast, small)], "speed") == [small]
    too_slow = form(1000, 110)
    assert choice([option(fast, too_slow)], "speed") == [fast]


def test_what_gains_most_for_its_bytes_is_exchanged_first(choice):
    first = form(1000, 90), form(1100, 80)
    second = form(1000, 90), form(1100, 10)
    third = form(1000, 90), form(1100, 70)
    # 8 % of 3,000 bytes are two exchanges of 100.
    chosen = choice([option(*first), option(*second), option(*third)], "size")
    assert chosen == [first[0], second[1], third[1]]


def test_two_bits_are_not_packed_tighter_where_that_is_slower(choice):
    direct, packed = form(2000, 10, direct=True), form(1070, 30, packed=True)
    (chosen,) = choice([option(direct, packed)], "size")
    assert chosen.direct is direct.direct
    tiny = form(900, 30, packed=True)
    assert choice([option(direct, tiny)], "size") == [tiny]
    fast = form(1900, 5, packed=True)
    assert choice([option(direct, fast)], "size") == [fast]


def test_measured_times_are_positive_and_grow_with_the_work():
    for processor in costs._processors().values():
        for factors in processor.values():
            assert all(value >= 0 for value in factors.values())
            assert any(value > 0 for value in factors.values())
    little = costs.Work("dense", 1, 10_000, 1_000, 10)
    much = costs.Work("dense", 1, 10_000_000, 1_000, 10_000)
    for name in ("INT2", "INT4", "INT8", "packed"):
        for kind in ("float", "int8"):
            times = [
                costs.microseconds(x, f"{name}, {kind} activations")
                for x in (little, much)
            ]
            assert 0 < times[0] < times[1]


def test_rows_cost_time():
    work = costs.Work("dense", 1, 10_000_000, 10_000, 10_000)
    alone, copied = (
        costs.microseconds(work, "INT2, int8 activations", n) for n in (0, 100_000)
    )
    assert copied > alone


# Codes behind int8 weights.


@pytest.mark.parametrize("largest", range(1, 8))
def test_codes_behind_int8_weights(largest):
    generator = np.random.default_rng(largest)
    expected = generator.integers(-largest, largest + 1, (40, 30)).astype("i1")
    expected[:, 0] = largest
    expected[7] = 0
    values = np.rint(expected * (127 / largest)).astype("i1")
    scale = generator.uniform(0.01, 1, 40).astype("f4")
    matrix = codes.of_integers(*tensor_of(values, scale))
    assert matrix is not None
    # Fewer levels may stand for the same numbers, as -7, 0 and 7 for -1, 0 and 1.
    real = matrix.codes * matrix.scale[:, np.newaxis].astype("f8")
    step = scale.astype("f8") * 127 / largest
    assert np.allclose(real, expected * step[:, np.newaxis], rtol=1e-6, atol=0)


def tensor_of(values, scale):
    """Returns a file that holds an int8 weight tensor, and the tensor."""
    file = TFLiteFile.__new__(TFLiteFile)
    file.model = schema.ModelT()
    file.model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    file.model.subgraphs = [graph]
    index = file.add_tensor(
        graph, "weights", values.shape, "INT8", values, per_channel(scale, 0)
    )
    tensor = graph.tensors[index]
    weight = WeightTensor(
        0, graph, index, tensor, "weights", shape_of(tensor), "INT8", 0, ()
    )
    return file, weight


@pytest.mark.parametrize("change", [1, -1, 3])
def test_other_int8_weights_have_no_codes(change):
    values = np.array([[-127, 0, 127, 64 + change * 5], [127, 0, 0, 0]], "i1")
    assert codes.of_integers(*tensor_of(values, np.ones(2, "f4"))) is None


def test_int8_weights_without_the_largest_code_have_no_codes():
    values = np.array([[100, 0, -100, 0]], "i1")
    assert codes.of_integers(*tensor_of(values, np.ones(1, "f4"))) is None


@pytest.mark.parametrize(
    ("values", "types"),
    [
        ([[-1, 0, 1]], ("INT2", "INT4")),
        ([[-2, 0, 1]], ("INT2", "INT4")),
        ([[-1, 0, 2]], ("INT4",)),
        ([[-8, 7]], ("INT4",)),
        ([[-8, 8]], ()),
    ],
)
def test_types_hold_their_codes(values, types):
    matrix = codes.MatrixCodes(np.array(values, "i1"), np.ones(1, "f4"))
    assert matrix.types == types


# Rows.


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_places_are_those_of_sliding_windows(strides, dilations):
    kernel, outputs = (3, 2), (4, 3)
    sizes = [
        (outputs[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        for i in range(2)
    ]
    window = Window(
        (sizes[0] - 2, sizes[1] - 1),
        outputs,
        8,
        kernel,
        strides,
        dilations,
        ((1, 1), (0, 1)),
    )
    assert window.padded == tuple(sizes)
    expected = [
        (row * strides[0] + y * dilations[0]) * sizes[1]
        + column * strides[1]
        + x * dilations[1]
        for row in range(outputs[0])
        for column in range(outputs[1])
        for y in range(kernel[0])
        for x in range(kernel[1])
    ]
    assert patches.places(window).tolist() == expected
    assert patches.index_bytes(window) == 2 * len(expected)


def test_large_pictures_have_long_indices():
    window = Window((200, 200), (200, 200), 8, (1, 1), (1, 1), (1, 1), ((0, 0),) * 2)
    assert patches.places(window).dtype == np.int32
    assert patches.index_bytes(window) == 4 * 200 * 200


# Faults are noticed.


def test_wrong_rows_are_noticed(tmp_path, monkeypatch):
    right = patches.places
    monkeypatch.setattr(patches, "places", lambda window: right(window)[::-1].copy())
    model = quantized(kl.Conv2D(96, 3, padding="same"), (6, 6, 32))
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match="does not compute what the model does"):
        exported(model, path)
    assert not path.exists()


def test_a_runtime_that_multiplies_wrongly_is_noticed(tmp_path, monkeypatch):
    """As LiteRT 2.1.0 does, by one or two."""

    class OffByOne(Runner):
        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            if b"INT2 weights" in self.report:
                outputs = {name: value + 1 for name, value in outputs.items()}
            return outputs

    loaded = checks.loaded
    calls = []

    def load(content, kind, delegates):
        calls.append(content)
        runner = loaded(content, OffByOne, delegates)
        runner.report = b"INT2 weights" if len(calls) == 1 else b""
        return runner

    monkeypatch.setattr(checks, "loaded", load)
    model = quantized(kl.Dense(64), (64,))
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match="does not compute what the model does"):
        exported(model, path, data(64))
    assert calls
    assert not path.exists()


def test_a_runtime_that_is_too_old_is_named(tmp_path, monkeypatch):
    def refuse(content, kind, delegates):
        raise ExportError("Didn't find op for builtin opcode 'FULLY_CONNECTED' '14'")

    monkeypatch.setattr(checks, "loaded", refuse)
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"needs LiteRT >= 2\.1\.4 or TensorFlow"):
        exported(quantized(kl.Dense(64), (64,)), path)
    assert not path.exists()


def test_sums_that_codes_make_too_coarse_keep_int8_weights(tmp_path):
    """Large inputs, tiny outputs: a code times a step is more than a step out."""
    model = quantized(kl.Dense(64, activation="relu6"), (64,), "binary")
    report = exported(model, tmp_path / "model.tflite", 1000 * data(64))
    (kernel,) = report.kernels
    assert kernel.stored_as not in DIRECT
    assert "is more than 0.5 steps of its output" in kernel.reason


# Sizes.


def dense_layers(size, count=3):
    """Dense layers of 300 outputs and of few, in turn."""
    x = inputs = keras.Input((size,))
    for place in range(count):
        x = kl.Dense(size if place % 2 else 300)(x)
    return keras.Model(inputs, x)


def convolutions(channels):
    x = inputs = keras.Input((6, 6, channels))
    x = kl.ReLU()(kl.Conv2D(96, 3, padding="same")(x))
    return keras.Model(inputs, kl.Conv2D(64, 1)(kl.Conv2D(channels, 3)(x)))


@pytest.mark.parametrize(
    ("make", "quantizer"),
    [
        # Packed, each would need a table that takes more than they do.
        (
            lambda: keras.Sequential([keras.Input((6, 6, 64)), kl.Conv2D(1, 3)]),
            "ternary",
        ),
        (lambda: dense_layers(3), "ternary"),
        (lambda: dense_layers(7), "binary"),
        (lambda: dense_layers(7), "uniform-4"),
        # Zero channels take operators of their own.
        (lambda: convolutions(1), "ternary"),
        (lambda: convolutions(3), "ternary"),
        # Instead of one table, there may be another.
        (lambda: convolutions(5), "ternary"),
    ],
)
@pytest.mark.parametrize("integer", [False, True])
def test_small_files_are_not_larger_than_those_of_other_targets(
    tmp_path, make, quantizer, integer
):
    keras.utils.set_random_seed(1)
    model = make()
    sq_model = keras_sq.quantize_model(model, quantizer, overrides={})
    examples = data(*model.input_shape[1:]) if integer else None
    path = tmp_path / "model.tflite"
    small = exported(sq_model, path, examples)
    fast = exported(sq_model, path, examples, optimize="speed")
    other = keras_sq.export(
        sq_model,
        path,
        target="int8" if integer else "fast",
        representative_data=examples,
        allow_untrained=True,
    )
    # Its rows in the report are longer.
    most = 1.08 * min(fast.num_bytes, other.num_bytes)
    assert small.num_bytes <= most + 128
    assert fast.num_bytes <= 1.01 * other.num_bytes + 128


def packed_form(size, *tables):
    """A packed form of a plan that may use any of some tables, or INT8."""
    packed = [SimpleNamespace(total_bytes=size, table=x, name="packed") for x in tables]
    eight = SimpleNamespace(total_bytes=3000, table=None, name="INT8")
    return Form(size, 30, Plan(None, None, 4000, (*packed, eight), ""), packed=True)


def test_tables_that_take_more_than_they_save_are_not_used(choice):
    wide = form(3000, 20)
    one = option(wide, packed_form(1500, (0, (0, 1))))
    assert choice([one], "size") == [wide]
    # Two tensors share it.
    chosen = choice([one, one], "size")
    assert chosen == [one.forms[1]] * 2
    other = option(wide, packed_form(1500, (0, (0, 1, 2))))
    assert choice([one, other], "size") == [wide] * 2
    either = option(wide, packed_form(1500, (0, (0, 1)), (0, (0, 1, 2))))
    assert choice([either], "size") == [wide]


# Requests.


@pytest.mark.parametrize("integer", [False, True])
def test_models_that_compute_with_no_input_are_refused(tmp_path, integer):
    """An embedding that has fewer rows than there are places."""
    inputs = keras.Input((8, 16))
    places = keras.ops.cast(keras.ops.sum(0 * inputs, -1), "int32") + 99
    x = kl.Concatenate()([inputs, kl.Embedding(40, 16)(places)])
    model = keras.Model(inputs, kl.Dense(8)(x))
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match="cannot be run on inputs of shapes"):
        exported(model, path, data(8, 16) if integer else None)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize": "sped"}, r"`optimize` must be one of.*'sped'"),
        ({"optimize": "speed", "target": "int4"}, "for target 'lowbit' only"),
        ({"oldest_runtime": "LiteRT 2.1"}, r"needs LiteRT >= 2\.1\.4"),
        ({"oldest_runtime": "TensorFlow 2.18"}, r"TensorFlow >= 2\.21"),
    ],
)
def test_wrong_requests(tmp_path, options, message):
    path = tmp_path / "model.tflite"
    options = {"target": "lowbit", **options}
    with pytest.raises(ValueError, match=message):
        keras_sq.export(
            quantized(kl.Dense(8), (8,)), path, allow_untrained=True, **options
        )
    assert not path.exists()


def test_plain_networks_become_what_they_are(tmp_path):
    inputs = keras.Input((32,))
    model = keras.Model(inputs, kl.Dense(8)(inputs))
    report = keras_sq.export(model, tmp_path / "model.tflite", target="lowbit")
    assert [row.stored_as for row in report.kernels] == ["float32"]
    assert report.largest_error < 1e-5


def test_the_report_tells_the_form_and_its_part_of_the_time(tmp_path):
    inputs = keras.Input((12, 12, 32))
    x = kl.Conv2D(64, 3, padding="same", activation="relu", name="conv")(inputs)
    outputs = kl.Dense(64, name="dense")(kl.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    sq_model = keras_sq.quantize_model(model, "ternary", overrides={})
    report = exported(sq_model, tmp_path / "model.tflite", optimize="size")
    rows = {row.path: row.reason for row in report.kernels}
    assert (
        "codes -1 to 1, multiplied as they are, in rows of 3 × 3 pixels"
        in (rows["conv/kernel"])
    )
    assert "% of the time" in rows["conv/kernel"]
    assert "multiplied as they are" in rows["dense/kernel"]
    assert report.runtimes == ("LiteRT >= 2.1.4", "TensorFlow >= 2.21")


def test_shapes_are_those_of_a_run(tmp_path):
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, kl.Dense(6)(inputs))
    path = tmp_path / "model.tflite"
    keras_sq.export(model, path)
    content = path.read_bytes()
    (name,) = Runner(content).inputs
    shapes = AllTensors(content).shapes({name: (1, 5, 8)})
    file = TFLiteFile(content)
    ((_, operator),) = [x for x in operators(path) if x[0] == "FULLY_CONNECTED"]
    (place,) = indices(operator.outputs)
    assert np.prod(shapes[place]) == 30
    assert len(shapes) >= len(file.subgraphs[0].tensors)


def test_equal_vectors_of_numbers_are_stored_once():
    values = np.ones((64, 8), "i1")
    file, weight = tensor_of(values, np.ones(64, "f4"))
    sizes = []
    for _ in range(3):
        sizes.append(len(file.pack()))
        scales = per_channel(np.ones(64, "f4"), 0)
        file.add_tensor(weight.subgraph, "", values.shape, "INT8", values, scales)
    # A second one has no zero points (512 bytes), scales (256) or shape of its own.
    assert sizes[1] - sizes[0] < 200
    again = TFLiteFile(file.pack())
    for tensor in again.subgraphs[0].tensors:
        assert tensor.quantization.zeroPoint.tolist() == [0] * 64
        assert tensor.quantization.scale.tolist() == [1.0] * 64
