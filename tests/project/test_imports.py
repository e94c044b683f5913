"""Imports point one way, and what is heavy or forced stays in its place."""

import ast
import pathlib
import re
import subprocess
import sys
import tokenize

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "keras_sq"

# From the bottom up; a room imports parts of its own row and of those above it.
ROWS = [
    {"core"},
    {"files", "inputs"},
    {"quantizers"},
    {"layers"},
    {"schedules"},
    {"callbacks"},
    {"conversion"},
    {"models", "datasets"},
    {"analysis"},
    {"export"},
    {"experiments"},
    {"train", "sweep", "inspect", "benchmark", "pack"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}

# The training path is written in `keras.ops`.
NAMES_TENSORFLOW = {
    "layers.split_update",
    "core.backend",
    "core.compilation",
    "export",
    "datasets",
}
NAMES_TENSORFLOW |= {"core.quiet_start", "core.call_values", "experiments.train"}
NAMES_TENSORFLOW |= {"callbacks.tensorboard"}  # Writes by it, on any backend.
NAMES_TENSORFLOW_DATASETS = {"datasets"}
REACHES_BELOW_KERAS = {"core.keras_internals", "core.keras_copying"}


def modules():
    """Returns dotted name within the package -> path, but for `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(name):
    """Returns the modules that a module imports, inside functions too."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                inside = submodule.removeprefix("keras_sq.")
                found.add(submodule if inside in MODULES else node.module)
    return found


def own_imports(name):
    prefix = "keras_sq."
    found = imports(name)
    return {x.removeprefix(prefix) for x in found if x.startswith(prefix)}


def part(name):
    return name.split(".")[0]


def test_every_module_has_a_row():
    assert {part(name) for name in MODULES} == set(RANK)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    # Through the package's own `__init__`, everything would import everything.
    assert "keras_sq" not in imports(name)
    for other in own_imports(name):
        assert RANK[part(other)] <= RANK[part(name)], f"{name} imports {other}"


def test_imports_have_no_cycle():
    graph = {name: own_imports(name) & set(MODULES) for name in MODULES}
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


# They say that a thing is, not what it is.
EMPTY_NAMES = {"found", "given", "held", "look", "made", "own", "there"}


def test_names_say_what_they_hold():
    empty = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.arg) and node.arg in EMPTY_NAMES)
        or (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
            and node.id in EMPTY_NAMES
        )
    ]
    assert empty == []


# Of another repository; what a command writes.
NOT_OURS = {"get_dataset.py", "larq.py", "cifar10-vgg-small.py"}
NOT_OURS |= {"qat_resnet_cifar10.py", "failed/", "cifar10/", "kit/", "site/"}
FILE_OR_FOLDER = re.compile(r"[\w/-]*\w\.py\b|(?<=`)[\w/-]+/(?=`)")
ROOT = PACKAGE.parent
TEXTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", ".ci/run", "setup.cfg")
]
TEXTS += sorted((ROOT / "docs").rglob("*.md"))


def named_files(path):
    """Returns the files and folders that a text, or comments and docstrings, name."""
    if path.suffix != ".py":
        text = path.read_text("utf-8")
        return set(re.findall(r"\b(?:tests|keras_sq|docs)/[\w/.-]*\w", text))
    names = set()
    with open(path, encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            text = token.type == tokenize.STRING and '"""' in token.string[:5]
            if text or token.type == tokenize.COMMENT:
                names.update(FILE_OR_FOLDER.findall(token.string))
    return names - NOT_OURS


def test_files_named_in_texts_and_comments_exist():
    paths = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
    named = {path: named_files(path) for path in paths + TEXTS}
    assert sum(map(len, named.values())) > 200
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, names in named.items()
        for name in sorted(names)
        # From the folder of the file, or one above it.
        if not any(
            (folder / name).exists()
            for folder in path.parents
            if folder.is_relative_to(ROOT)
        )
        # Names of test files are unique: their folder need not be named.
        and not (name in tests and path.is_relative_to(ROOT / "tests"))
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("tensorflow", NAMES_TENSORFLOW),
        ("tensorflow_datasets", NAMES_TENSORFLOW_DATASETS),
        ("keras.src", REACHES_BELOW_KERAS),
    ],
)
def test_module_is_imported_in_its_place_only(module, allowed):
    users = {
        name if name in allowed else part(name)
        for name in MODULES
        for other in imports(name)
        if f"{other}.".startswith(f"{module}.")
    }
    assert users == allowed


def test_import_is_light():
    # Keras brings some of it, if installed; the package adds nothing. It takes 0.1
    # seconds; the time of the processor, as that of the clock is others' matter too.
    code = """
import sys, time
import keras, tensorflow
before = set(sys.modules)
start = time.process_time()
import keras_sq
seconds = time.process_time() - start
assert seconds < 0.3, f"importing keras_sq takes {seconds:.2f} s"
heavy = {"tensorflow_datasets", "matplotlib", "ai_edge_litert", "sklearn"}
heavy |= {"pandas", "tensorboard", "tflite_micro", "larq_compute_engine"}
heavy |= {f"keras_sq.{x}" for x in ("experiments", "datasets", "models")}
heavy |= {f"keras_sq.{x}" for x in ("analysis.plots", "export.inspection")}
heavy |= {"keras_sq.export.benchmark"}
heavy |= {"keras_sq.export.tflite.flatbuffer"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
