"""ai-edge-quantizer, after the training, on the file of the float network."""

import harness
from ai_edge_quantizer import quantizer, recipe

CALIBRATION = (10, 100)
"""Batches, and images in each, for the ranges of activations. They are moving averages
of what a batch has, so that of single images they come out too narrow."""

RECIPES = {
    "int4-weights": recipe.weight_only_wi4_afp32,
    # Two bits are for activations that are quantized as they come alone; as weights
    # only they are accepted, and the file is the float one.
    "int2-dynamic": recipe.dynamic_wi2c_afp32,
}
"""By method: what needs no images."""


def make(work, method):
    """Returns the float network."""
    return work.network(work.trained)


def write(model, path, method, work):
    """Quantizes the float file, with the activations for `"int8"`."""
    source = path.with_suffix(".float.tflite")
    harness.convert(model, source)
    if method == "int8":
        made = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        interpreter = harness.tf.lite.Interpreter(str(source))
        ((name, signature),) = interpreter.get_signature_list().items()
        (given,) = signature["inputs"]
        batches, size = CALIBRATION
        images = work.standardized(work.images[: batches * size])
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        seen = made.calibrate({name: [{given: part} for part in parts]})
        content = made.quantize(seen).quantized_model
    else:
        made = quantizer.Quantizer(str(source), RECIPES[method]())
        content = made.quantize().quantized_model
    path.write_bytes(content)


PEER = harness.Peer(
    ("ai-edge-quantizer", "tensorflow", "keras"),
    make,
    write,
    trains=False,
    in_file=True,
)

if __name__ == "__main__":
    harness.start(PEER)
