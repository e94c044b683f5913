"""The rows of the paper-scale table: which network, quantized how, trained how long.

A row is an experiment of `keras_sq.experiments` with, at most, another protocol or
another length; `python -m keras_sq.train --experiment=...` trains the same network.
Nothing here trains, and nothing here needs TensorFlow.

Groups of rows, in the order of the table:

| group | question |
|---|---|
| `resnet20_equal` | Is SQ better than direct quantization at equal epochs (200)? |
| `resnet20_long` | Is it in its paper's protocol, if the baselines train as long? |
| `resnet56`, `vgg9` | Both questions for the networks of the SQ paper |
| `resnet20_stompp`, `resnet56_stompp` | Is StoMPP better than straight-through? |
| `resnet20_lq` | Learned codebooks for weights, and for activations too |

The ResNet-20 rows train as PARQ does (Jin et al., 2025, arXiv 2503.15748; code in
facebookresearch/parq: `qat_resnet_cifar10.py` and the shell script of that name): 200
epochs, batch 128, SGD with momentum 0.9, learning rate 0.1, divided by 10 at epochs
80, 120 and 150 (float: 100 and 150), weight decay 2e-4, mirrored images, padded by 4
and cropped; all kernels are quantized, the first and the last too. Differences: PARQ's
code has one scale for each layer, here there is one for each filter; its weight decay
covers the gains of batch normalization; its epochs have 391 steps, here the 80 images
that do not fill a batch are left out of each epoch (390 steps).

Design note: a baseline that is trained as long as SQ (`_long`) repeats its training
four times with the weights carried over, the learning rate restarted and the momentum
cleared. So it differs from SQ in one thing, the ratio. One training of 800 epochs with
one learning rate was the alternative; it would change two things.
"""

import csv
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from keras_sq import experiments, models, network_recipes, schedules
from keras_sq.comparisons import Method
from keras_sq.training_config import TrainConfig

INPUT_SHAPE = (32, 32, 3)
"""Of an image of CIFAR-10."""

NUM_CLASSES = 10
"""Of CIFAR-10."""

TRAIN_EXAMPLES = 50_000
"""All training images: no image is held out, because nothing is chosen by a score."""

MOMENTUM = network_recipes.MOMENTUM
"""Of SGD, which all rows use."""

STAGES = 4
"""Trainings of a row that is as long as SQ in the protocol of its paper."""

PLAN = pathlib.Path(__file__).parent / "plan.csv"
"""Which rows are trained, in this order, with which seeds."""

