"""The flags of `python -m keras_sq.train`, with the defaults of `TrainConfig`."""

import dataclasses
from typing import Any

from absl import flags

from keras_sq import comparisons, models
from keras_sq.training_config import DECAYS, TARGETS, TrainConfig


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags; their defaults are those of `TrainConfig`.

    Args:
        values: Where to define them: `absl.flags.FLAGS`, or a set of one's own.
    """
    fields = dataclasses.fields(TrainConfig)
    default: dict[str, Any] = {field.name: field.default for field in fields}
    own: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string(
        "dataset", default["dataset"], "digits (in the package), or a TFDS name.", **own
    )
    flags.DEFINE_string(
        "data_dir",
        default["data_dir"],
        "Folder of prepared TFDS data. [TFDS's own, ~/tensorflow_datasets]",
        **own,
    )
    flags.DEFINE_bool(
        "download", default["download"], "Let TFDS fetch a data set not there.", **own
    )
    flags.DEFINE_enum(
        "model",
        default["model"],
        list(models.NAMES),
        "Network. [digits_cnn for digits, else resnet20]",
        **own,
    )
    flags.DEFINE_enum(
        "preset",
        default["preset"],
        list(comparisons.NAMES),
        "A paper's methods and what to compare them with. [--quantizer, directly and "
        "with SQ]",
        **own,
    )
    flags.DEFINE_list(
        "only",
        default["only"],
        "Methods of the comparison to train besides the float network. [all]",
        **own,
    )
    flags.DEFINE_string(
        "quantizer",
        default["quantizer"],
        "binary, ternary, uniform-4, lq-2, … [ternary]",
        **own,
    )
    flags.DEFINE_string(
        "schedule",
        default["schedule"],
        "Ratio over the run: short (50, 75, 87.5 %, a tenth of the run each), or "
        "exponential (the paper's: four equal stages), average, constant, linear, "
        "cosine, cubic.",
        **own,
    )
    flags.DEFINE_list(
        "skip",
        default["skip"],
        "Layers that stay float: names, patterns, @first, @last, @downsampling. [none, "
        "or what the preset says]",
        **own,
    )
    flags.DEFINE_enum(
        "target",
        default["target"],
        list(TARGETS),
        "Kind of the quantized networks' TFLite files, see keras_sq.export.",
        **own,
    )
    flags.DEFINE_integer(
        "epochs", default["epochs"], "Epochs of each network but the first.", **own
    )
    flags.DEFINE_integer(
        "float_epochs", default["float_epochs"], "Epochs of the float network.", **own
    )
    flags.DEFINE_integer("batch_size", default["batch_size"], "Examples a step.", **own)
    flags.DEFINE_float(
        "learning_rate",
        default["learning_rate"],
        "Of SGD with momentum 0.9, at the start of each training.",
        **own,
    )
    flags.DEFINE_enum(
        "decay", default["decay"], list(DECAYS), "Of the learning rate.", **own
    )
    flags.DEFINE_float(
        "weight_decay", default["weight_decay"], "Of all kernels.", **own
    )
    flags.DEFINE_bool(
        "augment",
        default["augment"],
        "Mirror, shift or crop training images. [for CIFAR and ImageNet only]",
        **own,
    )
    flags.DEFINE_integer(
        "seed", default["seed"], "Same seed, same machine: same table.", **own
    )
    flags.DEFINE_integer(
        "seeds", default["seeds"], "Runs, with --seed, --seed + 1, …", **own
    )
    flags.DEFINE_integer(
        "limit", default["limit"], "Use so many training examples. [all]", **own
    )
    flags.DEFINE_string(
        "output_dir", default["output_dir"], "Folder for what is written.", **own
    )
    flags.DEFINE_bool(
        "resume", default["resume"], "Go on with a run that was stopped.", **own
    )
    flags.DEFINE_bool(
        "overwrite", default["overwrite"], "Replace a run with other settings.", **own
    )
    flags.DEFINE_integer(
        "verbose", default["verbose"], "0: table only; 1: progress too.", **own
    )


def config_from_flags(values: flags.FlagValues) -> TrainConfig:
    """Returns the checked settings of parsed flags."""
    given = {
        field.name: getattr(values, field.name)
        for field in dataclasses.fields(TrainConfig)
    }
    for name in ("skip", "only"):
        given[name] = None if given[name] is None else tuple(given[name])
    return TrainConfig(**given)
