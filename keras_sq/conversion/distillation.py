"""Distillation: a network with few bits learns from the float one, too.

    distilled = keras_sq.distill(sq_model, model)
    distilled.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    distilled.fit(x, y, callbacks=[keras_sq.callbacks.StochasticQuantization()])
    keras_sq.export(sq_model, "model.tflite")

`distilled` is a model around the two for the time of training; what it trains are the
weights of the student, which is used afterwards as if nothing had been around it.

What the teacher knows and the labels do not is how alike the classes look. That is in
the ratios of its small probabilities, which a temperature brings out. Where the loss is
no cross-entropy, the teacher's output takes the place of the targets.

For hidden features use `keras.distillation.Distiller` with `FeatureDistillation`; a
quantized student trains in it with the same callback.

Design note: why not `keras.distillation.Distiller`. It leaves out the regularizers of
the student and the weights of examples and classes, takes every output for logits (of a
network that ends with a softmax, or has one logit, it learns the wrong thing),
and validates with the teacher's loss. A loss that calls the teacher would do without a
model around, but Keras gives a loss no inputs, and a teacher outside of the model is a
constant of the compiled step on JAX and not on the device of a replica.

References:
    - [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_sq.conversion import copying
from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Config, Model, Tensor

CROSS_ENTROPIES = {
    "sparse_categorical_crossentropy": "categorical",
    "categorical_crossentropy": "categorical",
    "binary_crossentropy": "binary",
}
"""Losses with a temperature, by Keras's names, and the kind of their outputs."""

_TINY = 1e-7
"""Of a probability, so that its logarithm is finite."""


def distill(
    student: Model,
    teacher: Model,
    *,
    weight: float = 0.5,
    temperature: float = 4.0,
) -> "Distilled":
    """Returns a model whose training trains the student, by labels and teacher.

        loss = (1 - weight) * loss(labels, student)
            + weight * temperature ** 2 * KL(teacher || student, at the temperature)
            + regularizers of the student

    The factor `temperature ** 2` keeps the size of the gradient. With a loss that is
    no cross-entropy the second line is `weight * loss(teacher, student)`. `evaluate`
    and the validation of `fit` give the plain loss and metrics of the student.

    Args:
        student: A built model; its weights are trained.
        teacher: A built model with the same inputs and the shape of the student's
            output. It is copied and stays as it is.
        weight: Of the teacher against the labels, in [0, 1].
        temperature: Above 0: what logits are divided by before they become
            probabilities. Of no meaning for a loss that is no cross-entropy.

    Returns:
        A `Distilled`, to be compiled: the loss as for the student.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, or the outputs have different
            shapes.

    Example:
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> distilled = keras_sq.distill(student, teacher, temperature=2.0)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distilled.compile("sgd", loss)
        >>> distilled.student is student
        True
    """
    for name, model in (("student", student), ("teacher", teacher)):
        _check_model(name, model)
    _check_outputs(student, teacher)
    weight = checks.fraction("weight", weight)
    temperature = checks.positive("temperature", temperature)
    frozen = copying.copy_model(teacher)
    frozen.trainable = False
    return Distilled(student, frozen, weight=weight, temperature=temperature)


