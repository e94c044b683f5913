"""How many bits a packed kernel takes, by the count of `summary` and `choose_bits`.

Codes in whole bits (1 for two levels, 2 for three or four) and the float32 numbers of
each filter: a scale, a learned basis or, for signs, nothing. What a file really takes
is the exporter's matter: its forms are sometimes tighter, and a file has a frame.
"""

import math

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, Variable
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.quantizers import Quantizer

FLOAT_BITS = 32
"""Of a weight or an activation that is not quantized."""


def code_bits(quantizer: Quantizer) -> int:
    """Returns the bits of a code, whole."""
    return math.ceil(math.log2(quantizer.num_levels))


def packed_bits(quantizer: Quantizer, weights: int, filters: int) -> int:
    """Returns the bits of a packed kernel, the numbers of its filters included.

    Args:
        quantizer: Of the kernel.
        weights: How many the kernel has.
        filters: How many filters these are.

    Example:
        >>> packed_bits(keras_sq.quantizers.get("ternary"), weights=90, filters=2)
        244
    """
    codes = weights * code_bits(quantizer)
    return codes + FLOAT_BITS * quantizer.numbers_per_filter * filters


def float_variables(layer: Layer) -> list[Variable]:
    """Returns what a layer has itself besides quantized kernels and their state."""
    variables = internals.own_variables(layer)
    if not isinstance(layer, StochasticallyQuantized):
        return variables
    ours = {id(v) for v in layer.quantization_state()}
    ours |= {id(layer.latent(name)) for name in layer.quantized_weights}
    return [v for v in variables if id(v) not in ours]
