"""Packs what a machine with a GPU needs for the long trainings, in pieces.

    python tests/benchmarks/accelerator/pack.py --data_dir=~/tensorflow_datasets

Reads CIFAR-10 through TFDS, compresses it without loss, adds Keras with its needs as
wheels, keras_sq and these scripts, and writes `code.tar`, `piece-1.tar`,
`piece-2.tar`, ... and `manifest.json` with their checksums. README.md says how they
travel. Takes about two minutes on two cores.

A change of the code changes `code.tar` only: the other pieces come out equal, byte for
byte, and need not travel again. `--code_only` packs the code anew in a few seconds.
"""

import dataclasses
import io
import os
import pathlib
import platform
import runpy
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pictures
import wheels
from absl import app, flags, logging
from dividing import Files, archive, divide
from pieces import (
    CODE,
    IMAGES,
    LABELS,
    MANIFEST,
    MIB,
    PACKAGE_FILE,
    SCRIPTS_FILE,
    WHEELS,
    KitError,
    Manifest,
    Piece,
    checksum,
    mib,
    run,
    write_atomically,
)

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TRANSFER_MIB = 64
"""What a machine reached by copying files may take at a time, at most."""

SPLITS = ("train", "test")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder with prepared TFDS data that holds cifar10 (TFDS's own)."
)
OUT = flags.DEFINE_string(
    "out", str(ROOT / "build" / "accelerator"), "Folder for the pieces."
)
PIECE_MIB = flags.DEFINE_float(
    "piece_mib", 60, "Most MiB of one transfer; the working tree comes on top of it."
)
IMAGES_FLAG = flags.DEFINE_integer(
    "images",
    None,
    "Pack the first so many images of each split only, to rehearse.",
    lower_bound=1,
)
PYTHON = flags.DEFINE_string(
    "python",
    None,
    "Python of the machine with the GPU: 3.12, or with --wheels=installed this one.",
)
CODE_ONLY = flags.DEFINE_bool(
    "code_only", False, "Pack keras_sq and the scripts anew, and leave the rest."
)
WHEEL_SOURCE = flags.DEFINE_enum(
    "wheels",
    "download",
    ["download", "installed"],
    "Where Keras and its needs come from: `download` fetches wheels of the versions "
    "installed here, for --python on Linux; `installed` takes the installed files, for "
    "a machine of this kind with this Python, and needs no network.",
)


def read_cifar10(data_dir: str | None, images: int | None) -> dict[str, np.ndarray]:
    """Reads CIFAR-10.

    Args:
        data_dir: String, folder with prepared TFDS data, or `None` for TFDS's own.
        images: Integer, number of images of each split, or `None` for all.

    Returns:
        Dictionary: file name -> uint8 array.
    """
    from keras_sq.datasets import reading

    try:
        splits = reading.arrays(reading.prepared("cifar10", data_dir, False))
    except (FileNotFoundError, ValueError) as error:
        raise KitError(" ".join(str(error).split())) from error
    arrays = {}
    for split in SPLITS:
        x, labels = splits[split]
        if x.shape[1:] != (pictures.SIDE, pictures.SIDE, 3) or x.dtype != np.uint8:
            raise KitError(
                "The data set cifar10 must have uint8 images of 32 x 32 x 3. "
                f"Received: {x.dtype} {x.shape[1:]} (data_dir={data_dir})"
            )
        arrays[f"{split}_images.npy"] = x[:images]
        arrays[f"{split}_labels.npy"] = labels[:images].astype(np.uint8)
    return arrays


def data_files(arrays: dict[str, np.ndarray]) -> Files:
    """Returns the images as pictures, and the labels."""
    files: Files = {}
    for split in SPLITS:
        labels = io.BytesIO()
        np.save(labels, arrays[f"{split}_labels.npy"])
        files[f"{LABELS}{split}.npy"] = labels.getvalue()
        encoded = pictures.encode(arrays[f"{split}_images.npy"])
        for number, content in enumerate(encoded):
            files[f"{IMAGES}{split}-{number:04d}.webp"] = content
    return files


