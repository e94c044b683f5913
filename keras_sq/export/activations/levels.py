"""Models whose quantized activations a TFLite converter can express.

`deploy` takes a copy of a model with plain kernels and makes its layers quantize
activations by two operators of TensorFlow: BUCKETIZE counts the thresholds that an
activation has reached, GATHER takes the level of that number. What becomes of them
in a file is in `forms.py`, the check of it in `verification/activations.py`. For
Larq Compute Engine signs are a comparison and a choice, see `lce/`.

Design note: **thresholds by bisection of the float32 numbers.** The lowest float32
of each level is found by asking the rule itself (`ActivationRule.forward`), so that
halfway cases fall as in Keras, whatever the rule; and a new rule needs no code
here. Its forward pass must not fall where its input rises.

Design note: **not min, max and round** for evenly spaced levels. XNNPACK would take
these, and they cost next to nothing (against 11 to 32 ns an activation for 2 to 8
bits, on one thread of a 2.5 GHz Xeon), but the converter multiplies by 1 / step where
Keras divides by the step, which sends halfway cases to another level.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, Layer, Model, Tensor
from keras_sq.export.report import ActivationReport
from keras_sq.layers import QuantizedActivation, layer_paths
from keras_sq.layers.inputs import QuantizedInputs, with_quantized_input
from keras_sq.layers.recurrent import QuantizedRecurrent, QuantizedTimeDistributed
from keras_sq.quantizers.activations import ActivationRule

NODE_NAME = "keras_sq_activation_"
"""Start of the names of nodes; the numbers of quantizer and call follow."""

FLOAT_LEVELS = "float levels"
GRID = "integer grid"
SIGNS = "signs"
TABLE = "table"
BITS = "bits"
"""Forms, see `forms.py`, and `lce/` for bits."""

_PARTS = 64
"""Into which the bisection cuts at a time: few calls of a rule are fast."""

_INFINITY = 0x7F800000
_SMALLEST = np.finfo(np.float32).smallest_normal


@dataclasses.dataclass(eq=False)
class ActivationLevels:
    """The levels of one activation quantizer of a model, and their thresholds.

    Attributes:
        path: Of the layer; of an input quantizer with `/input` behind.
        rule: The rule.
        state: Float32 arrays, what the layer learned for it.
        number: Its place among the model's.
        levels: Float32 array, sorted, all different.
        thresholds: Float32 array, the lowest number of each level but the first.
        active: Whether activations are quantized; else they pass as they are.
        compares: Whether signs are taken by a comparison with 0.
        calls: How often it was called.
        imposed: Number of a call, from 0 -> what it returns, whatever its input;
            other calls give their levels. `None` if nothing is imposed.
        seen: Inputs of the calls while outputs are imposed.
    """

    path: str
    rule: ActivationRule
    state: tuple[Array, ...]
    number: int
    levels: Array
    thresholds: Array
    active: bool = True
    compares: bool = False
    calls: int = 0
    imposed: Mapping[int, Array] | None = None
    seen: list[Array] = dataclasses.field(default_factory=list)

    @property
    def is_grid(self) -> bool:
        """Whether the levels are the multiples of a step from 0 on."""
        even = np.linspace(0.0, float(self.levels[-1]), len(self.levels))
        gap = even[-1] / (len(even) - 1)
        return bool(
            self.levels[0] == 0.0 and np.all(np.abs(self.levels - even) < 1e-3 * gap)
        )

    @property
    def is_sign(self) -> bool:
        """Whether the levels are -1 and 1, and 0 is the lowest number of the 1."""
        return np.array_equal(self.levels, (-1, 1)) and self.thresholds[0] == 0

    def expected(self, x: Array) -> Array:
        """Returns quantized activations, as the rule has them.

        Args:
            x: Float32 array.
        """
        return _forward(self.rule, self.state, x)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns quantized activations, as the converter understands them."""
        self.calls += 1
        if not self.active:
            return x
        if self.imposed is not None:
            self.seen.append(keras.ops.convert_to_numpy(x))
            if len(self.seen) - 1 in self.imposed:
                return tf.constant(self.imposed[len(self.seen) - 1])
        # A scope from the root: some files keep but the first 50 letters of a name.
        with tf.name_scope(f"{NODE_NAME}{self.number}_{self.calls - 1}/"):
            if self.compares:
                return tf.where(x >= 0.0, 1.0, -1.0)
            ranks = tf.raw_ops.Bucketize(
                input=x, boundaries=[float(value) for value in self.thresholds]
            )
            return tf.gather(tf.constant(self.levels), ranks)


@dataclasses.dataclass(frozen=True)
class StoredActivations:
    """How a file holds a place.

    Attributes:
        quantizers: Whose activations.
        subgraph: Number of the graph.
        input: The tensor of activations; -1 if there is none.
        output: The tensor of quantized activations.
        stored_as: The form.
        reason: Why.
    """

    quantizers: tuple[ActivationLevels, ...]
    subgraph: int
    input: int
    output: int
    stored_as: str
    reason: str


@contextlib.contextmanager
def changed(name: str, values: Mapping[ActivationLevels, Any]) -> Iterator[None]:
    """Within, an attribute of quantizers has other values; `seen` begins anew.

    Args:
        name: Name of the attribute.
        values: Quantizer -> value.
    """
    before = {quantizer: getattr(quantizer, name) for quantizer in values}
    for quantizer, value in values.items():
        setattr(quantizer, name, value)
        quantizer.seen = []
    try:
        yield
    finally:
        for quantizer, value in before.items():
            setattr(quantizer, name, value)


