"""Which layers of a model are quantized, how, and why others are not.

The first half of `quantize_model`: nothing is changed here.
"""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_sq import layers as sq_layers
from keras_sq import quantizers
from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, LayerKey, LayerKeys, Model, Overrides
from keras_sq.layers import promotion, registry
from keras_sq.layers.derived import covered_base, redefined
from keras_sq.layers.layer_keys import (
    ABSENT,
    FIRST,
    LAST,
    SMALL,
    as_keys,
    large_matrices,
    matching_paths,
    meant,
    name_of,
    override_settings,
)
from keras_sq.layers.settings import Settings

SMALL_QUANTIZER = quantizers.UniformQuantizer(4, num_levels=13)
"""Quantizer of the small layers by default.

13 levels, not 15: packed files hold them in four bits (`export/tflite/packing.py`).
"""

STAYS_FLOAT: dict[type, str] = {
    keras.layers.PReLU: "a few numbers a channel",
    keras.layers.STFTSpectrogram: "its kernels are those of a Fourier transform",
}
"""Layers of Keras with a matrix that is left alone -> why."""


@dataclasses.dataclass(frozen=True)
class LayerOutcome:
    """What `quantize_model` did with a layer that has weights itself.

    Attributes:
        path: Names of the layers above it and its name, joined by slashes.
        layer_type: Class name in the float model.
        quantizer: The quantizer as text, or `None` if the layer stays float.
        reason: Why it stays float, or an empty string.
        input_quantizer: The short name of what its input is quantized by
            (`"lq-2"`), or `None`.
    """

    path: str
    layer_type: str
    quantizer: str | None
    reason: str = ""
    input_quantizer: str | None = None


class QuantizationReport(list[LayerOutcome]):
    """What `quantize_model` did with each layer that has weights itself.

    Attributes:
        check: `"computes what the original computes"` if the copy, with its layers
            unquantized, gave the original's outputs on random inputs; `"not checked:
            "` and the reason where that could not be tried.
        kernel_sums: Check sums of the kernels at the start, see `training_signs.py`.
    """

    check: str = ""
    kernel_sums: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class PlanEntry:
    """What happens to a layer of the float model.

    Attributes:
        path: Its path; two layers may have the same.
        layer: The layer.
        settings: How it is quantized, or `None`.
        outcome: What the report says; `None` for a layer without a kernel.
    """

    path: str
    layer: Layer
    settings: Settings | None = None
    outcome: LayerOutcome | None = None


def plan_quantization(
    model: Model,
    settings: Settings,
    skip: LayerKeys | None,
    overrides: Overrides | None,
    seed: int | None = None,
) -> list[PlanEntry]:
    """Returns what happens to every layer, in the order of `layer_paths`.

    Args:
        model: A built float model.
        settings: How a layer is quantized where nothing else is said.
        skip: As in `quantize_model`.
        overrides: As in `quantize_model`.
        seed: Int from which each layer gets a seed for its masks, or `None`.

    Raises:
        ValueError: If a key matches nothing or nothing is left to quantize.
    """
    paths = sq_layers.layer_paths(model)
    default = (FIRST, LAST) if settings.input_quantizer is not None else ()
    if overrides is None:
        overrides = default_overrides(settings)

    def hits(argument: str, key: LayerKey) -> set[str]:
        matching = matching_paths(key, paths, model)
        if not matching and key not in ABSENT:
            known = [path for path, _ in paths]
            raise ValueError(
                f"Argument `{argument}` names {key!r}, which matches no layer of "
                f"model '{model.name}'. Its layers: "
                f"{checks.listed(known)}.{meant(key, known)}"
            )
        return matching

    skipped = [
        (key, hits("skip", key)) for key in as_keys(default if skip is None else skip)
    ]
    replaced = [
        (key, chosen, hits("overrides", key))
        for key, chosen in override_settings(overrides, settings)
    ]
    seeds = np.random.SeedSequence(seed).generate_state(len(paths))
    plan: list[PlanEntry] = []
    for (path, layer), layer_seed in zip(paths, seeds, strict=True):
        choice: Settings | None = settings
        reason = ""
        overridden = False
        for key, replacement, matching in replaced:
            if path in matching:
                choice, overridden = replacement, True
                reason = "" if replacement else f"overrides[{key!r}] is None"
        for key, matching in skipped:
            if path not in matching or (skip is None and overridden):
                continue
            choice, reason = None, f"named by skip={name_of(key)}"
            if skip is None:
                reason = f"{name_of(key)}, by default where inputs are quantized"
        if choice is not None and choice.input_quantizer == settings.input_quantizer:
            choice = _without_input(layer, choice)
        if choice is not None and seed is not None:
            choice = choice.replace(mask_seed=int(layer_seed >> 1))
        plan.append(_entry(path, layer, choice, reason))
    if not any(entry.settings for entry in plan):
        reasons = "; ".join(
            f"'{e.outcome.path}': {e.outcome.reason}"
            for e in plan
            if e.outcome is not None
        )
        raise ValueError(
            f"Model '{model.name}' has nothing to quantize. Layers with weights: "
            f"{reasons or 'none'}. Covered are: "
            f"{', '.join(sorted(base.__name__ for base in registry.covered()))}; "
            "others by `keras_sq.register(MyLayer, ('kernel',))`."
        )
    return plan


