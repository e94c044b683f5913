"""Files for microcontrollers: compressed, split, and the same to the bit."""

import configparser
import dataclasses
import functools
import math
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from micro_comparison import check_same

from keras_sq.export import ExportError
from keras_sq.export.conversion import convert, inputs, integer
from keras_sq.export.examples import Examples
from keras_sq.export.micro import compression, lookup_tables, splitting
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.micro.runtime import MicroRunner
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices

# There are wheels for Linux on x86-64 only.
pytest.importorskip("tflite_micro")

layers = keras.layers
SETUP_CFG = pathlib.Path(__file__).parents[2] / "setup.cfg"


def on_levels(shape, num_levels, generator, axis=-1):
    """Returns a kernel with evenly spaced levels in each filter."""
    levels = np.linspace(-1, 1, num_levels)
    # Every level in every filter, so that the count is known.
    count = math.prod(shape) // shape[axis]
    rows = [
        generator.permutation(np.resize(np.arange(num_levels), count))
        for _ in range(shape[axis])
    ]
    scale = generator.uniform(0.5, 1.5, (shape[axis], 1)) / np.sqrt(count)
    flat = levels[np.array(rows)] * scale
    moved = (shape[axis], *np.delete(shape, axis))
    return np.moveaxis(flat.reshape(moved), 0, axis).astype("float32")


def int8_file(model, num_levels=2, kernels=None):
    """Returns the full-integer file of a model whose kernels have few levels."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        values = layer.get_weights()
        if not values:
            continue
        axis = -2 if isinstance(layer, layers.Conv2DTranspose) else -1
        shape = values[0].shape
        if num_levels is None:
            pass
        elif isinstance(layer, layers.DepthwiseConv2D):
            kernel = on_levels((*shape[:2], shape[2] * shape[3]), num_levels, generator)
            values[0] = kernel.reshape(shape)
        else:
            values[0] = on_levels(shape, num_levels, generator, axis)
        if kernels is not None and layer.name in kernels:
            values[0] = kernels[layer.name](values[0])
        if len(values) > 1:
            values[1] = generator.normal(0, 0.1, values[1].shape)
        layer.set_weights(values)
    count = 8
    data = [
        generator.normal(size=(count, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    signature = inputs.input_signature(model, data if len(data) > 1 else data[0])
    floats = convert.float_file(model, signature.with_batch(1), integers=True)
    return integer.int8_file(floats, Examples(data))


def sequence(shape, *made):
    return keras.Sequential([keras.Input(shape), *made])


@functools.cache
def small_network(num_levels=2):
    """A convolution, a pooling and two dense layers."""
    model = sequence(
        (8, 8, 16),
        layers.Conv2D(32, 3, activation="relu", padding="same"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    )
    return int8_file(model, num_levels)


def by_shape(made, *shape):
    (kernel,) = (kernel for kernel in made.kernels if kernel.shape == shape)
    return kernel


def operators_of(content):
    file = TFLiteFile(content)
    return [file.operator_name(x) for g in file.subgraphs for x in g.operators]


def unaligned_buffers(content):
    """Returns how many constants do not start at a multiple of 16 bytes."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(content, 0)
    count = 0
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        field = buffer._tab.Offset(4)
        if field:
            count += buffer._tab.Vector(field) % 16 != 0
    return count


def assert_good(made, content):
    """Asserts that a compressed file is sound and computes the same."""
    assert unaligned_buffers(made.content) == 0
    assert made.int8_bytes == len(content)
    assert made.arena_bytes % 16 == 0
    # In exactly the memory that is stated.
    assert check_same(made.content, content, arena_bytes=made.arena_bytes) == 16
    for kernel in made.kernels:
        assert (kernel.bits is None) == bool(kernel.reason) == (kernel.parts == 0)


# Running.


def test_runner_gives_copies_of_outputs_in_order():
    runner = MicroRunner(small_network())
    (entry,) = runner.inputs
    assert (entry.shape, entry.dtype) == ((1, 8, 8, 16), "int8")
    assert entry.scale > 0
    assert runner.runtime.startswith("TensorFlow Lite Micro 0.dev")
    (first,) = runner([np.full(entry.shape, 100, np.int8)])
    kept = first.copy()
    (second,) = runner([np.full(entry.shape, -100, np.int8)])
    np.testing.assert_array_equal(first, kept)
    assert first.shape == runner.outputs[0].shape == (1, 10)
    assert not np.array_equal(first, second)


