"""Whether a quantized model was trained since it was made.

It may have been trained by `fit`, batch by batch, in a custom loop, by JAX's stateless
functions, or elsewhere and loaded. So the kernels decide: they differ from those that
`quantize_model` copied.

The report of `quantize_model` has check sums of those values. A model that was loaded
as a whole has no report; nothing is said of it.
"""

import zlib

import numpy as np
from keras import ops

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model, Variable
from keras_sq.layers import quantized_layers


def is_untrained(model: Model) -> bool:
    """Returns whether a quantized model surely was never trained.

    Drawn masks and steps of the optimizer are signs of training too: with a learning
    rate of 0, or if only other layers learn.

    Args:
        model: A built model with quantized layers.
    """
    report = getattr(model, "quantization_report", None)
    if report is None:
        return False
    optimizer = getattr(model, "optimizer", None)  # Until compiled, none.
    if optimizer is not None and int(optimizer.iterations) > 0:
        return False
    states = [
        ops.convert_to_numpy(internals.read(layer.mask_seed_generator.state))
        for _, layer in quantized_layers(model)
    ]
    # A seed and a counter of draws.
    if any(np.any(state[1:]) for state in states):
        return False
    return bool(report.kernel_sums == kernel_sums(model))


def kernel_sums(model: Model) -> list[int]:
    """Returns a check sum of each latent kernel.

    Args:
        model: A built model with quantized layers.
    """
    return [
        zlib.crc32(_bytes(layer.latent(name)))
        for _, layer in quantized_layers(model)
        for name in layer.quantized_weights
    ]


def _bytes(latent: Variable) -> memoryview:
    value = np.ascontiguousarray(ops.convert_to_numpy(internals.read(latent)))
    return value.reshape(-1).view("uint8").data
