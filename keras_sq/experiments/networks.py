"""The networks of a training run: made, quantized and compiled as settings say.

What is done with them is in `train.py`.
"""

from typing import Any

import keras

from keras_sq import datasets, models
from keras_sq.conversion.distillation import Distilled
from keras_sq.core.types import Model
from keras_sq.experiments.comparisons import Method
from keras_sq.experiments.config import TrainConfig, decay_fractions
from keras_sq.files.loading import load_model
from keras_sq.schedules.learning_rates import StagewiseLearningRate

MOMENTUM = 0.9
"""Of SGD, as in the papers."""

MANY_CLASSES = 100
"""From so many on the top-5 accuracy is reported too, as papers do."""


def new_model(config: TrainConfig, data: "datasets.Dataset") -> Model:
    """Returns the float network to begin with, trained if it is a file's.

    Raises:
        ValueError: If it is a file's, and not of this data set.
    """
    if config.model_name is not None:
        return models.get(
            config.model_name, data.input_shape, data.num_classes, config.weight_decay
        )
    model = load_model(config.start)
    wanted = (None, *data.input_shape), (None, data.num_classes)
    shapes = (model.input_shape, model.output_shape)
    if shapes != wanted:
        raise ValueError(
            f"Argument `start` must be a network of the data set {data.name!r}, with "
            f"inputs {wanted[0]} and outputs {wanted[1]}. Received: "
            f"start={config.start!r}, with inputs {shapes[0]} and outputs {shapes[1]}"
        )
    return model


def quantized(config: TrainConfig, method: Method, model: Model) -> Model:
    """Returns the model as the method has it; without a preset the model itself."""
    if method.preset is None:
        return model
    changes = {} if config.skip is None else {"skip": config.skip}
    return method.preset.quantize_model(model, seed=config.seed, **changes)


def learning_rate(config: TrainConfig, stages: int, steps: int) -> Any:
    """Returns the learning rate of a training.

    Args:
        config: Says how it begins and falls.
        stages: Parts of the training in which it begins anew.
        steps: Length of the training, all stages.
    """
    rate: Any = config.learning_rate
    length = steps // stages
    if config.decay == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, length)
    elif fractions := decay_fractions(config.decay):
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(fraction * length) for fraction in fractions],
            [rate * 0.1**i for i in range(len(fractions) + 1)],
        )
    if stages == 1:
        return rate
    return StagewiseLearningRate(rate, range(0, steps, length))


def compile_model(
    model: Model, config: TrainConfig, rate: Any, *, for_test: bool = False
) -> None:
    """Compiles a network of logits or, if it ends with a softmax, probabilities.

    Args:
        model: The network.
        config: Says which optimizer.
        rate: Its learning rate.
        for_test: Whether everything is measured that is reported, or what the
            history of a training has.
    """
    metrics: list[Any] = ["accuracy"]
    if for_test and model.output_shape[-1] >= MANY_CLASSES:
        metrics.append(
            keras.metrics.SparseTopKCategoricalAccuracy(5, name="top_5_accuracy")
        )
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=not _returns_probabilities(model)
        ),
        metrics=metrics,
        # On TensorFlow, Keras would choose XLA, but not where operations are
        # deterministic. On JAX there is nothing else to compile by.
        jit_compile=keras.backend.backend() == "jax",
    )


def _returns_probabilities(model: Model) -> bool:
    """Whether a network ends with a softmax; those of this package do not."""
    network: Any = model.student if isinstance(model, Distilled) else model
    last = network.layers[-1]
    function = getattr(last, "activation", None)
    return (
        isinstance(last, keras.layers.Softmax) or function is keras.activations.softmax
    )
