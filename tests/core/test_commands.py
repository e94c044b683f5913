"""How the commands end: what is no flag, and Ctrl-C."""

import io
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from keras_sq.core import commands

SAID = {"example": "--size=3", "goes_on": "Call it again."}


def test_returns_the_status_of_the_command_which_gets_the_flags():
    calls = []

    def main(*arguments):
        calls.append(arguments)
        return 7

    assert commands.run("tool", main, ["tool", "a.txt"]) == 7
    assert calls == [(flags.FLAGS, ["a.txt"])]


def test_refuses_what_is_no_flag_before_anything_runs(capsys):
    def main(*_):
        pytest.fail("ran")

    assert commands.run("tool", main, ["tool", "size=4"], **SAID) == 2
    message = capsys.readouterr().err
    assert "tool: error: unknown argument 'size=4'" in message
    assert "--size=3" in message


def test_an_interrupted_command_says_how_it_goes_on(capsys):
    def main(*_):
        raise KeyboardInterrupt

    assert commands.run("tool", main, ["tool"], **SAID) == 130
    assert "Call it again." in capsys.readouterr().err


def test_letters_that_the_terminal_lacks_end_no_command(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    assert commands.run("tool", lambda *_: print("in b\xe4 \udcff") or 0, ["tool"]) == 0
    sys.stdout.flush()
    assert output.getvalue() == b"in b? ?\n"


def test_commands_start_without_small_talk():
    made = subprocess.run(
        [sys.executable, "-m", "keras_sq.train", "--no_such_flag"],
        env={
            k: v
            for k, v in os.environ.items()
            if k not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_SQ_LOG_LEVEL")
        },
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert made.stderr.startswith("keras_sq.train: error: Unknown command line flag ")
    assert made.stderr.count("\n") == 1
    for words in ("WARNING: All log messages", "oneDNN", "cuda", "rebuild TensorFlow"):
        assert words not in made.stderr


TALK = """
import os, sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", sys.argv[1]]
import importlib.util
spec = importlib.util.spec_from_file_location("quiet", os.environ["QUIET"])
quiet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quiet)
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\\n"
         b"I0000 00:00:1795846780.524939   1 port.cc:153] oneDNN\\n"
         b"E0000 00:00:1795846780.524939   1 x.cc:1] honest\\n"
         b"2026-01-01 10:00:00.123456: I tensorflow/x.cc:1] small\\n"
         b"no end of line")
if os.environ["THEN"] == "crash":
    os.abort()
if os.environ["THEN"] == "end":
    quiet.end()
os.write(2, b"\\nI0000 00:00:1 after\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs fork.")
@pytest.mark.parametrize("then", ["end", "exit", "crash"])
@pytest.mark.parametrize("module", ["keras_sq.train", "other.train"])
def test_only_small_talk_is_dropped_even_by_a_crash(then, module):
    path = pathlib.Path(commands.__file__).with_name("quiet_start.py")
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_SQ_LOG_LEVEL")
    }
    made = subprocess.run(
        [sys.executable, "-c", TALK, module],
        env=environment | {"QUIET": str(path), "THEN": then},
        capture_output=True,
        text=True,
    )
    ours = module.startswith("keras_sq.")
    assert ("oneDNN" in made.stderr) is not ours
    assert ("small" in made.stderr) is not ours
    assert "x.cc:1] honest\n" in made.stderr
    assert "no end of line" in made.stderr
    if then == "end":
        assert "I0000 00:00:1 after" in made.stderr
