"""Presets and comparisons: the papers' choices, and what is compared."""

import keras
import numpy as np
import pytest
from backends import JIT_COMPILE

import keras_sq
from keras_sq import models, presets, schedules
from keras_sq.experiments import comparisons


def network():
    return models.get("digits_cnn", (8, 8, 1), 10)


def quantizers_of(model):
    return {o.path: o.quantizer for o in model.quantization_report}


@pytest.mark.parametrize(
    ("preset", "quantizer", "ends", "inputs"),
    [
        (presets.sq_bwn(), "BinaryQuantizer", True, None),
        (presets.sq_twn(), "TernaryQuantizer", True, None),
        (presets.lq_nets(), "LearnedQuantizer(num_bits=2)", False, None),
        (presets.lq_nets(3), "LearnedQuantizer(num_bits=3)", False, None),
        (presets.lq_nets(1, 2), "LearnedQuantizer(num_bits=1)", False, "lq-2"),
        (presets.direct("uniform-4"), "UniformQuantizer(num_bits=4", True, None),
        (
            presets.stochastic("lq-2", overrides={}),
            "LearnedQuantizer(num_bits=2)",
            True,
            None,
        ),
    ],
)
def test_preset_quantizes_what_its_paper_does(preset, quantizer, ends, inputs):
    model = preset.quantize_model(network())
    found = quantizers_of(model)
    middle = found.pop("conv2")
    assert middle.startswith(quantizer)
    assert (found.pop("conv1") is not None) == ends
    assert (found.pop("logits") is not None) == ends
    rules = {o.input_quantizer for o in model.quantization_report if o.quantizer}
    assert rules == {inputs}


def test_stompp_is_what_its_paper_says():
    model = models.get("resnet8", (32, 32, 3), 10)  # With down-sampling shortcuts.
    quantized = presets.stompp().quantize_model(model)
    kept = [path for path, what in quantizers_of(quantized).items() if what is None]
    assert kept == ["conv1", "block2_shortcut", "block3_shortcut", "logits"]
    for _, layer in keras_sq.layers.quantized_layers(quantized):
        settings = layer.quantization_settings
        assert settings.granularity == settings.input_granularity == "element"
        assert settings.input_quantizer.name == "binary"
        assert settings.quantized_gradient == "blocked"
        assert settings.full_precision == "clip"
        assert settings.selection == keras_sq.SoftRefresh(0.01)
        assert layer.mask().shape == layer.latent().shape
    (callback,) = presets.stompp("reverse").callbacks()
    assert callback.schedule.order == "reverse"
    weights = presets.stompp(binary_activations=False, straight_through=True)
    weights = weights.quantize_model(model)
    (settings,) = {
        layer.quantization_settings.replace(mask_seed=None)
        for _, layer in keras_sq.layers.quantized_layers(weights)
    }
    assert settings.input_quantizer is None
    assert settings.quantized_gradient == "straight_through"


def test_first_and_last_layer_show_in_the_summary():
    model = presets.lq_nets().quantize_model(network())
    shown = str(keras_sq.summary(model, print_fn=lambda text: None))
    assert "named by skip='@first'" in shown and "named by skip='@last'" in shown


def test_changes_go_before_the_settings():
    model = presets.lq_nets().quantize_model(
        network(), skip=(), kernel_quantizer="lq-3"
    )
    assert set(quantizers_of(model).values()) == {"LearnedQuantizer(num_bits=3)"}


def test_direct_preset_trains_without_callback_and_without_warning():
    preset = presets.lq_nets(2, 2)
    assert preset.callbacks() == []
    model = preset.quantize_model(network())
    assert keras_sq.get_ratio(model) == 1.0
    model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    x = np.random.default_rng(0).random((16, 8, 8, 1), "float32")
    model.fit(x, np.zeros((16, 10), "float32"), verbose=0)  # Warnings are errors.


def test_stochastic_preset_brings_its_callback():
    preset = presets.sq_twn()
    (callback,) = preset.callbacks()
    assert callback.schedule == schedules.exponential() and callback.clear_momentum
    assert preset.callbacks()[0] is not callback
    model = preset.quantize_model(network())
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=JIT_COMPILE)
    x = np.random.default_rng(0).random((16, 8, 8, 1), "float32")
    history = model.fit(
        x,
        np.zeros((16, 10), "float32"),
        batch_size=8,
        epochs=4,
        verbose=0,
        callbacks=preset.callbacks(),
    )
    assert history.history["quantized_ratio"] == [0.5, 0.75, 0.875, 1.0]


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_name_gives_a_preset_of_that_name(name):
    assert presets.get(name).name == name
    presets.get(name).quantize_model(network())


def test_get_takes_presets_and_refuses_unknown_names():
    preset = presets.lq_nets(3)
    assert presets.get(preset) is preset
    with pytest.raises(ValueError, match="Did you mean 'lq-nets'"):
        presets.get("lq-net")


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="`weight_bits` must be at"):
        presets.lq_nets(bits)
    with pytest.raises(ValueError, match="`activation_bits` must be at"):
        presets.lq_nets(2, bits)


@pytest.mark.parametrize("name", comparisons.NAMES)
def test_comparison_can_be_made_of_a_network(name):
    methods = comparisons.get(name, schedules.exponential())
    assert methods[0].name == comparisons.FLOAT and methods[0].preset is None
    names = [method.name for method in methods]
    assert len(set(names)) == len(names)
    titles = [method.title for method in methods]
    assert len(set(titles)) == len(titles)
    for method in methods:
        assert method.name.replace("-", "").isalnum()
        if method.preset is not None:
            method.preset.quantize_model(network())


@pytest.mark.parametrize("name", comparisons.NAMES)
def test_methods_of_a_comparison_leave_the_same_layers_float(name):
    methods = comparisons.get(name, schedules.exponential())
    kept = set()
    for method in methods:
        if method.preset is not None:
            found = quantizers_of(method.preset.quantize_model(network()))
            kept.add(tuple(path for path, what in found.items() if what is None))
    assert kept == ({()} if name == "defaults" else {("conv1", "logits")})
