"""Runs the other packages' halves of the pages in `docs/coming-from/`.

    python tests/checks/coming_from.py
    python tests/checks/coming_from.py --python=/path/to/python larq

Each in a virtual environment of its own, since none of them goes with the others' or
this package's requirements; with `--python` in an environment that has them already.
Downloads some gigabytes. This package's halves run in `tests/project/test_docs.py`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import documents  # noqa: E402

PAGES = documents.ROOT / "docs" / "coming-from"
LEGACY = {"TF_USE_LEGACY_KERAS": "1"}
KERAS_2 = ["tensorflow==2.21.*", "tf-keras==2.21.*"]

PEERS = {
    "larq": ([*KERAS_2, "larq==0.14.*", "numpy<2"], LEGACY),
    "qkeras": (["tensorflow==2.21.*", "qkeras-v3==1.2.1"], {}),
    "tfmot": ([*KERAS_2, "tensorflow-model-optimization==0.8.*"], LEGACY),
}
"""Page -> what to install, and the environment that it needs."""


def code_of(peer: str) -> str:
    """Returns the other package's half of a page."""
    found = [b for b in documents.blocks(PAGES / f"{peer}.md") if b.title]
    assert found, peer
    return "\n".join(block.text for block in found)


def python_of(peer: str, folder: pathlib.Path) -> str:
    """Returns the interpreter of a new environment with the package in it."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", *PEERS[peer][0]]
    subprocess.run(command, check=True)
    return python


def main() -> int:
    """Runs those that are asked for, and says which failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peers", nargs="*", default=[])
    parser.add_argument("--python", help="an interpreter that has them installed")
    arguments = parser.parse_args()
    failed = []
    for peer in arguments.peers or PEERS:
        with tempfile.TemporaryDirectory() as folder:
            python = arguments.python or python_of(peer, pathlib.Path(folder, "env"))
            environment = {**os.environ, **PEERS[peer][1], "TF_CPP_MIN_LOG_LEVEL": "3"}
            result = subprocess.run(
                [python, "-c", code_of(peer)], cwd=folder, env=environment
            )
        print(f"{peer}: {'runs' if result.returncode == 0 else 'FAILED'}", flush=True)
        if result.returncode:
            failed.append(peer)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
