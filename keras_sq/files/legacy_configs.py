"""Configurations of models that Keras 2 saved, made readable for Keras 3.

Keras 3 loads most `.h5` files of Keras 2. Here is what it stumbles over in the
layers that both have: arguments that are gone, policies of another form, numbers of
nodes that are counted otherwise. Pure data in, pure data out; nothing is loaded here
(see `loading.py`), and no object is made.

Design note: **a list of what is known, and not** "drop whatever the constructor does
not take": an argument that changed what a layer computes must not be lost unnoticed.
So an argument is dropped if its value is the one that Keras 3 has without it, or if it
never mattered; any other value is an error that names the layer. Arguments were
collected by saving the layers of tf-keras 2.21 and loading them with Keras 3.15.
What stays an error: layers that only Keras 2 has, and tensors as keyword arguments of
a call (`MultiHeadAttention`).
"""

from collections.abc import Iterator
from typing import Any, Final

ANY: Final = object()
"""Of arguments that say nothing of what a loaded layer computes."""

_NO_GROUPS = {"groups": 1}
_SEPARABLE = {
    **_NO_GROUPS,
    # Those of the depthwise and the pointwise kernel count.
    "kernel_initializer": ANY,
    "kernel_regularizer": ANY,
    "kernel_constraint": ANY,
}
_RECURRENT = {"time_major": False}
_RANDOM = {"rng_type": ANY}
_SPATIAL_DROPOUT = {"trainable": ANY, "noise_shape": None}

GONE: dict[str, dict[str, Any]] = {
    **{f"DepthwiseConv{rank}D": _NO_GROUPS for rank in (1, 2)},
    **{f"Conv{rank}DTranspose": _NO_GROUPS for rank in (1, 2, 3)},
    **{f"SeparableConv{rank}D": _SEPARABLE for rank in (1, 2)},
    **{name: _RECURRENT for name in ("RNN", "SimpleRNN", "LSTM", "GRU")},
    **{f"ConvLSTM{rank}D": _RECURRENT for rank in (1, 2, 3)},
    **{f"SpatialDropout{rank}D": _SPATIAL_DROPOUT for rank in (1, 2, 3)},
    **{
        f"Random{name}": _RANDOM
        for name in (
            *("Brightness", "Contrast", "Crop", "Flip", "Height", "Rotation"),
            *("Translation", "Width", "Zoom"),
        )
    },
}
"""Layer -> argument that Keras 3 does not take -> value that may be dropped."""

_MODELS = ("Functional", "Model", "Sequential")


def is_legacy(keras_version: str | None) -> bool:
    """Whether a file names a Keras before 3, or none."""
    return keras_version is None or keras_version.split(".")[0] in ("0", "1", "2")


def modernized(config: Any) -> Any:
    """Changes a model's configuration into one that Keras 3 reads.

    Args:
        config: What Keras 2 wrote: `{"class_name": ..., "config": ...}`, as JSON is
            parsed. It is changed itself.

    Returns:
        The same object.

    Raises:
        ValueError: If a layer has an argument without counterpart in Keras 3.

    Example:
        >>> config = {
        ...     "class_name": "DepthwiseConv2D",
        ...     "config": {"name": "depthwise", "kernel_size": [3, 3], "groups": 1},
        ... }
        >>> modernized(config)["config"]
        {'name': 'depthwise', 'kernel_size': [3, 3]}
    """
    for entry in _objects(config):
        settings = entry["config"]
        _drop_arguments(entry["class_name"], settings)
        policy = settings.get("dtype")
        if _is_object(policy) and policy["class_name"] in ("Policy", "PolicyV1"):
            settings["dtype"] = policy["config"].get("name")
        if entry["class_name"] in _MODELS:
            _count_nodes_from_zero(settings)
            _say_input_shape_once(settings)
            _unwrap_single_ends(settings)
    return config


def _is_object(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), dict)
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields what has a class and settings, those inside others too."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if _is_object(entry):
            yield entry
        if isinstance(entry, dict):
            waiting.extend(entry.values())
        elif isinstance(entry, list):
            waiting.extend(entry)


def _drop_arguments(layer: str, settings: dict[str, Any]) -> None:
    for name, droppable in GONE.get(layer, {}).items():
        if name not in settings:
            continue
        value = settings.pop(name)
        if droppable is not ANY and value != droppable:
            raise ValueError(
                f"layer {str(settings.get('name'))[:60]!r} ({layer}) has "
                f"{name}={str(value)[:60]}, for which Keras 3 has no counterpart."
            )


def _count_nodes_from_zero(settings: dict[str, Any]) -> None:
    """Numbers the calls of nested models as Keras 3 does.

    A model is a layer that was called once already, when it was made. Keras 2 counts
    that call, so that its first call inside another model has the number 1.
    """
    layers = settings.get("layers")
    if not isinstance(layers, list):
        return
    nested = {
        entry.get("name"): entry["class_name"]
        for entry in layers
        if _is_object(entry) and entry["class_name"] in _MODELS
    }
    inside: list[list[Any]] = []
    for entry in layers:
        if isinstance(entry, dict):
            inside += _references(entry.get("inbound_nodes"), nested)
    outside = list(_references(settings.get("output_layers"), nested))
    counted_from = {
        name: min((x[1] for x in inside + outside if x[0] == name), default=0)
        for name in nested
    }
    for reference in inside:
        reference[1] -= min(counted_from[reference[0]], 1)
    for reference in outside:
        # Of the ends of a model, Keras 3 does so itself; but for Sequential.
        if nested[reference[0]] == "Sequential":
            reference[1] -= min(counted_from[reference[0]], 1)


def _say_input_shape_once(settings: dict[str, Any]) -> None:
    """Drops what Keras 3 warns of: shapes that the input layer has said already."""
    layers = settings.get("layers")
    if not isinstance(layers, list) or not all(_is_object(x) for x in layers):
        return
    if layers and layers[0]["class_name"] == "InputLayer":
        for entry in layers:
            if entry["class_name"] != "InputLayer":
                entry["config"].pop("batch_input_shape", None)


def _unwrap_single_ends(settings: dict[str, Any]) -> None:
    """Makes a model of one input take a tensor, where Keras 3 expects a list of one."""
    for key in ("input_layers", "output_layers"):
        ends = settings.get(key)
        if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
            settings[key] = ends[0]


def _references(value: Any, nested: dict[Any, str]) -> Iterator[list[Any]]:
    """Yields the lists [layer, number of its call, number of the output, ...]."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            waiting.extend(entry.values())
        elif isinstance(entry, list):
            if (
                len(entry) >= 3
                and isinstance(entry[0], str)
                and entry[0] in nested
                and isinstance(entry[1], int)
                and isinstance(entry[2], int)
            ):
                yield entry
            waiting.extend(entry)
