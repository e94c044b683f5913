"""From a Keras model to the bytes of a float TFLite file.

Design note: **weights as constants.** The model is traced with its weights put in
as constants, so that no variable is left for the converter to find: it writes
a file without weights, and no error, from `from_concrete_functions([function],
model)` and from what `tf.saved_model.save(model)` saved. The way that works with
variables, Keras's `ExportArchive` and `from_saved_model` (also inside
`model.export(format="litert")`), takes 16 s for a MobileNetV2 where this takes
1.2 s: a SavedModel gets operations for every variable, to save and to restore it.

Design note: **an open batch size, where the file can have one.** Loops over
time (LSTM, GRU and SimpleRNN that are not unrolled) become TensorList
operations, which TensorFlow Lite has only for a known batch size. Such a model
is converted again for a batch of 1, and the report says so.
"""

import dataclasses
from typing import Any

import keras

from keras_sq.export.errors import ExportError, conversion_error
from keras_sq.export.inputs import InputSignature
from keras_sq.export.runtime import quiet
from keras_sq.types import Model


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        content: The bytes of the file.
        signature: What the file takes; its batch size may have been fixed.
        notes: What the user should know of it.
    """

    content: bytes
    signature: InputSignature
    notes: tuple[str, ...] = ()


def float_file(model: Model, signature: InputSignature) -> Converted:
    """Returns a model as a float32 file of builtin operations.

    Args:
        model: A plain Keras model that computes in float32.
        signature: What it takes.

    Raises:
        ExportError: If TensorFlow Lite lacks an operation of the model.
    """
    try:
        return Converted(_convert(model, signature), signature)
    except ExportError as error:
        if signature.batch is not None or "TensorList" not in str(error.__cause__):
            raise
    fixed = signature.with_batch(1)
    note = "takes one example at a time: loops over time need a fixed batch"
    return Converted(_convert(model, fixed), fixed, (note,))


def _convert(model: Model, signature: InputSignature) -> bytes:
    import tensorflow as tf

    function: Any = None
    try:
        with quiet():
            function = _trace(model, signature)
            # With a module the file gets a signature, though it holds nothing.
            converter = tf.lite.TFLiteConverter.from_concrete_functions(
                [function], tf.Module()
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            return bytes(converter.convert())
    except Exception as error:
        nodes = function.graph.get_operations() if function else ()
        raise conversion_error(error, model, nodes) from error


def _trace(model: Model, signature: InputSignature) -> Any:
    """Returns the model's inference as a graph function without variables."""
    import tensorflow as tf

    values = [keras.ops.convert_to_numpy(variable) for variable in model.variables]

    def serve(*flat: Any) -> dict[str, Any]:
        constants = zip(model.variables, map(tf.constant, values), strict=True)
        with keras.StatelessScope(state_mapping=constants):
            outputs = model(signature.pack(flat), training=False)
        tensors = keras.tree.flatten(outputs)
        return dict(zip(output_names(outputs), tensors, strict=True))

    specs = [
        tf.TensorSpec(entry.shape, entry.dtype, entry.name)
        for entry in signature.inputs
    ]
    function = tf.function(serve, input_signature=specs, autograph=False)
    return function.get_concrete_function()


def output_names(outputs: Any) -> list[str]:
    """Returns the outputs' names in the file, in the order of flattening.

    The keys of a dict of tensors, else `output_0`, `output_1`...
    """
    count = len(keras.tree.flatten(outputs))
    if isinstance(outputs, dict) and len(outputs) == count:
        return [str(key) for key in sorted(outputs)]
    return [f"output_{index}" for index in range(count)]
