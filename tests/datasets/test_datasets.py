"""Data sets: what is read, what is held out, in which order it comes."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tiny_datasets import labelled

from keras_sq import datasets
from keras_sq.datasets import batches, loading
from keras_sq.datasets.images import mirror_and_shift

HEIGHT, WIDTH = 10, 12
TRAIN, TEST = 90, 20


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Colour images without a validation split; pixel (0, 0, 0) tells them apart."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        pictures = tfds.features.Image(shape=(HEIGHT, WIDTH, 3))
        return labelled(self, pictures, name="picture", label="kind")

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, TRAIN),
            "test": self._generate_examples(TRAIN, TEST),
        }

    def _generate_examples(self, start, count):
        for number in range(start, start + count):
            image = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3))
            image[0, 0, 0] = number
            yield number, {"picture": image.astype(np.uint8), "kind": number % 3}


class TrainOnly(TinyColours):
    """Has no test split."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 4)}


class NoPictures(tfds.core.GeneratorBasedBuilder):
    """Has numbers instead of images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        numbers = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return labelled(self, numbers, name="x")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"x": np.zeros(2, np.float32), "label": 0}


class Unlabelled(TinyColours):
    """Its test split has no labels."""

    def _generate_examples(self, start, count):
        for number, example in super()._generate_examples(start, count):
            yield number, example | ({"kind": -1} if start else {})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of prepared data."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    for builder in (TinyColours, TrainOnly, NoPictures, Unlabelled):
        builder(data_dir=folder).download_and_prepare()
    datasets.load("digits", data_dir=folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Makes every connection an error."""

    def refuse(*arguments):
        raise AssertionError(f"The network was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def identities(data, batches):
    """Returns the numbers of the images of TinyColours."""
    first = np.concatenate([images.numpy()[:, 0, 0, 0] for images, _ in batches])
    return np.round(first * data.std[0] + data.mean[0]).astype(int).tolist()


def assert_same_batches(left, right):
    """Asserts that two pipelines give the same, bit for bit."""
    pairs = list(zip(left, right, strict=True))
    assert pairs
    for (x, y), (other_x, other_y) in pairs:
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


def test_digits_are_the_file_in_the_package(data_dir, no_network):
    data = datasets.load("digits", data_dir=data_dir, batch_size=100)
    assert data.input_shape == (8, 8, 1)
    assert data.num_classes == 10
    assert data.sizes == {"train": 1197, "validation": 199, "test": 401}
    assert data.steps_per_epoch == 11
    package = pathlib.Path(datasets.__file__).parents[1]
    with np.load(package / "datasets/data/digits.npz") as file:
        expected = file["images"][file["split"] == 2]
        labels = file["labels"][file["split"] == 2]
    pixels = np.concatenate([images.numpy() for images, _ in data.test])
    pixels = np.round(pixels * data.std + data.mean)[..., 0]
    found = np.concatenate([labels.numpy() for _, labels in data.test])

    def as_sorted(images, labels):
        rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], 1)
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(as_sorted(pixels, found), as_sorted(expected, labels))


def test_digits_splits_are_stratified_and_disjoint():
    package = pathlib.Path(datasets.__file__).parents[1]
    with np.load(package / "datasets/data/digits.npz") as file:
        images, labels, split = file["images"], file["labels"], file["split"]
    assert images.shape == (1797, 8, 8)
    assert images.max() == 16
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    for number, share in enumerate((1197, 199, 401)):
        counts = np.bincount(labels[split == number], minlength=10)
        whole = np.bincount(labels, minlength=10)
        np.testing.assert_allclose(counts, whole * share / 1797, atol=1.0)


def test_training_data_is_standardized(data_dir):
    data = datasets.load("tiny_colours", data_dir=data_dir, batch_size=81)
    images = np.concatenate([images.numpy() for images, _ in data.train()])
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1.0, atol=1e-5)


