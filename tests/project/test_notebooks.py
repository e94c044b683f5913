"""Every notebook runs from its first cell to its last, with few epochs.

What is kept in them, tables and pictures, is from a run at full length.
"""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

SMALL = {
    "01_quickstart": {"EPOCHS": 4},
    "02_your_own_model": {"FLOAT_EPOCHS": 1, "EPOCHS": 1},
    "03_microcontroller": {"FLOAT_EPOCHS": 1, "EPOCHS": 1},
    "04_stochastic_quantization": {"EPOCHS": 2, "ABLATION_EPOCHS": 1, "SEEDS": 1},
    "05_codebooks_and_binary": {"FLOAT_EPOCHS": 1, "EPOCHS": 1, "BINARY_EPOCHS": 2},
    "06_defaults": {"EPOCHS": 1},
}
"""Notebook -> its parameters, and their values in the test."""

QUICK = ("01_quickstart",)
NEEDS = {"02": "ai_edge_litert", "03": "tflite_micro"}
PICTURES = {"02": 2, "03": 1, "04": 6, "05": 2, "06": 2}
"""The least number of pictures that are kept."""


def cells_of(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def outputs_of(path):
    return [o for c in cells_of(path) if c["cell_type"] == "code" for o in c["outputs"]]


def test_notebooks_are_those_known_here():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, tmp_path, monkeypatch):
    module = NEEDS.get(path.stem[:2])
    if module is not None:
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the commands in it
    code = ["".join(c["source"]) for c in cells_of(path) if c["cell_type"] == "code"]
    for name, value in SMALL[path.stem].items():
        pattern = re.compile(rf"^{name} = \d+$", re.MULTILINE)
        assert sum(len(pattern.findall(cell)) for cell in code) == 1, name
        code = [pattern.sub(f"{name} = {value}", cell) for cell in code]
    namespace: dict[str, object] = {"__name__": "__main__"}
    try:
        for number, cell in enumerate(code):
            exec(compile(cell, f"{path.name}[{number}]", "exec"), namespace)
    finally:
        if "plt" in namespace:
            namespace["plt"].close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_its_outputs(path):
    assert path.stat().st_size < 1_000_000
    outputs = outputs_of(path)
    assert outputs
    assert not any(o["output_type"] == "error" for o in outputs)
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= PICTURES.get(path.stem[:2], 0)
    # Neither warnings nor what is only of the machine it was made on.
    assert not any(o.get("name") == "stderr" for o in outputs)
    text = "".join("".join(o.get("text", ())) for o in outputs)
    assert "/tmp" not in text and "/home" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_of_notebook_ran_in_order(path):
    counts = [c["execution_count"] for c in cells_of(path) if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
