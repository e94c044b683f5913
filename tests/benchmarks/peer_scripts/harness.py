"""What the peers' scripts share: the work, training, timing, files, the result.

Each script runs in its peer's environment as `python larq.py METHOD --work=FOLDER
--seed=N --result=FILE`, and calls `run`. Nothing of `keras_sq` is imported here. What
a peer cannot do is written down with its message, and the rest is done.
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import network  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
keras = importlib.import_module("tf_keras" if LEGACY else "keras")

FILE_BATCH = 100
"""Images that a file takes at a time; a divisor of CIFAR-10's test split."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The same for all peers; made by `peers.py`.

    Attributes:
        settings: Batch size, epochs, learning rate, pairs of steps to time, ...
        images: Of training, uint8 `(epochs * steps * batch, height, width, channels)`,
            in the order in which they are seen.
        labels: Of these.
        test_images: uint8.
        test_labels: Of these.
        mean: Per channel, in pixel values.
        std: Likewise.
        start: Weights that trainings begin with.
        trained: Weights of the float network that was trained on from them.
        seed: Of the peer's own draws.
    """

    settings: dict
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    start: dict
    trained: dict
    seed: int

    @property
    def input_shape(self):
        """Of one image."""
        return self.images.shape[1:]

    @property
    def classes(self):
        """Number of logits."""
        return int(self.test_labels.max()) + 1

    @property
    def steps(self):
        """Of the whole training."""
        return len(self.images) // self.settings["batch_size"]

    def standardized(self, images):
        """Returns float32 images as the network takes them."""
        return ((images - self.mean) / self.std).astype("float32")

    def batches(self):
        """Returns the batches of the whole training."""
        data = tf.data.Dataset.from_tensor_slices((self.images, self.labels))

        def scale(images, labels):
            return (tf.cast(images, tf.float32) - self.mean) / self.std, labels

        return data.batch(self.settings["batch_size"], drop_remainder=True).map(scale)

    def network(self, weights=None, **layers):
        """Returns the network, of the layers given, with the weights of the start."""
        model = network.resnet8(keras, self.input_shape, self.classes, **layers)
        network.set_start(model, self.start if weights is None else weights)
        return model


def read_work(folder, seed):
    """Reads what `peers.py` has prepared."""
    folder = pathlib.Path(folder)
    own = folder / f"seed-{seed}"
    arrays = {}
    for path in (folder / "test.npz", own / "train.npz"):
        with np.load(path) as content:
            arrays |= dict(content)
    for name in ("start", "trained"):
        path = own / f"{name}.npz"
        if not path.exists():
            arrays[name] = {}
            continue
        with np.load(path) as content:
            arrays[name] = dict(content)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Work(settings=settings, seed=seed, **arrays)


def compiled(model, work):
    """Returns the model, compiled as those of all peers: Adam, one cosine, no XLA."""
    rate = keras.optimizers.schedules.CosineDecay(
        work.settings["learning_rate"], work.steps
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train(model, work, callbacks=(), epochs=None):
    """Trains the network on the batches that all peers see."""
    epochs = epochs or work.settings["epochs"]
    compiled(model, work).fit(
        work.batches(),
        steps_per_epoch=work.steps // epochs,
        epochs=epochs,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
    )


def accuracy(model, work):
    """Returns the part of the test split that a network gets right."""
    images = work.test_images
    right = 0
    for begin in range(0, len(images), 500):
        part = slice(begin, begin + 500)
        logits = model(work.standardized(images[part]), training=False)
        found = np.argmax(np.asarray(logits), axis=-1)
        right += int(np.sum(found == work.test_labels[part]))
    return right / len(images)


def step_ratio(model, work):
    """Times steps of a network and of the float one in turn.

    Returns:
        Quartiles of the ratio of CPU times, of the ratio of wall times, and the
        median CPU milliseconds of the float network.
    """
    batch = work.settings["batch_size"]
    x = work.standardized(work.images[:batch])
    y = work.labels[:batch].astype("int32")
    pair = compiled(work.network(), work), compiled(model, work)
    times = np.zeros((work.settings["pairs"] + 3, 2, 2))
    for row in times:
        for one, cell in zip(pair, row, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            one.train_on_batch(x, y)
            cell[:] = time.process_time() - cpu, time.perf_counter() - wall
    times = times[3:]  # The first ones compile.
    ratios = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75], axis=0)
    return {
        "step_cpu": ratios[:, 0].tolist(),
        "step_wall": ratios[:, 1].tolist(),
        "float_step_ms": float(np.median(times[:, 0, 0]) * 1e3),
    }


def file_accuracy(path, work):
    """Returns the part of the test images that a .tflite file gets right.

    Raises:
        ValueError: If the file does not run.
    """
    images, labels = work.test_images, work.test_labels
    batch = FILE_BATCH if len(images) % FILE_BATCH == 0 else 1
    interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    (given,), (made,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(given["index"], [batch, *work.input_shape])
    interpreter.allocate_tensors()
    right = 0
    for begin in range(0, len(images), batch):
        x = work.standardized(images[begin : begin + batch])
        if given["dtype"] != np.float32:
            scale, zero = given["quantization"]
            limits = np.iinfo(given["dtype"])
            x = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(given["index"], x.astype(given["dtype"]))
        interpreter.invoke()
        found = np.argmax(interpreter.get_tensor(made["index"]), axis=-1)
        right += int(np.sum(found == labels[begin : begin + batch]))
    return right / len(images)


def convert(model, path, **settings):
    """Writes a network as TensorFlow's converter does, with its settings."""
    if LEGACY:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        for name, value in settings.items():
            setattr(converter, name, value)
        path.write_bytes(converter.convert())
    else:
        model.export(str(path), format="litert", verbose=False, **settings)