def test_a_constant_channel_stays_zero():
    means, stds = loading._statistics(np.full((2, 3, 3, 1), 7, np.uint8))
    assert means == (7.0,)
    assert stds == (1.0,)


def test_validation_is_held_out_and_does_not_depend_on_the_seed(data_dir):
    parts = []
    for seed in (0, 1):
        data = datasets.load(
            "tiny_colours",
            data_dir=data_dir,
            batch_size=9,
            seed=seed,
            validation_fraction=0.2,
        )
        assert data.sizes == {"train": 72, "validation": 18, "test": TEST}
        validation = identities(data, data.validation)
        train = identities(data, data.train())
        assert sorted(train + validation) == list(range(TRAIN))
        assert identities(data, data.test) != train
        labels = np.concatenate([labels.numpy() for _, labels in data.validation])
        assert np.bincount(labels).tolist() == [6, 6, 6]
        parts.append((validation, train))
    assert parts[0][0] == parts[1][0]
    assert parts[0][1] != parts[1][1]


def test_stratified_part_leaves_something_of_every_class():
    labels = np.array([0] * 10 + [1] * 2 + [2])
    part = loading.stratified_part(labels, 0.1, 0)
    assert np.bincount(labels[part], minlength=3).tolist() == [1, 1, 0]
    part = loading.stratified_part(labels, 0.99, 0)
    assert np.bincount(labels[~part], minlength=3).tolist() == [1, 1, 1]


def test_labels_belong_to_their_images(data_dir):
    data = datasets.load("tiny_colours", data_dir=data_dir, batch_size=9)
    for pipeline in (data.train(), data.validation, data.test):
        for images, labels in pipeline:
            found = identities(data, [(images, labels)])
            assert [number % 3 for number in found] == labels.numpy().tolist()


@pytest.mark.parametrize("augment", [False, True])
def test_order_depends_on_seed_and_epoch_only(data_dir, augment):
    def load(seed):
        return datasets.load(
            "tiny_colours", data_dir=data_dir, batch_size=8, seed=seed, augment=augment
        )

    data = load(3)
    steps = data.steps_per_epoch
    assert data.train(2, 5).cardinality() == 3 * steps
    whole = list(data.train(epochs=4))
    assert_same_batches(whole[2 * steps :], load(3).train(2, 4))
    first, second = whole[:steps], whole[steps : 2 * steps]
    assert not np.array_equal(first[0][0], second[0][0])
    assert not np.array_equal(first[0][0], next(iter(load(4).train()))[0])
    # The same data under another seed are those that are loaded with it.
    assert_same_batches(list(load(4).train()), data.with_seed(4).train())


def test_every_epoch_is_a_permutation(data_dir):
    data = datasets.load("tiny_colours", data_dir=data_dir, batch_size=27)
    assert data.sizes["train"] == 81
    for epoch in range(3):
        found = identities(data, data.train(epoch, epoch + 1))
        assert len(set(found)) == 81


def test_limits_are_nested(data_dir):
    def chosen(limit):
        data = datasets.load(
            "tiny_colours", data_dir=data_dir, batch_size=10, limit=limit
        )
        assert data.sizes["train"] == limit
        return set(identities(data, data.train()))

    assert chosen(20) < chosen(40)


def test_mirror_and_shift_matches_numpy():
    random = np.random.default_rng(0)
    pictures = random.normal(size=(30, HEIGHT, WIDTH, 3)).astype(np.float32)
    mirrored = random.integers(0, 2, 30, dtype=np.int32)
    down = random.integers(0, 9, 30, dtype=np.int32)
    right = random.integers(0, 9, 30, dtype=np.int32)
    found = mirror_and_shift(tf.constant(pictures), mirrored, down, right)
    for index in range(30):
        padded = np.pad(pictures[index], [(4, 4), (4, 4), (0, 0)])
        top, left = down[index], right[index]
        expected = padded[top : top + HEIGHT, left : left + WIDTH]
        if mirrored[index]:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(found[index], expected)


