"""The sweep: what it runs, skips, survives, and its tables."""

import csv
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from keras_sq.experiments import catalogue, sweep, sweep_report
from keras_sq.experiments.sweep import SweepConfig
from keras_sq.experiments.training_files import DamagedRunError

SCRIPT = """
import json, pathlib, sys, time
values = dict(part[2:].split("=", 1) for part in sys.argv[1:] if "=" in part)
folder = pathlib.Path(values["output_dir"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls", "a") as file:
    file.write("x")
if (folder / "fails").exists():
    print("out of luck")
    sys.exit(7)
if (folder / "hangs").exists():
    (folder / (folder / "hangs").read_text()).mkdir(parents=True, exist_ok=True)
    time.sleep(600)
seed = int(values["seed"])
report = {"test_accuracy": 0.5 + seed / 10, "test_loss": 1.0, "tflite_bytes": 1000,
          "bits_per_weight": 1.8}
results = {"epochs": {"direct": 3}, "networks": {"direct": report}}
(folder / "results.json").write_text(json.dumps(results))
"""
"""Stands for a training: writes results, fails, or makes a folder and hangs, as files
in its own say."""


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Replaces the training by `SCRIPT`; returns settings of a sweep of four runs."""
    command = sweep.Run.command

    def replaced(run):
        return [sys.executable, "-c", SCRIPT, *command(run)[3:]]

    monkeypatch.setattr(sweep.Run, "command", replaced)
    return SweepConfig(
        experiments=("digits_twn", "digits_bwn"),
        seeds=2,
        output_dir=str(tmp_path / "sweep"),
    )


def folder_of(config, name, seed, protocol="equal"):
    """Returns the folder of a run, made."""
    path = pathlib.Path(config.output_dir, name, protocol, f"seed-{seed}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def calls(config):
    """Returns how often each run was started, in the order of the folders' names."""
    paths = sorted(pathlib.Path(config.output_dir).glob("*/*/*/calls"))
    return [len(path.read_text()) for path in paths]


def parsed(*arguments):
    """Returns flags as the command line would have them."""
    values = flags.FlagValues()
    sweep.define_flags(values)
    values(["sweep", *arguments])
    return values


def test_runs_are_seed_by_seed_and_baselines_once():
    config = SweepConfig(
        experiments=("digits_twn", "digits_sq_*"), protocols=("paper", "equal"), seeds=2
    )
    found = [(run.experiment.name, run.protocol, run.seed) for run in config.runs()]
    once = [
        ("digits_twn", "equal"),
        ("digits_sq_bwn", "paper"),
        ("digits_sq_bwn", "equal"),
        ("digits_sq_twn", "paper"),
        ("digits_sq_twn", "equal"),
    ]
    assert found == [(*pair, seed) for seed in range(2) for pair in once]


def test_command_is_that_of_a_training():
    config = SweepConfig(experiments=("digits_sq_twn",), scale=0.1, data_dir="d")
    (run,) = config.runs()
    assert run.command()[1:] == [
        "-m",
        "keras_sq.train",
        "--experiment=digits_sq_twn",
        "--resume",
        "--scale=0.1",
        "--data_dir=d",
        "--protocol=paper",
        "--seed=0",
        f"--output_dir={run.folder}",
    ]


def test_tables_have_mean_and_spread(quick, capsys):
    assert sweep.sweep(quick) == 0
    folder = pathlib.Path(quick.output_dir)
    text = (folder / "results.md").read_text()
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert lines[0].startswith("| experiment | network | protocol | epochs | seeds |")
    numbers = "| direct | equal | 3 | 2 | 55.00 ± 7.07 | 1.0 |  |"
    assert lines[2:] == [
        f"| TWN, a small network, digits {numbers}",
        f"| BWN, a small network, digits {numbers}",
    ]
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [(row["experiment"], row["seed"], row["test_accuracy"]) for row in rows] == [
        ("digits_twn", "0", "0.5"),
        ("digits_bwn", "0", "0.5"),
        ("digits_twn", "1", "0.6"),
        ("digits_bwn", "1", "0.6"),
    ]
    assert list((folder / "failed").iterdir()) == []