def code_files() -> Files:
    """Returns the package and these scripts, each as a zip file."""
    files = {}
    for name, top in ((PACKAGE_FILE, ROOT / "keras_sq"), (SCRIPTS_FILE, HERE)):
        base = top.parent if name == PACKAGE_FILE else top
        paths = {
            path.relative_to(base).as_posix(): path
            for path in top.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        content = io.BytesIO()
        wheels.write_zip(content, paths)
        files[name] = content.getvalue()
    return files


def wheel_files(folder: pathlib.Path, source: str, python: str) -> Files:
    """Returns Keras and its needs.

    Args:
        folder: Path of an empty folder for them.
        source: String, `"download"` or `"installed"`.
        python: String, version of Python, such as `"3.12"`.
    """
    if source == "download":
        wheels.download(folder, python)
    else:
        wheels.from_installed(folder)
    return {f"{WHEELS}{x.name}": x.read_bytes() for x in sorted(folder.iterdir())}


def write_pieces(out: pathlib.Path, parts: dict[str, Files]) -> list[Piece]:
    """Writes pieces, and removes the list, which `Manifest.write` writes at the end.

    Without the list nobody takes pieces of two packings for one.

    Args:
        out: Path of the folder for the pieces.
        parts: Dictionary: name of a piece -> its files.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    pieces = []
    for name, files in parts.items():
        path, content = out / name, archive(files)
        unchanged = path.exists() and path.read_bytes() == content
        if not unchanged:
            write_atomically(path, content)
        piece = Piece(name, len(content), checksum(path), tuple(files))
        pieces.append(piece)
        note = " (as before)" if unchanged else ""
        print(f"{name:12} {mib(len(content)):>10}  {piece.sha256[:16]}{note}")
    return pieces


def unpacked_bytes(parts: dict[str, Files], arrays: dict[str, np.ndarray]) -> int:
    """Returns the disk space of the unpacked kit."""
    total = sum(array.nbytes for array in arrays.values())
    for files in parts.values():
        for name, content in files.items():
            total += len(content)
            if name.endswith((".zip", ".whl")):
                with zipfile.ZipFile(io.BytesIO(content)) as packed:
                    total += sum(entry.file_size for entry in packed.infolist())
    return total


def working_tree_bytes() -> int | None:
    """Returns the size of the files that git does not ignore, or `None` without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    paths = [ROOT / os.fsdecode(name) for name in result.stdout.split(b"\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def version_of_package() -> str:
    """Returns the version of the package beside these scripts."""
    return str(runpy.run_path(str(ROOT / "keras_sq" / "_version.py"))["__version__"])


def pack(out: pathlib.Path) -> None:
    """Packs everything.

    Args:
        out: Path of the folder for the pieces.
    """
    source = WHEEL_SOURCE.value
    python = PYTHON.value or ("3.12" if source == "download" else RUNNING)
    if source == "installed" and python != RUNNING:
        raise KitError(
            f"Argument `python` must be {RUNNING}, this Python's version, with "
            f"--wheels=installed. Received: python={python}"
        )
    if PIECE_MIB.value <= 0:
        raise KitError(
            f"Argument `piece_mib` must be above 0. Received: {PIECE_MIB.value}"
        )
    arrays = read_cifar10(DATA_DIR.value, IMAGES_FLAG.value)
    with tempfile.TemporaryDirectory() as name:
        packages = wheel_files(pathlib.Path(name), source, python)
    files = {**packages, **data_files(arrays)}
    parts = divide(code_files(), files, int(PIECE_MIB.value * MIB))
    described = {
        name: {"shape": list(array.shape), "sha256": pictures.array_checksum(array)}
        for name, array in arrays.items()
    }
    pieces = write_pieces(out, parts)
    manifest = Manifest(
        keras_sq=version_of_package(),
        keras=metadata.version("keras"),
        python=python,
        machine=wheels.MACHINE if source == "download" else platform.machine(),
        arrays=described,
        unpacked_bytes=unpacked_bytes(parts, arrays),
        pieces=tuple(pieces),
    )
    manifest.write(out / MANIFEST)
    for path in out.glob("piece-*.tar"):
        if path.name not in parts:
            path.unlink()
    report(manifest)


def pack_code(out: pathlib.Path) -> None:
    """Packs the code anew, for pieces that have been packed before.

    Args:
        out: Path of the folder of the pieces.
    """
    if not (out / MANIFEST).exists():
        raise KitError(
            f"{out / MANIFEST} does not exist: pack everything before --code_only."
        )
    old = Manifest.read(out / MANIFEST)
    pieces = write_pieces(out, {CODE: code_files()})
    manifest = dataclasses.replace(
        old, keras_sq=version_of_package(), pieces=(*pieces, *old.pieces[1:])
    )
    manifest.write(out / MANIFEST)
    report(manifest)


def report(manifest: Manifest) -> None:
    """Prints what travels when."""
    numbers = [manifest.arrays[f"{x}_labels.npy"]["shape"][0] for x in SPLITS]
    print(
        f"keras_sq {manifest.keras_sq}, Keras {manifest.keras}, wheels for Python "
        f"{manifest.python} on {manifest.machine}; {numbers[0]} + {numbers[1]} images"
    )
    tree = working_tree_bytes()
    for number, pieces in enumerate(manifest.transfers(), start=1):
        size = sum(piece.bytes for piece in pieces)
        names = " + ".join(piece.name for piece in pieces)
        whole = "" if tree is None else f"; with the working tree {mib(size + tree)}"
        if size + (tree or 0) > TRANSFER_MIB * MIB:
            whole += f", more than {TRANSFER_MIB} MiB: pack with a smaller --piece_mib"
        print(f"transfer {number}: {MANIFEST} + {names}, {mib(size)}{whole}")


def main(argv: list[str]) -> None:
    """Runs the command."""

    def command(arguments: list[str]) -> int:
        if arguments:
            raise KitError(f"unknown argument {arguments[0]!r}. See --helpfull.")
        logging.set_verbosity(logging.ERROR)
        # The package beside these scripts, whichever is installed.
        sys.path.insert(0, str(ROOT))
        out = pathlib.Path(OUT.value).expanduser()
        pack_code(out) if CODE_ONLY.value else pack(out)
        return 0

    sys.argv = list(argv)
    sys.exit(run("pack.py", command))


if __name__ == "__main__":
    app.run(main)
