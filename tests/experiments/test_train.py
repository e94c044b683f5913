"""The main job: what it writes, what it refuses, and that it can be resumed."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from absl import flags
from file_limits import largest_file

import keras_sq
from keras_sq.analysis import training_report
from keras_sq.experiments import callbacks as training_callbacks
from keras_sq.experiments import config as training_config
from keras_sq.experiments import networks, run_folder, train, training_files
from keras_sq.experiments.config import TrainConfig
from keras_sq.experiments.flags import config_from_flags, define_flags
from keras_sq.files import file_checks

METHODS = ("float", "direct", "sq")

FILES = {
    "config.json",
    "direct.keras",
    "direct.tflite",
    "float.keras",
    "float.tflite",
    "history.csv",
    "results.json",
    "sq.keras",
    "sq.tflite",
    "state",
    "training.png",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder for the prepared digits."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A run of seconds: its settings, reports and what it printed."""
    config = TrainConfig(
        data_dir=data_dir,
        output_dir=str(tmp_path_factory.mktemp("finished") / "run"),
        model="mlp",
        schedule="exponential",
        epochs=3,
        float_epochs=2,
        batch_size=32,
        limit=160,
        verbose=0,
    )
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        (reports,) = train.run(config)
    return config, reports, output.getvalue(), error.getvalue()


@pytest.fixture
def own(finished, tmp_path):
    """The settings of `finished` for a folder that is a copy of its."""
    config = finished[0]
    shutil.copytree(config.output_dir, tmp_path / "run")
    return dataclasses.replace(config, output_dir=str(tmp_path / "run"), resume=True)


def weights(path):
    """Returns the weights in a .keras file."""
    return keras.models.load_model(path, compile=False).get_weights()


def parsed(*arguments):
    """Returns flags as the command line would have them."""
    values = flags.FlagValues()
    define_flags(values)
    values(["train", *arguments])
    return values


def test_run_writes_files_and_table(finished):
    config, reports, output, error = finished
    folder = pathlib.Path(config.output_dir)
    assert {path.name for path in folder.iterdir()} == FILES
    assert error == ""
    lines = output.splitlines()
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "float",
        "quantized directly",
        "quantized with SQ",
    ]
    assert lines[0].split() == (
        "network test accuracy TFLite file as float32 smaller bits a weight".split()
    )
    # The history: one row an epoch and run, with the ratio.
    rows = training_report.read_history(folder / "history.csv")
    assert [(row["run"], row["epoch"]) for row in rows] == [
        ("float", 0),
        ("float", 1),
        *(("direct", epoch) for epoch in range(3)),
        *(("sq", epoch) for epoch in range(3)),
    ]
    assert [row["ratio"] for row in rows] == [None] * 2 + [1] * 3 + [0.75, 0.875, 1]
    # The numbers, against the files.
    results = json.loads((folder / "results.json").read_text())
    assert results["examples"] == {"train": 160, "validation": 199, "test": 401}
    model = keras.models.load_model(folder / "sq.keras")
    assert keras_sq.get_ratio(model) == 1.0
    kernels = 64 * 256 + 256 * 256 + 256 * 10
    filters = 256 + 256 + 10
    rest = 2 * 4 * 256 + 10
    for phase in METHODS:
        report = reports[phase]
        assert results["networks"][phase] == dataclasses.asdict(report)
        size = (folder / f"{phase}.tflite").stat().st_size
        assert report.tflite_bytes == size
        assert report.float_tflite_bytes > 4 * kernels
        assert report.parameters == kernels + rest
    assert reports["float"].quantized_weights == 0
    assert reports["float"].bits_per_weight == 32
    assert reports["float"].target == "float"
    for phase in ("direct", "sq"):
        assert reports[phase].quantized_weights == kernels
        # Codes of two bits, and a float32 scale a filter.
        bits = 2 + 32 * filters / kernels
        assert reports[phase].bits_per_weight == pytest.approx(bits, rel=1e-3)
        assert reports[phase].target == "small"
        assert reports[phase].tflite_bytes < reports[phase].float_tflite_bytes / 8


