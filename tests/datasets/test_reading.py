"""Data sets that are read from their files, and those whose names are known."""

import functools
import hashlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tiny_datasets import labelled

from keras_sq import datasets
from keras_sq.datasets import images, loading, settings, sound, streaming

TRAIN, VALIDATION = 60, 12


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Grey pictures of many sizes; three times its number is a picture's colour."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return labelled(
            self,
            tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, TRAIN),
            "validation": self._generate_examples(TRAIN, VALIDATION),
        }

    def _generate_examples(self, start, count):
        for number in range(start, start + count):
            shape = (20 + number, 30 + 2 * (number % 7), 3)
            image = np.full(shape, 3 * number, np.uint8)
            yield number, {"image": image, "label": number % 3}


class Small(Pictures):
    """Pictures of one size, which memory holds, if it may; 5 x 8 pixels."""

    def _info(self):
        return labelled(self, tfds.features.Image(shape=(5, 8, 3)))

    def _generate_examples(self, start, count):
        for number in range(start, start + count):
            random = np.random.default_rng(number)
            image = random.integers(1, 256, (5, 8, 3), np.uint8)
            yield number, {"image": image, "label": number % 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of prepared data, several files a split."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=4)
    for builder in (Pictures, Small):
        builder(data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.fixture(scope="module")
def load(data_dir):
    """Loads each data set once."""
    return functools.cache(
        functools.partial(datasets.load, "pictures", data_dir=data_dir, image_size=9)
    )


def numbers(data, batches):
    """Returns the numbers of the pictures, in order."""
    middle = np.concatenate([x.numpy()[:, 4, 4, 0] for x, _ in batches])
    return np.round((middle * data.std[0] + data.mean[0]) / 3).astype(int).tolist()


def digest(batches):
    """Returns what stands for all bytes of some batches."""
    found = hashlib.sha256()
    for x, y in batches:
        found.update(x.numpy().tobytes() + y.numpy().tobytes())
    return found.hexdigest()


def test_data_are_in_several_files(data_dir):
    assert len(list((data_dir / "pictures" / "1.0.0").glob("*train*"))) == 4


def test_validation_stands_in_for_test_and_a_part_of_train_for_it(load):
    data = load(batch_size=6)
    assert data.held_in == "files"
    assert data.input_shape == (9, 9, 3)
    assert data.sizes == {"train": 54, "validation": 6, "test": VALIDATION}
    train, validation = numbers(data, data.train()), numbers(data, data.validation)
    assert sorted(train + validation) == list(range(TRAIN))
    assert sorted(numbers(data, data.test)) == list(range(TRAIN, TRAIN + VALIDATION))
    half = load(batch_size=6, seed=1, validation_fraction=0.5)
    assert half.sizes["validation"] == 30
    assert numbers(half, half.validation)[:6] == validation


def test_labels_belong_to_their_images(load):
    data = load(batch_size=6, augment=True)
    for pipeline in (data.train(), data.validation, data.test):
        for x, y in pipeline:
            found = [number % 3 for number in numbers(data, [(x, y)])]
            assert found == y.numpy().tolist()


@pytest.mark.parametrize(("augment", "crop"), [(False, "side"), (True, "area")])
def test_order_depends_on_seed_and_epoch_only(load, augment, crop):
    data = load(batch_size=8, augment=augment, crop=crop).with_seed(3)
    steps = data.steps_per_epoch
    assert data.train(2, 4).cardinality() == 2 * steps
    keras.utils.set_random_seed(1)
    whole = list(data.train(epochs=2))
    assert len(whole) == 2 * steps
    # Whatever else the process draws from.
    keras.utils.set_random_seed(2)
    tf.random.uniform((3,))
    assert digest(data.train(1, 2)) == digest(whole[steps:])
    others = {digest(whole[:steps]), digest(whole[steps:])}
    assert len(others | {digest(data.with_seed(4).train())}) == 3


@pytest.mark.slow
def test_another_process_with_deterministic_operations_sees_the_same(load, data_dir):
    code = """
import sys
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../support"]
import test_reading as tests
data = tests.datasets.load(
    "pictures", data_dir=sys.argv[2], image_size=9, batch_size=8, augment=True, seed=1
)
print(tests.digest(data.train(1, 3)))
"""
    tests = os.path.dirname(__file__)
    command = [sys.executable, "-c", code, tests, str(data_dir)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    expected = digest(load(batch_size=8, augment=True).with_seed(1).train(1, 3))
    assert found.stdout.strip() == expected


def test_seed_of_the_process_is_left_alone(load):
    keras.utils.set_random_seed(5)
    expected = tf.random.uniform((3,)).numpy()
    keras.utils.set_random_seed(5)
    next(iter(load(batch_size=8).train()))
    np.testing.assert_array_equal(tf.random.uniform((3,)), expected)


def test_every_epoch_has_every_example_once_and_files_are_shuffled(load, monkeypatch):
    monkeypatch.setattr(streaming, "LEAST_WINDOW", 1)
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 1)
    data = load(batch_size=54)
    every = list(data.train(0, 3))
    orders = [numbers(data, [batch]) for batch in every]
    assert all(len(set(order)) == 54 for order in orders)
    # Without a window, what differs is the order of files.
    assert len({tuple(order) for order in orders}) > 1
    monkeypatch.setattr(streaming, "LEAST_WINDOW", 1000)
    assert numbers(data, data.train()) not in orders


def test_limits_are_nested(load):
    chosen = []
    for limit in (10, 30):
        data = load(batch_size=10, limit=limit)
        assert data.sizes["train"] == limit
        chosen.append(set(numbers(data, data.train())))
    assert chosen[0] < chosen[1]
    assert not chosen[1] & set(numbers(data, data.validation))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 55}, "`limit` must be at most 54"),
        ({"batch_size": 55}, "at most the 54 training examples"),
        ({"batch_size": 11, "limit": 10}, "at most the 10 training examples"),
    ],
)
def test_bad_argument_raises(load, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_no_epoch_is_no_batch(load):
    data = load(batch_size=8)
    assert data.train(3, 3).cardinality() == 0
    assert not list(data.train(3, 3))
    assert data.train(3, 3).element_spec == data.train(3, 4).element_spec


def test_statistics_are_those_of_the_training_images(load):
    data = load(batch_size=54)
    (x, _), *rest = data.train()
    assert not rest
    np.testing.assert_allclose(np.mean(x, axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.std(x, axis=(0, 1, 2)), 1.0, atol=1e-4)


def test_images_of_many_sizes_get_a_usual_one(data_dir):
    data = datasets.load("pictures", data_dir=data_dir, batch_size=2, limit=2)
    assert data.input_shape == (224, 224, 3)


# The same images from memory and from files.


def test_what_is_too_large_for_memory_comes_from_files(data_dir, monkeypatch):
    def load(**options):
        return datasets.load("small", data_dir=data_dir, batch_size=12, **options)

    memory = load()
    assert memory.held_in == "memory"
    size = (TRAIN + VALIDATION) * 5 * 8 * 3
    monkeypatch.setattr(loading, "MEMORY_LIMIT", size)
    assert load().held_in == "memory"
    monkeypatch.setattr(loading, "MEMORY_LIMIT", size - 1)
    files = load()
    assert files.held_in == "files"
    assert files.input_shape == memory.input_shape == (5, 8, 3)

    def pixels(data, batches):
        x = np.concatenate([x.numpy() for x, _ in batches])
        x = np.round(x * data.std + data.mean).astype(int).reshape(len(x), -1)
        return x[np.lexsort(x.T)]

    everything = [
        np.concatenate([pixels(x, x.train()), pixels(x, x.validation)])
        for x in (memory, files)
    ]
    everything = [x[np.lexsort(x.T)] for x in everything]
    # 54 training images, of which the last six fill no batch.
    assert len(everything[0]) == len(everything[1]) == 48 + 6
    np.testing.assert_array_equal(
        pixels(files, files.test), pixels(memory, memory.test)
    )
    x = np.concatenate([x.numpy() for x, _ in files.test])
    assert x.dtype == np.float32


def test_shifted_images_from_files_are_those_from_memory(data_dir, monkeypatch):
    """Each is one of 9 x 9 shifts of its original, mirrored or not."""
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 1)
    load = functools.partial(datasets.load, "small", data_dir=data_dir, batch_size=54)
    plain, shifted = load(), load(augment=True)
    # Without crops, the order is the same.
    (x, labels), (y, same) = next(iter(plain.train())), next(iter(shifted.train()))
    np.testing.assert_array_equal(labels, same)
    seen = set()
    for original, found in zip(x.numpy(), y.numpy(), strict=True):
        padded = np.pad(original, [(4, 4), (4, 4), (0, 0)])
        matches = [
            (top, left, step)
            for top in range(9)
            for left in range(9)
            for step in (1, -1)
            if np.allclose(
                padded[top : top + 5, left : left + 8][:, ::step], found, atol=1e-4
            )
        ]
        assert matches
        seen.add(matches[0])
    assert {step for *_, step in seen} == {1, -1}
    assert len({top for top, *_ in seen}) > 5


def test_images_are_resized_if_asked(data_dir):
    data = datasets.load("small", data_dir=data_dir, batch_size=4, image_size=6)
    assert (data.held_in, data.input_shape) == ("files", (6, 6, 3))
    assert next(iter(data.train()))[0].shape == (4, 6, 6, 3)


# Crops.


@pytest.mark.parametrize("shape", [(256, 300), (300, 256), (7, 5), (1, 1)])
def test_central_box_is_the_middle_of_the_short_side(shape):
    top, left, height, width = images.central_box(tf.constant([*shape, 3])).numpy()
    side = max(round(0.875 * min(shape)), 1)
    assert height == width == side
    assert (top, left) == ((shape[0] - side) // 2, (shape[1] - side) // 2)


def boxes(shape, crop, count):
    draw = tf.function(
        lambda i: images.random_box(tf.constant(shape), crop, tf.stack([7, i]))
    )
    return np.array([draw(tf.constant(i)).numpy() for i in range(count)])


def test_random_boxes_reach_every_place_evenly():
    found = boxes((16, 24, 3), "side", 2000)
    assert set(map(tuple, found[:, 2:])) == {(14, 14)}
    cells = np.zeros((3, 11))
    np.add.at(cells, (found[:, 0], found[:, 1]), 1)
    expected = 2000 / 33
    # 32 degrees of freedom: 0.999 quantile.
    assert ((cells - expected) ** 2 / expected).sum() < 62.5


def test_boxes_by_area_are_inside_and_of_every_size():
    found = boxes((200, 300, 3), "area", 400)
    top, left, height, width = found.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 200).all() and (left + width <= 300).all()
    area = height * width / (200 * 300)
    assert area.min() >= 0.07 and area.max() > 0.8
    assert np.percentile(area, 25) < 0.35
    aspect = width / height
    assert aspect.min() >= 0.72 and aspect.max() <= 1.38


def encoded(image, kind):
    if kind == "png":
        return tf.io.encode_png(image)
    return tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_crop_is_that_part_of_the_image(kind):
    ramp = np.add.outer(4 * np.arange(30), 3 * np.arange(40))
    image = np.stack([ramp, ramp // 2, 255 - ramp], axis=-1).astype(np.uint8)
    content = encoded(image, kind)
    assert images.encoded_shape(content, 3).numpy().tolist() == [30, 40, 3]
    box = tf.constant([3, 5, 20, 24])
    found = images.cropped(content, box, (20, 24, 3))
    expected = image[3:23, 5:29].astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=0 if kind == "png" else 6)
    half = images.cropped(content, box, (10, 12, 3))
    means = expected.reshape(10, 2, 12, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(half, means, atol=0.01 if kind == "png" else 6)


def test_images_are_mirrored_half_of_the_time():
    ramp = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], 40, axis=0)
    content = encoded(np.repeat(ramp, 3, axis=2), "png")
    source = type("Source", (), {"shape": (None, None, 3)})()
    view = streaming.View(source, (8, 8), "side")
    draw = tf.function(
        lambda i, mirror: view.random(
            content, tf.stack([tf.constant(3, tf.int64), 2 * i]), mirror, (0.0,) * 3
        )
    )
    rising = [
        float(image[0, -1, 0] - image[0, 0, 0]) > 0
        for image in (draw(tf.constant(i, tf.int64), True) for i in range(400))
    ]
    assert 160 < sum(rising) < 240  # Four standard deviations.
    assert (
        float(draw(tf.constant(rising.index(False), tf.int64), False)[0, -1, 0]) > 100
    )


# Names that are known.


def describe(name, folder, **sizes):
    """Writes what TFDS says of a prepared data set; there are no examples."""
    builder = tfds.builder(name, data_dir=folder)
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        filetype_suffix="tfrecord",
    )
    parts = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[size],
            num_bytes=100 * size,
            filename_template=template.replace(split=split),
        )
        for split, size in sizes.items()
    ]
    builder.info.set_splits(tfds.core.splits.SplitDict(parts))
    os.makedirs(builder.data_dir, exist_ok=True)
    builder.info.write_to_directory(builder.data_dir)


