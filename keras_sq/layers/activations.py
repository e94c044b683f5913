"""Layers that quantize activations and do nothing else.

`keras_sq.activation_rules` has their rules. To quantize the input of a
single layer, give a quantized layer an `input_quantizer` instead.
"""

from typing import Any

import keras

from keras_sq.core.types import Config, Tensor, Variable
from keras_sq.layers.inputs import add_rule_state, follow_rule
from keras_sq.quantizers.activations import (
    ActivationRule,
    BinaryRule,
    LearnedRule,
    UniformRule,
)


class QuantizedActivation(keras.layers.Layer):
    """Base of the layers that quantize activations by a rule.

    Args:
        rule: The rule.
        **kwargs: As for `keras.layers.Layer`.
    """

    activation_rule: ActivationRule

    def __init__(self, rule: ActivationRule, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation_rule = rule
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Creates what the rule learns."""
        # Past Keras's tracking of lists, which has the variables already.
        self.__dict__["_rule_state"] = add_rule_state(self, self.activation_rule, "")

    def rule_state(self) -> list[Variable]:
        """Returns the variables of the rule, once the layer is built."""
        return list(self.__dict__.get("_rule_state", ()))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the quantized activations."""
        return follow_rule(
            self.activation_rule,
            self.rule_state(),
            inputs,
            bool(training),
            self.name,
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {**super().get_config(), **self.activation_rule.get_config()}


@keras.saving.register_keras_serializable("keras_sq")
class LearnedActivationQuantizer(QuantizedActivation):
    """Maps activations to `2**num_bits` levels that follow their distribution.

    The levels are all sums of a part of the layer's basis `v`, so the lowest is 0
    as long as `v` is not negative: meant for what comes out of a ReLU. Where
    activations have both signs, as in transformers and behind linear layers, take
    `signed=True`: then all of `v` is added or subtracted.

    Forward:  the level nearest to `x`. **Negative activations become the lowest
    level**, which is 0 unless `signed`. NaN stays NaN.
    Backward: `upstream` where `x <= highest level` (and, if `signed`, `x >= lowest
    level`), else 0.
    Learning: at each training step `v` moves towards the least squares basis of
    the batch, all its activations together (those of padding too), as a
    bias-corrected moving average (decay 0.9). At inference it stays. A layer that
    is called twice in a step learns twice. Replicas of a distributed model take
    the mean of what each learns. A batch with NaN or infinity teaches nothing.

    Meant for few bits: on the positive half of a normal distribution its squared
    error is 0.22, 0.45 and 0.78 times that of an even grid up to the largest value
    for 1, 2 and 3 bits, but 1.9 times for 4 and more beyond, where the alternation
    stops in a poor local minimum. There, take `UniformActivationQuantizer`.

    Args:
        num_bits: Int from 1 to 8.
        signed: Bool: whether levels lie on both sides of 0.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        TypeError: If an argument has the wrong type, or the layer is called on
            integers.
        ValueError: If `num_bits` is out of its range.

    Example:
        >>> layer = keras_sq.layers.LearnedActivationQuantizer(1)
        >>> layer(keras.ops.array([-2.0, 0.5, 3.0])).numpy().round(3)
        array([0.   , 0.   , 1.349], dtype=float32)

    References:
        - [Zhang et al., 2018, section 3](https://arxiv.org/abs/1807.10029)
    """

    def __init__(self, num_bits: int, signed: bool = False, **kwargs: Any) -> None:
        super().__init__(LearnedRule(num_bits, signed), **kwargs)

    @property
    def basis(self) -> Variable:
        """The basis, float32 `(num_bits,)`, not trained by gradients."""
        return self.rule_state()[0]


@keras.saving.register_keras_serializable("keras_sq")
class UniformActivationQuantizer(QuantizedActivation):
    """Maps activations to `2**num_bits` levels from 0 to `clip`, evenly spaced.

    Forward:  `q = step * round(min(max(x, 0), clip) / step)`,
    `step = clip / (2**num_bits - 1)`; halves round to even. **Negative activations
    become 0.** NaN stays NaN.
    Backward: `upstream` where `0 <= x < clip`, else 0. If the clip is learned, its
    gradient is the sum of `upstream` where `x >= clip`.

    Args:
        num_bits: Int from 1 to 8.
        clip: Float above 0: the top level, where it starts if learned. DoReFa is
            `clip=1.0, learned=False`.
        learned: Bool: whether the clip is a weight (PACT).
        l2: Float, not negative: factor of PACT's loss `l2 * clip**2`.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        TypeError: If an argument has the wrong type, or the layer is called on
            integers.
        ValueError: If an argument is out of its range.

    Example:
        >>> layer = keras_sq.layers.UniformActivationQuantizer(2, clip=3.0)
        >>> layer(keras.ops.array([-1.0, 0.6, 2.4, 9.0])).numpy().tolist()
        [0.0, 1.0, 2.0, 3.0]

    References:
        - [Zhou et al., 2016, section 2.4](https://arxiv.org/abs/1606.06160)
        - [Choi et al., 2018, section 3](https://arxiv.org/abs/1805.06085)
    """

    def __init__(
        self,
        num_bits: int,
        clip: float = 6.0,
        learned: bool = True,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(UniformRule(num_bits, clip, learned, l2), **kwargs)


@keras.saving.register_keras_serializable("keras_sq")
class BinaryActivation(QuantizedActivation):
    """Maps activations to their signs, with +1 for 0.

    Forward:  `q = +1 if x >= 0 else -1`. NaN stays NaN.
    Backward: `upstream` where `|x| <= 1`, else 0 (clipped straight-through).

    Args:
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        TypeError: If the layer is called on integers.

    Example:
        >>> layer = keras_sq.layers.BinaryActivation()
        >>> layer(keras.ops.array([-0.5, 0.0, 2.0])).numpy().tolist()
        [-1.0, 1.0, 1.0]

    References:
        - [Hubara et al., 2016, section 1.3](https://arxiv.org/abs/1602.02830)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(BinaryRule(), **kwargs)

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        config = super().get_config()
        del config["num_bits"]
        return config
