"""The command as a program of one file, for machines without this package."""

import importlib.resources
import io
import pathlib
import zipfile

PACKAGE = "keras_sq.export.benchmark"

_MAIN = f"""import sys
from {PACKAGE} import command
sys.exit(command.main(sys.argv[1:]))
"""


def write(path: str) -> None:
    """Writes the modules of this folder, as an archive that Python runs.

    Args:
        path: Where to, such as `"benchmark.pyz"`.

    Raises:
        OSError: If it cannot be written.
    """
    content = io.BytesIO()
    folder = PACKAGE.replace(".", "/")
    # The packages around are not those of `keras_sq`, which import Keras.
    files = {"__main__.py": _MAIN, "keras_sq/__init__.py": ""}
    files["keras_sq/export/__init__.py"] = ""
    for entry in importlib.resources.files(PACKAGE).iterdir():
        if entry.name.endswith(".py"):
            files[f"{folder}/{entry.name}"] = entry.read_text("utf-8")
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(name, text)
    pathlib.Path(path).write_bytes(content.getvalue())
