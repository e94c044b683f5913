r"""Times a training step of SQ against the float network's, and the input pipeline.

    python tests/benchmarks/accelerator/steps.py --out=OUT --minutes=3
    python tests/benchmarks/accelerator/steps.py --out=OUT --scale=0.01

The steps are those of the runner (`training.py`): many in one compiled call, data on
the device, masks of all layers drawn before every step. The ratio stays at 0.5, where
nothing can be left out. Both networks live in one process and take turns, call by call,
so that a machine whose speed drifts slows both alike; the quotient is that of
neighbouring calls. The float network is the same Keras model without quantization.

The input pipeline: images a second of the augmentation on the device alone, and of
shuffled float32 batches that the host makes and transfers, as `fit` does with arrays.

Writes `steps.json`, which `report.py` reads. Networks that do not fit the memory, or
the time, leave a line that says so. At another scale than 1 it is a rehearsal: a single
tiny network takes the place of all, and the report leaves it out.
"""

import dataclasses
import datetime
import gc
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import augmentation
import jax
import jax.numpy as jnp
import job
import keras
import numpy as np
import training
from absl import app, flags

import keras_sq
from keras_sq import models

PAIRS = 21
"""Calls of each network that are timed, unless time runs out."""

LEAST_PAIRS = 3
"""Calls of each network without which there is no number."""

CLASSES = 10
RATIO = 0.5


@dataclasses.dataclass(frozen=True)
class Network:
    """What is timed.

    Attributes:
        name: For the table.
        build: Takes the input shape and returns a Keras model of logits.
        input_shape: Of an example.
        batch_size: Examples a step.
        steps: Steps in one compiled call.
    """

    name: str
    build: Callable[[tuple[int, ...]], keras.Model]
    input_shape: tuple[int, ...]
    batch_size: int
    steps: int


def _resnet20(shape: tuple[int, ...]) -> keras.Model:
    return models.get("resnet20", shape, CLASSES)


def _stand_in(shape: tuple[int, ...]) -> keras.Model:
    """Returns a tiny network with the kinds of layers that residual networks have."""
    layers = keras.layers
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, strides=4, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(x)))


def _resnet50(shape: tuple[int, ...]) -> keras.Model:
    return keras.applications.ResNet50(
        weights=None, input_shape=shape, classes=1000, classifier_activation=None
    )


def _dense(width: int) -> Callable[[tuple[int, ...]], keras.Model]:
    def build(shape: tuple[int, ...]) -> keras.Model:
        layers = keras.layers
        hidden = [layers.Dense(width, activation="relu") for _ in range(3)]
        stack = [keras.Input(shape), layers.Flatten(), *hidden, layers.Dense(CLASSES)]
        return keras.Sequential(stack)

    return build


