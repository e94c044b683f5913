"""The pages of `docs/`: their code runs, and what they say of the package holds.

`mkdocs build --strict` itself is a step of `.ci/run`.
"""

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys

import documents
import keras
import pytest
from backends import needs_jax
from documents import ROOT

import keras_sq
from keras_sq import datasets, models, plots
from keras_sq.conversion.plan import STAYS_FLOAT
from keras_sq.experiments import catalogue
from keras_sq.layers import container, derived, promotion, registry

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCKS = {str(path.relative_to(DOCS)): documents.blocks(path) for path in PAGES}
JAX = "KERAS_BACKEND=jax"
PEERS = ("larq 0.14", "qkeras-v3 1.2", "tfmot 0.8")
"""How titles of other packages' code begin, run by `tests/checks/coming_from.py`."""

NEEDS = {
    "guides/microcontroller.md": "tflite_micro",
    "guides/watching.md": "matplotlib",
}
SLOW = {
    "guides/budget.md",
    "guides/microcontroller.md",
    "guides/trained.md",
    "coming-from/larq.md",
}
"""Those of the pages whose code takes longest."""


def python(page, title=""):
    return [b for b in BLOCKS[page] if b.language == "python" and b.title == title]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page
        for page in BLOCKS
        if python(page)
    ],
)
def test_code_of_page_runs(page, tmp_path, monkeypatch, capsys):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    documents.run(python(page), page)


@needs_jax
@pytest.mark.slow
def test_code_for_jax_runs_on_two_devices(tmp_path):
    found = [block for page in BLOCKS for block in python(page, JAX)]
    assert found
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    for block in found:
        result = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr


def test_blocks_are_of_a_kind_that_is_tested():
    kinds = {(b.language, b.title) for found in BLOCKS.values() for b in found}
    # Those of apps are for reading, but for C++: see `test_packed_decoders.py`.
    apps = {"c", "cpp", "kotlin", "swift"}
    assert {language for language, _ in kinds} <= {"python", "bash", "text", *apps}
    titles = {title for _, title in kinds} - {"", JAX}
    assert all(title.startswith(PEERS) for title in titles)
    assert len(titles) == len(PEERS)


@pytest.mark.parametrize(
    "command",
    sorted({c for found in BLOCKS.values() for c in documents.commands(found)}),
)
def test_command_is_one_that_exists(command):
    documents.check_command(command)


# The API pages.


def documented():
    text = "".join(path.read_text("utf-8") for path in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", text, re.M)


def resolve(dotted):
    """Returns what a dotted name is, through modules and attributes."""
    value = keras_sq
    for part in dotted.split(".")[1:]:
        module = f"{getattr(value, '__name__', '')}.{part}"
        value = sys.modules[module] if module in sys.modules else getattr(value, part)
    return value


def public(module, names=None):
    """Returns the names that a module offers: its own, or imported as themselves."""
    if names is None:
        tree = ast.parse(inspect.getsource(module))
        names = [
            alias.asname
            # Not of the body only: some are imported when they are asked for.
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.asname == alias.name
        ] + [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
    return {
        f"{module.__name__}.{name}"
        for name in names
        if not name.startswith("_") and callable(getattr(module, name))
    }


def test_every_public_name_is_on_an_api_page():
    wanted = public(keras_sq, keras_sq.__all__)
    for module in (
        keras_sq.activation_rules,
        keras_sq.callbacks,
        keras_sq.layers,
        keras_sq.learning_rates,
        keras_sq.presets,
        keras_sq.quantizers,
        keras_sq.schedules,
        datasets,
        catalogue,
        models,
        plots,
    ):
        wanted |= public(module)
    # The package of this name hides the function from `resolve`.
    wanted.remove("keras_sq.export")
    wanted.add("keras_sq.export.export")
    found = documented()
    shown = {id(resolve(name)) for name in found}
    missing = [name for name in sorted(wanted) if id(resolve(name)) not in shown]
    assert not missing
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", documented())
def test_name_on_an_api_page_is_there_and_says_what_it_does(name):
    text = resolve(name).__doc__
    assert text and not text.startswith(f"{name.rpartition('.')[2]}(")


# The table of layers.


def tables(page):
    """Returns the tables of a page: lists of rows of cells, without the head."""
    text = (DOCS / page).read_text("utf-8")
    found = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    return [
        [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines()
        ]
        for table in found
    ]


def adds_weights(layer_class):
    """Whether a layer class, or one that it is derived from, has weights."""
    return any(
        "add_weight(" in inspect.getsource(base)
        for base in layer_class.__mro__
        if base.__module__.startswith("keras.src.layers.") and base is not keras.Layer
    )


def test_table_of_layers_is_that_of_the_package():
    quantized, holders, elsewhere, floats = tables("coverage.md")
    covered = {
        base.__name__: ", ".join(cls.quantized_weights)
        for base, cls in registry.covered().items()
        if base.__module__.startswith("keras.")
    }
    assert {row[0]: row[1] for row in quantized} == covered
    names = [name for name in dir(keras.layers) if not name.startswith("_")]
    containers = {
        name
        for name in names
        if container.static_container(getattr(keras.layers, name)) is not None
    }
    assert {row[0] for row in holders} == containers
    in_hub = {name for package, name in derived.ELSEWHERE if package == "keras_hub"}
    assert {name for name, *_ in elsewhere} == in_hub
    for name, weights, filters in elsewhere:
        entry = derived.ELSEWHERE["keras_hub", name]
        # What is conditional says on what, after a comma.
        assert weights.split(", ")[0] in (*entry.weights, "the kernels of all experts")
        row, output, of_expert = "a row", "an output", "an output of an expert"
        assert (
            filters == {(0,): row, (1,): output, (0, 2): of_expert}[entry.filter_axes]
        )
    for name, reason in floats:
        layer_class = getattr(keras.layers, name)
        assert promotion.quantized_class(layer_class) is None
        assert STAYS_FLOAT.get(layer_class, reason) == reason
    # No layer of Keras with weights is forgotten.
    for layer_class in {getattr(keras.layers, name) for name in names}:
        if isinstance(layer_class, type) and adds_weights(layer_class):
            assert layer_class.__name__ in {
                row[0] for row in (*quantized, *holders, *floats)
            }


# Messages.


def messages():
    """Returns every text of the package's source, with … for what is filled in."""
    found = []
    for path in (ROOT / "keras_sq").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted():
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    return re.findall(r"^> (.*)$", text, re.M)


@pytest.fixture(scope="module")
def texts():
    return messages()


@pytest.mark.parametrize("message", quoted())
def test_message_is_one_of_the_package(message, texts):
    assert any(message in text for text in texts)


def test_enough_messages_are_explained():
    assert len(quoted()) > 25


# Complaints, links, the index.


def test_ten_complaints_each_have_an_answer_that_runs():
    text = (DOCS / "missed.md").read_text("utf-8")
    sections = re.split(r"^## (\d+)\. ", text, flags=re.M)[1:]
    assert [int(number) for number in sections[::2]] == list(range(1, 11))
    for section in sections[1::2]:
        assert re.search(r"^```python\n.*?^\s*assert .*?^```$", section, re.M | re.S)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert sorted(re.findall(r": (\S+\.md)$", text, re.M)) == sorted(BLOCKS)


def test_links_between_pages_lead_somewhere():
    for path in PAGES:
        text = path.read_text("utf-8")
        for link in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).resolve().is_file(), (path.name, link)


def test_continuous_integration_builds_the_pages():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert 'pip install --quiet -e ".[docs]" && mkdocs build --strict' in script
    assert pathlib.Path(ROOT / "mkdocs.yml").is_file()
