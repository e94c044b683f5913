"""Environments of child processes in which packages are missing that are installed."""

import pathlib

SITE_CUSTOMIZE = '''
import pathlib
import sys
from importlib.machinery import PathFinder

HIDDEN, FROM = {hidden!r}, {only_from!r}


class Hide:
    """Says of packages that they are not installed, wherever else they lie."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in HIDDEN:
            return None
        folders = [p for p in sys.path if FROM and pathlib.Path(p).name == FROM]
        spec = PathFinder.find_spec(name, folders)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return spec


sys.meta_path.insert(0, Hide)
'''
"""Python imports a module of this name at its start, also in processes of processes."""

TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorflow_metadata")


def hide(folder: pathlib.Path, packages: tuple[str, ...], only_from: str = "") -> str:
    """Returns a folder for PYTHONPATH with which packages cannot be imported.

    Args:
        folder: Path of an empty folder.
        packages: Names of the packages.
        only_from: Name of folders on `sys.path` where they may be after all.
    """
    text = SITE_CUSTOMIZE.format(hidden=tuple(packages), only_from=only_from)
    (folder / "sitecustomize.py").write_text(text, "utf-8")
    return str(folder)