@pytest.mark.parametrize(
    ("name", "splits", "shape", "num_classes"),
    [
        ("cifar10", ("train", "test"), (32, 32, 3), 10),
        ("cifar100", ("train", "test"), (32, 32, 3), 100),
        ("fashion_mnist", ("train", "test"), (28, 28, 1), 10),
        ("mnist", ("train", "test"), (28, 28, 1), 10),
        ("svhn_cropped", ("train", "test", "extra"), (32, 32, 3), 10),
        ("imagenet2012", ("train", "validation", "test"), (224, 224, 3), 1000),
        ("imagenette/160px", ("train", "validation"), (224, 224, 3), 10),
        ("speech_commands", ("train", "validation", "test"), (49, 10, 1), 12),
        ("food101", ("train", "validation"), (224, 224, 3), 101),
    ],
)
def test_known_names_load(name, splits, shape, num_classes, tmp_path):
    size = 16
    describe(name, tmp_path, **dict.fromkeys(splits, size))
    with tfds.testing.mock_data(num_examples=size, data_dir=tmp_path):
        data = datasets.load(name, data_dir=tmp_path, batch_size=4, augment=None)
        assert (data.input_shape, data.num_classes) == (shape, num_classes)
        for pipeline in (data.train(epochs=2), data.validation, data.test):
            x, y = next(iter(pipeline))
            assert x.shape[1:] == shape and x.dtype == tf.float32
            assert np.isfinite(x).all()
            assert y.dtype == tf.int32
            assert 0 <= int(tf.reduce_min(y)) <= int(tf.reduce_max(y)) < num_classes
    held_out = name not in ("speech_commands",)
    assert data.sizes["test"] == size
    assert data.sizes["train"] == size - (data.sizes["validation"] if held_out else 0)


