r"""Memory of a process that trains for 10,000 steps, or exports again and again.

    python tests/benchmarks/training_memory.py
    python tests/benchmarks/training_memory.py --cases=soft --steps=2000

Each case has a process of its own, which prints its resident memory ten times. The
masks are redrawn before every step.

| case | |
|---|---|
| `filters` | ternary, whole filters, linear schedule |
| `soft` | StoMPP: signs, single weights and inputs, `SoftRefresh`, layer after layer |
| `learned` | learned codebooks of two bits, for inputs too |
| `fits` | `filters` in 100 calls of `fit`, each with a callback of its own |
| `export` | `quantize_model` and `export` of one model, 100 times |

A process grows while TensorFlow sets up its threads and caches; what matters is that
the later numbers stay.
"""

import gc
import os
import resource
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

CASES = flags.DEFINE_list(
    "cases", ["filters", "soft", "learned", "fits", "export"], "Cases."
)
STEPS = flags.DEFINE_integer("steps", 10_000, "Training steps.", lower_bound=100)
EXPORTS = flags.DEFINE_integer("exports", 100, "Exports.", lower_bound=10)
ONE_CASE = flags.DEFINE_string("one_case", None, "For the processes themselves.")

BATCH = 32
"""Examples a step."""


def resident() -> float:
    """Returns the resident memory now, in MiB."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * resource.getpagesize() / 2**20


def network():
    """Returns a small float network: two convolutions and a dense layer."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((8, 8, 3)),
            layers.Conv2D(16, 3),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Conv2D(16, 3),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def quantized(case: str):
    """Returns a compiled quantized network, and a function that makes callbacks."""
    import keras

    import keras_sq

    settings: dict = {"kernel_quantizer": "ternary", "skip": ()}
    schedule: object = "linear"
    if case == "soft":
        preset = keras_sq.presets.stompp()
        settings = dict(preset.settings, skip=())
        schedule = preset.schedule
    elif case == "learned":
        settings = {"kernel_quantizer": "lq-2", "input_quantizer": "lq-2", "skip": ()}
    model = keras_sq.quantize_model(network(), seed=0, **{"overrides": {}, **settings})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model, lambda: keras_sq.callbacks.StochasticQuantization(schedule)


def train(case: str) -> None:
    """Trains in one call of `fit`, or in a hundred."""
    import keras
    import numpy as np

    model, callback = quantized(case)
    fits = 100 if case == "fits" else 1
    every = STEPS.value // 10
    done = 0

    def count(batch, logs):
        nonlocal done
        done += 1
        if done % every == 0:
            show(case, f"{done:,} steps")

    rng = np.random.default_rng(0)
    per_epoch = STEPS.value // 100
    x = rng.normal(size=(per_epoch * BATCH, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 10, len(x))
    for _ in range(fits):
        report = keras.callbacks.LambdaCallback(on_train_batch_end=count)
        model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=100 // fits,
            verbose=0,
            callbacks=[callback(), report],
        )


def export() -> None:
    """Quantizes and exports one float model again and again."""
    import keras_sq

    model = network()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, EXPORTS.value + 1):
            sq_model = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
            keras_sq.export(
                sq_model,
                os.path.join(folder, "model.tflite"),
                target="small",
                allow_untrained=True,
            )
            if number % (EXPORTS.value // 10) == 0:
                show("export", f"{number} exports")


def show(case: str, when: str) -> None:
    """Prints a line."""
    gc.collect()
    objects = len(gc.get_objects())
    line = f"{case:8}  {when:>12}  {resident():7.0f} MiB  {objects:,} objects"
    print(line, flush=True)


def main(argv: list[str]) -> None:
    """Starts a process for each case."""
    if ONE_CASE.value:
        export() if ONE_CASE.value == "export" else train(ONE_CASE.value)
        return
    for case in CASES.value:
        command = [sys.executable, *argv[:1], f"--one_case={case}"]
        command += [f"--steps={STEPS.value}", f"--exports={EXPORTS.value}"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    app.run(main)