def test_augmentation_uses_every_shift_and_both_sides():
    """9 x 9 shifts, mirrored or not: all drawn, none out of range, evenly."""
    image = np.zeros((2, 9, 9, 1), np.uint8)
    image[:, 4, 3] = 255
    data = datasets.Dataset(
        name="dot",
        input_shape=(9, 9, 1),
        num_classes=2,
        sizes={"train": 2},
        batch_size=2,
        mean=(0.0,),
        std=(1.0,),
        validation=None,
        test=None,
        _source=batches.Memory(
            images=tf.constant(image),
            labels=tf.constant([0, 1]),
            mean=(0.0,),
            std=(1.0,),
            augment=True,
            mirror=True,
        ),
        _seed=0,
    )
    draws = np.concatenate([images.numpy() for images, _ in data.train(epochs=1500)])
    rows, columns = np.nonzero(draws[..., 0].sum(0))
    assert sorted(set(rows)) == list(range(9))
    assert sorted(set(columns)) == list(range(9))
    counts = (draws[..., 0] > 0).sum(0)
    # Column 3 moved by -4 to 4, its mirror image (column 5) likewise.
    unmirrored = np.array([3 - 4 <= c <= 3 + 4 for c in range(9)], float)
    mirrored = np.array([5 - 4 <= c <= 5 + 4 for c in range(9)], float)
    expected = 3000 * (unmirrored + mirrored)[None, :] / (2 * 81) * np.ones((9, 1))
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 80 degrees of freedom (81 cells; the rest falls outside): 0.999 quantile.
    assert chi_square < 124.8


def test_other_datasets_are_not_fetched_unasked(tmp_path, no_network):
    folder = tmp_path / "nothing"
    with pytest.raises(FileNotFoundError, match="'cifar10' was not found in data_dir"):
        datasets.load("cifar10", data_dir=folder)
    with pytest.raises(
        FileNotFoundError, match="--download.*Without a network: .*copy"
    ):
        datasets.load("cifar10", data_dir=folder)
    assert not folder.exists()


def test_own_dataset_that_is_not_there_names_the_script_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="'spoken_words' was not") as found:
        datasets.load("spoken_words", data_dir=tmp_path)
    script = re.search(r"`python (\S+) --data_dir=FOLDER`", str(found.value))[1]
    assert (pathlib.Path(__file__).parents[2] / script).is_file()
    assert "--download" not in str(found.value)
    # Asked to fetch it, TFDS does not know it: no other name is proposed.
    with pytest.raises(ValueError, match=f"not known to TFDS. .*`python {script}"):
        datasets.load("spoken_words", data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("HTTPSConnectionPool: Max retries exceeded"),
        AssertionError("Manual directory does not exist"),
        RuntimeError("Not enough disk space"),
    ],
)
def test_failed_download_says_what_to_do_offline(error, tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match=r"'cifar10:3.0.2' could not be fetched") as found:
        datasets.load("cifar10:3.0.2", data_dir=tmp_path, download=True)
    message = str(found.value)
    assert str(error) in message
    assert "load('cifar10:3.0.2', data_dir='data')" in message
    assert "copy the folder `data/cifar10`" in message


def test_misspelled_name_is_told(tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match="Did you mean 'cifar10'?"):
        datasets.load("cifar_10", data_dir=tmp_path)
    with pytest.raises(ValueError, match="'nonesuch' is not known to TFDS"):
        datasets.load("nonesuch", data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "train_only"}, "no split 'test', only 'train'"),
        ({"name": "no_pictures"}, "not one of uint8 images, or sounds, with class"),
        ({"name": "unlabelled"}, "'unlabelled' has no labels in its split 'test'"),
        (
            {"name": "unlabelled", "image_size": 5},
            "'unlabelled' has no labels in its split 'test'",
        ),
        ({"image_size": 0}, "`image_size` must be at least 1"),
        ({"crop": "random"}, "`crop` must be one of 'side', 'area'"),
        ({"name": ""}, "must be the name of a data set"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 82}, "at most the 81 training examples"),
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"limit": 82}, "`limit` must be at most 81"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"validation_fraction": 1.2}, r"`validation_fraction` must be in \[0, 1\]"),
        ({"validation_fraction": 0.0}, "must be above 0 and below 1"),
    ],
)
def test_bad_argument_raises(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**{"name": "tiny_colours", "data_dir": data_dir, **arguments})


