"""Exports fully binary networks for Larq Compute Engine, and runs them there.

    python tests/checks/compute_engine.py --environment=~/.cache/keras_sq_compute_engine

Makes a virtual environment with this package and its extra `lce` (NumPy 1, hence one
of its own), exports networks there with target "lce", which compares each file with
Keras part by part, and prints a table: sizes, the part of 50 fresh images on which the
file agrees with Keras to 1e-4, and milliseconds an image on one thread, of the float
file with and without XNNPACK and of the binary one, all by Larq Compute Engine's
interpreter. Its fast kernels are for 64-bit ARM: on other processors it falls back on
plain ones, and times here say nothing of those there. The exit status is 1 if a network
cannot be exported, or agrees on fewer than half of the images.

Needs a package index, some minutes and 3 GB of disk; with `--environment` the next run
starts at once. Not part of the test suite. The networks are not trained, but normalized
to their own activations: agreement and sizes do not depend on training.
"""

import argparse
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 50
TOLERANCE = 1e-4
RUNS = 50


# Here: the environment.


def environment(folder):
    """Returns the Python of a virtual environment with the extra `lce` in it."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "done"
    if not done.exists():
        print("Installing ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[lce]"]
        subprocess.run(install, check=True)
        done.touch()
    return python


# There: networks, files, table.


def resnet(depth, scaled):
    """A residual network; with weights of ±1 (StoMPP's) or ±scale."""
    import keras_sq
    from keras_sq import models

    model = models.get(f"resnet{depth}_hard_tanh", (32, 32, 3), 10)
    if not scaled:
        return keras_sq.presets.stompp().quantize_model(model, seed=0)
    return keras_sq.quantize_model(model, "binary", input_quantizer="binary", seed=0)


def vgg(padding, strides):
    """A plain network; sizes shrink by strides or by pooling."""
    import keras
    from keras import layers

    import keras_sq

    x = image = keras.Input((32, 32, 3), name="image")
    for number, filters in enumerate((64, 64, 128, 128)):
        step = strides if number % 2 else 1
        x = layers.Conv2D(
            filters, 3, strides=step, padding=padding, use_bias=False, name=f"c{number}"
        )(x)
        if number % 2 and strides == 1:
            x = layers.MaxPooling2D()(x)
        x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, name="logits")(x))
    return keras_sq.quantize_model(model, "binary", input_quantizer="binary", seed=0)


