r"""Times a training step of SQ against the same float model's.

    python tests/benchmarks/step_time.py             # all networks, as in the README
    python tests/benchmarks/step_time.py --networks=mlp --batch_sizes=64 --xla=both
    python tests/benchmarks/step_time.py --networks=vgg_small --batch_sizes=128 \
        --quantizers=lq-2 --inputs=lq-2 --xla=no --nodirect --pairs=20
    KERAS_BACKEND=jax python tests/benchmarks/step_time.py --xla=yes

Both models live in one process and take turns, step by step, so that a
machine whose speed drifts slows both alike. Printed is the median, with
quartiles, of the ratio of quantized to float over the pairs of steps: CPU
time (all threads) and wall time. The callback runs as in `fit` and redraws
the masks of all layers before every step; the ratio stays at 0.5, where
nothing can be left out (at ratio 1 no mask is drawn).

`direct` is the quantized layers without the callback, to see what the redraw
itself costs. `floor` (with `--floor`, dense networks only) is the least that one can
write by hand: `w + stop_gradient(q(w) - w)` in the call of a dense layer, everything
quantized, no masks, no schedule.
"""

import itertools
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import keras_sq
from keras_sq import models

JAX = keras.backend.backend() == "jax"
KINDS = ("trainable", "non_trainable", "optimizer", "metrics")
"""What the trainer holds on JAX, in its order."""

NETWORKS = flags.DEFINE_list(
    "networks", ["vgg", "mlp", "resnet8"], "vgg, vgg_small, mlp, resnet8"
)
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["8", "64", "128"], "Batch sizes.")
QUANTIZERS = flags.DEFINE_list(
    "quantizers",
    ["binary", "ternary", "default"],
    "Names, or `default` for ternary with four bits for the smallest layers.",
)
INPUTS = flags.DEFINE_string("inputs", None, "Input quantizer too, such as lq-2.")
XLA = flags.DEFINE_enum(
    "xla", "both", ["no", "yes", "both"], "Compile the step by XLA."
)
PAIRS = flags.DEFINE_integer("pairs", 25, "Pairs of steps.", lower_bound=20)
THREADS = flags.DEFINE_integer("threads", 1, "Threads of TensorFlow's pools.")
OPTIMIZER = flags.DEFINE_string("optimizer", "adam", "sgd (momentum 0.9) or adam.")
DIRECT = flags.DEFINE_bool("direct", True, "Also time without the callback.")
FLOOR = flags.DEFINE_bool("floor", False, "Also time straight-through by hand.")


class StraightThroughDense(keras.layers.Dense):
    """A dense layer that quantizes its kernel as one would write it by hand."""

    def __init__(self, *args, kind="ternary", **kwargs):
        super().__init__(*args, **kwargs)
        self.kind = kind

    def call(self, inputs):
        """Returns the outputs with the quantized kernel."""
        ops = keras.ops
        kernel = ops.convert_to_tensor(self.kernel)
        size = ops.abs(kernel)
        if self.kind == "binary":
            scale = ops.mean(size, axis=0)
            quantized = ops.where(kernel >= 0, scale, -scale)
        else:
            kept = size > 0.7 * ops.mean(ops.abs(kernel - ops.mean(kernel)))
            count = ops.maximum(ops.sum(ops.cast(kept, "float32"), axis=0), 1.0)
            scale = ops.sum(ops.where(kept, size, 0.0), axis=0) / count
            quantized = ops.where(kept, scale * ops.sign(kernel), 0.0)
        kernel = kernel + ops.stop_gradient(quantized - kernel)
        return self.activation(ops.matmul(inputs, kernel) + self.bias)


def network(name: str) -> keras.Model:
    """Returns one of the networks: VGG-style 64-64-128-128-256-256-FC512, ..."""
    layers = keras.layers
    if name == "mlp":
        hidden = [layers.Dense(2048, activation="relu") for _ in range(3)]
        return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)])
    if name == "vgg":
        stack = [keras.Input((32, 32, 3))]
        for filters in (64, 128, 256):
            for _ in range(2):
                stack += [
                    layers.Conv2D(filters, 3, padding="same", use_bias=False),
                    layers.BatchNormalization(),
                    layers.ReLU(),
                ]
            stack.append(layers.MaxPooling2D())
        stack += [layers.Flatten(), layers.Dense(512, activation="relu")]
        return keras.Sequential([*stack, layers.Dense(10)])
    if name in ("vgg_small", "resnet8"):  # The small one is LQ-Nets', and the larger.
        return models.get(name, (32, 32, 3), 10)
    raise app.UsageError(f"Unknown network {name!r}.")


def compiled(model: keras.Model, xla: bool) -> keras.Model:
    """Returns the model, compiled."""
    if OPTIMIZER.value == "adam":
        optimizer = keras.optimizers.Adam(1e-3)
    else:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=xla)
    return model


