"""Several devices and several processes give what one device gives.

Under JAX, in processes of their own: devices are chosen before JAX starts. Replicas
under `tf.distribute.MirroredStrategy` are in test_training.py, test_layerwise.py,
test_learned_quantizer.py and test_activation_quantizers.py.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from backends import needs_jax
from hiding import TENSORFLOW, hide

# Arguments: folder, process, address, then how: one or several, one after the other.
SCRIPT = textwrap.dedent(
    """
    import hashlib, json, os, sys

    folder, process, address, *ways = sys.argv[1:]
    process = int(process)
    devices = 1 if ways == ["processes"] else 4
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} "
        # Nothing runs long enough to be worth more.
        "--xla_backend_optimization_level=0"
    )

    import jax
    import keras
    import numpy as np
    from keras import distribution, layers

    import keras_sq

    class Watch(keras.callbacks.Callback):
        '''Hashes what each layer keeps, as each device has it.'''

        def __init__(self, how):
            super().__init__()
            self.how, self.seen = how, []

        def on_train_batch_begin(self, batch, logs=None):
            for _, layer in keras_sq.layers.quantized_layers(self.model):
                for variable in layer.quantization_state():
                    value = variable.value
                    # Devices with the same part of a tensor must have the same.
                    parts = {}
                    # (`addressable_shards` fails where a process has one.)
                    alone = self.how == "processes"
                    shards = [] if alone else value.addressable_shards
                    for shard in shards:
                        data = np.asarray(shard.data).tobytes()
                        parts.setdefault(str(shard.index), set()).add(data)
                    if alone:
                        assert value.is_fully_replicated
                        parts["all"] = {np.asarray(value).tobytes()}
                    else:
                        assert len(shards) == (1 if self.how == "one" else 4)
                    assert all(len(found) == 1 for found in parts.values())
                    found = sorted((key, *data) for key, data in parts.items())
                    digest = hashlib.sha256(repr(found).encode()).hexdigest()
                    self.seen.append((variable.path, digest))

    def distribute(how):
        if how == "processes":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            distribution.initialize(address, 2, process)
        if how in ("data", "processes"):
            count = 4 if how == "data" else 2
            assert len(distribution.list_devices()) == count
            # Each process brings its own part of the data.
            distribution.set_distribution(
                distribution.DataParallel(auto_shard_dataset=how == "data")
            )
        if how == "model":
            mesh = distribution.DeviceMesh(
                (2, 2), ("batch", "model"), distribution.list_devices()
            )
            layouts = distribution.LayoutMap(mesh)
            layouts[".*conv/kernel"] = (None, None, None, "model")
            layouts[".*hidden/kernel"] = (None, "model")
            layouts[".*logits/kernel"] = ("model", None)
            distribution.set_distribution(
                distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
            )

    def train(how):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(8, 3, activation="relu", name="conv"),
                layers.BatchNormalization(),
                layers.Flatten(),
                layers.Dense(6, activation="relu", name="hidden"),
                layers.Dense(4, name="logits"),
            ]
        )
        model = keras_sq.quantize_model(
            model,
            "ternary",
            overrides={
                "hidden": {
                    "kernel_quantizer": "lq-2",
                    "input_quantizer": "lq-2",
                    "input_granularity": "element",
                },
                "logits": {"granularity": "element"},
            },
            skip=(),
            seed=1,
        )
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

        EPOCHS, BATCHES, BATCH = 3, 4, 8
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCHES, BATCH, 6, 6, 2)).astype("float32")
        y = rng.integers(0, 4, size=(BATCHES, BATCH))
        if how == "processes":
            # Half of every batch.
            half = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
            x, y = x[:, half], y[:, half]
        size = x.shape[1]
        watch = Watch(how)
        model.fit(
            x.reshape(-1, 6, 6, 2),
            y.reshape(-1),
            batch_size=size,
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[keras_sq.callbacks.StochasticQuantization(), watch],
        )
        return model, watch

    for how in ways:
        # No distribution, and automatic names begin again.
        keras.backend.clear_session()
        distribute(how)
        model, watch = train(how)
        layouts = {
            variable.path: list(map(str, getattr(variable.value.sharding, "spec", ())))
            for _, layer in keras_sq.layers.quantized_layers(model)
            for variable in layer.variables
        }
        # What is spread over devices is gathered by saving as a whole.
        weights = {
            f"{index:03d} {variable.path}": np.asarray(
                keras.ops.convert_to_numpy(variable)
            )
            for index, variable in enumerate(model.variables)
        }
        np.savez(f"{folder}/{how}-{process}.npz", **weights)
        with open(f"{folder}/{how}-{process}.json", "w") as file:
            json.dump({"seen": watch.seen, "layouts": layouts}, file)
    """
)


def finish(running):
    """Returns what processes print; none is left, whatever happens."""
    try:
        printed = [child.communicate(timeout=300)[0] for child in running]
    finally:
        for child in running:
            child.kill()
            child.wait()
            child.stdout.close()
    codes = [child.returncode for child in running]
    assert not any(codes), f"{codes}: {printed}"
    return printed


def run(folder, *ways, processes=1):
    """Runs the script; returns, a way and process, the weights and what it has seen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = dict(os.environ, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    # Keras imports TensorFlow where it can, which takes as long as the training.
    hiding = hide(pathlib.Path(folder), TENSORFLOW)
    environment["PYTHONPATH"] = os.pathsep.join([hiding, *filter(None, sys.path)])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, str(process), address, *ways],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    finish(running)
    found = []
    for how in ways:
        for process in range(processes):
            file = pathlib.Path(folder) / f"{how}-{process}"
            told = json.loads(file.with_suffix(".json").read_text())
            found.append((dict(np.load(file.with_suffix(".npz"))), told))
    return found


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """What one device of four gives, and all four in two ways."""
    ways = ("one", "data", "model")
    found = run(str(tmp_path_factory.mktemp("one_process")), *ways)
    return dict(zip(ways, found, strict=True))


