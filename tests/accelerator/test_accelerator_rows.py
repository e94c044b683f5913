"""Rows, plan, published numbers and step times of `benchmarks/accelerator/`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import result_files
import result_page
import rows

import keras_sq
from keras_sq import experiments, schedules

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "benchmarks" / "accelerator"


NAMES = [row.name for row in rows.all_rows()]


HIDES_TENSORFLOW = """
import pathlib, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
"""

USES_ROWS_AND_STEPS = """
import keras
import rows, steps
row = rows.get("resnet20_sq_twn_paper")
print(row.network_name, row.length().steps, row.quantize_arguments["kernel_quantizer"])
print(len(rows.read_plan()))

def too_large(shape):
    raise MemoryError

def small(shape):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(10)])

steps.networks = lambda scale: [
    steps.Network("too large", too_large, (4,), 2, 2),
    steps.Network("small", small, (4,), 2, 2),
]
steps.measure(pathlib.Path(sys.argv[1]), 0.01, 1.0)
heads = {name.split(".")[0] for name in sys.modules}
print("tensorflow" in heads)
"""


def test_rows_and_steps_need_no_tensorflow(tmp_path):
    pytest.importorskip("jax")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)]),
    }
    code = HIDES_TENSORFLOW + USES_ROWS_AND_STEPS
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["resnet20 312000 ternary", str(len(rows.read_plan()))]
    assert lines[2] == "too large, batch 2: ratio too little memory"
    assert lines[-1] == "False"
    check_rehearsed_steps(tmp_path / "out")


def check_rehearsed_steps(out):
    assert result_files.read_measurements(out) == []  # A rehearsal.
    path = out / "steps.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scale": 1}))
    entries = {(x.name, x.quantity): x for x in result_files.read_measurements(out)}
    assert set(entries) == {
        ("too large", "ratio"),
        ("small", "float"),
        ("small", "sq"),
        ("small", "ratio"),
        ("augmentation on the device", "rate"),
        ("batches of the host, transferred", "rate"),
    }
    for entry in entries.values():
        if entry.name != "too large":
            assert 0 < entry.low <= entry.median <= entry.high
            assert entry.device.startswith("cpu: ")
    ratio = entries["small", "ratio"]
    quotient = entries["small", "sq"].median / entries["small", "float"].median
    assert 0.2 < ratio.median / quotient < 5


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
    assert set(rows.NOTES) == set(rows.GROUPS)
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


@pytest.mark.parametrize(
    ("name", "drops"),
    [
        ("resnet20_sq_twn", (80, 120, 150)),
        ("resnet20_bwn", (80, 120, 150)),
        ("resnet20_float", (100, 150)),
    ],
)
def test_learning_rate_falls_at_the_epochs_of_parq(name, drops):
    length = rows.get(name).length()
    rate = rows.get(name).learning_rate(length.steps)
    for number, epoch in enumerate(drops):
        before, after = (
            float(rate(epoch * length.steps_per_epoch + step)) for step in (0, 1)
        )
        assert before == pytest.approx(0.1**number * 0.1)
        assert after == pytest.approx(0.1**number * 0.01)


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