def test_runner_with_two_inputs_takes_them_in_order():
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    model = keras.Model([a, b], [layers.Dense(3)(a), layers.Dense(5)(b)])
    runner = MicroRunner(int8_file(model))
    assert sorted(entry.shape for entry in runner.inputs) == [(1, 4), (1, 6)]
    values = [np.zeros(entry.shape, np.int8) for entry in runner.inputs]
    outputs = runner(values)
    assert [x.shape for x in outputs] == [x.shape for x in runner.outputs]
    with pytest.raises(ValueError, match="must have the shapes and dtypes .* Received"):
        runner(values[::-1])


def test_runner_of_other_dtype_raises():
    runner = MicroRunner(small_network())
    with pytest.raises(ValueError, match=r"Received: \[\(\(1, 8, 8, 16\), 'float32'\)"):
        runner([np.zeros((1, 8, 8, 16), np.float32)])


def test_runner_logs_nothing(capfd):
    runner = MicroRunner(small_network())
    runner([np.zeros((1, 8, 8, 16), np.int8)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [0, 96, 2200, 3000])
def test_runner_with_little_memory_raises(size):
    # With some of these sizes, the interpreter ends the process it runs in.
    message = f"cannot run the file in {size:,} bytes of memory: .+"
    with pytest.raises(ExportError, match=message):
        MicroRunner(small_network(), size)


def test_operator_that_the_interpreter_lacks_is_named():
    content = int8_file(sequence((4, 4, 4, 2), layers.Conv3D(3, 2)), None)
    with pytest.raises(ExportError, match="has no operator CONV_3D. Replace the layer"):
        MicroRunner(content)
    with pytest.raises(ExportError, match="has no operator CONV_3D"):
        compression.compress(content)


def test_worker_that_cannot_start_raises(monkeypatch, tmp_path):
    monkeypatch.setattr(micro_runtime, "_WORKER", tmp_path / "nothing.py")
    with pytest.raises(ExportError, match="cannot be run in a process of its own"):
        MicroRunner(small_network())


@pytest.mark.parametrize(
    "call", [MicroRunner, micro_runtime.arena_bytes, compression.compress]
)
def test_missing_package_names_the_extra(monkeypatch, call):
    content = small_network()
    names = [name for name in sys.modules if name.split(".")[0] == "tflite_micro"]
    for name in {"tflite_micro", *names}:
        monkeypatch.setitem(sys.modules, name, None)
    message = r"tflite-micro, version 0\.dev.*pip install keras-sq\[micro\]"
    with pytest.raises(ImportError, match=message):
        call(content)


def test_missing_compression_names_the_extra(monkeypatch):
    content = small_network()
    monkeypatch.setitem(sys.modules, "tflite_micro.compression", None)
    name = "tflite_micro.tensorflow.lite.micro.compression"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install keras-sq\[micro\]"):
        lookup_tables.compress(content, [])


def test_version_is_the_pinned_one():
    parser = configparser.ConfigParser()
    parser.read(SETUP_CFG, encoding="utf-8")
    pinned = f"tflite-micro=={micro_runtime.TFLITE_MICRO_VERSION}"
    for extra in ("micro", "test"):
        assert pinned in parser["options.extras_require"][extra]


def test_arena_is_the_smallest():
    content = small_network()
    size = micro_runtime.arena_bytes(content)
    assert size % 16 == 0
    MicroRunner(content, size)
    with pytest.raises(ExportError, match=f"in {size - 16:,} bytes of memory"):
        MicroRunner(content, size - 16)
    # Input and output of the convolution, and the interpreter's own.
    assert 3072 < size < 3072 + 6000


# Compressing.


@pytest.mark.parametrize(
    ("num_levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4)]
)
def test_compressed_file_is_the_same_to_the_bit(num_levels, bits):
    model = sequence((6, 6, 32), layers.Conv2D(32, 3, padding="same"))
    content = int8_file(model, num_levels)
    made = compression.compress(content, max_decode_bytes=2**20)
    (kernel,) = made.kernels
    assert (kernel.levels, kernel.bits, kernel.parts) == (num_levels, bits, 1)
    assert kernel.weights == kernel.decoded_bytes == 32 * 9 * 32
    assert kernel.num_bytes == 9216 * bits // 8 + 16 + 32 * num_levels
    assert len(made.content) <= len(content) - 9216 + kernel.num_bytes + 200
    assert_good(made, content)
    assert operators_of(made.content) == ["TFLM_DECODE", "CONV_2D"]
    assert made.operators == ("CONV_2D", "TFLM_DECODE")


def test_kernel_of_a_hundred_levels_takes_seven_bits():
    content = int8_file(sequence((2048,), layers.Dense(16)), 100)
    made = compression.compress(content, 2**20)
    (kernel,) = made.kernels
    assert (kernel.levels, kernel.bits) == (100, 7)
    assert kernel.num_bytes == 2048 * 16 * 7 // 8 + 16 + 16 * 100
    assert_good(made, content)


def test_zero_and_constant_filters_are_the_same_to_the_bit():
    def some_flat(kernel):
        kernel = kernel.copy()
        kernel[..., :3] = 0
        kernel[..., 3:5] = 0.05
        kernel[..., 5:7] = -0.05
        return kernel

    model = sequence((6, 6, 32), layers.Conv2D(16, 3, name="flat"))
    content = int8_file(model, 2, {"flat": some_flat})
    made = compression.compress(content)
    (kernel,) = made.kernels
    assert (kernel.levels, kernel.bits) == (2, 1)
    assert_good(made, content)


def test_kernel_of_constant_filters_takes_one_bit():
    model = sequence((64,), layers.Dense(64, name="flat"))
    content = int8_file(model, 2, {"flat": lambda kernel: np.abs(kernel)})
    made = compression.compress(content, max_decode_bytes=2**20)
    (kernel,) = made.kernels
    assert (kernel.levels, kernel.bits) == (1, 1)
    assert_good(made, content)


def test_depthwise_kernel_has_its_tables_on_the_last_axis():
    model = sequence(
        (6, 6, 64), layers.DepthwiseConv2D(5, depth_multiplier=2, padding="same")
    )
    content = int8_file(model, 3)
    made = compression.compress(content)
    kernel = by_shape(made, 1, 5, 5, 128)
    assert (kernel.levels, kernel.bits, kernel.parts) == (3, 2, 1)
    assert kernel.num_bytes == 25 * 128 // 4 + 16 + 128 * 3
    assert_good(made, content)


def test_transposed_convolution_is_the_same_to_the_bit():
    model = sequence((4, 4, 16), layers.Conv2DTranspose(32, 3, strides=2))
    content = int8_file(model)
    made = compression.compress(content)
    assert by_shape(made, 32, 3, 3, 16).bits == 1
    assert_good(made, content)


def test_network_with_residuals_is_the_same_to_the_bit():
    x = entry = keras.Input((8, 8, 16))
    for _ in range(2):
        y = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        y = layers.Conv2D(16, 3, padding="same")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
    y = layers.Conv2D(48, 3, strides=2, padding="same")(x)
    x = layers.Add()([y, layers.Conv2D(48, 1, strides=2)(x)])
    content = int8_file(keras.Model(entry, layers.GlobalAveragePooling2D()(x)), 3)
    for limit in (None, 1500):
        made = compression.compress(content, limit)
        assert sum(kernel.bits == 2 for kernel in made.kernels) == 5
        # 768 weights and 48 tables.
        assert "would save no more than" in by_shape(made, 48, 1, 1, 16).reason
        assert_good(made, content)


def test_layer_used_twice_is_decoded_twice_and_stored_once():
    shared = layers.Dense(96)
    entry = keras.Input((96,))
    model = keras.Model(entry, shared(layers.ReLU()(shared(entry))))
    content = int8_file(model)
    for limit, parts in ((2**20, 1), (4000, 3)):
        made = compression.compress(content, limit)
        (kernel,) = made.kernels
        assert (kernel.bits, kernel.parts) == (1, parts)
        # Parts of one size share their tables.
        assert kernel.num_bytes == 96 * 96 // 8 + 16 + 96 * 2 // parts
        assert operators_of(made.content).count("TFLM_DECODE") == 2 * parts
        assert_good(made, content)


def test_random_kernels_stay_and_the_file_is_the_same():
    model = sequence(
        (6, 6, 32),
        layers.Conv2D(32, 3),
        layers.DepthwiseConv2D(3),
        layers.Flatten(),
        layers.Dense(3),
    )
    content = int8_file(model, None)
    made = compression.compress(content)
    assert made.content == content
    assert made.arena_bytes == made.int8_arena_bytes
    reason = by_shape(made, 32, 3, 3, 32).reason
    assert "different values in a filter" in reason
    assert by_shape(made, 1, 3, 3, 32).reason == "would not become smaller"
    assert all(kernel.num_bytes == kernel.weights for kernel in made.kernels)


def test_kernel_read_by_another_operator_stays():
    file = TFLiteFile(small_network())
    graph = file.subgraphs[0]
    kernel = max(lookup_tables.find_kernels(file), key=lambda kernel: kernel.weights)
    assert not kernel.obstacle
    graph.operators.append(
        file.new_operator("ABS", [kernel.index], [len(graph.tensors) - 1])
    )
    found = {k.index: k.obstacle for k in lookup_tables.find_kernels(file)}
    assert found[kernel.index] == "is read by ABS too"


def test_kernel_that_is_an_output_stays():
    file = TFLiteFile(small_network())
    graph = file.subgraphs[0]
    kernel = max(lookup_tables.find_kernels(file), key=lambda kernel: kernel.weights)
    graph.outputs = np.array([*indices(graph.outputs), kernel.index], np.int32)
    found = {k.index: k.obstacle for k in lookup_tables.find_kernels(file)}
    assert found[kernel.index] == "is an output too"


def test_kernel_that_shares_its_data_with_another_tensor_stays():
    file = TFLiteFile(small_network())
    graph = file.subgraphs[0]
    kernel = max(lookup_tables.find_kernels(file), key=lambda kernel: kernel.weights)
    other = file.add_tensor(graph, "other", kernel.shape, "INT8")
    graph.tensors[other].buffer = graph.tensors[kernel.index].buffer
    found = {k.index: k.obstacle for k in lookup_tables.find_kernels(file)}
    assert found[kernel.index] == "shares its data with a tensor that stays"


def test_kernel_with_scales_on_a_middle_axis_stays():
    file = TFLiteFile(small_network())
    kernel = next(k for k in lookup_tables.find_kernels(file) if len(k.shape) == 4)
    tensor = file.subgraphs[0].tensors[kernel.index]
    tensor.quantization.quantizedDimension = 1
    found = {k.index: k.obstacle for k in lookup_tables.find_kernels(file)}
    assert found[kernel.index] == "has 32 scales on axis 1"


def test_float_kernel_stays():
    file = TFLiteFile(small_network())
    kernel = lookup_tables.find_kernels(file)[0]
    tensor = file.subgraphs[0].tensors[kernel.index]
    tensor.type = 17  # INT4.
    found = {k.index: k.obstacle for k in lookup_tables.find_kernels(file)}
    assert found[kernel.index] == "is INT4, not INT8"


def test_kernel_with_one_scale_has_one_table():
    file = TFLiteFile(small_network())
    kernel = next(k for k in lookup_tables.find_kernels(file) if k.shape == (64, 32))
    assert kernel.tables == 64
    tensor = file.subgraphs[0].tensors[kernel.index]
    tensor.quantization.scale = tensor.quantization.scale[:1]
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:1]
    # Of a bias too: the interpreter compares its scale with the kernel's.
    bias = file.subgraphs[0].tensors[indices(kernel.uses[0].operator.inputs)[2]]
    bias.quantization.scale = bias.quantization.scale[:1]
    bias.quantization.zeroPoint = bias.quantization.zeroPoint[:1]
    content = file.pack()
    for limit, parts in ((2**20, 1), (512, 4)):
        made = compression.compress(content, limit)
        stored = by_shape(made, 64, 32)
        assert (stored.bits, stored.parts) == (1, parts)
        assert stored.num_bytes == 64 * 32 // 8 + 16 + 2
        assert_good(made, content)


def test_one_table_for_a_kernel_with_many_scales_is_still_wrong():
    # Why tables follow the quantization. Where this fails, they need not.
    from tflite_micro import compression as package
    from tflite_micro.tensorflow.lite.micro.compression import spec

    content = small_network()
    (kernel,) = (
        kernel
        for kernel in lookup_tables.find_kernels(TFLiteFile(content))
        if kernel.shape == (32, 3, 3, 16)
    )
    method = spec.LookUpTableCompression(1, spec.PerTensor())
    wrong = package.compress(content, [spec.Tensor(0, kernel.index, [method])])
    with pytest.raises(ExportError, match="does not compute what the int8 file does"):
        check_same(bytes(wrong), content)


def test_compressed_file_keeps_signature_and_metadata():
    before = TFLiteFile(small_network())
    before.set_metadata("about", b"a model")
    made = compression.compress(before.pack(), 2**20)
    after = TFLiteFile(made.content)
    assert after.metadata("about") == b"a model"
    (old,), (new,) = before.model.signatureDefs, after.model.signatureDefs
    assert new.signatureKey == old.signatureKey
    assert [x.name for x in new.inputs] == [x.name for x in old.inputs]
    graph, old_graph = after.subgraphs[0], before.subgraphs[0]
    for index in (*indices(graph.inputs), *indices(graph.outputs)):
        assert graph.tensors[index].name == old_graph.tensors[index].name
    for kernel in made.kernels:
        names = {tensor.name for tensor in graph.tensors}
        assert kernel.name.encode() in names or kernel.bits is None


def test_compression_that_the_package_refuses_raises():
    content = small_network(3)
    kernels = lookup_tables.find_kernels(TFLiteFile(content))
    (kernel,) = (kernel for kernel in kernels if len(kernel.shape) == 4)
    wrong = dataclasses.replace(kernel, levels=2)
    with pytest.raises(ExportError, match="cannot compress the file: CompressionError"):
        lookup_tables.compress(content, [wrong])


def test_most_levels_counts_per_filter():
    generator = np.random.default_rng(0)
    values = generator.integers(-4, 4, (5, 3, 3, 7)).astype(np.int8)
    values[2] = 1
    for axis in (0, 3):
        expected = max(
            len(np.unique(values.take(i, axis))) for i in range(values.shape[axis])
        )
        assert lookup_tables.most_levels(values, axis) == expected
    assert lookup_tables.most_levels(values, None) == len(np.unique(values))
    assert lookup_tables.most_levels(np.zeros((1, 1), np.int8), 0) == 1


# Splitting.


def test_split_layers_are_the_same_to_the_bit():
    content = small_network()
    whole = compression.compress(content, 2**20)
    made = compression.compress(content, 1000)
    kernel = by_shape(made, 32, 3, 3, 16)
    assert (kernel.bits, kernel.parts) == (1, 6)
    assert kernel.decoded_bytes == 6 * 144
    assert by_shape(made, 64, 32).parts == 3
    for kernel in made.kernels:
        assert kernel.decoded_bytes <= 1000
    assert_good(made, content)
    assert made.arena_bytes < whole.arena_bytes
    assert operators_of(made.content).count("CONCATENATION") == 2


def test_many_parts_are_concatenated_in_steps():
    content = int8_file(sequence((3, 3, 64), layers.Conv2D(256, 3)))
    made = compression.compress(content, 2 * 576)
    (kernel,) = made.kernels
    assert kernel.parts == 128
    file = TFLiteFile(made.content)
    joins = [
        len(indices(operator.inputs))
        for operator in file.subgraphs[0].operators
        if file.operator_name(operator) == "CONCATENATION"
    ]
    assert max(joins) == splitting.MAX_CONCATENATED
    # 128 in 13, in 2, in 1; nothing is copied alone.
    assert len(joins) == 13 + 2 + 1
    assert_good(made, content)


def test_dense_layer_over_steps_is_split_on_the_last_axis():
    content = int8_file(sequence((5, 32), layers.Dense(80, activation="relu")))
    made = compression.compress(content, 700)
    (kernel,) = made.kernels
    assert kernel.parts == 4
    file = TFLiteFile(made.content)
    (joined,) = (
        operator
        for operator in file.subgraphs[0].operators
        if file.operator_name(operator) == "CONCATENATION"
    )
    assert joined.builtinOptions.axis == 2
    assert_good(made, content)


def test_bias_that_two_layers_share_is_split_for_one():
    file = TFLiteFile(
        int8_file(sequence((32,), layers.Dense(64), layers.Dense(64), layers.Dense(2)))
    )
    first, second = file.subgraphs[0].operators[:2]
    inputs_of_second = indices(second.inputs)
    inputs_of_second[2] = indices(first.inputs)[2]
    second.inputs = np.array(inputs_of_second, np.int32)
    content = file.pack()
    made = compression.compress(content, 2100)
    assert by_shape(made, 64, 32).parts == 1
    assert by_shape(made, 64, 64).parts == 2
    assert_good(made, content)


def test_grouped_convolution_is_not_split():
    content = int8_file(sequence((6, 6, 64), layers.Conv2D(64, 3, groups=4)))
    made = compression.compress(content, 2000)
    (kernel,) = made.kernels
    assert kernel.reason == (
        "would decode more than 2000 bytes at a time, and belongs to a convolution in "
        "groups"
    )
    assert made.content == content
    whole = compression.compress(content, 2**20)
    assert whole.kernels[0].bits == 1
    assert_good(whole, content)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("DepthwiseConv2D", "has its filters on the last axis"),
        ("Conv2DTranspose", "belongs to TRANSPOSE_CONV, which is not split"),
    ],
)
def test_kernels_that_cannot_be_split_stay_if_too_large(layer, reason):
    options = {"filters": 32} if layer == "Conv2DTranspose" else {}
    made_layer = getattr(layers, layer)(kernel_size=7, **options)
    content = int8_file(sequence((8, 8, 64), made_layer))
    made = compression.compress(content, 1000)
    (kernel,) = made.kernels
    assert kernel.reason.endswith(f", and {reason}")
    assert made.content == content


