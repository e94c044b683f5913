"""Rows, plan, results and page of the paper-scale kit in `benchmarks/accelerator/`."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

import keras_sq
from keras_sq import experiments, schedules

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "benchmarks" / "accelerator"

sys.path.insert(0, str(FOLDER))
import report  # noqa: E402
import result_files  # noqa: E402
import result_page  # noqa: E402
import rows  # noqa: E402

NAMES = [row.name for row in rows.all_rows()]

# Rows and plan.


def test_rows_need_no_tensorflow():
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
import rows
row = rows.get("resnet20_sq_twn_paper")
print(row.network_name, row.length().steps, row.quantize_arguments["kernel_quantizer"])
heads = {name.split(".")[0] for name in sys.modules}
print(len(rows.read_plan()), "tensorflow" not in heads)
"""
    pytest.importorskip("jax")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)]),
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "resnet20 312000 ternary",
        f"{len(rows.read_plan())} True",
    ]


def test_row_builds_its_network_and_learning_rate():
    row = rows.get("resnet20_bwn_long")
    network = row.quantized(row.float_network(), seed=3)
    assert keras_sq.get_ratio(network) == 1.0
    assert network.output_shape == (None, rows.NUM_CLASSES)
    assert [type(x).__name__ for x in network.layers][-1] == "SQDense"
    rate = row.learning_rate(row.length().steps)
    steps = (0, 77_999, 78_000, 311_999)
    assert [round(float(rate(step)), 6) for step in steps] == [0.1, 1e-4, 0.1, 1e-4]


def test_names_of_rows_are_unique_and_groups_known():
    assert len(set(NAMES)) == len(NAMES)
    assert {row.group for row in rows.all_rows()} == set(rows.GROUPS)
    assert all(name.isidentifier() for name in NAMES)


@pytest.mark.parametrize("row", rows.all_rows(), ids=NAMES)
def test_settings_are_those_of_the_experiment(row):
    experiment = experiments.get(row.experiment)
    assert set(row.changes) <= {"protocol", "scale"}
    settings = json.loads(json.dumps(row.settings))
    for key, value in experiment.settings.items():
        if key not in row.changes:
            assert settings[key] == (list(value) if isinstance(value, tuple) else value)
    config = experiment.config(**row.changes)
    (method,) = config.methods
    assert row.network_name == experiment.settings["model"]
    assert row.weight_decay == experiment.settings["weight_decay"]
    assert row.batch_size == experiment.settings["batch_size"]
    if method.preset is None:
        assert row.quantize_arguments is None and row.schedule is None
    else:
        skip = experiment.settings.get("skip", method.preset.settings["skip"])
        expected = {**method.preset.settings, "skip": skip}
        # What selects is an object; two of equal settings differ.
        assert str(row.quantize_arguments) == str(expected)
        assert str(row.schedule) == str(method.preset.schedule)
    assert len(row.callbacks()) == (row.schedule is not None)