def test_imagenet_is_reported_on_its_validation_split(tmp_path):
    describe("imagenet2012", tmp_path, train=200, validation=20, test=30)
    with tfds.testing.mock_data(num_examples=20, data_dir=tmp_path):
        data = datasets.load("imagenet2012", data_dir=tmp_path, batch_size=8)
    assert data.sizes == {"train": 196, "validation": 4, "test": 20}
    assert data.mean == (123.675, 116.28, 103.53)
    assert data.held_in == "files"


def test_settings_are_found_by_the_name_alone():
    assert settings.settings_of("imagenet2012:5.1.0").image_size == 224
    assert not settings.settings_of("svhn_cropped/3.1.0").mirrored
    assert datasets.is_augmented("cifar100/3.0.2")
    assert not datasets.is_augmented("no_such_set")


@pytest.mark.parametrize(("name", "mirrored"), [("digits", False), ("small", True)])
def test_digits_are_not_mirrored(name, mirrored, data_dir):
    load = functools.partial(datasets.load, name, data_dir=data_dir, batch_size=50)
    (x, labels), (y, same) = (
        next(iter(load(augment=augment).train())) for augment in (False, True)
    )
    np.testing.assert_array_equal(labels, same)
    directions = set()
    for original, found in zip(x.numpy(), y.numpy(), strict=True):
        padded = np.pad(original, [(4, 4), (4, 4), (0, 0)])
        height, width, _ = original.shape
        directions |= {
            step
            for top in range(9)
            for left in range(9)
            for step in (1, -1)
            if np.array_equal(
                padded[top : top + height, left : left + width][:, ::step], found
            )
            and not np.array_equal(found, found[:, ::-1])
        }
    assert directions == ({1, -1} if mirrored else {1})