def _transformer(width: int, blocks: int) -> Callable[[tuple[int, ...]], keras.Model]:
    """Returns what builds a transformer on patches of 4 x 4 pixels, of 4 heads."""

    def build(shape: tuple[int, ...]) -> keras.Model:
        layers = keras.layers
        inputs = keras.Input(shape)
        x = layers.Conv2D(width, 4, strides=4)(inputs)
        x = layers.Reshape((-1, width))(x)
        for _ in range(blocks):
            y = layers.LayerNormalization()(x)
            y = layers.MultiHeadAttention(4, width // 4)(y, y)
            x = layers.Add()([x, y])
            y = layers.LayerNormalization()(x)
            y = layers.Dense(4 * width, activation="gelu")(y)
            x = layers.Add()([x, layers.Dense(width)(y)])
        x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
        return keras.Model(inputs, layers.Dense(CLASSES)(x))

    return build


def networks(scale: float) -> list[Network]:
    """Returns what is timed, in order.

    Args:
        scale: 1, or another number for a rehearsal with one tiny network.
    """
    image = (32, 32, 3)
    if scale == 1:
        return [
            Network("ResNet-20", _resnet20, image, 128, 100),
            Network("MLP 3 x 2048", _dense(2048), image, 128, 100),
            Network(
                "transformer, 4 blocks of 256", _transformer(256, 4), image, 128, 50
            ),
            Network("ResNet-50, 224 pixels", _resnet50, (224, 224, 3), 64, 10),
        ]
    return [Network("stand-in", _stand_in, image, 4, 2)]


def measure(out: pathlib.Path, scale: float, minutes: float) -> None:
    """Measures everything and writes `steps.json` after each network.

    Args:
        out: Folder, made if it is not there.
        scale: 1, or another number for a rehearsal.
        minutes: Float > 0, time for all of it. A network is begun if time is left; the
            compilation of its steps is not interrupted.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    entries: list[dict[str, Any]] = []
    todo = [(x.name, x.batch_size, _step_times, x) for x in networks(scale)]
    batch, steps = (128, 200) if scale == 1 else (4, 2)
    pipeline = (batch, steps)
    name = "augmentation on the device"
    todo.insert(1, (name, batch, _augmentation_rate, pipeline))
    name = "batches of the host, transferred"
    todo.insert(2, (name, batch, _transfer_rate, pipeline))
    for place, (name, batch_size, function, argument) in enumerate(todo):
        now = time.monotonic()
        share = (end - now) / (len(todo) - place)
        try:
            if now >= end:
                raise TimeoutError("no time was left")
            found = function(argument, now + share)
        except Exception as error:
            # One network too large for the card must not take the others with it.
            found = [{"quantity": "ratio", "unit": "", "problem": _problem(error)}]
        for entry in found:
            common = {"name": name, "batch_size": batch_size, "problem": ""}
            entries.append({**common, **entry})
            print(_line(entries[-1]), flush=True)
        gc.collect()
        _write(out / "steps.json", scale, entries)


def _step_times(network: Network, end: float) -> list[dict[str, Any]]:
    data = _images(network.input_shape, network.batch_size * network.steps)
    keras.utils.set_random_seed(0)
    # Hundreds of small operations, each of which an accelerator would compile slowly.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model = network.build(network.input_shape)
        quantized = keras_sq.quantize_model(
            model, "ternary", skip=(), overrides={}, seed=0
        )
    schedule = keras_sq.schedules.constant(RATIO, allow_partial=True)
    callback = keras_sq.callbacks.StochasticQuantization(schedule)
    calls = [
        _calls(model, [], network, data),
        _calls(quantized, [callback], network, data),
    ]
    for call in calls:
        next(call)  # Compiles.
    times = []
    while len(times) < PAIRS and (len(times) < LEAST_PAIRS or time.monotonic() < end):
        times.append([next(call) for call in calls])
    ms = [[1000 * seconds / network.steps for seconds in pair] for pair in times]
    return [
        _quantity("float", "ms", [pair[0] for pair in ms]),
        _quantity("sq", "ms", [pair[1] for pair in ms]),
        _quantity("ratio", "", [pair[1] / pair[0] for pair in ms]),
    ]


def _calls(
    model: keras.Model, callbacks: list[Any], network: Network, data: Any
) -> Iterator[float]:
    """Yields the wall seconds of one compiled call after the other."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        trainer = training.Trainer(
            model,
            callbacks,
            epochs=10**6 // network.steps,
            steps_per_epoch=network.steps,
            batch_size=network.batch_size,
            augment=False,
        )
    values = trainer.stack([trainer.values()])
    epoch = 0
    while True:
        start = time.perf_counter()
        values, sums = trainer.train(values, data, 0, epoch, 0, network.steps)
        jax.block_until_ready((values, sums))
        yield time.perf_counter() - start
        epoch += 1


def _images(shape: tuple[int, ...], count: int) -> augmentation.Images:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape), dtype="uint8")
    labels = random.integers(0, CLASSES, count).astype("int32")
    mean = np.full(shape[-1], 127.5, "float32")
    arrays = (images, labels, images[:1], labels[:1], mean, mean / 2)
    return augmentation.Images(*map(jnp.asarray, arrays))


