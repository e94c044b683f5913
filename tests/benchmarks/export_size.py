r"""Sizes of exported files, and how fast they run, against the float file.

    python tests/benchmarks/export_size.py                 # the table in the README
    python tests/benchmarks/export_size.py --models=resnet8 --targets=small,mcu

The networks are not trained: sizes do not depend on it, and every file is checked
by the exporter all the same. All kernels are quantized. `4-level` stands for a
learned codebook of two bits: every filter gets four values of its own, rounded
from random normal ones.

Sizes are bytes of the file; the factor is against the float32 file of the same
network. Times are of one image, one thread, XNNPACK on where the runtime turns it
on: the file and the float file take turns, and printed is the median, with
quartiles, of the ratio over the pairs. `mcu` is run by TensorFlow Lite for
Microcontrollers; its arena is compared with that of the unpacked int8 file.
"""

import os
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_sq
from keras_sq import models
from keras_sq.export.conversion import inputs
from keras_sq.export.tflite import runtime

MODELS = flags.DEFINE_list(
    "models", ["resnet8", "ds_cnn", "cnn_half_million", "mobilenet_v2", "resnet18"], ""
)
KERNELS = flags.DEFINE_list("kernels", ["binary", "ternary", "4-level"], "")
TARGETS = flags.DEFINE_list(
    "targets",
    ["fast", "int4", "int2", "lowbit", "small", "int8", "small+int8", "lowbit+int8"]
    + ["mcu"],
    "",
)
RUNS = flags.DEFINE_integer("runs", 25, "Pairs of runs to time; 0 for none.")
MICRO = ("resnet8", "ds_cnn", "cnn_half_million")
"""Networks for microcontrollers; for the others `mcu` is left out."""

layers = keras.layers


def normalized(x, filters: int):
    """Returns 3 x 3 convolution, batch normalization and ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def cnn_half_million() -> keras.Model:
    """A small CNN of half a million weights, half of them in one layer."""
    x = image = keras.Input((32, 32, 3))
    for filters in (32, 64, 128, 128):
        x = layers.MaxPooling2D()(normalized(x, filters))
    x = layers.Dense(512, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10)(x), name="cnn")


def network(name: str) -> keras.Model:
    """Returns one of the networks."""
    builders = {
        "resnet8": lambda: models.get("resnet8", (32, 32, 3), 10),
        "ds_cnn": lambda: models.get("ds_cnn", (49, 10, 1), 12),
        "cnn_half_million": cnn_half_million,
        "mobilenet_v2": lambda: keras.applications.MobileNetV2(
            (96, 96, 3), weights=None, classes=10
        ),
        "resnet18": lambda: models.get("resnet18", (64, 64, 3), 10),
    }
    if name not in builders:
        raise app.UsageError(f"Unknown network {name!r}; known: {', '.join(builders)}.")
    keras.utils.set_random_seed(0)
    return builders[name]()


def quantized(model: keras.Model, kernels: str) -> keras.Model:
    """Returns the model with kernels of few values."""
    quantizer = "ternary" if kernels == "4-level" else kernels
    sq_model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
    if kernels != "4-level":
        return sq_model
    plain = keras_sq.strip_quantization(sq_model)
    generator = np.random.default_rng(0)
    for path, codes in keras_sq.get_codes(sq_model).items():
        layer = plain.get_layer(path.split("/")[0])
        kernel = next(v for v in layer.weights if v.shape == codes.codes.shape)
        shape = np.broadcast_shapes(codes.scale.shape, (1,) * codes.codes.ndim)
        deviation = float(np.std(kernel))  # So that activations stay in bounds.
        levels = np.sort(generator.normal(0, deviation, (4, *shape)), axis=0)
        digits = generator.integers(0, 4, (1, *codes.codes.shape))
        kernel.assign(np.take_along_axis(levels, digits, axis=0)[0])
    return plain


def timed(content: bytes, reference: bytes, signature) -> str:
    """Returns the ratio of running times, file to reference, as text."""
    generator = np.random.default_rng(0)
    calls = []
    for entry in (content, reference):
        runner = runtime.Runner(entry)
        batch = {
            x.name: runner.quantized(x.name, x.random(1, generator))
            for x in signature.inputs
        }
        calls.append((runner._run, batch))
    ratios = []
    for pair in range(RUNS.value + 5):
        seconds = []
        for run, batch in calls:
            start = time.perf_counter()
            run(**batch)
            seconds.append(time.perf_counter() - start)
        if pair >= 5:  # The first runs unfold and warm up.
            ratios.append(seconds[0] / seconds[1])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def row(cells) -> None:
    """Prints a row of the table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    row(["network", "kernels", "target", "bytes", "factor", "bits", "time", "arena"])
    row(["---"] * 8)
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS.value:
            for kernels in KERNELS.value:
                rows(name, kernels, folder)


def rows(name: str, kernels: str, folder: str) -> None:
    """Prints the rows of one network with one kind of kernels."""
    model = quantized(network(name), kernels)
    signature = inputs.input_signature(model)
    generator = np.random.default_rng(1)
    examples = [entry.random(32, generator) for entry in signature.inputs]
    path = os.path.join(folder, "model.tflite")

    def export(target: str) -> tuple[keras_sq.export, bytes]:
        integer = target.endswith("int8") or target == "mcu"
        report = keras_sq.export(
            model,
            path,
            target=target.removesuffix("+int8"),
            representative_data=examples if integer else None,
            allow_untrained=True,
        )
        with open(path, "rb") as file:
            return report, file.read()

    report, plain = export("float")
    row([name, kernels, "float", f"{report.num_bytes:,}", "1.0", "32", "1", ""])
    for target in TARGETS.value:
        if target == "mcu" and name not in MICRO:
            continue
        report, content = export(target)
        bits = [k for k in report.kernels if k.quantized or kernels == "4-level"]
        weights = sum(kernel.weights for kernel in bits)
        average = 8 * sum(kernel.num_bytes for kernel in bits) / weights
        times, arena = "", ""
        if target == "mcu":
            whole = report.int8_arena_bytes
            arena = f"{report.arena_bytes:,} ({report.arena_bytes / whole:.2f})"
        elif RUNS.value:
            times = timed(content, plain, signature)
        row(
            [name, kernels, target, f"{report.num_bytes:,}"]
            + [f"{report.times_smaller:.1f}", f"{average:.2f}", times, arena]
        )


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    app.run(main)
