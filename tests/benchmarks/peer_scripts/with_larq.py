"""larq: ternary and binary kernels through its layers, and its compute engine's file.

Its ternary kernels are -1, 0 and 1 without a scale: it is for the batch norm behind
them to make up for that.
"""

import functools

import harness
import larq
import larq_compute_engine


def quantizer(method):
    """Returns a new kernel quantizer, the nearest there is to the method."""
    if method == "ternary":
        return larq.quantizers.SteTern(ternary_weight_networks=True)
    return larq.quantizers.MagnitudeAwareSign()


def make(work, method):
    """Returns the network of quantized layers, as larq's guides have them."""

    def layer(kind, *arguments, **settings):
        return kind(
            *arguments,
            kernel_quantizer=quantizer(method),
            kernel_constraint="weight_clip",
            **settings,
        )

    return work.network(
        conv=functools.partial(layer, larq.layers.QuantConv2D),
        dense=functools.partial(layer, larq.layers.QuantDense),
    )


def write(model, path, method, work):
    """Converts as Larq Compute Engine does."""
    path.write_bytes(larq_compute_engine.convert_keras_model(model))


PEER = harness.Peer(
    ("larq", "larq-compute-engine", "tensorflow", "tf-keras"), make, write
)

if __name__ == "__main__":
    harness.start(PEER)