def test_quantized_networks_start_from_the_float_one(own):
    (single,) = train._prepare(own, contextlib.ExitStack())
    config = dataclasses.replace(own, learning_rate=1e-12, epochs=2)
    folder = single.folder
    folder.model("direct").unlink()
    train._train(config.methods[1], config, single.data, folder)
    start, end = (
        next(x for x in weights(folder.model(phase)) if x.shape == (256, 256))
        for phase in ("float", "direct")
    )
    np.testing.assert_allclose(end, start, atol=1e-7)


def test_finished_run_is_resumed_without_training(finished, own, capsys, monkeypatch):
    folder = pathlib.Path(own.output_dir)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    monkeypatch.setattr(keras.Model, "fit", None)
    assert train.run(own) == [finished[1]]
    assert capsys.readouterr().out == finished[2]
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before


HOLDER = """
import sys
from keras_sq.experiments import run_folder
with run_folder.only_process(sys.argv[1]):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_folder_of_another_process_is_left_alone(own):
    """Until it ends, however that is: here by SIGKILL."""
    pytest.importorskip("fcntl")
    folder = pathlib.Path(own.output_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    replacing = dataclasses.replace(own, resume=False, overwrite=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, own.output_dir],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(train.__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "has it\n"
        for config in (own, replacing):
            with pytest.raises(FileExistsError, match="Another process trains in"):
                train.run(config)
        process.kill()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    train.run(own)


def test_skipped_layer_stays_float(own):
    config = dataclasses.replace(own, skip=("logits", "dense1"))
    network = keras_sq.models.get("mlp", (8, 8, 1), 10)
    model = networks.quantized(config, config.methods[1], network)
    assert [path for path, _ in keras_sq.layers.quantized_layers(model)] == ["dense2"]


def test_decay_of_the_learning_rate():
    for decay, expected in (
        ("cosine", [0.1, 0.1 * 0.5 * (1 + np.cos(0.9 * np.pi))]),
        ("constant", [0.1, 0.1]),
        ("0.5,0.75", [0.1, 0.001]),
    ):
        rate = networks.learning_rate(TrainConfig(decay=decay), stages=1, steps=10)
        found = [rate if isinstance(rate, float) else float(rate(x)) for x in (0, 9)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_learning_rate_of_the_papers_protocol_begins_again_at_each_stage():
    rate = networks.learning_rate(TrainConfig(decay="0.5"), stages=4, steps=40)
    found = [float(rate(step)) for step in (0, 9, 10, 19, 30, 39)]
    np.testing.assert_allclose(found, [0.1, 0.01] * 3, rtol=1e-5)


@pytest.mark.slow
def test_preset_with_two_seeds_trains_all_methods_and_tells_the_spread(
    tmp_path, data_dir, capsys
):
    config = TrainConfig(
        data_dir=data_dir,
        output_dir=str(tmp_path / "run"),
        preset="lq-nets",
        model="mlp",
        epochs=4,
        float_epochs=1,
        batch_size=32,
        limit=160,
        seeds=2,
        verbose=0,
    )
    runs = train.run(config)
    printed = capsys.readouterr().out
    names = [method.name for method in config.methods]
    assert [list(run) for run in runs] == [names, names]
    rows = printed.splitlines()[2 : 2 + len(names)]
    for row, method in zip(rows, config.methods, strict=True):
        accuracies = [100 * run[method.name].test_accuracy for run in runs]
        mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1)
        assert row.startswith(method.title)
        assert f" {mean:.2f} ± {spread:.2f} %" in row
    assert "standard deviation of 2 seeds" in printed
    for seed in (0, 1):
        folder = tmp_path / "run" / f"seed-{seed}"
        assert {path.stem for path in folder.glob("*.keras")} == set(names)
        results = json.loads((folder / "results.json").read_text())
        assert results["config"]["seed"] == seed
        # The first and the last of three kernels are float.
        quantized = {
            name: report["quantized_weights"]
            for name, report in results["networks"].items()
        }
        floats = {name for name, weights in quantized.items() if not weights}
        assert floats == {"float", "float-longer"}
        assert set(quantized.values()) == {0, 256 * 256}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.keras")}
    again = train.run(dataclasses.replace(config, resume=True))
    assert again == runs and capsys.readouterr().out == printed
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.keras")} == before


def test_method_alone_gives_what_it_gives_among_others(finished, tmp_path):
    config, reports, _, _ = finished
    alone = dataclasses.replace(config, output_dir=str(tmp_path / "run"), only=("sq",))
    (only,) = train.run(alone)
    assert list(only) == ["float", "sq"]
    assert only["sq"] == reports["sq"]
    for one, other in zip(
        weights(tmp_path / "run" / "sq.keras"),
        weights(pathlib.Path(config.output_dir) / "sq.keras"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_run_from_a_given_network_with_distillation_and_new_statistics(
    finished, tmp_path, monkeypatch
):
    config = finished[0]
    given = pathlib.Path(config.output_dir) / "float.keras"
    calls = []

    def distilled(student, teacher, **settings):
        calls.append(settings)
        return keras_sq.distill(student, teacher, **settings)

    def measured(model, data, **settings):
        calls.append(settings)
        return keras_sq.reestimate_batch_norm(model, data, **settings)

    monkeypatch.setattr(train, "distill", distilled)
    monkeypatch.setattr(train, "reestimate_batch_norm", measured)
    own = dataclasses.replace(
        config,
        model=None,
        start=str(given),
        only=("sq",),
        distill=0.7,
        temperature=2.0,
        reestimate=3,
        epochs=2,
        output_dir=str(tmp_path / "run"),
    )
    (reports,) = train.run(own)
    assert calls == [{"weight": 0.7, "temperature": 2.0}, {"steps": 3}]
    assert list(reports) == ["float", "sq"]
    folder = tmp_path / "run"
    for left, right in zip(
        weights(given), weights(folder / "float.keras"), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    rows = training_report.read_history(folder / "history.csv")
    assert [(row["run"], row["epoch"]) for row in rows] == [("sq", 0), ("sq", 1)]
    # The student alone is what is saved.
    loaded = keras.models.load_model(folder / "sq.keras")
    assert keras_sq.get_ratio(loaded) == 1.0


def test_networks_that_start_anew_need_no_float_one(finished):
    config = dataclasses.replace(finished[0], start="new", only=("direct",))
    assert [method.name for method in config.methods] == ["direct"]
    config = dataclasses.replace(config, distill=0.5)
    assert [method.name for method in config.methods] == ["float", "direct"]


def test_start_with_a_network_of_other_data_is_refused(finished, tmp_path, data_dir):
    path = tmp_path / "other.keras"
    keras_sq.models.get("mlp", (8, 8, 1), 7).save(path)
    config = dataclasses.replace(
        finished[0], model=None, start=str(path), output_dir=str(tmp_path / "run")
    )
    with pytest.raises(ValueError, match=r"network of the data set 'digits'.*None, 7"):
        train.run(config)
    assert not (tmp_path / "run").exists()


def test_start_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be 'float', 'new' or the path"):
        TrainConfig(start=str(tmp_path / "missing.keras"))


def test_network_with_a_softmax_is_trained_on_its_probabilities():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    for network in (model, keras_sq.quantize_model(model, overrides={})):
        networks.compile_model(network, TrainConfig(), 0.1)
        assert not network.loss._fn_kwargs["from_logits"]


@pytest.mark.parametrize("classes", [99, 100])
def test_top_5_accuracy_of_many_classes_is_tested_and_in_the_table(classes):
    """Against a ranking by NumPy."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, classes)).astype("float32")
    labels = rng.integers(0, classes, 200)
    labels[:50] = np.argsort(logits[:50])[:, -4]
    model = keras.Sequential([keras.Input((classes,)), keras.layers.Identity()])
    networks.compile_model(model, TrainConfig(), 0.1, for_test=True)
    logs = model.evaluate(logits, labels, verbose=0, return_dict=True)
    exported = dict.fromkeys(
        ("target", "num_bytes", "float_bytes", "quantized_weights", "bits_per_weight"),
        1,
    )
    report = training_report.network_report(exported, 1, logs)
    table = training_report.table([{"x": report}], {"x": "x"}, "Caption", 200)
    if classes < 100:
        assert report.test_top_5_accuracy is None and "top 5" not in table
        return
    best = np.argsort(logits)[:, -5:]
    expected = np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert report.test_top_5_accuracy == pytest.approx(expected)
    assert re.split(r" {2,}", table.splitlines()[0])[2] == "top 5"
    assert f"{100 * expected:.2f} %" in table.splitlines()[2]


