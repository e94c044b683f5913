"""The settings of `keras_sq.train`, checked.

Nothing here trains. A `TrainConfig` that exists is valid as far as can be said
without reading data. The folder it writes to is in `run_folder.py`.
"""

import dataclasses
import math
import pathlib
from typing import Any

from keras_sq import datasets, models, quantizers, schedules
from keras_sq.core import checks
from keras_sq.core.version import __version__
from keras_sq.experiments import comparisons, run_folder
from keras_sq.experiments.comparisons import FLOAT, Method
from keras_sq.layers import selection
from keras_sq.quantizers import activations as activation_rules

TARGETS = ("float", "fast", "int4", "int2", "small")
"""Targets of `keras_sq.export` whose files compute what Keras does, to rounding:
the accuracy in the table is the file's too. Int8 activations change it."""

DECAYS = ("cosine", "constant")
"""What the learning rate does; or fractions of the run, see `TrainConfig.decay`."""

OPTIMIZERS = ("sgd", "adam")
"""SGD has a momentum of 0.9, as in the papers."""

PROTOCOLS = ("equal", "paper")
"""How long a network with a ratio schedule in stages is trained: as long as the
others, or a whole run for each stage."""

START_FLOAT, START_NEW = "float", "new"
"""What networks start from, if not from a file."""

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