@pytest.mark.parametrize(
    ("name", "epochs", "steps", "stages"),
    [
        ("resnet20_float", 200, 78_000, 1),
        ("resnet20_sq_twn", 200, 78_000, 1),
        ("resnet20_sq_twn_restarts", 200, 78_000, 4),
        ("resnet20_sq_twn_paper", 800, 312_000, 4),
        ("resnet20_twn_long", 800, 312_000, 4),
        ("resnet20_float_long", 800, 312_000, 4),
        # 64,000 steps of 128, and 100,000 of 100, in whole epochs.
        ("resnet56_sq_bwn_paper", 4 * 164, 4 * 63_960, 4),
        ("resnet56_sq_bwn", 164, 63_960, 1),
        ("vgg9_sq_bwn_paper", 800, 400_000, 4),
        ("resnet56_stompp_forward", 200, 39_000, 1),
        ("resnet20_lq_2_2", 164, 63_960, 1),
    ],
)
def test_length_of_a_row(name, epochs, steps, stages):
    row = rows.get(name)
    length = row.length()
    assert (length.epochs, length.steps, row.stages) == (epochs, steps, stages)
    assert length.stage_starts == tuple(range(0, steps, steps // stages))
    assert row.clear_momentum == (stages > 1)
    if stages > 1 and row.schedule is not None:
        bound = row.schedule.bind(total_steps=steps, steps_per_epoch=None)
        assert bound.stage_starts == length.stage_starts
        assert bound.ratios == schedules.exponential().ratios


def test_baselines_are_as_long_as_sq():
    for _, ours, theirs in result_page.PAIRS:
        one, other = rows.get(ours), rows.get(theirs)
        assert one.length() == other.length(), (ours, theirs)
        assert one.topic == other.topic
        same = ("model", "batch_size", "learning_rate", "decay", "weight_decay")
        assert [one.settings[x] for x in same] == [other.settings[x] for x in same]
        steps = one.length().steps
        rates = one.learning_rate(steps), other.learning_rate(steps)
        for step in (0, steps // 3, steps - 1):
            first, second = (float(x(step)) if callable(x) else x for x in rates)
            assert first == second


def test_scale_shortens_to_an_epoch_a_stage():
    length = rows.get("resnet20_sq_bwn_paper").length(640, scale=0.001)
    assert length == rows.Length(4, 5, 20, (0, 5, 10, 15))
    with pytest.raises(ValueError, match="must fill a batch.*train_examples=100$"):
        rows.get("resnet20_bwn").length(100)


def test_unknown_row_is_refused():
    with pytest.raises(ValueError, match="Argument `name` must be one of resnet20_fl"):
        rows.get("resnet21")


def test_plan_names_every_row_with_two_seeds_first():
    plan = [(row.name, seed) for row, seed in rows.read_plan()]
    assert {name for name, _ in plan} == set(NAMES)
    assert len(set(plan)) == len(plan)
    assert {(name, seed) for name in NAMES for seed in (0, 1)} <= set(plan)
    first = ["resnet20_float", "resnet20_bwn", "resnet20_twn"]
    first += ["resnet20_sq_bwn", "resnet20_sq_twn"]
    assert plan[:10] == [(name, seed) for name in first for seed in (0, 1)]
    networks = dict.fromkeys(rows.get(name).network_name for name, _ in plan)
    assert list(networks)[:3] == ["resnet20", "resnet56_sq", "vgg9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,seed\n", "must have the columns row,seeds: .* has row,seed"),
        ("", "has none"),
        ("row,seeds\nresnet21,0\n", "Line 2 of .* must name a row, not 'resnet21'"),
        ("row,seeds\nvgg9_bwn,0 x\n", "Line 2 of .* must have seeds such as '0 1'"),
        ("row,seeds\nvgg9_bwn\n", "Line 2 of .* must have seeds"),
        ("row,seeds\nvgg9_bwn,1\nvgg9_bwn,0 1\n", "Line 3 of .* repeats the row"),
    ],
)
def test_bad_plan_is_told_with_its_line(text, message, tmp_path):
    path = tmp_path / "plan.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        rows.read_plan(path)


# Published numbers.


def test_published_numbers_agree_with_the_experiments():
    known = {
        (entry.topic, float(entry.test_accuracy), entry.confirmed == "yes")
        for entry in result_page.published()
        if entry.test_accuracy
    }
    compared = 0
    for row in rows.all_rows():
        published = experiments.get(row.experiment).published
        accuracy = published.get("test_accuracy")
        if "test_error" in published:
            accuracy = round(100 - published["test_error"], 2)
        if accuracy is not None:
            assert (row.topic, accuracy, published["confirmed"]) in known, row.name
            compared += 1
    assert compared > 20


def test_published_numbers_say_where_they_are_from():
    topics = {row.topic for row in rows.all_rows()}
    for entry in result_page.published():
        assert entry.topic in topics
        assert entry.conditions and entry.source and entry.work
        assert entry.confirmed in ("yes", "no")
        assert bool(entry.test_accuracy) != bool(entry.gain)
        assert 0 < float(entry.test_accuracy or entry.gain) < 100
    assert {entry.topic for entry in result_page.published()} == topics


# Results.


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The files that a report writes, in a folder of the test's own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setattr(result_files, "RESULTS", folder / "results.csv")
    monkeypatch.setattr(result_files, "STEPS", folder / "steps.csv")
    monkeypatch.setattr(result_page, "PAGE", folder / "paper_scale.md")
    return folder


def result(row="resnet20_sq_bwn", seed=0, accuracy=90.5, **changes):
    """Returns what the runner writes of a run."""
    epochs = rows.get(row).length().epochs
    curve = [{"epoch": 0, "loss": 0.1, "train_accuracy": 97.25, "ratio": 1.0}]
    return {
        "row": row,
        "settings": json.loads(json.dumps(rows.get(row).settings)),
        "seed": seed,
        "epochs": epochs,
        "epochs_done": epochs,
        "finished": True,
        "scale": 1,
        "curve": curve,
        "test_accuracy": accuracy,
        "device": "NVIDIA H100",
        "precision": "float32",
        "together": "vmap, 8",
        "seconds_per_epoch": 1.25,
        "keras_sq": "1.0",
        "keras": "3.15.1",
        "jax": "0.10.2",
        "date": "2026-11-28T10:00:00Z",
        **changes,
    }


def left_by_runner(folder, *results, steps=None):
    """Writes results as the runner does, and returns the folder."""
    (folder / "runs").mkdir(parents=True)
    for content in results:
        name = f"{content['row']}-seed{content['seed']}.json"
        (folder / "runs" / name).write_text(json.dumps(content))
    if steps is not None:
        (folder / "steps.json").write_text(json.dumps(steps))
    return folder


def kept():
    with open(result_files.RESULTS, newline="") as file:
        return [(x["row"], int(x["seed"]), x) for x in csv.DictReader(file)]


def line_of(name):
    text = result_page.PAGE.read_text()
    (line,) = [line for line in text.splitlines() if f"| `{name}` |" in line]
    return line


def test_two_seeds_give_mean_and_spread(repository, tmp_path):
    out = left_by_runner(
        tmp_path / "out", result(seed=0, accuracy=90.0), result(seed=1, accuracy=91.0)
    )
    other = left_by_runner(tmp_path / "other", result("resnet20_bwn", accuracy=89.25))
    said = report.merge_folders([out, other])
    assert said[0].endswith("2 finished and 0 unfinished runs, 0 rehearsals left out, "
                            "0 step times")  # fmt: skip
    assert "| 200 | 90.50 ± 0.71 | 0, 1 |" in line_of("resnet20_sq_bwn")
    assert "| 200 | 89.25 | 0 | 89.56 |" in line_of("resnet20_bwn")
    assert "| not run yet |" in line_of("resnet20_twn")
    page = result_page.PAGE.read_text()
    assert "| SQ-BWN against BWN, ResNet-20, 200 epochs | +1.25 points | 2 and 1 |" in (
        page
    )
    assert "Nothing has been trained" not in page
    assert "**3 of the 114 planned runs are finished.**" in page


def test_unfinished_run_is_listed_and_gives_no_number(repository, tmp_path):
    unfinished = result(finished=False, epochs_done=120, accuracy=55.0)
    report.merge_folders([left_by_runner(tmp_path / "out", unfinished)])
    line = line_of("resnet20_sq_bwn")
    assert "| not run yet | 0 unfinished (epoch 120 of 200) |" in line
    assert kept()[0][2]["test_accuracy"] == ""
    assert "**0 of the 114 planned" in result_page.PAGE.read_text()


def test_rehearsals_never_enter(repository, tmp_path):
    rehearsal = result(scale=0.001, epochs=1, epochs_done=1, accuracy=99.0)
    out = left_by_runner(tmp_path / "out", rehearsal, steps=measured(scale=0.001))
    (said, _) = report.merge_folders([out])
    assert "0 finished and 0 unfinished runs, 1 rehearsals left out, 0 step" in said
    assert kept() == []
    text = result_page.PAGE.read_text()
    assert "Nothing has been trained at full length yet" in text
    assert "Not measured on a GPU yet" in text


@pytest.mark.parametrize("newer_first", [False, True])
def test_newer_replaces_older(repository, tmp_path, newer_first):
    older = result(accuracy=90.0)
    newer = result(accuracy=91.0, date="2026-11-29T08:00:00Z")
    unfinished = result(
        finished=False, epochs_done=3, accuracy=None, date="2026-11-30T08:00:00Z"
    )
    results = [newer, older] if newer_first else [older, newer]
    for number, content in enumerate([*results, unfinished]):
        out = left_by_runner(tmp_path / f"out{number}", content)
        report.merge_folders([out])
    ((name, seed, line),) = kept()
    assert (name, seed, line["test_accuracy"]) == ("resnet20_sq_bwn", 0, "91.0")
    # What the files keep is read again as it was.
    before = result_files.RESULTS.read_text()
    report.merge_folders([])
    assert result_files.RESULTS.read_text() == before


def test_finished_run_replaces_a_newer_unfinished_one(repository, tmp_path):
    unfinished = result(finished=False, epochs_done=3, date="2026-12-01T00:00:00Z")
    report.merge_folders([left_by_runner(tmp_path / "one", unfinished)])
    report.merge_folders([left_by_runner(tmp_path / "two", result())])
    assert kept()[0][2]["finished"] == "yes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": "resnet21"}, "must be one of"),
        ({"seed": -1}, "`seed` must be an integer of 0 or more"),
        ({"seed": 7}, "its name is of another run"),
        ({"epochs": 100, "epochs_done": 100}, "the row has 200 epochs, it has 100"),
        ({"epochs_done": 100}, "a finished run must have all its epochs"),
        ({"epochs_done": 201}, "`epochs_done` must be `epochs` at most"),
        ({"test_accuracy": None}, "`test_accuracy` must be a number"),
        ({"test_accuracy": 105.0}, "must be in percent"),
        ({"test_accuracy": float("nan")}, "must be a number"),
        ({"finished": "yes"}, "`finished` must be a bool"),
        ({"settings": {"model": "vgg9"}}, "has other settings now"),
        ({"curve": []}, "a finished run must have a curve"),
        ({"curve": [3]}, "is not a result of the runner"),
        ({"scale": "1"}, "`scale` must be a number"),
    ],
)
def test_foreign_result_is_named_and_nothing_written(
    repository, tmp_path, changes, message, capsys, monkeypatch
):
    out = left_by_runner(tmp_path / "out", result("vgg9_bwn"), result())
    path = out / "runs" / "resnet20_sq_bwn-seed0.json"
    path.write_text(json.dumps({**result(), **changes}))
    check_refused(out, f"{path} ", message, repository, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        (json.dumps(result())[:200], "is damaged"),
        ("[1]", "must be an object"),
        ("{}", "`scale` is missing"),
        ("\udcff", "is damaged"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_damaged_result_is_named_and_nothing_written(
    repository, tmp_path, text, message, capsys, monkeypatch
):
    out = left_by_runner(tmp_path / "out", result("vgg9_bwn"))
    path = out / "runs" / "vgg9_twn-seed0.json"
    path.write_text(text, errors="surrogateescape")
    check_refused(out, f"{path} ", message, repository, monkeypatch, capsys)


def check_refused(out, name, message, repository, monkeypatch, capsys):
    class Value:
        value = [str(out)]

    monkeypatch.setattr(report, "_RESULTS", Value)
    assert report.main(["report"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("report: error: ")
    assert name in error and message in error
    assert list(repository.iterdir()) == []


def test_other_folders_and_arguments_are_refused(
    repository, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "empty"
    folder.mkdir()
    check_refused(
        folder, str(folder), "neither runs/ nor", repository, monkeypatch, capsys
    )
    assert report.main(["report", "out"]) == 2
    assert "unknown argument 'out'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,seed\n", "must have the columns row,seed,finished"),
        ("{columns}\nresnet20_bwn,zero\n", "Line 2 of .* is damaged"),
        ("{columns}\nold,0,no,2,1,,,,a,b,c,d,e,f,g\n", "has the row 'old'"),
    ],
)
def test_damaged_csv_is_named(repository, text, message):
    columns = ",".join(result_files.csv_text([], result_files.Run).split(",")).strip()
    result_files.RESULTS.write_text(text.format(columns=columns))
    with pytest.raises(result_files.ResultError, match=message):
        report.merge_folders([])
    assert [path.name for path in repository.iterdir()] == ["results.csv"]


# Step times.


def measured(**changes):
    """Returns what `steps.py` writes."""
    common = {"name": "ResNet-20", "batch_size": 128, "problem": ""}
    entries = [
        {**common, "quantity": "float", "unit": "ms", "median": 2.0},
        {**common, "quantity": "sq", "unit": "ms", "median": 2.5},
        {**common, "quantity": "ratio", "unit": "", "median": 1.25},
        {
            **common,
            "name": "augmentation on the device",
            "quantity": "rate",
            "unit": "images/s",
            "median": 1_234_567.8,
        },
    ]
    entries = [
        {**entry, "low": 0.9 * entry["median"], "high": 1.1 * entry["median"]}
        for entry in entries
    ]
    failed = {"name": "ResNet-50", "quantity": "ratio", "unit": "", "batch_size": 64}
    failed["problem"] = "too little memory"
    return {
        "scale": 1,
        "device": "NVIDIA H100",
        "precision": "float32",
        "date": "2026-11-28T10:00:00Z",
        "keras_sq": "1.0",
        "jax": "0.10.2",
        "measurements": [*entries, failed],
        **changes,
    }


def test_step_times_become_a_table(repository, tmp_path):
    out = left_by_runner(tmp_path / "out", steps=measured())
    report.merge_folders([out])
    report.merge_folders([])
    text = result_page.PAGE.read_text()
    assert (
        "| ResNet-20 | 128 | 2.000 (1.800 to 2.200) | 2.500 (2.250 to 2.750) | "
        "1.250 (1.125 to 1.375) | NVIDIA H100 | float32 | 2026-11-28 |"
    ) in text
    assert "| ResNet-50 | 64 |  |  | too little memory | NVIDIA H100 |" in text
    assert "| augmentation on the device | 128 | 1,234,568 (1,111,111 to" in text
    # What failed later replaces no number.
    entries = measured()["measurements"]
    entries[2] = {**entries[2], "problem": "too little memory"}
    later = measured(date="2026-12-01T10:00:00Z", measurements=entries[2:3])
    report.merge_folders([left_by_runner(tmp_path / "later", steps=later)])
    assert "1.250 (1.125 to 1.375)" in result_page.PAGE.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": 3}, "`device` must be a text"),
        ({"measurements": [3]}, "a measurement must be an object"),
        ({"measurements": [{"problem": ""}]}, "`median` is missing"),
    ],
)
def test_foreign_step_times_are_named(
    repository, tmp_path, changes, message, monkeypatch, capsys
):
    out = left_by_runner(tmp_path / "out", result(), steps=measured(**changes))
    check_refused(out, "steps.json", message, repository, monkeypatch, capsys)


# The page.


def test_page_is_what_the_files_give():
    runs = result_files.read_csv(result_files.RESULTS, result_files.Run)
    steps = result_files.read_csv(result_files.STEPS, result_files.Measurement)
    assert result_page.PAGE.read_text("utf-8") == result_page.page_text(runs, steps)


def test_page_lists_every_row_and_published_number():
    text = result_page.PAGE.read_text("utf-8")
    for name in NAMES:
        assert f"| `{name}` |" in text
    for entry in result_page.published():
        number = entry.test_accuracy or f"+{entry.gain} points"
        assert f"| {number} | {entry.conditions} |" in text.replace(
            " (not confirmed)", ""
        )