@pytest.fixture
def alone(in_one_process):
    """What one device gives."""
    weights, told = in_one_process["one"]
    assert len(told["seen"]) == 12 * 14
    return weights, told


def masks_of(weights):
    """Returns the masks and random states among weights: no rounding in them."""
    return {
        name: value
        for name, value in weights.items()
        if value.dtype == bool or "seed" in name
    }


def assert_same(weights, expected):
    """Asserts equal masks, and weights equal but for rounding."""
    assert weights.keys() == expected.keys()
    assert len(masks_of(weights)) == 7
    for name, value in masks_of(weights).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for name, value in weights.items():
        if name not in masks_of(weights):
            np.testing.assert_allclose(
                value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name
            )


@needs_jax
def test_data_parallel_equals_one_device(alone, in_one_process):
    weights, told = in_one_process["data"]
    assert_same(weights, alone[0])
    assert len(told["seen"]) == 12 * 14
    # The masks of the first steps, when no rounding can have turned a comparison.
    assert [name for name, _ in told["seen"]] == [name for name, _ in alone[1]["seen"]]


@needs_jax
def test_two_processes_equal_one_device(alone, tmp_path):
    (first, told), (second, told_by_second) = run(
        str(tmp_path), "processes", processes=2
    )
    assert told["seen"] == told_by_second["seen"]
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert_same(first, alone[0])


@needs_jax
def test_masks_and_bases_follow_the_layout_of_their_kernel(alone, in_one_process):
    weights, told = in_one_process["model"]
    assert_same(weights, alone[0])
    layouts = told["layouts"]

    def spec(name):
        # JAX may leave out what is not spread at the end.
        (found,) = (value for path, value in layouts.items() if path.endswith(name))
        return [axis for axis in found if axis != "None"], found

    assert spec("conv/kernel")[1] == ["None", "None", "None", "model"]
    assert spec("conv/kernel_mask")[1] == ["None", "None", "None", "model"]
    assert spec("hidden/kernel_mask")[1] == ["None", "model"]
    assert spec("hidden/kernel_codebook")[1] == ["None", "model"]
    assert spec("logits/kernel_mask")[1][0] == "model"
    assert spec("logits/quantized_ratio")[0] == []


# MultiWorkerMirroredStrategy, under which Keras 3 fails.

WORKER = textwrap.dedent(
    """
    import os

    import keras
    import tensorflow as tf

    import keras_sq

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        try:
            keras_sq.quantize_model(model)
        except ValueError as error:
            print(error, flush=True)
    # Without waiting for the other worker.
    os._exit(0)
    """
)


def test_strategy_of_several_workers_is_refused():
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for free in (one, other):
            free.bind(("localhost", 0))
            ports.append(f"localhost:{free.getsockname()[1]}")
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    running = []
    for index in range(2):
        task = {
            "cluster": {"worker": ports},
            "task": {"type": "worker", "index": index},
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=environment | {"TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    for output in finish(running):
        assert "`tf.distribute.MultiWorkerMirroredStrategy`" in output
        assert "`keras.distribution.DataParallel`" in output
        assert "2 workers in scope" in output