def default_overrides(settings: Settings) -> Overrides:
    """Returns the overrides where the caller has none.

    Low precision hurts small layers most (the first convolution, depthwise ones,
    shortcuts, the head), and there more bits cost little. If inputs are quantized, too,
    there is no default: all layers of such networks compute in one kind of arithmetic.

    Args:
        settings: What holds where nothing is overridden.
    """
    finer = SMALL_QUANTIZER
    if settings.input_quantizer is not None:
        return {}
    if settings.kernel_quantizer.num_levels >= finer.num_levels:
        return {}
    return {SMALL: finer}


def _entry(path: str, layer: Layer, choice: Settings | None, reason: str) -> PlanEntry:
    layer_type = type(layer).__name__
    if promotion.quantized_class_of(layer) is None:
        if not large_matrices(layer):
            return PlanEntry(path, layer)
        choice, reason = None, _why_not(layer)
    elif choice is not None and not layer.built:
        choice, reason = None, "was never built: the model does not call it"
    if choice is None:
        outcome = LayerOutcome(path, layer_type, None, reason)
        return PlanEntry(path, layer, outcome=outcome)
    registry.assert_supported(layer)
    quantizer, inputs = repr(choice.kernel_quantizer), choice.input_quantizer
    if inputs is not None:
        promotion.quantized_class(type(layer)).check_input_quantizer()  # type: ignore[union-attr]
    name = None if inputs is None else inputs.name
    outcome = LayerOutcome(path, layer_type, quantizer, "", name)
    return PlanEntry(path, layer, choice, outcome)


def _why_not(layer: Layer) -> str:
    """Returns why a layer with matrices stays float although it is not skipped."""
    layer_type = type(layer).__name__
    if type(layer) in STAYS_FLOAT:
        return STAYS_FLOAT[type(layer)]
    base = covered_base(type(layer))
    if base is not None:
        anew = ", ".join(f"`{name}`" for name in redefined(type(layer), base))
        return (
            f"{layer_type} is a subclass of {base.__name__} with {anew} of its own; "
            "see `keras_sq.register`"
        )
    matrices = large_matrices(layer)
    names = ", ".join(f"{v.name} {' x '.join(map(str, v.shape))}" for v in matrices)
    if not any(variable.trainable for variable in matrices):
        return f"what {layer_type} has itself is not trained ({names})"
    return f"no quantized class for {layer_type} ({names}); see `keras_sq.register`"


def _without_input(layer: Layer, choice: Settings) -> Settings:
    """Returns the settings without the input quantizer if the layer has no floats."""
    cls = promotion.quantized_class(type(layer))
    if cls is None or cls.takes_floats:  # type: ignore[attr-defined]
        return choice
    return choice.replace(input_quantizer=None)


def check_kernels(plan: list[PlanEntry]) -> None:
    """Raises if a kernel that shall be quantized is not finite.

    Raises:
        ValueError: Naming the layer.
    """
    for entry in plan:
        if entry.settings is None:
            continue
        for variable in internals.own_variables(entry.layer):
            value = keras.ops.convert_to_numpy(internals.read(variable))
            if not np.all(np.isfinite(value.astype("float32"))):
                raise ValueError(
                    f"Weight '{variable.name}' of layer '{entry.path}' holds NaN or "
                    "infinite values. Train or load the float model anew: such a "
                    "kernel has no quantization error to select by."
                )