def test_adam_is_an_optimizer():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    networks.compile_model(model, TrainConfig(optimizer="adam"), 0.1)
    assert type(model.optimizer) is keras.optimizers.Adam


def test_missing_matplotlib_is_told(own, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = run_folder.RunFolder(pathlib.Path(own.output_dir))
    train._plot(folder, [{"run": "sq"}])
    assert not (folder.state / "training.png").exists()
    assert 'pip install "keras-sq[plots]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs=0", "`epochs` must be at least 1"),
        ("--float_epochs=0", "`float_epochs` must be at least 1"),
        ("--batch_size=0", "`batch_size` must be at least 1"),
        ("--batch_size=1198", "at most the 1197 training examples"),
        ("--limit=0", "`limit` must be at least 1"),
        ("--limit=1198", "`limit` must be at most 1197"),
        ("--seed=-1", "`seed` must be at least 0"),
        ("--seed=2147483648", "`seed` must be at most"),
        ("--learning_rate=0", "`learning_rate` must be a finite number above 0"),
        ("--learning_rate=nan", "`learning_rate` must be a finite number above 0"),
        ("--weight_decay=-1", "`weight_decay` must be a finite number above 0"),
        ("--quantizer=trenary", "Did you mean 'ternary'?"),
        ("--schedule=exponentail", "Did you mean 'exponential'?"),
        ("--schedule=exponentail", "'short'"),
        ("--model=vgg9 --limit=9", "`batch_size` must be at most the 9 training"),
        ("--skip=conv9", "conv9"),
        ("--dataset=cifar_10", "Did you mean 'cifar10'?"),
        ("--dataset=cifar10", "'cifar10' was not found in data_dir"),
        ("--resume --overwrite", "`resume` and `overwrite` exclude each other"),
        ("--verbose=2", "`verbose` must be at most 1"),
        ("--seeds=0", "`seeds` must be at least 1"),
        ("--preset=lq-nets --quantizer=binary", "`preset` and `quantizer` exclude"),
        ("--preset=lq-nets --skip=@frist", "'@frist'"),
        ("--only=sqq", "Did you mean 'sq'?"),
        ("--start=missing.keras", "start='missing.keras', and there is no such file"),
        ("--start=missing.keras --model=mlp", "`start` and `model` exclude each"),
        ("--decay=cosinus", "or increasing fractions of the run such as '0.5,0.75'"),
        ("--decay=0.75,0.5", "or increasing fractions of the run such as '0.5,0.75'"),
        ("--decay=0.5,1", "or increasing fractions of the run such as '0.5,0.75'"),
        ("--distill=2", "`distill` must be"),
        ("--temperature=0", "`temperature` must be"),
        ("--reestimate=-1", "`reestimate` must be at least 0"),
        ("--iterations=0", "`iterations` must be at least 1"),
        ("--scale=0", "`scale` must be"),
        ("--input_quantizer=lq-9", "lq-9"),
        ("--preset=lq-nets --probability=softmax", "`preset` and `probability` exc"),
    ],
)
def test_bad_flag_is_refused_and_nothing_made(
    flag, message, tmp_path, data_dir, capsys
):
    out = tmp_path / "out"
    arguments = [f"--data_dir={data_dir}", f"--output_dir={out}", *flag.split()]
    assert train.main(parsed(*arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras_sq.train: error: ")
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize("place", ["file", "file/deeper", "closed/deeper"])
def test_unwritable_output_dir_is_refused(place, tmp_path, data_dir, monkeypatch):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "closed").mkdir()
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "closed" not in str(path) and may(path, mode)
    )
    with pytest.raises(OSError, match="`output_dir` must be a folder that can be"):
        TrainConfig(data_dir=data_dir, output_dir=str(tmp_path / place))
    assert (tmp_path / "file").read_text() == "kept"


