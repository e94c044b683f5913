"""Which operators Keras layers become: such as every runtime has, whatever is open."""

import collections
import re
import threading

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_sq
from keras_sq.export import ExportError
from keras_sq.export.conversion import equivalents
from keras_sq.export.tflite import runtime
from keras_sq.export.tflite.flatbuffer import TFLiteFile


def operators(path):
    """Returns how many operators of a name a file has."""
    file = TFLiteFile(path.read_bytes())
    return collections.Counter(
        file.operator_name(operator)
        for graph in file.subgraphs
        for operator in graph.operators
    )


def outputs(path, x):
    run = runtime.Runner(path.read_bytes())
    (name,) = run.inputs
    made = run({name: run.quantized(name, x)})
    return run.dequantized("output_0", made["output_0"])


def up_to_conv(layer):
    return lambda x: kl.Conv2D(4, 3, padding="same")(layer(x))


def up_to_conv_1d(layer):
    return lambda x: kl.Conv1D(4, 3, padding="same")(layer(x))


IMAGE, OPEN_IMAGE = (6, 5, 3), (None, None, 3)
SERIES, OPEN_SERIES = (6, 3), (None, 3)
NEAREST, BILINEAR = "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"

KINDS = {
    "2d": (IMAGE, up_to_conv(kl.UpSampling2D((3, 2))), NEAREST),
    "2d twice, open": (
        OPEN_IMAGE,
        lambda x: up_to_conv(kl.UpSampling2D(7))(up_to_conv(kl.UpSampling2D(2))(x)),
        NEAREST,
    ),
    "2d bilinear, open": (
        OPEN_IMAGE,
        up_to_conv(kl.UpSampling2D(2, interpolation="bilinear")),
        BILINEAR,
    ),
    "2d channels first": (
        (3, 6, 5),
        lambda x: kl.Permute((2, 3, 1))(kl.UpSampling2D(2, "channels_first")(x)),
        NEAREST,
    ),
    "1d": (SERIES, up_to_conv_1d(kl.UpSampling1D(3)), NEAREST),
    "1d, open": (OPEN_SERIES, up_to_conv_1d(kl.UpSampling1D(2)), NEAREST),
    "3d": ((2, 3, 4, 2), kl.UpSampling3D((3, 2, 4)), NEAREST),
    "repeat of a vector": ((5,), kl.RepeatVector(4), NEAREST),
    "repeat in a graph": (
        IMAGE,
        lambda x: up_to_conv(lambda y: ops.repeat(y, 2, axis=-2))(x),
        NEAREST,
    ),
    "repeat of channels": (
        IMAGE,
        up_to_conv(lambda x: ops.repeat(x, 3, axis=3)),
        "PACK",
    ),
    "inside of others": (
        IMAGE,
        lambda x: keras.Sequential([kl.Input(IMAGE), kl.UpSampling2D(2)])(x),
        NEAREST,
    ),
    "max 3d": ((5, 4, 6, 2), kl.MaxPooling3D((2, 3, 2), padding="same"), "MAX_POOL_2D"),
    "average 3d": (
        (5, 4, 6, 2),
        kl.AveragePooling3D((2, 3, 2), (1, 2, 2), padding="same"),
        "AVERAGE_POOL_2D",
    ),
    "roll": (IMAGE, lambda x: ops.roll(x, (2, -1), axis=(1, 2)), "CONCATENATION"),
    "open time": (
        (None, 6, 6, 3),
        lambda x: kl.TimeDistributed(kl.Conv2D(2, 3, activation="relu"))(x),
        "CONV_2D",
    ),
}


def network(kind):
    shape, layers, operator = KINDS[kind]
    x = keras.Input(shape, name="x")
    return keras.Model(x, layers(x), name="net"), operator


