"""The flags of `python -m keras_sq.train`, with the defaults of `TrainConfig`."""

import dataclasses
from typing import Any

from absl import flags

from keras_sq import datasets, models
from keras_sq.experiments import catalogue, comparisons
from keras_sq.experiments.config import (
    OPTIMIZERS,
    PROTOCOLS,
    SELECTION_CHOICES,
    TARGETS,
    TrainConfig,
)

HELP: dict[str, str] = {
    "experiment": "Settings with a name: a row of a paper's table, see --list. The "
    "other flags then choose data, seeds, length and folders only.",
    "dataset": "digits (in the package), or a TFDS name.",
    "data_dir": "Folder of prepared TFDS data. [TFDS's own, ~/tensorflow_datasets]",
    "download": "Let TFDS fetch a data set not there.",
    "model": "Network. [digits_cnn for digits, else resnet20]",
    "start": "What is quantized: float, a float network that is trained first; new, "
    "new weights, the same for all; or the path of a trained network of this data.",
    "preset": "A paper's methods and what to compare them with. [--quantizer, directly "
    "and with SQ]",
    "only": "Methods of the comparison to train; the float network is trained, too, if "
    "others need it. A method's result does not depend on the others. [all]",
    "quantizer": "binary, ternary, uniform-4, lq-2, … [ternary]",
    "input_quantizer": "Of the inputs of the layers: lq-2, uniform-4, … [none]",
    "schedule": "Ratio over the run: short (50, 75, 87.5 %, a twentieth of the run "
    "each), exponential (the paper's: four equal stages), average, constant, linear, "
    "cosine, cubic.",
    "protocol": "equal: all networks are trained equally long; paper: each stage of SQ "
    "is as long as the whole training of the others, and begins with the first "
    "learning rate and no momentum.",
    "granularity": "What SQ selects. [filter]",
    "probability": "How it depends on the quantization error. [linear]",
    "selection": "How SQ draws. [roulette]",
    "draw": "Formula: the paper's or its released code's. [paper]",
    "skip": "Layers that stay float: names, patterns, @first, @last, @downsampling. "
    "[none, or what the preset says]",
    "distill": "Weight of the float network's outputs against the labels, 0 to 1.",
    "temperature": "Of these outputs.",
    "reestimate": "Batches to measure batch normalization on after the training.",
    "target": "Kind of the quantized networks' TFLite files, see keras_sq.export.",
    "epochs": "Epochs of each network but the first.",
    "float_epochs": "Epochs of the float network.",
    "iterations": "Steps of each network, instead of both; the nearest number of full "
    "epochs is trained.",
    "scale": "Factor on the length of every training.",
    "batch_size": "Examples a step.",
    "optimizer": "sgd has a momentum of 0.9.",
    "learning_rate": "At the start of each training.",
    "decay": "Of the learning rate: cosine, constant, or the fractions of the run at "
    "which it falls to a tenth, such as 0.5,0.75.",
    "weight_decay": "Of all kernels.",
    "augment": "Mirror, shift or crop training images. [for CIFAR and ImageNet only]",
    "image_size": "Height and width that images are brought to. [as they are]",
    "crop": "Which part of them then, if augmented: a square of 7/8 of the short "
    "side, or 8 to 100 % of the area.",
    "seed": "Same seed, same machine: same table.",
    "seeds": "Runs, with --seed, --seed + 1, …",
    "limit": "Use so many training examples. [all]",
    "output_dir": "Folder for what is written.",
    "resume": "Go on with a run that was stopped.",
    "overwrite": "Replace a run with other settings.",
    "verbose": "0: table only; 1: progress too.",
}
"""Name of the flag, and of the attribute of `TrainConfig` -> help text."""

CHOICES: dict[str, tuple[str, ...]] = {
    "model": models.NAMES,
    "preset": comparisons.NAMES,
    "protocol": PROTOCOLS,
    **SELECTION_CHOICES,
    "target": TARGETS,
    "optimizer": OPTIMIZERS,
    "crop": datasets.CROPS,
}
"""Values of the flags that have a few."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags; their defaults are those of `TrainConfig`.

    Args:
        values: Where to define them: `absl.flags.FLAGS`, or another set of flags.
    """
    common: dict[str, Any] = {"flag_values": values}
    kinds = {
        "bool": flags.DEFINE_bool,
        "int": flags.DEFINE_integer,
        "float": flags.DEFINE_float,
        "str": flags.DEFINE_string,
        "tuple[str, ...]": flags.DEFINE_list,
    }
    for field in dataclasses.fields(TrainConfig):
        name, text = field.name, HELP[field.name]
        if name in CHOICES:
            default: Any = field.default
            flags.DEFINE_enum(name, default, list(CHOICES[name]), text, **common)
        else:
            kind = getattr(field.type, "__name__", str(field.type))
            define: Any = kinds[str(kind).removesuffix(" | None")]
            define(name, field.default, text, **common)
    flags.DEFINE_bool("list", False, "Print the names of the experiments.", **common)


def config_from_flags(values: flags.FlagValues) -> TrainConfig:
    """Returns the checked settings of parsed flags.

    Raises:
        TypeError: As `TrainConfig`.
        ValueError: As `TrainConfig`; or if a flag is set that an experiment decides.
        OSError: As `TrainConfig`.
    """
    settings = {
        field.name: getattr(values, field.name)
        for field in dataclasses.fields(TrainConfig)
    }
    for name in ("skip", "only"):
        settings[name] = None if settings[name] is None else tuple(settings[name])
    if settings["experiment"] is None:
        return TrainConfig(**settings)
    experiment = catalogue.get(settings.pop("experiment"))
    set_by_hand = {name: settings[name] for name in settings if values[name].present}
    return experiment.config(**set_by_hand)
