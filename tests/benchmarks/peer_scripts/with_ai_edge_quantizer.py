"""ai-edge-quantizer, after the training, on the file of the float network."""

import harness
from ai_edge_quantizer import quantizer, recipe

CALIBRATION = 200
"""Images for the ranges of activations; one at a time."""

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
        images = work.standardized(work.images[:CALIBRATION])
        seen = made.calibrate({name: [{given: image[None]} for image in images]})
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