def test_no_epoch_is_no_batch(data_dir):
    data = datasets.load("tiny_colours", data_dir=data_dir, batch_size=8)
    assert data.held_in == "memory"
    assert data.train(3, 3).cardinality() == 0
    assert not list(data.train(3, 3))


def test_bad_epochs_raise(data_dir):
    data = datasets.load("tiny_colours", data_dir=data_dir, batch_size=8)
    with pytest.raises(ValueError, match="`epochs` must be at least 3"):
        data.train(3, 2)
    with pytest.raises(ValueError, match="`initial_epoch` must be at least 0"):
        data.train(-1, 2)


def test_data_dir_that_is_a_file_raises(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="could not be written to data_dir"):
        datasets.load("digits", data_dir=file)
    assert file.read_text() == ""


def test_default_folder_that_is_not_writable_falls_back(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(file))
    assert datasets.load("digits").sizes["train"] == 1197
    assert datasets.load("digits").sizes["train"] == 1197


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    datasets.load("digits")
    assert [path.name for path in tmp_path.iterdir()] == ["keras_sq_digits"]


def test_another_process_may_win_the_race(tmp_path, monkeypatch):
    rename = os.rename
    final = tmp_path / "keras_sq_digits" / "1.0.0"
    raced = []

    def overtaken(source, target):
        if pathlib.Path(target) == final and not raced:
            raced.append(target)
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    data = datasets.load("digits", data_dir=tmp_path)
    assert raced
    assert data.sizes["train"] == 1197
    assert [path.name for path in tmp_path.iterdir()] == ["keras_sq_digits"]


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    code = (
        "from keras_sq import datasets; import sys; "
        "print(datasets.load('digits', data_dir=sys.argv[1]).sizes['train'])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert outputs == ["1197"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["keras_sq_digits"]


def _stored(tmp_path, features, example):
    """Writes what somebody has in memory; nothing says what is what."""
    tensors = {key: np.stack([value] * 6) for key, value in example.items()}
    splits = {
        name: tf.data.Dataset.from_tensor_slices(tensors) for name in ("train", "test")
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mine",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=tmp_path,
    )


def test_features_are_found_where_the_data_set_does_not_name_them(tmp_path):
    features = {
        "shot": tfds.features.Image(shape=(4, 4, 3)),
        "by": tfds.features.Text(),
        "what": tfds.features.ClassLabel(num_classes=2),
    }
    example = {"shot": np.full((4, 4, 3), 9, np.uint8), "by": b"me", "what": 1}
    _stored(tmp_path, features, example)
    data = datasets.load("mine", data_dir=tmp_path, batch_size=2)
    assert data.input_shape == (4, 4, 3)
    images, labels = next(iter(data.test))
    assert images.shape == (2, 4, 4, 3)
    assert labels.numpy().tolist() == [1, 1]


def test_two_pictures_of_which_none_is_named_raise(tmp_path):
    picture = tfds.features.Image(shape=(4, 4, 3))
    features = {
        "left": picture,
        "right": picture,
        "what": tfds.features.ClassLabel(num_classes=2),
    }
    image = np.zeros((4, 4, 3), np.uint8)
    _stored(tmp_path, features, {"left": image, "right": image, "what": 0})
    with pytest.raises(ValueError, match="'mine' is not one of uint8 images"):
        datasets.load("mine", data_dir=tmp_path, batch_size=2)
