"""Unpacks the pieces of the kit that `pack.py` wrote.

    python unpack.py build/accelerator /tmp/kit

Takes the pieces that are there, and the others in a later call: pieces that have been
unpacked are not needed again. With all of them the folder holds

- `site/`: Keras, what it needs and the machine lacks, and keras_sq, for `sys.path`;
- `kit/`: these scripts;
- `cifar10/`: `{train,test}_images.npy`, uint8 `(images, 32, 32, 3)`, and
  `{train,test}_labels.npy`, uint8 `(images,)`.

A folder with one of these names is whole: it is filled under another name and
renamed. Exit status: 0 if everything is there, 3 while pieces are missing, 2 after an
error. Until `site/` is there this uses the standard library and NumPy only.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import pathlib
import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
import pictures
from pieces import (
    CODE,
    IMAGES,
    INCOMPLETE,
    LABELS,
    MANIFEST,
    PACKAGE_FILE,
    SCRIPTS_FILE,
    WHEELS,
    KitError,
    Manifest,
    Piece,
    checksum,
    mib,
    new_folder,
    run,
    write_atomically,
)

MARK = ".unpacked_from"
"""In each folder: what it was made of, to know when it has to be made again."""

ALWAYS_OURS = ("keras",)
"""Packages of the kit that take the place of those that the machine has."""


def site_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder for `sys.path`."""
    return folder / "site"


def scripts_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of these scripts."""
    return folder / "kit"


def data_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the images and labels."""
    return folder / "cifar10"