def _augmentation_rate(sizes: tuple[int, int], end: float) -> list[dict[str, Any]]:
    batch_size, steps = sizes
    data = _images((32, 32, 3), batch_size * steps)

    def augmented(data: augmentation.Images, epoch: jax.Array) -> jax.Array:
        order = augmentation.epoch_order(jnp.int32(0), epoch, len(data.train))

        def step(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            here = number * batch_size
            index = jax.lax.dynamic_slice_in_dim(order, here, batch_size)
            images = augmentation.standardize(data.train[index], data)
            images = augmentation.mirror_and_shift(images, jnp.int32(0), epoch, number)
            # All pixels count, so that none is left out.
            return total + jnp.sum(images), None

        numbers = jnp.arange(steps, dtype="int32")
        return jax.lax.scan(step, jnp.zeros(()), numbers)[0]

    compiled = jax.jit(augmented)
    return [_rate(lambda i: compiled(data, jnp.int32(i)), batch_size * steps, end)]


def _transfer_rate(sizes: tuple[int, int], end: float) -> list[dict[str, Any]]:
    batch_size, steps = sizes
    random = np.random.default_rng(0)
    images = random.random((batch_size * steps, 32, 32, 3), dtype="float32")
    labels = random.integers(0, CLASSES, len(images)).astype("int32")

    def transferred(epoch: int) -> list[jax.Array]:
        order = np.random.default_rng(epoch).permutation(len(images))
        # Only the last batch is kept: the device frees the others, as in `fit`.
        batch: list[jax.Array] = []
        for start in range(0, len(images), batch_size):
            index = order[start : start + batch_size]
            batch = [jnp.asarray(images[index]), jnp.asarray(labels[index])]
            jax.block_until_ready(batch)
        return batch

    return [_rate(transferred, len(images), end)]


def _rate(call: Callable[[int], Any], images: int, end: float) -> dict[str, Any]:
    """Returns images a second of calls that each handle so many."""
    jax.block_until_ready(call(0))
    rates: list[float] = []
    while len(rates) < PAIRS and (len(rates) < LEAST_PAIRS or time.monotonic() < end):
        start = time.perf_counter()
        jax.block_until_ready(call(1 + len(rates)))
        rates.append(images / (time.perf_counter() - start))
    return _quantity("rate", "images/s", rates)


def _quantity(quantity: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "quantity": quantity,
        "unit": unit,
        "median": median,
        "low": low,
        "high": high,
    }


def _problem(error: Exception) -> str:
    """Returns a few words, without what would break a line of a table."""
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return "too little memory"
    if isinstance(error, TimeoutError):
        return text
    first = " ".join(text.split()).replace("|", "/")[:100]
    return f"{type(error).__name__}: {first}"


def _line(entry: dict[str, Any]) -> str:
    start = f"{entry['name']}, batch {entry['batch_size']}: {entry['quantity']} "
    if entry["problem"]:
        return start + entry["problem"]
    numbers = [entry[key] for key in ("median", "low", "high")]
    median, low, high = (f"{number:,.3f}" for number in numbers)
    return f"{start}{median} {entry['unit']} ({low} to {high})"


def _write(path: pathlib.Path, scale: float, entries: list[dict[str, Any]]) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    device = jax.devices()[0]
    content = {
        "scale": scale,
        "device": f"{device.platform}: {device.device_kind}",
        "precision": job.precision(),
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "keras_sq": keras_sq.__version__,
        "jax": jax.__version__,
        "measurements": entries,
    }
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(beside, path)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if len(argv) > 1:
        print(f"steps: error: unknown argument {argv[1]!r}", file=sys.stderr)
        return 2
    values = flags.FLAGS
    measure(pathlib.Path(values.out), values.scale, values.minutes)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", "steps_out", "Folder for steps.json.")
    flags.DEFINE_float("scale", 1.0, "1, or another number for a rehearsal.")
    flags.DEFINE_float("minutes", 3.0, "Time for all of it.", lower_bound=0.01)
    app.run(lambda argv: sys.exit(main(argv)))
