"""Writing a file so that it is there as a whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

SUFFIX = ".tflite"


def destination(path: Any, suffix: str = SUFFIX) -> pathlib.Path:
    """Returns where to write, symbolic links followed.

    Args:
        path: The path.
        suffix: How it must end.

    Raises:
        TypeError: If `path` is no path.
        ValueError: If it does not end in `suffix`.
        OSError: If it is a directory, or its directory does not exist.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(
            "Argument `path` must be a string or a path. "
            f"Received: path={path!r} (of type {type(path).__name__})"
        )
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(
            "Argument `path` must name a file. "
            f"Received: path='{path}', which is a directory."
        )
    if target.suffix != suffix:
        raise ValueError(
            f"Argument `path` must end in '{suffix}'. Received: path='{path}'"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            "Argument `path` must be in a directory that exists. "
            f"Received: path='{path}'; create '{target.parent}' first."
        )
    return target


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Makes a new file that takes the place of `path` when all went well.

    The file is made beside `path` at once, so that a directory that cannot be
    written to is noticed before any work is done.

    Args:
        path: As `destination` returns it.

    Yields:
        The function that writes the content.

    Raises:
        OSError: If the file cannot be written. `path` is then as it was, as
            after any other exception.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        # Not `tempfile`, whose files no one but the owner may read.
        descriptor = os.open(unfinished, flags, 0o666)
    except OSError as error:
        raise _with_path(error, path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:

            def write(content: bytes) -> None:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise _with_path(error, path) from error

            yield write
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _with_path(error: OSError, path: pathlib.Path) -> OSError:
    return type(error)(
        error.errno, f"Cannot write the exported file: {error.strerror}", str(path)
    )
