"""Quantized kernels that `predict` and `evaluate` compute once, not in every batch.

The functions that Keras traces for them take the quantized kernels as arguments. At
each call, before it runs, the kernels come from here: computed when the latent kernel
changed since the call before, and otherwise as they were. A graph without the
quantizer's operations is also traced in the time that the float network's takes.

Design note: **why a kernel is never stale.** A quantized kernel is kept with the
tensors that it was computed from. A TensorFlow tensor does not change: whoever writes a
variable while a tensor shares its memory, be it `assign`, an optimizer or a loaded
file, has to give the variable other memory. So the variable is unchanged if, and only
if, it still has the memory of the tensor that is kept. What is compared is the address;
no content, no counter that someone has to move.

Within one call nothing may write a kernel before it is read. So this is only done where
Keras's own `predict_step` and `test_step` call the model, outside of loops and gradient
tapes, and only for variables that the function has not touched before. In every other
graph, as in one of a user's own that trains and predicts, the kernel is computed from
the variable where it is read. So it is on JAX, on devices other than the CPU, and in a
`tf.distribute` strategy.
"""

import weakref
from typing import Any

from keras_sq.core import call_values
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Tensor

_kept: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def deployed_kernel(layer: Any, name: str, dtype: str) -> Tensor | None:
    """Returns a kernel that the function being traced gets when it is called.

    Args:
        layer: A built quantized layer.
        name: One of its `quantized_weights`.
        dtype: The dtype of the result.

    Returns:
        Tensor of the kernel's shape, or `None` where the kernel must be computed in
        the function.
    """
    sources = layer.inference_sources(name)
    if not call_values.can_take_value(sources):
        return None
    if not internals.in_keras_inference():
        return None
    key, shape = (id(layer), name, dtype), tuple(layer.latent(name).shape)
    return call_values.value_at_call(
        lambda: _current(layer, name, dtype), key, shape, dtype
    )


def forget_kernels(layers: Any) -> None:
    """Frees the memory of kernels that are kept, as when training goes on."""
    for layer in layers:
        _kept.pop(layer, None)


def _current(layer: Any, name: str, dtype: str) -> Tensor:
    sources = [call_values.value_now(v) for v in layer.inference_sources(name)]
    kernels = _kept.setdefault(layer, {})
    settings = layer.quantization_settings
    known, before, kernel = kernels.get((name, dtype), (None, (), None))
    if known is settings and call_values.same_memory(before, sources):
        return kernel
    kernel = layer.inference_kernel(name, dtype, *sources)
    kernels[name, dtype] = (settings, sources, kernel)
    return kernel
