"""Reads one TFLite file, out of harm's way: a program that `reader.py` runs.

    worker.py PATH MAX_BYTES

prints one JSON object: `{"error": null, "contents": {...}}`, or why the file cannot be
read. MAX_BYTES limits the memory of the process, besides the file itself. A file that
takes too long, or that crashes the interpreter, ends this process only.

Design note: starting TensorFlow and Keras takes seconds, and nothing of them is needed
here but the schema of the format. So this program imports the modules next to it, and
the schema, without the `__init__` of the packages around them.
"""

import importlib
import importlib.util
import json
import mmap
import pathlib
import sys
import types
from typing import Any

_READ = mmap.ACCESS_READ


def main(path: str, max_bytes: int) -> None:
    """Runs the program.

    Args:
        path: Path of the file.
        max_bytes: Memory that the process may use besides the file.
    """
    module = importlib.import_module("keras_sq.export.inspection.contents")
    answer: dict[str, Any] = {"error": None}
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            content = b"" if not size else mmap.mmap(file.fileno(), 0, access=_READ)
        limit_memory(size + max_bytes)
        answer["contents"] = module.contents(content)
    except module.InvalidFile as error:
        answer["error"] = str(error)
    except MemoryError:
        answer["error"] = f"it takes more than {max_bytes:,} bytes of memory"
    json.dump(answer, sys.stdout)


def limit_memory(num_bytes: int) -> None:
    """Limits the memory of this process, where the system can."""
    try:
        import resource
    except ImportError:  # On Windows.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def import_bare(name: str, folder: pathlib.Path) -> None:
    """Makes modules of a package importable without the `__init__` of the package."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]


if __name__ == "__main__":
    del sys.path[0]  # Beside this file are modules that could be taken for others.
    package = pathlib.Path(__file__).parents[2]
    import_bare("keras_sq", package)
    import_bare("keras_sq.export", package / "export")
    spec: Any = importlib.util.find_spec("tensorflow")
    tensorflow = pathlib.Path(*spec.submodule_search_locations)
    import_bare("tensorflow", tensorflow)
    import_bare("tensorflow.lite", tensorflow / "lite")
    import_bare("tensorflow.lite.python", tensorflow / "lite" / "python")
    importlib.import_module("keras_sq.export.inspection.contents")
    # Where LiteRT is not installed, the interpreter is that of all of TensorFlow.
    for name in [name for name in sys.modules if name.startswith("tensorflow")]:
        del sys.modules[name]
    main(sys.argv[1], int(sys.argv[2]))
