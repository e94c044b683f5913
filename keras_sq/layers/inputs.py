"""The input quantizer of a quantized layer, and the state of activation rules.

A layer whose settings have an `input_quantizer` computes with quantized inputs:
the first argument of its `call` is quantized before Keras's own `call` runs. For a
recurrent cell this is the input of a time step, not the state; for a separable
convolution the input, not what lies between its two kernels.

**Masked inputs.** With `input_granularity="element"` only a part of the entries is
quantized in training, by a mask of the feature map (StoMPP):

    hybrid = where(mask, Q(x), full_precision(x))

The mask has the shape of the input without the batch, is shared by all examples (and
by all time steps of a recurrent cell, whatever stands before the axes it has), and is
drawn with the kernel's, for the layer's ratio, by the same way of selecting; every
entry with the same probability. The gradient of a quantized entry is the rule's own,
or 0 if `quantized_gradient="blocked"`; of another entry that of `full_precision`. What
a rule learns it learns as if all were quantized, but for a clip that is trained by
gradients: only quantized entries have one. At inference everything is quantized.

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
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_sq.core import compilation
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, Tensor, Variable
from keras_sq.layers.settings import Settings
from keras_sq.layers.split_update import CLIP, full_precision_part, with_gradient
from keras_sq.quantizers.activations import ActivationRule

INPUT = "input"
"""The name that a layer's input goes by where kernels have theirs."""

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


class MaskedPart(NamedTuple):
    """Which activations are quantized, and what goes for the others.

    Attributes:
        mask: Bool tensor that broadcasts to the activations: True = quantized.
        full_precision: One of `keras_sq.layers.split_update.FULL_PRECISION`.
        quantized_gradient: One of `keras_sq.layers.split_update.QUANTIZED_GRADIENTS`.
    """

    mask: Tensor
    full_precision: str
    quantized_gradient: str