def version(name):
    """Returns the version of a package, which need not have been installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.import_module(name).__version__


def message(error):
    """Returns what an error says, in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


@dataclasses.dataclass
class Peer:
    """What differs from peer to peer; a script fills it in.

    Attributes:
        packages: Names whose versions the result holds.
        make: `(work, method) -> model`, ready to compile or, if not trained, to use.
        write: `(model, path, method, work)`: writes the peer's own .tflite file.
        callbacks: `(method, work) -> list`, of the training.
        deployed: `(model, method, work) -> model`: what is left after the training.
        notes: `(model, path) -> str`: what should stand beside the result.
        trains: Whether it trains; else it works on the float network trained on.
        in_file: Whether its network is nowhere but in the file.
        tries: `{what: function of (work)}`: what is asked for besides, and told if it
            fails. Not for every method; `method -> dict`.
    """

    packages: tuple
    make: object
    write: object
    callbacks: object = lambda method, work: []
    deployed: object = lambda model, method, work: model
    notes: object = lambda model, path: ""
    trains: bool = True
    in_file: bool = False
    tries: object = lambda method: {}


class Recorder:
    """The result of one method, written anew after each part of the work."""

    def __init__(self, path, head):
        self.path = pathlib.Path(path)
        self.result = {**head, "could_not": {}, "seconds": {}}

    def part(self, name, function, *arguments):
        """Returns what a function returns; `None` and a note if it fails."""
        began = time.perf_counter()
        try:
            return function(*arguments)
        except Exception as error:  # Whatever a peer raises is a result.
            traceback.print_exc()
            self.result["could_not"][name] = message(error)
            return None
        finally:
            self.result["seconds"][name] = round(time.perf_counter() - began, 1)
            self.save()

    def finish(self):
        """Says in the file that the work is done; returns the exit status."""
        self.result["finished"] = True
        self.save()
        return 0

    def save(self):
        """Writes the file so that it is there as a whole or not at all."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.result, indent=2), encoding="utf-8")
        os.replace(unfinished, self.path)


def run(peer, arguments=None):
    """Does the work of one method of a peer, and writes its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("--work", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--result", required=True)
    given = parser.parse_args(arguments)
    work = read_work(given.work, given.seed)
    method = given.method
    keras.utils.set_random_seed(work.seed)
    versions = {name: version(name) for name in peer.packages}
    recorder = Recorder(given.result, {"versions": versions, "trains": peer.trains})
    result = recorder.result
    for name, function in peer.tries(method).items():
        recorder.part(name, function, work)
    model = recorder.part("network", peer.make, work, method)
    if model is None:
        return recorder.finish()
    if peer.trains:
        # On a network of its own: the timed steps train it.
        timed = recorder.part("step time: network", peer.make, work, method)
        if timed is not None:
            result |= recorder.part("step time", step_ratio, timed, work) or {}
        around = peer.callbacks(method, work)
        recorder.part("training", train, model, work, around)
        if "training" in result["could_not"]:
            return recorder.finish()
    model = recorder.part("deployed network", peer.deployed, model, method, work)
    if not peer.in_file and model is not None:
        result["accuracy"] = recorder.part("accuracy", accuracy, model, work)
    path = pathlib.Path(given.result).with_suffix(".tflite").absolute()
    recorder.part("file", peer.write, model, path, method, work)
    result["notes"] = recorder.part("notes", peer.notes, model, path)
    if path.exists():
        result["file_bytes"] = path.stat().st_size
        found = recorder.part("running the file", file_accuracy, path, work)
        result["file_accuracy"] = found
        if peer.in_file:
            result["accuracy"] = found
    return recorder.finish()


def start(peer):
    """Runs a script, as a command."""
    sys.exit(run(peer))
