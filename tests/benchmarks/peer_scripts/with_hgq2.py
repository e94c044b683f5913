"""HGQ2: ternary kernels, and its default, bits learned weight by weight.

It is for FPGAs: its files are hls4ml's and da4ml's. Its scales are powers of two; that
of a ternary kernel is the nearest to the scale of ternary weight networks, as its
quantizers have none that follows the kernel.
"""

import contextlib
import functools

import harness
import numpy as np
from hgq.config import LayerConfigScope, QuantizerConfig, QuantizerConfigScope
from hgq.layers import QConv2D, QDense
from hgq.utils import trace_minmax

BETA = 1e-5
"""Of the cost of bits, as in its README."""


def ternary(kernel):
    """Returns a quantizer's settings: one bit beside the sign, fixed."""
    size = np.abs(kernel)
    scale = size[size > 0.7 * size.mean()].mean()
    # Values are the multiples of 2 ** (i - b), up to 2 ** i, which is left out.
    return QuantizerConfig(
        "kbi",
        "weight",
        k0=True,
        b0=1,
        i0=1 + int(np.rint(np.log2(scale))),
        overflow_mode="SAT_SYM",
        bc=None,
        br=None,
        trainable=False,
        homogeneous_axis=tuple(range(kernel.ndim)),
    )


def make(work, method):
    """Returns the network of its layers."""

    def layer(kind, *arguments, name, **settings):
        if method == "ternary":
            settings["kq_conf"] = ternary(work.start[f"{name}/kernel"])
            settings["enable_iq"] = False
        return kind(*arguments, name=name, **settings)

    with contextlib.ExitStack() as scopes:
        if method == "default":
            for scope in (
                QuantizerConfigScope(place="all", default_q_type="kbi"),
                QuantizerConfigScope(place="datalane", default_q_type="kif"),
                LayerConfigScope(enable_ebops=True, beta0=BETA),
            ):
                scopes.enter_context(scope)
        return work.network(
            conv=functools.partial(layer, QConv2D),
            dense=functools.partial(layer, QDense),
        )


def deployed(model, method, work):
    """Fixes the ranges of activations, where they are quantized."""
    if method == "default":
        trace_minmax(model, work.standardized(work.images[:2000]), verbose=False)
    return model


def write(model, path, method, work):
    """Converts by Keras; it has no way of its own."""
    harness.convert(model, path)


def binary(work):
    """Asks for a kernel of two values, with no bit beside the sign."""
    quantizer = QuantizerConfig("binary", "weight")
    return QConv2D(8, 3, kq_conf=quantizer)(work.standardized(work.images[:1]))


PEER = harness.Peer(
    ("HGQ2", "tensorflow", "keras"),
    make,
    write,
    deployed=deployed,
    tries=lambda method: {"binary kernels": binary} if method == "ternary" else {},
)

if __name__ == "__main__":
    harness.start(PEER)
