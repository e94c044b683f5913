"""The papers' methods by name: quantizer, selection, schedule and gradient in one.

    preset = keras_sq.presets.lq_nets(weight_bits=2, activation_bits=2)
    sq_model = preset.quantize_model(model)
    sq_model.compile("sgd", "mse")
    sq_model.fit(x, y, callbacks=preset.callbacks())

A preset holds nothing that cannot be said by hand: `settings` are arguments of
`keras_sq.quantize_model`, `schedule` and `clear_momentum` of the callback. Change
single ones in the call: `preset.quantize_model(model, granularity="element")`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_sq import callbacks, schedules
from keras_sq.conversion import quantize
from keras_sq.core import checks
from keras_sq.core.types import Model
from keras_sq.layers import masks
from keras_sq.layers.layer_keys import DOWNSAMPLING, FIRST, LAST
from keras_sq.layers.selection import SoftRefresh


@dataclasses.dataclass(frozen=True)
class Preset:
    """The choices of a method.

    Attributes:
        name: What the literature calls it.
        settings: Arguments of `keras_sq.quantize_model`.
        schedule: How the ratio grows, or `None`: everything is quantized from the
            first step on.
        clear_momentum: Whether the optimizer's state is cleared at each stage.

    Example:
        >>> preset = keras_sq.presets.get("twn")
        >>> preset.settings["kernel_quantizer"], preset.schedule, preset.callbacks()
        ('ternary', None, [])
    """

    name: str
    settings: Mapping[str, Any]
    schedule: schedules.RatioSchedule | None = None
    clear_momentum: bool = False

    def quantize_model(self, model: Model, **changes: Any) -> Model:
        """Returns the quantized model, as `keras_sq.quantize_model` does.

        Args:
            model: A built `keras.Model`; it is left alone.
            **changes: Arguments that replace or complete `settings`.

        Raises:
            TypeError: As `keras_sq.quantize_model`.
            ValueError: As `keras_sq.quantize_model`.
        """
        quantized = quantize.quantize_model(model, **{**self.settings, **changes})
        if self.schedule is None:
            masks.set_ratio(quantized, 1.0)
        return quantized

    def callbacks(self) -> list[callbacks.StochasticQuantization]:
        """Returns new callbacks for `fit`; none if all is quantized at once."""
        if self.schedule is None:
            return []
        callback = callbacks.StochasticQuantization(
            self.schedule, clear_momentum=self.clear_momentum
        )
        return [callback]


def direct(kernel_quantizer: Any = "ternary", **settings: Any) -> Preset:
    """Everything is quantized from the first step on: the baseline (BWN, TWN).

    All layers alike, the small ones too, unless `overrides` says otherwise.

    Args:
        kernel_quantizer: A quantizer or its name.
        **settings: Further arguments of `keras_sq.quantize_model`.

    Example:
        >>> keras_sq.presets.direct("binary").schedule is None
        True
    """
    chosen = {"kernel_quantizer": kernel_quantizer, "overrides": {}, **settings}
    return Preset("direct", chosen)


def stochastic(
    kernel_quantizer: Any = "ternary", schedule: Any = "short", **settings: Any
) -> Preset:
    """Stochastic quantization with any quantizer: a learned codebook, for example.

    The defaults of `keras_sq.quantize_model` and its callback under one name.

    Args:
        kernel_quantizer: A quantizer or its name.
        schedule: A ratio schedule or its name.
        **settings: Further arguments of `keras_sq.quantize_model`.

    Raises:
        ValueError: If the schedule is unknown.

    Example:
        >>> preset = keras_sq.presets.stochastic("lq-2", "average")
        >>> preset.schedule.ratios
        (0.2, 0.4, 0.6, 0.8, 1.0)
    """
    chosen = {"kernel_quantizer": kernel_quantizer, **settings}
    return Preset("sq", chosen, schedules.get(schedule))


def sq_bwn() -> Preset:
    """Binary weights by stochastic quantization, all layers, as in the paper.

    Four stages of the run at 50, 75, 87.5 and 100 %; the momentum is cleared at each.
    The paper restarts the learning rate, too: that is the optimizer's, see
    `keras_sq.learning_rates.StagewiseLearningRate`.

    Example:
        >>> keras_sq.presets.sq_bwn().settings["kernel_quantizer"]
        'binary'

    References:
        - [Dong et al., 2017](https://arxiv.org/abs/1708.01001)
    """
    return _sq("sq-bwn", "binary")


def sq_twn() -> Preset:
    """Ternary weights by stochastic quantization; see `sq_bwn`.

    Example:
        >>> keras_sq.presets.sq_twn().settings["kernel_quantizer"]
        'ternary'
    """
    return _sq("sq-twn", "ternary")


def _sq(name: str, quantizer: str) -> Preset:
    settings = {"kernel_quantizer": quantizer, "skip": (), "overrides": {}}
    return Preset(name, settings, schedules.exponential(), clear_momentum=True)


def lq_nets(weight_bits: int = 2, activation_bits: int | None = None) -> Preset:
    """Learned codebooks for weights and, if asked for, activations.

    The first and the last layer stay float, as in the paper.

    Args:
        weight_bits: Bits of a weight, 1 to 8.
        activation_bits: Bits of the inputs of quantized layers, 1 to 8, or `None`
            for float.

    Raises:
        ValueError: If a number of bits is out of its range.

    Example:
        >>> keras_sq.presets.lq_nets(2, 2).settings["input_quantizer"]
        'lq-2'

    References:
        - [Zhang et al., 2018](https://arxiv.org/abs/1807.10029)
    """
    bits = checks.integer("weight_bits", weight_bits, 1, 8)
    settings: dict[str, Any] = {
        "kernel_quantizer": f"lq-{bits}",
        "skip": (FIRST, LAST),
        "overrides": {},
    }
    if activation_bits is not None:
        bits = checks.integer("activation_bits", activation_bits, 1, 8)
        settings["input_quantizer"] = f"lq-{bits}"
    return Preset("lq-nets", settings)


def stompp(
    order: Any = "forward",
    *,
    binary_activations: bool = True,
    straight_through: bool = False,
    refresh: float = 0.01,
    ramp: float = 0.9,
) -> Preset:
    """Layer after layer, from input to output, single weights become their signs.

    In the layer whose turn it is, the part that is quantized grows as `t ** 3` from
    nothing to everything. It gets no gradient any more; the rest computes with
    `clip(w, -1, 1)`. The inputs of the layers likewise, entry by entry of the
    feature map. The first, the last and down-sampling layers stay float. For binary
    activations the network needs activations with negative values, such as
    `hard_tanh`: the sign of what a ReLU returns is always +1.

    Args:
        order: `"forward"`, `"reverse"`, `"global"`, or a list of layer names; see
            `keras_sq.schedules.Layerwise`.
        binary_activations: Whether the inputs of the layers become binary too.
        straight_through: Whether what is quantized gets a straight-through gradient
            (StoMPP+STE), for activations the clipped one.
        refresh: Part of the quantized entries that is drawn anew in a step; see
            `keras_sq.SoftRefresh`.
        ramp: Part of the run in which all of this happens, in (0, 1].

    Raises:
        ValueError: If an argument is out of its range or not known.

    Example:
        >>> preset = keras_sq.presets.stompp()
        >>> preset.settings["quantized_gradient"], preset.settings["granularity"]
        ('blocked', 'element')

    References:
        - [Smith & Islam, 2026](https://arxiv.org/abs/2601.22660)
    """
    settings: dict[str, Any] = {
        "kernel_quantizer": "sign",
        "granularity": "element",
        "probability": "constant",
        "selection": SoftRefresh(refresh),
        "full_precision": "clip",
        "quantized_gradient": "straight_through" if straight_through else "blocked",
        "skip": (FIRST, LAST, DOWNSAMPLING),
        "overrides": {},
    }
    if binary_activations:
        settings |= {"input_quantizer": "binary", "input_granularity": "element"}
    inner = schedules.cubic()
    return Preset("stompp", settings, schedules.Layerwise(inner, order, ramp=ramp))


_BY_NAME: dict[str, Callable[[], Preset]] = {
    "bwn": lambda: dataclasses.replace(direct("binary"), name="bwn"),
    "twn": lambda: dataclasses.replace(direct("ternary"), name="twn"),
    "sq-bwn": sq_bwn,
    "sq-twn": sq_twn,
    "lq-nets": lq_nets,
    "stompp": stompp,
}

NAMES = tuple(_BY_NAME)
"""What `get` knows."""


def get(identifier: Any) -> Preset:
    """Returns a preset, by its name with its defaults.

    Args:
        identifier: A `Preset` or one of `NAMES`.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> keras_sq.presets.get("sq-twn").schedule is not None
        True
    """
    if isinstance(identifier, Preset):
        return identifier
    checks.one_of("preset", identifier, NAMES)
    return _BY_NAME[identifier]()
