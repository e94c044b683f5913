"""Every code block of the README runs, or is what something else runs."""

import configparser
import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def commands():
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("#")[0].split("&&")]
    return [part.strip() for part in parts if part.strip()]


COMMANDS = {
    "keras_sq.train": "keras_sq.train",
    "keras_sq.sweep": "keras_sq.sweep",
    "keras_sq.export": "keras_sq.export.__main__",
    "keras_sq.inspect": "keras_sq.inspect",
}


def test_blocks_have_a_language_that_is_tested():
    assert {name for name, _ in BLOCKS} <= {"python", "bash", "text"}
    assert blocks("python")
    assert blocks("bash")


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for match in re.finditer(r"^```python\n(.*?)^```$", README, re.M | re.S):
        # The line numbers of a traceback are the README's.
        line = README.count("\n", 0, match.start(1))
        exec(compile("\n" * line + match.group(1), "README.md", "exec"), namespace)
    assert capsys.readouterr().out


def test_the_two_commands_are_there():
    assert "pip install -e . && python -m keras_sq.train\n" in blocks("bash")
    assert 'pip install -e ".[test]" && python -m pytest\n' in blocks("bash")


def test_continuous_integration_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    # There it adds `--quiet` to the first half, and nothing else.
    assert 'pip install --quiet -e ".[test]" && python -m pytest;' in script


@pytest.mark.parametrize("command", commands())
def test_command_is_one_that_exists(command):
    program, *arguments = shlex.split(command)
    if "_CASES=" in program:
        variable = f'"{program.split("=")[0]}"'
        assert variable in (ROOT / arguments[-1]).read_text("utf-8")
        program, *arguments = arguments
    elif "=" in program:
        assert program in ("KERAS_BACKEND=jax", "KERAS_BACKEND=tensorflow")
        program, *arguments = arguments
    if program == "pip":
        extras = re.fullmatch(r"\.(?:\[(\w+)\])?", arguments.pop())[1]
        assert arguments == ["install", "-e"]
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg", "utf-8")
        assert extras is None or extras in settings["options.extras_require"]
    elif arguments[:2] == ["-m", "pytest"]:
        assert arguments[2:] == ["-m", "slow"] or all(
            (ROOT / path).exists() for path in arguments[2:]
        )
    elif arguments[0] == "-m":
        values = flags.FlagValues()
        importlib.import_module(COMMANDS[arguments[1]]).define_flags(values)
        rest = values(arguments[1:])[1:]
        assert (
            len(rest)
            == {"train": 0, "sweep": 0, "export": 2, "inspect": 1}[
                arguments[1].removeprefix("keras_sq.")
            ]
        )
    else:
        assert program in ("python", "bash")
        assert (ROOT / arguments[0]).is_file()