def unpack(pieces: pathlib.Path, folder: pathlib.Path) -> list[Piece]:
    """Unpacks what has come.

    Args:
        pieces: Path of the folder with the list and the pieces, or some of them.
        folder: Path of the folder to unpack to. It is made where it does not exist.

    Returns:
        List of the pieces that are missing.

    Raises:
        KitError: If the list is missing, a piece is damaged, the kit is for another
            machine, or the disk is full. What has been unpacked stays.
        OSError: If a file cannot be read or written.
    """
    source = pieces / MANIFEST
    if not source.exists():
        source = folder / MANIFEST
    if not source.exists():
        raise KitError(
            f"{pieces / MANIFEST} does not exist: copy {MANIFEST}, which pack.py "
            "writes beside the pieces, with every transfer."
        )
    manifest = Manifest.read(source)
    _check_machine(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        # Of a process that was killed: nobody else writes while this one has the lock.
        for leftover in (*folder.glob("*.part"), *folder.glob("pieces/*.part")):
            shutil.rmtree(leftover, ignore_errors=True)
        _check_space(manifest, folder)
        write_atomically(folder / MANIFEST, source.read_bytes())
        parts = _Parts(folder, manifest)
        damaged = [piece for piece in manifest.pieces if not parts.take(piece, pieces)]
        _make_site(parts, site_path(folder))
        _make_scripts(parts, scripts_path(folder))
        _make_data(parts, data_path(folder))
        if damaged:
            names = ", ".join(piece.name for piece in damaged)
            raise KitError(
                f"The checksum of {names} differs from the one in {source}: the file "
                "is damaged or belongs to another packing. Copy it again; what came "
                f"undamaged has been unpacked ({parts.arrived() or 'nothing'})."
            )
        missing = parts.missing()
        if not missing:
            _check_complete(folder, parts)
            parts.remove_others()
        return missing


def _check_complete(folder: pathlib.Path, parts: "_Parts") -> None:
    targets = (site_path(folder), scripts_path(folder), data_path(folder))
    absent = [target.name for target in targets if not is_made(target)]
    if absent:
        raise KitError(
            f"Files are gone from {parts.root}, without which {', '.join(absent)} "
            "cannot be made. Remove that folder and copy all pieces again."
        )


class _Parts:
    """The content of the pieces that have come, one folder a piece.

    Args:
        folder: Path of the folder to unpack to.
        manifest: The list of the pieces.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self.manifest = manifest
        self.root = folder / "pieces"
        self.root.mkdir(exist_ok=True)

    def place(self, piece: Piece) -> pathlib.Path:
        """Returns the folder of a piece, whole if it exists."""
        return self.root / f"{piece.name}-{piece.sha256[:16]}"

    def take(self, piece: Piece, pieces: pathlib.Path) -> bool:
        """Unpacks a piece if it has come; returns `False` if it is damaged."""
        place, path = self.place(piece), pieces / piece.name
        if place.exists() or not path.exists():
            return True
        if path.stat().st_size != piece.bytes or checksum(path) != piece.sha256:
            return False
        with new_folder(place) as temporary, tarfile.open(path) as archive:
            archive.extractall(temporary, filter="data")
        return True

    def missing(self) -> list[Piece]:
        """Returns the pieces that have not come yet."""
        return [x for x in self.manifest.pieces if not self.place(x).exists()]

    def arrived(self) -> str:
        """Returns the names of the pieces that have come, as text."""
        come = (x for x in self.manifest.pieces if self.place(x).exists())
        return ", ".join(piece.name for piece in come)

    def files(self, start: str) -> list[pathlib.Path] | None:
        """Returns files in order, or `None` if the piece of one is missing.

        Args:
            start: Beginning of the names of the files.
        """
        places = {
            name: self.place(piece) / name
            for piece in self.manifest.pieces
            for name in piece.files
            if name.startswith(start)
        }
        paths = [places[name] for name in sorted(places)]
        return paths if all(path.exists() for path in paths) else None

    def remove_others(self) -> None:
        """Removes the content of pieces of other packings."""
        ours = {self.place(piece) for piece in self.manifest.pieces}
        for path in self.root.iterdir():
            if path not in ours:
                shutil.rmtree(path, ignore_errors=True)


def _make_site(parts: _Parts, target: pathlib.Path) -> None:
    packages, wheels = parts.files(PACKAGE_FILE), parts.files(WHEELS)
    if packages is None or wheels is None:
        return
    chosen = [wheel for wheel in wheels if _is_wanted(wheel, target)]
    _make_of_zips([*chosen, *packages], target)


def _make_scripts(parts: _Parts, target: pathlib.Path) -> None:
    scripts = parts.files(SCRIPTS_FILE)
    if scripts is not None:
        _make_of_zips(scripts, target)


def _make_of_zips(paths: list[pathlib.Path], target: pathlib.Path) -> None:
    mark = _mark([[path.name, checksum(path)] for path in paths])
    if is_made(target, mark):
        return
    with new_folder(target) as temporary:
        for path in paths:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(temporary)
        (temporary / MARK).write_text(mark, "utf-8")


def _is_wanted(wheel: pathlib.Path, site: pathlib.Path) -> bool:
    """Whether the kit's package is used: the machine's suits its own JAX better.

    Args:
        wheel: Path of a wheel.
        site: Path of `site/`, which may be on `sys.path` already: what lies there is
            not the machine's.
    """
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0].removesuffix(".py") for name in archive.namelist()}
    # Others are `*.dist-info` and `*.libs`.
    names = [name for name in tops if name.isidentifier()]
    return any(name in ALWAYS_OURS or not _is_present(name, site) for name in names)


def _is_present(name: str, site: pathlib.Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    return site.resolve() not in pathlib.Path(spec.origin).resolve().parents


def _make_data(parts: _Parts, target: pathlib.Path) -> None:
    arrays = parts.manifest.arrays
    mark = _mark(arrays)
    if is_made(target, mark) or parts.files(IMAGES) is None:
        return
    if parts.files(LABELS) is None:
        return
    with new_folder(target) as temporary:
        for name, expected in arrays.items():
            split, kind = name.removesuffix(".npy").split("_")
            if kind == "labels":
                (path,) = parts.files(f"{LABELS}{split}") or []
                array = np.load(path)
            else:
                strips = parts.files(f"{IMAGES}{split}-") or []
                with _imports_from(site_path(target.parent)):
                    array = pictures.decode(path.read_bytes() for path in strips)
            shape, digest = list(array.shape), pictures.array_checksum(array)
            if {"shape": shape, "sha256": digest} != expected:
                raise KitError(
                    f"The unpacked {name} differs from what was packed. Remove "
                    f"{parts.root} and copy the pieces again; if that does not help, "
                    "Pillow reads WebP files wrongly here."
                )
            np.save(temporary / name, array)
        (temporary / MARK).write_text(mark, "utf-8")


@contextlib.contextmanager
def _imports_from(site: pathlib.Path) -> Iterator[None]:
    """Lets Pillow of the kit be imported where the machine has none."""
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        yield
    except ImportError as error:
        raise KitError(
            f"Pillow cannot be imported ({error}): install it here, or pack for "
            "this machine's Python."
        ) from error
    finally:
        sys.path.remove(str(site))


def _mark(inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def is_made(target: pathlib.Path, mark: str | None = None) -> bool:
    """Whether a folder of the unpacked kit is whole.

    Args:
        target: Path of the folder.
        mark: String, what it must have been made of, or `None` for anything.
    """
    path = target / MARK
    return path.exists() and mark in (None, path.read_text("utf-8"))


def _check_machine(manifest: Manifest) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (manifest.python, manifest.machine) != (python, platform.machine()):
        raise KitError(
            f"The kit was packed for Python {manifest.python} on {manifest.machine}, "
            f"and this is Python {python} on {platform.machine()}: use that Python, or "
            f"pack with --python={python}."
        )


def _check_space(manifest: Manifest, folder: pathlib.Path) -> None:
    """Raises before anything is written if not all can be."""
    present = sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())
    needed = manifest.unpacked_bytes - present
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise KitError(
            f"The disk of {folder} has too little space: {mib(needed)} are needed, "
            f"{mib(free)} are free. Nothing was changed; name another --folder."
        )


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Lets a second process wait while one unpacks to a folder."""
    import fcntl  # Not on Windows, where nobody unpacks.

    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def describe_missing(missing: list[Piece], pieces: pathlib.Path, have: str) -> str:
    """Returns the line that says what came and what is needed still."""
    names = ", ".join(f"{piece.name} ({mib(piece.bytes)})" for piece in missing)
    return (
        f"Still needed: {names}. Unpacked: {have or 'nothing'}. Copy what is needed, "
        f"with {MANIFEST}, to {pieces} and run the same command again."
    )


def arrived(folder: pathlib.Path) -> str:
    """Returns the names of the pieces that have been unpacked to a folder."""
    return _Parts(folder, Manifest.read(folder / MANIFEST)).arrived()


def main(arguments: list[str]) -> int:
    """Unpacks what has come; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pieces", type=pathlib.Path, help=f"{CODE}, piece-1.tar, ...")
    parser.add_argument("folder", type=pathlib.Path, help="where to unpack to")
    flags = parser.parse_args(arguments)
    missing = unpack(flags.pieces, flags.folder)
    if missing:
        line = describe_missing(missing, flags.pieces, arrived(flags.folder))
        raise KitError(line, INCOMPLETE)
    print(f"Everything is unpacked: {flags.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run("unpack.py", main))