def test_output_dir_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    config = TrainConfig(output_dir=str(tmp_path / "out"))

    def refuse(*arguments, **keywords):
        raise PermissionError("no")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"`output_dir` must be .* \(no\)"):
        config.claim_folder()


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'resnet20'?"):
        TrainConfig(model="resnet-20")
    with pytest.raises(flags.IllegalFlagValueError, match="digits_cnn"):
        parsed("--model=resnet-20")


def test_flags_have_the_defaults_of_the_config():
    assert config_from_flags(parsed()) == TrainConfig()
    arguments = ("--skip=a,b", "--only=sq", "--augment", "--limit=5")
    given = config_from_flags(parsed(*arguments))
    assert given == TrainConfig(skip=("a", "b"), only=("sq",), augment=True, limit=5)


def test_defaults_follow_the_dataset():
    assert TrainConfig().model_name == "digits_cnn"
    assert not TrainConfig().augments
    assert TrainConfig(dataset="cifar10:3.0.2").model_name == "resnet20"
    assert TrainConfig(dataset="cifar10:3.0.2").augments
    assert not TrainConfig(dataset="cifar10", augment=False).augments


def test_images_of_another_size(data_dir, tmp_path):
    config = TrainConfig(
        data_dir=data_dir,
        output_dir=str(tmp_path / "run"),
        image_size=12,
        crop="area",
        only=("float",),
        float_epochs=1,
        limit=64,
        verbose=0,
    )
    train.run(config)
    model = keras.models.load_model(tmp_path / "run" / "float.keras", compile=False)
    assert model.input_shape == (None, 12, 12, 1)
    described = config.description()
    assert (described["image_size"], described["crop"]) == (12, "area")


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--image_size=0", "`image_size` must be at least 1"), ("--crop=all", "area")],
)
def test_wrong_size_or_crop_is_told(flag, message):
    with pytest.raises((ValueError, flags.IllegalFlagValueError), match=message):
        config_from_flags(parsed(flag))