# Sound.


def reference_features(samples):
    """The steps of the reference, in NumPy."""
    clip = np.zeros(16000)
    samples = np.asarray(samples, np.float64)[:16000]
    clip[: len(samples)] = samples / max(samples.max(initial=1), 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    frames = [clip[320 * i : 320 * i + 480] * window for i in range(49)]
    spectrum = np.abs(np.fft.rfft(frames, 512))

    def mel(frequency):
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    edges = np.linspace(mel(20.0), mel(4000.0), 42)
    bins = mel(np.linspace(0.0, 8000.0, 257))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    logarithm = np.log(spectrum @ weights + 1e-6)
    angles = np.pi / 40 * np.outer(np.arange(40) + 0.5, np.arange(10))
    return 2 * logarithm @ np.cos(angles) / np.sqrt(80)


@pytest.mark.parametrize("length", [0, 500, 9000, 16000, 20000])
def test_features_are_those_of_the_reference(length):
    random = np.random.default_rng(length)
    time = np.arange(length)
    samples = 9000 * np.sin(0.2 * time) + random.normal(0, 500, length)
    samples = samples.astype(np.int16)
    found = sound.mfcc(samples)
    assert found.shape == sound.SHAPE == (49, 10, 1)
    expected = reference_features(samples)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-3, atol=2e-2)


def test_features_are_standardized_with_one_mean(tmp_path):
    describe("speech_commands", tmp_path, train=12, validation=12, test=12)
    with tfds.testing.mock_data(num_examples=12, data_dir=tmp_path):
        data = datasets.load("speech_commands", data_dir=tmp_path, batch_size=12)
        assert data.held_in == "memory"
        assert len(data.mean) == 1
        x, _ = next(iter(data.train()))
    assert abs(float(np.mean(x))) < 1e-4
    assert abs(float(np.std(x)) - 1) < 1e-4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("speech_commands", {"augment": True}, "`augment` and `image_size` are for im"),
        ("speech_commands", {"image_size": 8}, "`augment` and `image_size` are for im"),
        ("spoken_digit", {}, "must have sounds of integers at 16000 Hz. It has int64"),
    ],
)
def test_sound_of_another_kind_raises(name, arguments, message, tmp_path):
    describe(name, tmp_path, train=4, test=4)
    with pytest.raises(ValueError, match=message):
        datasets.load(name, data_dir=tmp_path, **arguments)
