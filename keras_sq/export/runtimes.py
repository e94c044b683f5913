"""Which runtimes run which files, and the argument `oldest_runtime` of `export`.

What a file needs comes from the types of its constants: INT4 and INT2 are young.
"""

import re
from collections.abc import Iterable

EVERY_RUNTIME = ("tflite-runtime >= 2.14", "LiteRT >= 1.0.1", "TensorFlow >= 2.14")
"""The oldest versions that files were tried on."""

PRODUCT_RUNTIMES = ("LiteRT >= 2.1.4", "TensorFlow >= 2.21")
"""The oldest versions that multiply INT2 weights as they are.

LiteRT 2.1.2 and TensorFlow 2.21 are right, but about ten times slower; LiteRT 2.1.0
fails on float inputs; older ones refuse.
"""

INT4_RUNTIMES = ("LiteRT >= 1.0.1", "TensorFlow >= 2.18")
INT2_RUNTIMES = ("LiteRT >= 2.1", "TensorFlow >= 2.21")

RUNTIMES_OF_TYPES = {
    "INT2 weights": PRODUCT_RUNTIMES,
    "INT2": INT2_RUNTIMES,
    "INT4": INT4_RUNTIMES,
}
"""Type of codes -> the oldest versions that read it; every runtime reads INT8.

`"INT2 weights"` are multiplied as they are, those of 4 bits too.
"""

EXAMPLE = "LiteRT 1.0.1"

_VERSION = re.compile(r"\s*([a-z-]+)\s*(?:>=)?\s*(\d+(?:\.\d+)*)\s*", re.IGNORECASE)


def types(oldest_runtime: str | None) -> tuple[str, ...]:
    """Returns the types of codes that a runtime and all later versions read.

    Args:
        oldest_runtime: A runtime and its version, such as `"LiteRT 1.0.1"`; `None`
            for the newest.

    Raises:
        TypeError: If it is no string.
        ValueError: If it names no known runtime, or a version that is too old.
    """
    if oldest_runtime is None:
        return (*RUNTIMES_OF_TYPES, "INT8")
    if not isinstance(oldest_runtime, str):
        raise TypeError(
            "Argument `oldest_runtime` must be `None` or a string such as "
            f"'{EXAMPLE}'. Received: oldest_runtime={oldest_runtime!r} (of type "
            f"{type(oldest_runtime).__name__})"
        )
    every = _oldest(EVERY_RUNTIME)
    match = _VERSION.fullmatch(oldest_runtime)
    name = match[1].lower() if match else ""
    if match is None or name not in every:
        names = ", ".join(f"'{entry.split()[0]}'" for entry in EVERY_RUNTIME)
        raise ValueError(
            f"Argument `oldest_runtime` must be one of {names}, and a version, such "
            f"as '{EXAMPLE}'. Received: oldest_runtime={oldest_runtime!r}"
        )
    version = _numbers(match[2])
    if version < every[name]:
        (least,) = (x for x in EVERY_RUNTIME if x.lower().startswith(name))
        raise ValueError(
            "Argument `oldest_runtime` must not be older than what the files were "
            f"tried on, {least}. Received: oldest_runtime={oldest_runtime!r}"
        )
    young = [
        kind
        for kind, runtimes in RUNTIMES_OF_TYPES.items()
        if name in _oldest(runtimes) and version >= _oldest(runtimes)[name]
    ]
    return (*young, "INT8")


def needed(stored_as: Iterable[str]) -> tuple[str, ...]:
    """Returns the oldest runtimes of a file.

    Args:
        stored_as: How it holds its kernels, such as `"INT4 codes"`.
    """
    stored = set(stored_as)
    if stored & {"INT2 weights", "INT4 weights"}:
        return PRODUCT_RUNTIMES
    for kind, runtimes in RUNTIMES_OF_TYPES.items():
        if f"{kind} codes" in stored:
            return runtimes
    return EVERY_RUNTIME


def _oldest(runtimes: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Returns name of a runtime, in lower case -> version."""
    parts = [entry.lower().split(" >= ") for entry in runtimes]
    return {name: _numbers(version) for name, version in parts}


def _numbers(version: str) -> tuple[int, ...]:
    # 2.1.0 is 2.1.
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
