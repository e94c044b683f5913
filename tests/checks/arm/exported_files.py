"""The files that `arm_files.py` runs: of every kind, of small networks, and INT2.

`export_small` writes what `keras_sq.export` makes of a dense, a convolutional and a
depthwise network with binary, ternary and 4-bit weights. `export_large` writes one
dense network of 7.4 million weights, to count instructions.

Both add files that `export` may not write itself, with FULLY_CONNECTED on codes: of
"int8" files with kernels of two or three levels as INT2 (`with_int2_kernels`), of
"fast", "int2" and "int4" files without the DEQUANTIZE (`with_direct_kernels`), for
which the runtime rounds activations to int8, row by row.
"""

import keras
import numpy as np
from keras import layers

import keras_sq
from keras_sq.export import kinds
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, indices, shape_of
from keras_sq.export.tflite.packing import pack_bits

EXAMPLES = 100
VERSION = 14
"""Version of FULLY_CONNECTED that has INT2 kernels."""


def networks():
    """Returns name -> network."""
    dense = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(96, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    image = keras.Input((12, 12, 8))
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(image)
    x = layers.Conv2D(48, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    convolutions = keras.Model(image, layers.Dense(12)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, activation="relu")(image)
    x = layers.Conv2D(32, 1, activation="relu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    depthwise = keras.Model(image, layers.Dense(12)(x))
    return {"dense": dense, "convolutions": convolutions, "depthwise": depthwise}


def quantizers():
    """Returns name -> quantizer."""
    return {
        "binary": keras_sq.quantizers.BinaryQuantizer(),
        "ternary": keras_sq.quantizers.TernaryQuantizer(),
        "4 bits": keras_sq.quantizers.UniformQuantizer(4, num_levels=13),
    }


def cases():
    """Returns case -> target, and whether it gets representative data."""
    every = {}
    for name, kind in kinds.KINDS.items():
        if kind.single:
            continue
        every[name] = (name, kind.needs_examples)
        if kind.int8_activations and not kind.needs_examples:
            every[f"{name}, int8"] = (name, True)
    return every


def export_small(folder, inputs=4):
    """Writes all files of the small networks, and inputs for them.

    Args:
        folder: Where to.
        inputs: How many examples there are to run each on.

    Returns:
        Name of the file -> network, quantizer and case.
    """
    keras.utils.set_random_seed(0)
    files = {}
    for network, model in networks().items():
        for quantizer, instance in quantizers().items():
            quantized = keras_sq.quantize_model(model, instance, seed=0, overrides={})
            paths = export(quantized, folder, cases(), f"{len(files):03}", inputs)
            for case, path in paths.items():
                files[path.name] = (network, quantizer, case)
    return files


def export_large(folder):
    """Writes files of a large dense network; returns case -> path."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((1024,)),
            layers.Dense(2048, activation="relu"),
            layers.Dense(2048, activation="relu"),
            layers.Dense(1000),
        ]
    )
    quantized = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    return export(quantized, folder, cases(), "large", 4)


def export(model, folder, chosen, prefix, inputs):
    """Writes the files of one model; returns case -> path.

    Args:
        model: A quantized model with one input.
        folder: Where to.
        chosen: Case -> target, and whether it gets representative data.
        prefix: Of the names of the files.
        inputs: How many examples there are to run each on.
    """
    shape = model.inputs[0].shape[1:]
    generator = np.random.default_rng(0)
    examples = generator.normal(size=(EXAMPLES, *shape)).astype("float32")
    paths = {}
    for case, (target, with_examples) in chosen.items():
        paths[case] = folder / f"{prefix}_{len(paths)}.tflite"
        keras_sq.export(
            model,
            paths[case],
            target=target,
            representative_data=examples if with_examples else None,
            allow_untrained=True,
        )
    for case, (source, rewrite) in REWRITTEN.items():
        content = rewrite(paths[source].read_bytes())
        if content is not None:
            paths[case] = folder / f"{prefix}_{len(paths)}.tflite"
            paths[case].write_bytes(content)
    for path in paths.values():
        write_inputs(path, examples[:inputs])
    return paths


def write_inputs(path, examples):
    """Writes inputs beside a file with one input, as it takes them."""
    file = TFLiteFile(path.read_bytes())
    (index,) = indices(file.subgraphs[0].inputs)
    tensor = file.subgraphs[0].tensors[index]
    if tensor.type == TYPES["INT8"]:
        scale, zero_point = tensor.quantization.scale, tensor.quantization.zeroPoint
        codes = np.rint(examples / scale[0]) + zero_point[0]
        examples = np.clip(codes, -128, 127).astype(np.int8)
    np.savez(path.with_suffix(".in.npz"), **{str(index): examples})


def with_int2_kernels(content):
    """Returns an int8 file with kernels of FULLY_CONNECTED as INT2; `None` if none fit.

    A kernel of -127, 0 and 127 becomes one of -1, 0 and 1, with scales 127 times as
    large: the same numbers.

    Args:
        content: The bytes of a file of target "int8".
    """
    file = TFLiteFile(content)
    changed = set()
    for graph in file.subgraphs:
        for operator in graph.operators:
            if file.operator_name(operator) != "FULLY_CONNECTED":
                continue
            index = int(operator.inputs[1])
            tensor = graph.tensors[index]
            values = file.array(tensor)
            if values is None or values.dtype != np.int8 or index in changed:
                continue
            fits = np.all(np.isin(values, (-127, 0, 127)))
            if not fits or shape_of(tensor)[1] % 4:
                continue
            tensor.buffer = file.add_buffer(pack_bits(values // np.int8(127), 2))
            tensor.type = TYPES["INT2"]
            scale = np.asarray(tensor.quantization.scale, np.float64)
            tensor.quantization.scale = (127 * scale).astype(np.float32)
            changed.add(index)
    if not changed:
        return None
    file.operator_code("FULLY_CONNECTED", VERSION)
    return file.pack()


def with_direct_kernels(content):
    """Returns a file whose FULLY_CONNECTED reads codes; `None` if none can.

    Args:
        content: The bytes of a file of target "fast", "int2" or "int4".
    """
    file = TFLiteFile(content)
    changed = False
    for graph in file.subgraphs:
        sources = {
            int(operator.outputs[0]): int(operator.inputs[0])
            for operator in graph.operators
            if file.operator_name(operator) == "DEQUANTIZE"
        }
        for operator in graph.operators:
            weight = int(operator.inputs[1]) if len(operator.inputs) > 1 else None
            if file.operator_name(operator) != "FULLY_CONNECTED":
                continue
            tensor = graph.tensors[sources[weight]] if weight in sources else None
            # Scales of rows, without zero points; four INT2 codes a byte.
            if tensor is None or tensor.quantization.quantizedDimension != 0:
                continue
            if tensor.type not in (TYPES["INT2"], TYPES["INT4"], TYPES["INT8"]):
                continue
            if shape_of(tensor)[1] % 4:
                continue
            operator.inputs = [
                operator.inputs[0],
                sources[weight],
                *operator.inputs[2:],
            ]
            changed = True
        read = {x for operator in graph.operators for x in indices(operator.inputs)}
        graph.operators = [
            operator
            for operator in graph.operators
            if int(operator.outputs[0]) not in set(sources) - read
        ]
    if not changed:
        return None
    file.operator_code("FULLY_CONNECTED", VERSION)
    return file.pack()


REWRITTEN = {
    "int8, dense INT2": ("int8", with_int2_kernels),
    "fast, dense INT8": ("fast", with_direct_kernels),
    "int2, dense INT2": ("int2", with_direct_kernels),
    "int4, dense INT4": ("int4", with_direct_kernels),
}
"""Case -> case of the files that its files are made of, and how."""
