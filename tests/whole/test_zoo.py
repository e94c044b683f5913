"""Strangers' networks go the whole way, and compute in files what they do in Keras."""

import keras
import numpy as np
import pytest
import zoo

import keras_sq
from keras_sq.conversion import same_outputs
from keras_sq.export import ExportError

pytestmark = [
    pytest.mark.tensorflow,
    # Of float models with such layers, too, which every example has.
    pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer 'positions"),
]

OFTEN = ("small",)
"""Targets that every run of the suite makes; the others are slow, all together."""


@pytest.fixture(scope="module", params=zoo.NETWORKS)
def trained(request, tmp_path_factory):
    """The network, its quantized model once trained, and that model's outputs."""
    keras.utils.set_random_seed(0)
    network = zoo.NETWORKS[request.param]()
    before = outputs(network.model, network.x)
    sq_model = keras_sq.quantize_model(network.model, seed=0, **network.settings)
    if sq_model.quantization_report.check != same_outputs.CHECKED:
        assert request.param == "vae"  # Draws its own noise.
    network.fit(network, sq_model)
    assert keras_sq.get_ratio(sq_model) == 1.0
    for one, other in zip(before, outputs(network.model, network.x), strict=True):
        if request.param != "vae":
            np.testing.assert_array_equal(one, other)  # Left alone.
    directory = tmp_path_factory.mktemp(request.param)
    return network, sq_model, directory


def outputs(model, x):
    # In the order of `keras.tree`, that of dicts by their keys.
    found = keras.tree.flatten(model(x, training=False))
    return [keras.ops.convert_to_numpy(value) for value in found]


def test_saved_and_stripped_models_compute_the_same(trained):
    network, sq_model, directory = trained
    sq_model.save(directory / "model.keras")
    loaded = keras.models.load_model(directory / "model.keras")
    stripped = network.deployed(keras_sq.strip_quantization(loaded))
    sq_model, loaded = network.deployed(sq_model), network.deployed(loaded)
    x = inputs_of(network, sq_model)
    expected = outputs(sq_model, x)
    for one, other in zip(expected, outputs(loaded, x), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(expected, outputs(stripped, x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())
    # The kernels are those of few values that the report promises.
    for path, layer in keras_sq.layers.quantized_layers(loaded):
        for name in layer.quantized_weights:
            kernel = keras.ops.convert_to_numpy(layer.quantized_kernel(name))
            columns = np.moveaxis(
                kernel, layer.filter_axes(name), range(len(layer.filter_axes(name)))
            )
            filters = int(np.prod([kernel.shape[a] for a in layer.filter_axes(name)]))
            values = {len(np.unique(row)) for row in columns.reshape(filters, -1)}
            levels = layer.quantization_settings.kernel_quantizer.num_levels
            assert max(values) <= levels, path


def inputs_of(network, model):
    """Returns inputs of what is exported."""
    if network.deployed is zoo.whole:
        return network.x
    return zoo.normal(16, *model.input_shape[1:])


@pytest.mark.parametrize(
    "target",
    [
        target if target in OFTEN else pytest.param(target, marks=pytest.mark.slow)
        for target in zoo.TARGETS
    ],
)
def test_files_compute_what_keras_does(trained, target):
    network, sq_model, directory = trained
    model = network.deployed(sq_model)
    x = inputs_of(network, model)
    path = directory / f"{target}.tflite"
    options = {}
    if target in ("int8", "mcu"):
        options["representative_data"] = x
    if target in network.refuses:
        with pytest.raises(ExportError, match=network.refuses[target]):
            keras_sq.export(model, path, target=target, **options)
        assert not path.exists()
        return
    report = keras_sq.export(model, path, target=target, **options)
    assert path.stat().st_size == report.num_bytes
    assert [
        k.path
        for k in report.kernels
        if k.quantized
        and "float32" in k.stored_as
        and target != "float"
        and "too small" not in k.reason
    ] == []
    if target == "mcu":
        return  # Compared bit by bit in TensorFlow Lite Micro by `export`.
    found = interpreted(path, model, x)
    expected = outputs(model, x)
    tolerance = 1e-4 if target != "int8" else 0.25
    for name, one in zip(names(model, expected), expected, strict=True):
        spread = np.ptp(one) + 1e-6
        error = np.abs(found[name] - one).max()
        assert error <= tolerance * spread + 1e-5, (name, error, spread)


def names(model, expected):
    structure = model.output if hasattr(model, "output") else None
    if isinstance(structure, dict):
        return sorted(structure)
    return [f"output_{i}" for i in range(len(expected))]


def interpreted(path, model, x):
    """Returns the outputs of a file by name, example by example, as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    run = interpreter.get_signature_runner()
    details_in = run.get_input_details()
    details_out = run.get_output_details()
    if isinstance(x, dict):
        arrays = x
    else:
        flat = x if isinstance(x, list) else [x]
        assert len(details_in) == len(flat)
        arrays = dict(zip(signature_order(details_in), flat, strict=True))
    results = []
    for index in range(len(next(iter(arrays.values())))):
        given = {}
        for name, detail in details_in.items():
            value = np.asarray(arrays[name][index : index + 1])
            scale, zero = detail["quantization"]
            if detail["dtype"] == np.int8 and scale:
                value = np.clip(np.round(value / scale) + zero, -128, 127)
            given[name] = value.astype(detail["dtype"])
        found = run(**given)
        for name, detail in details_out.items():
            scale, zero = detail["quantization"]
            if detail["dtype"] == np.int8 and scale:
                found[name] = (found[name].astype("float32") - zero) * scale
        results.append(found)
    return {key: np.concatenate([r[key] for r in results]) for key in results[0]}


def signature_order(details):
    """`input`, `input_1`, ... in their order."""
    return sorted(details, key=lambda name: (len(name), name))
