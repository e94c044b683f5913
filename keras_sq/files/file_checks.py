"""What files are asked before anything is made of them.

Model files and the files of a training run may be cut off, have flipped bits or be
made to harm. Here their check sums are compared, and what they claim to hold is
counted before it is read, so that memory and time stay in proportion to the size of
the file. Nothing here knows what a layer is; models are loaded in `loading.py`, TFLite
files read in `export/contents`.

Design note: **Keras checks some of it**, but if the check sum of weights is wrong it
reads them in another way, which from Python 3.12 on does not compare it, and it starts
to count at 4 GiB.
"""

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import h5py

SLACK = 2**26
"""Bytes that even the smallest file may unpack to."""

MAX_EXPANSION = 100
"""How many times its size a larger file may unpack to. Weights hardly shrink, and
Keras does not pack them."""

MAX_JSON_BYTES = 2**25
"""Longest JSON text to read; it takes up to twenty times as much memory."""

CONFIG = "config.json"
"""What is in a `.keras` file: the layers."""

_SUMS = "checksums.json"
_WEIGHTS = "model.weights.h5"
_H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAP = b"GCOL\x01"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NUMBERS = "biufcV"  # Kinds of NumPy types; V: bfloat16.
_PIECE = 2**20


def most_bytes(size: int) -> int:
    """Returns what a sound file of a size (in bytes) may unpack to, in bytes."""
    return max(SLACK, MAX_EXPANSION * size)


def check_model_archive(path: str | os.PathLike[str]) -> int:
    """Checks a `.keras` file in full, but for what its configuration says.

    Args:
        path: Of the file.

    Returns:
        How many bytes it holds, unpacked.

    Raises:
        ValueError: If it is damaged or claims too much; the message goes on
            after a colon.
        OSError: If it cannot be read.
    """
    unpacked = check_zip(path)
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            return unpacked
        with archive.open(_WEIGHTS) as weights:
            return max(unpacked, check_h5(weights, most_bytes(os.path.getsize(path))))


