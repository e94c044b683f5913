"""Runs killed at chosen moments, resumed, compared: the quick form of `kills.py`."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

# The runs that are killed export, too.
pytestmark = pytest.mark.tensorflow

SCRIPT = pathlib.Path(__file__).parents[1] / "checks/kills.py"


def kill(*arguments):
    """Returns what the kills fell into, as the script says."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ended as the uninterrupted run" in run.stdout
    fell = re.findall(r"killed in (\w+) +event", run.stdout)
    assert f"{len(fell)} kills: " in run.stdout
    return fell


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_run_killed_in_backups_and_export_ends_as_if_never():
    fell = kill("--jobs=fit", "--kills=3", "--seed=1")
    assert len(fell) == 3
    assert {"backup", "export"} <= set(fell)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills():
    fell = kill("--kills=50")
    assert len(fell) == 50
    assert set(fell) == {"step", "backup", "saving", "export", "report"}