def test_folder_of_another_run_is_not_replaced(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path))
    folder = config.claim_folder()
    folder.model("float").write_text("hours of work")
    other = dataclasses.replace(config, epochs=7)
    with pytest.raises(FileExistsError, match="an unfinished run.*--resume"):
        config.claim_folder()
    with pytest.raises(FileExistsError, match="epochs=20 there, 7 asked for"):
        other.claim_folder()
    with pytest.raises(ValueError, match="epochs=20 there, 7 asked for"):
        dataclasses.replace(other, resume=True).claim_folder()
    assert folder.model("float").read_text() == "hours of work"
    dataclasses.replace(config, resume=True).claim_folder()
    assert folder.model("float").read_text() == "hours of work"
    dataclasses.replace(other, overwrite=True).claim_folder()
    assert not folder.model("float").exists()


def test_finished_run_is_replaced_by_the_same_only(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path))
    folder = config.claim_folder()
    folder.results.write_text("{}")
    with pytest.raises(FileExistsError, match="a run with other settings"):
        dataclasses.replace(config, seed=1).claim_folder()
    dataclasses.replace(config, verbose=0).claim_folder()
    assert not folder.is_finished


def test_strange_files_are_left_alone(tmp_path):
    (tmp_path / "results.json").write_text("not ours")
    (tmp_path / "notes.txt").write_text("mine")
    config = TrainConfig(output_dir=str(tmp_path))
    with pytest.raises(FileExistsError, match="would replace: results.json"):
        config.claim_folder()
    assert (tmp_path / "results.json").read_text() == "not ours"
    dataclasses.replace(config, overwrite=True).claim_folder()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "config.json").write_text('{"version": "0"}')
    with pytest.raises(FileExistsError, match="is not of a training run"):
        config.claim_folder()


def test_resume_without_an_earlier_run_starts_one(tmp_path):
    folder = TrainConfig(output_dir=str(tmp_path / "a/b"), resume=True).claim_folder()
    assert folder.state.is_dir()


def test_backup_keeps_the_history(tmp_path):
    whole = tmp_path / "epoch-000001"
    whole.mkdir()
    row = dict.fromkeys(training_report.COLUMNS, 0.5) | {"run": "sq"}
    training_files.write_json(whole / "history.json", [row])
    file_checks.seal(whole)
    backup = training_callbacks.Backup(tmp_path, "sq")
    assert backup.initial_epoch == 1 and backup.rows == [row]


