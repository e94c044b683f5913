"""The main job, from the command line: `python -m keras_sq.train`.

Trains a float network, then two quantized ones that start from its weights
and see the same data for the same number of epochs: one quantized directly,
one with stochastic quantization. Exports all three, prints a table and
leaves networks, files, history and a plot in a folder. Without a flag it
uses the digits inside the package and needs no network.

The last epoch's weights are the result, for all three: nothing is chosen by
validation accuracy, and the test split is looked at once, at the end.

Settings and the output folder are in `training_config.py`, the table in
`training_report.py`, restoring in `training_callbacks.py`.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import app, flags, logging

from keras_sq import (
    callbacks,
    conversion,
    datasets,
    masks,
    models,
    plots,
    quantizers,
    training_callbacks,
    training_report,
)
from keras_sq.export import export
from keras_sq.training_config import (
    PHASES,
    TARGETS,
    RunFolder,
    TrainConfig,
    claim_folder,
    write_json,
    write_text,
)
from keras_sq.types import Model

MOMENTUM = 0.9
"""Of the optimizer, as in the paper."""


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
    flags.DEFINE_string(
        "quantizer", default["quantizer"], "binary, ternary, uniform-4, …", **own
    )
    flags.DEFINE_string(
        "schedule",
        default["schedule"],
        "Ratio over the run: short (50, 75, 87.5 %, a tenth of the run each), or "
        "exponential (the paper's: four equal stages), average, constant, linear, "
        "cosine, cubic.",
        **own,
    )
    flags.DEFINE_list("skip", [], "Layers that stay float: names, patterns.", **own)
    flags.DEFINE_enum(
        "target",
        default["target"],
        list(TARGETS),
        "Kind of the quantized networks' TFLite files, see keras_sq.export.",
        **own,
    )
    flags.DEFINE_integer(
        "epochs", default["epochs"], "Epochs of each quantized network.", **own
    )
    flags.DEFINE_integer(
        "float_epochs", default["float_epochs"], "Epochs of the float network.", **own
    )
    flags.DEFINE_integer("batch_size", default["batch_size"], "Examples a step.", **own)
    flags.DEFINE_float(
        "learning_rate",
        default["learning_rate"],
        "Of SGD with momentum 0.9, at the start of each training; falls to 0.",
        **own,
    )
    flags.DEFINE_float(
        "weight_decay", default["weight_decay"], "Of all kernels.", **own
    )
    flags.DEFINE_bool(
        "augment",
        default["augment"],
        "Mirror and shift training images. [for CIFAR only]",
        **own,
    )
    flags.DEFINE_integer(
        "seed", default["seed"], "Same seed, same machine: same table.", **own
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
    given["skip"] = tuple(given["skip"])
    return TrainConfig(**given)


def run(config: TrainConfig) -> dict[str, training_report.NetworkReport]:
    """Trains, exports and reports; writes into `config.output_dir`.

    Args:
        config: What to do.

    Returns:
        Phase (`"float"`, `"direct"`, `"sq"`) -> report.

    Raises:
        FileNotFoundError: If the data set is not there.
        FileExistsError: If the folder holds another run.
        OSError: If the folder cannot be written to.
        ValueError: If a setting does not suit the data or the network.
    """
    return _finish(*_prepare(config))


def _prepare(config: TrainConfig) -> tuple[TrainConfig, datasets.Dataset, RunFolder]:
    """Everything that can be wrong with a request; then makes the folder."""
    data = datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augments,
        limit=config.limit,
        download=config.download,
    )
    _quantized(config, _new_model(config, data))
    return config, data, claim_folder(config)


def _finish(
    config: TrainConfig, data: datasets.Dataset, folder: RunFolder
) -> dict[str, training_report.NetworkReport]:
    for phase in PHASES:
        _train(phase, config, data, folder)
    history = [
        row
        for phase in PHASES
        for row in json.loads(folder.history(phase).read_text("utf-8"))
    ]
    write_text(folder.path / "history.csv", training_report.history_csv(history))
    reports = _export_and_test(config, data, folder)
    table = training_report.table(reports, config.quantizer, data.sizes["test"])
    written = _plot(folder, history)
    # Last: this file says that the run is finished.
    write_json(folder.results, _results(config, data, reports))
    print(table)
    if config.verbose:
        print(f"Networks, files, history.csv{written} are in {config.output_dir}.")
    return reports


def _train(
    phase: str, config: TrainConfig, data: datasets.Dataset, folder: RunFolder
) -> None:
    """Trains one network, or nothing if it is in the folder already."""
    if folder.model(phase).exists():
        return
    # Each phase draws from its own seed and reads the float network from its
    # file, so that it does not matter which process trained what before.
    keras.utils.set_random_seed(config.seed + 1 + PHASES.index(phase))
    if phase == "float":
        model, epochs = _new_model(config, data), config.float_epochs
    else:
        start = keras.models.load_model(folder.model("float"), compile=False)
        model, epochs = _quantized(config, start), config.epochs
    _compile(model, config, epochs * data.steps_per_epoch)
    backup = training_callbacks.Backup(folder.snapshots(phase), phase)
    restore, keep = backup.callbacks()
    around = [restore]
    if phase == "sq":
        schedule = config.make_schedule()
        around.append(callbacks.StochasticQuantization(schedule))
    elif phase == "direct":
        masks.set_ratio(model, 1.0)
    around.append(keep)
    if config.verbose:
        around.append(training_callbacks.Progress(phase))
    model.fit(
        data.train(backup.initial_epoch, epochs),
        steps_per_epoch=data.steps_per_epoch,
        epochs=epochs,
        validation_data=data.validation,
        callbacks=around,
        shuffle=False,  # The data comes shuffled; Keras warns if asked to.
        verbose=0,
    )
    write_json(folder.history(phase), backup.rows)
    _save(model, folder, phase)
    backup.discard()


def _new_model(config: TrainConfig, data: datasets.Dataset) -> Model:
    return models.get(
        config.model_name, data.input_shape, data.num_classes, config.weight_decay
    )


def _quantized(config: TrainConfig, model: Model) -> Model:
    return conversion.quantize_model(
        model,
        quantizers.get(config.quantizer),
        skip=list(config.skip) or None,
        seed=config.seed,
    )


def _compile(model: Model, config: TrainConfig, steps: int) -> None:
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # Keras would choose XLA, but not where operations are deterministic.
        jit_compile=False,
    )


def _save(model: Model, folder: RunFolder, phase: str) -> None:
    """Saves so that the file is there as a whole or not at all."""
    unfinished = folder.state / f"{phase}.keras"
    model.save(unfinished)
    os.replace(unfinished, folder.model(phase))


def _export_and_test(
    config: TrainConfig, data: datasets.Dataset, folder: RunFolder
) -> dict[str, training_report.NetworkReport]:
    """Works on the networks as they are in their files."""
    reports = {}
    parameters = 0
    for phase in PHASES:
        if config.verbose:
            print(f"{phase}: exporting", file=sys.stderr)
        model = keras.models.load_model(folder.model(phase), compile=False)
        if phase == "float":
            parameters = model.count_params()
        target = "float" if phase == "float" else config.target
        exported = export(model, folder.tflite(phase), target=target)
        _compile(model, config, steps=1)
        logs = model.evaluate(data.test, return_dict=True, verbose=0)
        reports[phase] = training_report.network_report(exported, parameters, logs)
    return reports


def _plot(folder: RunFolder, history: list[dict[str, Any]]) -> str:
    """Writes the plot, if that is possible; returns what to say of it."""
    path = folder.path / "training.png"
    try:
        figure = plots.training_plot(history)
    except ImportError as error:
        print(f"No plot was written. {error}", file=sys.stderr)
        return ""
    unfinished = folder.state / path.name
    figure.savefig(unfinished)
    os.replace(unfinished, path)
    return ", training.png"


def _results(
    config: TrainConfig,
    data: datasets.Dataset,
    reports: dict[str, training_report.NetworkReport],
) -> dict[str, Any]:
    return {
        "config": config.description(),
        "examples": data.sizes,
        "input": {
            "shape": data.input_shape,
            "mean": data.mean,
            "std": data.std,
            "meaning": "(pixel - mean) / std, per channel",
        },
        "networks": {
            phase: dataclasses.asdict(report) for phase, report in reports.items()
        },
    }


def main(values: flags.FlagValues) -> int:
    """Runs what parsed flags ask for.

    Args:
        values: Parsed flags.

    Returns:
        Exit status: 0, or 2 if the request was wrong and nothing was done.
    """
    try:
        prepared = _prepare(config_from_flags(values))
    except (OSError, TypeError, ValueError) as error:
        print(f"keras_sq.train: error: {error}", file=sys.stderr)
        return 2
    _finish(*prepared)
    return 0


def _main_of_process(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        print(
            f"keras_sq.train: error: unknown argument {argv[1]!r}; flags look like "
            "--epochs=3. See --helpfull.",
            file=sys.stderr,
        )
        return 2
    if not flags.FLAGS["verbosity"].present:
        # TFDS logs every file that it opens.
        logging.set_verbosity(logging.WARNING)
    # For the whole process, and not to be undone: hence here and not in `run`.
    tf.config.experimental.enable_op_determinism()
    try:
        return main(flags.FLAGS)
    except KeyboardInterrupt:
        print("\nStopped. Go on with the same flags and --resume.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(_main_of_process)
