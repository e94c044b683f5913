"""What stands in for a kernel's attribute, and kernels that are held for a while.

A kernel that is held is handed out as it is: a recurrent layer's for all of its time
steps, and the latent ones where a quantized layer shall be the Keras layer that it was
made of. Held per thread: replicas trace side by side.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras import ops

from keras_sq.core import keras_internals as internals
from keras_sq.layers.inputs import inputs_quantized

_held = threading.local()


class HybridKernel:
    """The descriptor that stands in for a kernel's attribute.

    What it returns has an `assign` where the backend's tensors take attributes: as
    that of a Keras layer's kernel, it sets the latent variable.

    Args:
        name: The attribute; the latent variable is stored with a leading
            underscore, where Dense and the convolutions keep theirs anyway.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        if f"_{self.name}" not in layer.__dict__:
            raise AttributeError(
                f"You must build the layer before accessing `{self.name}` "
                f"(layer '{layer.name}')."
            )
        kernel = layer.kernel_to_compute_with(self.name)
        if internals.call_under_way() is None and not hasattr(kernel, "assign"):
            # JAX's arrays take no attributes.
            with contextlib.suppress(AttributeError):
                kernel.assign = layer.latent(self.name).assign
        return kernel

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__[f"_{self.name}"] = value


def held_kernel(layer: Any, name: str) -> Any:
    """Returns the kernel that is held for a layer in this thread, or `None`."""
    return getattr(_held, "kernels", {}).get((id(layer), name))


def kernels_held(layers: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """Computes the kernels of quantized layers once for all calls within.

    A recurrent layer calls its cell in a loop; reading the kernel there would
    quantize it at every time step (2.2 times the float step for an LSTM of 128
    units over 40 steps).
    """
    return _holding(layers, lambda layer, name: layer.kernel_to_compute_with(name))


def latents_held(layers: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """Within, the kernels of quantized layers are their latent variables."""
    return _holding(layers, lambda layer, name: layer.latent(name))


@contextlib.contextmanager
def computing_float(layers: Iterable[Any]) -> Iterator[None]:
    """Within, quantized layers compute what the Keras layers they were made of do.

    As at ratio 0 in training, inputs included. For calls that do not train.
    """
    layers = list(layers)

    def latent(layer: Any, name: str) -> Any:
        return ops.cast(internals.read(layer.latent(name)), layer.compute_dtype)

    with _holding(layers, latent), inputs_quantized(layers):
        yield


@contextlib.contextmanager
def _holding(
    layers: Iterable[Any], kernel: Callable[[Any, str], Any]
) -> Iterator[None]:
    before = getattr(_held, "kernels", {})
    new = {
        (id(layer), name): kernel(layer, name)
        for layer in layers
        for name in layer.quantized_weights
    }
    _held.kernels = {**before, **new}
    try:
        yield
    finally:
        _held.kernels = before