def test_clearing_that_is_killed_leaves_an_unfinished_run(own, monkeypatch):
    """After each file that goes, the folder can be resumed or overwritten."""
    source = pathlib.Path(own.output_dir)
    (source / ".sq.tflite.0a1b2c3d.tmp").write_text("half")
    (source / ".history.csv.unfinished").write_text("half")
    other = dataclasses.replace(own, resume=False, overwrite=True, seed=9)
    removals = 0
    unlink = pathlib.Path.unlink
    while True:
        folder = source.with_name(f"killed-{removals}")
        shutil.copytree(source, folder)
        left = removals

        def dies(path, missing_ok=False):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            unlink(path, missing_ok=missing_ok)

        config = dataclasses.replace(other, output_dir=str(folder))
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "unlink", dies)
            try:
                config.claim_folder()
                break
            except KeyboardInterrupt:
                pass
        if removals:
            assert not (folder / "results.json").exists()
        for method in METHODS:
            trained = (folder / f"{method}.keras").exists()
            assert not trained or (folder / "state" / f"{method}.json").exists()
        again = dataclasses.replace(own, output_dir=str(folder))
        assert again.claim_folder().earlier_description()["seed"] == own.seed
        assert not list(folder.glob(".*"))
        assert config.claim_folder().earlier_description()["seed"] == 9
        removals += 1
    assert removals >= len(FILES)
    assert {path.name for path in folder.iterdir()} == {"config.json", "state"}


