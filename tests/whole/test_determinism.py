"""Same seed, same machine, same result: in two processes, bit for bit."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

# Trains with a random layer and prints hashes: of the masks at every step, and of
# all variables at the end. Without deterministic operations first, then with them.
SCRIPT = textwrap.dedent(
    """
    import hashlib, json, sys

    import keras
    import numpy as np

    import keras_sq
    from keras_sq.layers import quantized_layers

    def digest(variables):
        found = hashlib.sha256()
        for variable in variables:
            found.update(np.ascontiguousarray(variable.numpy()).tobytes())
        return found.hexdigest()

    class Masks(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            layers = [layer for _, layer in quantized_layers(self.model)]
            masks.append(digest(x.mask(n) for x in layers for n in x.mask_names))

    def train(probability):
        keras.utils.set_random_seed(3)
        layers = keras.layers
        model = keras.Sequential([
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(32, activation="relu"),
            layers.Dense(4),
        ])
        model = keras_sq.quantize_model(
            model, "ternary", probability=probability, granularity="element", skip=()
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=jax)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(128, 8, 8, 3)).astype("float32")
        callbacks = [keras_sq.callbacks.StochasticQuantization("linear"), Masks()]
        y = rng.integers(0, 4, 128)
        model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
        return digest([*model.variables, *model.optimizer.variables])

    jax = keras.backend.backend() == "jax"
    result = {}
    masks = []
    train("constant")
    result["masks without determinism"] = masks
    if not jax:  # Whose operations are, on CPUs.
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    for name in ("end", "again"):
        masks = []
        result[name] = train("linear")
        result[f"masks, {name}"] = masks
    print(json.dumps(result))
    """
)


@pytest.fixture(scope="module")
def results():
    """What two processes print that run side by side, and hash differently."""
    root = str(pathlib.Path(__file__).parents[2])
    processes = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONPATH": root,
            "PYTHONHASHSEED": hash_seed,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = []
    for process in processes:
        output, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append(json.loads(output))
    return found


def test_two_processes_train_to_the_same_bits(results):
    one, other = results
    assert one["end"] == one["again"] == other["end"] == other["again"]
    assert one["masks, end"] == one["masks, again"] == other["masks, end"]
    # They are of something: until the ratio is 1, every step draws anew.
    assert len(one["masks, end"]) == 16
    assert len(set(one["masks, end"])) >= 12


def test_masks_do_not_need_deterministic_operations(results):
    """The draw itself has no freedom; here it does not look at the weights."""
    one, other = results
    masks = one["masks without determinism"]
    assert len(set(masks)) >= 12
    assert masks == other["masks without determinism"]
