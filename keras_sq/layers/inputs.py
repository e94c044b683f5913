"""The input quantizer of a quantized layer, and the state of activation rules.

A layer whose settings have an `input_quantizer` computes with quantized inputs:
the first argument of its `call` is quantized before Keras's own `call` runs. For a
recurrent cell this is the input of a time step, not the state; for a separable
convolution the input, not what lies between its two kernels.

Design note: **a wrapped `call`.** `__call__` would be too early (Keras has not
resolved `training` yet, nor cast the inputs, and a symbolic call would record the
quantizer as operations of the model) and one `call` for all layers would hide from
Keras, which looks at its signature, whether a layer takes `mask` or `training`. So
each class gets the `call` of its Keras class, wrapped, with the same signature.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_sq import _backend
from keras_sq import _keras_internals as internals
from keras_sq.activation_rules import ActivationRule
from keras_sq.split_update import with_gradient
from keras_sq.types import Layer, Tensor, Variable

_held = threading.local()


# Rules with state.


def add_rule_state(layer: Layer, rule: ActivationRule, prefix: str) -> list[Variable]:
    """Adds the variables that a rule learns to a layer, and returns them.

    Args:
        layer: A layer that takes new variables.
        rule: The rule.
        prefix: Goes before the names of the variables.
    """
    return [
        layer.add_weight(
            name=f"{prefix}{spec.name}",
            shape=ops.convert_to_numpy(spec.start).shape,
            initializer=_starts_at(spec.start),
            dtype="float32",
            trainable=spec.trainable,
            regularizer=keras.regularizers.L2(spec.l2) if spec.l2 else None,
            autocast=False,
            # Every replica learns from its share of the batch.
            aggregation="mean",
        )
        for spec in rule.state_specs()
    ]


def _starts_at(value: Any) -> Callable[..., Tensor]:
    # Not `Constant`, which takes scalars only.
    return lambda shape, dtype=None: ops.convert_to_tensor(value, dtype)


def follow_rule(
    rule: ActivationRule,
    variables: Sequence[Variable],
    x: Tensor,
    training: bool,
    name: str,
) -> Tensor:
    """Returns quantized activations; while training, moves what is learned.

    Args:
        rule: The rule.
        variables: What `add_rule_state` returned.
        x: Float tensor of any shape.
        training: Whether this is a training step.
        name: The layer's, for errors.

    Returns:
        Tensor with the shape and dtype of `x`.

    Raises:
        TypeError: If `x` is no dense float tensor.
    """
    is_tensor = isinstance(x, keras.KerasTensor) or ops.is_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype) if is_tensor else ""
    if "float" not in dtype or getattr(x, "sparse", False):
        received = f"a tensor of dtype {dtype}" if dtype else f"{type(x).__name__}"
        raise TypeError(
            f"The activation quantizer of layer '{name}' needs a dense float tensor. "
            f"Received: {received}"
        )
    state = [internals.read(variable) for variable in variables]
    forward = _forward_function(rule, training)
    quantized = with_gradient([x, *state], forward, _backward_function(rule))
    if training:
        after = _update_function(rule)(ops.stop_gradient(x), *state)
        for variable, value in zip(variables, after, strict=bool(after)):
            variable.assign(value)
    return quantized


# Cached, so that layers alike share one compiled function.
@functools.lru_cache(maxsize=256)
def _forward_function(rule: ActivationRule, training: bool) -> Callable[..., Tensor]:
    def forward(x: Tensor, *state: Tensor) -> Tensor:
        return ops.cast(rule.forward(ops.cast(x, "float32"), *state), x.dtype)

    return _backend.fused(forward) if training else forward


@functools.lru_cache(maxsize=256)
def _backward_function(rule: ActivationRule) -> Callable[..., tuple[Any, ...]]:
    def backward(upstream: Tensor, x: Tensor, *state: Tensor) -> tuple[Any, ...]:
        upstream, wide = ops.cast(upstream, "float32"), ops.cast(x, "float32")
        gradient, *rest = rule.backward(upstream, wide, *state)
        return (ops.cast(gradient, x.dtype), *rest)

    return backward


@functools.lru_cache(maxsize=256)
def _update_function(rule: ActivationRule) -> Callable[..., tuple[Tensor, ...]]:
    def update(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return rule.update(ops.cast(x, "float32"), *state)

    return update


# Quantized inputs.


class QuantizedInputs:
    """Mixin of the quantized layers: quantizes the first argument of `call`."""

    takes_floats: ClassVar[bool] = True
    """Whether the layer has an input that can be quantized."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        owner = next((base for base in cls.__mro__ if "call" in base.__dict__), None)
        # A subclass with a `call` of its own gets at ours by `super()`.
        if owner is not None and not issubclass(owner, QuantizedInputs):
            cls.call = with_quantized_input(owner.call)  # type: ignore[attr-defined]

    @classmethod
    def check_input_quantizer(cls) -> None:
        """Raises if the layer has no input to quantize.

        Raises:
            ValueError: If it takes indices.
        """
        if not cls.takes_floats:
            raise ValueError(
                f"A layer of type {cls.float_class.__name__} takes indices: it cannot "  # type: ignore[attr-defined]
                "have an `input_quantizer`."
            )

    @property
    def input_rule(self) -> ActivationRule | None:
        """The rule of the input quantizer, if the layer has one."""
        rule: ActivationRule | None = self.quantization_settings.input_quantizer  # type: ignore[attr-defined]
        return rule

    def input_state(self) -> list[Variable]:
        """Returns the variables of the input quantizer."""
        return list(self.__dict__.get("_input_state", ()))

    def add_input_state(self) -> None:
        """Creates the variables of the input quantizer."""
        if self.input_rule is not None:
            # Past Keras's tracking of lists, which has the variables already.
            self.__dict__["_input_state"] = add_rule_state(
                self, self.input_rule, "input_"
            )

    def quantize_input(self, x: Tensor) -> Tensor:
        """Returns the quantized input, or the input where that is not asked for."""
        if self.input_rule is None or id(self) in getattr(_held, "done", ()):
            return x
        training = bool(internals.training_phase())
        name = self.name  # type: ignore[attr-defined]
        return follow_rule(self.input_rule, self.input_state(), x, training, name)


@contextlib.contextmanager
def inputs_quantized(layers: Sequence[QuantizedInputs]) -> Iterator[None]:
    """Within, the inputs of these layers are quantized already.

    For layers that another one calls in a loop: their inputs are then quantized,
    and learned from, all at once. Held per thread: replicas trace side by side.
    """
    before: frozenset[int] = getattr(_held, "done", frozenset())
    _held.done = before | {id(layer) for layer in layers}
    try:
        yield
    finally:
        _held.done = before


def with_quantized_input(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a layer's `call` whose first argument is quantized before."""
    names = list(inspect.signature(call).parameters)

    @functools.wraps(call)
    def quantizing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.input_rule is not None:
            if args:
                args = (self.quantize_input(args[0]), *args[1:])
            elif len(names) > 1 and names[1] in kwargs:
                kwargs[names[1]] = self.quantize_input(kwargs[names[1]])
        return call(self, *args, **kwargs)

    return quantizing