GROUPS = {
    "resnet20_equal": "ResNet-20, 200 epochs for every method",
    "resnet20_long": "ResNet-20, 800 epochs for every method: SQ in the protocol of "
    "its paper, and the baselines trained as long",
    "resnet56": "ResNet-56 of the SQ paper",
    "vgg9": "VGG-9 of the SQ paper",
    "resnet20_stompp": "ResNet-20 with hard tanh: StoMPP against straight-through",
    "resnet56_stompp": "ResNet-56 with hard tanh: StoMPP against straight-through",
    "resnet20_lq": "ResNet-20 with learned codebooks (LQ-Nets)",
}
"""Group -> title, in the order of the table."""


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a row is trained on so many images.

    Attributes:
        epochs: Of all stages.
        steps_per_epoch: Full batches in an epoch.
        steps: Optimizer steps of the whole training.
        stage_starts: Steps at which the learning rate starts again, the first 0. If
            `Row.clear_momentum`, the momentum is cleared at each of them.
    """

    epochs: int
    steps_per_epoch: int
    steps: int
    stage_starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: an experiment, its protocol and its length.

    Attributes:
        name: Unique, of letters, digits and underscores; also of its files.
        group: Key of `GROUPS`.
        title: Method and length, for people.
        topic: Which published numbers are comparable: value of the column `topic` of
            `published.csv`.
        experiment: Name of the experiment in `keras_sq.experiments`.
        changes: Settings that the row decides: `"protocol"`, and `"scale"` for
            another length.
        repeats: How often the whole training is repeated with the weights carried
            over; 1 for SQ, whose stages are in its schedule.
    """

    name: str
    group: str
    title: str
    topic: str
    experiment: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeats: int = 1

    def config(self, scale: float = 1.0, seed: int = 0) -> TrainConfig:
        """Returns the settings of the experiment, with those of the row.

        Args:
            scale: Float > 0. Factor on the length of the training.
            seed: Of the weights and the masks.

        Raises:
            ValueError: If `scale` or `seed` is out of its range.
        """
        changes = {"scale": 1.0, **self.changes}
        changes["scale"] *= scale
        # The folder is checked, and never made: nothing here writes.
        folder = pathlib.Path(tempfile.gettempdir()) / "keras_sq_row"
        return experiments.get(self.experiment).config(
            output_dir=str(folder), seed=seed, **changes
        )

    @functools.cached_property
    def method(self) -> Method:
        """How the network is quantized, as `keras_sq.train` has it."""
        (method,) = self.config().methods
        return dataclasses.replace(method, stages=method.stages * self.repeats)

    @property
    def settings(self) -> dict[str, Any]:
        """The experiment's settings and the row's, JSON-serializable."""
        settings = dict(experiments.get(self.experiment).settings)
        for key, value in settings.items():
            settings[key] = list(value) if isinstance(value, tuple) else value
        return {
            "experiment": self.experiment,
            **settings,
            **self.changes,
            "repeats": self.repeats,
        }

    @property
    def network_name(self) -> str:
        """Name of the network in `keras_sq.models`."""
        return str(self.config().model_name)

    @property
    def batch_size(self) -> int:
        """Examples a step."""
        return self.config().batch_size

    @property
    def weight_decay(self) -> float:
        """Factor on every latent kernel in the gradient; the network's loss has it."""
        return self.config().weight_decay

    @property
    def quantize_arguments(self) -> dict[str, Any] | None:
        """Arguments of `keras_sq.quantize_model`, less `seed`; `None` if float."""
        if self.method.preset is None:
            return None
        skip = self.config().skip
        changes = {} if skip is None else {"skip": skip}
        return {**self.method.preset.settings, **changes}

    @property
    def schedule(self) -> schedules.RatioSchedule | None:
        """The ratio over the training, to be bound to its steps.

        `None` if the network is float, or quantized from the first step on (then the
        ratio is 1: `keras_sq.set_ratio(model, 1.0)`).
        """
        return None if self.method.preset is None else self.method.preset.schedule

    @property
    def stages(self) -> int:
        """Equal parts of the training in which the learning rate starts again."""
        return self.method.stages

    @property
    def clear_momentum(self) -> bool:
        """Whether the momentum is cleared at each of `Length.stage_starts`.

        True for each row of more than one stage, the float network too.
        """
        return self.stages > 1

    def length(
        self, train_examples: int = TRAIN_EXAMPLES, scale: float = 1.0
    ) -> Length:
        """Returns how long the row is trained: whole epochs, one a stage at least.

        Args:
            train_examples: Number of training images.
            scale: Float > 0. Factor on the number of epochs.

        Raises:
            ValueError: If the images do not fill a batch, or `scale` is not above 0.
        """
        config = self.config(scale)
        steps_per_epoch = train_examples // config.batch_size
        if steps_per_epoch < 1:
            raise ValueError(
                "Argument `train_examples` must fill a batch of the row "
                f"{self.name!r}, {config.batch_size} images. "
                f"Received: train_examples={train_examples}"
            )
        epochs = config.epochs_of(self.method, steps_per_epoch)
        steps = epochs * steps_per_epoch
        starts = tuple(range(0, steps, steps // self.stages))
        return Length(epochs, steps_per_epoch, steps, starts)

    def learning_rate(self, steps: int) -> Any:
        """Returns the learning rate: a float, or a Keras schedule of it.

        Args:
            steps: Optimizer steps of the whole training, `Length.steps`.
        """
        return network_recipes.learning_rate(self.config(), self.stages, steps)

    def float_network(self) -> Any:
        """Returns a new float network, built and not compiled.

        Its weights are those of Keras's random seed, which the caller sets.
        """
        return models.get(
            self.network_name, INPUT_SHAPE, NUM_CLASSES, self.weight_decay
        )

    def quantized(self, network: Any, seed: int) -> Any:
        """Returns the network that is trained; a float row's network itself.

        Args:
            network: What `float_network` returns.
            seed: Of the masks.
        """
        return network_recipes.quantized(self.config(seed=seed), self.method, network)


_PAPER = {"protocol": "paper"}
_EQUAL = {"protocol": "equal"}
_RESTARTS = {"protocol": "paper", "scale": 1 / STAGES}


def _baselines_and_sq(network: str, short: str) -> list[Row]:
    """Returns the rows of a network of the SQ paper: equal length, then its protocol.

    Args:
        network: Name of the network, as in topics.
        short: Its name in experiments.
    """
    kinds = {"fwn": "float", "bwn": "binary", "twn": "ternary"}

    def row(key: str, title: str, suffix: str = "", **more: Any) -> Row:
        name = key.replace("fwn", "float")
        topic = f"{network} {kinds[key.removeprefix('sq_')]}"
        experiment = f"cifar10_{short}_{key}"
        return Row(f"{short}_{name}{suffix}", short, title, topic, experiment, **more)

    return [
        row("fwn", "float"),
        row("bwn", "BWN"),
        row("twn", "TWN"),
        row("sq_bwn", "SQ-BWN, as long as BWN", changes=_EQUAL),
        row("sq_twn", "SQ-TWN, as long as TWN", changes=_EQUAL),
        row("sq_bwn", "SQ-BWN, 4 trainings", "_paper", changes=_PAPER),
        row("bwn", "BWN, 4 trainings", "_long", repeats=STAGES),
        row("sq_twn", "SQ-TWN, 4 trainings", "_paper", changes=_PAPER),
        row("twn", "TWN, 4 trainings", "_long", repeats=STAGES),
        row("fwn", "float, 4 trainings", "_long", repeats=STAGES),
    ]


def _stompp(depth: int) -> list[Row]:
    titles = {
        "ste": "binary weights and activations, straight-through",
        "forward": "binary weights and activations, StoMPP",
        "forward_ste": "binary weights and activations, StoMPP+STE",
        "weights_ste": "binary weights, straight-through",
        "weights_forward": "binary weights, StoMPP",
    }
    return [
        Row(
            f"resnet{depth}_stompp_{key}",
            f"resnet{depth}_stompp",
            title,
            "stompp weights" if key.startswith("weights") else "stompp",
            f"cifar10_resnet{depth}_stompp_{key}",
        )
        for key, title in titles.items()
    ]


def _resnet20(
    name: str, group: str, title: str, bits: str, key: str, **more: Any
) -> Row:
    topic = f"ResNet-20 {bits}"
    return Row(
        f"resnet20_{name}", group, title, topic, f"cifar10_resnet20_{key}", **more
    )


_ROWS = (
    _resnet20("float", "resnet20_equal", "float", "float", "fwn"),
    _resnet20("bwn", "resnet20_equal", "BWN", "binary", "bwn"),
    _resnet20("twn", "resnet20_equal", "TWN", "ternary", "twn"),
    _resnet20("sq_bwn", "resnet20_equal", "SQ-BWN, short ramp", "binary", "sq_bwn"),
    _resnet20("sq_twn", "resnet20_equal", "SQ-TWN, short ramp", "ternary", "sq_twn"),
    _resnet20(
        "sq_bwn_restarts",
        "resnet20_equal",
        "SQ-BWN, 4 trainings of 50 epochs",
        "binary",
        "sq_bwn",
        changes=_RESTARTS,
    ),
    _resnet20(
        "sq_twn_restarts",
        "resnet20_equal",
        "SQ-TWN, 4 trainings of 50 epochs",
        "ternary",
        "sq_twn",
        changes=_RESTARTS,
    ),
    _resnet20(
        "sq_bwn_paper",
        "resnet20_long",
        "SQ-BWN, 4 trainings of 200 epochs",
        "binary",
        "sq_bwn",
        changes=_PAPER,
    ),
    _resnet20(
        "bwn_long",
        "resnet20_long",
        "BWN, 4 trainings of 200 epochs",
        "binary",
        "bwn",
        repeats=STAGES,
    ),
    _resnet20(
        "sq_twn_paper",
        "resnet20_long",
        "SQ-TWN, 4 trainings of 200 epochs",
        "ternary",
        "sq_twn",
        changes=_PAPER,
    ),
    _resnet20(
        "twn_long",
        "resnet20_long",
        "TWN, 4 trainings of 200 epochs",
        "ternary",
        "twn",
        repeats=STAGES,
    ),
    _resnet20(
        "float_long",
        "resnet20_long",
        "float, 4 trainings of 200 epochs",
        "float",
        "fwn",
        repeats=STAGES,
    ),
    *_baselines_and_sq("ResNet-56", "resnet56"),
    *_baselines_and_sq("VGG-9", "vgg9"),
    *_stompp(20),
    *_stompp(56),
    _resnet20("lq_float", "resnet20_lq", "float, 164 epochs", "float", "float"),
    _resnet20("lq_2_32", "resnet20_lq", "2-bit weights", "2/32 bits", "lq_2_32"),
    _resnet20(
        "lq_2_2", "resnet20_lq", "2-bit weights and activations", "2/2 bits", "lq_2_2"
    ),
)
_BY_NAME = {row.name: row for row in _ROWS}


def all_rows() -> tuple[Row, ...]:
    """Returns all rows, in the order of the table."""
    return _ROWS


def get(name: str) -> Row:
    """Returns a row by its name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"Argument `name` must be one of {', '.join(_BY_NAME)}. "
            f"Received: name={name!r}"
        )
    return _BY_NAME[name]


def read_plan(path: str | pathlib.Path = PLAN) -> list[tuple[Row, int]]:
    """Returns rows and seeds in the order in which they are to be trained.

    Args:
        path: A CSV file with the columns `row` and `seeds` (numbers with spaces
            between them). Each row and seed is there once.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file has other columns, or a line that names no row, or
            seeds that are not numbers from 0 on or are in the plan already. The
            message names the line.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns != ("row", "seeds"):
            raise ValueError(
                f"The plan must have the columns row,seeds: {path} has "
                f"{','.join(columns) or 'none'}."
            )
        planned: dict[tuple[str, int], tuple[Row, int]] = {}
        for line in reader:
            where = f"Line {reader.line_num} of {path}"
            row = _BY_NAME.get(line["row"])
            if row is None:
                raise ValueError(f"{where} must name a row, not {line['row']!r}.")
            seeds = (line["seeds"] or "").split()
            if not seeds or not all(x.isascii() and x.isdigit() for x in seeds):
                raise ValueError(
                    f"{where} must have seeds such as '0 1', not {line['seeds']!r}."
                )
            for seed in map(int, seeds):
                if (row.name, seed) in planned:
                    raise ValueError(
                        f"{where} repeats the row {row.name} with the seed {seed}."
                    )
                planned[row.name, seed] = row, seed
    return list(planned.values())
