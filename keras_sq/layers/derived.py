"""Quantized classes that are created on demand.

They serve two kinds of layer classes that are not registered:

- **Subclasses of a covered class that compute as it does.** They override only names in
  `HARMLESS` (a constructor, a configuration) and add new ones. `build` and `call` are
  those of the covered class, so the kernel is used in the same way. keras-hub's
  `ReversibleEmbedding` is an example. A subclass that overrides `call` or `build` may
  do anything with the kernel: its author must allow it by `keras_sq.register`.
- **Layers of keras-hub that have weights themselves**, by the table `ELSEWHERE`. The
  table has their module and name, so keras-hub need not be installed. All other layers
  of keras-hub consist of Keras layers and need no entry.

Their quantized classes are saved under one registered name, with a reference to the
float class, as containers are. Reading the file requires the float class only.
"""

from typing import Any, NamedTuple

import keras

from keras_sq.core.types import Config, Layer
from keras_sq.layers import registry
from keras_sq.layers import settings as settings_module
from keras_sq.layers.class_references import class_reference, find_class
from keras_sq.layers.quantized import StochasticallyQuantized

FLOAT_LAYER = "float_layer"
"""The key of a configuration under which the float layer is described."""

HARMLESS = frozenset(
    {
        "__init__",
        "__signature__",
        "compute_mask",
        "compute_output_shape",
        "compute_output_spec",
        "from_config",
        "get_config",
        "supports_masking",
    }
)
"""Names that a subclass may override and still compute as its base class does."""


class Elsewhere(NamedTuple):
    """What is quantized of a layer class of another package.

    Attributes:
        weights: Names of the attributes.
        filter_axes: The axes of each that tell its filters apart.
        optional: Whether there are such layers without the weights.
    """

    weights: tuple[str, ...]
    filter_axes: tuple[int, ...]
    optional: bool = False


_EXPERTS = tuple(
    f"_expert_feedforward_{name}_dense" for name in ("gate", "intermediate", "output")
)

ELSEWHERE: dict[tuple[str, str], Elsewhere] = {
    ("keras_hub", "PositionEmbedding"): Elsewhere(("position_embeddings",), (0,)),
    ("keras_hub", "RelativeEmbedding"): Elsewhere(("rel_embeddings",), (0,)),
    # Its own kernel only where it is not given the token embedding's.
    ("keras_hub", "MaskedLMHead"): Elsewhere(("_kernel",), (1,), optional=True),
    # Those of Qwen have gate and intermediate kernel in one.
    ("keras_hub", "MixtralMoeExperts"): Elsewhere(_EXPERTS, (0, 2)),
    ("keras_hub", "QwenMoeExperts"): Elsewhere(_EXPERTS[::2], (0, 2)),
    ("keras_hub", "Qwen3MoeExperts"): Elsewhere(_EXPERTS[::2], (0, 2)),
}
"""`(package, class)` -> what is quantized. A table has a filter a row."""

_derived: dict[type, type] = {}


def name_elsewhere(layer_class: type) -> tuple[str, str]:
    """Returns the package and the name of a class, as the keys of `ELSEWHERE`."""
    return layer_class.__module__.split(".")[0], layer_class.__name__


@keras.saving.register_keras_serializable(registry.PACKAGE)
class QuantizedSubclass:
    """Mixin of the classes that are created on demand: saves and loads them."""

    def get_config(self) -> Config:
        """Returns the float layer's class and configuration, and the settings."""
        base = type(self).float_class  # type: ignore[attr-defined]
        float_layer = class_reference(base) | {"config": self.float_config()}  # type: ignore[attr-defined]
        chosen = self.quantization_settings.get_config()  # type: ignore[attr-defined]
        return {FLOAT_LAYER: float_layer, **chosen}

    @classmethod
    def from_config(cls, config: Config) -> Layer:
        """Returns the layer that `get_config` described.

        Raises:
            ValueError: If the class named has no quantized one.
        """
        reference = config.get(FLOAT_LAYER)
        if not isinstance(reference, dict):
            raise ValueError(
                "The configuration of a quantized layer must name the class of its "
                f"float layer under {FLOAT_LAYER!r}. Received: {reference!r}"
            )
        chosen = {k: v for k, v in config.items() if k in settings_module.names()}
        base = find_class(reference)
        quantized = issubclass(base, keras.layers.Layer) and derived_class(base)
        if not quantized:
            raise ValueError(
                f"The configuration of a quantized layer names {base.__name__!r}, "
                "which does not compute as a covered layer does. Was the class "
                "changed since? See `keras_sq.register`."
            )
        return super(QuantizedSubclass, quantized).from_config(  # type: ignore[misc]
            {**reference["config"], **chosen}
        )


def derived_class(layer_class: type) -> type | None:
    """Returns the quantized class derived for a layer class, or `None`."""
    if layer_class not in _derived:
        derived = _make(layer_class)
        if derived is None:
            return None
        _derived[layer_class] = derived
    return _derived[layer_class]


def _make(layer_class: type) -> type | None:
    known = ELSEWHERE.get(name_elsewhere(layer_class))
    if issubclass(layer_class, StochasticallyQuantized):
        return None
    if known is not None:
        attributes: dict[str, Any] = {
            "quantized_weights": known.weights,
            "optional_weights": known.weights if known.optional else (),
            "takes_floats": False,
            "filter_axes": lambda layer, name: known.filter_axes,
        }
        return _class(layer_class, StochasticallyQuantized, attributes)
    base = covered_base(layer_class)
    if base is None or redefined(layer_class, base):
        return None
    return _class(layer_class, registry.covered()[base], {})


def covered_base(layer_class: type) -> type | None:
    """Returns the class with a quantized one that a class is derived from, if any."""
    covered = registry.covered()
    return next((base for base in layer_class.__mro__ if base in covered), None)


def redefined(layer_class: type, base: type) -> list[str]:
    """Returns the names that a class overrides and that may change the computation."""
    between = layer_class.__mro__[: layer_class.__mro__.index(base)]
    covered = registry.covered().get(base)
    weights = getattr(covered, "quantized_weights", ())
    plain = {"__slots__", *dir(object), *dir(type("_", (), {}))} - {"__init__"}
    return sorted(
        name
        for cls in between
        for name in vars(cls)
        if (hasattr(base, name) or name.removeprefix("_") in weights)
        and name not in HARMLESS | plain
        # What Keras's decorators and Python's compiler leave behind.
        and not name.startswith(("_api_export", "__annot", "__static", "__first"))
    )


def _class(layer_class: type, base: type, attributes: Config) -> type:
    cls = registry.new_class(layer_class, (QuantizedSubclass, base), attributes)
    registry.save_under_name_of(QuantizedSubclass, cls)
    return cls
