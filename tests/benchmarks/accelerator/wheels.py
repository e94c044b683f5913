"""Keras and what it needs on JAX, as wheels: from the package index, or as installed.

Runs where the kit is packed. A wheel is a zip file whose content is put on
`sys.path`; that is all that `unpack.py` does with it.
"""

import pathlib
import subprocess
import sys
import zipfile
from importlib import metadata
from typing import Any

from pieces import KitError

PROVIDED = ("numpy", "ml-dtypes")
"""JAX needs these too, so a machine with JAX has them."""

PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""Oldest names of Linux systems that wheels are taken for: glibc 2.28 or later."""

MACHINE = "x86_64"

ZIP_TIME = (2020, 1, 1, 0, 0, 0)
"""Of all files: the same content gives the same zip file."""


def needed() -> dict[str, str]:
    """Returns what travels: name -> version, as installed here.

    Keras, Pillow, and all that Keras needs besides `PROVIDED`.

    Raises:
        KitError: If one of them is not installed here.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    waiting = ["keras", "pillow"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in versions or name in PROVIDED:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise KitError(f"{name} is not installed: pip install {name}") from error
        versions[name] = distribution.version
        for line in distribution.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return dict(sorted(versions.items()))


def download(folder: pathlib.Path, python: str) -> None:
    """Fetches the wheels from the package index by pip.

    Args:
        folder: Path of an existing folder for the wheels.
        python: String such as `"3.12"`: version of Python that they are for.

    Raises:
        KitError: If pip cannot fetch one of them.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={python}", f"--dest={folder}"]
    command += [f"--platform={name}_{MACHINE}" for name in PLATFORMS]
    command += [f"{name}=={version}" for name, version in needed().items()]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        errors = [x for x in result.stderr.splitlines() if x.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["pip failed"])[-1]
        raise KitError(
            f"pip cannot fetch the wheels for Python {python}: {reason} (without a "
            "package index, --wheels=installed takes the installed packages)"
        )


def from_installed(folder: pathlib.Path) -> None:
    """Makes the wheels of the packages that are installed here.

    They suit this version of Python and this kind of processor only.

    Args:
        folder: Path of an existing folder for the wheels.

    Raises:
        KitError: If the files of one package are not known.
    """
    for name, version in needed().items():
        files = {
            str(file): pathlib.Path(str(file.locate()))
            for file in metadata.distribution(name).files or []
            # Scripts lie outside, in `../../../bin`.
            if ".." not in file.parts and file.suffix != ".pyc"
        }
        if not any(path.endswith(".py") for path in files):
            raise KitError(
                f"The files of the installed package {name} are not known: install "
                "it as a wheel (not editable), or pack with --wheels=download."
            )
        stem = f"{name.replace('-', '_')}-{version}-installed"
        write_zip(folder / f"{stem}.whl", files)


def write_zip(target: Any, files: dict[str, pathlib.Path]) -> None:
    """Writes a zip file.

    Args:
        target: Path of the zip file, or a binary file to write to.
        files: Dictionary: name inside -> path of the file.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(files.items()):
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
