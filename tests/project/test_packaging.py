"""What is installed, and what setup.cfg promises."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

import keras_sq

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def minima(setup_cfg):
    lines = setup_cfg["options"]["install_requires"].splitlines()
    # Behind a comma stand single versions that are left out.
    return dict(line.split(",")[0].split(">=") for line in lines if ">=" in line)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built with what is installed, from a copy without leftovers."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("keras_sq", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_package_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "keras_sq").rglob("*")
        if path.suffix in (".h", ".java", ".json", ".npz", ".py", ".typed")
        or path.name == "README.md"
    }
    assert {"keras_sq/py.typed", "keras_sq/datasets/data/digits.npz"} <= expected
    assert "keras_sq/experiments/sq.json" in expected
    assert "keras_sq/export/packed/decoders/keras_sq_unpack.h" in expected
    assert "keras_sq/export/packed/decoders/Unpacker.java" in expected
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_wheel_has_the_version_the_license_and_the_readme(wheel):
    (path,) = (x for x in wheel.namelist() if x.endswith(".dist-info/METADATA"))
    text = wheel.read(path).decode()
    assert f"\nVersion: {keras_sq.__version__}\n" in text
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.MULTILINE)
    assert (ROOT / "README.md").read_text("utf-8").strip() in text
    assert any(x.endswith("LICENSE") for x in wheel.namelist())
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_pyproject_does_not_shadow_setup_cfg():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    tables = re.findall(r"^\[+([\w.-]+)", text, re.MULTILINE)
    assert "project" not in {name.split(".")[0] for name in tables}


def test_readme_states_the_lowest_versions(setup_cfg):
    lowest = minima(setup_cfg)
    readme = (ROOT / "README.md").read_text("utf-8")
    python = setup_cfg["options"]["python_requires"].removeprefix(">=")
    for name, version in [
        ("Python", python),
        ("TensorFlow", lowest["tensorflow"]),
        ("Keras", lowest["keras"]),
    ]:
        assert f"{name} {version}" in readme


def test_installed_versions_are_those_required(setup_cfg):
    def parts(version):
        return tuple(int(x) for x in re.findall(r"\d+", version)[:3])

    for name, lowest in minima(setup_cfg).items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = metadata.version(f"{name}-cpu")  # TensorFlow's other name.
        assert parts(installed) >= parts(lowest), name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no bash")
def test_continuous_integration_script_can_be_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_continuous_integration_stops_at_a_failed_step(tmp_path):
    # With a stub in Python's place whose `pip install` of the package fails.
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'echo "python $*"\n'
        'if [ "$2" = venv ]; then\n'
        '    mkdir -p "$3/bin"\n'
        '    for name in python pip ruff mypy; do cp "$0" "$3/bin/$name"; done\n'
        "fi\n"
        'case "$*" in *"[test]"*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    result = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "-e .[test]" in result.stdout
    assert "ruff" not in result.stdout
    assert not list(temporary.iterdir())  # The environment is gone.
