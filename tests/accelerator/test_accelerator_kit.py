"""The kit for trainings on a machine with a GPU: packed, unpacked, damaged, run.

The pieces are packed by the command, of a small data set in CIFAR-10's form. What
unpacks them runs where neither TensorFlow nor Keras nor Pillow is installed.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import types

import dividing
import numpy as np
import pictures
import pieces as kit_pieces
import pytest
import unpack
from hiding import TENSORFLOW, hide

ROOT = pathlib.Path(__file__).parents[2]
KIT = ROOT / "tests" / "benchmarks" / "accelerator"


pytestmark = pytest.mark.tensorflow  # TFDS writes and reads the data set.

IN_THE_KIT = ("PIL", "keras", "keras_sq", "namex", "optree", "rich")
"""Packages that the machine with the GPU lacks, and the kit brings."""

TRAIN, TEST = 300, 40
PACKED = 260
"""Training images: two batches of the row that is trained."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with a small data set of random images that TFDS takes for CIFAR-10."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    random = np.random.default_rng(0)
    splits = {}
    for split, number in (("train", TRAIN), ("test", TEST)):
        columns = {
            "id": [f"{split}_{i}" for i in range(number)],
            "image": random.integers(0, 256, (number, 32, 32, 3), np.uint8),
            "label": random.integers(0, 10, number),
        }
        splits[split] = tf.data.Dataset.from_tensor_slices(columns)
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="3.0.2",
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=folder,
    )
    return folder


