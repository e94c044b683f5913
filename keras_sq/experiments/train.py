"""The main job, from the command line: `python -m keras_sq.train`.

Trains a float network, then others that see the same data for the same number of
epochs: without `--preset` one quantized directly and one with stochastic quantization,
both from the float network's weights; with it those of `comparisons.py`. Exports them
all, prints a table and leaves networks, files, history and a plot in a folder; with
`--seeds` in a folder a seed, and the table is of their mean and spread. Without a
flag it uses the digits inside the package and needs no network.

The last epoch's weights are the result, for all of them: nothing is chosen by
validation accuracy, and the test split is looked at once, at the end.

Settings are in `config.py`, what they make of networks in
`networks.py`, named ones in `experiments/`, their flags in
`flags.py`, the output folder in `run_folder.py`, the table in
`analysis/training_report.py`, reading and writing in `training_files.py`, restoring in
`callbacks.py`. Many runs at once: `python -m keras_sq.sweep`.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import flags, logging

from keras_sq import datasets
from keras_sq.analysis import plots, training_report
from keras_sq.callbacks import NotFiniteError
from keras_sq.conversion.batch_statistics import reestimate_batch_norm
from keras_sq.conversion.distillation import distill
from keras_sq.core import commands
from keras_sq.core.types import Model
from keras_sq.experiments import callbacks, catalogue, networks
from keras_sq.experiments.comparisons import FLOAT, Method
from keras_sq.experiments.config import TrainConfig
from keras_sq.experiments.flags import config_from_flags
from keras_sq.experiments.run_folder import RunFolder, only_process
from keras_sq.experiments.training_files import (
    DamagedRunError,
    load_network,
    read_history,
    write_json,
    write_text,
)
from keras_sq.export import ExportError, export

PROGRAM = "keras_sq.train"

PICTURE = "training.png"


def run(config: TrainConfig) -> list[dict[str, training_report.NetworkReport]]:
    """Trains, exports and reports; writes into `config.output_dir`.

    Args:
        config: What to do.

    Returns:
        For each seed, method -> report. Without a preset the methods are
        `"float"`, `"direct"` and `"sq"`.

    Raises:
        FileNotFoundError: If the data set is not there.
        FileExistsError: If the folder holds another run, or another process trains
            there.
        OSError: If the folder cannot be written to.
        DamagedRunError: If what is to be gone on with was damaged.
        ValueError: If a setting does not suit the data or the network.
        NotFiniteError: If a network diverges; a `ValueError`, too.
        ExportError: If a network cannot be exported.
    """
    with contextlib.ExitStack() as folders:
        return _finish(config, _prepare(config, folders))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One seed: what to do, with which data, and where."""

    config: TrainConfig
    data: datasets.Dataset
    folder: RunFolder


def _prepare(config: TrainConfig, folders: contextlib.ExitStack) -> list[_Run]:
    """Everything that can be wrong with a request; then makes the folders.

    They are this process's until `folders` is closed.
    """
    singles = config.single_runs()
    data = datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augments,
        crop=config.crop,
        image_size=config.image_size,
        limit=config.limit,
        download=config.download,
    )
    model = networks.new_model(config, data)
    for method in config.methods:
        networks.quantized(config, method, model)
    for single in singles:
        folders.enter_context(only_process(single.output_dir))
    return [
        _Run(single, data.with_seed(single.seed), single.claim_folder())
        for single in singles
    ]