def deploy(model: Model, plain: Model) -> tuple[ActivationLevels, ...]:
    """Makes a plain copy of a model quantize activations as the model does.

    Args:
        model: A model with quantized layers.
        plain: A float32 copy of it without, layer by layer; changed in place. Of
            its layers, those that quantize activations get another class.

    Returns:
        Its activation quantizers, in the order of `layer_paths`.
    """
    paths = {id(layer): path for path, layer in layer_paths(model)}
    pairs = list(
        zip(
            internals.flatten_layers(model),
            internals.flatten_layers(plain),
            strict=True,
        )
    )
    places: dict[int, Layer] = {}
    for old, new in pairs:
        places.setdefault(id(old), new)
        # Once for all steps of time, as these do themselves.
        if isinstance(old, QuantizedRecurrent):
            cell = old.cell  # type: ignore[attr-defined]
            places[id(getattr(cell, "cells", [cell])[0])] = new
        elif isinstance(old, QuantizedTimeDistributed):
            places[id(old.layer)] = new  # type: ignore[attr-defined]
    quantizers: list[ActivationLevels] = []
    for old, _ in pairs:
        path = paths[id(old)]
        if isinstance(old, QuantizedActivation):
            rule, variables = old.activation_rule, old.rule_state()
        elif isinstance(old, QuantizedInputs) and old.input_rule is not None:
            rule, variables = old.input_rule, old.input_state()
            path += "/input"
        else:
            continue
        # A mask of the input may follow.
        variables = variables[: len(rule.state_specs())]
        state = tuple(keras.ops.convert_to_numpy(value) for value in variables)
        quantizers.append(activation_levels(path, rule, state, len(quantizers)))
        target = places[id(old)]
        target.__class__ = _deployed_class(type(target))
        target.__dict__["_activation_levels"] = quantizers[-1]
    return tuple(quantizers)


def reports(
    quantizers: Sequence[ActivationLevels], stored: Sequence[StoredActivations]
) -> tuple[ActivationReport, ...]:
    """Returns what the report says of each activation quantizer."""
    rows = []
    for quantizer in quantizers:
        entries = [x for x in stored if any(y is quantizer for y in x.quantizers)]
        rows.append(
            ActivationReport(
                path=quantizer.path,
                rule=quantizer.rule.name,
                levels=len(np.unique(quantizer.levels)),
                stored_as=", ".join(dict.fromkeys(x.stored_as for x in entries)),
                reason="; ".join(dict.fromkeys(x.reason for x in entries)),
            )
        )
    return tuple(rows)


def activation_levels(
    path: str, rule: ActivationRule, state: Sequence[Array], number: int
) -> ActivationLevels:
    """Returns the levels of a rule, and the lowest number of each."""
    levels = np.unique(keras.ops.convert_to_numpy(rule.levels(*state)))
    if len(levels) == 1:  # All the same; an operator needs a threshold.
        levels = np.repeat(levels, 2)
    middles = (levels[:-1].astype("f8") + levels[1:]) / 2
    low = np.full(len(middles), -_INFINITY, np.int64)
    high = -low
    shares = np.arange(_PARTS + 1)
    while np.any(high - low > 1):
        points = low[:, np.newaxis] + (high - low)[:, np.newaxis] * shares // _PARTS
        inner = _forward(rule, state, _float32(points[:, 1:-1]))
        below = np.sum(inner <= middles[:, np.newaxis], axis=1)[:, np.newaxis]
        low = np.take_along_axis(points, below, axis=1)[:, 0]
        high = np.take_along_axis(points, below + 1, axis=1)[:, 0]
    thresholds = np.clip(_float32(high), None, np.finfo(np.float32).max)
    # Smaller numbers are 0 to some processors.
    tiny = np.abs(thresholds) < _SMALLEST
    thresholds = np.where(tiny, np.where(thresholds > 0, _SMALLEST, 0.0), thresholds)
    return ActivationLevels(
        path, rule, tuple(state), number, levels, thresholds.astype(np.float32)
    )


def _forward(rule: ActivationRule, state: Sequence[Array], x: Array) -> Array:
    tensors = [keras.ops.convert_to_tensor(value, "float32") for value in state]
    x = keras.ops.convert_to_tensor(x, "float32")
    levels: Array = keras.ops.convert_to_numpy(rule.forward(x, *tensors))
    return levels


def _float32(places: Array) -> Array:
    """Returns the float32 numbers at places, counted in their order from 0."""
    bits = np.abs(places) | np.where(places < 0, 0x80000000, 0)
    return bits.astype(np.uint32).view(np.float32)


class _Deployed:
    """Mixin of the layers of a copy that quantize activations."""

    @property
    def input_rule(self) -> ActivationRule:
        return self._levels.rule

    @property
    def _levels(self) -> ActivationLevels:
        levels: ActivationLevels = self.__dict__["_activation_levels"]
        return levels

    def quantize_input(self, x: Tensor) -> Tensor:
        return self._levels(x)


def _call(self: Any, inputs: Tensor, training: bool | None = None) -> Tensor:
    return self.quantize_input(inputs)


def _deployed_class(cls: type) -> type:
    """Returns a layer class that quantizes the first argument of its call."""
    alone = issubclass(cls, QuantizedActivation)
    call = _call if alone else with_quantized_input(cls.call)  # type: ignore[attr-defined]
    return type(cls.__name__, (_Deployed, cls), {"call": call})
