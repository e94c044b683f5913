"""From a Keras model to the bytes of a TFLite file.

Design note: **how the weights get into the file.** The converter writes a file
without weights, and no error, from `from_concrete_functions([function], model)`
and from what `tf.saved_model.save(model)` saved. Keras's `ExportArchive` and
`from_saved_model` (so `model.export(format="litert")` too) work, but slowly, for
every variable costs operations that save and restore it. Here the variables hang
on a plain `tf.Module`, which works and is faster; and for up to
`MAX_CONSTANT_BYTES` the model is traced with its weights as constants, so that
there are no variables, which is faster still, but takes 25 times their size of
memory. Measured (seconds, and memory on top of the model's):

| model | ExportArchive | variables of a module | constants |
|---|---|---|---|
| MobileNetV2, alpha 0.35, 1.6 MB | 16 | 7 | 1.5 |
| ResNet50V2, 102 MB | 23, 0.9 GB | 14, 0.9 GB | 18, 2.7 GB |

Design note: **an open batch size, where the file can have one.** Loops over
time (LSTM, GRU and SimpleRNN that are not unrolled) become TensorList
operations, which TensorFlow Lite has only for a known batch size; other code loses
the number of channels with it, such as `keras.ops.repeat` in a layer of one's own.
Such a model is converted again for a batch of 1, and the report says so.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sq.core.types import Array, Model, Variable
from keras_sq.export.conversion import equivalents
from keras_sq.export.conversion.inputs import InputSignature
from keras_sq.export.errors import ExportError, conversion_error
from keras_sq.export.tflite.runtime import quiet
from keras_sq.inputs.model_inputs import flat_keys

MAX_CONSTANT_BYTES = 2**24
"""Largest size of the weights for which the graph holds them as constants."""


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


def float_file(
    model: Model, signature: InputSignature, integers: bool = False
) -> Converted:
    """Returns a model as a float32 file of builtin operations.

    Args:
        model: A plain Keras model that computes in float32.
        signature: What it takes.
        integers: Whether activations are to become int8.

    Raises:
        ExportError: If TensorFlow Lite lacks an operation of the model.
    """
    try:
        return Converted(_convert(model, signature, integers), signature)
    except ExportError as error:
        if signature.batch is not None:
            raise
        loops = "TensorList" in str(error.__cause__)
    # If this does not work either, its error is the better one: with an open batch the
    # converter stops at the first layer that it does not know the channels of.
    fixed = signature.with_batch(1)
    content = _convert(model, fixed, integers)
    reason = "loops over time need a fixed batch"
    if not loops:
        reason = "with an open batch the converter loses the shape of an activation"
    return Converted(content, fixed, (f"takes one example at a time: {reason}",))


def _convert(model: Model, signature: InputSignature, integers: bool) -> bytes:
    def converted(function: Any, holder: Any) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return bytes(converter.convert())

    return by_converter(model, signature, converted, integers)


def by_converter(
    model: Model,
    signature: InputSignature,
    converter: Callable[[Any, Any], bytes],
    integers: bool = False,
) -> bytes:
    """Returns what a converter makes of a model.

    Args:
        model: A plain Keras model that computes in float32.
        signature: What it takes.
        converter: Makes a file of a concrete function, and a `tf.Module` that holds
            the variables of the graph.
        integers: Whether activations are to become int8.

    Raises:
        ExportError: If the converter fails.
    """
    function: Any = None
    try:
        with quiet():
            # Without an object to track, the file would get no signature.
            holder = tf.Module()
            constants = []
            if _num_bytes(model) <= MAX_CONSTANT_BYTES:
                constants = [
                    (variable, keras.ops.convert_to_numpy(variable))
                    for variable in model.variables
                ]
            else:
                holder.weights = [variable.value for variable in model.variables]
            function = _trace(model, signature, constants, integers)
            return converter(function, holder)
    except Exception as error:
        nodes = function.graph.get_operations() if function else ()
        raise conversion_error(error, model, nodes) from error


def _num_bytes(model: Model) -> int:
    return sum(4 * math.prod(variable.shape) for variable in model.variables)


def _trace(
    model: Model,
    signature: InputSignature,
    constants: list[tuple[Variable, Array]],
    integers: bool,
) -> Any:
    """Returns the model's inference as a graph function.

    Args:
        model: The model.
        signature: What it takes.
        constants: Variables whose values become constants of the graph.
        integers: Whether activations are to become int8.
    """

    def serve(*flat: Any) -> dict[str, Any]:
        mapping = [(key, tf.constant(value)) for key, value in constants]
        scope = keras.StatelessScope(state_mapping=mapping)
        with scope, equivalents.used(model, integers):
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
        return [str(key) for key in flat_keys(outputs)]
    return [f"output_{index}" for index in range(count)]