@pytest.mark.parametrize("kind", KINDS)
def test_layer_becomes_what_every_runtime_has(kind, tmp_path):
    model, operator = network(kind)
    path = tmp_path / "x.tflite"
    report = keras_sq.export(model, path)
    assert report.notes == ()
    assert report.inputs[0].shape[0] is None
    found = operators(path)
    assert found[operator] >= 1
    assert not {"TILE", "WHILE", "BROADCAST_TO"} & set(found)
    for batch, size in ((1, 4), (3, 7)):
        sizes = [size if n is None else n for n in model.input_shape[1:]]
        x = np.random.default_rng(0).normal(size=(batch, *sizes)).astype("float32")
        expected = np.asarray(model(x))
        made = outputs(path, x)
        np.testing.assert_allclose(made, expected, atol=1e-5)
        if operator == NEAREST and not model.weights:
            np.testing.assert_array_equal(made, expected)
    assert all("call" not in layer.__dict__ for layer in model.layers)


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (7, 11), (13, 17)])
def test_nearest_is_exact_for_every_factor(size, tmp_path):
    model = keras.Sequential([keras.Input((None, None, 2)), kl.UpSampling2D(size)])
    path = tmp_path / "x.tflite"
    keras_sq.export(model, path)
    for shape in ((1, 1), (29, 31)):
        x = np.random.default_rng(0).normal(size=(1, *shape, 2)).astype("float32")
        expected = x.repeat(size[0], axis=1).repeat(size[1], axis=2)
        np.testing.assert_array_equal(outputs(path, x), expected)


def test_own_call_of_a_subclass_is_kept(tmp_path):
    class Odd(kl.UpSampling2D):
        def call(self, x):
            return 2 * super().call(x)

    model = keras.Sequential([keras.Input((4, 4, 2)), Odd(2)])
    assert keras_sq.export(model, tmp_path / "x.tflite").largest_error == 0
    # Inside of an own layer Keras's own class is known.
    assert operators(tmp_path / "x.tflite")[NEAREST] == 0


def test_other_threads_call_what_they_did():
    layer = kl.UpSampling2D(2)
    model = keras.Sequential([keras.Input((4, 4, 2)), layer])
    x = np.ones((1, 4, 4, 2), "float32")
    called = []

    def watched(operation, *args):
        called.append(threading.get_ident())

    rule = equivalents._RULES[kl.UpSampling2D]
    try:
        equivalents._RULES[kl.UpSampling2D] = watched
        with equivalents.used(model):
            other = threading.Thread(target=model, args=(x,))
            other.start()
            other.join()
            assert called == []
            model(x)
        model(x)
    finally:
        equivalents._RULES[kl.UpSampling2D] = rule
    assert called == [threading.get_ident()]


def unet(size, filters, classes=3, enlarge=kl.UpSampling2D):
    """The U-Net of Keras's example "Image segmentation with a U-Net-like network"."""
    inputs = keras.Input((*size, 3))
    x = kl.Conv2D(filters[0], 3, strides=2, padding="same")(inputs)
    x = kl.Activation("relu")(kl.BatchNormalization()(x))
    previous = x
    for count in filters[1:]:
        for _ in range(2):
            x = kl.Activation("relu")(x)
            x = kl.SeparableConv2D(count, 3, padding="same")(x)
            x = kl.BatchNormalization()(x)
        x = kl.MaxPooling2D(3, strides=2, padding="same")(x)
        residual = kl.Conv2D(count, 1, strides=2, padding="same")(previous)
        previous = x = kl.add([x, residual])
    for count in reversed(filters):
        for _ in range(2):
            x = kl.Activation("relu")(x)
            x = kl.Conv2DTranspose(count, 3, padding="same")(x)
            x = kl.BatchNormalization()(x)
        x = enlarge(2)(x)
        residual = enlarge(2)(previous)
        residual = kl.Conv2D(count, 1, padding="same")(residual)
        previous = x = kl.add([x, residual])
    outputs = kl.Conv2D(classes, 3, activation="softmax", padding="same")(x)
    return keras.Model(inputs, outputs, name="unet")


@pytest.fixture(scope="module")
def quantized_unet():
    keras.utils.set_random_seed(0)
    plain = unet((None, None), (6, 8))
    return keras_sq.quantize_model(plain, "ternary", overrides={}, seed=0)


