"""Results and states as few files, for machines that hand back few and small ones.

`pack` writes one tar archive in parts of at most `PART_BYTES`; `unpack` puts it
together. Compiled programs travel too, if they are small enough.
"""

import io
import pathlib
import tarfile

import state

PART_BYTES = 15 * 2**20
"""Size of a part."""

MAX_MIB = 56
"""Size of the archive; above it compiled programs and then logs stay behind."""

_NAME = "bundle.tar"
_END = "end"
_UNFINISHED = ".unfinished"


def pack(out: pathlib.Path, states: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes everything of two folders into parts.

    Args:
        out: Folder of the results.
        states: Folder of the states.
        folder: Where the parts go.
    """
    kept: list[tuple[pathlib.Path | None, str]] = []
    size = 0
    for rank in range(3):
        for base, name in ((out, "out"), (states, "state")):
            for path in sorted(base.rglob("*")):
                ours = path.name.startswith(_NAME) or path.suffix == _UNFINISHED
                if ours or not path.is_file():
                    continue
                inside = path.relative_to(base)
                if _rank(inside) != rank:
                    continue
                size += path.stat().st_size
                if rank and size > MAX_MIB * 2**20:
                    size -= path.stat().st_size
                    continue
                kept.append((path, f"{name}/{inside.as_posix()}"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, name in [*kept, (None, _END)]:
            try:
                content = b"" if path is None else path.read_bytes()
            except FileNotFoundError:
                continue  # A run that has just ended removes its state.
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    count = -(-len(content) // PART_BYTES)
    for number in range(count):
        piece = content[number * PART_BYTES : (number + 1) * PART_BYTES]
        state.write_whole(
            folder / f"{_NAME}.{number}", lambda file, piece=piece: file.write(piece)
        )
    for path in folder.glob(f"{_NAME}.*"):
        if path.suffix[1:].isdigit() and int(path.suffix[1:]) >= count:
            path.unlink()


def _rank(path: pathlib.Path) -> int:
    """Returns how easily a file can be done without: 0 is not at all."""
    first = path.parts[0]
    return {"compiled": 1, "logs": 2, "trials": 2, "locks": 2}.get(first, 0)


def unpack(folder: pathlib.Path, out: pathlib.Path, states: pathlib.Path) -> None:
    """Puts the files of an archive back, if there is one, and removes its parts.

    Files that are there already stay: they are newer.

    Args:
        folder: Of the parts.
        out: Folder of the results.
        states: Folder of the states.

    Raises:
        ValueError: If a part is missing or damaged, in one line.
    """
    parts = sorted(folder.glob(f"{_NAME}.*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        return
    content = b"".join(path.read_bytes() for path in parts)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files = {x.name: archive.extractfile(x).read() for x in archive}
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"The bundle of {len(parts)} parts in {folder} is damaged, or a part is "
            "missing. Bring all parts along again."
        ) from error
    if files.pop(_END, None) is None or len(content) % tarfile.RECORDSIZE:
        raise ValueError(f"The last part of the bundle in {folder} is missing.")
    for name, data in files.items():
        top, _, inside = name.partition("/")
        base = {"out": out, "state": states}.get(top)
        if base is None or ".." in pathlib.PurePosixPath(inside).parts:
            raise ValueError(f"The bundle in {folder} is not of this kit: {name!r}.")
        if not (base / inside).exists():
            state.write_whole(base / inside, lambda file, data=data: file.write(data))
    for path in parts:
        path.unlink()
