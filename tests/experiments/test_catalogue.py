"""The experiments: complete, valid, and what the papers say."""

import json
import pathlib
import re

import pytest
from absl import flags

from keras_sq import models
from keras_sq.experiments import catalogue, train
from keras_sq.experiments.config import TrainConfig
from keras_sq.experiments.flags import config_from_flags, define_flags

NAMES = catalogue.names()

FOLDER = pathlib.Path(catalogue.__file__).parent


def parsed(*arguments):
    """Returns flags as the command line would have them."""
    values = flags.FlagValues()
    define_flags(values)
    values(["train", *arguments])
    return values


@pytest.mark.parametrize("name", NAMES)
def test_experiment_is_a_valid_run(name, tmp_path):
    experiment = catalogue.get(name)
    config = experiment.config(output_dir=str(tmp_path / "run"))
    assert config.experiment == name
    assert config.model in models.NAMES
    assert experiment.title and experiment.source
    assert set(experiment.published) <= {
        "confirmed",
        "test_error",
        "top_1_error",
        "top_5_error",
        "test_accuracy",
        "top_1_accuracy",
        "gain_over_straight_through",
    }
    made = [method.name for method in config.methods]
    if config.preset == "defaults":
        assert made[:3] == ["float", "float-longer", "ternary-direct"]
        return
    # One network each, and the float one if others start from it.
    expected = list(config.only)
    if config.start == "float":
        expected.insert(0, "float")
    assert made == expected


@pytest.mark.parametrize("name", NAMES)
def test_experiment_is_what_its_flags_say(name, tmp_path):
    folder = f"--output_dir={tmp_path / 'run'}"
    experiment = catalogue.get(name)
    by_name = config_from_flags(parsed(f"--experiment={name}", folder)).description()
    by_flags = config_from_flags(
        parsed(*experiment.flags().removesuffix(".").split(), folder)
    ).description()
    assert by_name | {"experiment": None} == by_flags


def test_all_rows_of_the_papers_are_there():
    networks = ["cifar10_vgg9", "cifar10_resnet56", "cifar100_vgg9"]
    networks += ["cifar100_resnet56", "imagenet_alexnet", "imagenet_resnet18"]
    rows = {
        f"{network}_{method}"
        for network in networks
        for method in ("fwn", "bwn", "sq_bwn", "twn", "sq_twn")
    }
    ablations = (
        "selection_deterministic",
        "selection_fixed",
        "granularity_element",
        "probability_constant",
        "probability_softmax",
        "probability_sigmoid",
        "schedule_average",
        "schedule_finetune",
    )
    rows |= {
        f"cifar10_resnet56_{method}_{ablation}"
        for method in ("sq_bwn", "sq_twn")
        for ablation in ablations
    }
    assert rows <= set(NAMES)
    assert len([name for name in NAMES if re.search(r"_lq_\d_\d+$", name)]) == 32
    # Three baselines and orders of the paper's networks, all of smaller ones.
    stompp = [name for name in NAMES if "_stompp_" in name]
    assert len([name for name in stompp if re.search("resnet(18|50)", name)]) == 19
    assert len(stompp) == 32 + 19


@pytest.mark.parametrize(
    "name", catalogue.names(["imagenet_*_lq_*"]), ids=lambda name: name[9:]
)
def test_images_of_lq_nets_are_cropped_as_its_code_does(name):
    """110 epochs go with crops of 8 to 100 % of the area there."""
    settings = catalogue.get(name).settings
    assert settings["crop"] == "area"
    assert settings["iterations"] == 110 * 5000


@pytest.mark.parametrize("name", catalogue.names(["*_resnet[15][80]_stompp_*"]))
def test_gains_of_stompp_have_the_baseline_beside_them(name):
    experiment = catalogue.get(name)
    baseline = "weights_ste" if "_weights_" in name else "ste"
    other = catalogue.get(f"{name.partition('_stompp_')[0]}_stompp_{baseline}")
    same = {**experiment.settings, "only": other.settings["only"]}
    assert same == other.settings
    assert ("ste" in name.split("_stompp_")[1]) or experiment.published