def check_zip(path: str | os.PathLike[str]) -> int:
    """Checks the parts of a zip file: sizes first, then the check sums.

    Args:
        path: Of the file.

    Returns:
        How many bytes it unpacks to.

    Raises:
        ValueError: If it is damaged or claims too much; the message goes on
            after a colon.
        OSError: If it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_entries(archive, os.path.getsize(path))
    except (
        EOFError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        UnicodeDecodeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(error) from error


def _check_entries(archive: zipfile.ZipFile, size: int) -> int:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("it is damaged: it has several parts of one name")
    if sum(entry.compress_size for entry in entries) > size:
        raise ValueError("it is damaged: its parts overlap")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > most_bytes(size):
        raise ValueError(
            f"it would unpack to {unpacked:,} bytes, more than a sound file of "
            f"{size:,} bytes"
        )
    for entry in entries:
        if entry.compress_type not in _METHODS:
            raise ValueError(
                f"it is damaged: {entry.filename!r} is packed unlike Keras"
            )
        if entry.filename == CONFIG and entry.file_size > MAX_JSON_BYTES:
            raise ValueError(f"its {CONFIG} is longer than {MAX_JSON_BYTES:,} bytes")
        with archive.open(entry) as part:
            while part.read(_PIECE):  # At the end, the check sum is compared.
                pass
    return unpacked


def check_h5(file: IO[bytes], limit: int) -> int:
    """Checks what an HDF5 file claims to hold; an HDF5 file has no check sums.

    Args:
        file: The file, open for reading.
        limit: Most bytes that it may hold, see `most_bytes`.

    Returns:
        How many bytes it holds, unpacked.

    Raises:
        ValueError: If it is damaged, claims too much or refers to other files.
        OSError: If it cannot be opened.
    """
    _check_heaps(file)
    file.seek(0)
    try:
        with h5py.File(file, "r") as content:
            total = 0
            for entry in _walk(content):
                for name in entry.attrs:
                    total += _claimed(entry.attrs.get_id(name))
                if isinstance(entry, h5py.Dataset):
                    total += _dataset_bytes(entry)
                if total > limit:
                    raise ValueError(
                        f"it claims to hold {total:,} bytes, more than a file of its "
                        "size does"
                    )
            return total
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(error) from error
    except (KeyError, OverflowError, RuntimeError, TypeError, UnicodeError) as error:
        raise _damaged(error) from error


def _check_heaps(file: IO[bytes]) -> None:
    """Refuses what HDF5 would read without end.

    Texts are in heaps, one entry after the other; version 1.14 of HDF5 does not get
    past an entry of size zero. Nor can it be interrupted.
    """
    start = file.read(16)
    # The superblock says how many bytes a place and a length take.
    sizes = start[13:15] if start[8:9] in (b"\0", b"\1") else start[9:11]
    if start[:8] != _H5_SIGNATURE or sizes != b"\x08\x08":
        raise ValueError("it is damaged, or no HDF5 file as Keras writes them")
    place, rest = 0, start
    while piece := file.read(_PIECE):
        rest += piece
        index = rest.find(_HEAP)
        while index >= 0:
            _check_heap(file, place + index)
            index = rest.find(_HEAP, index + 1)
        kept = len(_HEAP) - 1  # One may begin here and end in the next piece.
        place += len(rest) - kept
        rest = rest[-kept:]
        file.seek(place + kept)


def _check_heap(file: IO[bytes], place: int) -> None:
    end = file.seek(0, os.SEEK_END)
    file.seek(place + 8)
    (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if place + size > end:
        return  # Cut off, which HDF5 notices, or no heap.
    file.seek(place)
    heap, at = file.read(size), 16
    while at + 16 <= size:
        index, _, taken = struct.unpack_from("<HHxxxxQ", heap, at)
        # Of what is free, the size is that of the entry.
        step = taken if index == 0 else 16 + -(-taken // 8) * 8
        if step < 16 or at + step > size:
            raise ValueError(f"it is damaged: its heap at byte {place:,} is none")
        at += step


def _walk(root: Any) -> Iterator[Any]:
    """Yields all groups and datasets, each once."""
    seen, waiting = set(), [root]
    while waiting:
        entry = waiting.pop()
        address = h5py.h5o.get_info(entry.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield entry
        if not isinstance(entry, h5py.Group):
            continue
        for name in entry:
            if not isinstance(entry.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"its entry {name[:60]!r} refers to another place")
            waiting.append(entry[name])


def _dataset_bytes(dataset: Any) -> int:
    if dataset.dtype.kind not in _NUMBERS:
        raise ValueError(f"its {dataset.name!r} holds no numbers")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"its {dataset.name!r} lies in another file")
    return _claimed(dataset)


def _claimed(values: Any) -> int:
    """Returns the bytes of a dataset or an attribute, by its shape."""
    return math.prod(values.shape or ()) * int(values.dtype.itemsize)


def read_json(path: str | os.PathLike[str], kind: type) -> Any:
    """Reads a JSON file.

    Args:
        path: Of the file.
        kind: What it must hold: `dict` or `list`.

    Raises:
        ValueError: If it is damaged or holds something else.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"it is longer than {MAX_JSON_BYTES:,} bytes")
        value = json.loads(content.decode("utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds no {kind.__name__}")
    except (RecursionError, ValueError) as error:
        raise ValueError(f"File '{path}' is damaged: {_short(error)}.") from error
    return value


def check_sums(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Returns name -> size and check sum (CRC-32) of all files in a folder.

    Args:
        folder: Its path; folders inside are entered.
    """
    sums = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            crc, size = 0, 0
            with open(path, "rb") as file:
                while piece := file.read(_PIECE):
                    crc, size = zlib.crc32(piece, crc), size + len(piece)
            key = os.path.relpath(path, folder).replace(os.sep, "/")
            sums[key] = f"{size} bytes, {crc:08x}"
    return sums


def seal(folder: str | os.PathLike[str]) -> None:
    """Writes down the check sums of all files in a folder."""
    text = json.dumps(check_sums(folder), indent=2)
    with open(os.path.join(folder, _SUMS), "w", encoding="utf-8") as file:
        file.write(text)


def check_seal(folder: str | os.PathLike[str]) -> None:
    """Compares the files in a folder with what `seal` wrote down.

    Raises:
        ValueError: If a file was changed, added or lost, or nothing was written down.
        OSError: If a file cannot be read.
    """
    if not os.path.exists(os.path.join(folder, _SUMS)):
        raise ValueError(
            f"Folder '{os.fspath(folder)}' is no backup, or damaged: it has no {_SUMS}."
        )
    expected = read_json(os.path.join(folder, _SUMS), dict)
    sums = check_sums(folder)
    del sums[_SUMS]
    names = sums.keys() | expected.keys()
    changed = {name for name in names if sums.get(name) != expected.get(name)}
    if changed:
        path = os.path.join(folder, min(changed))
        raise ValueError(
            f"File '{path}' is damaged: its size or check sum is not what was written."
        )


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"it is damaged or cut off ({_short(error)})")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