@keras.saving.register_keras_serializable(package="keras_sq")
class Distilled(keras.Model):
    """A student and its teacher while the student is trained; made by `distill`.

    Attributes:
        student: The network that is trained.
        teacher: A copy of the teacher, not trainable.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model,
        *,
        weight: float,
        temperature: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.student = student
        self.teacher = teacher
        self.teacher.trainable = False
        self._weight = weight
        self._temperature = temperature
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Returns the student's output."""
        return self.student(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the loss of the step; when not training, that of the student."""
        total = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return total
        taught = ops.stop_gradient(self.teacher(x, training=False))
        from_teacher = self._teaching_loss()(
            taught, y_pred, sample_weight=sample_weight
        )
        regularizers = sum((ops.sum(loss) for loss in self.losses), ops.zeros(()))
        task = total - regularizers
        return (1 - self._weight) * task + self._weight * from_teacher + regularizers

    def _teaching_loss(self) -> keras.losses.Loss:
        """Returns the loss against the teacher's output.

        Raises:
            ValueError: If the model is not compiled with one loss.
        """
        loss = self.loss
        if isinstance(loss, list | tuple | dict) or loss is None:
            raise ValueError(
                "A distilled model must be compiled with one loss. "
                f"Received: loss={loss!r}"
            )
        loss = keras.losses.get(loss)
        function = getattr(loss, "fn", loss)
        kind = CROSS_ENTROPIES.get(getattr(function, "__name__", ""))
        if kind is not None:
            from_logits = bool(
                getattr(loss, "_fn_kwargs", {}).get("from_logits", False)
            )
            temperature = self._temperature
            return _MeanOf(
                lambda t, o: _divergence(t, o, kind, from_logits, temperature)
            )
        return loss if isinstance(loss, keras.losses.Loss) else _MeanOf(loss)

    def get_config(self) -> Config:
        """Returns student, teacher and settings, JSON-serializable."""
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "weight": self._weight,
            "temperature": self._temperature,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Any = None) -> "Distilled":
        """Makes the model that `get_config` describes."""
        models = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("student", "teacher")
        }
        # Earlier versions saved settings of hidden features.
        settings = {k: v for k, v in config.items() if not k.startswith("feature")}
        return cls(**{**settings, **models})


class _MeanOf(keras.losses.Loss):
    """The mean over examples of a function of target and output, weighted."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(name="mean")
        self._function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self._function(y_true, y_pred)


def _divergence(
    taught: Tensor, output: Tensor, kind: str, from_logits: bool, temperature: float
) -> Tensor:
    """Returns `temperature ** 2 * KL(taught || output)`, `(batch, ...)`."""
    if kind == "binary":
        if not from_logits:
            taught, output = _logit(taught), _logit(output)
        taught, output = taught / temperature, output / temperature
        # Two classes with the logits x and 0.
        classes = [(taught, output), (-taught, -output)]
        terms = [
            ops.sigmoid(t) * (ops.log_sigmoid(t) - ops.log_sigmoid(o))
            for t, o in classes
        ]
        return temperature**2 * ops.mean(terms[0] + terms[1], axis=-1)
    if not from_logits:
        # Up to a number for each example, which the softmax takes away.
        taught = ops.log(ops.maximum(taught, _TINY))
        output = ops.log(ops.maximum(output, _TINY))
    target = ops.log_softmax(taught / temperature, axis=-1)
    learned = ops.log_softmax(output / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(target) * (target - learned), axis=-1)


def _logit(probability: Tensor) -> Tensor:
    inside = ops.clip(probability, _TINY, 1 - _TINY)
    return ops.log(inside) - ops.log1p(-inside)


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Argument `{name}` must be a keras.Model. Received: {name}={model!r}"
        )
    if not internals.is_built(model):
        raise ValueError(
            f"Argument `{name}` must be a built model: call it on a batch first, or "
            f"give it a `keras.Input`. Received: {name}={model.name!r}"
        )


def _check_outputs(student: Model, teacher: Model) -> None:
    """Raises if the outputs cannot be compared; a subclassed model may not tell."""
    shapes = []
    for name, model in (("student", student), ("teacher", teacher)):
        outputs = model.outputs if internals.has_graph(model) else None
        if outputs is not None and len(outputs) != 1:
            raise ValueError(
                f"Argument `{name}` must be a model of one output. Received: "
                f"{name}={model.name!r}, with {len(outputs)}"
            )
        shapes.append(None if outputs is None else tuple(outputs[0].shape[1:]))
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            "Arguments `student` and `teacher` must have outputs of the same shape. "
            f"Received: {shapes[0]} of the student, {shapes[1]} of the teacher"
        )
