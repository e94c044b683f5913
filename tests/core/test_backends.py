"""The same numbers on TensorFlow and JAX, and models that go from one to the other.

The first tests run on whichever backend the suite runs on, against float64 NumPy.
The others train on JAX in a process of their own and go on here, on TensorFlow.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from backends import array, compiled, gradients, needs_jax
from keras import ops

import keras_sq
from keras_sq import layers
from keras_sq.export.tflite.runtime import Runner
from keras_sq.layers import masks

ROOT = pathlib.Path(__file__).parents[2]


def child(*arguments, backend="jax", **environment):
    """Runs Python in a new process on a backend."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        **environment,
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# The same numbers.


def small_kernel(seed=0, shape=(5, 6)):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def quantized_by_hand(kernel, name):
    """In float64; filters are the columns."""
    kernel = kernel.astype("float64")
    size = np.abs(kernel)
    if name == "binary":
        return np.where(kernel >= 0, 1, -1) * size.mean(0)
    large = size > 0.7 * size.mean()
    scale = (size * large).sum(0) / np.maximum(large.sum(0), 1)
    return np.sign(kernel) * large * scale


@pytest.mark.parametrize("how", ["eager", "xla"])
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_layer_computes_the_hybrid_kernel_and_its_gradient(name, how):
    layer = layers.SQDense(6, kernel_quantizer=name, mask_seed=0)
    layer.build((None, 5))
    kernel = small_kernel()
    layer.latent().assign(kernel)
    keras_sq.set_ratio(layer, 0.5)
    mask = array(layer.mask())[0]
    assert mask.sum() == 3
    x, upstream = small_kernel(1, (4, 5)), small_kernel(2, (4, 6))

    def loss(x):
        y = layer(x, training=True)
        return ops.sum(y * upstream), y

    step = compiled(
        lambda x: gradients(loss, x, variables=layer.trainable_variables), how
    )
    (_, y), (of_x, of_kernel, of_bias) = step(x)
    hybrid = np.where(mask, quantized_by_hand(kernel, name), kernel)
    np.testing.assert_allclose(y, x.astype("float64") @ hybrid, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, upstream @ hybrid.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, x.T @ upstream, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_bias, upstream.sum(0), rtol=1e-5, atol=1e-5)
    deployed = x.astype("float64") @ quantized_by_hand(kernel, name)
    np.testing.assert_allclose(layer(x), deployed, rtol=1e-5, atol=1e-5)


def test_masks_of_all_layers_are_one_compiled_call_traced_once():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.SQConv2D(8, 3, name="conv", mask_seed=0),
            keras.layers.Flatten(),
            layers.SQDense(7, name="dense", mask_seed=1, granularity="element"),
        ]
    )
    parts = [part for _, part in layers.quantized_layers(model)]
    sizes = [math.prod(part.mask().shape) for part in parts]
    assert sizes == [8, 16 * 8 * 7]
    traces = []

    def function(ratio):
        traces.append(1)
        return masks.update_masks(parts, ratio, ops.array(True))

    update = compiled(function, variables=masks.variables_of(parts))
    drawn = set()
    for ratio in (0.25, 0.25, 0.5, 0.75, 1.0):
        assert array(update(ops.array(ratio, "float32"))).all()
        found = [array(part.mask()) for part in parts]
        counts = [int(mask.sum()) for mask in found]
        assert counts == [size - int((1 - ratio) * size) for size in sizes]
        drawn.add(found[1].tobytes())
    assert len(traces) == 1
    assert len(drawn) == 5


# From JAX to TensorFlow.

TRAINING = textwrap.dedent(
    """
    import json, os, sys

    import keras
    import numpy as np

    import keras_sq

    assert keras.backend.backend() == "jax"

    def train(folder, input_quantizer, kernel_quantizer):
        os.makedirs(folder)
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = keras.Sequential([
            keras.Input((6, 6, 2), name="image"),
            keras.layers.Conv2D(6, 3, activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(5, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ])
        model = keras_sq.quantize_model(
            model, kernel_quantizer, input_quantizer=input_quantizer, seed=0, skip=()
        )
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        rng = np.random.default_rng(0)
        x = rng.normal(size=(32, 6, 6, 2)).astype("float32")
        y = rng.integers(0, 3, 32)
        schedule = keras_sq.schedules.Stages([0.5])
        callback = keras_sq.callbacks.StochasticQuantization(schedule)
        logs = model.fit(
            x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback]
        )
        assert np.isfinite(logs.history["loss"]).all()
        model.save(f"{folder}/model.keras")
        found = {"x": x, "deployed": model(x), "training": model(x, training=True)}
        for path, layer in keras_sq.layers.quantized_layers(model):
            found[f"mask {path}"] = layer.mask().value
        np.savez(f"{folder}/found.npz", **found)
        try:
            keras_sq.export(model, f"{folder}/direct.tflite")
            message = "exported"
        except ValueError as error:
            message = str(error)
        with open(f"{folder}/words.json", "w") as file:
            json.dump({"ratio": keras_sq.get_ratio(model), "export": message}, file)

    for folder, quantizers in json.loads(sys.argv[1]).items():
        train(folder, *quantizers)
    """
)

