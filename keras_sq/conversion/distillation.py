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

Design note: a loss that calls the teacher would do without a model around, but Keras
gives a loss no inputs, and a teacher outside of the model is a constant of the compiled
step on JAX and not on the device of a replica.

References:
    - [Hinton et al., 2015](https://arxiv.org/abs/1503.02531)
    - [Romero et al., 2015](https://arxiv.org/abs/1412.6550), for hidden features
"""

import threading
from collections.abc import Sequence
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
    features: Sequence[str | tuple[str, str]] = (),
    feature_weight: float = 1.0,
) -> "Distilled":
    """Returns a model whose training trains the student, by labels and teacher.

        loss = (1 - weight) * loss(labels, student)
            + weight * temperature ** 2 * KL(teacher || student, at the temperature)
            + feature_weight * mean over features of ‖s − t‖² / ‖t‖²
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
        features: Names of layers whose outputs are to be alike: one name for both
            networks, or a pair (the student's, the teacher's). Functional models only.
        feature_weight: Above 0: of the features against the rest.

    Returns:
        A `Distilled`, to be compiled: the loss as for the student.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, the outputs have other shapes,
            or a layer of `features` is not there.

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
    feature_weight = checks.positive("feature_weight", feature_weight)
    pairs = tuple(_pair(name) for name in features)
    frozen = copying.copy_model(teacher)
    frozen.trainable = False
    return Distilled(
        student,
        frozen,
        weight=weight,
        temperature=temperature,
        features=pairs,
        feature_weight=feature_weight,
    )


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
        features: Sequence[Sequence[str]],
        feature_weight: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.student = student
        self.teacher = teacher
        self.teacher.trainable = False
        self._weight = weight
        self._temperature = temperature
        self._feature_pairs = [list(pair) for pair in features]
        self._feature_weight = feature_weight
        # Neither of them is tracked: the layers are those of student and teacher. The
        # features of the call are for `compute_loss`, of the same trace and thread.
        self._with_features = _Untracked()
        if features:
            self._with_features.student = _with_features(student, features, 0)
            self._with_features.teacher = _with_features(teacher, features, 1)
            _check_features(self._with_features, features)
        self._of_call = threading.local()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Returns the student's output."""
        if not (training and self._feature_pairs):
            return self.student(inputs, training=training)
        output, *found = self._with_features.student(inputs, training=training)
        self._of_call.features = found
        return output

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
        kind, from_logits = self._kind_of_loss()
        if self._feature_pairs:
            taught, *wanted = self._with_features.teacher(x, training=False)
        else:
            taught = self.teacher(x, training=False)
        taught = ops.stop_gradient(taught)
        if kind == "other":
            from_teacher = self._task_loss(taught, y_pred, sample_weight)
        else:
            divergence = _divergence(
                taught, y_pred, kind, from_logits, self._temperature
            )
            from_teacher = _weighted_mean(divergence, sample_weight)
        regularizers = sum((ops.sum(loss) for loss in self.losses), ops.zeros(()))
        task = total - regularizers
        loss = (1 - self._weight) * task + self._weight * from_teacher + regularizers
        if self._feature_pairs:
            found = self._of_call.features
            del self._of_call.features
            terms = [
                _relative_difference(s, ops.stop_gradient(t))
                for s, t in zip(found, wanted, strict=True)
            ]
            loss = loss + self._feature_weight * sum(terms) / len(terms)
        return loss

    def _kind_of_loss(self) -> tuple[str, bool]:
        """Returns `"categorical"`, `"binary"` or `"other"`; whether outputs are logits.

        Raises:
            ValueError: If the loss is not one for one output.
        """
        loss = self.loss
        if isinstance(loss, list | tuple | dict) or loss is None:
            raise ValueError(
                "A distilled model must be compiled with one loss. "
                f"Received: loss={loss!r}"
            )
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        function = getattr(loss, "fn", loss)
        kind = CROSS_ENTROPIES.get(getattr(function, "__name__", ""), "other")
        settings = getattr(loss, "_fn_kwargs", {})
        return kind, bool(settings.get("from_logits", False))

    def _task_loss(self, target: Tensor, output: Tensor, weights: Any) -> Tensor:
        loss = keras.losses.get(self.loss)
        if isinstance(loss, keras.losses.Loss):
            return loss(target, output, sample_weight=weights)
        return _weighted_mean(loss(target, output), weights)

    def get_config(self) -> Config:
        """Returns student, teacher and settings, JSON-serializable."""
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "weight": self._weight,
            "temperature": self._temperature,
            "features": self._feature_pairs,
            "feature_weight": self._feature_weight,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Any = None) -> "Distilled":
        """Makes the model that `get_config` describes."""
        models = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("student", "teacher")
        }
        return cls(**{**config, **models})


