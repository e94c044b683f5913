"""Nothing piles up: in a thousand steps, in repeated runs, in repeated exports.

For ten thousand steps and the resident memory: `tests/benchmarks/training_memory.py`.
"""

import gc
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sq
from keras_sq.callbacks import StochasticQuantization

# Counts the graphs of `tf.function`, and exports.
pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def only_new_objects():
    """Leaves out what earlier tests left: it makes each collection take seconds."""
    gc.collect()
    gc.freeze()


METHODS = {
    "soft refresh, layerwise": (
        dict(keras_sq.presets.stompp().settings),
        keras_sq.presets.stompp().schedule,
    ),
    "learned": ({"kernel_quantizer": "lq-2"}, "linear"),
}


def network():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, name="hidden"),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


class Count(keras.callbacks.Callback):
    """Counts Python's objects and blocks of memory at two steps, and graphs."""

    def __init__(self, callback, steps):
        super().__init__()
        self.callback, self.steps = callback, steps
        self.objects, self.blocks, self.traces = [], [], []
        self.done = 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done in self.steps:
            gc.collect()
            self.objects.append(len(gc.get_objects()))
            self.blocks.append(sys.getallocatedblocks())
            traces = self.callback._update.compiled.experimental_get_tracing_count()
            self.traces.append(traces)


@pytest.mark.parametrize("method", METHODS)
def test_a_thousand_steps_leave_nothing_behind(method):
    settings, schedule = METHODS[method]
    model = keras_sq.quantize_model(
        network(), seed=0, **{"overrides": {}, **settings, "skip": ()}
    )
    model.compile("sgd", "mse", jit_compile=False)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)), rng.normal(size=(200, 3))
    callback = StochasticQuantization(schedule)
    # In epochs of 50 steps; the first hundred may fill caches.
    count = Count(callback, {110, 960})
    model.fit(x, y, batch_size=4, epochs=20, verbose=0, callbacks=[callback, count])
    assert count.done == 1000
    assert count.traces == [1, 1]
    before, after = count.objects
    # One object a step would be 850; the history has a few numbers an epoch.
    assert after - before < 200
    before, after = count.blocks
    assert after - before < 850


def alive(kind):
    gc.collect()
    return sum(isinstance(found, kind) for found in gc.get_objects())


def test_repeated_exports_keep_no_models_and_no_graphs(tmp_path):
    model = network()
    graphs = []
    for _ in range(5):
        keras.backend.clear_session()
        sq_model = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
        path = tmp_path / "model.tflite"
        keras_sq.export(sq_model, path, target="small", allow_untrained=True)
        del sq_model
        graphs.append((alive(keras.Model), alive(tf.Graph), alive(tf.Variable)))
    assert graphs[2] == graphs[-1], graphs
