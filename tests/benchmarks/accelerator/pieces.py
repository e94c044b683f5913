"""The pieces of the kit: names, checksums, and the list of them (`manifest.json`).

Uses the standard library only: a machine that unpacks has nothing else yet.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

MANIFEST = "manifest.json"
CODE = "code.tar"
"""The package and these scripts: small, and the only piece that a change of the code
changes."""

PACKAGE_FILE = "code/keras_sq.zip"
SCRIPTS_FILE = "code/kit.zip"
WHEELS = "wheels/"
IMAGES = "images/"
LABELS = "labels/"

FORMAT = 1
"""Of the pieces; another one needs other scripts."""

MIB = 2**20
BAD_INPUT = 2
INCOMPLETE = 3
"""Exit status while pieces are missing."""


class KitError(Exception):
    """Bad input. The message is the one line that a command prints.

    Args:
        message: String: what is wrong and what helps.
        status: Integer: exit status of the command.
    """

    def __init__(self, message: str, status: int = BAD_INPUT):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Piece:
    """One file that travels.

    Attributes:
        name: File name.
        bytes: Size.
        sha256: Checksum of the file, hexadecimal.
        files: Names of the files inside.
    """

    name: str
    bytes: int
    sha256: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What was packed, for which machine, in which pieces.

    Attributes:
        keras_sq: Version of the package.
        keras: Version of Keras.
        python: Version of Python that the wheels are for, such as `"3.12"`.
        machine: Processor that the wheels are for, as `platform.machine()` says.
        arrays: File name in `cifar10/` -> `{"shape": [...], "sha256": "..."}`, the
            checksum of the array's bytes.
        unpacked_bytes: Disk space that the unpacked kit takes.
        pieces: All pieces, in the order of their names.
    """

    keras_sq: str
    keras: str
    python: str
    machine: str
    arrays: dict[str, dict[str, Any]]
    unpacked_bytes: int
    pieces: tuple[Piece, ...]

    def transfers(self) -> list[list[Piece]]:
        """Returns which pieces travel together: the code and the first, then one each.

        Each transfer is at most `--piece_mib` of `pack.py`.
        """
        code, first, *others = self.pieces
        return [[code, first], *([piece] for piece in others)]

    def write(self, path: pathlib.Path) -> None:
        """Writes the list, whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())

    @staticmethod
    def read(path: pathlib.Path) -> "Manifest":
        """Reads the list.

        Raises:
            KitError: If it is damaged, or of another version of these scripts.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            version = content.pop("format")
            pieces = content.pop("pieces")
            if version == FORMAT:
                return Manifest(
                    **content,
                    pieces=tuple(
                        Piece(**{**piece, "files": tuple(piece["files"])})
                        for piece in pieces
                    ),
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KitError(f"{path} is damaged: copy it again.") from error
        raise KitError(
            f"{path} has format {version}, these scripts read format {FORMAT}: pack "
            "and unpack with the same version of the scripts."
        )


def checksum(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Fills a folder, which takes its place only when it is whole.

    Args:
        target: Path of the folder. An older folder there is replaced.

    Yields:
        Path of an empty folder beside it, to be filled.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            # Renamed first: a folder that is half removed must not keep its name.
            old = target.with_name(f"{target.name}.{os.getpid()}.old.part")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def mib(size: float) -> str:
    """Returns a number of bytes as text, in MiB."""
    return f"{size / MIB:.1f} MiB"


def run(name: str, main: Callable[[list[str]], int]) -> int:
    """Runs a command; bad input and a full disk print one line.

    Args:
        name: String: name of the script, for messages.
        main: Function from the arguments to the exit status.

    Returns:
        Exit status.
    """
    try:
        return main(sys.argv[1:])
    except KitError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"{name}: error: {error.strerror or error}{where}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on.", file=sys.stderr)
        return 130
