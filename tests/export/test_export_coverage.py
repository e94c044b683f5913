"""Layers that came late: from the float network to a file that holds its kernels."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.export import ExportError
from keras_sq.export.tflite import runtime


def token_loop(tied):
    """Predicts tokens by the table, or by the kernel, of their embedding."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    table = kl.ReversibleEmbedding(200, 32, tie_weights=tied, name="table")
    x = kl.Dense(32, activation="relu", name="dense")(table(tokens))
    return keras.Model(tokens, table(x, reverse=True))


def frames(rank):
    """Follows what moves, in 1, 2 or 3 dimensions."""
    layer = getattr(kl, f"ConvLSTM{rank}D")
    inputs = keras.Input((3, *[4] * rank, 4), name="frames")
    x = layer(32 // rank, 2, padding="same", name="loop")(inputs)
    return keras.Model(inputs, kl.Dense(3, name="dense")(kl.Flatten()(x)))


def gates(rank):
    """The kernels of such a loop, with their filter axes."""
    names = ("kernel", "recurrent_kernel")
    return {f"loop/conv_lstm_cell/{name}": rank + 1 for name in names}


MODELS = {
    "tied": (lambda: token_loop(True), {"table/embeddings": 0}),
    "untied": (
        lambda: token_loop(False),
        {"table/embeddings": 0, "table/reverse_embeddings": 1},
    ),
    "ConvLSTM1D": (lambda: frames(1), gates(1)),
    "ConvLSTM2D": (lambda: frames(2), gates(2)),
    "ConvLSTM3D": (lambda: frames(3), gates(3)),
}


def binary(kernel, axis):
    others = tuple(x for x in range(kernel.ndim) if x != axis)
    scale = np.abs(kernel).mean(axis=others, keepdims=True)
    return np.where(kernel >= 0, scale, -scale)


def with_binary_kernels(model, axes):
    """Returns the float network with these kernels binary, by NumPy."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    layers = dict(keras_sq.layers.layer_paths(twin))
    for path, axis in axes.items():
        layer, _, name = path.rpartition("/")
        kernel = getattr(layers[layer], name)
        kernel.assign(binary(keras.ops.convert_to_numpy(kernel), axis))
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_file_holds_the_kernels_and_computes_as_the_float_network_given_them(
    name, tmp_path
):
    make, axes = MODELS[name]
    model = make()
    quantized = keras_sq.quantize_model(model, "binary", skip="dense", overrides={})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *model.input_shape[1:])).astype("float32")
    if "tied" in name:
        x = rng.integers(0, 200, (1, 6)).astype("int32")
    expected = keras.ops.convert_to_numpy(with_binary_kernels(model, axes)(x))
    path = tmp_path / "small.tflite"
    report = keras_sq.export(quantized, path, target="small", allow_untrained=True)
    run = runtime.Runner(path.read_bytes())
    (actual,) = run({report.inputs[0].name: x}).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    for kernel in axes:  # In pieces or whole, each once.
        rows = [row for row in report.kernels if row.path == kernel]
        weights = keras_sq.get_codes(quantized)[kernel].codes.size
        assert sum(row.weights for row in rows) == weights
        assert all(row.stored_as != "float32" for row in rows)
        assert sum(row.num_bytes for row in rows) < 4 * weights


def test_int8_file_of_an_unrolled_conv_lstm_has_its_kernels_exactly(tmp_path):
    inputs = keras.Input((2, 4, 4, 4), batch_size=1)
    x = kl.ConvLSTM2D(8, 2, padding="same", unroll=True, name="loop")(inputs)
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(x)))
    quantized = keras_sq.quantize_model(model, "ternary", overrides={})
    report = keras_sq.export(
        quantized,
        tmp_path / "int8.tflite",
        target="int8",
        representative_data=np.random.default_rng(0).normal(size=(8, 2, 4, 4, 4)),
        allow_untrained=True,
    )
    rows = [row for row in report.kernels if row.path.startswith("loop/")]
    assert {row.path for row in rows} == set(gates(2))
    assert {row.reason for row in rows} == {"exactly -127, 0 and 127"}


def test_int8_file_with_a_loop_is_refused_with_the_remedy(tmp_path):
    quantized = keras_sq.quantize_model(frames(1), "ternary", overrides={})
    with pytest.raises(ExportError, match=r"'loop'.*unroll=True"):
        keras_sq.export(
            quantized,
            tmp_path / "int8.tflite",
            target="int8",
            representative_data=np.zeros((4, 3, 4, 4), "float32"),
            allow_untrained=True,
        )


def test_conv_lstm_with_dropout_and_quantized_inputs_trains_and_comes_back(tmp_path):
    inputs = keras.Input((3, 6, 2))
    loop = kl.ConvLSTM1D(3, 3, dropout=0.2, recurrent_dropout=0.2, name="loop")
    model = keras.Model(inputs, kl.Flatten()(loop(inputs)))
    quantized = keras_sq.quantize_model(
        model, "binary", input_quantizer="uniform-4", skip=(), overrides={}, seed=0
    )
    quantized.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 3, 6, 2)).astype("float32")
    callback = keras_sq.callbacks.StochasticQuantization()
    quantized.fit(
        x, np.zeros((8, 12)), batch_size=2, epochs=4, verbose=0, callbacks=[callback]
    )
    expected = keras.ops.convert_to_numpy(quantized(x))
    quantized.save(tmp_path / "loop.keras")
    loaded = keras.saving.load_model(tmp_path / "loop.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(x)), expected)
    assert keras_sq.get_ratio(loaded) == 1.0
    ((_, cell),) = keras_sq.layers.quantized_layers(loaded)
    for name in ("kernel", "recurrent_kernel"):
        kernel = keras.ops.convert_to_numpy(cell.quantized_kernel(name))
        assert all(len(np.unique(f)) == 2 for f in kernel.reshape(-1, 12).T)