def _finish(
    config: TrainConfig, runs: Sequence[_Run]
) -> list[dict[str, training_report.NetworkReport]]:
    if importlib.util.find_spec("matplotlib") is None:
        print(
            "keras_sq.train: there will be no training.png, which needs matplotlib: "
            '`pip install "keras-sq[plots]"`.',
            file=sys.stderr,
        )
    for single in runs:
        for method in config.methods:
            _train(method, single.config, single.data, single.folder)
    reports = [_report(single) for single in runs]
    titles = {method.name: method.title for method in config.methods}
    caption = f"Quantizer: {config.quantizer_name}"
    if config.preset is not None:
        caption = f"Preset: {config.preset}"
    if config.experiment is not None:
        caption = f"{catalogue.get(config.experiment).caption}\n{caption}"
    test_size = runs[0].data.sizes["test"]
    print(training_report.table(reports, titles, caption, test_size))
    if config.verbose:
        drawn = all((single.folder.path / PICTURE).exists() for single in runs)
        outputs = f", history.csv and {PICTURE}" if drawn else " and history.csv"
        print(f"Networks, files{outputs} are in {config.output_dir}.")
    return reports


def _report(run: _Run) -> dict[str, training_report.NetworkReport]:
    """Exports the trained networks of a run, and writes what is known of them."""
    config, folder = run.config, run.folder
    history = [
        row for method in config.methods for row in _history(folder, method.name)
    ]
    write_text(folder.path / "history.csv", training_report.history_csv(history))
    reports = _export_and_test(config, run.data, folder)
    _plot(folder, history)
    # Last: this file says that the run is finished.
    write_json(folder.results, _results(config, run.data, reports))
    return reports