@pytest.mark.parametrize(
    ("name", "protocol", "stages", "epochs"),
    [
        ("cifar10_resnet56_twn", "paper", 1, 182),
        ("cifar10_resnet56_sq_twn", "paper", 4, 728),
        ("cifar10_resnet56_sq_twn", "equal", 1, 182),
        ("cifar10_resnet56_sq_bwn_schedule_average", "paper", 5, 910),
    ],
)
def test_length_is_that_of_the_protocol(name, protocol, stages, epochs, tmp_path):
    config = catalogue.get(name).config(
        protocol=protocol, output_dir=str(tmp_path / "run")
    )
    method = config.methods[-1]
    assert method.stages == stages
    # 64,000 steps of 128 of 45,000 images.
    assert config.epochs_of(method, 45_000 // 128) == epochs
    assert config.epochs_of(method, 10**9) == stages
    if stages > 1:
        assert method.preset.clear_momentum
        bound = method.preset.schedule.bind(total_steps=60, steps_per_epoch=None)
        assert bound.stage_starts == tuple(range(0, 60, 60 // stages))


def test_scale_shortens_all(tmp_path):
    config = catalogue.get("cifar10_resnet56_sq_twn").config(
        scale=0.05, output_dir=str(tmp_path / "run")
    )
    assert config.epochs_of(config.methods[-1], 351) == 4 * 9


def test_caption_says_what_is_not_confirmed():
    assert catalogue.get("cifar10_vgg9_sq_twn").caption == (
        "SQ-TWN, VGG-9, CIFAR-10; published, in %: test error 8.37 (not confirmed)"
    )
    assert catalogue.get("cifar10_vgg_small_lq_2_2").caption.endswith("accuracy 93.5")
    assert ";" not in catalogue.get("digits_twn").caption


def test_list_prints_all_names(capsys):
    assert train.main(parsed("--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=cifar10_vgg9_sqtwn"], "Did you mean 'cifar10_vgg9_sq_twn'"),
        (["--experiment=*"], "There is no experiment"),
        (
            ["--experiment=digits_twn", "--epochs=3"],
            "the experiment 'digits_twn' decides it.*--iterations=500",
        ),
        (["--experiment=digits_twn", "--scale=0"], "Argument `scale` must be"),
    ],
)
def test_bad_request_is_refused_and_nothing_made(arguments, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main(parsed(*arguments, f"--output_dir={folder}")) == 2
    assert re.search(message, capsys.readouterr().err, re.S)
    assert not folder.exists()


def test_file_of_another_shape_of_settings_is_told(tmp_path, monkeypatch):
    tables = json.loads((FOLDER / "keras_sq.json").read_text())
    (tmp_path / "tables.json").write_text(
        json.dumps([{**table, "settings": {"modle": "mlp"}} for table in tables])
    )
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    catalogue._experiments.cache_clear()
    try:
        with pytest.raises(TypeError, match="modle"):
            catalogue.get("digits_fwn").config(output_dir=str(tmp_path / "run"))
    finally:
        catalogue._experiments.cache_clear()


def test_experiment_is_in_one_table():
    tables = [t for x in FOLDER.glob("*.json") for t in json.loads(x.read_text())]
    names = [name for table in tables for name in table["rows"]]
    assert len(names) == len(set(names)) == len(NAMES)


def test_paper_protocol_leaves_methods_without_stages_alone():
    config = TrainConfig(protocol="paper")
    assert [method.stages for method in config.methods] == [1, 1, 4]
    # `short` is in stages, too: four of a run each.
    assert config.methods[2].preset.schedule.ratios == (0.5, 0.75, 0.875, 1.0)
    assert TrainConfig(protocol="paper", schedule="cubic").methods[2].stages == 1