KINDS = {
    "ternary": (None, "ternary"),
    "learned": ("lq-2", "lq-2"),
}


@pytest.fixture(scope="module")
def all_from_jax(tmp_path_factory):
    """The folder of what one process on JAX trains: a folder a kind."""
    folder = tmp_path_factory.mktemp("from_jax")
    kinds = {str(folder / kind): quantizers for kind, quantizers in KINDS.items()}
    made = child("-c", TRAINING, json.dumps(kinds))
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module", params=KINDS)
def from_jax(request, all_from_jax):
    folder = all_from_jax / request.param
    words = json.loads((folder / "words.json").read_text())
    return folder, dict(np.load(folder / "found.npz")), words


@needs_jax
@pytest.mark.tensorflow
def test_model_trained_on_jax_loads_here_as_it_was(from_jax):
    folder, found, words = from_jax
    model = keras.models.load_model(folder / "model.keras")
    x = found["x"]
    assert keras_sq.get_ratio(model) == words["ratio"] == 0.5
    counts = []
    for path, layer in layers.quantized_layers(model):
        np.testing.assert_array_equal(array(layer.mask()), found[f"mask {path}"])
        counts.append(int(found[f"mask {path}"].sum()))
    assert counts == [3, 3, 2]
    np.testing.assert_allclose(model(x), found["deployed"], rtol=1e-4, atol=1e-5)
    for _, layer in layers.quantized_layers(model):
        layer.ratio_is_controlled = True  # Not trained on; no warning.
    hybrid = model(x, training=True)
    np.testing.assert_allclose(hybrid, found["training"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(hybrid, found["deployed"], atol=1e-2)


@needs_jax
@pytest.mark.tensorflow
def test_model_trained_on_jax_exports_here(from_jax, tmp_path):
    folder, found, _ = from_jax
    model = keras.models.load_model(folder / "model.keras")
    path = tmp_path / "model.tflite"
    report = keras_sq.export(model, path, target="small", allow_partial=True)
    assert report.quantized_weights == 9 * 2 * 6 + 96 * 5 + 5 * 3
    runner = Runner(path.read_bytes())
    (out,) = runner({name: found["x"] for name in runner.inputs}).values()
    close = np.isclose(out, found["deployed"], rtol=1e-3, atol=1e-4)
    # With quantized activations, one on a threshold may fall to its other side.
    quantized = any(layer.input_rule for _, layer in layers.quantized_layers(model))
    assert close.mean() > 0.9 if quantized else close.all()


@needs_jax
@pytest.mark.tensorflow
def test_export_on_jax_says_what_to_do(from_jax):
    folder, _, words = from_jax
    assert words["export"] == (
        "`keras_sq.export` needs Keras's TensorFlow backend. Received the backend "
        "'jax': save the model as a .keras file, and export that in a process with "
        "the other backend: KERAS_BACKEND=tensorflow python -m keras_sq.export "
        "model.keras model.tflite"
    )
    assert not (folder / "direct.tflite").exists()


@needs_jax
@pytest.mark.tensorflow
def test_export_command_on_jax_says_what_to_do(tmp_path):
    done = child("-m", "keras_sq.export", "absent.keras", tmp_path / "m.tflite")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "keras_sq.export: error: `keras_sq.export` needs Keras's TensorFlow backend."
    )
    assert not list(tmp_path.iterdir())


@needs_jax
@pytest.mark.tensorflow
def test_train_command_on_jax_trains_there_and_exports(tmp_path):
    folder = tmp_path / "run"
    done = child(
        *("-m", "keras_sq.train", f"--output_dir={folder}", "--model=mlp"),
        *("--epochs=2", "--float_epochs=1", "--limit=64", "--batch_size=32"),
        f"--data_dir={tmp_path / 'data'}",
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert set(results["networks"]) == {"float", "direct", "sq"}
    for name, network in results["networks"].items():
        size = (folder / f"{name}.tflite").stat().st_size
        assert network["tflite_bytes"] == size
        assert 0 <= network["test_accuracy"] <= 1
    assert results["networks"]["sq"]["quantized_weights"] > 0


# Backends that nothing was made for.


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_another_backend_is_refused_by_name(backend, monkeypatch):
    layer = layers.SQDense(3)
    layer.build((None, 2))
    layer.ratio_is_controlled = True
    x = ops.ones((1, 2))
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    message = (
        f"TensorFlow and JAX backends of Keras.*'{backend}'.*KERAS_BACKEND to "
        "'tensorflow' or 'jax'"
    )
    with pytest.raises(ValueError, match=message):
        layer(x, training=True)
