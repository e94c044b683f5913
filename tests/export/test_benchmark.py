"""The command that measures TFLite files, and the processes that it starts."""

import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hiding import TENSORFLOW, hide
from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.benchmark import command, processes, program, results, worker
from keras_sq.export.tflite.flatbuffer import TFLiteFile

LITERT = f"LiteRT {importlib.metadata.version('ai-edge-litert')}"

# A runtime whose files say by their names what happens.
FAKE_RUNTIME = """
import os, signal, threading, time
import numpy as np

class Interpreter:
    def __init__(self, model_path, num_threads):
        self.name, self.runs = os.path.basename(model_path), 0
        if self.name.startswith("crash_loading"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name.startswith("exit"):
            raise SystemExit("out of something")
        if self.name.startswith("hang"):
            time.sleep(60)

    def get_input_details(self):
        dtype = np.bytes_ if self.name.startswith("text") else np.float32
        return [{"name": "x", "index": 0, "dtype": dtype, "shape": np.array([1]),
                 "shape_signature": np.array([1])}]

    def allocate_tensors(self):
        pass

    def set_tensor(self, index, values):
        pass

    def invoke(self):
        print("the runtime talks", flush=True)
        self.runs += 1
        if self.name.startswith("crash_later") and self.runs > 3:
            os.abort()
        if self.name.startswith("refuse_later") and self.runs > 3:
            raise RuntimeError("no more")
        if self.name.startswith("threads"):
            threads = [threading.Thread(target=self.work) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def work(self):
        start = time.thread_time()
        while time.thread_time() - start < 0.01:
            pass
"""


def dense_file(size, operator="FULLY_CONNECTED", version=1, custom=None, rows=1):
    """Returns a file that multiplies by a `size` x `size` kernel.

    Args:
        size: Number of inputs and outputs.
        operator: Name of its operator.
        version: Version of its operator.
        custom: Name of a custom operator in place of it.
        rows: Number of rows of the input, -1 for an open one.
    """
    model = schema.ModelT()
    model.version = 3
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.subgraphs, model.operatorCodes = [graph], []
    model.buffers = [schema.BufferT()]
    file = TFLiteFile.__new__(TFLiteFile)
    file.model = model
    kernel = np.random.default_rng(0).normal(size=(size, size)).astype("float32")
    x, y = (file.add_tensor(graph, n, (1, size), "FLOAT32") for n in "xy")
    for tensor in graph.tensors:
        tensor.shapeSignature = np.array([rows, size], np.int32)
    weight = file.add_tensor(graph, "w", (size, size), "FLOAT32", kernel)
    options = schema.FullyConnectedOptionsT()
    graph.operators = [file.new_operator(operator, [x, weight], [y], options, version)]
    if custom:
        (code,) = model.operatorCodes
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = custom.encode()
        graph.operators[0].builtinOptionsType = 0
        graph.operators[0].builtinOptions = None
    graph.inputs, graph.outputs = [x], [y]
    return file.pack()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns name -> path of files that run and that do not."""
    folder = tmp_path_factory.mktemp("files")
    contents = {
        "small": dense_file(8, rows=-1),
        "large": dense_file(1024),
        "newer": dense_file(8, version=99),
        "custom": dense_file(8, custom="MyOperator"),
        "flex": dense_file(8, custom="FlexErf"),
        "text": b"Not a TFLite file.",
    }
    for name, content in contents.items():
        (folder / f"{name}.tflite").write_bytes(content)
    return {name: str(folder / f"{name}.tflite") for name in (*contents, "missing")}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Returns what makes a file of a name for the runtime above, in place of LiteRT."""
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").touch()
    (tmp_path / "ai_edge_litert" / "interpreter.py").write_text(FAKE_RUNTIME, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name):
        path = tmp_path / name
        path.write_bytes(b"\0\0\0\0TFL3")
        return str(path)

    return write


def run(capsys, *arguments):
    """Returns exit status, standard output and lines of standard error."""
    status = command.main([str(argument) for argument in arguments])
    output, error = capsys.readouterr()
    return status, output, error.splitlines()


