"""The settings of `keras_sq.train`, checked, and the folder they write to.

Nothing here trains. A `TrainConfig` that exists is valid as far as can be
said without reading data; `claim_folder` decides whether a run may start in,
or go on in, an output folder.
"""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from keras_sq import (
    _checks,
    comparisons,
    datasets,
    file_checks,
    models,
    quantizers,
    schedules,
)
from keras_sq._version import __version__
from keras_sq.training_files import write_json

SHORT_RAMP = 0.3
"""Part of the run in which the schedule `"short"` is below ratio 1."""

TARGETS = ("float", "fast", "int4", "int2", "small")
"""Targets of `keras_sq.export` whose files compute what Keras does, to rounding:
the accuracy in the table is the file's too. Int8 activations change it."""

_DESCRIPTION = "config.json"
_STATE = "state"
_RESULTS = "results.json"
_OUTPUTS = ("history.csv", _RESULTS, "training.png")

DECAYS = ("cosine", "constant")
"""What the learning rate does."""

MAX_SEEDS = 100
_NOT_COMPARED = (
    "data_dir",
    "download",
    "only",  # "methods" says it.
    "output_dir",
    "resume",
    "overwrite",
    "verbose",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What `python -m keras_sq.train` was asked to do.

    Attributes:
        dataset: `"digits"` or a TFDS name.
        data_dir: Folder of prepared TFDS data, or `None` for TFDS's own.
        download: Whether TFDS may download.
        model: One of `keras_sq.models.NAMES`; `None` is `"digits_cnn"` for
            the digits and `"resnet20"` otherwise.
        preset: A comparison that `keras_sq.comparisons.get` knows, or `None`:
            float, quantized directly and with SQ.
        only: Names of the methods to train besides the float network; `None` is
            all of the comparison. A method's result does not depend on the others.
        quantizer: A name that `keras_sq.quantizers.get` knows; `None` is
            `"ternary"`. A preset has its own.
        schedule: `"short"`, or a name that `keras_sq.schedules.get` knows.
        skip: Names, patterns or places (`"@first"`) of the layers that stay
            float; `None` is none, or what the preset says.
        target: Kind of the quantized networks' files: one of `TARGETS`.
        epochs: Of each network but the first.
        float_epochs: Of the float network they start from.
        batch_size: Examples a step.
        learning_rate: At the start of each training.
        decay: `"cosine"`: the learning rate falls to 0; or `"constant"`.
        weight_decay: Of all kernels.
        augment: Whether training images are mirrored and shifted; `None`
            means for CIFAR and ImageNet only.
        seed: Of weights, order, augmentation and masks.
        seeds: How many runs, with `seed`, `seed + 1` and so on.
        limit: Number of training examples, or `None` for all.
        output_dir: Folder for everything that is written.
        resume: Whether to go on with the run in `output_dir`.
        overwrite: Whether to replace the run in `output_dir`.
        verbose: 0 prints the table only, 1 the progress too.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range or a name is not known.
        OSError: If `output_dir` cannot be written to.
    """

    dataset: str = datasets.DIGITS
    data_dir: str | None = None
    download: bool = False
    model: str | None = None
    preset: str | None = None
    only: tuple[str, ...] | None = None
    quantizer: str | None = None
    schedule: str = "short"
    skip: tuple[str, ...] | None = None
    target: str = "small"
    epochs: int = 20
    float_epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    decay: str = "cosine"
    weight_decay: float = 1e-4
    augment: bool | None = None
    seed: int = 0
    seeds: int = 1
    limit: int | None = None
    output_dir: str = "keras_sq_run"
    resume: bool = False
    overwrite: bool = False
    verbose: int = 1

    def __post_init__(self) -> None:
        """Checks everything that can be checked without data."""
        _checks.integer("epochs", self.epochs, minimum=1)
        _checks.integer("float_epochs", self.float_epochs, minimum=1)
        _checks.integer("batch_size", self.batch_size, minimum=1)
        _checks.integer("seed", self.seed, minimum=0, maximum=2**31 - 1)
        _checks.integer("seeds", self.seeds, minimum=1, maximum=MAX_SEEDS)
        _checks.integer("verbose", self.verbose, minimum=0, maximum=1)
        _checks.positive("learning_rate", self.learning_rate)
        if self.weight_decay != 0:
            _checks.positive("weight_decay", self.weight_decay)
        if self.limit is not None:
            _checks.integer("limit", self.limit, minimum=1)
        if self.model is not None:
            _checks.one_of("model", self.model, models.NAMES)
        _checks.one_of("target", self.target, TARGETS)
        _checks.one_of("decay", self.decay, DECAYS)
        if self.preset is not None and self.quantizer is not None:
            raise ValueError(
                "Arguments `preset` and `quantizer` exclude each other: a preset has "
                f"quantizers of its own. Received: preset={self.preset!r}, "
                f"quantizer={self.quantizer!r}"
            )
        quantizers.get(self.quantizer_name)
        names = [method.name for method in self.comparison]
        for name in self.only or ():
            _checks.one_of("only", name, names)
        if self.resume and self.overwrite:
            raise ValueError(
                "Arguments `resume` and `overwrite` exclude each other. "
                "Received: resume=True, overwrite=True"
            )
        _check_writable(pathlib.Path(self.output_dir))

    @property
    def model_name(self) -> str:
        """The model, with `None` resolved."""
        if self.model is not None:
            return self.model
        return "digits_cnn" if self.dataset == datasets.DIGITS else "resnet20"

    @property
    def augments(self) -> bool:
        """Whether training images are augmented, with `None` resolved."""
        if self.augment is not None:
            return self.augment
        return datasets.is_augmented(self.dataset)

    @property
    def quantizer_name(self) -> str:
        """The quantizer, with `None` resolved; of no meaning with a preset."""
        return "ternary" if self.quantizer is None else self.quantizer

    @property
    def methods(self) -> tuple[comparisons.Method, ...]:
        """The networks of a run, in the order in which they are trained."""
        return tuple(
            method
            for method in self.comparison
            if self.only is None or method.name in (comparisons.FLOAT, *self.only)
        )

    @property
    def comparison(self) -> tuple[comparisons.Method, ...]:
        """What the methods are chosen from."""
        schedule = self.make_schedule()
        if self.preset is None:
            return comparisons.plain(self.quantizer_name, schedule)
        return comparisons.get(self.preset, schedule)

    def single_runs(self) -> list["TrainConfig"]:
        """Returns a configuration for each seed, each with a folder of its own.

        With one seed it is this configuration itself.
        """
        if self.seeds == 1:
            return [self]
        return [
            dataclasses.replace(
                self,
                seed=seed,
                seeds=1,
                output_dir=str(pathlib.Path(self.output_dir) / f"seed-{seed}"),
            )
            for seed in range(self.seed, self.seed + self.seeds)
        ]

    def make_schedule(self) -> schedules.RatioSchedule:
        """Returns the ratio schedule that `schedule` names."""
        if self.schedule == "short":
            return schedules.exponential(ramp=SHORT_RAMP)
        try:
            return schedules.get(self.schedule)
        except ValueError as error:
            raise ValueError(f"{error} (or 'short')") from error

    def description(self) -> dict[str, Any]:
        """Returns what determines the result, JSON-serializable."""
        values = dataclasses.asdict(self) | {
            "model": self.model_name,
            "augment": self.augments,
            "quantizer": None if self.preset else self.quantizer_name,
            "skip": None if self.skip is None else list(self.skip),
            "methods": [method.name for method in self.methods],
            "version": __version__,
        }
        return {key: values[key] for key in values if key not in _NOT_COMPARED}


def claim_folder(config: TrainConfig) -> "RunFolder":
    """Makes the output folder ready: empty of results, or to be gone on with.

    A run is only ever replaced by the same run (which gives the same
    result), or if `overwrite` is set.

    Raises:
        FileExistsError: If the folder holds an unfinished run, or one with
            other settings, and neither `resume` nor `overwrite` is set.
        ValueError: If `resume` is set and the run has other settings.
        OSError: If the folder cannot be made.
    """
    folder = RunFolder(pathlib.Path(config.output_dir))
    description = config.description()
    outputs = folder.outputs(description["methods"])
    earlier = folder.earlier_description()
    if earlier is not None:
        changes = _differences(earlier, description)
        if config.resume and changes:
            raise ValueError(
                f"The run in {config.output_dir!r} has other settings: {changes}. "
                "Resume it with those, or choose another `--output_dir`."
            )
        if config.resume:
            folder.tidy({_DESCRIPTION, *outputs})
            folder.state.mkdir(exist_ok=True)
            return folder
        if changes and not config.overwrite:
            raise FileExistsError(
                f"Folder {config.output_dir!r} holds a run with other settings: "
                f"{changes}. Choose another `--output_dir`, or replace the run by "
                "`--overwrite`."
            )
        if not folder.is_finished and not config.overwrite:
            raise FileExistsError(
                f"Folder {config.output_dir!r} holds an unfinished run. Go on with "
                "it by `--resume`, or replace it by `--overwrite`."
            )
        folder.clear(outputs | folder.outputs(earlier["methods"]))
    else:
        strangers = [name for name in sorted(outputs) if (folder.path / name).exists()]
        if strangers and not config.overwrite:
            raise FileExistsError(
                f"Folder {config.output_dir!r} holds files that this run would "
                f"replace: {', '.join(strangers)}. Choose another `--output_dir`, "
                "or allow it by `--overwrite`."
            )
        folder.clear(outputs)
    try:
        folder.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder.path, error) from error
    write_json(folder.path / _DESCRIPTION, description)
    return folder


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are.

    Attributes:
        path: The output folder.
    """

    path: pathlib.Path

    @property
    def state(self) -> pathlib.Path:
        """What only `--resume` reads."""
        return self.path / _STATE

    def model(self, method: str) -> pathlib.Path:
        """The trained network; there only when its training is finished."""
        return self.path / f"{method}.keras"

    def tflite(self, method: str) -> pathlib.Path:
        """The exported network."""
        return self.path / f"{method}.tflite"

    def history(self, method: str) -> pathlib.Path:
        """The epochs of a finished training."""
        return self.state / f"{method}.json"

    def snapshots(self, method: str) -> pathlib.Path:
        """The state of an unfinished training."""
        return self.state / method

    @property
    def results(self) -> pathlib.Path:
        """The table's numbers; there only when the run is finished."""
        return self.path / _RESULTS

    @property
    def is_finished(self) -> bool:
        """Whether the run in the folder came to its end."""
        return self.results.exists()

    def earlier_description(self) -> dict[str, Any] | None:
        """Returns what was asked of the run in the folder, if there is one."""
        path = self.path / _DESCRIPTION
        try:
            found: dict[str, Any] = file_checks.read_json(path, dict)
            methods: Any = found.get("methods")
            known = "version" in found and isinstance(methods, list)
            # They become names of files.
            if not known or not all(re.fullmatch(r"[\w-]+", str(x)) for x in methods):
                raise ValueError("it names no methods")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise FileExistsError(
                f"File {str(path)!r} is not of a training run, or damaged. Choose "
                "another `--output_dir`, or remove the file."
            ) from error
        return found

    def outputs(self, methods: Sequence[str]) -> set[str]:
        """Returns the names of the files that a run of these methods leaves."""
        files = (self.model, self.tflite)
        return {*_OUTPUTS, *(file(name).name for name in methods for file in files)}

    def clear(self, outputs: Iterable[str]) -> None:
        """Removes these files and the state of a run, and nothing else.

        In an order that leaves, wherever it is killed, an unfinished run of the old
        settings: results say that a run is finished, and a network that it was
        trained, which the state is needed for.
        """
        for name in (_RESULTS, *outputs):
            (self.path / name).unlink(missing_ok=True)
        self.tidy(outputs)
        shutil.rmtree(self.state, ignore_errors=True)
        (self.path / _DESCRIPTION).unlink(missing_ok=True)

    def tidy(self, outputs: Iterable[str]) -> None:
        """Removes what a kill left half written beside these files."""
        for name in outputs:
            # As `write_text` and `keras_sq.export` name them; names have no wildcards.
            for pattern in (f".{name}.unfinished", f".{name}.*.tmp"):
                for path in self.path.glob(pattern):
                    path.unlink(missing_ok=True)


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={repr(earlier.get(key))[:200]} there, {now.get(key)!r} asked for"
        for key in sorted(earlier.keys() | now.keys())
        if earlier.get(key) != now.get(key)
    )


def _check_writable(path: pathlib.Path) -> None:
    """Raises if the folder could not be made; makes nothing."""
    if not str(path) or str(path) == ".":
        return
    for parent in (path, *path.absolute().parents):
        try:
            exists = parent.exists()
        except OSError as error:
            raise _unwritable(path, error) from error
        if not exists:
            continue
        if not parent.is_dir():
            raise _unwritable(path, f"{str(parent)!r} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise _unwritable(path, f"no permission to write in {str(parent)!r}")
        return


def _unwritable(path: pathlib.Path, reason: object) -> OSError:
    return OSError(
        f"Argument `output_dir` must be a folder that can be written to. "
        f"Received: output_dir={str(path)!r} ({reason})"
    )