def _history(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    try:
        return read_history(folder.history(name))
    except (OSError, ValueError) as error:
        raise DamagedRunError(
            f"{error} Remove '{folder.model(name)}' to train this network again, with "
            "--resume."
        ) from error


def _train(
    method: Method, config: TrainConfig, data: datasets.Dataset, folder: RunFolder
) -> None:
    """Trains one network, or nothing if it is in the folder already."""
    name = method.name
    if folder.model(name).exists():
        # A kill after the network was saved leaves its backup behind.
        shutil.rmtree(folder.snapshots(name), ignore_errors=True)
        return
    if name == FLOAT and config.starts_from_file:
        write_json(folder.history(name), [])
        _save(networks.new_model(config, data), folder, name)
        return
    # Each method draws from its own seed and reads the float network from its
    # file, so that it does not matter which process trained what before.
    names = [method.name for method in config.comparison]
    if method.from_float and name != FLOAT:
        start = load_network(folder.model(FLOAT))
    else:
        # The same first weights for all methods that start anew.
        keras.utils.set_random_seed(config.seed + 1)
        start = networks.new_model(config, data)
    keras.utils.set_random_seed(config.seed + 1 + names.index(name))
    model = trained = networks.quantized(config, method, start)
    if method.distill:
        trained = distill(
            model,
            load_network(folder.model(FLOAT)),
            weight=method.distill,
            temperature=method.temperature,
        )
    epochs = config.epochs_of(method, data.steps_per_epoch)
    steps = epochs * data.steps_per_epoch
    networks.compile_model(
        trained, config, networks.learning_rate(config, method.stages, steps)
    )
    backup = callbacks.Backup(folder.snapshots(name), name)
    around: list[Any] = []
    if method.preset is not None:
        around += method.preset.callbacks()
    around.append(backup)
    if config.verbose:
        around.append(callbacks.Progress(name))
    trained.fit(
        data.train(backup.initial_epoch, epochs),
        steps_per_epoch=data.steps_per_epoch,
        epochs=epochs,
        validation_data=data.validation,
        callbacks=around,
        shuffle=False,  # The data comes shuffled; Keras warns if asked to.
        verbose=0,
    )
    if method.reestimate:
        # Of an epoch that no training sees, and that a resumed run sees again.
        batches = data.train(epochs, epochs + 1)
        reestimate_batch_norm(model, batches, steps=method.reestimate)
    write_json(folder.history(name), backup.rows)
    _save(model, folder, name)
    backup.discard()


def _save(model: Model, folder: RunFolder, name: str) -> None:
    """Saves so that the file is there as a whole or not at all."""
    unfinished = folder.state / f"{name}.keras"
    model.save(unfinished)
    os.replace(unfinished, folder.model(name))


def _export_and_test(
    config: TrainConfig, data: datasets.Dataset, folder: RunFolder
) -> dict[str, training_report.NetworkReport]:
    """Works on the networks as they are in their files."""
    reports = {}
    parameters = 0
    for method in config.methods:
        name = method.name
        if config.verbose:
            print(f"{name}: exporting", file=sys.stderr)
        model = load_network(folder.model(name))
        if name == FLOAT:
            parameters = model.count_params()
        target = "float" if method.preset is None else config.target
        if keras.backend.backend() == "tensorflow":
            exported = export(model, folder.tflite(name), target=target).to_dict()
        else:
            exported = _export_elsewhere(folder, name, target)
        networks.compile_model(model, config, rate=config.learning_rate, for_test=True)
        logs = model.evaluate(data.test, return_dict=True, verbose=0)
        reports[name] = training_report.network_report(exported, parameters, logs)
    return reports


def _export_elsewhere(folder: RunFolder, name: str, target: str) -> dict[str, Any]:
    """Exports in a process of its own, on the backend that the converter needs."""
    paths = str(folder.model(name)), str(folder.tflite(name))
    process = subprocess.run(
        [sys.executable, "-m", "keras_sq.export", *paths, f"--target={target}"]
        + ["--json"],
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise ExportError(process.stderr.strip())
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def _plot(folder: RunFolder, history: list[dict[str, Any]]) -> None:
    """Writes the plot, if that is possible."""
    path = folder.path / PICTURE
    try:
        figure = plots.training_plot(history)
    except ImportError as error:
        print(f"No plot was written. {error}", file=sys.stderr)
        return
    unfinished = folder.state / path.name
    figure.savefig(unfinished)
    os.replace(unfinished, path)


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
        "epochs": {
            method.name: config.epochs_of(method, data.steps_per_epoch)
            for method in config.methods
        },
        "networks": {
            name: dataclasses.asdict(report) for name, report in reports.items()
        },
    }


def main(values: flags.FlagValues) -> int:
    """Runs what parsed flags ask for.

    Args:
        values: Parsed flags.

    Returns:
        Exit status: 0; 2 if the request was wrong and nothing was done; 1 if a
        network diverged, could not be exported, the disk was full, or what an
        earlier process left in the folder is damaged. What was trained until then
        is kept.
    """
    if values["list"].value:
        for name in catalogue.names():
            print(f"{name:<48}  {catalogue.get(name).caption}".rstrip())
        return 0
    with contextlib.ExitStack() as folders:
        return _main(values, folders)


def _main(values: flags.FlagValues, folders: contextlib.ExitStack) -> int:
    try:
        config = config_from_flags(values)
        prepared = _prepare(config, folders)
    except (OSError, TypeError, ValueError) as error:
        return commands.fail(PROGRAM, error, commands.WRONG_REQUEST)
    try:
        _finish(config, prepared)
    except DamagedRunError as error:
        return commands.fail(PROGRAM, error)
    except NotFiniteError as error:
        return commands.fail(
            PROGRAM,
            f"{error} With the same flags the run would end here again: choose others "
            "and another `--output_dir`, or `--overwrite`.",
        )
    except (ExportError, OSError) as error:
        return commands.fail(
            PROGRAM,
            f"{error} What was trained is kept: go on with the same flags and "
            "--resume.",
        )
    return 0


def main_of_process(argv: Sequence[str]) -> int:
    """Runs the command with the flags of this process; returns the exit status."""
    if not flags.FLAGS["verbosity"].present:
        # TFDS logs every file that it opens.
        logging.set_verbosity(logging.WARNING)
    # For the whole process, and not to be undone: hence here and not in `run`.
    tf.config.experimental.enable_op_determinism()
    return commands.run(
        PROGRAM,
        lambda values, _: main(values),
        argv,
        example="--epochs=3",
        goes_on="Go on with the same flags and --resume.",
        tensorflow=True,
    )
