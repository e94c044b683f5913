"""qkeras-v3: ternary and binary kernels with automatic scales. It writes no .tflite."""

import functools

import harness
import qkeras
from qkeras.utils import model_save_quantized_weights


def make(work, method):
    """Returns the network of its layers."""

    def layer(kind, *arguments, **settings):
        new = getattr(qkeras, method)(alpha="auto")
        return kind(*arguments, kernel_quantizer=new, **settings)

    return work.network(
        conv=functools.partial(layer, qkeras.QConv2D),
        dense=functools.partial(layer, qkeras.QDense),
    )


def write(model, path, method, work):
    """Converts by Keras, once the kernels hold their quantized values."""
    model_save_quantized_weights(model)
    harness.convert(model, path)


PEER = harness.Peer(("qkeras-v3", "tensorflow", "keras"), make, write)

if __name__ == "__main__":
    harness.start(PEER)
