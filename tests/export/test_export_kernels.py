"""No quantized kernel gets into a file as float32 unnoticed; "small" is the smallest.

Whatever the converter does with a kernel: multiplies what comes before into its rows,
transposes it, splits it.
"""

import json
import zlib

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_sq
from keras_sq.export import ExportError, runtimes
from keras_sq.export.conversion import convert, inputs
from keras_sq.export.report import METADATA_NAME
from keras_sq.export.tflite import choice, runtime
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile, indices
from keras_sq.export.tflite.row_scales import row_scales
from keras_sq.export.tflite.weights import weight_tensors, with_kernels

BITS = {"int2": 2, "int4": 4, "fast": 8, "small": 2}
FLOAT_TARGETS = tuple(BITS)


def export(model, path, target, **kwargs):
    return keras_sq.export(model, path, target=target, allow_untrained=True, **kwargs)


def data(model, count=24):
    generator = np.random.default_rng(1)
    shape = (count, *model.inputs[0].shape[1:])
    return generator.normal(size=shape).astype("float32")


# Networks whose kernels the converter does not leave as they are.


def custom(name, shape, call):
    """Returns a registered layer with one kernel."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=shape, name="kernel")

    kind = type(name, (kl.Layer,), {"build": build, "call": call})
    kind = keras.saving.register_keras_serializable("test_export_kernels")(kind)
    keras_sq.register(kind, ("kernel",))
    return kind


NOISE = np.sin(np.arange(3072.0)).astype("float32").reshape(64, 48)
STEPS = np.linspace(-2, 2, 64).astype("float32")

Capsules = custom(
    "Capsules",
    (8, 10, 16, 12),
    lambda self, x: ops.einsum("bik,indk->bnid", x, self.kernel),
)
Groups = custom(
    "Groups",
    (16, 4, 40),
    lambda self, x: ops.einsum(
        "bgi,igo->bgo", ops.reshape(x, (-1, 4, 16)), self.kernel
    ),
)
Tied = custom(
    "Tied",
    (64, 48),
    lambda self, x: ops.relu(x @ self.kernel) @ ops.transpose(self.kernel),
)
TiedScaled = custom(
    "TiedScaled",
    (64, 48),
    lambda self, x: (
        (ops.relu(x @ self.kernel) @ ops.transpose(self.kernel)) * STEPS + 1.0
    ),
)
Split = custom(
    "Split",
    (64, 96),
    lambda self, x: sum(ops.relu(x @ k) for k in ops.split(self.kernel, 3, axis=1)),
)
SplitRows = custom(
    "SplitRows",
    (64, 96),
    lambda self, x: sum(
        ops.relu(part @ k)
        for part, k in zip(
            ops.split(x, 2, axis=1), ops.split(self.kernel, 2, axis=0), strict=True
        )
    ),
)
Repeated = custom(
    "Repeated",
    (32, 48),
    lambda self, x: ops.matmul(x, ops.broadcast_to(self.kernel, (4, 32, 48))),
)
Times = custom("Times", (40, 48), lambda self, x: x * self.kernel)
Scaled = custom("Scaled", (64, 48), lambda self, x: x @ (self.kernel * STEPS[:, None]))
Noisy = custom(
    "Noisy",
    (64, 48),
    lambda self, x: x @ (self.kernel + NOISE),
)
Unused = custom("Unused", (64, 48), lambda self, x: x * 2.0)


def normalizing(*layers):
    """Returns a network with the normalizations of a trained one."""
    model = keras.Sequential(layers)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            names = [weight.name for weight in layer.weights]
            values = {
                "gamma": generator.normal(size=layer.weights[0].shape),
                "moving_variance": generator.uniform(0.1, 4, layer.weights[0].shape),
            }
            layer.set_weights(
                [
                    values.get(name, generator.normal(size=w.shape))
                    for name, w in zip(names, layer.weights, strict=True)
                ]
            )
        elif hasattr(layer, "bias") and layer.bias is not None:
            layer.bias.assign(generator.uniform(0.5, 1.5, layer.bias.shape))
    return model


def normalization():
    generator = np.random.default_rng(2)
    mean, variance = generator.normal(size=64), generator.uniform(0.1, 4, 64)
    return kl.Normalization(mean=mean, variance=variance)


BN = kl.BatchNormalization
NETWORKS = {
    "scale and offset": lambda: [keras.Input((64,)), BN(), kl.Dense(48)],
    "offset": lambda: [keras.Input((64,)), BN(scale=False), kl.Dense(48)],
    "scale": lambda: [keras.Input((64,)), BN(center=False), kl.Dense(48)],
    "no bias": lambda: [keras.Input((64,)), BN(), kl.Dense(48, use_bias=False)],
    "twice": lambda: [keras.Input((64,)), BN(), BN(), kl.Dense(48)],
    "between": lambda: [
        keras.Input((64,)),
        kl.Dense(40, activation="relu"),
        BN(),
        kl.Dense(48),
        BN(),
    ],
    "after pooling": lambda: [
        keras.Input((6, 6, 16)),
        BN(),
        kl.Conv2D(64, 3, padding="same"),
        kl.GlobalAveragePooling2D(),
        BN(),
        kl.Dense(48),
    ],
    "flattened": lambda: [keras.Input((3, 3, 16)), BN(), kl.Flatten(), kl.Dense(48)],
    "rescaled": lambda: [
        keras.Input((64,)),
        kl.Rescaling(1 / 127.5, -1.0),
        normalization(),
        kl.Dense(48),
    ],
    "transposed convolution": lambda: [
        keras.Input((5, 5, 16)),
        BN(),
        kl.Conv2DTranspose(24, 3),
        BN(),
    ],
    "depthwise": lambda: [
        keras.Input((8, 8, 64)),
        BN(),
        kl.ZeroPadding2D(1),
        kl.DepthwiseConv2D(5),
        BN(),
    ],
    "capsules": lambda: [keras.Input((8, 12)), Capsules()],
    "groups": lambda: [keras.Input((64,)), Groups()],
    "tied": lambda: [keras.Input((64,)), Tied()],
    "tied and scaled": lambda: [keras.Input((64,)), TiedScaled()],
    "split": lambda: [keras.Input((64,)), Split()],
    "split rows": lambda: [keras.Input((64,)), SplitRows()],
    "repeated": lambda: [keras.Input((4, 5, 32)), Repeated()],
    "times": lambda: [keras.Input((40, 48)), Times()],
    "kernel scaled": lambda: [keras.Input((64,)), Scaled()],
}


def network(name, method="ternary", **kwargs):
    model = normalizing(*NETWORKS[name]())
    return keras_sq.quantize_model(
        model, method, seed=0, skip=(), overrides={}, **kwargs
    )


def add_up(report):
    assert sum(row.num_bytes for row in report.kernels) < report.num_bytes
    assert {row.path for row in report.kernels if row.quantized} >= {
        row.path for row in report.kernels
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_packed_whatever_is_folded(name, tmp_path):
    model = network(name)
    path = tmp_path / "m.tflite"
    report = export(model, path, "small")
    assert {row.path for row in report.kernels} == set(keras_sq.get_codes(model))
    for row in report.kernels:
        assert row.quantized
        # Two bits a weight, and 4 bytes for the scale of each of up to 96 filters.
        assert row.num_bytes <= row.weights / 4 + 4 * 96
        assert row.num_bytes < row.weights
    add_up(report)
    x = data(model)
    (output,) = runtime.Runner(path.read_bytes())({report.inputs[0].name: x}).values()
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(
        output, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("target", FLOAT_TARGETS)
@pytest.mark.parametrize("method", ["uniform-4", "lq-2"])
def test_every_method_behind_a_normalization(method, target, tmp_path):
    model = network("between", method)
    report = export(model, tmp_path / "m.tflite", target)
    rows = {row.path: row for row in report.kernels}
    assert set(rows) == set(keras_sq.get_codes(model))
    for row in rows.values():
        assert row.stored_as != "float32"
        assert row.num_bytes < row.weights * (2 if target == "fast" else 1)
    assert report.largest_error < 2e-6


@pytest.mark.parametrize("granularity", ["filter", "element"])
def test_codes_in_the_file_are_those_of_the_model(granularity, tmp_path):
    model = network("scale and offset", granularity=granularity)
    path = tmp_path / "m.tflite"
    export(model, path, "int2")
    file = TFLiteFile(path.read_bytes())
    (codes,) = (
        file.array(tensor)
        for _, _, tensor in file.constants()
        if TYPE_NAMES[tensor.type] == "INT2"
    )
    (expected,) = keras_sq.get_codes(model).values()
    np.testing.assert_array_equal(codes, expected.codes.T)


def test_a_learned_depthwise_kernel_is_packed(tmp_path):
    model = keras.Sequential(
        [keras.Input((16, 16, 64)), kl.DepthwiseConv2D(13, name="only")]
    )
    model = keras_sq.quantize_model(model, "lq-2", skip=(), overrides={}, seed=0)
    for target in ("fast", "small"):
        report = export(model, tmp_path / "m.tflite", target)
        (row,) = report.kernels
        assert row.stored_as == "packed levels"
        # 16/7 bits, and four float32 levels a filter of 169 weights.
        assert row.bits_per_weight == pytest.approx(16 / 7 + 128 / 169, rel=1e-3)
        assert report.largest_error < 2e-6


@pytest.mark.parametrize(("method", "bits"), [("lq-6", 8), ("lq-8", 16)])
def test_many_learned_levels_are_packed(method, bits, tmp_path):
    # On as many levels as it says; the fit of eight bits takes long.
    num_levels = 2 ** int(method[-1])
    generator = np.random.default_rng(0)
    kernel = generator.integers(0, num_levels, (4000, 8)).astype("int16")
    levels = np.sort(generator.normal(size=(num_levels, 8)), axis=0)
    model = keras.Sequential([keras.Input((4000,)), kl.Dense(8, name="only")])
    weights = np.take_along_axis(levels, kernel, axis=0).astype("float32")
    model.layers[0].kernel.assign(weights)
    codes = {
        "only/kernel": keras_sq.KernelCodes(
            kernel.astype("uint8"),
            np.abs(levels).max(axis=0, keepdims=True),
            levels.astype("float32")[:, np.newaxis],
        )
    }
    signature = inputs.input_signature(model, None)
    content = convert.float_file(model, signature).content
    file = TFLiteFile(content)
    found = with_kernels(file, weight_tensors(file), codes)
    (row,) = choice.store_float_weights(file, found, ("INT2", "INT4", "INT8"))
    assert (row.stored_as, row.quantized) == ("packed levels", True)
    lists = 32 * num_levels / 4000
    assert row.bits_per_weight == pytest.approx(bits + lists, rel=1e-3)
    for delegates in (True, False):
        runner = runtime.Runner(file.pack(), delegates)
        x = np.eye(4000, dtype="float32")[:500]
        (output,) = runner({signature.inputs[0].name: x}).values()
        np.testing.assert_array_equal(output, weights[:500])


# Int8 activations.


@pytest.mark.parametrize(
    "name", ["scale and offset", "offset", "between", "rescaled", "tied and scaled"]
)
def test_int8_kernels_stay_on_the_grid(name, tmp_path):
    model = network(name)
    path = tmp_path / "m.tflite"
    x = data(model, 64)
    report = export(model, path, "int8", representative_data=x)
    assert {row.reason for row in report.kernels} == {"exactly -127, 0 and 127"}
    file = TFLiteFile(path.read_bytes())
    large = [
        file.array(tensor)
        for _, _, tensor in file.constants()
        if TYPE_NAMES[tensor.type] == "INT8" and np.count_nonzero(tensor.shape > 1) > 1
    ]
    assert len(large) == len(report.kernels)
    assert all(set(np.unique(array)) == {-127, 0, 127} for array in large)
    assert report.mean_error < 0.03
    report = export(model, path, "small", representative_data=x)
    assert report.bit_exact
    add_up(report)


def test_microcontrollers_get_two_bits(tmp_path):
    pytest.importorskip("tflite_micro", reason="tflite-micro is optional")
    model = network("scale and offset")
    path = tmp_path / "m.tflite"
    report = export(model, path, "mcu", representative_data=data(model))
    assert [row.stored_as for row in report.kernels] == ["2-bit table"]
    assert report.bit_exact


@pytest.mark.parametrize("method", ["ternary", "lq-2"])
def test_float_operators_of_an_int8_file_have_packed_kernels(method, tmp_path):
    model = keras.Sequential([keras.Input((5, 5, 5, 8)), kl.Conv3D(16, 3, name="only")])
    model = keras_sq.quantize_model(model, method, skip=(), overrides={}, seed=0)
    for target in ("int8", "small"):
        report = export(
            model, tmp_path / "m.tflite", target, representative_data=data(model)
        )
        (row,) = report.kernels
        assert row.path == "only/kernel"
        assert row.stored_as in ("INT8 codes", "packed levels")
        add_up(report)


@pytest.mark.parametrize("live", [2, 3, 8])
def test_pruned_filters_tell_nothing_of_the_rows(live, tmp_path):
    """Of 64 filters few have a factor that is not 0: rows of theirs may be all 0."""
    model = keras.Sequential(
        [keras.Input((32,)), kl.Dense(64), kl.BatchNormalization(), kl.Dense(16)]
    )
    gamma = np.zeros(64)
    gamma[:: 64 // live] = 1.0
    model.layers[1].gamma.assign(gamma)
    model = keras_sq.quantize_model(model, "ternary", skip=(), overrides={})
    report = export(model, tmp_path / "m.tflite", "small")
    assert not [k for k in report.kernels if k.stored_as == "float32"]
    add_up(report)


# What cannot be packed.


def test_a_float_kernel_is_an_error(tmp_path):
    model = keras.Sequential([keras.Input((64,)), Noisy(name="noisy")])
    model = keras_sq.quantize_model(model, "ternary", skip=(), overrides={})
    path = tmp_path / "m.tflite"
    message = (
        r"Target 'small' would store quantized kernels as float32, 12,288 bytes: "
        r"'noisy/kernel' \(3,072 weights: .*`allow_float_kernels=True`"
    )
    with pytest.raises(ExportError, match=message):
        export(model, path, "small")
    assert not path.exists()
    report = export(model, path, "small", allow_float_kernels=True)
    (row,) = report.kernels
    assert (row.path, row.stored_as, row.quantized) == ("noisy/kernel", "float32", True)
    assert row.num_bytes == 12288
    assert any("'noisy/kernel'" in note for note in report.notes)
    assert "QUANTIZED KERNELS AS FLOAT32" in str(report)
    add_up(report)
    report = export(model, path, "float")
    assert report.notes == ()


def test_what_is_too_small_or_not_needed_is_no_error(tmp_path):
    model = normalizing(
        keras.Input((8,)), BN(), kl.Dense(4, name="small"), kl.Dense(1, name="one")
    )
    model = keras_sq.quantize_model(model, "ternary", skip=(), overrides={})
    report = export(model, tmp_path / "m.tflite", "small")
    assert [row.stored_as for row in report.kernels] == ["float32"] * 2
    assert all("too small to gain" in row.reason for row in report.kernels)
    model = keras.Sequential(
        [keras.Input((64,)), Unused(name="unused"), kl.Dense(48, name="dense")]
    )
    model = keras_sq.quantize_model(model, "ternary", skip=(), overrides={})
    report = export(model, tmp_path / "m.tflite", "small")
    rows = {row.path: row for row in report.kernels}
    assert rows["unused/kernel"].num_bytes == 0
    assert "the outputs do not need it" in rows["unused/kernel"].reason
    add_up(report)


# The factors.


def factored(filters=20, rows=50, seed=0, zeros=True):
    generator = np.random.default_rng(seed)
    kernel = generator.integers(-1, 2, (filters, rows)).astype("float32")
    columns = generator.normal(size=filters)
    factors = generator.normal(size=rows) * 10.0 ** generator.integers(-3, 3, rows)
    if zeros:
        columns[3] = factors[4] = 0.0
        kernel[5] = kernel[:, 6] = 0.0
    constant = (kernel * columns[:, None]).astype("float32")
    return constant * factors.astype("float32"), kernel


@pytest.mark.parametrize("shape", [(2, 3), (2, 500), (20, 50), (300, 4)])
def test_row_scales_are_found_again(shape):
    constant, kernel = factored(*shape, zeros=min(shape) > 6)
    found = row_scales(constant, kernel)
    products = found.filters[:, None] * found.rows * kernel
    np.testing.assert_allclose(products, constant, rtol=1e-6, atol=0)


def test_filters_of_zeros_do_not_hide_a_kernel(tmp_path):
    constant, kernel = factored(zeros=False)
    constant[:12] = 0.0
    found = row_scales(constant, kernel)
    assert not found.filters_only
    np.testing.assert_allclose(
        found.filters[:, None] * found.rows * kernel, constant, rtol=1e-6, atol=0
    )
    # A normalization behind that has the factor 0 for most filters folds no rows.
    model = keras.Sequential([keras.Input((64,)), kl.Dense(48), BN()])
    gamma = np.where(np.arange(48) % 4, 0.0, np.linspace(-1, 2, 48))
    model.layers[1].gamma.assign(gamma)
    model = keras_sq.quantize_model(model, "ternary", overrides={}, skip=(), seed=0)
    path = tmp_path / "m.tflite"
    report = export(model, path, "small")
    assert [row.stored_as for row in report.kernels] == ["INT2 codes"]
    assert report.kernels[0].quantized
    file = TFLiteFile(path.read_bytes())
    names = [file.operator_name(x) for x in file.subgraphs[0].operators]
    assert names == ["DEQUANTIZE", "FULLY_CONNECTED"]


def test_rows_alone_leave_the_kernel_as_it_is():
    _, kernel = factored()
    factors = np.random.default_rng(1).normal(size=50)
    found = row_scales((kernel * factors).astype("float32"), kernel)
    assert set(found.filters) == {1.0}
    used = kernel.any(axis=0)
    np.testing.assert_allclose(found.rows[used], factors[used], rtol=1e-6)


def test_what_is_no_multiple_is_none():
    constant, kernel = factored(zeros=False)
    place = tuple(np.argwhere(constant)[-1])
    for value in (0.0, constant[place] * 1.0001, -constant[place]):
        wrong = constant.copy()
        wrong[place] = value
        assert row_scales(wrong, kernel) is None
    zero = tuple(np.argwhere(kernel == 0)[-1])
    constant[zero] = 1e-30
    assert row_scales(constant, kernel) is None
    noise = np.random.default_rng(2).normal(size=kernel.shape).astype("float32")
    assert row_scales(noise, kernel) is None
    assert row_scales(noise[:1], kernel[:1]) is None


# "small", and old runtimes.


def waves():
    x = keras.Input((32, 16))
    y = x
    for rate in (1, 2):
        z = kl.Conv1D(16, 2, dilation_rate=rate, padding="causal")(y)
        y = y + kl.Conv1D(16, 1)(kl.ReLU()(z))
    return keras.Model(x, kl.Dense(4)(kl.GlobalAveragePooling1D()(y)))


def images():
    x = keras.Input((12, 12, 8))
    y = kl.ReLU()(BN()(kl.Conv2D(48, 3, use_bias=False)(x)))
    y = kl.Conv2D(64, 3, activation="relu")(kl.DepthwiseConv2D(3)(y))
    return keras.Model(x, kl.Dense(10)(kl.GlobalAveragePooling2D()(y)))


def dense(units=64):
    return keras.Sequential([keras.Input((units,)), kl.Dense(units), kl.Dense(10)])


@pytest.mark.parametrize(
    ("build", "method", "settings"),
    [
        (dense, "ternary", {"overrides": {}}),
        (dense, "lq-2", {"overrides": {}}),
        (lambda: dense(300), "binary", {"overrides": {}}),
        (lambda: dense(300), "uniform-3", {"overrides": {}}),
        (waves, "ternary", {}),  # The smallest layers have 13 levels.
        (images, "ternary", {}),
        (images, "binary", {"overrides": {}, "skip": ()}),
        (images, "uniform-8", {"overrides": {}}),
    ],
)
def test_small_is_the_smallest(build, method, settings, tmp_path):
    model = keras_sq.quantize_model(build(), method, seed=0, **settings)
    path = tmp_path / "m.tflite"
    sizes = {x: export(model, path, x).num_bytes for x in ("int2", "int4", "fast")}
    report = export(model, path, "small")
    assert report.num_bytes <= min(sizes.values()), sizes
    assert report.num_bytes == path.stat().st_size
    file = TFLiteFile(path.read_bytes())
    readers = set()
    for subgraph in file.subgraphs:
        for index, uses in file.uses(subgraph).items():
            if TYPE_NAMES[subgraph.tensors[index].type] in ("INT2", "INT4"):
                readers |= {use.name for use in uses}
    assert readers <= {"DEQUANTIZE"}
    old = export(model, path, "small", oldest_runtime="tflite-runtime 2.14")
    assert old.num_bytes <= sizes["fast"]
    assert old.runtimes == runtimes.EVERY_RUNTIME


def test_old_runtimes_get_types_that_they_know(tmp_path):
    path = tmp_path / "m.tflite"
    ternary, fifteen = (
        keras_sq.quantize_model(images(), quantizer, overrides={}, seed=0)
        for quantizer in ("ternary", "uniform-4")
    )
    four_bits = {"INT4"}, runtimes.INT4_RUNTIMES
    expected = [
        (ternary, None, {"INT2"}, runtimes.INT2_RUNTIMES),
        (ternary, "LiteRT 2.1", {"INT2"}, runtimes.INT2_RUNTIMES),
        # Packed levels are smaller than codes of 4 bits here.
        (ternary, "litert >= 2.0.3", set(), runtimes.EVERY_RUNTIME),
        (ternary, "tflite-runtime 2.14", set(), runtimes.EVERY_RUNTIME),
        (fifteen, "litert >= 2.0.3", *four_bits),
        (fifteen, "TensorFlow 2.18.0", *four_bits),
        (fifteen, "TensorFlow 2.17", set(), runtimes.EVERY_RUNTIME),
    ]
    sizes = []
    for model, oldest, types, needed in expected:
        report = export(model, path, "small", oldest_runtime=oldest)
        file = TFLiteFile(path.read_bytes())
        kinds = {TYPE_NAMES[tensor.type] for _, _, tensor in file.constants()}
        assert kinds & {"INT2", "INT4"} == types
        assert report.runtimes == needed
        assert f"runs on  {needed[0]}" in str(report)
        metadata = json.loads(zlib.decompress(file.metadata(METADATA_NAME)))
        assert tuple(metadata["runtimes"]) == needed
        sizes.append(report.num_bytes)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("target", "value", "error", "message"),
    [
        ("small", 2.14, TypeError, r"`None` or a string such as 'LiteRT 1\.0\.1'"),
        (
            "small",
            "2.14",
            ValueError,
            "must be one of 'tflite-runtime', 'LiteRT', 'Ten",
        ),
        ("small", "LiteRT", ValueError, "and a version, such as"),
        ("small", "onnx 1.0", ValueError, "must be one of 'tflite-runtime'"),
        ("small", "LiteRT 1.0", ValueError, r"tried on, LiteRT >= 1\.0\.1"),
        ("int2", "LiteRT 1.4", ValueError, r"Target 'int2' needs LiteRT >= 2\.1 or Te"),
        ("int4", "TensorFlow 2.17", ValueError, "Choose target 'small' for older ones"),
        ("mcu", "LiteRT 2.1", ValueError, "is for TensorFlow Lite for Microcontroll"),
    ],
)
def test_wrong_oldest_runtime(target, value, error, message, tmp_path):
    model = keras_sq.quantize_model(dense(8), "ternary", overrides={})
    kwargs = {"representative_data": data(model)} if target == "mcu" else {}
    with pytest.raises(error, match=message):
        export(model, tmp_path / "m.tflite", target, oldest_runtime=value, **kwargs)


def test_activations_are_multiplied_once_where_layers_share_them(tmp_path):
    x = keras.Input((64,))
    y = BN(name="norm")(x)
    model = keras.Model(x, [kl.Dense(48)(y), kl.Dense(40)(y)])
    generator = np.random.default_rng(0)
    for layer in model.layers[1:]:
        layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    model = keras_sq.quantize_model(model, "ternary", overrides={}, skip=())
    path = tmp_path / "m.tflite"
    report = export(model, path, "small")
    assert {row.stored_as for row in report.kernels} == {"INT2 codes"}
    (graph,) = TFLiteFile(path.read_bytes()).subgraphs
    made = [place for x in graph.operators for place in indices(x.outputs)]
    assert len(made) == len(set(made))
