r"""How fast and how large files of 2-bit weights are, beside float and int8.

    python tests/benchmarks/export_speed.py                     # all networks
    python tests/benchmarks/export_speed.py --networks=dense --files=float,int8,lowbit8

The networks are ternary and not trained: neither size nor time depends on it, and the
exporter checks every file. All kernels are quantized. Times are CPU milliseconds of
one example, one thread, medians: each file alone, `hot` with its weights in the caches,
`cold` after 24 MB of other memory were written, before each run. The ratios are of
medians.

| file | |
|---|---|
| `float`, `fast`, `small`, `int8` | the targets of these names; `int8` calibrated |
| `dynamic8` | the graph of `lowbit`, weights in int8, activations rounded as it runs |
| `lowbit`, `lowbit8` | target `"lowbit"`, without and with representative data |
| `small8` | target `"small"` with representative data |
| `speed`, `speed8` | as `lowbit` and `lowbit8` with `optimize="speed"` |
| `peer2`, `peer4`, `peer8` | `float` by ai-edge-quantizer (install it), weights of \
2, 4 or 8 bits a channel, activations rounded as it runs |
"""

import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_sq
from keras_sq import models
from keras_sq.export import kinds, steps
from keras_sq.export.lowbit import making

NETWORKS = flags.DEFINE_list(
    "networks",
    [
        "dense",
        "transformer",
        "resnet18_64",
        "resnet18_224",
        "mobilenet_v2_96",
        "mobilenet_v2_224",
        "resnet8",
        "ds_cnn",
    ],
    "",
)
FILES = flags.DEFINE_list(
    "files",
    ["float", "fast", "int8", "dynamic8", "lowbit", "lowbit8", "small8", "speed8"],
    "",
)
SECONDS = flags.DEFINE_float("seconds", 1.0, "How long each file is timed, twice.")
OTHER_MEMORY = 24 * 2**20


def dense():
    """Returns three dense layers."""
    x = inputs = keras.Input((1024,))
    for units in (2048, 2048):
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1000)(x))


def transformer(blocks=4, width=256, tokens=128):
    """Returns an encoder of float tokens."""
    layers = keras.layers
    x = inputs = keras.Input((tokens, width))
    for _ in range(blocks):
        y = layers.MultiHeadAttention(4, width // 4)(x, x)
        x = layers.LayerNormalization()(x + y)
        y = layers.Dense(4 * width, activation="relu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(width)(y))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def network(name):
    """Returns a float network."""
    if name == "dense":
        return dense()
    if name == "transformer":
        return transformer()
    kind, _, size = name.rpartition("_")
    if kind == "mobilenet_v2":
        shape = (int(size), int(size), 3)
        return keras.applications.MobileNetV2(shape, weights=None)
    if kind == "resnet18":
        return models.resnet_imagenet((int(size), int(size), 3), 1000)
    shape, classes = {"resnet8": ((32, 32, 3), 10), "ds_cnn": ((49, 10, 1), 12)}[name]
    return models.get(name, shape, classes)


def quantized(name):
    """Returns a network of ternary kernels."""
    return keras_sq.quantize_model(network(name), "ternary", overrides={})


def contents(model, examples):
    """Yields name of a file -> its bytes, and bits over all weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        for name in FILES.value:
            if name.startswith("peer"):
                keras_sq.export(model, path, target="float", allow_untrained=True)
                with open(path, "rb") as file:
                    yield name, by_peer(file.read(), int(name[-1]))
                continue
            if name == "dynamic8":
                kind = kinds.get("lowbit")
                request = steps.prepare(model, kind, None, None, kind.types(None))
                candidate = making.make(request)
                yield name, candidate.twin or candidate.converted.content
                continue
            target = name.removesuffix("8") if name != "int8" else name
            options = {"target": target}
            if target == "speed":
                options = {"target": "lowbit", "optimize": "speed"}
            if name.endswith("8"):
                options["representative_data"] = examples
            keras_sq.export(model, path, allow_untrained=True, **options)
            with open(path, "rb") as file:
                yield name, file.read()


def by_peer(content, bits):
    """Returns a float file as ai-edge-quantizer quantizes it."""
    from ai_edge_quantizer import quantizer, recipe

    recipes = {
        2: recipe.dynamic_wi2c_afp32,
        4: recipe.dynamic_wi4c_afp32,
        8: recipe.dynamic_wi8c_afp32,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "float.tflite")
        with open(path, "wb") as file:
            file.write(content)
        return bytes(
            quantizer.Quantizer(path, recipes[bits]()).quantize().quantized_model
        )


def timed(content):
    """Returns the median CPU milliseconds of a run, hot and cold."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    other = np.zeros(OTHER_MEMORY // 8)
    medians = []
    for cold in (False, True):
        for _ in range(3):
            interpreter.invoke()
        times, end = [], time.perf_counter() + SECONDS.value
        while time.perf_counter() < end or len(times) < 7:
            if cold:
                other += 1.0
            start = time.process_time_ns()
            interpreter.invoke()
            times.append(time.process_time_ns() - start)
        medians.append(float(np.median(times)) / 1e6)
    return medians


def main(_):
    print("| network | file | bytes | bits | hot | cold | of float | of int8 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in NETWORKS.value:
        keras.utils.set_random_seed(0)
        model = quantized(name)
        random = np.random.default_rng(0)
        shape = [1 if size is None else size for size in model.input_shape[1:]]
        examples = random.normal(size=(16, *shape)).astype("float32")
        weights = sum(int(np.prod(w.shape)) for w in network(name).weights)
        times = {}
        for file, content in contents(model, examples):
            times[file] = timed(content)
            ratios = [
                " / ".join(
                    f"{own / other:.2f}"
                    for own, other in zip(times[file], times[base], strict=True)
                )
                if base in times
                else ""
                for base in ("float", "int8")
            ]
            hot, cold = times[file]
            print(
                f"| {name} | {file} | {len(content):,} "
                f"| {8 * len(content) / weights:.2f} | {hot:.3f} | {cold:.3f} "
                f"| {ratios[0]} | {ratios[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
