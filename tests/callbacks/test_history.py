"""What is recorded of a training is what happened, in bounded memory."""

import keras
import numpy as np
import pytest
from backends import BACKEND

import keras_sq
from keras_sq.callbacks import QuantizationHistory, StochasticQuantization
from keras_sq.callbacks.history import KernelRecorder
from keras_sq.callbacks.kernel_meter import KernelMeter

STEPS = 8
"""Of an epoch."""


def model(quantizer="ternary", **settings):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(8, name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]
    made = keras_sq.quantize_model(
        keras.Sequential(layers, name="net"),
        quantizer,
        seed=3,
        **settings,
        overrides={},
    )
    made.compile(keras.optimizers.SGD(0.3), "mse", jit_compile=BACKEND == "jax")
    return made


def data(steps=STEPS):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4 * steps, 6)).astype("float32")
    y = generator.normal(size=(4 * steps, 3)).astype("float32")
    return x, y


def fit(quantized, *callbacks, epochs=2, steps=STEPS, **settings):
    x, y = data(steps)
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0, **settings}
    return quantized.fit(x, y, epochs=epochs, callbacks=list(callbacks), **settings)


class Spy(keras.callbacks.Callback):
    """Looks at everything after every batch, the slow and plain way."""

    def __init__(self):
        super().__init__()
        self.codes, self.errors, self.masks, self.ratios = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.codes:
            self.look()

    def on_train_batch_end(self, batch, logs=None):
        self.look()

    def look(self):
        layers = [layer for _, layer in keras_sq.layers.quantized_layers(self.model)]
        codes = keras_sq.get_codes(self.model)
        self.codes.append({path: found.codes for path, found in codes.items()})
        latents = [keras.ops.convert_to_numpy(layer.latent()) for layer in layers]
        self.errors.append(
            [
                np.abs(latent - found.kernel).sum() / np.abs(latent).sum()
                for latent, found in zip(latents, codes.values(), strict=True)
            ]
        )
        self.masks.append(keras.ops.convert_to_numpy(layers[0].mask()).ravel())
        self.ratios.append(keras_sq.get_ratio(self.model))


@pytest.mark.parametrize("quantizer", ["ternary", "lq-2", "uniform-8"])
def test_records_are_what_happened(quantizer):
    spy, history = Spy(), QuantizationHistory(every=1, masks="hidden")
    fit(model(quantizer), StochasticQuantization("exponential"), spy, history)
    assert history.paths == ["hidden/kernel", "logits/kernel"]
    assert history.sizes.tolist() == [48, 24]
    assert history.steps.tolist() == list(range(1, 2 * STEPS + 1))
    np.testing.assert_allclose(history.ratio, spy.ratios[1:])
    np.testing.assert_allclose(history.errors, spy.errors[1:], rtol=1e-4, atol=1e-6)
    flips = [
        [np.sum(new[path] != old[path]) for path in history.paths]
        for old, new in zip(spy.codes, spy.codes[1:], strict=False)
    ]
    np.testing.assert_array_equal(history.flips, flips)
    assert history.flips.sum() > 0
    assert list(history.masks) == ["hidden/kernel"]
    np.testing.assert_array_equal(history.masks["hidden/kernel"], spy.masks[1:])
    assert history.stage_starts == (0, 4, 8, 12)


@pytest.mark.parametrize("quantizer", ["ternary", "lq-2", "uniform-4", "lq-5"])
def test_large_kernels_are_measured_as_small_ones(quantizer):
    # Beyond 2**16 weights what is computed is compiled otherwise, and block by block.
    dense = keras.layers.Dense(260, name="wide")
    plain = keras.Sequential([keras.Input((300,)), dense], name="net")
    quantized = keras_sq.quantize_model(plain, quantizer, overrides={})
    ((path, layer),) = pairs = keras_sq.layers.quantized_layers(quantized)
    meter = KernelMeter(pairs)
    before = keras_sq.get_codes(quantized)["wide/kernel"].codes
    first = meter.measure()
    (row, _) = keras_sq.summary(quantized, print_fn=lambda text: None).rows
    assert first.errors[0] == pytest.approx(row.error, rel=1e-4)
    assert first.changed.tolist() == [0] == meter.measure().changed.tolist()
    noise = np.random.default_rng(0).normal(0, 0.01, (300, 260))
    layer.latent().assign(layer.latent() + noise)
    after = keras_sq.get_codes(quantized)["wide/kernel"].codes
    # A weight on a threshold may go either way.
    assert meter.measure().changed[0] == pytest.approx(
        (before != after).sum(), rel=0.01
    )


def test_flips_are_counted_per_step_and_losses_are_of_the_steps_in_between():
    often, seldom = QuantizationHistory(every=1), QuantizationHistory(every=3)
    losses = fit(model(), StochasticQuantization(), often, seldom).history["loss"]
    assert seldom.steps.tolist() == [1, 3, 6, 9, 12, 15, 16]
    # All batches of an epoch count alike.
    np.testing.assert_allclose(often.loss[:STEPS].mean(), losses[0], rtol=1e-5)
    np.testing.assert_allclose(often.loss[STEPS:].mean(), losses[1], rtol=1e-5)
    # Since the record before, but of the same epoch.
    np.testing.assert_allclose(seldom.loss[2], often.loss[3:6].mean(), rtol=1e-4)
    np.testing.assert_allclose(seldom.loss[3], often.loss[8], rtol=1e-4)
    # A weight may change back in between, so at most the sum of all.
    assert (seldom.flips[2] <= often.flips[3:6].mean(axis=0) + 1e-9).all()
    assert seldom.flips[2].sum() > 0