def mixed():
    """Whatever may stand beside binary convolutions; two inputs and outputs."""
    import keras
    from keras import layers

    import keras_sq

    image, more = keras.Input((16, 16, 3), name="image"), keras.Input((7,), name="more")

    def normal(x):
        return layers.BatchNormalization()(x)

    x = normal(layers.Conv2D(20, 3, name="first")(image))
    wide = layers.Conv2D(33, 3, padding="same", name="wide")(x)
    x = normal(wide + layers.Conv2D(33, 1, name="narrow")(x))
    x = normal(layers.Conv2D(32, 3, dilation_rate=2, name="dilated")(x))
    x = normal(layers.Conv2D(32, 3, groups=4, padding="same", name="grouped")(x))
    x = normal(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    x = normal(layers.SeparableConv2D(24, 2, name="separable")(x))
    shared = layers.Conv2D(24, 1, use_bias=False, name="shared")
    x = normal(shared(normal(shared(x))))
    x = normal(layers.Conv2DTranspose(16, 2, strides=2, name="transposed")(x))
    x = normal(layers.Conv2D(24, 3, name="two_bits")(x))
    x = normal(layers.Conv2D(24, 3, name="ternary")(x))
    x = layers.Concatenate()([layers.Flatten()(x), more])
    x = layers.Dense(64, name="dense")(x)
    outputs = {"features": x, "logits": layers.Dense(10, name="last")(x)}
    return keras_sq.quantize_model(
        keras.Model([image, more], outputs),
        "binary",
        input_quantizer="binary",
        skip=["first", "last"],
        overrides={
            "two_bits": {"input_quantizer": "lq-2"},
            "ternary": {"kernel_quantizer": "ternary"},
        },
        seed=0,
    )


def networks():
    """Returns what is exported, by name."""
    return {
        "ResNet-8, ±1 (StoMPP)": lambda: resnet(8, False),
        "ResNet-8, ±scale": lambda: resnet(8, True),
        "ResNet-20, ±1 (StoMPP)": lambda: resnet(20, False),
        "VGG, valid, pooling": lambda: vgg("valid", 1),
        "VGG, same, pooling": lambda: vgg("same", 1),
        "VGG, same, strides": lambda: vgg("same", 2),
        "mixed": mixed,
    }


def inputs(model, count, seed):
    """Returns random inputs by name."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return {
        x.name: generator.normal(size=(count, *x.shape[1:])).astype("float32")
        for x in model.inputs
    }


def called(model, arrays, training):
    """Returns the outputs by the names that a file has."""
    import keras
    import numpy as np

    single = len(arrays) == 1
    outputs = model(
        next(iter(arrays.values())) if single else arrays, training=training
    )
    if not isinstance(outputs, dict):
        outputs = {"output_0": outputs}
    return {k: np.array(keras.ops.convert_to_numpy(v)) for k, v in outputs.items()}


def normalize(model):
    """Gives all batch normalizations the statistics of a batch; not alike factors."""
    import keras
    import numpy as np

    import keras_sq

    keras_sq.set_ratio(model, 1.0)
    generator = np.random.default_rng(0)
    normalizations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in normalizations:
        layer.momentum = 0.0
        size = layer.gamma.shape
        sign = generator.choice([-1.0, 1.0], size)
        layer.gamma.assign(sign * generator.uniform(0.5, 1.5, size))
        layer.beta.assign(generator.normal(size=size) * 0.3)
    called(model, inputs(model, 64, 1), True)


def milliseconds(content, arrays, names, xnnpack):
    """Returns the median time of an image."""
    import larq_compute_engine

    interpreter = larq_compute_engine.testing.Interpreter(
        content, num_threads=1, use_xnnpack=xnnpack
    )
    first = [arrays[name][:1] for name in names]
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        interpreter.predict(first)
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[RUNS // 2]


def fixed(model):
    """Returns the model for one example at a time, as target "lce" makes it."""
    import keras

    same = {
        x.name: keras.Input(batch_shape=(1, *x.shape[1:]), name=x.name)
        for x in model.inputs
    }
    single = len(same) == 1
    return keras.Model(same, model(next(iter(same.values())) if single else same))


def measure(name, build, folder):
    """Returns a row of the table, and the report."""
    import keras
    import numpy as np

    import keras_sq
    from keras_sq.export.lce.runtime import LarqRunner
    from keras_sq.export.micro.signature import signature_names
    from keras_sq.export.tflite.flatbuffer import TFLiteFile
    from keras_sq.export.verification import differences

    keras.utils.set_random_seed(0)
    model = build()
    normalize(model)
    paths, reports = {}, {}
    for target in ("lce", "small", "float"):
        paths[target] = folder / f"{target}.tflite"
        exported = model if target == "lce" else fixed(model)
        reports[target] = keras_sq.export(
            exported,
            paths[target],
            target=target,
            representative_data=inputs(model, 32, 2),
            allow_untrained=True,
        )
    contents = {target: path.read_bytes() for target, path in paths.items()}
    arrays = inputs(model, IMAGES, 3)
    runner = LarqRunner(contents["lce"])
    agree = []
    for number in range(IMAGES):
        one = {k: v[number : number + 1] for k, v in arrays.items()}
        agree += differences.agreeing(
            runner(one), called(model, one, False), 1, TOLERANCE
        )
    names = {k: signature_names(TFLiteFile(v))[0] for k, v in contents.items()}
    times = [
        milliseconds(contents[target], arrays, names[target], xnnpack)
        for target, xnnpack in (("float", True), ("float", False), ("lce", False))
    ]
    share = float(np.mean(agree))
    bits = sum(x.weights for x in reports["lce"].kernels if x.stored_as[:5] == "1-bit")
    row = [
        name,
        f"{bits / max(reports['lce'].quantized_weights, 1):.0%}",
        *(f"{len(contents[x]) / 1000:.1f} kB" for x in ("float", "small", "lce")),
        f"{100 * share:.0f} %",
        *(f"{value:.2f}" for value in times),
    ]
    return row, share, reports["lce"]


def run(verbose):
    """Prints the table; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from keras_sq.export import ExportError

    tf.get_logger().setLevel("ERROR")

    rows = [
        ["network", "on bits", "float", "small", "lce", "agrees"]
        + ["ms float, XNNPACK", "ms float", "ms lce"]
    ]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in networks().items():
            try:
                row, share, report = measure(name, build, pathlib.Path(folder))
            except ExportError as error:
                failed.append(f"{name}: {error}")
                continue
            rows.append(row)
            if share < 0.5:
                failed.append(f"{name}: agrees on {share:.0%} of the images only")
            if verbose:
                print(f"\n{name}\n{report}\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"\nOne thread of {platform.machine()}; {versions()}")
    for reason in failed:
        print(f"\nFailed: {reason}")
    return 1 if failed else 0


def versions():
    """Returns the versions of what was used."""
    from importlib import metadata

    names = ("larq-compute-engine", "tensorflow", "keras", "numpy")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", help="Folder to keep; else a temporary one.")
    parser.add_argument("--verbose", action="store_true", help="Print the reports.")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(arguments.verbose)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "environment"
        if arguments.environment:
            folder = pathlib.Path(arguments.environment).expanduser().resolve()
        command = [environment(folder), __file__, "--run"]
        command += ["--verbose"] if arguments.verbose else []
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
