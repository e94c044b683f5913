"""Target "lce" without its package: a stand-in converts and runs one small network.

With the package itself: `python tests/checks/compute_engine.py`.
"""

import os
import sys
import types

import keras
import numpy as np
import pytest
from flatbuffers import flexbuffers
from keras import layers as kl
from tensorflow.lite.python import schema_py_generated as schema

import keras_sq
from keras_sq.conversion import strip
from keras_sq.export import ExportError
from keras_sq.export.activations import levels
from keras_sq.export.activations.levels import NODE_NAME
from keras_sq.export.conversion import convert, inputs
from keras_sq.export.lce import runtime, signs
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices

CHANNELS, FILTERS = 40, 6


def network(**kwargs):
    """One convolution without padding, on images of 5 x 5."""
    keras.utils.set_random_seed(0)
    image = keras.Input((5, 5, CHANNELS), name="image")
    x = kl.Conv2D(FILTERS, 3, use_bias=False, name="conv")(image)
    model = keras.Model(image, kl.Reshape((9 * FILTERS,))(x), name="small")
    kwargs = {"input_quantizer": "binary", "skip": (), **kwargs}
    model = keras_sq.quantize_model(
        model, "binary", seed=0, **{"overrides": {}, **kwargs}
    )
    keras_sq.set_ratio(model, 1.0)
    return model


def export(model, path, **kwargs):
    return keras_sq.export(model, path, target="lce", allow_untrained=True, **kwargs)


# The stand-in.


