"""Makes what all peers work on, once a seed; runs where `keras_sq` is installed.

The images as uint8, those of training augmented and in the order of the training, so
that no peer has another's luck; a float network trained at first, which all begin with;
and that network trained on like the peers, which they are compared with, and which
those that quantize afterwards are given.
"""

import argparse
import json
import os
import pathlib

import harness
import network
import numpy as np

from keras_sq import datasets, models


def pixels(images, data):
    """Returns standardized images as uint8; what was shifted in is the mean."""
    values = np.rint(images * np.array(data.std) + np.array(data.mean))
    return np.clip(values, 0, 255).astype("uint8")


def arrays(batches, data):
    """Returns all images and labels of some batches."""
    pairs = [(pixels(x.numpy(), data), y.numpy()) for x, y in batches]
    images, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return images, labels.astype("int32")


def save(path, **content):
    """Writes a file so that it is there as a whole or not at all."""
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(unfinished, **content)
    os.replace(unfinished, path)


def load(settings, seed):
    """Returns the data set, augmented if the package's settings say so."""
    return datasets.load(
        settings["dataset"],
        data_dir=settings["data_dir"],
        batch_size=settings["batch_size"],
        seed=seed,
        augment=None,
        limit=settings["limit"],
    )


def main():
    """Makes the files of one seed, but those that are there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    folder = pathlib.Path(given.work)
    own = folder / f"seed-{given.seed}"
    own.mkdir(exist_ok=True)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    data = load(settings, given.seed)
    scale = {"mean": np.float32(data.mean), "std": np.float32(data.std)}
    if not (folder / "test.npz").exists():
        images, labels = arrays(data.test, data)
        save(folder / "test.npz", test_images=images, test_labels=labels, **scale)
    first, epochs = settings["start_epochs"], settings["epochs"]
    harness.keras.utils.set_random_seed(given.seed)
    if not (own / "start.npz").exists():
        model = models.get("resnet8", data.input_shape, data.num_classes)
        start = trained_float(given, settings, data, network.get_start(model), 0, first)
        save(own / "start.npz", **start)
    if not (own / "trained.npz").exists():
        with np.load(own / "start.npz") as content:
            start = dict(content)
        # Leaves its batches behind, which the peers read.
        last = first + epochs
        trained = trained_float(given, settings, data, start, first, last)
        save(own / "trained.npz", **trained)


def trained_float(given, settings, data, start, begin, end):
    """Returns the weights of a float network that was trained for some epochs."""
    own = pathlib.Path(given.work) / f"seed-{given.seed}"
    images, labels = arrays(data.train(begin, end), data)
    save(own / "train.npz", images=images, labels=labels)
    work = harness.read_work(given.work, given.seed)
    model = network.resnet8(harness.keras, work.input_shape, work.classes)
    network.set_start(model, start)
    harness.train(model, work, epochs=end - begin)
    return network.get_start(model)


if __name__ == "__main__":
    main()