class _Untracked:
    """Holds models without being a layer: what it holds has owners already."""

    student: Model
    teacher: Model


def _divergence(
    taught: Tensor, output: Tensor, kind: str, from_logits: bool, temperature: float
) -> Tensor:
    """Returns `temperature ** 2 * KL(taught || output)`, float32 `(batch, ...)`."""
    taught, output = ops.cast(taught, "float32"), ops.cast(output, "float32")
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
    found = ops.log_softmax(output / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(target) * (target - found), axis=-1)


def _logit(probability: Tensor) -> Tensor:
    inside = ops.clip(probability, _TINY, 1 - _TINY)
    return ops.log(inside) - ops.log1p(-inside)


def _weighted_mean(values: Tensor, weights: Any) -> Tensor:
    """Returns the mean over all entries, each weighted, as Keras's losses do."""
    if weights is None:
        return ops.mean(values)
    weights = ops.cast(ops.convert_to_tensor(weights), values.dtype)
    while len(weights.shape) > len(values.shape):
        weights = ops.squeeze(weights, -1)
    while len(weights.shape) < len(values.shape):
        weights = ops.expand_dims(weights, -1)
    return ops.mean(values * weights)


def _relative_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns `‖s − t‖² / ‖t‖²` over the batch, in float32."""
    student, teacher = ops.cast(student, "float32"), ops.cast(teacher, "float32")
    size = ops.maximum(ops.sum(ops.square(teacher)), _TINY)
    return ops.sum(ops.square(student - teacher)) / size


def _pair(name: Any) -> tuple[str, str]:
    if isinstance(name, str):
        return name, name
    if (
        isinstance(name, list | tuple)
        and len(name) == 2
        and all(isinstance(part, str) for part in name)
    ):
        return name[0], name[1]
    raise TypeError(
        "Argument `features` must hold names of layers, or pairs (the student's, the "
        f"teacher's). Received: {name!r}"
    )


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


def _with_features(
    model: Model, pairs: Sequence[Sequence[str]], side: int
) -> keras.Model:
    """Returns a model with the output and those of the named layers."""
    role = ("student", "teacher")[side]
    if not internals.has_graph(model):
        raise ValueError(
            f"Argument `features` needs functional or Sequential models. The {role} "
            f"is of type {type(model).__name__}."
        )
    outputs = []
    names = [layer.name for layer in model.layers]
    for pair in pairs:
        if pair[side] not in names:
            raise ValueError(
                f"Argument `features` must hold names of layers of the {role}: "
                f"{checks.listed(names)}. Received: {pair[side]!r}"
            )
        outputs.append(model.get_layer(pair[side]).output)
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, [*model.outputs, *outputs])


def _check_features(models: _Untracked, pairs: Sequence[Sequence[str]]) -> None:
    both = zip(models.student.outputs[1:], models.teacher.outputs[1:], strict=True)
    for pair, (student, teacher) in zip(pairs, both, strict=True):
        if student.shape != teacher.shape:
            raise ValueError(
                "Argument `features` must hold layers with outputs of the same shape. "
                f"Received: {tuple(student.shape)} of {pair[0]!r}, "
                f"{tuple(teacher.shape)} of {pair[1]!r}"
            )