def command(script, *arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, str(KIT / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_pack(*arguments):
    return command("pack.py", "--wheels=installed", *arguments)


@pytest.fixture(scope="module")
def packed(data_dir, tmp_path_factory):
    """The folder of the pieces: the code, and at least two others."""
    folder = tmp_path_factory.mktemp("pieces")
    flags = [f"--data_dir={data_dir}", f"--out={folder}", f"--images={PACKED}"]
    result = run_pack(*flags, "--piece_mib=12")
    assert result.returncode == 0, result.stderr
    assert f"{PACKED} + {TEST} images" in result.stdout
    return folder


@pytest.fixture
def pieces(packed, tmp_path):
    """A copy of the pieces, to take some away or damage them."""
    return pathlib.Path(shutil.copytree(packed, tmp_path / "pieces"))


def manifest_of(folder):
    return kit_pieces.Manifest.read(folder / kit_pieces.MANIFEST)


def run_go(tmp_path, pieces, *arguments, hidden=IN_THE_KIT, cwd=None):
    """Runs the command on a machine that has what JAX needs, and no GPU."""
    hiding = tmp_path / "hiding"
    hiding.mkdir(exist_ok=True)
    return command(
        "go.py",
        f"--pieces={pieces}",
        f"--folder={tmp_path / 'kit'}",
        *arguments,
        cwd=cwd,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=hide(hiding, TENSORFLOW + hidden, only_from="site"),
        XLA_FLAGS="--xla_backend_optimization_level=0",
    )


def one_line_of(result):
    (line,) = result.stderr.strip().splitlines()
    return line


# What is packed.


def test_every_transfer_stays_within_the_limit(packed):
    manifest = manifest_of(packed)
    assert [piece.name for piece in manifest.pieces][:2] == ["code.tar", "piece-1.tar"]
    assert len(manifest.transfers()) >= 2
    for transfer in manifest.transfers():
        assert sum(piece.bytes for piece in transfer) <= 12 * 2**20
    for piece in manifest.pieces:
        assert (packed / piece.name).stat().st_size == piece.bytes
        with tarfile.open(packed / piece.name) as archive:
            assert tuple(archive.getnames()) == piece.files


def test_code_is_packed_anew_without_the_data(pieces, tmp_path):
    before = manifest_of(pieces)
    (pieces / "code.tar").write_bytes(b"older")
    for piece in before.pieces[1:]:
        (pieces / piece.name).unlink()
    hidden = {"PYTHONPATH": hide(tmp_path, (*TENSORFLOW, "keras"))}
    result = command("pack.py", "--code_only", f"--out={pieces}", **hidden)
    assert result.returncode == 0, result.stderr
    assert manifest_of(pieces) == before
    assert kit_pieces.checksum(pieces / "code.tar") == before.pieces[0].sha256
    result = command("pack.py", "--code_only", f"--out={tmp_path}", **hidden)
    assert result.returncode == 2
    assert "pack everything before --code_only" in one_line_of(result)


def test_pack_names_the_data_that_are_missing(tmp_path):
    out = tmp_path / "out"
    result = run_pack(f"--data_dir={tmp_path}", f"--out={out}")
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(
        "pack.py: error: Data set 'cifar10' was not found in data_di"
    )
    assert not out.exists()


def test_pack_refuses_another_python_for_installed_packages(tmp_path):
    result = run_pack("--python=3.8", f"--out={tmp_path}")
    assert result.returncode == 2
    assert "Argument `python` must be 3." in one_line_of(result)


# What is unpacked.


def test_unpacked_arrays_are_those_of_the_data_set(packed, data_dir, tmp_path):
    import tensorflow_datasets as tfds

    assert unpack.unpack(packed, tmp_path) == []
    data = unpack.data_path(tmp_path)
    for split in ("train", "test"):
        batch = tfds.load("cifar10", split=split, data_dir=data_dir, batch_size=-1)
        for kind in ("images", "labels"):
            expected = batch[kind.removesuffix("s")].numpy()
            array = np.load(data / f"{split}_{kind}.npy")
            assert array.dtype == np.uint8
            np.testing.assert_array_equal(array, expected[:PACKED])
    scripts = {path.name for path in KIT.iterdir() if path.is_file()}
    assert scripts <= {path.name for path in unpack.scripts_path(tmp_path).iterdir()}
    site = unpack.site_path(tmp_path)
    for path in (ROOT / "keras_sq").rglob("*.py"):
        assert (site / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_pieces_may_come_one_by_one_and_leave_again(packed, tmp_path):
    pieces, folder = tmp_path / "pieces", tmp_path / "kit"
    pieces.mkdir()
    waiting = list(manifest_of(packed).pieces)
    while waiting:
        assert not unpack.site_path(folder).exists()
        piece = waiting.pop()  # The last first: the order does not matter.
        shutil.copy(packed / kit_pieces.MANIFEST, pieces)
        shutil.copy(packed / piece.name, pieces)
        assert unpack.unpack(pieces, folder) == waiting
        shutil.rmtree(pieces)
        pieces.mkdir()
    assert unpack.data_path(folder).exists()
    # Even the list is known by now.
    assert unpack.unpack(pieces, folder) == []


def test_unpacking_again_changes_nothing(packed, tmp_path):
    unpack.unpack(packed, tmp_path)

    def state():
        return {path: path.stat().st_ino for path in tmp_path.glob("*/*")}

    before = state()
    assert unpack.unpack(packed, tmp_path) == []
    assert state() == before


def test_new_code_replaces_the_old_and_leaves_the_data(pieces, tmp_path):
    folder = tmp_path / "kit"
    unpack.unpack(pieces, folder)
    data = unpack.data_path(folder).stat().st_ino
    manifest = manifest_of(pieces)
    code, *others = manifest.pieces
    source = folder / "pieces" / f"code.tar-{code.sha256[:16]}"
    files = {name: (source / name).read_bytes() for name in code.files}
    files[kit_pieces.SCRIPTS_FILE] = files[kit_pieces.PACKAGE_FILE]
    path = pieces / "code.tar"
    path.write_bytes(dividing.archive(files))
    values = vars(manifest) | {
        "pieces": (
            kit_pieces.Piece(
                "code.tar",
                path.stat().st_size,
                kit_pieces.checksum(path),
                tuple(files),
            ),
            *others,
        )
    }
    kit_pieces.Manifest(**values).write(pieces / kit_pieces.MANIFEST)
    for piece in others:
        (pieces / piece.name).unlink()
    assert unpack.unpack(pieces, folder) == []
    assert (unpack.scripts_path(folder) / "keras_sq").exists()
    assert not (unpack.scripts_path(folder) / "go.py").exists()
    assert unpack.data_path(folder).stat().st_ino == data
    assert not source.exists()


def test_interrupted_unpacking_leaves_nothing_half_done(packed, tmp_path, monkeypatch):
    def interrupt(contents):
        next(iter(contents))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack.unpack(packed, tmp_path)
    assert not unpack.data_path(tmp_path).exists()
    # As a process leaves it that was killed.
    (tmp_path / "cifar10.123.part").mkdir()
    (tmp_path / "pieces" / "piece-1.tar.123.part").mkdir()
    assert unpack.unpack(packed, tmp_path) == []
    assert unpack.data_path(tmp_path).exists()
    assert not list(tmp_path.rglob("*.part"))


# What goes wrong.


@pytest.mark.parametrize("how", ["one bit", "cut off", "empty"])
def test_damaged_piece_is_named_and_the_others_are_kept(pieces, tmp_path, how):
    path, folder = pieces / "piece-1.tar", tmp_path / "kit"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    contents = {"one bit": damaged, "cut off": whole[:-512], "empty": b""}
    path.write_bytes(contents[how])
    with pytest.raises(kit_pieces.KitError, match=r"checksum of piece-1\.tar") as error:
        unpack.unpack(pieces, folder)
    assert error.value.status == 2
    assert "code.tar" in str(error.value)
    assert not unpack.site_path(folder).exists()
    # The undamaged ones have been unpacked: a whole copy of this one is enough.
    for piece in manifest_of(pieces).pieces:
        (pieces / piece.name).unlink()
    path.write_bytes(whole)
    assert unpack.unpack(pieces, folder) == []


def test_image_that_decodes_to_other_pixels_is_an_error(packed, tmp_path, monkeypatch):
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda contents: decode(contents) ^ 1)
    with pytest.raises(kit_pieces.KitError, match=r"train_images\.npy differs from"):
        unpack.unpack(packed, tmp_path)
    assert not unpack.data_path(tmp_path).exists()


def test_files_that_were_removed_later_are_an_error(packed, tmp_path):
    unpack.unpack(packed, tmp_path)
    shutil.rmtree(unpack.data_path(tmp_path))
    next(tmp_path.glob("pieces/*/images/test-0000.webp")).unlink()
    with pytest.raises(kit_pieces.KitError, match=r"gone from .*without which cifar10"):
        unpack.unpack(packed, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"python": "3.7"}, r"packed for Python 3\.7 on .*--python=3\."),
        ({"machine": "riscv64"}, r"packed for Python 3\.\d+ on riscv64"),
        ({"format": 99}, r"has format 99, these scripts read format 1"),
        ({"pieces": 3}, r"manifest\.json is damaged: copy it again"),
        ({"unpacked_bytes": 10**18}, r"too little space: .*MiB are needed"),
    ],
)
def test_kit_that_does_not_suit_is_refused(pieces, tmp_path, changed, message):
    path = pieces / kit_pieces.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(kit_pieces.KitError, match=message):
        unpack.unpack(pieces, tmp_path / "kit")
    assert not list(tmp_path.glob("kit/[!.]*"))


