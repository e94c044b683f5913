"""The settings of a quantized layer: quantizer, selection, gradient, inference."""

import dataclasses
import inspect
from typing import Any

from keras_sq import quantizers
from keras_sq.core import checks
from keras_sq.core.types import Config
from keras_sq.layers.selection import Selection, SoftRefresh, get_way, serialize_way
from keras_sq.layers.split_update import FULL_PRECISION, QUANTIZED_GRADIENTS
from keras_sq.quantizers import activations as activation_rules

INFERENCE = ("quantized", "hybrid")
INPUT_GRANULARITIES = ("all", "element")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices of a method that a layer knows, and its seed.

    Args:
        kernel_quantizer: What a quantized filter becomes: a
            `keras_sq.quantizers.Quantizer`, or a name for `quantizers.get`.
        granularity: `"filter"`, or `"element"` for single weights.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`, see
            `keras_sq.layers.selection`.
        selection: `"roulette"`, `"deterministic"`, `"fixed"`, `"soft_refresh"` or
            a `keras_sq.SoftRefresh`.
        draw: `"paper"` or `"released"`.
        quantized_gradient: `"straight_through"`,
            `"clipped_straight_through"` or `"blocked"`, see
            `keras_sq.layers.split_update`.
        full_precision: What the part computes with that is not quantized:
            `"identity"`, the weight itself, or `"clip"`, the weight limited to
            [-1, 1]; see `keras_sq.layers.split_update`.
        inference: `"quantized"`: outside of training the layer computes with
            the fully quantized kernel, the one that will be deployed, so that
            validation and checkpoints judge what can be shipped. `"hybrid"`:
            with the kernel of training (the curves of the paper).
        mask_seed: Int seed of the mask's draws, or `None`.
        input_quantizer: What the layer's input becomes, a name for
            `keras_sq.activation_rules.get` or a layer such as
            `LearnedActivationQuantizer(2)` (as a pattern: each quantized layer
            learns its own basis), or `None`.
        input_granularity: `"all"`: the whole input is quantized at every step.
            `"element"`: a mask of the feature map (all axes of the layer's input
            but the batch) says which entries are, for all examples alike, and
            grows with that of the kernel; see `keras_sq.layers.inputs`. Without an
            `input_quantizer` this has no effect.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown, or `selection="deterministic"` goes with
            element-wise inputs, which have no errors to sort by.

    Example:
        >>> settings = keras_sq.layers.Settings(kernel_quantizer="lq-2")
        >>> settings.replace(granularity="element").granularity
        'element'
    """

    kernel_quantizer: Any = "ternary"
    granularity: str = "filter"
    probability: str = "linear"
    selection: str | SoftRefresh = "roulette"
    draw: str = "paper"
    quantized_gradient: str = "straight_through"
    full_precision: str = "identity"
    inference: str = "quantized"
    mask_seed: int | None = None
    input_quantizer: Any = None
    input_granularity: str = "all"

    def __post_init__(self) -> None:
        quantizer = quantizers.get(self.kernel_quantizer)
        object.__setattr__(self, "kernel_quantizer", quantizer)
        object.__setattr__(self, "selection", get_way(self.selection))
        _ = self.mask_selection
        checks.one_of(
            "quantized_gradient", self.quantized_gradient, QUANTIZED_GRADIENTS
        )
        checks.one_of("full_precision", self.full_precision, FULL_PRECISION)
        checks.one_of("inference", self.inference, INFERENCE)
        if self.mask_seed is not None:
            checks.integer("mask_seed", self.mask_seed, 0)
        if self.input_quantizer is not None:
            rule = activation_rules.get(self.input_quantizer)
            object.__setattr__(self, "input_quantizer", rule)
        checks.one_of("input_granularity", self.input_granularity, INPUT_GRANULARITIES)
        if self.masks_input and self.selection == "deterministic":
            raise ValueError(
                'Argument `input_granularity="element"` needs a way of selecting that '
                'looks at no errors, such as "roulette" or "soft_refresh": the entries '
                "of a feature map have none. Received: selection='deterministic'"
            )

    @property
    def masks_input(self) -> bool:
        """Whether a mask says which entries of the input are quantized."""
        return self.input_quantizer is not None and self.input_granularity == "element"

    @property
    def mask_selection(self) -> Selection:
        """The part of the settings that chooses what is quantized."""
        return Selection(self.granularity, self.probability, self.selection, self.draw)

    @property
    def input_selection(self) -> Selection:
        """How the quantized entries of a masked input are chosen.

        As those of the kernel, but all with the same probability: a feature map
        changes with the example, so its entries have no errors.
        """
        return Selection("element", "constant", self.selection, "paper")

    def replace(self, **changes: Any) -> "Settings":
        """Returns a copy with some settings changed."""
        unknown = sorted(set(changes) - set(names()))
        if unknown:
            raise ValueError(
                f"Unknown quantization setting {unknown[0]!r}. Known: "
                f"{', '.join(map(repr, names()))}."
                f"{checks.did_you_mean(unknown[0], names())}"
            )
        return dataclasses.replace(self, **changes)

    def get_config(self) -> Config:
        """Returns the settings, JSON-serializable."""
        config = {name: getattr(self, name) for name in names()}
        config["selection"] = serialize_way(self.selection)
        config["kernel_quantizer"] = quantizers.serialize(self.kernel_quantizer)
        if self.input_quantizer is not None:
            config["input_quantizer"] = activation_rules.serialize(self.input_quantizer)
        return config


def names() -> list[str]:
    """Returns the names of all settings, in order."""
    return [field.name for field in dataclasses.fields(Settings)]


def split(arguments: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Returns the settings among keyword arguments, and the other arguments."""
    known = set(names())
    ours = {key: value for key, value in arguments.items() if key in known}
    rest = {key: value for key, value in arguments.items() if key not in known}
    return Settings(**ours), rest


def constructor_signature(float_class: type) -> inspect.Signature:
    """Returns a Keras layer's constructor signature plus our settings."""
    signature = inspect.signature(float_class.__init__)  # type: ignore[misc]
    float_ones = list(signature.parameters.values())[1:]
    extra = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(Settings).parameters.values()
    ]
    variable = [p for p in float_ones if p.kind is inspect.Parameter.VAR_KEYWORD]
    plain = [p for p in float_ones if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return inspect.Signature([*plain, *extra, *variable])
