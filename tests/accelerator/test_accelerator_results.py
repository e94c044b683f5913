"""Results and page of the paper-scale kit in `benchmarks/accelerator/`."""

import csv
import json

import bundle
import pytest
import report
import result_files
import result_page
import rows

NAMES = [row.name for row in rows.all_rows()]


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
        "problem": "",
        "train_examples": 50_000,
        "scale": 1.0,
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


def test_run_that_diverged_is_listed_and_stays(repository, tmp_path):
    diverged = result(
        seed=1, finished=False, epochs_done=12, problem="diverged in epoch 13"
    )
    later = result(seed=1, finished=False, epochs_done=150, date="2026-12-01T00:00:00Z")
    out = left_by_runner(tmp_path / "out", result(accuracy=90.0), diverged)
    report.merge_folders([out, left_by_runner(tmp_path / "later", later)])
    line = line_of("resnet20_sq_bwn")
    assert "| 90.00 | 0; 1 diverged in epoch 13 |" in line


def test_rehearsals_never_enter(repository, tmp_path):
    rehearsal = result(scale=0.001, epochs=1, epochs_done=1, accuracy=99.0)
    out = left_by_runner(tmp_path / "out", rehearsal, steps=measured(scale=0.001))
    (said, _) = report.merge_folders([out])
    assert "0 finished and 0 unfinished runs, 1 rehearsals left out, 0 step" in said
    assert kept() == []
    text = result_page.PAGE.read_text()
    assert "Nothing has been trained at full length yet" in text
    assert "Not measured on a GPU yet" in text


def test_bundle_is_read_and_stays(repository, tmp_path, monkeypatch, capsys):
    out = left_by_runner(tmp_path / "out", result(), steps=measured())
    parts = tmp_path / "parts"
    bundle.pack(out, tmp_path / "state", parts)
    (whole,) = parts.iterdir()
    content = whole.read_bytes()
    names = ["bundle.tar.0", "bundle.tar.1"]
    for name, part in zip(names, (content[:2000], content[2000:]), strict=True):
        (parts / name).write_bytes(part)
        (parts / name).chmod(0o400)
    (said, _) = report.merge_folders([parts])
    assert "1 finished and 0 unfinished runs" in said and "5 step times" in said
    assert sorted(path.name for path in parts.iterdir()) == names
    assert kept()[0][0] == "resnet20_sq_bwn"
    for path in repository.iterdir():
        path.unlink()
    (parts / names[-1]).unlink()
    check_refused(parts, str(parts), "part", repository, monkeypatch, capsys)


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
        ({"train_examples": 500}, "must have all 50000 training images, not 500"),
        ({"problem": None}, "`problem` must be a text"),
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
        ("{columns}\nold,0,no,,2,1,,,,a,b,c,d,e,f,g\n", "has the row 'old'"),
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