def test_masks_of_single_weights_are_kept_as_the_part_of_each_filter():
    spy, history = Spy(), QuantizationHistory(every=1, masks=["hidden"])
    fit(model(granularity="element"), StochasticQuantization("linear"), spy, history)
    parts = [mask.reshape(6, 8).mean(axis=0) for mask in spy.masks[1:]]
    np.testing.assert_allclose(history.masks["hidden/kernel"], parts, atol=0.5 / 255)


def test_memory_is_bounded_and_nothing_is_lost_but_detail():
    full = QuantizationHistory(every=1, max_records=1000)
    few = QuantizationHistory(every=1, masks="*", max_records=10)
    fit(model(), StochasticQuantization(), full, few, epochs=6)
    assert len(full.steps) == 6 * STEPS
    assert 5 <= len(few.steps) < 10
    assert few.every == 8
    assert few.steps[-1] == 6 * STEPS
    assert all(step % 8 == 0 for step in few.steps)
    # Rates are means over the time that a record stands for. (Of the later ones only
    # the codes at both ends are known: fewer are seen to change.)
    total = full.flips.sum()
    assert 0 < few.flips.sum() * 8 <= total
    at = np.isin(full.steps, few.steps)
    np.testing.assert_array_equal(few.errors, full.errors[at])
    np.testing.assert_array_equal(few.ratio, full.ratio[at])
    assert {len(masks) for masks in few.masks.values()} == {len(few.steps)}


def test_second_fit_goes_on_and_another_model_begins_anew():
    quantized, history = model(), QuantizationHistory(every=4)
    keras_sq.set_ratio(quantized, 1.0)
    fit(quantized, history, epochs=1)
    fit(quantized, history, epochs=1)
    assert history.steps.tolist() == [1, 4, 8, 9, 12, 16]
    assert [row["step"] for row in history.epochs] == [8, 16]
    assert history.stage_starts == ()
    other = model()
    keras_sq.set_ratio(other, 1.0)
    fit(other, history, epochs=1)
    assert history.steps.tolist() == [1, 4, 8]


def test_recording_changes_nothing():
    def weights(*callbacks):
        keras.utils.set_random_seed(5)
        quantized = model("lq-2")
        fit(quantized, StochasticQuantization(), *callbacks)
        return [keras.ops.convert_to_numpy(v) for v in quantized.variables]

    with_it = weights(QuantizationHistory(every=1, masks="*"))
    for one, other in zip(weights(), with_it, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("steps_per_execution", [3, 8])
def test_steps_are_counted_with_several_in_an_execution(steps_per_execution):
    quantized, history = model(), QuantizationHistory(every=2)
    keras_sq.set_ratio(quantized, 1.0)
    quantized.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    fit(quantized, history)
    expected = {3: [3, 6, 8, 11, 14, 16], 8: [8, 16]}[steps_per_execution]
    assert history.steps.tolist() == expected
    assert int(quantized.optimizer.iterations) == 16


def test_steps_are_updates_under_gradient_accumulation():
    quantized, history = model(), QuantizationHistory(every=2)
    keras_sq.set_ratio(quantized, 1.0)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    quantized.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
    fit(quantized, history)
    assert history.steps.tolist() == [1, 2, 4]


def test_records_are_flat_dicts_for_a_data_frame():
    history = QuantizationHistory(every=8)
    fit(model(), StochasticQuantization(), history)
    records = history.to_records()
    assert len(records) == 2 * len(history.steps)
    assert list(records[0]) == [
        *("step", "ratio", "loss", "kernel", "error", "flips_per_step")
    ]
    assert {type(v) for row in records for v in row.values()} <= {int, float, str}


def test_layer_that_is_not_there_raises_when_training_begins():
    with pytest.raises(ValueError, match=r"'hiden'.*'hidden'.*mean 'hidden'"):
        fit(model(), QuantizationHistory(masks="hiden"))


def test_float_model_raises():
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="has no quantized layer"):
        fit(plain, QuantizationHistory())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be at least 1"),
        ({"max_records": 7}, ValueError, "`max_records` must be at least 8"),
        ({"masks": 3}, TypeError, "must be a layer name"),
    ],
)
def test_impossible_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        QuantizationHistory(**arguments)


@pytest.mark.parametrize("name", ["masks", "watched"])
def test_message_names_the_argument_that_the_class_has(name):
    class Own(KernelRecorder):
        def record(self, step, measured, logs):
            raise AssertionError("never")

    recorder = Own(1, watched="nope")
    if name == "masks":
        recorder = QuantizationHistory(masks="nope")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    recorder.set_model(keras_sq.quantize_model(model, "ternary", overrides={}))
    with pytest.raises(ValueError, match=f"`{name}` names 'nope', which matches no"):
        recorder.on_train_begin()
    with pytest.raises(TypeError, match=f"`{name}` must be a layer name"):
        QuantizationHistory(masks=5) if name == "masks" else Own(1, watched=5)