def test_kernel_whose_filters_are_too_large_stays():
    content = int8_file(sequence((600,), layers.Dense(8)))
    made = compression.compress(content, 1000)
    (kernel,) = made.kernels
    assert kernel.reason == "would decode more than 1000 bytes at a time"


def test_part_sizes_cover_the_channels():
    for channels in range(4, 70):
        for most in range(2, 70):
            sizes = splitting.part_sizes(channels, most)
            assert sum(sizes) == channels
            assert min(sizes) >= splitting.MIN_CHANNELS
            # Three channels, where two are allowed, cannot be two parts.
            assert max(sizes) <= max(most, 3)
    assert splitting.part_sizes(256, 17) == (16,) * 16
    assert splitting.part_sizes(10, 4) == (4, 4, 2)
    assert splitting.part_sizes(9, 4) == (4, 3, 2)
    assert splitting.part_sizes(8, 100) == (8,)


@pytest.mark.parametrize("value", [1.5, "1000", True])
def test_max_decode_bytes_of_wrong_type_raises(value):
    with pytest.raises(TypeError, match="`max_decode_bytes` must be `None` or a num"):
        compression.compress(small_network(), value)


@pytest.mark.parametrize("value", [0, -1])
def test_max_decode_bytes_below_one_raises(value):
    message = f"must be at least 1. Received: max_decode_bytes={value}"
    with pytest.raises(ValueError, match=message):
        compression.compress(small_network(), value)


