"""Every notebook runs from its first cell to its last, with few epochs."""

import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    assert path.stat().st_size < 1_000_000
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert any("EPOCHS = 12" in cell for cell in code)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        source = cell.replace("EPOCHS = 12", "EPOCHS = 4")
        exec(compile(source, f"{path.name}[{number}]", "exec"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_its_outputs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert outputs
    assert not any(o["output_type"] == "error" for o in outputs)