def test_json_has_times_load_and_memory_of_each_file(files, capsys):
    paths = [files["small"], files["large"]]
    status, output, errors = run(
        capsys, *paths, "--runs=30", "--seed=3", "--json", "--cold-mb=1"
    )
    assert (status, errors) == (0, [])
    answer = json.loads(output)
    assert answer["errors"] == {}
    assert (answer["threads"], answer["seed"], answer["cold_bytes"]) == (1, 3, 10**6)
    small, large = answer["files"]
    assert [small["path"], large["path"]] == paths
    assert large["num_bytes"] == os.path.getsize(paths[1])
    for entry in (small, large):
        assert entry["runtime"] == LITERT
        assert entry["operators"] is None
        assert entry["load_ms"]["wall"] > 0
        assert list(entry["modes"]) == ["hot", "alternating", "cold"]
        for mode in entry["modes"].values():
            assert mode["runs"] == 30
            for times in (mode["cpu_ms"], mode["wall_ms"]):
                low, high = times["low"], times["high"]
                assert 0 < times["min"] <= low <= times["median"] <= high
    assert small["inputs"] == {"x": [1, 8]}
    # 4 MiB of weights, and a copy of them in another order.
    assert large["peak_bytes"] - small["peak_bytes"] > 4 * 2**20
    for name, mode in large["modes"].items():
        assert small["modes"][name]["ratio"] == 1
        # A million products and sums against 64.
        assert mode["ratio"] > 3


def test_one_file_has_no_turns_to_take(files, capsys):
    status, output, errors = run(capsys, files["small"], "--runs=1", "--cold-mb=1")
    assert (status, errors) == (0, [])
    header, sizes, hot, cold, operators = output.strip().split("\n\n")
    assert header.startswith(f"{LITERT}, ")
    assert header.endswith(", threads: 1")
    assert sizes.splitlines()[1].split()[:2] == [
        files["small"],
        f"{os.path.getsize(files['small']):,}",
    ]
    assert hot.split()[0] == "hot"
    assert cold.split()[0] == "cold"
    path, runs, *_, ratio = hot.splitlines()[1].split()
    assert (path, runs, ratio) == (files["small"], "1", "1.000")
    assert operators == "Times of operators: not given by this runtime."


def test_files_that_cannot_run_are_one_line_each_and_others_are_measured(files, capsys):
    names = ["missing", "text", "newer", "small", "custom", "flex"]
    status, output, errors = run(
        capsys, *(files[name] for name in names), "--runs=2", "--cold-mb=1", "--json"
    )
    assert status == 1
    answer = json.loads(output)
    assert [entry["path"] for entry in answer["files"]] == [files["small"]]
    reasons = {
        "missing": "No such file or directory",
        "text": "it is no TFLite file (there is no 'TFL3' at its start)",
        "newer": f"it needs a newer runtime: {LITERT} has no FULLY_CONNECTED of "
        "version 99; install the newest LiteRT",
        "custom": f"it needs a custom operator (MyOperator), which {LITERT} does not "
        "have",
        "flex": f"it needs flex operators (FlexErf), which {LITERT} does not have",
    }
    assert answer["errors"] == {files[name]: text for name, text in reasons.items()}
    assert errors == [
        f"keras_sq.benchmark: error: '{files[name]}': {text}."
        for name, text in reasons.items()
    ]


def test_reason_names_the_runtime_that_has_an_operator():
    message = "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '14'. An old"
    assert worker._reason(message, "LiteRT 2.0.3") == (
        "it needs a newer runtime: LiteRT 2.0.3 has no FULLY_CONNECTED of version 14; "
        "LiteRT 2.1.4 has it"
    )
    assert worker._reason("a\nb", "LiteRT 9") == "LiteRT 9 refuses it: a b"


def test_runtime_that_crashes_ends_its_file_only(fake, capsys):
    names = ["crash_loading", "fine", "crash_later", "refuse_later", "exit", "text"]
    paths = {name: fake(name) for name in names}
    status, output, errors = run(
        capsys, *paths.values(), "--runs=6", "--cold-mb=1", "--json"
    )
    assert status == 1
    answer = json.loads(output)
    assert [entry["path"] for entry in answer["files"]] == [paths["fine"]]
    for mode in answer["files"][0]["modes"].values():
        assert mode["runs"] == 6
    reasons = {os.path.basename(path): x for path, x in answer["errors"].items()}
    assert reasons == {
        "crash_loading": "the runtime crashed (SIGSEGV)",
        "crash_later": "the runtime crashed (SIGABRT)",
        "refuse_later": "a run failed: no more",
        "exit": "the runtime ended with status 1 (out of something)",
        "text": "input 'x' takes |S0, of which there is none",
    }
    assert len(errors) == len(reasons)


def test_runtime_that_hangs_is_ended(fake, capsys, monkeypatch):
    monkeypatch.setattr(processes, "MAX_SECONDS", 0.5)
    status, output, (error,) = run(capsys, fake("hang"))
    assert (status, output) == (1, "")
    assert error.endswith("it takes more than 0 seconds.")


def test_cpu_time_is_that_of_all_threads(fake, capsys):
    status, output, _ = run(
        capsys, fake("threads"), "--runs=5", "--cold-mb=1", "--json"
    )
    assert status == 0
    (entry,) = json.loads(output)["files"]
    # Two threads of 10 ms each, less what the clock of threads is coarse by.
    assert entry["modes"]["hot"]["cpu_ms"]["min"] > 15


