"""How a configuration names the class of a float layer, and how it is looked up."""

import importlib
from typing import Any

import keras

from keras_sq.core.types import Config
from keras_sq.layers import registry

LIBRARIES = ("keras_hub", "keras_cv", "keras_nlp")
"""Packages whose modules may be imported because a file names them, as in Keras."""


def class_reference(base: type) -> Config:
    """Returns how Keras would name a class in a configuration."""
    if getattr(keras.layers, base.__name__, None) is base:
        return {
            "module": "keras.layers",
            "class_name": base.__name__,
            "registered_name": None,
        }
    return {
        "module": base.__module__,
        "class_name": base.__name__,
        "registered_name": keras.saving.get_registered_name(base),
    }


def find_class(reference: Config) -> type:
    """Returns the class that `class_reference` named.

    Raises:
        ValueError: If there is none; Keras's remedies apply to it as to any
            custom layer.
    """
    name = reference["class_name"]
    if reference["module"] == "keras.layers":
        cls = getattr(keras.layers, name, None)
    else:
        cls = keras.saving.get_registered_object(reference["registered_name"])
        cls = cls or keras.saving.get_registered_object(name)
        cls = cls or registry.known_container_base(reference)
        cls = cls or _class_of_library(reference["module"], name)
    if not isinstance(cls, type):
        raise ValueError(
            f"Could not locate the class {name!r} of a quantized layer. As "
            "for any custom layer, decorate it with @keras.saving."
            "register_keras_serializable() and import it before loading, or pass "
            f"custom_objects={{{name!r}: {name}}}."
        )
    return cls


def _class_of_library(module: Any, name: str) -> Any:
    """Returns a class of a library that Keras itself imports to read a file."""
    if str(module).split(".")[0] not in LIBRARIES:
        return None
    try:
        return vars(importlib.import_module(module)).get(name)
    except ImportError:
        return None
