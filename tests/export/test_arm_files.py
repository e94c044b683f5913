"""Parts of `tests/checks/arm_files.py`, which needs an emulator for the rest."""

import os
import pathlib
import subprocess
import sys

import arm_files
import exported_files
import keras
import numpy as np
import pytest

import keras_sq
from keras_sq.export.tflite import runtime
from keras_sq.export.tflite.flatbuffer import TYPE_NAMES, TFLiteFile

CHECK = pathlib.Path(arm_files.__file__)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Returns case -> path of the files of a ternary network."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(24)]
    model = keras.Sequential([keras.Input((16,)), *layers])
    quantized = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    cases = {name: (name, False) for name in ("fast", "int2", "int4")}
    cases["int8"] = ("int8", True)
    folder = tmp_path_factory.mktemp("files")
    return exported_files.export(quantized, folder, cases, "small", 5)


def kernel_types(path):
    """Returns the types of what FULLY_CONNECTED reads, and all operators."""
    file = TFLiteFile(path.read_bytes())
    (graph,) = file.subgraphs
    names = [file.operator_name(operator) for operator in graph.operators]
    types = {
        TYPE_NAMES[graph.tensors[operator.inputs[1]].type]
        for operator, name in zip(graph.operators, names, strict=True)
        if name == "FULLY_CONNECTED"
    }
    return types, set(names)


def outputs(path):
    """Returns the outputs for the inputs that were written beside a file."""
    runner = runtime.Runner(path.read_bytes())
    (name,) = runner.inputs
    with np.load(path.with_suffix(".in.npz")) as content:
        (examples,) = content.values()
    (result,) = runner({name: examples}).values()
    return result


def test_int2_kernels_of_an_int8_file_compute_the_same(paths):
    assert kernel_types(paths["int8"])[0] == {"INT8"}
    assert kernel_types(paths["int8, dense INT2"])[0] == {"INT2"}
    expected = outputs(paths["int8"])
    assert expected.dtype == np.int8
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(outputs(paths["int8, dense INT2"]), expected)


@pytest.mark.parametrize("case", ["fast", "int2", "int4"])
def test_direct_kernels_leave_out_the_unfolding(case, paths):
    (direct,) = (key for key in paths if key.startswith(f"{case}, dense"))
    types, operators = kernel_types(paths[direct])
    assert types == {direct.split()[-1]}
    assert operators == {"FULLY_CONNECTED"}
    expected = outputs(paths[case])
    # Activations are rounded to 255 levels.
    difference = np.max(np.abs(outputs(paths[direct]) - expected))
    assert 0 < difference < 0.02 * np.max(np.abs(expected))


def test_other_levels_do_not_become_int2(paths):
    file = TFLiteFile(paths["int8"].read_bytes())
    for _, _, tensor in file.constants():
        if TYPE_NAMES[tensor.type] == "INT8":
            values = file.array(tensor).copy()
            values.reshape(-1)[0] = 5
            tensor.buffer = file.add_buffer(values)
    assert exported_files.with_int2_kernels(file.pack()) is None
    assert exported_files.with_direct_kernels(file.pack()) is None


def test_outputs_of_every_kind_of_kernel_are_written(paths, tmp_path):
    path = paths["int8, dense INT2"]
    for source in (path, path.with_suffix(".in.npz")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    program = arm_files.FOLDER / "run_files.py"
    command = [sys.executable, program, "outputs", tmp_path, arm_files.HERE]
    assert arm_files.run(command).startswith("LiteRT ")
    results = tmp_path / path.with_suffix(f".{arm_files.HERE}.npz").name
    with np.load(results) as content:
        written = dict(content)
    assert set(written) == {"xnnpack:0", "builtin:0"}
    np.testing.assert_array_equal(written["xnnpack:0"], outputs(path))
    # Another machine that is off by two steps in the one, and equal in the other.
    written["xnnpack:0"][0, 3] += np.int8(-2 if written["xnnpack:0"][0, 3] > 0 else 2)
    np.savez(results.with_suffix("").with_suffix(".max.npz"), **written)
    worst = arm_files.differences(tmp_path, path.name, "max")
    assert worst == {"xnnpack": (2, "steps"), "builtin": (0, "steps")}


def test_count_marks_the_runs_of_a_file(paths, monkeypatch):
    # What QEMU's plugin sees of it: three calls for each file.
    code = (
        "import os, runpy, sys\n"
        "calls = []\n"
        "os.getppid = lambda: calls.append(1)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print(len(calls))\n"
    )
    program = str(arm_files.FOLDER / "run_files.py")
    code = f"import sys\nsys.argv = [{program!r}, *sys.argv[1:]]\n{code}"
    files = [str(paths["int8"]), str(paths["fast"])]
    result = subprocess.run(
        [sys.executable, "-c", code, "count", "2", *files],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (0, "6\n"), result.stderr


def test_instructions_of_a_run_leave_out_the_rest():
    # 100 instructions a run; 7 for each mark, and 1000 before the first one.
    runs = arm_files.RUNS
    marks = [1000, 1007 + 100 * runs, 1014 + 300 * runs]
    other = [x + 9999 for x in marks]
    assert arm_files.per_run([*marks, *other]) == [100, 100]


def test_difference_is_in_steps_or_relative():
    codes = np.array([[1, -128], [5, 127]], np.int8)
    assert arm_files.difference(codes, codes) == (0, "steps")
    # 255 steps are no -1.
    assert arm_files.difference(codes[:, ::-1], codes) == (129, "steps")
    floats = np.array([[1.0, -4.0]], np.float32)
    assert arm_files.difference(floats + 1, floats) == (0.25, "")
    nan = arm_files.difference(floats * np.float32(np.nan), floats)
    assert arm_files.too_large(*nan)
    assert arm_files.too_large(4, "steps")
    assert not arm_files.too_large(3, "steps")
    assert not arm_files.too_large(1e-4, "")


def test_cell_counts_the_files_that_differ():
    assert arm_files.cell([(0, "steps"), (0, "steps")]) == "equal"
    assert arm_files.cell([(0, "steps"), (2, "steps"), (1, "steps")]) == (
        "2 steps (2 of 3)"
    )
    assert arm_files.cell([(2.04e-7, ""), (0, "")]) == "2e-07 (1 of 2)"


def test_emulator_gets_the_processor_and_its_python(tmp_path):
    qemu = tmp_path / "qemu"
    # Says what it was called with, in place of emulating.
    qemu.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n', "ascii")
    qemu.chmod(0o755)
    emulator = arm_files.Emulator(str(qemu), tmp_path, "max")
    root = tmp_path / "root"
    root.mkdir()
    said = emulator.run("program.py", options=("-plugin", "x")).split()
    assert said[:3] == [str(tmp_path / "site"), "-cpu", "max,sme=off"]
    python = str(root / "usr" / "bin" / "python3")
    assert said[3:] == ["-L", str(root), "-plugin", "x", python, "program.py"]
    assert "CPU part\t: 0xd49\n" in (root / "proc" / "cpuinfo").read_text("ascii")
    qemu.write_text("#!/bin/sh\necho one >&2; echo two >&2; exit 3\n", "ascii")
    with pytest.raises(RuntimeError, match="it ended with status 3: two"):
        emulator.run("program.py")


def test_wrong_environment_is_refused(tmp_path):
    result = subprocess.run(
        [sys.executable, CHECK, f"--environment={tmp_path}"],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert f"there is no folder {tmp_path / 'root'}" in result.stderr
