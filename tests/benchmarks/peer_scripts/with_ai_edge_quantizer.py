"""ai-edge-quantizer, after the training, on the file of the float network."""

import harness
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.qtyping import TFLOperationName

CALIBRATION = 200
"""Images for the ranges of activations; one at a time."""


def make(work, method):
    """Returns the float network."""
    return work.network(work.trained)


def write(model, path, method, work):
    """Quantizes the float file: `"int8"`, or the weights alone to fewer bits."""
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
        made = quantizer.Quantizer(str(source))
        bits = int(method.removeprefix("int").removesuffix("-weights"))
        made.add_weight_only_config(".*", TFLOperationName.ALL_SUPPORTED, bits)
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
