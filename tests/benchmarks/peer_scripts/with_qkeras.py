"""qkeras-v3: ternary and binary kernels with automatic scales. It writes no .tflite."""

import functools

import harness
import network
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
    """Converts a plain network that has been given the quantized kernels.

    And one of its own layers, where the search for scales is in the file.
    """
    model_save_quantized_weights(model)
    harness.convert(model, own_layers(path))
    harness.convert(work.network(network.get_start(model)), path)


def own_layers(path):
    """Returns the name of the other file."""
    return path.with_suffix(".own.tflite")


def notes(model, path):
    """Returns the size of the other file."""
    size = own_layers(path).stat().st_size
    return f"converted with its own layers, the file takes {size:,} bytes"


PEER = harness.Peer(("qkeras-v3", "tensorflow", "keras"), make, write, notes=notes)

if __name__ == "__main__":
    harness.start(PEER)