def packed(values):
    """Returns signs as int32 numbers, a bit at a time."""
    words = np.zeros((*values.shape[:-1], -(-values.shape[-1] // 32)), np.uint32)
    for *front, channel in np.argwhere(values < 0):
        words[(*front, channel // 32)] |= np.uint32(1 << (channel % 32))
    return words.view(np.int32)


def bit(words, channel):
    return (words[..., channel // 32].view(np.uint32) >> np.uint32(channel % 32)) & 1


class StandIn:
    """What `larq_compute_engine` does, for `network` only; with faults to choose."""

    def __init__(self, fault=None):
        self.fault = fault
        self.testing = types.SimpleNamespace(Interpreter=self.interpreter)

    def convert_saved_model(self, folder):
        import tensorflow as tf

        loaded = tf.saved_model.load(folder)  # Holds the variables.
        function = loaded.signatures["serving_default"]
        graph = function.graph.as_graph_def()
        nodes = [x for inner in graph.library.function for x in inner.node_def]
        (select,) = [node for node in nodes if node.op == "SelectV2"]
        arrays = [
            tf.make_ndarray(node.attr["value"].tensor)
            for node in nodes
            if node.op == "Const"
        ]
        arrays += [variable.numpy() for variable in function.graph.variables]
        (kernel,) = [x for x in arrays if x.shape == (3, 3, CHANNELS, FILTERS)]
        weights = np.moveaxis(kernel, -1, 0)
        if self.fault == "weights":
            weights = weights * np.where(np.arange(CHANNELS) == 3, -1, 1)
        name = select.name if self.fault != "name" else "elsewhere"
        return self.file(name, packed(weights), np.abs(kernel[0, 0, 0]))

    def file(self, name, words, scale):
        file = TFLiteFile.__new__(TFLiteFile)
        file.model = schema.ModelT()
        file.model.version = 3
        file.model.operatorCodes, file.model.buffers = [], [schema.BufferT()]
        graph = schema.SubGraphT()
        graph.tensors, file.model.subgraphs = [], [graph]
        zeros = np.zeros(FILTERS, np.float32)
        shapes = [(1, 5, 5, CHANNELS), (1, 5, 5, 2), words.shape, (FILTERS,)]
        shapes += [(FILTERS,), (1, 3, 3, FILTERS), (1, 9 * FILTERS)]
        data = [None, None, words, scale, zeros, None, None]
        names = ["in", name, "words", "scale", "bias", "sums", "out"]
        for shape, array, entry in zip(shapes, data, names, strict=True):
            kind = "INT32" if entry in (name, "words") else "FLOAT32"
            file.add_tensor(graph, entry, shape, kind, array)
        options = {"channels_in": CHANNELS * (3 if self.fault == "groups" else 1)}
        graph.operators = [
            custom(file, "LceQuantize", [0], [1]),
            custom(file, "LceBconv2d", [1, 2, 3, 4, -1], [5], options),
            file.new_operator("RESHAPE", [5], [6], schema.ReshapeOptionsT()),
        ]
        graph.inputs = np.array([0], np.int32)
        graph.outputs = np.array([6], np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.inputs = [tensor_map(b"image", 0)]
        signature.outputs = [tensor_map(b"output_0", 6)]
        file.model.signatureDefs = [signature]
        return file.pack()

    def interpreter(self, content, num_threads):
        assert num_threads == 1
        file = TFLiteFile(content)
        graph = file.subgraphs[0]

        def predict(arrays):
            (image,) = arrays
            shift = 0.5 if self.fault == "signs" else 0.0
            words = packed(np.where(image >= shift, 1, -1))
            weights, scale, bias = (file.array(graph.tensors[i]) for i in (2, 3, 4))
            sums = np.zeros((1, 3, 3, FILTERS), np.float32)
            for row, column, channel in np.ndindex(3, 3, CHANNELS):
                x = bit(words[:, row : row + 3, column : column + 3], channel)
                w = bit(weights[:, row, column], channel)
                sums += 1 - 2 * (x[..., np.newaxis] ^ w).astype("f4")
            sums = sums * scale + bias
            values = {1: words, 5: sums, 6: sums.reshape(1, -1)}
            found = [values[index] for index in indices(graph.outputs)]
            return found if len(found) > 1 else found[0]

        tensors = [graph.tensors[index] for index in indices(graph.outputs)]
        return types.SimpleNamespace(
            input_types=[np.float32],
            input_shapes=[(1, 5, 5, CHANNELS)],
            output_types=[np.int32 if x.type == 2 else np.float32 for x in tensors],
            output_shapes=[tuple(x.shape) for x in tensors],
            predict=predict,
        )


def custom(file, name, taken, given, options=None):
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name.encode()
    file.model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(file.model.operatorCodes) - 1
    operator.inputs = np.array(taken, np.int32)
    operator.outputs = np.array(given, np.int32)
    operator.customOptions = np.frombuffer(flexbuffers.Dumps(options or {}), np.uint8)
    return operator


def tensor_map(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


@pytest.fixture
def standing_in(monkeypatch):
    """Returns what puts the stand-in, with a fault or none, in the package's place."""

    def put(fault=None):
        monkeypatch.setitem(sys.modules, "larq_compute_engine", StandIn(fault))
        monkeypatch.setattr(runtime.np, "__version__", "1.26.4")
        monkeypatch.setattr(runtime.metadata, "version", lambda name: "0.16.0")

    return put


# Files.


@pytest.mark.parametrize("most_constant_bytes", [0, 2**24])
def test_file_holds_bits(most_constant_bytes, standing_in, monkeypatch, tmp_path):
    # Beyond that size, the weights are variables of what is converted.
    monkeypatch.setattr(convert, "MAX_CONSTANT_BYTES", most_constant_bytes)
    standing_in()
    path = tmp_path / "model.tflite"
    report = export(network(), path)
    (kernel,) = report.kernels
    assert (kernel.path, kernel.weights) == ("conv/kernel", 9 * CHANNELS * FILTERS)
    assert (kernel.stored_as, kernel.levels, kernel.quantized) == (
        "1-bit words",
        2,
        True,
    )
    # Two words for 40 channels; a factor and a bias a filter.
    assert kernel.num_bytes == FILTERS * (9 * 2 * 4 + 8)
    assert kernel.reason == "all its inputs are signs; 40 channels, in words of 32"
    (activation,) = report.activations
    assert (activation.path, activation.stored_as) == ("conv/input", "bits")
    assert activation.reason == "exact; of a float input"
    assert report.agreeing == 1.0
    assert report.largest_error < 1e-6
    assert report.runtimes == ("Larq Compute Engine >= 0.16",)
    assert report.runtime == "Larq Compute Engine 0.16.0"
    assert report.inputs[0].shape == (1, 5, 5, CHANNELS)
    assert report.num_bytes == path.stat().st_size < report.float_bytes
    assert report.notes == (
        "takes one example at a time, as files for Larq Compute Engine do",
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("weights", "output 'output_0' differs by .* from the same quantized activ"),
        ("signs", "activations of 'conv/input' are not on the levels of rule 'binary'"),
        ("name", "the quantized activations of 'conv/input' are not in it"),
        ("groups", "do not load binary convolutions with groups"),
    ],
)
def test_faulty_file_is_refused(fault, message, standing_in, tmp_path):
    standing_in(fault)
    with pytest.raises(ExportError, match=message):
        export(network(), tmp_path / "model.tflite")
    assert not os.listdir(tmp_path)


# Requests that cannot be met.


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    with pytest.raises(ImportError, match=r'pip install "keras-sq\[lce\]"'):
        export(network(), tmp_path / "model.tflite")
    assert not os.listdir(tmp_path)


def test_numpy_2_is_refused(standing_in, monkeypatch, tmp_path):
    standing_in()
    # Not NumPy itself, whose version Keras asks for.
    numpy = types.SimpleNamespace(__version__="2.1.0")
    monkeypatch.setattr(runtime, "np", numpy)
    with pytest.raises(ImportError, match=r"it needs NumPy 1; installed is 2\.1\.0"):
        export(network(), tmp_path / "model.tflite")


@pytest.mark.parametrize("rule", [None, "lq-2", "uniform-1"])
def test_model_without_signs_is_refused(rule, standing_in, tmp_path):
    standing_in()
    with pytest.raises(ExportError, match="'small' has no convolution to compute on b"):
        export(network(input_quantizer=rule), tmp_path / "model.tflite")


def test_open_size_is_refused(standing_in, tmp_path):
    standing_in()
    image = keras.Input((None, 5, 8), name="image")
    model = keras.Model(image, kl.Conv2D(4, 3, name="conv")(image))
    model = keras_sq.quantize_model(model, "binary", input_quantizer="binary", skip=())
    with pytest.raises(ExportError, match="Input 'image' has open sizes"):
        export(model, tmp_path / "model.tflite")


# Parts.


def test_signs_are_a_comparison_that_the_converter_knows():
    model = network()
    plain = strip.plain_copy(model)
    (quantizer,) = levels.deploy(model, plain)
    assert quantizer.is_sign
    quantizer.compares = True
    signature = inputs.input_signature(model).with_batch(1)
    traced = []
    convert.by_converter(plain, signature, lambda x, _: traced.append(x) or b"")
    nodes = {node.type: node for node in traced[0].graph.get_operations()}
    assert "Bucketize" not in nodes
    select, compare = nodes["SelectV2"], nodes["GreaterEqual"]
    assert select.inputs[0].op is compare
    import tensorflow as tf

    constants = [tf.get_static_value(x) for x in select.inputs[1:]]
    assert (constants, tf.get_static_value(compare.inputs[1])) == ([1.0, -1.0], 0.0)
    # Names are cut off after 50 letters: the numbers come first.
    assert select.name.startswith(f"{NODE_NAME}0_0/")


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 70])
def test_bits_are_unpacked(channels):
    values = np.random.default_rng(channels).choice([-1.0, 1.0], (2, 3, channels))
    found = signs.unpacked(packed(values), channels)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.float32