def test_diverging_run_stops_and_keeps_what_was_trained(own, capsys, monkeypatch):
    folder = pathlib.Path(own.output_dir)
    (folder / "sq.keras").unlink()
    flag_values = [
        *("--model=mlp", "--epochs=3", "--float_epochs=2", "--batch_size=32"),
        *("--limit=160", f"--data_dir={own.data_dir}", f"--output_dir={folder}"),
        "--schedule=exponential",
        *("--resume", "--verbose=0"),
    ]

    class Bad(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                bias = self.model.get_layer("logits").bias
                bias.assign(bias * np.nan)

    callbacks = training_callbacks.Backup.__mro__[1].on_train_begin

    def spoiled(self, logs=None):
        callbacks(self, logs)
        bad = Bad()
        bad.set_model(self.model)
        self.on_epoch_begin = bad.on_epoch_begin

    monkeypatch.setattr(training_callbacks.Backup, "on_train_begin", spoiled)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert train.main(parsed(*flag_values)) == 1
    error = capsys.readouterr().err
    assert error.startswith("keras_sq.train: error: ") and error.count("\n") == 1
    assert "holds NaN" in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    kept = training_callbacks.Backup(folder / "state" / "sq", "sq")
    assert kept.initial_epoch == 1 and len(kept.rows) == 1


def test_float_network_that_diverges_is_not_saved(tmp_path, data_dir, capsys):
    out = tmp_path / "out"
    flag_values = [
        *("--model=mlp", "--epochs=1", "--float_epochs=1", "--batch_size=32"),
        *("--limit=160", f"--data_dir={data_dir}", f"--output_dir={out}"),
        *("--learning_rate=1e30", "--verbose=0"),
    ]
    assert train.main(parsed(*flag_values)) == 1
    assert "Weight 'dense1/kernel' holds NaN" in capsys.readouterr().err
    assert not (out / "float.keras").exists()


def test_full_disk_is_told_and_keeps_what_was_trained(own, capsys, monkeypatch):
    folder = pathlib.Path(own.output_dir)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    flag_values = [
        *("--model=mlp", "--epochs=3", "--float_epochs=2", "--batch_size=32"),
        *("--limit=160", f"--data_dir={own.data_dir}", f"--output_dir={folder}"),
        "--schedule=exponential",
        *("--resume", "--verbose=0"),
    ]

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert train.main(parsed(*flag_values)) == 1
    error = capsys.readouterr().err
    assert "Cannot write the exported file: No space left" in error
    assert "--resume" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before


def test_disk_that_fills_in_the_saving_of_a_network_keeps_its_backup(own, capsys):
    """With room again the run ends as it would have."""
    folder = pathlib.Path(own.output_dir)
    whole = weights(folder / "sq.keras")
    (folder / "sq.keras").unlink()
    (folder / "results.json").unlink()
    (single,) = train._prepare(own, contextlib.ExitStack())
    save = train._save

    def full(model, *arguments):
        with largest_file(10_000):
            save(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_save", full)
        with pytest.raises(OSError, match="File too large"):
            train._train(own.methods[-1], own, single.data, single.folder)
    assert not (folder / "sq.keras").exists()
    assert training_callbacks.Backup(single.folder.snapshots("sq"), "sq").newest
    train.run(own)
    for expected, found in zip(whole, weights(folder / "sq.keras"), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_stop_between_last_epoch_and_saving_loses_nothing(own, monkeypatch):
    (single,) = train._prepare(own, contextlib.ExitStack())
    folder, method = single.folder, own.methods[2]
    folder.model("sq").unlink()
    trained = []

    def stop(model, folder, phase):
        trained.extend(model.get_weights())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train._train(method, own, single.data, folder)
    assert not folder.model("sq").exists()
    train._train(method, own, single.data, folder)
    for one, other in zip(weights(folder.model("sq")), trained, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(json.loads(folder.history("sq").read_text())) == own.epochs


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_updates_one_line_or_writes_few(terminal):
    stream = Terminal() if terminal else io.StringIO()
    progress = training_callbacks.Progress("net", stream, lines=4)
    progress.set_params({"epochs": 10, "steps": 2})
    progress.on_train_begin()
    for epoch in range(10):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_end(0)
        logs = {"loss": 0.5, "val_accuracy": 0.25, "quantized_ratio": 0.875}
        progress.on_epoch_end(epoch, logs)
    progress.on_train_end()
    text = stream.getvalue()
    assert text.count("\n") == (1 if terminal else 4)
    assert ("\r" in text) == terminal
    last = text.rstrip("\n").replace("\r", "\n").splitlines()[-1]
    assert last.startswith(
        "net: epoch 10/10, loss 0.500, val accuracy 25.00 %, ratio 0.875"
    )


def command(output_dir, data_dir, *more):
    """Returns the command line of a run that takes some seconds a phase."""
    return [
        *(sys.executable, "-m", "keras_sq.train", f"--data_dir={data_dir}"),
        *(f"--output_dir={output_dir}", "--epochs=4", "--float_epochs=3"),
        *("--batch_size=8", "--quantizer=binary", "--seed=5", *more),
    ]


def kill_when_there(path, arguments):
    """Starts a run, and kills it in the epoch after `path` has appeared."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not path.exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # In mid-epoch: the next one (of 149 steps) was not finished.
    assert sorted(path.parent.glob("epoch-*")) == [path]


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(tmp_path, data_dir):
    """Killed in the float and in the SQ phase; also: same seed, same table."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"

    def finish(folder, *more):
        return subprocess.run(
            command(folder, data_dir, *more), capture_output=True, text=True, check=True
        ).stdout

    table = finish(straight)
    arguments = command(killed, data_dir, "--verbose=0")
    kill_when_there(killed / "state" / "float" / "epoch-000002", arguments)
    assert not (killed / "float.keras").exists()
    refused = subprocess.run(arguments, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "holds an unfinished run" in refused.stderr
    kill_when_there(killed / "state" / "sq" / "epoch-000002", [*arguments, "--resume"])
    assert not (killed / "sq.keras").exists()
    float_network = (killed / "float.keras").read_bytes()
    resumed = finish(killed, "--resume")
    assert (killed / "float.keras").read_bytes() == float_network
    assert table.replace(str(straight), "") == resumed.replace(str(killed), "")
    for phase in METHODS:
        pairs = zip(
            weights(straight / f"{phase}.keras"),
            weights(killed / f"{phase}.keras"),
            strict=True,
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
        name = f"{phase}.tflite"
        assert (straight / name).read_bytes() == (killed / name).read_bytes()
    for name in ("history.csv", "results.json", "config.json"):
        assert (straight / name).read_text() == (killed / name).read_text()


@pytest.mark.slow
def test_help_names_every_flag():
    run = subprocess.run(
        [sys.executable, "-m", "keras_sq.train", "--helpfull"],
        capture_output=True,
        text=True,
    )
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name}" in run.stdout or f"]{field.name}" in run.stdout
    assert training_config.__doc__