SELECTION_CHOICES = {
    "granularity": selection.GRANULARITIES,
    "probability": selection.PROBABILITIES,
    "selection": selection.SELECTIONS,
    "draw": selection.DRAWS,
}
"""Settings that say how SQ selects, and their values."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What `python -m keras_sq.train` was asked to do.

    Attributes: Those of the flags, see `HELP` in `flags.py`. `None` stands for the
        default in brackets there.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range or a name is not known.
        FileNotFoundError: If there is no file to start from.
        OSError: If `output_dir` cannot be written to.
    """

    experiment: str | None = None
    dataset: str = datasets.DIGITS
    data_dir: str | None = None
    download: bool = False
    model: str | None = None
    start: str = START_FLOAT
    preset: str | None = None
    only: tuple[str, ...] | None = None
    quantizer: str | None = None
    input_quantizer: str | None = None
    schedule: str = "short"
    protocol: str = "equal"
    granularity: str | None = None
    probability: str | None = None
    selection: str | None = None
    draw: str | None = None
    skip: tuple[str, ...] | None = None
    distill: float = 0.0
    temperature: float = 4.0
    reestimate: int = 0
    target: str = "small"
    epochs: int = 20
    float_epochs: int = 20
    iterations: int | None = None
    scale: float = 1.0
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    decay: str = "cosine"
    weight_decay: float = 1e-4
    augment: bool | None = None
    image_size: int | None = None
    crop: str = datasets.CROPS[0]
    seed: int = 0
    seeds: int = 1
    limit: int | None = None
    output_dir: str = "keras_sq_run"
    resume: bool = False
    overwrite: bool = False
    verbose: int = 1

    def __post_init__(self) -> None:
        """Checks everything that can be checked without data."""
        checks.integer("epochs", self.epochs, minimum=1)
        checks.integer("float_epochs", self.float_epochs, minimum=1)
        if self.iterations is not None:
            checks.integer("iterations", self.iterations, minimum=1)
        checks.positive("scale", self.scale)
        checks.integer("batch_size", self.batch_size, minimum=1)
        checks.integer("seed", self.seed, minimum=0, maximum=2**31 - 1)
        checks.integer("seeds", self.seeds, minimum=1, maximum=MAX_SEEDS)
        checks.integer("verbose", self.verbose, minimum=0, maximum=1)
        checks.integer("reestimate", self.reestimate, minimum=0)
        checks.fraction("distill", self.distill)
        checks.positive("temperature", self.temperature)
        checks.positive("learning_rate", self.learning_rate)
        if self.weight_decay != 0:
            checks.positive("weight_decay", self.weight_decay)
        if self.limit is not None:
            checks.integer("limit", self.limit, minimum=1)
        if self.image_size is not None:
            checks.integer("image_size", self.image_size, minimum=1)
        checks.one_of("crop", self.crop, datasets.CROPS)
        if self.model is not None:
            checks.one_of("model", self.model, models.NAMES)
        checks.one_of("target", self.target, TARGETS)
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of("protocol", self.protocol, PROTOCOLS)
        decay_fractions(self.decay)
        self._check_start()
        self._check_method()
        if self.resume and self.overwrite:
            raise ValueError(
                "Arguments `resume` and `overwrite` exclude each other. "
                "Received: resume=True, overwrite=True"
            )
        run_folder.check_writable(pathlib.Path(self.output_dir))

    def _check_start(self) -> None:
        if self.start in (START_FLOAT, START_NEW):
            return
        if self.model is not None:
            raise ValueError(
                "Arguments `start` and `model` exclude each other if the start is a "
                f"file: it holds the network. Received: start={self.start!r}, "
                f"model={self.model!r}"
            )
        if not pathlib.Path(self.start).is_file():
            raise FileNotFoundError(
                f"Argument `start` must be {START_FLOAT!r}, {START_NEW!r} or the path "
                f"of a trained network. Received: start={self.start!r}, and there is "
                "no such file."
            )

    def _check_method(self) -> None:
        """Checks what the networks are, and that the settings go together."""
        setting_names = (
            *SELECTION_CHOICES,
            "quantizer",
            "input_quantizer",
            "distill",
            "reestimate",
        )
        chosen = {name: getattr(self, name) for name in setting_names}
        chosen = {k: value for k, value in chosen.items() if value not in (None, 0)}
        if self.preset is not None and chosen:
            name, value = next(reversed(chosen.items()))
            raise ValueError(
                f"Arguments `preset` and `{name}` exclude each other: a preset has "
                f"methods of its own. Received: preset={self.preset!r}, "
                f"{name}={value!r}"
            )
        for name, known in SELECTION_CHOICES.items():
            if getattr(self, name) is not None:
                checks.one_of(name, getattr(self, name), known)
        quantizers.get(self.quantizer_name)
        if self.input_quantizer is not None:
            activation_rules.get(self.input_quantizer)
        names = [method.name for method in self.comparison]
        for name in self.only or ():
            checks.one_of("only", name, names)

    @property
    def model_name(self) -> str | None:
        """The model, with `None` resolved; `None` if it comes from a file."""
        if self.starts_from_file:
            return None
        if self.model is not None:
            return self.model
        return "digits_cnn" if self.dataset == datasets.DIGITS else "resnet20"

    @property
    def starts_from_file(self) -> bool:
        """Whether the float network is given, and not trained."""
        return self.start not in (START_FLOAT, START_NEW)

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
    def methods(self) -> tuple[Method, ...]:
        """The networks of a run, in the order in which they are trained."""
        everything = self.comparison
        if self.only is None:
            return everything
        chosen = [method for method in everything if method.name in self.only]
        if any(method.from_float or method.distill for method in chosen):
            chosen = [x for x in everything if x in chosen or x.name == FLOAT]
        return tuple(chosen)

    @property
    def comparison(self) -> tuple[Method, ...]:
        """What the methods are chosen from."""
        schedule = self.make_schedule()
        if self.preset is None:
            names = (*SELECTION_CHOICES, "input_quantizer")
            settings = {name: getattr(self, name) for name in names}
            settings = {k: value for k, value in settings.items() if value is not None}
            methods = comparisons.plain(self.quantizer_name, schedule, **settings)
            methods = tuple(
                x if x.preset is None else dataclasses.replace(x, **self._training())
                for x in methods
            )
        else:
            methods = comparisons.get(self.preset, schedule)
        if self.start == START_NEW:
            methods = tuple(dataclasses.replace(x, from_float=False) for x in methods)
        if self.protocol == "paper":
            methods = tuple(method.as_in_the_paper() for method in methods)
        return methods

    def _training(self) -> dict[str, Any]:
        """Returns how quantized networks are trained, for those without a preset."""
        names = ("distill", "temperature", "reestimate")
        return {name: getattr(self, name) for name in names}

    def epochs_of(self, method: Method, steps_per_epoch: int) -> int:
        """Returns how long a method is trained, in epochs of this many steps."""
        trained_first = method.name == FLOAT and self.start == START_FLOAT
        epochs: float = self.float_epochs if trained_first else self.epochs
        if self.iterations is not None:
            epochs = self.iterations / steps_per_epoch
        return method.stages * max(1, math.floor(self.scale * epochs + 0.5))

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
        return schedules.get(self.schedule)

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

    def claim_folder(self) -> run_folder.RunFolder:
        """Makes the output folder ready, see `run_folder.claim_folder`."""
        return run_folder.claim_folder(
            self.output_dir,
            self.description(),
            resume=self.resume,
            overwrite=self.overwrite,
        )


def decay_fractions(decay: str) -> tuple[float, ...]:
    """Returns the fractions of a run at which the learning rate falls to a tenth.

    Args:
        decay: As `TrainConfig.decay`; none for `"cosine"` and `"constant"`.

    Raises:
        ValueError: If it is neither a name nor increasing fractions in (0, 1).

    Example:
        >>> decay_fractions("0.5,0.75")
        (0.5, 0.75)
    """
    if decay in DECAYS:
        return ()
    try:
        fractions = tuple(float(part) for part in decay.split(","))
    except (AttributeError, ValueError):
        fractions = ()
    increasing = list(fractions) == sorted(set(fractions))
    if not fractions or not increasing or not 0 < fractions[0] <= fractions[-1] < 1:
        raise ValueError(
            f"Argument `decay` must be one of {', '.join(map(repr, DECAYS))}, or "
            "increasing fractions of the run such as '0.5,0.75'. "
            f"Received: decay={decay!r}"
        )
    return fractions
