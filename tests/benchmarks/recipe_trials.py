"""Trains one network by many recipes for the same few epochs: which deserve a default?

    python tests/benchmarks/recipe_trials.py --data_dir=~/tfds --work=trials
    python tests/benchmarks/recipe_trials.py --data_dir=~/tfds '--only=ternary*'

All start from the same float network, which is trained first. The accuracy is of
training images that no network was trained on (`--limit` of them are used, the others
judge), with the statistics of batch normalization measured anew, and beside it the one
without that: the test split is not looked at. One seed, so that differences of half a
point say nothing. What is done is skipped; several processes may share a folder. What
came of it, and what of the winners with more seeds on the test split:
notebooks/06_defaults.ipynb.
"""

import fnmatch
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import ops

import keras_sq
from keras_sq import datasets, models, schedules
from keras_sq.core.types import Tensor
from keras_sq.datasets import loading
from keras_sq.quantizers import filter_functions

_DATASET = flags.DEFINE_string("dataset", "cifar10", "TFDS name, of images.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder.", required=True)
_MODEL = flags.DEFINE_string("model", "resnet8", "Network.")
_LIMIT = flags.DEFINE_integer("limit", 20_000, "Images to train on.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 15, "Of the start.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Of each recipe.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, order and masks.")
_ONLY = flags.DEFINE_multi_string("only", ["*"], "Recipes, with wildcards.")
_WORK = flags.DEFINE_string("work", "trials", "Folder of what is written.")

EIGHT_BITS = keras_sq.quantizers.UniformQuantizer(8)
FOUR_BITS = keras_sq.quantizers.UniformQuantizer(4, "max")

ENDS = {"@first": EIGHT_BITS, "@last": EIGHT_BITS}
EDGES = {**ENDS, "@downsampling": EIGHT_BITS}
SMALL = dict.fromkeys(("@first", "@last", "block1*", "*shortcut"), FOUR_BITS)
MORE = {**SMALL, "block2_conv1": FOUR_BITS}
MOST = (*MORE, "block2_conv2")
"""Of ResNet-8: 1.4, 4.7, 10.7, 16.6 and 28.5 % of the weights; the last: `"@small"`."""


def most(**settings: Any) -> dict[str, Any]:
    """Returns overrides of all those by one quantizer, with the scale as it is now."""
    return dict.fromkeys(MOST, keras_sq.quantizers.UniformQuantizer(**settings))


RATE = 0.1


@keras_sq.quantizers.register
class Offset(keras_sq.quantizers.BinaryQuantizer):
    """Two levels around the mean of the filter, not around 0."""

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns scale and mean."""
        axes = tuple(range(len(kernel.shape) - 1))
        wide = ops.cast(kernel, "float32")
        mean = ops.mean(wide, axis=axes)
        return ops.mean(ops.abs(wide - mean), axis=axes), mean

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the signs of what is left without the mean."""
        return filter_functions.binary_codes(kernel - ops.cast(fitted[1], kernel.dtype))

    def decode(self, codes: Tensor, *fitted: Tensor) -> Tensor:
        """Returns `mean ± scale`."""
        scale, mean = (ops.cast(number, codes.dtype) for number in fitted)
        return codes * scale + mean

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """As of any quantizer: that of signs does not hold here."""
        return keras_sq.quantizers.Quantizer.filter_errors(self, kernel, *state)


def recipe(
    quantizer: Any = "ternary",
    schedule: schedules.RatioSchedule | None = None,
    *,
    rate: float = RATE,
    optimizer: str = "sgd",
    distill: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    probability: str = "linear",
    clear_momentum: bool = False,
    restarts: bool = False,
    frozen: float = 0.0,
) -> dict[str, Any]:
    """Returns how a network is quantized and trained; all layers alike if not said.

    With `restarts` the learning rate begins again at each stage, with `frozen` the
    kernels stay as they are in so much of the run, at its end.
    """
    return {
        "quantizer": quantizer,
        "schedule": schedule,
        "rate": rate,
        "optimizer": optimizer,
        "distill": distill,
        "overrides": overrides or {},
        "probability": probability,
        "clear_momentum": clear_momentum,
        "restarts": restarts,
        "frozen": frozen,
    }


class FrozenKernels(keras.callbacks.Callback):
    """Keeps the kernels, and so their codes, from a step on: the rest learns on.

    That is biases, batch normalization, and with its factors the scales of filters.
    """

    def __init__(self, kernels: Sequence[keras.Variable], first_step: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.first_step = first_step
        self.step = 0
        self.kept: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the kernels at the first step, and puts them back after each."""
        self.step += 1
        if self.step == self.first_step:
            self.kept = [ops.copy(kernel.value) for kernel in self.kernels]
        for kernel, kept in zip(self.kernels, self.kept, strict=False):
            kernel.assign(kept)


TAUGHT = {"weight": 0.9, "temperature": 4.0}
GENTLY = {"weight": 0.5, "temperature": 1.0}

LOWER = keras_sq.quantizers.TernaryQuantizer(threshold_factor=0.4)
BY_FILTER = keras_sq.quantizers.TernaryQuantizer("filter")
RAMP_10, RAMP_15, RAMP_30 = (
    schedules.exponential(ramp=ramp) for ramp in (0.1, 0.15, 0.3)
)

DEFAULT = most(num_bits=4, num_levels=13)
"""As by default."""

RECIPES: dict[str, dict[str, Any]] = {
    "float": recipe(None),
    "float, rate 0.05": recipe(None, rate=0.05),
    "four bits, ends 8": recipe(FOUR_BITS, overrides=ENDS),
    "learned 2 bits": recipe("lq-2"),
    "ternary": recipe(),
    "ternary, rate 0.2": recipe(rate=0.2),
    "ternary, Adam 0.002": recipe(optimizer="adam", rate=0.002),
    "ternary, taught": recipe(rate=0.05, distill=TAUGHT),
    "ternary, ends 8": recipe(overrides=ENDS),
    "ternary, ends 8, taught gently": recipe(overrides=ENDS, distill=GENTLY),
    "ternary, edges 8": recipe(overrides=EDGES),
    "ternary, edges 8, SQ": recipe(schedule=RAMP_15, overrides=EDGES),
    "ternary, small 4": recipe(overrides=SMALL),
    "ternary, small 4, threshold 0.4": recipe(LOWER, overrides=SMALL),
    "ternary, small 4, per filter": recipe(BY_FILTER, overrides=SMALL),
    "ternary, small 4, SQ": recipe(schedule=RAMP_15, overrides=SMALL),
    "ternary, more 4, SQ": recipe(schedule=RAMP_15, overrides=MORE),
    "ternary, most 15 levels, SQ": recipe(schedule=RAMP_15, overrides=most(num_bits=4)),
    "ternary, most 13 levels": recipe(overrides=DEFAULT),
    "ternary, most 13 levels, SQ": recipe(schedule=RAMP_15, overrides=DEFAULT),
    "ternary, most 7 levels, SQ": recipe(schedule=RAMP_15, overrides=most(num_bits=3)),
    "ternary, more 4, SQ longer, per filter, rate 0.07": recipe(
        BY_FILTER, RAMP_30, overrides=MORE, rate=0.07
    ),
    "binary": recipe("binary"),
    "binary, Adam 0.002": recipe("binary", optimizer="adam", rate=0.002),
    "binary, taught": recipe("binary", rate=0.05, distill=TAUGHT),
    "binary, SQ": recipe("binary", RAMP_10),
    "binary, edges 8": recipe("binary", overrides=EDGES),
    "binary, edges 8, SQ": recipe("binary", RAMP_15, overrides=EDGES),
    "binary, edges 8, offset": recipe(Offset(), overrides=EDGES),
    "binary, small 4, SQ": recipe("binary", RAMP_15, overrides=SMALL),
    "binary, most 13 levels": recipe("binary", overrides=DEFAULT),
    "binary, most 13 levels, SQ": recipe("binary", RAMP_15, overrides=DEFAULT),
}

EQUAL_STAGES = schedules.exponential()
VARIED: dict[str, dict[str, Any]] = {
    "constant": {"probability": "constant"},
    "softmax": {"probability": "softmax"},
    "sigmoid": {"probability": "sigmoid"},
    "momentum cleared": {"clear_momentum": True},
    "equal stages": {"schedule": EQUAL_STAGES},
    "equal stages, restarts": {
        "schedule": EQUAL_STAGES,
        "clear_momentum": True,
        "restarts": True,
    },
    "codes frozen": {"frozen": 0.25},
}
"""What is varied of the default, one thing at a time."""

RECIPES |= {
    f"{bits}, most 13 levels, SQ, {name}": recipe(
        bits, **{"schedule": RAMP_15, "overrides": DEFAULT, **settings}
    )
    for bits in ("ternary", "binary")
    for name, settings in VARIED.items()
}


def judges(data: datasets.Dataset) -> tf.data.Dataset:
    """Returns the training images that were left out, in a fixed order."""
    options = {"data_dir": _DATA_DIR.value, "augment": False}
    whole = datasets.load(_DATASET.value, batch_size=250, **options)
    images, labels = whole._source.images, whole._source.labels
    random = np.random.default_rng(loading.HOLDOUT_SEED)
    rest = random.permutation(whole.sizes["train"])[_LIMIT.value :]
    pair = tf.gather(images, rest).numpy(), tf.gather(labels, rest).numpy()
    return loading.in_order(pair, 250, data.mean, data.std)


def train(
    model: keras.Model,
    data: datasets.Dataset,
    epochs: int,
    made: dict[str, Any],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains with one cosine from the first step to the last, or one a stage."""
    steps = epochs * data.steps_per_epoch
    if made["restarts"]:
        stages = made["schedule"].bind(
            total_steps=steps, steps_per_epoch=data.steps_per_epoch
        )
        steps = -(-steps // len(stages.stage_starts))
    rate = keras.optimizers.schedules.CosineDecay(made["rate"], steps)
    if made["restarts"]:
        rate = keras_sq.learning_rates.StagewiseLearningRate(rate, stages)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    if made["optimizer"] == "adam":
        optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, crossentropy(), metrics=["accuracy"], jit_compile=False)
    model.fit(
        data.train(0, epochs),
        steps_per_epoch=data.steps_per_epoch,
        epochs=epochs,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
    )


def crossentropy() -> keras.losses.Loss:
    """Returns the loss of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained(name: str, start: keras.Model, data: datasets.Dataset) -> keras.Model:
    """Returns the network of a recipe."""
    made, model = RECIPES[name], start
    callbacks: list[keras.callbacks.Callback] = []
    if made["quantizer"] is not None:
        model = keras_sq.quantize_model(
            start,
            made["quantizer"],
            overrides=made["overrides"],
            probability=made["probability"],
            seed=_SEED.value,
        )
        if made["schedule"] is None:
            keras_sq.set_ratio(model, 1.0)
        else:
            callbacks = [
                keras_sq.callbacks.StochasticQuantization(
                    made["schedule"], clear_momentum=made["clear_momentum"]
                )
            ]
    if made["frozen"]:
        steps = _EPOCHS.value * data.steps_per_epoch
        kernels = [w for w in model.trainable_weights if w.name == "kernel"]
        callbacks.append(FrozenKernels(kernels, round((1 - made["frozen"]) * steps)))
    fitted = model
    if made["distill"] is not None:
        fitted = keras_sq.distill(model, start, **made["distill"])
    train(fitted, data, _EPOCHS.value, made, callbacks)
    return model


def main(argv: Sequence[str]) -> None:
    """Trains what is not done yet, and prints all that is."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    names = [n for n in RECIPES if any(fnmatch.fnmatch(n, p) for p in _ONLY.value)]
    if not names:
        raise app.UsageError(f"no such recipe. There are: {', '.join(RECIPES)}")
    folder = pathlib.Path(_WORK.value).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    data = datasets.load(
        _DATASET.value,
        data_dir=_DATA_DIR.value,
        batch_size=64,
        seed=_SEED.value,
        limit=_LIMIT.value,
        augment=None,
    )
    held_out = judges(data)
    file = folder / f"start-{_SEED.value}.keras"
    if not file.exists():
        keras.utils.set_random_seed(_SEED.value)
        model = models.get(_MODEL.value, data.input_shape, data.num_classes, 1e-4)
        train(model, data, _FLOAT_EPOCHS.value, recipe())
        model.save(file.with_suffix(".new.keras"))
        os.replace(file.with_suffix(".new.keras"), file)
    for name in names:
        result = folder / f"{re.sub('[ ,]+', '-', name)}-{_SEED.value}.json"
        try:
            os.close(os.open(result, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        try:
            keras.utils.set_random_seed(_SEED.value)
            model = trained(name, keras.saving.load_model(file), data)
            model.compile("sgd", crossentropy(), metrics=["accuracy"])
            before = model.evaluate(held_out, verbose=0, return_dict=True)
            keras_sq.reestimate_batch_norm(model, data.train(0, 1), steps=100)
            logs = model.evaluate(held_out, verbose=0, return_dict=True)
            logs = {"name": name, **logs, "not_reestimated": before["accuracy"]}
            result.write_text(json.dumps(logs))
        finally:
            if not result.stat().st_size:
                result.unlink()
    for path in sorted(folder.glob(f"*-{_SEED.value}.json")):
        if text := path.read_text():
            found = json.loads(text)
            print(
                f"{found['name']:52} {100 * found['accuracy']:6.2f} %"
                f"   {100 * found['not_reestimated']:6.2f} % before"
            )


if __name__ == "__main__":
    app.run(main)
