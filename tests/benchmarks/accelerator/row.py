"""A row of the paper-scale table: an experiment, its protocol and its length.

What rows there are is in `rows.py`.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from keras_sq import experiments, models, schedules
from keras_sq.experiments import networks
from keras_sq.experiments.comparisons import Method
from keras_sq.experiments.config import TrainConfig

INPUT_SHAPE = (32, 32, 3)
"""Of an image of CIFAR-10."""

NUM_CLASSES = 10
"""Of CIFAR-10."""

TRAIN_EXAMPLES = 50_000
"""All training images: no image is held out, because nothing is chosen by a score."""

MOMENTUM = networks.MOMENTUM
"""Of SGD, which all rows use."""


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
        group: Key of `rows.GROUPS`.
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
        return networks.learning_rate(self.config(), self.stages, steps)

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
        return networks.quantized(self.config(seed=seed), self.method, network)

    def callbacks(self) -> list[Any]:
        """Returns new callbacks for `fit`: one if there is a schedule, or none.

        With `clear_momentum` that callback clears the momentum itself. A row without a
        schedule has none: there the caller clears it.
        """
        preset = self.method.preset
        return [] if preset is None else preset.callbacks()