def test_seconds_limit_the_runs(fake, capsys):
    status, output, _ = run(
        capsys, fake("threads"), "--seconds=0.01", "--cold-mb=1", "--json"
    )
    assert status == 0
    modes = json.loads(output)["files"][0]["modes"]
    # Each turn takes 20 ms, and of hot runs a turn has one or more.
    assert modes["cold"]["runs"] == processes.MIN_RUNS
    assert modes["hot"]["runs"] >= processes.MIN_RUNS


def test_without_a_runtime_there_is_one_line(files, tmp_path, capsys, monkeypatch):
    packages = (*TENSORFLOW, "ai_edge_litert", "tflite_runtime")
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path, packages))
    status, output, (error,) = run(capsys, files["small"], files["large"])
    assert (status, output) == (1, "")
    assert "There is no runtime to measure with. Install LiteRT" in error
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path, ("numpy",)))
    status, output, (error,) = run(capsys, files["small"])
    assert (status, output) == (1, "")
    assert "NumPy is missing" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the paths of files"),
        (["a", "--threads=0"], "argument --threads: must be an integer > 0"),
        (["a", "--runs=1.5"], "argument --runs: must be an integer > 0"),
        (["a", "--seconds=nan"], "argument --seconds: must be a number > 0"),
        (["a", "--seed=-1"], "argument --seed: must be an integer >= 0"),
        (["a", "--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_request_is_one_line(arguments, message, capsys):
    try:
        status = command.main(arguments)
    except SystemExit as error:
        status = error.code
    output, error = capsys.readouterr()
    assert (status, output) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith(f"keras_sq.benchmark: error: {message}")


def test_program_of_one_file_needs_neither_keras_nor_this_package(files, tmp_path):
    path = tmp_path / "benchmark.pyz"
    program.write(str(path))
    absent = (*TENSORFLOW, "keras", "absl")
    (tmp_path / "hidden").mkdir()
    result = subprocess.run(
        [sys.executable, path, files["small"], "--runs=1", "--cold-mb=1"],
        env=os.environ | {"PYTHONPATH": hide(tmp_path / "hidden", absent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(LITERT)


def test_program_that_cannot_be_written_is_one_line(tmp_path, capsys):
    path = tmp_path / "missing" / "benchmark.pyz"
    status, output, (error,) = run(capsys, f"--write-program={path}")
    assert (status, output) == (1, "")
    assert error.endswith(f"'{path}': No such file or directory.")


def test_command_runs_as_a_process(tmp_path):
    path = tmp_path / "benchmark.pyz"
    result = subprocess.run(
        [sys.executable, "-m", "keras_sq.benchmark", f"--write-program={path}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {path}.")
    assert path.exists()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -1, 1),
        ("float16", -1, 1),
        ("int8", -128, 127),
        ("uint8", 0, 255),
        ("int16", -(2**15), 2**15 - 1),
        ("int32", 0, 1),
        ("int64", 0, 1),
        ("bool", 0, 1),
    ],
)
def test_random_inputs_cover_the_range_of_their_type(dtype, low, high):
    detail = {"name": "x", "dtype": np.dtype(dtype).type, "shape": np.array([40, 250])}
    values = worker._random(detail, np.random.default_rng(0))
    again = worker._random(detail, np.random.default_rng(0))
    assert (values.dtype, values.shape) == (np.dtype(dtype), (40, 250))
    np.testing.assert_array_equal(values, again)
    near = 0.01 * (high - low) if high > 1 or low < 0 else 0
    assert low <= values.min() <= low + near
    assert high - near <= values.max() <= high


class Counter:
    """Takes the place of an interpreter."""

    def __init__(self):
        self.runs = 0

    def invoke(self):
        self.runs += 1


@pytest.mark.parametrize(
    ("mode", "limit", "recorded", "runs", "writes"),
    [
        ("hot", 7, 7, 8, 0),
        ("hot", None, worker.MAX_BURST, worker.MAX_BURST + 1, 0),
        ("alternating", 7, 1, 1, 0),
        ("cold", 7, 1, 1, 1),
    ],
)
def test_modes_differ_in_what_comes_before_a_run(mode, limit, recorded, runs, writes):
    interpreter, other = Counter(), np.zeros(100, np.uint8)
    times = worker._times(interpreter, other, mode, limit)
    assert len(times) == recorded
    assert interpreter.runs == runs
    assert np.all(other == writes)


def test_spread_has_median_quartiles_and_minimum():
    milliseconds = [5, 1, 2, 4, 3]
    nanoseconds = [10**6 * x for x in milliseconds]
    expected = {"median": 3, "low": 2, "high": 4, "min": 1}
    assert results.spread(nanoseconds) == expected
    assert results.spread([2_000_000]) == dict.fromkeys(expected, 2)
