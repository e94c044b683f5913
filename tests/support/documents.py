"""Reading documents: their code blocks, and whether commands in them exist."""

import configparser
import importlib
import pathlib
import re
import shlex
from typing import NamedTuple

from absl import flags

ROOT = pathlib.Path(__file__).parents[2]

PROGRAMS = {
    "keras_sq.train": ("keras_sq.experiments.flags", 0),
    "keras_sq.sweep": ("keras_sq.experiments.sweep", 0),
    "keras_sq.export": ("keras_sq.export.__main__", 2),
    "keras_sq.pack": ("keras_sq.export.packed.command", 2),
    "keras_sq.inspect": ("keras_sq.export.inspection.command", 1),
    "keras_sq.benchmark": ("keras_sq.export.benchmark.command", None),
}
"""Module of `python -m` -> where its flags are, and its number of arguments.

The number is `None` where argparse counts them: without absl, as on devices.
"""


class Block(NamedTuple):
    """A block of code: language, title (or ""), text, line of the text from 1."""

    language: str
    title: str
    text: str
    line: int


def blocks(path):
    """Returns the code blocks of a document, in order."""
    text = path.read_text("utf-8")
    fence = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.M | re.S)
    found = [
        Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start(3)) + 1)
        for m in fence.finditer(text)
    ]
    # A fence that the pattern does not know would go untested.
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.M)), path
    return found


def run(blocks_to_run, name):
    """Runs blocks of Python in one namespace, and returns it."""
    namespace = {"__name__": "document"}
    for block in blocks_to_run:
        # The line numbers of a traceback are the document's.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, name, "exec"), namespace)
    return namespace


def commands(blocks_to_read):
    """Returns the commands in blocks of bash, without comments."""
    text = "".join(b.text for b in blocks_to_read if b.language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("#")[0].split("&&")]
    return [part.strip() for part in parts if part.strip()]


def check_command(command):
    """Raises unless a command's program, flags and number of arguments exist."""
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
    elif program == "mkdocs":
        assert arguments in (["serve"], ["build", "--strict"])
        assert (ROOT / "mkdocs.yml").is_file()
    elif arguments[:2] == ["-m", "pytest"]:
        assert arguments[2:] == ["-m", "slow"] or all(
            (ROOT / path).exists() for path in arguments[2:]
        )
    elif arguments[0] == "-m":
        name, number = PROGRAMS[arguments[1]]
        module = importlib.import_module(name)
        if number is None:
            assert module.parser().parse_args(arguments[2:])
            return
        values = flags.FlagValues()
        module.define_flags(values)
        assert len(values(arguments[1:])[1:]) == number
    else:
        assert program in ("python", "bash")
        assert (ROOT / arguments[0]).is_file()
