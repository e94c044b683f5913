"""How the commands end: what is no flag, and Ctrl-C."""

import pytest
from absl import flags

from keras_sq import _commands

SAID = {"name": "tool", "example": "--size=3", "goes_on": "Call it again."}


def test_returns_the_status_of_the_command_which_gets_the_flags():
    given = []
    assert _commands.run(lambda f: given.append(f) or 7, ["tool"], **SAID) == 7
    assert given == [flags.FLAGS]


def test_refuses_what_is_no_flag_before_anything_runs(capsys):
    def main(_):
        pytest.fail("ran")

    assert _commands.run(main, ["tool", "size=4"], **SAID) == 2
    message = capsys.readouterr().err
    assert "tool: error: unknown argument 'size=4'" in message
    assert "--size=3" in message


def test_an_interrupted_command_says_how_it_goes_on(capsys):
    def main(_):
        raise KeyboardInterrupt

    assert _commands.run(main, ["tool"], **SAID) == 130
    assert "Call it again." in capsys.readouterr().err
