"""What a quantized layer is told: quantizer, selection, gradient, inference."""

import dataclasses
from typing import Any

from keras_sq import _checks, activation_rules, quantizers
from keras_sq.selection import Selection
from keras_sq.split_update import QUANTIZED_GRADIENTS
from keras_sq.types import Config

INFERENCE = ("quantized", "hybrid")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices of a method that a layer knows, and its seed.

    Args:
        kernel_quantizer: What a quantized filter becomes: a
            `keras_sq.quantizers.Quantizer`, or a name for `quantizers.get`.
        granularity: `"filter"`, or `"element"` for single weights.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`, see
            `keras_sq.selection`.
        selection: `"roulette"`, `"deterministic"` or `"fixed"`.
        draw: `"paper"` or `"released"`.
        quantized_gradient: `"straight_through"`,
            `"clipped_straight_through"` or `"blocked"`, see
            `keras_sq.split_update`.
        inference: `"quantized"`: outside of training the layer computes with
            the fully quantized kernel, the one that will be deployed, so that
            validation and checkpoints judge what can be shipped. `"hybrid"`:
            with the kernel of training (the curves of the paper).
        mask_seed: Int seed of the mask's draws, or `None`.
        input_quantizer: What the layer's input becomes, a name for
            `keras_sq.activation_rules.get` or a layer such as
            `LearnedActivationQuantizer(2)` (as a pattern: each quantized layer
            learns its own basis), or `None`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown.
    """

    kernel_quantizer: Any = "ternary"
    granularity: str = "filter"
    probability: str = "linear"
    selection: str = "roulette"
    draw: str = "paper"
    quantized_gradient: str = "straight_through"
    inference: str = "quantized"
    mask_seed: int | None = None
    input_quantizer: Any = None

    def __post_init__(self) -> None:
        quantizer = quantizers.get(self.kernel_quantizer)
        object.__setattr__(self, "kernel_quantizer", quantizer)
        _ = self.mask_selection
        _checks.one_of(
            "quantized_gradient", self.quantized_gradient, QUANTIZED_GRADIENTS
        )
        _checks.one_of("inference", self.inference, INFERENCE)
        if self.mask_seed is not None:
            _checks.integer("mask_seed", self.mask_seed, 0)
        if self.input_quantizer is not None:
            rule = activation_rules.get(self.input_quantizer)
            object.__setattr__(self, "input_quantizer", rule)

    @property
    def mask_selection(self) -> Selection:
        """The part of the settings that chooses what is quantized."""
        return Selection(self.granularity, self.probability, self.selection, self.draw)

    def replace(self, **changes: Any) -> "Settings":
        """Returns a copy with some settings changed."""
        unknown = sorted(set(changes) - set(names()))
        if unknown:
            raise ValueError(
                f"Unknown quantization setting {unknown[0]!r}. Known: "
                f"{', '.join(map(repr, names()))}."
                f"{_checks.did_you_mean(unknown[0], names())}"
            )
        return dataclasses.replace(self, **changes)

    def get_config(self) -> Config:
        """Returns the settings, JSON-serializable."""
        config = {name: getattr(self, name) for name in names()}
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
