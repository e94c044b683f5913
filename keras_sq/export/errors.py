"""What is raised when a model cannot be exported, and how it reads."""

import re
from collections.abc import Iterable
from typing import Any

import keras

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model

_REASON = re.compile(r"error: .*'tf\.(\w+)' op (.*)")


class ExportError(RuntimeError):
    """A model that has no TFLite form, or a file that does not match it."""


class UnsupportedOperatorError(ExportError):
    """A file with an operator that an interpreter lacks, or not for int8.

    Args:
        message: What is wrong.
        operators: Names of the operators, as in the file.
    """

    def __init__(self, message: str, operators: Iterable[str]) -> None:
        super().__init__(message)
        self.operators = tuple(operators)


def require_tensorflow() -> None:
    """Raises if Keras runs on another backend, which the converter cannot read.

    Raises:
        ValueError: Saying what to do.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            "`keras_sq.export` needs Keras's TensorFlow backend. Received the backend "
            f"'{backend}': save the model as a .keras file, and export that in a "
            "process with the other backend: KERAS_BACKEND=tensorflow python -m "
            "keras_sq.export model.keras model.tflite"
        )


def conversion_error(
    error: Exception, model: Model, nodes: Iterable[Any] = ()
) -> ExportError:
    """Returns the converter's error, shortened, with the layer's name.

    The converter writes pages, and names the operations that it has no form for;
    which layer they come from is in the graph.

    Args:
        error: What was raised.
        model: What was to be converted.
        nodes: The `tf.Operation`s of its graph.
    """
    reasons: dict[str, str] = {}
    for operation, reason in _REASON.findall(str(error)):
        if "neither a custom op nor a flex op" in reason:
            reason = "has no builtin form"
        reasons.setdefault(operation, reason.strip())
    if not reasons:
        first = (str(error).strip().splitlines() or [""])[0]
        return ExportError(
            f"Model '{model.name}' cannot be converted to TFLite: "
            f"{type(error).__name__}: {first[:300]}"
        )
    places: dict[str, list[str]] = {operation: [] for operation in reasons}
    for node in nodes:
        layer = layer_of(node.name, model) if node.type in places else None
        if layer and layer not in places[node.type]:
            places[node.type].append(layer)
    stopped = [
        f"operation {operation} ({reason})"
        + (f" of layer {_listed(places[operation])}" if places[operation] else "")
        for operation, reason in reasons.items()
    ]
    return ExportError(
        f"Model '{model.name}' cannot become a TFLite file of builtin operations. The "
        f"converter stopped at {'; '.join(stopped[:3])}. Replace or rewrite what the "
        "layer does, or leave it out of the exported model."
    )


def layer_of(node: str, model: Model) -> str | None:
    """Returns the path of the layer that a graph node belongs to.

    A node's name starts with the names of the model and of the layers; a tensor
    of a file is named like the node that it was, or like several.
    """
    names = {layer.name for layer in internals.flatten_layers(model)}
    root, *parts = node.rstrip(";").split(";")[-1].split("/")
    # TensorFlow makes scopes unique, by the same suffix all the way down.
    suffix = root.removeprefix(model.name)
    stems = [part.removesuffix(suffix) for part in parts]
    return "/".join(part for part in stems if part in names) or None


def described(path: str, model: Model) -> str:
    """Returns a layer's path, with what it is and which function it applies.

    Args:
        path: As of `layer_of`.
        model: The model.
    """
    name = path.rpartition("/")[2]
    layers = internals.flatten_layers(model)
    layer = next((layer for layer in layers if layer.name == name), None)
    if layer is None:
        return f"'{path}'"
    function = activation_name(layer)
    of = f" with activation '{function}'" if function else ""
    return f"'{path}' ({type(layer).__name__}{of})"


def activation_name(layer: Any) -> str | None:
    """Returns the name of the function that a layer applies, but for the identity."""
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    return None if name == "linear" else name


def looping_layers(model: Model) -> str:
    """Returns the names of the layers that loop over time, for a message."""
    names = [
        layer.name
        for layer in internals.flatten_layers(model)
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    return _listed(names)


def _listed(layers: list[str]) -> str:
    more = ", ..." if len(layers) > 3 else ""
    return ", ".join(f"'{layer}'" for layer in layers[:3]) + more
