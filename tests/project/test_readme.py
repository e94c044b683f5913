"""Every code block of the README runs, or is what something else runs."""

import documents
import pytest
from documents import ROOT

BLOCKS = documents.blocks(ROOT / "README.md")


def blocks(language):
    return [block.text for block in BLOCKS if block.language == language]


def test_blocks_have_a_language_that_is_tested():
    assert {block.language for block in BLOCKS} <= {"python", "bash", "text"}
    assert blocks("python")
    assert blocks("bash")


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    documents.run([b for b in BLOCKS if b.language == "python"], "README.md")
    assert capsys.readouterr().out


def test_the_two_commands_are_there():
    assert "pip install -e . && python -m keras_sq.train\n" in blocks("bash")
    assert 'pip install -e ".[test]" && python -m pytest\n' in blocks("bash")


def test_continuous_integration_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    # There it adds `--quiet` to the first half, and nothing else.
    assert 'pip install --quiet -e ".[test]" && python -m pytest;' in script


@pytest.mark.parametrize("command", documents.commands(BLOCKS))
def test_command_is_one_that_exists(command):
    documents.check_command(command)
