"""`keras_sq.pack_file` and `keras_sq.unpack_file`.

Design note: **one import inside a function.** Packing reads TFLite's format by a module
of TensorFlow; unpacking does not need it.
"""

import os
import pathlib
from typing import Any

import numpy as np

from keras_sq.export.packed import container, segments
from keras_sq.files import atomic_files

SUFFIX = ".sq"
"""How names of packed files end, such as `model.tflite.sq`."""


def pack_file(
    source: str | os.PathLike[str] | bytes, path: str | os.PathLike[str] | None = None
) -> bytes:
    """Compresses a TFLite file for downloads and app packages.

    An app unpacks it once, to the same bytes: in Python with `keras_sq.unpack_file`, in
    C++, Swift, Java and Kotlin with the sources in `keras_sq/export/packed/decoders/`.
    The codes of quantized kernels take what their entropy is, so all targets of
    `keras_sq.export` have about the same size when packed: choose the fastest, such as
    `"fast"`. Files of other converters can be packed too.

    Args:
        source: The TFLite file: its path, or its bytes.
        path: Path of the packed file, ending in `.sq`; its directory must exist.
            Nothing is written without it.

    Returns:
        The bytes of the packed file.

    Raises:
        ImportError: If TensorFlow is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `source` is no TFLite file, is damaged, is packed already, or has
            more than 2 GiB; or if `path` does not end in `.sq`.
        OSError: If a file cannot be read or written.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> sq_model = keras_sq.quantize_model(model, "ternary", overrides={})
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = f"{directory}/model.tflite"
        ...     report = keras_sq.export(
        ...         sq_model, file, target="fast", allow_untrained=True)
        ...     packed = keras_sq.pack_file(file, f"{file}.sq")
        ...     unpacked = keras_sq.unpack_file(f"{file}.sq")
        >>> len(packed) < 0.6 * report.num_bytes, len(unpacked) == report.num_bytes
        (True, True)
    """
    destination = None if path is None else atomic_files.destination(path, SUFFIX)
    content, name = _read(source)
    problem = "Argument `source` must be a TFLite file. Received: "
    if container.is_packed(content):
        raise ValueError(f"{problem}{name}, which is packed already.")
    if len(content) > container.MAX_BYTES:
        raise ValueError(f"{problem}{name}, which has more than 2 GiB.")
    from keras_sq.export.packed import buffers

    try:
        constants = buffers.constants(content)
    except ValueError as error:
        raise ValueError(f"{problem}{name}: {error}.") from error
    chosen = segments.choose(np.frombuffer(content, np.uint8), constants)
    packed = container.write(content, chosen)
    if container.read(packed) != content:
        raise RuntimeError(
            f"Packing {name} failed: the packed file does not unpack to the same "
            "bytes. Please report this."
        )
    return _write(packed, destination)


def unpack_file(
    source: str | os.PathLike[str] | bytes, path: str | os.PathLike[str] | None = None
) -> bytes:
    """Returns the TFLite file that `keras_sq.pack_file` packed, bit for bit.

    Args:
        source: The packed file: its path, or its bytes.
        path: Path of the unpacked file, ending in `.tflite`; its directory must exist.
            Nothing is written without it.

    Returns:
        The bytes of the TFLite file.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `source` is no packed file, is of another version, or is damaged;
            or if `path` does not end in `.tflite`.
        OSError: If a file cannot be read or written.

    Example:
        >>> keras_sq.unpack_file(b"SQPK")
        Traceback (most recent call last):
            ...
        ValueError: Argument `source` must be a packed file. Received: source of 4 \
bytes: it is cut off.
    """
    destination = None if path is None else atomic_files.destination(path)
    content, name = _read(source)
    try:
        unpacked = container.read(content)
    except ValueError as error:
        raise ValueError(
            f"Argument `source` must be a packed file. Received: {name}: {error}."
        ) from error
    return _write(unpacked, destination)


def _read(source: Any) -> tuple[bytes, str]:
    """Returns the bytes of a source, and how errors call it."""
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        return content, f"source of {len(content):,} bytes"
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "Argument `source` must be a path or bytes. "
            f"Received: source={source!r} (of type {type(source).__name__})"
        )
    source = pathlib.Path(source)
    if source.exists() and not source.is_file():
        raise ValueError(
            f"Argument `source` must name a regular file. Received: source='{source}'"
        )
    return source.read_bytes(), f"source='{source}'"


def _write(content: bytes, destination: pathlib.Path | None) -> bytes:
    if destination is not None:
        with atomic_files.replacing(destination) as write:
            write(content)
    return content