def test_list_that_is_missing_or_no_list_is_an_error(pieces, tmp_path):
    path = pieces / kit_pieces.MANIFEST
    path.write_text(path.read_text()[:100])
    with pytest.raises(kit_pieces.KitError, match=r"manifest\.json is damaged"):
        unpack.unpack(pieces, tmp_path / "kit")
    path.unlink()
    with pytest.raises(
        kit_pieces.KitError, match=r"manifest\.json does not exist: cop"
    ):
        unpack.unpack(pieces, tmp_path / "kit")


def test_package_of_the_machine_is_preferred(packed, tmp_path, monkeypatch):
    unpack.unpack(packed, tmp_path)
    names = {path.name for path in unpack.site_path(tmp_path).iterdir()}
    assert {"keras", "keras_sq"} <= names
    # All others are installed where the tests run.
    assert not names & {"rich", "h5py", "optree", "namex", "PIL"}
    find_spec = unpack.importlib.util.find_spec
    hidden = types.SimpleNamespace(
        find_spec=lambda name: None if name == "optree" else find_spec(name)
    )
    monkeypatch.setattr(unpack.importlib, "util", hidden)
    unpack.unpack(packed, tmp_path)
    added = {path.name for path in unpack.site_path(tmp_path).iterdir()} - names
    assert "optree" in added
    assert not added & {"rich", "h5py", "namex", "PIL"}


# The command on the machine with the GPU.


def test_go_says_what_is_needed_and_that_there_is_no_gpu(pieces, tmp_path):
    last = manifest_of(pieces).pieces[-1].name
    shutil.move(pieces / last, tmp_path / last)
    result = run_go(tmp_path, pieces, "--allow_cpu")
    assert result.returncode == 3
    line = one_line_of(result)
    assert f"Still needed: {last} (" in line
    assert "Unpacked: code.tar, piece-1.tar" in line
    shutil.move(tmp_path / last, pieces / last)
    # It is the kit's package that counts, not that of the folder it is started in.
    (tmp_path / "keras_sq.py").write_text("raise ValueError('not the kit')")
    result = run_go(tmp_path, pieces, hidden=("keras",), cwd=tmp_path)
    assert result.returncode == 2
    assert "sees no GPU here" in one_line_of(result)


def test_go_trains_from_the_unpacked_kit_without_tensorflow(packed, tmp_path):
    plan, out = tmp_path / "plan.csv", tmp_path / "out"
    plan.write_text("row,seeds\nresnet20_sq_bwn,0\n")
    flags = ["--allow_cpu", "--scale=0.001", "--minutes=4", "--nosteps"]
    flags += [f"--plan={plan}", f"--out={out}", f"--state={tmp_path / 'state'}"]
    result = run_go(tmp_path, packed, *flags)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in unpack.site_path(tmp_path / "kit").iterdir()}
    assert set(IN_THE_KIT) <= names
    (path,) = out.glob("runs/*.json")
    assert path.name == "resnet20_sq_bwn-seed0.json"
    run = json.loads(path.read_text("utf-8"))
    assert run["finished"]
    assert run["scale"] == 0.001
    assert run["epochs_done"] == run["epochs"] == len(run["curve"])
    assert run["keras_sq"] == manifest_of(packed).keras_sq
    (codes,) = out.glob("codes/*.npz")
    with np.load(codes) as arrays:
        values = [arrays[name] for name in arrays if arrays[name].dtype == np.int8]
    assert values
    assert all(set(np.unique(array)) <= {-1, 1} for array in values)
