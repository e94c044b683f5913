"""Runs the test suite with the lowest and the newest TensorFlow and Keras.

    python tests/checks/supported_versions.py --environments=~/.cache/keras_sq_versions

Makes a virtual environment for each: `lowest` holds exactly the lower bounds of
`install_requires` in setup.cfg, on the lowest Python of `python_requires`; `newest`
what the package index gives today, on the newest Python of the classifiers. Where
this machine lacks that Python, the next that it has takes its place, and the table
says which. Runs the suite in one after the other and prints a table, its rows as in
CHANGELOG.md; the exit status is 1 if a test fails.

Needs a package index, 4 GB of disk and about 15 minutes on two cores for each. With
`--environments` they are kept, and made again only if what is asked for changes: what
`newest` is, too, stays as it was then. Not part of the test suite. Other Pythons and
pins go by `--python` and `--pin`, more arguments to pytest behind `--`:

    python tests/checks/supported_versions.py --only=newest --python=/opt/python3.12 \
        --pin=tensorflow==2.20.0 -- tests/layers/test_layers.py
"""

import argparse
import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOWN = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
NAMES = ("lowest", "newest")

SUMMARY = re.compile(r"^[= ]*\d+ (passed|failed|error|skipped).* in [\d.]+s")
"""The last line of pytest."""

VERSIONS = """
import importlib.metadata, json, platform, sys
found = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version()} | found))
"""


def metadata():
    """Returns setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lower_bounds():
    """Returns the pins that hold what is required at its lower bound."""
    lines = metadata()["options"]["install_requires"].splitlines()
    required = (line for line in lines if not line.startswith("#"))
    bounds = (line.split(",")[0] for line in required)
    return [bound.replace(">=", "==") for bound in bounds if ">=" in bound]


def python_names():
    """Returns the Pythons of the classifiers, such as `"3.10"`, the lowest first."""
    pattern = r"Python :: (3\.\d+)$"
    found = re.findall(pattern, metadata()["metadata"]["classifiers"], re.MULTILINE)
    return sorted(found, key=lambda name: int(name.split(".")[1]))


def runs(command):
    """Whether a command is there, and a Python that can make environments."""
    try:
        done = subprocess.run([command, "-c", "import venv"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def python_for(name):
    """Returns the command of the first Python that suits and that there is."""
    names = python_names() if name == "lowest" else python_names()[::-1]
    for wanted in names:
        command = f"python{wanted}"
        # pyenv's own commands only tell where others are.
        folders = sorted(pathlib.Path.home().glob(f".pyenv/versions/{wanted}.*/bin"))
        for place in (command, *(str(folder / command) for folder in folders)):
            if runs(place):
                return place
    return sys.executable


def environment(folder, name, command, pins):
    """Makes a virtual environment, or finds it; returns its Python."""
    place = folder / name
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    # What the package itself asks for is part of it: another one is made then.
    settings = metadata()
    required = settings["options"]["install_requires"]
    asked = [command, pins, required, settings["options.extras_require"]["test"]]
    done = place / "done.json"
    if done.exists() and json.loads(done.read_text("utf-8")) == asked:
        return python
    print(f"{name}: installing ...", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([command, "-m", "venv", place], check=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    constraints = place / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in pins), "utf-8")
    package = ["--constraint", constraints, "--editable", f"{ROOT}[test]"]
    subprocess.run([*pip, *package], check=True)
    done.write_text(json.dumps(asked), "utf-8")
    return python


def run_suite(python, arguments):
    """Runs the suite; returns its exit status, last line and seconds."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS")
    outside = {key: value for key, value in os.environ.items() if key not in ours}
    command = [python, "-m", "pytest", "--numprocesses=2", "--dist=loadfile"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=outside | {"PYTHONNOUSERSITE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last = ""
    for line in process.stdout:
        sys.stderr.write(line)
        # Libraries may log behind it, when the workers end.
        if SUMMARY.search(line):
            last = line.strip(" =\n")
    return process.wait(), last, time.monotonic() - start


def outcome(status, last):
    """Returns what became of the suite, such as `"1,200 passed"`."""
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed)", last)
    text = ", ".join(f"{int(count):,} {kind}" for count, kind in counts)
    if status == 0 and text:
        return text
    return f"FAILED: {text or last or f'exit status {status}'}"


def print_table(rows):
    """Prints a table as Markdown has it, for CHANGELOG.md."""
    header = ["", "Python", "TensorFlow", "Keras", "NumPy", "TFDS", "suite", "minutes"]
    lines = [header, ["---"] * len(header), *rows]
    for cells in lines:
        print(f"| {' | '.join(cells)} |")


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", help="Folder to keep; else a temporary one.")
    parser.add_argument("--only", choices=NAMES, help="One of both.")
    parser.add_argument("--python", help="Command of the Python to take for all.")
    parser.add_argument("--pin", action="append", default=[], help="One more, name==x.")
    parser.add_argument("pytest", nargs="*", help="More arguments, to pytest.")
    arguments = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if arguments.environments:
            folder = pathlib.Path(arguments.environments).expanduser().resolve()
        for name in NAMES if arguments.only is None else [arguments.only]:
            pins = [*(lower_bounds() if name == "lowest" else []), *arguments.pin]
            command = arguments.python or python_for(name)
            python = environment(folder, name, command, pins)
            listing = [python, "-c", VERSIONS, *SHOWN]
            text = subprocess.run(listing, check=True, capture_output=True, text=True)
            versions = json.loads(text.stdout)
            status, last, seconds = run_suite(python, arguments.pytest)
            failed = failed or status != 0
            found = [versions[key] for key in ("python", *SHOWN)]
            rows.append([name, *found, outcome(status, last), f"{seconds / 60:.0f}"])
    print_table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
