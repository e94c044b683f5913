"""Keras's own quantization, after the training, of the float network trained on."""

import functools

import harness


def make(work, method):
    """Returns the quantized network."""
    model = work.network(work.trained)
    model.quantize(method)
    return model


def notes(model, path):
    """Returns what has been left as it was, which Keras does not say."""
    left = [
        layer.name
        for layer in model.layers
        if hasattr(layer, "kernel")
        and getattr(layer.dtype_policy, "quantization_mode", None) is None
    ]
    return f"{len(left)} kernels stay float: {', '.join(left)}" if left else ""


def write(model, path, method, work):
    """Converts by Keras."""
    harness.convert(model, path)


def low_bits(mode, work):
    """Asks for fewer bits."""
    work.network(work.trained).quantize(mode)


def tries(method):
    """What is asked for besides, once."""
    modes = ("ternary", "binary") if method == "int8" else ()
    return {f'quantize("{mode}")': functools.partial(low_bits, mode) for mode in modes}


PEER = harness.Peer(
    ("keras", "tensorflow"), make, write, notes=notes, trains=False, tries=tries
)

if __name__ == "__main__":
    harness.start(PEER)
