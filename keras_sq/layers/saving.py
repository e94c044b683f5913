"""How quantized layers save and load.

Dense, EinsumDense, Embedding and the convolutions save `self.kernel` and the bias,
and nothing else. With the descriptor that would lose the mask and *overwrite the
latent kernel by the quantized one*. So quantized layers save as the base class of all
layers does: every variable, in order. A class with saving methods, such as one that
keeps a table beside its weights, still uses them, with the latent variables for
kernels; the variables that quantization adds are saved under keys of this package.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_sq.core.types import Layer
from keras_sq.layers.hybrid_kernel import latents_held

STATE = "keras_sq_state_"
"""Begins the keys of what quantization adds to a class that saves by itself."""

_VARIABLES_ALONE = (
    keras.layers.Layer,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
    *(
        base
        for base in keras.layers.Conv1D.__mro__[1:]
        if "load_own_variables" in base.__dict__
    ),
)
"""Classes that save and load their variables and nothing else."""


def loads_in_its_own_way(cls: type) -> bool:
    """Whether a class of layers does more than load its variables."""
    method = inspect.getattr_static(cls, "load_own_variables")
    return not any(
        base.__dict__.get("load_own_variables") is method for base in _VARIABLES_ALONE
    )


def saving_methods(base: type) -> tuple[Callable[..., None], Callable[..., None]]:
    """Returns `save_own_variables` and `load_own_variables` of a quantized class.

    Args:
        base: The Keras class that it is made of.
    """
    if not loads_in_its_own_way(base):
        plain = keras.layers.Layer
        return plain.save_own_variables, plain.load_own_variables

    def save_own_variables(self: Layer, store: Any) -> None:
        with latents_held([self]):
            base.save_own_variables(self, store)  # type: ignore[attr-defined]
        for index, variable in enumerate(self.quantization_state()):
            store[f"{STATE}{index}"] = variable

    def load_own_variables(self: Layer, store: Any) -> None:
        plain = [key for key in store.keys() if not key.startswith(STATE)]
        with latents_held([self]):
            base.load_own_variables(self, {key: store[key] for key in plain})  # type: ignore[attr-defined]
        for index, variable in enumerate(self.quantization_state()):
            variable.assign(store[f"{STATE}{index}"])

    return save_own_variables, load_own_variables


def deployed_store(layer: Layer) -> dict[str, Any]:
    """Returns what the Keras class of a quantized layer saves of it.

    With the quantized kernels for the latent ones, and without what quantization
    added.

    Args:
        layer: A quantized layer.
    """
    store: dict[str, Any] = {}
    type(layer).float_class.save_own_variables(layer, store)
    added = {id(variable) for variable in layer.quantization_state()}
    kernels = {id(layer.latent(name)): name for name in layer.quantized_weights}
    kept: dict[str, Any] = {}
    for key, value in store.items():
        if id(value) in added:
            continue
        if key.isdecimal():  # All variables in order, as the base class has them.
            key = str(sum(other.isdecimal() for other in kept))
        name = kernels.get(id(value))
        kept[key] = value if name is None else layer.quantized_kernel(name)
    return kept