@pytest.mark.parametrize("target", ["float", "small", "int8", "mcu"])
def test_unet_is_exported_for_every_target(target, quantized_unet, tmp_path):
    model = quantized_unet
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    path = tmp_path / "unet.tflite"
    data = {} if target in ("float", "small") else {"representative_data": x}
    report = keras_sq.export(model, path, target=target, allow_untrained=True, **data)
    found = operators(path)
    assert found[NEAREST] == 4
    assert found["TILE"] == 0
    if target == "mcu":
        assert report.inputs[0].shape == (1, 16, 16, 3)
        return  # Compared with Keras by `export`, on the library itself.
    assert report.inputs[0].shape == (None, None, None, 3)
    batch = x[:, :8, :12]
    error = np.abs(outputs(path, batch) - np.asarray(model(batch)))
    assert error.max() < (1e-5 if target in ("float", "small") else 0.1)


class Repeats(keras.Layer):
    """Loses the number of channels for the converter, when the batch is open."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, x):
        return ops.repeat(ops.repeat(x, self.count, axis=1), self.count, axis=2)


@pytest.mark.parametrize("target", ["float", "int8"])
def test_batch_of_one_is_tried_where_an_open_one_fails(target, tmp_path):
    model = unet((16, 16), (6, 8), enlarge=Repeats)
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    path = tmp_path / "x.tflite"
    report = keras_sq.export(model, path, target=target, representative_data=x)
    assert report.inputs[0].shape == (1, 16, 16, 3)
    (note,) = report.notes
    assert note.startswith("takes one example at a time: with an open batch")
    error = np.abs(outputs(path, x[:1]) - np.asarray(model(x[:1])))
    assert error.max() < (1e-5 if target == "float" else 0.1)


ATTENTION = {
    "causal": lambda x: kl.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True),
    "grouped": lambda x: kl.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True),
    "dropout": lambda x: kl.MultiHeadAttention(2, 8, dropout=0.1)(
        x, x, use_causal_mask=True
    ),
    "padding": lambda x: (lambda y: kl.MultiHeadAttention(2, 8)(y, y))(
        kl.Masking(0.0)(x)
    ),
    "softmax": lambda x: kl.Softmax()(x, mask=ops.greater(x, -1.0)),
    "integers": lambda x: kl.Softmax()(x, mask=ops.cast(ops.greater(x, -1.0), "int32")),
}


@pytest.mark.parametrize(
    ("kind", "length"),
    [(kind, 8) for kind in ATTENTION if kind != "grouped"]
    + [("causal", None), ("grouped", None), ("padding", None)],
)
def test_masks_leave_int8_its_steps(kind, length, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((length, 6))
    model = keras.Model(x, ATTENTION[kind](x))
    # Scores that differ: a uniform attention, as when -1e9 took all steps, is wrong.
    data = 3 * np.random.default_rng(0).normal(size=(32, 8, 6)).astype("float32")
    data[::2, 6:] = 0.0
    path = tmp_path / "x.tflite"
    for target, allowed in (("float", 1e-6), ("int8", 0.05)):
        keras_sq.export(model, path, target=target, representative_data=data)
        for example in (data[:1], data[1:2]):
            expected = np.asarray(model(example))
            error = outputs(path, example) - expected
            assert np.square(error).mean() < np.square(allowed * expected).mean()
    for layer in model.layers:
        rate = 0.1 if kind == "dropout" and hasattr(layer, "dropout") else 0.0
        assert getattr(layer, "dropout", 0.0) == rate


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_index_of_the_largest_is_exported(axis, keepdims, tmp_path):
    x = keras.Input((6, 5))
    made = {
        "most": ops.argmax(x, axis, keepdims),
        "least": ops.argmin(x, axis, keepdims),
    }
    path = tmp_path / "x.tflite"
    keras_sq.export(keras.Model(x, made), path)
    data = np.random.default_rng(0).normal(size=(3, 6, 5)).astype("float32")
    run = runtime.Runner(path.read_bytes())
    (name,) = run.inputs
    found = run({name: data})
    for key, function in (("most", np.argmax), ("least", np.argmin)):
        expected = function(data, axis, keepdims=keepdims)
        assert found[key].dtype == np.int32
        np.testing.assert_array_equal(found[key], expected)


def leaky(x):
    return ops.where(x > 0, x, x * 0.1)


CHOICES = {
    "where": leaky,
    "maximum": lambda x: ops.maximum(x, 0.1 * x),
    "elu": lambda x: ops.where(x > 0, x, ops.exp(x) - 1),
    "twice": lambda x: ops.maximum(leaky(x), ops.tanh(x) - 0.5),
    "moved": lambda x: ops.maximum(x[:, :8], ops.tanh(x[:, 8:])) * ops.tanh(x[:, :8]),
    "constant": lambda x: ops.minimum(x, 0.1) + ops.tanh(x),
    "zero": lambda x: ops.where(x > 0, x, 0.0) + ops.tanh(x),
    "flipped": lambda x: ops.minimum(x + ops.flip(x, -1), 0) + ops.tanh(x),
    "one-hot": lambda x: ops.one_hot(ops.cast(x[:, 0] * 2 + 1, "int32"), 4),
    "one-hots": lambda x: ops.concatenate(
        [
            x,
            ops.one_hot(ops.cast(x[:, 0] > 0, "int32"), 2),
            3 * ops.one_hot(ops.cast(x[:, 1:4] > 0, "int32"), 2)[:, 1],
        ],
        -1,
    ),
    "clip": lambda x: ops.maximum(ops.minimum(x, 0.5), -0.5),  # Right as they are.
    "relu": lambda x: ops.where(x > 0, x, 0.0),
    "maxout": lambda x: ops.maximum(kl.Dense(16)(x), kl.Dense(16)(x)),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_int8_is_right_where_tensors_share_a_scale(kind, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    model = keras.Model(x, CHOICES[kind](kl.Dense(16)(x)))
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    path = tmp_path / "x.tflite"
    keras_sq.export(model, path, target="int8", representative_data=data)
    expected = np.asarray(model(data))
    error = np.concatenate([outputs(path, x[None]) for x in data]) - expected
    assert np.abs(error).max() < 0.03 * np.ptp(expected)


def test_what_no_operator_does_is_told_with_its_layer(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            kl.UpSampling2D(2, interpolation="bicubic", name="smooth"),
        ]
    )
    with pytest.raises(ExportError, match=r"ResizeBicubic .*of layer 'smooth'"):
        keras_sq.export(model, tmp_path / "x.tflite")


@pytest.mark.parametrize(
    ("layer", "says", "remedy"),
    [
        (
            kl.Activation("selu", name="act"),
            r"layer 'act' \(Activation with activation 'selu'\) with int8: it lacks "
            "the operator SELECT",
            r"Use an activation that it computes \(relu, .*tanh, softmax\)",
        ),
        (
            kl.Dense(3, activation="softplus", name="last"),
            r"layer 'last' \(Dense with activation 'softplus'\) .* EXP",
            "Use an activation",
        ),
        (
            keras.Sequential(
                [keras.Input((4, 6)), kl.Dense(3), kl.Activation("squareplus")],
                name="inner",
            ),
            r"layer 'inner/activation\w*' \(Activation .*'squareplus'\) .* SQRT",
            "Use an activation",
        ),
    ],
    ids=["missing", "float only", "nested"],
)
def test_error_for_microcontrollers_names_the_keras_layer(
    layer, says, remedy, tmp_path
):
    pytest.importorskip("tflite_micro", reason="Needs the extra `micro`.")
    x = keras.Input((4, 6))
    model = keras.Model(x, layer(kl.Dense(6, name="first")(x)), name="net")
    data = np.random.default_rng(0).normal(size=(8, 4, 6)).astype("float32")
    path = tmp_path / "x.tflite"
    with pytest.raises(ExportError, match=says) as error:
        keras_sq.export(model, path, target="mcu", representative_data=data)
    assert re.search(remedy, str(error.value))
    assert not path.exists()