def test_top_5_is_in_the_tables_where_it_is_known(quick):
    sweep.sweep(quick)
    path = folder_of(quick, "digits_bwn", 1) / "results.json"
    results = json.loads(path.read_text())
    results["networks"]["direct"]["test_top_5_accuracy"] = 0.875
    path.write_text(json.dumps(results))
    sweep.sweep(quick)
    folder = pathlib.Path(quick.output_dir)
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [row["test_top_5_accuracy"] for row in rows] == ["", "", "", "0.875"]
    header, _, *lines = (folder / "results.md").read_text().splitlines()
    column = header.split(" | ").index("top 5, %")
    assert [line.split(" | ")[column] for line in lines] == ["", "87.50"]


def test_finished_runs_are_skipped(quick):
    sweep.sweep(quick)
    assert sweep.sweep(quick) == 0
    assert calls(quick) == [1, 1, 1, 1]


def test_failing_run_does_not_stop_the_others_and_is_tried_again(quick, capsys):
    failing = folder_of(quick, "digits_twn", 0) / "fails"
    failing.touch()
    assert sweep.sweep(quick) == 1
    error = capsys.readouterr().err
    log = pathlib.Path(quick.output_dir, "failed", "digits_twn-equal-seed-0.txt")
    assert f"Failed: digits_twn, equal, seed 0; see {log}." in error
    assert "1 of 4 runs are not finished" in error
    assert log.read_text() == "out of luck\n"
    # The others are in the table.
    rows = pathlib.Path(quick.output_dir, "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    failing.unlink()
    assert sweep.sweep(quick) == 0
    assert calls(quick) == [1, 1, 2, 1]
    assert not log.exists()


def test_time_that_is_up_stops_the_run_and_the_next_goes_on(quick, capsys, monkeypatch):
    hanging = folder_of(quick, "digits_bwn", 0) / "hangs"
    hanging.touch()
    short = SweepConfig(**{**vars(quick), "minutes": 2 / 60})
    begin = time.monotonic()
    assert sweep.sweep(short) == 3
    assert time.monotonic() - begin < 60
    lost = "digits_bwn, equal, seed 0 finished no epoch in its time"
    assert lost in capsys.readouterr().err
    rows = pathlib.Path(quick.output_dir, "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 1
    # A piece with a backup more is nothing to warn of.
    hanging.write_text("state/direct/epoch-000003")
    assert sweep.sweep(short) == 3
    assert "finished no epoch" not in capsys.readouterr().err
    hanging.unlink()
    assert sweep.sweep(quick) == 0


def test_table_has_what_earlier_sweeps_in_the_folder_finished(quick, capsys):
    sweep.sweep(SweepConfig(**{**vars(quick), "experiments": ("digits_sq_twn",)}))
    pathlib.Path(quick.output_dir, "notes", "equal", "seed-0").mkdir(parents=True)
    assert sweep.sweep(quick) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split(",")[0].strip("| ") for line in lines[-3:]]
    assert titles == ["TWN", "BWN", "SQ-TWN"]
    rows = pathlib.Path(quick.output_dir, "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 2


HANGING = """
import sys
from absl import app, flags
from keras_sq.experiments import sweep
training = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); "
training += "time.sleep(300)"
sweep.Run.command = lambda run: [sys.executable, "-c", training, sys.argv[-1]]
sweep.define_flags(flags.FLAGS)
app.run(sweep.main_of_process, [*sys.argv[:-1]])
"""


def test_terminated_sweep_takes_its_training_with_it(tmp_path):
    """SIGTERM to the sweep alone, as of a job scheduler."""
    begun = tmp_path / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, "--experiments=digits_twn"]
        + [f"--output_dir={tmp_path / 'sweep'}", str(begun)],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not begun.exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    # Nobody is left of the session.
    with pytest.raises(ProcessLookupError, match="No such process"):
        os.killpg(process.pid, 0)


def test_other_settings_in_the_folder_are_refused(quick, tmp_path):
    run = quick.runs()[0]
    run.experiment.config(**run.settings).claim_folder()
    longer = SweepConfig(**{**vars(quick), "scale": 2.0})
    with pytest.raises(ValueError, match=r"other settings: scale=1.0 there, 2.0 asked"):
        sweep.sweep(longer)
    assert calls(quick) == []


def test_damaged_results_are_told(quick, capsys):
    sweep.sweep(quick)
    path = folder_of(quick, "digits_twn", 1) / "results.json"
    path.write_text(json.dumps({"networks": {"direct": {}}}))
    arguments = [
        "--experiments=digits_twn,digits_bwn",
        "--seeds=2",
        f"--output_dir={quick.output_dir}",
    ]
    assert sweep.main(parsed(*arguments)) == 2
    error = capsys.readouterr().err
    assert re.search(r"results.json' is damaged: .*Remove it to write it again", error)


SOUND = {"test_accuracy": 0.5, "test_loss": 1, "tflite_bytes": 9, "bits_per_weight": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_accuracy": float("inf")}, "'test_accuracy' is 'inf'"),
        ({"test_loss": float("nan")}, "'test_loss' is 'nan'"),
        ({"tflite_bytes": 10**400}, "'tflite_bytes' is '1000000"),
        ({"bits_per_weight": None}, "'bits_per_weight' is 'None'"),
        ({"test_accuracy": "0.5"}, "'test_accuracy' is '0.5'"),
        ({"test_top_5_accuracy": [1]}, r"'test_top_5_accuracy' is '\[1\]'"),
        ({"epochs": float("inf")}, "'epochs' is 'inf'"),
        ({"epochs": True}, "'epochs' is 'True'"),
        (None, "is damaged"),
        ([1], "is damaged"),
    ],
)
def test_result_that_is_no_number_is_damage(change, message, tmp_path):
    path = tmp_path / "results.json"
    experiment = catalogue.get("digits_twn")

    def write(report, epochs=3):
        content = {"networks": {"direct": report}, "epochs": {"direct": epochs}}
        path.write_text(json.dumps(content))

    write(SOUND)
    (result,) = sweep_report.read(path, experiment, "paper", 0)
    assert (result.epochs, result.tflite_bytes) == (3, 9.0)
    changes = change if isinstance(change, dict) else {}
    write({**SOUND, **changes} if changes else change, changes.pop("epochs", 3))
    with pytest.raises(DamagedRunError, match=message) as error:
        sweep_report.read(path, experiment, "paper", 0)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Argument `experiments` must name at least one"),
        (["--experiments=digits_tnw"], "no experiment 'digits_tnw'. Did you mean"),
        (["--experiments=digits_*", "--protocols=papers"], "Did you mean 'paper'"),
        (["--experiments=digits_*", "--seeds=0"], "Argument `seeds` must be"),
        (["--experiments=digits_*", "--minutes=0"], "Argument `minutes` must be"),
        (["--experiments=digits_*", "--scale=-1"], "Argument `scale` must be"),
    ],
)
def test_bad_request_is_refused_and_nothing_made(arguments, message, tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert sweep.main(parsed(*arguments, f"--output_dir={folder}")) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_killed_sweep_of_real_trainings_goes_on(tmp_path):
    """SIGKILL in a training; then the same command; the result is that of one go."""
    arguments = [
        sys.executable,
        "-m",
        "keras_sq.sweep",
        "--experiments=digits_sq_twn,digits_twn",
        "--scale=0.1",
        "--limit=640",
        f"--data_dir={tmp_path / 'tfds'}",
    ]
    whole, killed = (f"--output_dir={tmp_path / name}" for name in ("whole", "killed"))
    subprocess.run([*arguments, whole], check=True, capture_output=True)
    process = subprocess.Popen(
        [*arguments, killed], stderr=subprocess.DEVNULL, start_new_session=True
    )
    folder = tmp_path / "killed" / "digits_sq_twn" / "paper" / "seed-0"
    while not list(folder.glob("state/sq/epoch-*")):
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*arguments, killed], check=True, capture_output=True)
    tables = [
        (tmp_path / name / "results.csv").read_text() for name in ("whole", "killed")
    ]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3