class Stepper:
    """One training step at a time, callback included, as `fit` does it."""

    def __init__(self, model: keras.Model, x, y, redraw: bool) -> None:
        self.model = model
        if JAX:
            self.iterator = itertools.repeat((x, y))
            model.optimizer.build(model.trainable_variables)
            model._symbolic_build(data_batch=(x, y))
            model._jax_state_synced = True
        else:
            data = tf.data.Dataset.from_tensors((x, y)).repeat()
            self.iterator = iter(data)
        self.callback = None
        if redraw:
            half = keras_sq.schedules.constant(0.5, allow_partial=True)
            self.callback = keras_sq.callbacks.StochasticQuantization(half)
            self.callback.set_params({"epochs": 1, "steps": 10**6})
            self.callback.set_model(model)
            self.callback.on_train_begin()
        model.make_train_function()

    def __call__(self) -> tuple[float, float]:
        """Runs a step; returns its CPU and wall seconds."""
        cpu, wall = time.process_time(), time.perf_counter()
        if self.callback is not None:
            self.callback.on_train_batch_begin(0)
        if JAX:
            logs = self.step_on_jax()
        else:
            logs = self.model.train_function(self.iterator)
        float(logs["loss"])
        return time.process_time() - cpu, time.perf_counter() - wall

    def step_on_jax(self) -> dict:
        """As in Keras's `fit`: what a callback looked at is fetched again."""
        model = self.model
        if model._jax_state_synced:
            everything = {f"{kind}_variables": True for kind in KINDS}
            self.state = model._get_jax_state(**everything, purge_model_variables=True)
            model._jax_state_synced = False
        logs, self.state = model.train_function(self.state, self.iterator)
        names = (f"{kind}_variables" for kind in KINDS)
        model._jax_state = dict(zip(names, self.state, strict=True))
        return logs


def quartiles(values: list[float]) -> str:
    """Returns median and quartiles as text."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:5.2f} ({low:.2f}-{high:.2f})"


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    if FLOOR.value and set(NETWORKS.value) != {"mlp"}:
        raise app.UsageError("--floor is for --networks=mlp.")
    logging.set_verbosity(logging.ERROR)  # Retracing is what this does.
    tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS.value)
    if JAX and hasattr(os, "sched_setaffinity"):  # It has no such setting.
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: THREADS.value]))
    version = __import__(keras.backend.backend()).__version__
    print(
        f"{keras.backend.backend()} {version}, Keras {keras.__version__}, "
        f"{THREADS.value} thread(s) of {os.cpu_count()}, {OPTIMIZER.value}, "
        f"{PAIRS.value} pairs; median (quartiles) of quantized / float"
    )
    print(
        f"{'network':8} {'batch':>5} {'XLA':3} {'quantizer':9} {'redraw':6} "
        f"{'float ms':>8} {'CPU time':>18} {'wall time':>18}"
    )
    rng = np.random.default_rng(0)
    for name in NETWORKS.value:
        for batch in map(int, BATCH_SIZES.value):
            choice = "yes" if JAX else XLA.value  # JAX knows nothing else.
            for xla in {"no": [False], "yes": [True], "both": [False, True]}[choice]:
                run(rng, name, batch, xla)


def run(rng, name: str, batch: int, xla: bool) -> None:
    """Times all quantizers on one network at one batch size."""
    base = network(name)
    x = rng.normal(size=(batch, *base.input_shape[1:])).astype("float32")
    y = rng.integers(0, 10, batch)
    steppers = {"float": Stepper(compiled(base, xla), x, y, False)}
    for quantizer in QUANTIZERS.value:
        for redraw in [True, False] if DIRECT.value else [True]:
            options = {"kernel_quantizer": quantizer, "overrides": {}}
            model = keras_sq.quantize_model(
                base,
                **(options if quantizer != "default" else {}),
                input_quantizer=INPUTS.value,
                skip=(),
                seed=0,
            )
            if not redraw:
                keras_sq.set_ratio(model, 1.0)
            label = (quantizer, "every" if redraw else "direct")
            steppers[label] = Stepper(compiled(model, xla), x, y, redraw)
        if FLOOR.value:
            by_hand = [
                StraightThroughDense(2048, activation="relu", kind=quantizer)
                for _ in range(3)
            ]
            last = StraightThroughDense(10, kind=quantizer)
            model = keras.Sequential(
                [keras.Input(base.input_shape[1:]), *by_hand, last]
            )
            label = (quantizer, "floor")
            steppers[label] = Stepper(compiled(model, xla), x, y, False)
    times: dict = {key: [] for key in steppers}
    for stepper in steppers.values():
        stepper()
        stepper()
    for _ in range(PAIRS.value):
        for key, stepper in steppers.items():
            times[key].append(stepper())
    floats = times.pop("float")
    for (quantizer, redraw), values in times.items():
        cpu = [v[0] / f[0] for v, f in zip(values, floats, strict=True)]
        wall = [v[1] / f[1] for v, f in zip(values, floats, strict=True)]
        print(
            f"{name:8} {batch:5} {'yes' if xla else 'no':3} {quantizer:9} {redraw:6} "
            f"{np.median([f[0] for f in floats]) * 1e3:8.1f} "
            f"{quartiles(cpu):>18} {quartiles(wall):>18}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(app.run(main))
