"""Models that earlier versions saved are loaded as they were.

The files, one folder for each version, are made by saved_models.py at each release.
"""

import json

import keras
import numpy as np
import pytest
import saved_models
from backends import BACKEND

from keras_sq import layers as sq
from keras_sq import quantizers
from keras_sq.core.version import __version__
from keras_sq.files.loading import load_model
from keras_sq.layers import layer_paths, quantized_layers
from keras_sq.layers.settings import names

PATHS = sorted(saved_models.FOLDER.glob("*/*.keras"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in PATHS]


def contains(actual, expected):
    """Whether JSON holds other JSON; dicts may have more keys by now."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(
            key in actual and contains(actual[key], value)
            for key, value in expected.items()
        )
    return actual == expected


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_model_of_every_version_is_loaded_as_it_was(path):
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as content:
        expected = dict(content)
    x = expected.pop("x")
    model = keras.saving.load_model(path)
    found = saved_models.expectations(model, x)
    assert found.keys() == expected.keys()
    settings = json.loads(str(expected.pop("settings")))
    for actual, chosen in zip(
        json.loads(str(found["settings"])), settings, strict=True
    ):
        assert contains(actual, chosen), (actual, chosen)
    tolerance = 1e-2 if path.stem == "half" else 1e-5
    for name, value in expected.items():
        # What is computed may round otherwise elsewhere; what is stored may not.
        if name == "output" and path.stem == "convolutions" and BACKEND == "jax":
            # Written on TensorFlow; here a sum falls to the other side of a threshold
            # of its quantized activations, and a sign to the other.
            close = np.isclose(found[name], value, rtol=tolerance, atol=tolerance)
            assert close.mean() > 0.7
        elif name == "output" or "quantized" in name:
            np.testing.assert_allclose(
                found[name], value, rtol=tolerance, atol=tolerance, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    # The way of the commands, which bounds what a file may ask for.
    again = saved_models.expectations(load_model(path), x)
    np.testing.assert_array_equal(again["output"], found["output"])


@pytest.fixture(scope="module")
def present():
    folder = saved_models.FOLDER / __version__
    assert folder.is_dir(), "tests/checks/saved_models.py was not run for this version"
    return [keras.saving.load_model(path) for path in sorted(folder.glob("*.keras"))]


def test_present_version_is_there_with_all_its_models(present):
    assert [model.name for model in present] == sorted(
        make.__name__ for make in saved_models.MODELS
    )


def test_every_layer_has_a_place_in_a_saved_model(present):
    held = {type(layer) for model in present for _, layer in layer_paths(model)}
    ours = [value for value in vars(sq).values() if isinstance(value, type)]
    bases = (sq.StochasticallyQuantized, sq.QuantizedContainer, sq.QuantizedActivation)
    classes = {cls for cls in ours if issubclass(cls, bases)}
    assert len(classes - set(bases)) > 20
    assert classes - set(bases) - held == set()


def test_every_quantizer_and_setting_has_a_place_in_a_saved_model(present):
    settings = [
        layer.quantization_settings
        for model in present
        for _, layer in quantized_layers(model)
    ]
    kinds = {type(chosen.kernel_quantizer) for chosen in settings}
    assert {type(quantizers.get(name)) for name in quantizers.names()} <= kinds
    for name in names():
        values = {repr(getattr(chosen, name)) for chosen in settings}
        assert len(values) > 1, name


def test_masks_in_saved_models_are_half_set(present):
    masks = [
        np.asarray(layer.mask(name))
        for model in present
        for _, layer in quantized_layers(model)
        for name in layer.mask_names
    ]
    mixed = [mask for mask in masks if mask.any() and not mask.all()]
    assert len(mixed) > len(masks) // 2


def test_files_stay_small():
    files = [path for path in saved_models.FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".keras", ".npz"}
    versions = {path.parent for path in files}
    assert sum(path.stat().st_size for path in files) < 300_000 * len(versions)
