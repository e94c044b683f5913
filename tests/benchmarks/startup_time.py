r"""Times how long quantized networks take until they do something.

    python tests/benchmarks/startup_time.py             # all tables
    python tests/benchmarks/startup_time.py --tables=start --networks=unet
    python tests/benchmarks/startup_time.py --tables=predict --quantizers=lq-4

Printed is the CPU time (all threads) in seconds, and its ratio to the float network's.
Each network is measured in a process of its own, since a process compiles a function
for a kernel's shape once.

| table | |
|---|---|
| `start` | `start`: build, `quantize_model`, compile (with accuracy) and a `fit` of three steps, with the callback; the second and the third such `fit`; the first `predict` |
| `predict` | the first batch of `predict`, and a later one, of a ResNet50 |
| `quantize` | `quantize_model` for a million weights |
| `import` | `import keras_sq` after `import keras` |
"""  # noqa: E501 (a table row cannot be broken)

import json
import os
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

NETWORKS = ("mobilenet", "efficientnet", "unet", "transformer")

TABLES = flags.DEFINE_list("tables", ["start", "predict", "quantize", "import"], "")
CHOSEN = flags.DEFINE_list("networks", list(NETWORKS), "Networks of table `start`.")
QUANTIZERS = flags.DEFINE_list(
    "quantizers",
    None,
    "Instead of those of the table: names, or `default` for ternary with "
    "four bits for the smallest layers.",
)
CHILD = flags.DEFINE_string("child", None, "What to measure in this process.")

START = ("ternary", "default", "lq-2")
PREDICT = ("ternary", "uniform-4", "lq-4")
QUANTIZE = ("ternary", "default", "lq-2", "lq-4")


def network(name: str):
    """Returns a float network and the shape of an example."""
    import keras
    from keras import layers

    if name in ("mobilenet", "efficientnet", "resnet50"):
        size = 224 if name == "resnet50" else 64
        kind = {
            "mobilenet": keras.applications.MobileNetV3Small,
            "efficientnet": keras.applications.EfficientNetV2B0,
            "resnet50": keras.applications.ResNet50,
        }[name]
        return kind(weights=None, input_shape=(size, size, 3), classes=10)
    if name == "transformer":
        x = inputs = keras.Input((32,), dtype="int32")
        x = layers.Embedding(200, 32)(x)
        for _ in range(4):
            y = layers.MultiHeadAttention(4, 8)(x, x)
            x = layers.LayerNormalization()(x + y)
            y = layers.Dense(64, activation="relu")(x)
            x = layers.LayerNormalization()(x + layers.Dense(32)(y))
        x = layers.GlobalAveragePooling1D()(x)
        return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    if name == "unet":
        x = inputs = keras.Input((32, 32, 3))
        across = []
        for filters in (8, 16, 32):
            x = _twice(x, filters)
            across.append(x)
            x = layers.MaxPooling2D()(x)
        x = _twice(x, 64)
        for filters in (32, 16, 8):
            x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
            x = _twice(layers.Concatenate()([x, across.pop()]), filters)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    if name == "million":
        stack = [keras.Input((512,))]
        stack += [layers.Dense(512, activation="relu") for _ in range(4)]
        return keras.Sequential([*stack, layers.Dense(10)])
    raise app.UsageError(f"Unknown network {name!r}.")


def _twice(x, filters: int):
    from keras import layers

    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


class Clock:
    """CPU seconds between two calls of `lap`."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        """Ends a lap."""
        now = time.process_time()
        self.laps[name] = now - self._last
        self._last = time.process_time()


def quantized(model, quantizer: str):
    """Returns the quantized model, or the float one for `float`."""
    if quantizer == "float":
        return model
    import keras_sq

    if quantizer == "default":
        return keras_sq.quantize_model(model, seed=0)
    return keras_sq.quantize_model(model, quantizer, overrides={}, seed=0)


def examples(model, count: int):
    """Returns random examples and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 200, shape), rng.integers(0, 10, count)
    return rng.random(shape, "float32"), rng.integers(0, 10, count)


def measure_start(name: str, quantizer: str) -> dict[str, float]:
    """Returns seconds of `start`, `second`, `third` and `predict`."""
    import keras

    import keras_sq

    keras.utils.set_random_seed(0)
    clock = Clock()
    model = quantized(network(name), quantizer)
    x, y = examples(model, 24)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = []
    if quantizer != "float":
        half = keras_sq.schedules.constant(0.5, allow_partial=True)
        callbacks = [keras_sq.callbacks.StochasticQuantization(half)]
    for lap in ("start", "second", "third"):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
        clock.lap(lap)
    model.predict(x[:8], batch_size=8, verbose=0)
    clock.lap("predict")
    return clock.laps


def measure_predict(name: str, quantizer: str) -> dict[str, float]:
    """Returns seconds of the first batch of `predict`, and of a later one."""
    import keras

    keras.utils.set_random_seed(0)
    batches = 8
    model = quantized(network(name), quantizer)
    x, _ = examples(model, 8 * batches)
    clock = Clock()
    model.predict(x[:8], batch_size=8, verbose=0)
    clock.lap("first")
    model.predict(x[:8], batch_size=8, verbose=0)
    clock.lap("again")
    model.predict(x, batch_size=8, verbose=0)
    clock.lap("all")
    later = (clock.laps["all"] - clock.laps["again"]) / (batches - 1)
    return {"first": clock.laps["first"], "later": later}


def measure_quantize(name: str, quantizer: str) -> dict[str, float]:
    """Returns the seconds of `quantize_model`."""
    import keras_sq  # noqa: F401 (its time is another matter)

    model = network(name)
    clock = Clock()
    quantized(model, quantizer)
    clock.lap("quantize")
    return clock.laps


def measure_import(name: str, quantizer: str) -> dict[str, float]:
    """Returns the seconds of `import keras_sq` on top of Keras."""
    del name, quantizer
    import keras  # noqa: F401

    before = time.process_time()
    import keras_sq  # noqa: F401

    return {"import": time.process_time() - before}


def in_a_process(table: str, name: str, quantizer: str) -> dict[str, float]:
    """Returns what a new process measures."""
    command = [sys.executable, __file__, f"--child={table},{name},{quantizer}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def print_table(table: str, names: list[str], quantizers: list[str]) -> None:
    """Prints a table of seconds and ratios to the float network."""
    for name in names:
        floats = None
        for quantizer in ["float", *quantizers]:
            seconds = in_a_process(table, name, quantizer)
            floats = floats or seconds
            cells = [
                f"{lap} {value:7.3f} s {value / floats[lap]:6.2f} x"
                for lap, value in seconds.items()
            ]
            print(f"{table:8} {name:12} {quantizer:10}", " | ".join(cells), flush=True)


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    if CHILD.value:
        table, name, quantizer = CHILD.value.split(",")
        measure = globals()[f"measure_{table}"]
        print(json.dumps(measure(name, quantizer)))
        return
    for table in TABLES.value:
        if table == "start":
            print_table(table, CHOSEN.value, QUANTIZERS.value or list(START))
        elif table == "predict":
            print_table(table, ["resnet50"], QUANTIZERS.value or list(PREDICT))
        elif table == "quantize":
            for quantizer in QUANTIZERS.value or QUANTIZE:
                seconds = in_a_process(table, "million", quantizer)["quantize"]
                print(f"{table:8} {quantizer:10} {seconds:.2f} s a million weights")
        else:
            print(f"{table:8} {in_a_process(table, '', '')['import']:.3f} s")


if __name__ == "__main__":
    app.run(main)
