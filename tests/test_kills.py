"""Runs killed at chosen moments, resumed, compared: the quick form of `kills.py`."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "kills.py"


def kill(*arguments):
    """Returns how many kills fell into what, as the script says."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    fell = dict(re.findall(r"killed in (\w+) +event", run.stdout))
    assert run.stdout.count("ended as the uninterrupted run") >= 1
    number, kinds = re.search(r"(\d+) kills: \{(.*)\}", run.stdout).groups()
    assert fell.keys() == set(re.findall(r"'(\w+)'", kinds))
    return int(number), set(fell)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_run_killed_in_backups_and_export_ends_as_if_never(tmp_path):
    number, kinds = kill("--jobs=fit", "--kills=5", "--seed=1")
    assert number == 5
    assert {"backup", "export"} <= kinds


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills():
    number, kinds = kill("--kills=50")
    assert number == 50
    assert kinds == {"step", "backup", "saving", "export", "report"}
