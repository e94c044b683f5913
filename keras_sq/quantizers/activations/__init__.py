"""Activation rules: what a quantized activation becomes.

| name for `get` | rule | stand-alone layer |
|---|---|---|
| `"lq-1"` … `"lq-8"` | `LearnedRule(num_bits)` | `LearnedActivationQuantizer` |
| `"lq-1-signed"` … | `LearnedRule(num_bits, signed=True)` | the same |
| `"uniform-1"` … | `UniformRule(num_bits)` | `UniformActivationQuantizer` |
| `"binary"` | `BinaryRule()` | `BinaryActivation` |

A rule is the mathematics; its state belongs to the layer that follows it: one of
the stand-alone layers of `keras_sq.layers`, or any quantized layer, by
`input_quantizer`.

Design note: **rules apart from layers.** A quantized layer could hold one of the
stand-alone layers for its input. But then copies, stripped models and the keys of
layers inside containers would all have to tell these layers from the model's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from keras_sq.core import checks, named_objects
from keras_sq.core.types import Config
from keras_sq.quantizers.activations.base import ActivationRule as ActivationRule
from keras_sq.quantizers.activations.base import StateSpec as StateSpec
from keras_sq.quantizers.activations.base import register as register
from keras_sq.quantizers.activations.binary import BinaryRule as BinaryRule
from keras_sq.quantizers.activations.learned import LearnedRule as LearnedRule
from keras_sq.quantizers.activations.uniform import UniformRule as UniformRule

_BITS = range(1, 9)
_BY_NAME: dict[str, Callable[[], ActivationRule]] = {
    "binary": BinaryRule,
    **{f"lq-{bits}": partial(LearnedRule, bits) for bits in _BITS},
    **{f"lq-{bits}-signed": partial(LearnedRule, bits, signed=True) for bits in _BITS},
    **{f"uniform-{bits}": partial(UniformRule, bits) for bits in _BITS},
}


def names() -> list[str]:
    """Returns the names that `get` knows.

    Example:
        >>> keras_sq.activation_rules.names()[:2]
        ['binary', 'lq-1']
    """
    return list(_BY_NAME)


def get(identifier: Any) -> ActivationRule:
    """Returns the rule that `identifier` stands for.

    Args:
        identifier: One of the names, an `ActivationRule`, what `serialize`
            returned, or a stand-alone layer, whose rule is taken, not its state.

    Raises:
        ValueError: If the name is unknown (the known ones are listed).
        TypeError: If it is something else altogether.

    Example:
        >>> keras_sq.activation_rules.get("lq-2")
        LearnedRule(num_bits=2, signed=False)
    """
    rule = getattr(identifier, "activation_rule", identifier)
    expected = (
        "An activation quantizer must be a name ({names}), a layer such as "
        "`keras_sq.layers.LearnedActivationQuantizer(2)` or a serialized rule."
    )
    return named_objects.lookup(
        rule, ActivationRule, _BY_NAME, deserialize, "input_quantizer", expected
    )


def serialize(rule: ActivationRule) -> Config:
    """Returns the rule as a JSON-serializable dict.

    Example:
        >>> rule = keras_sq.activation_rules.get("uniform-4")
        >>> config = keras_sq.activation_rules.serialize(rule)
        >>> keras_sq.activation_rules.deserialize(config) == rule
        True
    """
    return keras.saving.serialize_keras_object(rule)  # type: ignore[no-any-return]


def deserialize(config: Config) -> ActivationRule:
    """Returns the rule that `serialize` described.

    Raises:
        TypeError: If the dict describes something else.

    Example:
        >>> rule = keras_sq.activation_rules.get("lq-2")
        >>> config = keras_sq.activation_rules.serialize(rule)
        >>> keras_sq.activation_rules.deserialize(config).num_bits
        2
    """
    # Any rule: to mypy, an abstract class is no `type`.
    return checks.deserialized(config, ActivationRule, "an activation rule")  # type: ignore[type-abstract]
