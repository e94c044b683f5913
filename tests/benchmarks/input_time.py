r"""Times how long a batch takes to draw against a training step.

    python tests/benchmarks/input_time.py                    # both
    python tests/benchmarks/input_time.py --cases=resnet20   # as in the README
    python tests/benchmarks/input_time.py --cases=resnet18 --batch_size=32 --steps=5

`resnet20` trains on 50,000 random images of CIFAR-10's size, from memory, mirrored
and shifted; `resnet18` on generated JPEG files of 500 x 375 pixels, decoded, cropped
at random to 224 x 224 and mirrored. Printed are medians and their ratio:

- draw: the time between two batches when nothing else is done;
- step: a training step on one batch that is there already;
- both: a training step in `fit`, with the batches drawn meanwhile.

On a machine without an accelerator, drawing and training share its cores, so `both`
is at most the sum. With one, training waits for data where draw exceeds step.
"""

import contextlib
import io
import os
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags, logging

from keras_sq import datasets, models
from keras_sq.datasets.batches import Memory

CASES = flags.DEFINE_list("cases", ["resnet20", "resnet18"], "resnet20, resnet18")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Examples a step.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=3)
IMAGES = flags.DEFINE_integer("images", 512, "Generated files' images.")
XLA = flags.DEFINE_bool("xla", False, "Compile the step by XLA.")


class Generated(tfds.core.GeneratorBasedBuilder):
    """Photograph-like noise: as many details at every scale."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, IMAGES.value),
            "validation": self._generate_examples(IMAGES.value, 8),
            "test": self._generate_examples(IMAGES.value + 8, 8),
        }

    def _generate_examples(self, start, count):
        for number in range(start, start + count):
            random = np.random.default_rng(number)
            image = np.zeros((384, 512, 3))
            for scale in (1, 4, 16, 64):
                noise = random.normal(size=(384 // scale, 512 // scale, 3))
                image += 4 * scale**0.5 * np.kron(noise, np.ones((scale, scale, 1)))
            image = np.clip(image[:375, :500] + 128, 0, 255).astype(np.uint8)
            yield number, {"image": image, "label": number % 10}


def from_memory() -> datasets.Dataset:
    """Returns random images of CIFAR-10's size and number."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    mean, std = (127.5,) * 3, (73.9,) * 3
    with tf.device("CPU:0"):
        memory = Memory(
            images=tf.constant(images),
            labels=tf.constant(random.integers(0, 10, 50_000), tf.int32),
            mean=mean,
            std=std,
            augment=True,
            mirror=True,
        )
    return datasets.Dataset(
        name="random",
        input_shape=(32, 32, 3),
        num_classes=10,
        sizes={"train": 50_000},
        batch_size=BATCH_SIZE.value,
        mean=mean,
        std=std,
        validation=None,
        test=None,
        _source=memory,
        _seed=0,
    )


def from_files(folder: str) -> datasets.Dataset:
    """Returns generated images, read from files."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=8)
    with contextlib.redirect_stdout(io.StringIO()):
        Generated(data_dir=folder).download_and_prepare(download_config=config)
    return datasets.load(
        "generated", data_dir=folder, batch_size=BATCH_SIZE.value, augment=True
    )


def times(iterator, step=None) -> np.ndarray:
    """Returns the seconds of each step; the first ones, which warm up, are left out."""
    seconds = []
    for _ in range(STEPS.value + 3):
        start = time.perf_counter()
        if step is None:
            next(iterator)
        else:
            float(step(iterator)["loss"])
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[3:])


def run(name: str, data: datasets.Dataset) -> None:
    """Times one case."""
    model = models.get(name, data.input_shape, data.num_classes, 1e-4)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=XLA.value,
    )
    model.make_train_function()
    epochs = 3 * (STEPS.value + 20) // data.steps_per_epoch + 2
    alone = times(iter(data.train(epochs=epochs)))
    batch = next(iter(data.train()))
    held = tf.data.Dataset.from_tensors(batch).repeat()
    step = times(iter(held), model.train_function)
    both = times(iter(data.train(epochs=epochs)), model.train_function)
    draw, step, both = (1e3 * float(np.median(x)) for x in (alone, step, both))
    print(
        f"{name:9} {data.held_in:7} {BATCH_SIZE.value:5} {draw:8.1f} {step:8.1f} "
        f"{both:8.1f} {100 * draw / step:11.1f} %",
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TFDS says what it writes.
    devices = [device.name for device in tf.config.list_physical_devices("GPU")]
    print(
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} "
        f"cores, accelerators: {', '.join(devices) or 'none'}; milliseconds, median of "
        f"{STEPS.value}"
    )
    print("network   from    batch     draw     step     both   draw / step")
    for name in CASES.value:
        if name == "resnet20":
            run(name, from_memory())
        elif name == "resnet18":
            with tempfile.TemporaryDirectory() as folder:
                run(name, from_files(folder))
        else:
            raise app.UsageError(f"Unknown case {name!r}; known: resnet20, resnet18.")


if __name__ == "__main__":
    sys.exit(app.run(main))