# Choosing by memory.


@functools.cache
def half_million_weights():
    """A binary network of 512,000 weights."""
    made = []
    for filters in (32, 64, 128):
        for _ in range(2):
            made.append(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        made.append(layers.MaxPooling2D())
    made.append(layers.Conv2D(192, 3, padding="same", activation="relu"))
    made += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return int8_file(sequence((32, 32, 3), *made))


def test_half_a_million_binary_weights_are_below_95_kb_in_1_5_times_the_memory():
    content = half_million_weights()
    made = compression.compress(content)
    assert sum(kernel.weights for kernel in made.kernels) > 500_000
    assert len(made.content) <= 95_000
    assert made.arena_bytes <= 1.5 * made.int8_arena_bytes
    # That is not for free: decoding whole kernels takes several times as much.
    whole = compression.compress(content, 2**20)
    assert whole.arena_bytes > 2.5 * made.int8_arena_bytes
    assert len(made.content) < 1.1 * len(whole.content)
    assert any(kernel.parts > 1 for kernel in made.kernels)
    assert_good(made, content)


def test_network_of_dense_layers_is_compressed_in_more_memory():
    content = int8_file(sequence((64,), layers.Dense(64), layers.Dense(64)))
    made = compression.compress(content)
    # Activations take next to nothing: in 1.5 times that, no kernel has room.
    assert made.arena_bytes > 1.5 * made.int8_arena_bytes
    assert len(made.content) < 0.5 * len(content)
    assert_good(made, content)


# Comparing.


def test_check_of_other_weights_raises():
    content = small_network()
    file = TFLiteFile(content)
    kernel = next(k for k in lookup_tables.find_kernels(file) if len(k.shape) == 2)
    tensor = file.subgraphs[0].tensors[kernel.index]
    values = file.array(tensor).copy()
    values[0] = -values[0]
    tensor.buffer = file.add_buffer(values)
    message = r"on random inputs, \d+ of 10 values of output 0 differ. No file was"
    with pytest.raises(ExportError, match=message):
        check_same(file.pack(), content)


def test_check_of_other_outputs_raises():
    other = int8_file(sequence((8, 8, 16), layers.Conv2D(3, 3)))
    with pytest.raises(ExportError, match="has other inputs or outputs"):
        check_same(other, small_network())


def test_check_counts_random_and_given_examples():
    content = small_network()
    examples = [[np.zeros((1, 8, 8, 16), np.int8)], [np.ones((1, 8, 8, 16), np.int8)]]
    assert check_same(content, content, examples, random_examples=3) == 5


def test_check_of_examples_of_another_shape_raises():
    content = small_network()
    with pytest.raises(ValueError, match="Argument `inputs` must have the shapes"):
        check_same(content, content, [[np.zeros((8, 8, 16), np.int8)]])


def test_check_in_too_little_memory_raises():
    content = small_network()
    with pytest.raises(ExportError, match="cannot run the file in 4,000 bytes"):
        check_same(content, content, arena_bytes=4000)


def test_constant_factor_of_a_product_is_compressed():
    class Product(layers.Layer):
        def build(self, input_shape):
            self.factor = self.add_weight(shape=(4, 16, 64), name="factor")

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.sign(self.factor) * 0.1)

    content = int8_file(sequence((4, 8, 16), Product()), None)
    made = compression.compress(content, 2**20)
    (kernel,) = made.kernels
    assert "BATCH_MATMUL" in made.operators
    assert (kernel.weights, kernel.bits) == (4096, 1)
    assert_good(made, content)


def test_kernel_that_is_looked_up_is_compressed():
    class Lookup(layers.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(shape=(200, 32), name="table")

        def call(self, x):
            table = keras.ops.sign(self.table) * 0.5
            # Keras's `take` has operators that the interpreter lacks.
            return tf.gather(table, x)

    entry = keras.Input((4,), dtype="int32")
    model = keras.Model(entry, Lookup()(entry))
    signature = inputs.input_signature(model, np.zeros((2, 4), np.int32))
    floats = convert.float_file(model, signature.with_batch(1), integers=True)
    data = np.random.default_rng(0).integers(0, 200, (8, 4)).astype(np.int32)
    file = TFLiteFile(integer.int8_file(floats, Examples([data])))
    names = [file.operator_name(operator) for operator in file.subgraphs[0].operators]
    assert "GATHER" in names
    content = file.pack()
    made = compression.compress(content, 2**20)
    (kernel,) = (kernel for kernel in made.kernels if kernel.weights == 6400)
    assert kernel.bits == 1
    # Zeros, and what is given: random numbers might point beyond the table.
    examples = [[row[None]] for row in data]
    assert check_same(made.content, content, examples) == 9