def follow_rule(
    rule: ActivationRule,
    variables: Sequence[Variable],
    x: Tensor,
    training: bool,
    name: str,
    part: MaskedPart | None = None,
) -> Tensor:
    """Returns quantized activations; while training, moves what is learned.

    Args:
        rule: The rule.
        variables: What `add_rule_state` returned.
        x: Float tensor of any shape.
        training: Whether this is a training step.
        name: The layer's, for errors.
        part: Which activations are quantized; `None`: all.

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
    if part is None:
        forward = _forward_function(rule, training)
        quantized = with_gradient([x, *state], forward, _backward_function(rule))
    else:
        blocked = part.quantized_gradient == "blocked"
        quantized = with_gradient(
            [x, part.mask, *state],
            _hybrid_forward_function(rule, part.full_precision, training),
            _hybrid_backward_function(rule, part.full_precision, blocked),
        )
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

    return compilation.fused(forward) if training else forward


@functools.lru_cache(maxsize=256)
def _backward_function(rule: ActivationRule) -> Callable[..., tuple[Any, ...]]:
    def backward(upstream: Tensor, x: Tensor, *state: Tensor) -> tuple[Any, ...]:
        upstream, wide = ops.cast(upstream, "float32"), ops.cast(x, "float32")
        gradient, *rest = rule.backward(upstream, wide, *state)
        return (ops.cast(gradient, x.dtype), *rest)

    return backward


@functools.lru_cache(maxsize=256)
def _hybrid_forward_function(
    rule: ActivationRule, full_precision: str, training: bool
) -> Callable[..., Tensor]:
    def forward(x: Tensor, mask: Tensor, *state: Tensor) -> Tensor:
        quantized = ops.cast(rule.forward(ops.cast(x, "float32"), *state), x.dtype)
        return ops.where(mask, quantized, full_precision_part(x, full_precision))

    return compilation.fused(forward) if training else forward


@functools.lru_cache(maxsize=256)
def _hybrid_backward_function(
    rule: ActivationRule, full_precision: str, blocked: bool
) -> Callable[..., tuple[Any, ...]]:
    def backward(
        upstream: Tensor, x: Tensor, mask: Tensor, *state: Tensor
    ) -> tuple[Any, ...]:
        upstream, wide = ops.cast(upstream, "float32"), ops.cast(x, "float32")
        zero = ops.zeros((), "float32")
        of_quantized = ops.where(mask, upstream, zero)
        gradient, *rest = rule.backward(of_quantized, wide, *state)
        if full_precision == "clip":
            upstream = ops.where(ops.abs(wide) <= CLIP, upstream, zero)
        gradient = ops.where(mask, zero if blocked else gradient, upstream)
        return (ops.cast(gradient, x.dtype), None, *rest)

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

    quantization_settings: Settings

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
        rule: ActivationRule | None = self.quantization_settings.input_quantizer
        return rule

    @property
    def masks_input(self) -> bool:
        """Whether a mask says which entries of the input are quantized."""
        return self.quantization_settings.masks_input

    def input_state(self) -> list[Variable]:
        """Returns the variables of the input quantizer, and the input's mask."""
        mask = self.__dict__.get("_input_mask")
        rule = self.__dict__.get("_input_state", ())
        return [*rule, *([] if mask is None else [mask])]

    def add_input_state(self) -> None:
        """Creates the variables of the input quantizer, and the input's mask.

        Raises:
            ValueError: If the input is masked and its shape is not known.
        """
        if self.input_rule is None:
            return
        shape = self._feature_shape() if self.masks_input else ()
        # Past Keras's tracking of lists, which has the variables already.
        self.__dict__["_input_state"] = add_rule_state(self, self.input_rule, "input_")
        if self.masks_input:
            self.__dict__["_input_mask"] = self.add_weight(  # type: ignore[attr-defined]
                name="input_mask",
                shape=shape,
                dtype="bool",
                initializer="ones",
                trainable=False,
            )

    def _feature_shape(self) -> tuple[int, ...]:
        """Returns the shape that the layer was built for, without the batch."""
        built = self.get_build_config() or {}  # type: ignore[attr-defined]
        # By name, if `build` takes more than one: the first is the input's.
        shapes = built.get("shapes_dict") or {"input_shape": built.get("input_shape")}
        shape = next(iter(shapes.values()))
        known = isinstance(shape, list | tuple) and len(shape) > 1
        if not known or not all(isinstance(size, int) for size in shape[1:]):
            raise ValueError(
                f"Layer '{self.name}' has a mask for each entry of its input "  # type: ignore[attr-defined]
                '(`input_granularity="element"`), so the shape of the input must be '
                "known but for the batch. Give the model a `keras.Input` of fixed "
                "size. Where the layer that holds this one builds it without (the "
                "output projection of attention), set `input_granularity` to 'all' "
                f"for it: overrides={{'{self.name}': {{'input_granularity': 'all'}}}}. "  # type: ignore[attr-defined]
                f"Received: input shape {shape}"
            )
        return tuple(shape[1:])

    def quantize_input(self, x: Tensor) -> Tensor:
        """Returns the quantized input, or the input where that is not asked for.

        Raises:
            ValueError: If the input does not fit the mask.
        """
        if self.input_rule is None or id(self) in getattr(_held, "done", ()):
            return x
        training = bool(internals.training_phase())
        name = self.name  # type: ignore[attr-defined]
        state = self.__dict__.get("_input_state", ())
        part = None
        settings = self.quantization_settings
        if self.masks_input and (training or settings.inference == "hybrid"):
            variable = self.__dict__["_input_mask"]
            features = tuple(variable.shape)
            shape = tuple(getattr(x, "shape", ()))
            if shape[-len(features) :] != features:
                raise ValueError(
                    f"Layer '{name}' has a mask for inputs of shape {features}, the "
                    "batch aside, and cannot be called on inputs of another. "
                    f"Received: input shape {shape}"
                )
            part = MaskedPart(
                internals.read(variable),
                settings.full_precision,
                settings.quantized_gradient,
            )
        return follow_rule(self.input_rule, state, x, training, name, part)


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
