"""`model.fit` with the callback: schedule, masks, and all that Keras can turn on."""

import contextlib
import math

import custom_layers
import keras
import numpy as np
import pytest
from backends import JIT_COMPILE, two_devices
from backends import array as numpy
from keras import layers, ops
from small_training import (
    BATCH,
    COUNT,
    EPOCHS,
    assert_same,
    data,
    float_model,
    make,
    masks,
    state,
)

import keras_sq
from keras_sq import schedules
from keras_sq.callbacks import NotFiniteError, StochasticQuantization
from keras_sq.layers import quantized_layers

STEPS = [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]  # `exponential()` of 8 steps
FILTERS = {"hidden": 7, "logits": 3}


class Recorder(keras.callbacks.Callback):
    """Notes ratio and masks that each batch is trained with."""

    def __init__(self):
        super().__init__()
        self.steps, self.ratios, self.masks, self.slots = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.steps.append(int(numpy(self.model.optimizer.iterations)))
        self.ratios.append(keras_sq.get_ratio(self.model))
        self.masks.append(masks(self.model))
        optimizer = self.model.optimizer
        momentums = getattr(optimizer, "momentums", None) or []
        self.slots.append([float(np.abs(numpy(v)).max()) for v in momentums])


def fit(model, callback=None, extra=(), **arguments):
    recorder = Recorder()
    x, y = data()
    if "x" in arguments:
        x, y = arguments.pop("x"), None
    arguments = {"epochs": EPOCHS, "verbose": 0, "shuffle": False} | arguments
    if y is not None:
        arguments = {"batch_size": BATCH} | arguments
    callback = callback or StochasticQuantization("exponential")
    recorder.history = model.fit(
        x, y, callbacks=[callback, recorder, *extra], **arguments
    ).history
    return recorder


# The schedule, step by step.


@pytest.mark.parametrize(
    "schedule, ratios",
    [
        ("exponential", STEPS),
        ("average", [0.2, 0.2, 0.4, 0.6, 0.6, 0.8, 1.0, 1.0]),
        ([0.25, 1.0], [0.25] * 4 + [1.0] * 4),
        (schedules.Stages([0, 0.5, 1], [1, 1], unit="epochs"), None),
        (schedules.linear(length=4, unit="steps"), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("constant", [1.0] * 8),
    ],
    ids=["exponential", "average", "list", "epochs", "linear", "constant"],
)
def test_ratio_follows_the_schedule_at_every_step(schedule, ratios):
    epochs = EPOCHS
    if ratios is None:
        ratios, epochs = [0] * 4 + [0.5] * 4 + [1] * 4, 3
    model = make()
    recorder = fit(model, StochasticQuantization(schedule), epochs=epochs)
    assert recorder.steps == list(range(len(ratios)))
    np.testing.assert_allclose(recorder.ratios, ratios, rtol=1e-6)
    for ratio, drawn in zip(ratios, recorder.masks, strict=True):
        for path, mask in drawn.items():
            kept = math.floor((1 - ratio) * FILTERS[path] + 1e-6)
            assert mask.sum() == FILTERS[path] - kept
    per_epoch = recorder.history["quantized_ratio"]
    np.testing.assert_allclose(per_epoch, ratios[3::4], rtol=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_masks_change_at_due_steps_only(every):
    model = keras_sq.quantize_model(
        keras.Sequential([keras.Input((5,)), layers.Dense(60, name="wide")]),
        seed=0,
        overrides={},
    )
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=JIT_COMPILE)
    schedule = schedules.Stages([0.25, 0.5, 1.0], [4, 6], unit="steps")
    x = np.ones((48, 5), "float32")
    recorder = Recorder()
    callback = StochasticQuantization(schedule, resample_every=every)
    y = np.ones((48, 60), "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback, recorder])
    changed = [
        step
        for step in range(1, 10)
        if not np.array_equal(
            recorder.masks[step - 1]["wide"], recorder.masks[step]["wide"]
        )
    ]
    # By hand: every third step, and where the second stage begins.
    assert changed == (list(range(1, 10)) if every == 1 else [3, 4, 6, 9])


def test_fixed_selection_only_adds_filters():
    recorder = fit(make(selection="fixed"))
    for before, after in zip(recorder.masks, recorder.masks[1:], strict=False):
        for path in FILTERS:
            assert (after[path] >= before[path]).all()


# Validation.


def test_validation_sees_the_deployed_network():
    model = make()
    x, y = data(64, seed=5)

    class Deployed(keras.callbacks.Callback):
        losses = []

        def on_epoch_end(self, epoch, logs=None):
            plain = keras_sq.strip_quantization(self.model)
            plain.compile(loss=self.model.loss, metrics=["accuracy"])
            found = plain.evaluate(x, y, verbose=0, return_dict=True)
            self.losses.append((logs["val_loss"], found["loss"]))
            assert logs["val_accuracy"] == found["accuracy"]

    # The ratio never gets beyond a half.
    schedule = schedules.constant(0.5, allow_partial=True)
    fit(model, StochasticQuantization(schedule), [Deployed()], validation_data=(x, y))
    for ours, deployed in Deployed.losses:
        np.testing.assert_allclose(ours, deployed, rtol=1e-6)
    assert len(Deployed.losses) == EPOCHS
    hybrid = make(inference="hybrid")
    hybrid.set_weights(model.get_weights())
    assert keras_sq.get_ratio(hybrid) == 0.5
    loss = hybrid.evaluate(x, y, verbose=0)[0]
    assert abs(loss - Deployed.losses[-1][0]) > 1e-4
    np.testing.assert_array_equal(
        numpy(hybrid(x, training=False)), numpy(model(x, training=True))
    )


def test_the_run_ends_fully_quantized():
    model = make()
    fit(model)
    assert keras_sq.get_ratio(model) == 1.0
    assert all(mask.all() for mask in masks(model).values())
    x, _ = data()
    assert_same(
        [numpy(model(x, training=True))],
        [numpy(keras_sq.strip_quantization(model)(x))],
        rtol=1e-6,
    )


# How Keras runs the steps: the same run, whatever compiles it.


@pytest.fixture(scope="module")
def reference():
    model = make()
    recorder = fit(model)
    return model, recorder


@pytest.mark.parametrize(
    "how",
    [
        {"jit_compile": True},
        {"jit_compile": "auto"},
        {"run_eagerly": True, "jit_compile": False},
    ],
    ids=str,
)
def test_same_run_however_it_is_compiled(how, reference):
    expected, expected_recorder = reference
    model = make(compile_arguments=how)
    recorder = fit(model)
    for ours, theirs in zip(recorder.masks, expected_recorder.masks, strict=True):
        assert_same(ours.values(), theirs.values())
    assert_same(state(model), state(expected), rtol=1e-4, atol=1e-5)


def test_same_seed_same_run_and_other_seed_other_masks(reference):
    expected, expected_recorder = reference
    model = make()
    recorder = fit(model)
    assert_same(state(model), state(expected))
    assert recorder.history == expected_recorder.history
    other = fit(make(seed=1))
    assert not all(
        np.array_equal(ours[path], theirs[path])
        for ours, theirs in zip(other.masks, recorder.masks, strict=True)
        for path in FILTERS
    )


def test_without_a_seed_keras_set_random_seed_decides():
    def run():
        keras.utils.set_random_seed(7)
        model = make(seed=None)
        return fit(model).masks

    for ours, theirs in zip(run(), run(), strict=True):
        assert_same(ours.values(), theirs.values())


def test_steps_per_execution_changes_masks_every_k_steps():
    model = make(compile_arguments={"steps_per_execution": 3})
    # 4 batches an epoch in executions of 3 and 1.
    recorder = fit(model)
    assert recorder.steps == [0, 3, 4, 7]
    assert recorder.ratios == [STEPS[step] for step in recorder.steps]
    # Step 8 has come: everything is quantized.
    assert keras_sq.get_ratio(model) == 1.0


def test_gradient_accumulation_counts_updates():
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2)
    model = make(optimizer)
    recorder = fit(model)
    assert recorder.steps == [0, 0, 1, 1, 2, 2, 3, 3]
    # The run has 4 updates: `exponential` takes one for each stage.
    assert recorder.ratios == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]
    # Both batches of an update see the same masks.
    for first, second in zip(recorder.masks[::2], recorder.masks[1::2], strict=True):
        assert_same(first.values(), second.values())
    assert not np.array_equal(recorder.masks[0]["hidden"], recorder.masks[2]["hidden"])


def test_gradient_accumulation_and_clear_momentum_lose_no_gradient():
    schedule = schedules.Stages([0.5, 1.0], [2], unit="steps")

    def run(clear):
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
        model = make(optimizer)
        fit(model, StochasticQuantization(schedule, clear_momentum=clear))
        return state(model)

    # This optimizer has no momentum, so there is nothing to clear.
    assert_same(run(True), run(False))


def test_ema_of_the_weights_is_kept():
    optimizer = keras.optimizers.SGD(
        0.05, momentum=0.9, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=None
    )
    model = make(optimizer)
    averages = []

    class Average(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = quantized_layers(self.model)[0][1].latent()
            if batch == 0 and not averages:
                averages.append(numpy(kernel))  # Keras starts from the first weights.
            else:
                averages.append(0.5 * averages[-1] + 0.5 * numpy(kernel))

    callback = StochasticQuantization("exponential", clear_momentum=True)
    fit(model, callback, [Average()], epochs=1)
    final = numpy(quantized_layers(model)[0][1].latent())
    # At the end of training Keras puts the average in place of the weights.
    np.testing.assert_allclose(final, averages[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = make(keras.optimizers.SGD(0.05, momentum=0.9))
        recorder = fit(
            model, StochasticQuantization("exponential", clear_momentum=True)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert recorder.steps == list(range(8))
    assert recorder.ratios == STEPS
    assert np.isfinite(recorder.history["loss"]).all()
    for _, layer in quantized_layers(model):
        assert layer.compute_dtype == policy.removeprefix("mixed_")
        assert layer.latent().dtype == "float32"
    x, _ = data()
    kernel = numpy(
        ops.cast(keras_sq.strip_quantization(model).layers[0].kernel, "float32")
    )
    assert len(np.unique(np.abs(kernel[:, 0]))) <= 2  # 0 and the scale.
    assert model(x).dtype == policy.removeprefix("mixed_")


# Momentum.


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_clear_momentum_at_stage_starts_only(steps_per_execution):
    def run(clear):
        model = make(compile_arguments={"steps_per_execution": steps_per_execution})
        schedule = schedules.Stages([0.25, 0.5, 1.0], [3, 2], unit="steps")
        return fit(model, StochasticQuantization(schedule, clear_momentum=clear))

    cleared = run(True)
    zero = [
        step
        for step, slots in zip(cleared.steps, cleared.slots, strict=True)
        if max(slots) == 0
    ]
    # Step 0 has nothing to clear yet. Executions begin at steps 0, 3, 4 and 7: the
    # stage of step 5 begins with the last of them.
    assert zero == ([0, 3, 5] if steps_per_execution == 1 else [0, 3, 7])
    assert max(run(False).slots[-1]) > 0


def test_clear_momentum_needs_state_that_starts_at_zero():
    model = make(keras.optimizers.Adagrad())
    with pytest.raises(ValueError, match="`clear_momentum=True`.*SGD.*Adagrad"):
        fit(model, StochasticQuantization("exponential", clear_momentum=True))


# Data.


def generator():
    x, y = data()
    for start in range(0, COUNT, BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length_needs_total_steps():
    before = make()
    kernel = numpy(quantized_layers(before)[0][1].latent())
    with pytest.raises(ValueError, match="`steps_per_epoch`.*`total_steps`"):
        fit(before, x=generator(), epochs=1)
    np.testing.assert_array_equal(
        numpy(quantized_layers(before)[0][1].latent()), kernel
    )

    callback = StochasticQuantization("average", total_steps=5)
    with pytest.warns(UserWarning, match="ended at ratio 0.8: .* step 4"):
        recorder = fit(make(), callback, x=generator(), epochs=1)
    # Keras begins a fifth batch before it knows that there is none.
    np.testing.assert_allclose(recorder.ratios, [0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    callback = StochasticQuantization(schedules.Stages([0.5, 1], [2], unit="steps"))
    recorder = fit(make(), callback, x=generator(), epochs=1)
    assert recorder.ratios == [0.5, 0.5, 1.0, 1.0, 1.0]


# Models that Keras trains in another way.


def test_model_that_is_not_told_whether_it_trains_is_refused():
    model = custom_layers.NoTrainingArgument()
    model(np.ones((2, 5), "float32"))
    model = keras_sq.quantize_model(model, seed=0, overrides={})
    model.compile("sgd", "mse")
    x, _ = data()
    with pytest.raises(
        ValueError,
        match="NoTrainingArgument.*give its `call` an argument `training=None`",
    ):
        callbacks = [StochasticQuantization("exponential")]
        model.fit(x, x[:, :4], batch_size=4, verbose=0, callbacks=callbacks)


def test_own_train_step():
    student = make()
    model = custom_layers.Distiller(student)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    recorder = fit(model)
    assert recorder.ratios == STEPS


def test_model_in_a_class_of_its_own_trains_with_its_masks():
    # Its call does not hand `training` on to its layers.
    model = keras_sq.quantize_model(built_subclassed(), "ternary", seed=0, overrides={})
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert fit(model).ratios == STEPS
    assert all(layer.has_trained for _, layer in quantized_layers(model))


def built_subclassed():
    model = custom_layers.Subclassed()
    model(data()[0])
    return model


def test_second_fit_goes_on_and_says_so():
    model = make()
    fit(model)
    with pytest.warns(UserWarning, match="ended at step 6.*optimizer is at step 8"):
        recorder = fit(model)
    assert recorder.ratios == [1.0] * 8
    halves = make()
    callback = StochasticQuantization("exponential", total_steps=8)
    with pytest.warns(UserWarning, match="total_steps=8 only 4 are done.*Go on with"):
        first = fit(halves, callback, epochs=1)
    second = fit(halves, callback, epochs=2, initial_epoch=1)
    assert first.ratios + second.ratios == STEPS


# Bad input.


@contextlib.contextmanager
def nothing_changes(model):
    before = state(model)
    yield
    assert_same(state(model), before)


def test_callback_refuses_bad_arguments():
    with pytest.raises(ValueError, match="`schedule` must be one of.*'exponential'"):
        StochasticQuantization("exponentail")
    with pytest.raises(TypeError, match="`schedule` must be a `RatioSchedule`"):
        StochasticQuantization(0.5)
    with pytest.raises(ValueError, match="`resample_every` must be at least 1"):
        StochasticQuantization(resample_every=0)
    with pytest.raises(TypeError, match="`resample_every` must be an integer"):
        StochasticQuantization(resample_every=1.5)
    with pytest.raises(ValueError, match="`total_steps` must be at least 1"):
        StochasticQuantization(total_steps=0)
    with pytest.raises(TypeError, match="`clear_momentum` must be a bool"):
        StochasticQuantization(clear_momentum="yes")
    with pytest.raises(ValueError, match=r"ratios\[1\].* in \[0, 1\].*1.2"):
        StochasticQuantization([0.5, 1.2])
    with pytest.warns(UserWarning, match="ends at ratio 0.8, not 1"):
        StochasticQuantization([0.5, 0.8])


def test_schedule_longer_than_the_run_warns():
    schedule = schedules.Stages([0.5, 1.0], [20], unit="steps")
    model = make()
    with (
        pytest.warns(UserWarning, match="step 20.*only 8 steps.*ratio 0.5"),
        pytest.warns(UserWarning, match="ended at ratio 0.5: the run ended at step 8"),
    ):
        fit(model, StochasticQuantization(schedule))
    assert keras_sq.get_ratio(model) == 0.5


def test_float_model_is_refused():
    model = float_model()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="no quantized layer.*quantize_model"):
        fit(model)


# Kernels that are not finite.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kernel_not_finite_before_training(value):
    model = make()
    model.optimizer.build(model.trainable_variables)
    latent = model.get_layer("logits").latent()
    latent.assign(np.full(latent.shape, value))
    with (
        nothing_changes(model),
        pytest.raises(ValueError, match="layer 'logits' holds NaN"),
    ):
        fit(model)


class Poison(keras.callbacks.Callback):
    """Spoils a kernel during training."""

    def __init__(self, batch=1):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            latent = self.model.get_layer("hidden").latent()
            latent.assign(np.full(latent.shape, np.nan))


@pytest.mark.parametrize("probability", ["linear", "constant"])
def test_kernel_that_turns_nan_during_training(probability):
    model = make(probability=probability)
    with pytest.raises(ValueError, match="layer 'hidden' holds NaN.*learning rate"):
        fit(model, None, [Poison()])
    # Looked at one batch later, and the mask was not drawn from it.
    assert int(numpy(model.optimizer.iterations)) == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_diverged_kernel_is_not_saved_by_a_callback_before_ours(batch):
    """At ratio 1, where nothing is drawn, in mid-epoch and in its last batch."""
    model = make()
    saved = []

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            saved.append(epoch)

    x, y = data()
    spoil = Poison(batch)
    with pytest.raises(NotFiniteError, match="layer 'hidden' holds NaN"):
        schedule = schedules.constant(1.0)
        callbacks = [Save(), spoil, StochasticQuantization(schedule)]
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    assert saved == []


def test_terminate_on_nan_comes_first():
    model = make(keras.optimizers.SGD(1e30))
    with pytest.warns(UserWarning, match="was stopped. The kernel of layer 'hidden'"):
        recorder = fit(model, None, [keras.callbacks.TerminateOnNaN()])
    assert len(recorder.steps) < 8


# Two devices; tests/conftest.py makes two CPUs of one.


@pytest.mark.tensorflow
def test_mirrored_strategy_keeps_replicas_alike(reference):
    with two_devices() as strategy:
        model = make()
    copies = []

    class Replicas(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            for path, layer in quantized_layers(self.model):
                values = strategy.experimental_local_results(layer.mask().value)
                assert len(values) == 2
                copies.append((path, *map(numpy, values)))

    recorder = fit(model, None, [Replicas()])
    assert len(copies) == 16
    for _, first, second in copies:
        np.testing.assert_array_equal(first, second)
    expected, expected_recorder = reference
    assert recorder.ratios == STEPS
    for ours, theirs in zip(recorder.masks, expected_recorder.masks, strict=True):
        assert_same(ours.values(), theirs.values())
    assert_same(state(model), state(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
def test_quantizing_a_model_made_under_a_strategy():
    with two_devices() as strategy:
        model = float_model()
    quantized = keras_sq.quantize_model(
        model, seed=0, overrides={}
    )  # Outside of the scope.
    with strategy.scope():
        quantized.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    x, _ = data()
    plain = keras_sq.strip_quantization(quantized)
    np.testing.assert_allclose(numpy(plain(x)), numpy(quantized(x)), rtol=1e-6)


@pytest.mark.tensorflow
def test_a_step_is_traced_once(monkeypatch):
    """With metrics that Keras makes in the first step, too."""
    from keras.src.trainers.compile_utils import CompileMetrics

    # As users have it: the tests make metrics early, to save time.
    build = CompileMetrics.build
    monkeypatch.setattr(CompileMetrics, "build", getattr(build, "__wrapped__", build))

    class Counting(keras.layers.Layer):
        calls = 0

        def call(self, inputs):
            Counting.calls += 1
            return inputs

    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(3)(Counting()(keras.layers.Dense(8)(inputs)))
    model = keras_sq.quantize_model(keras.Model(inputs, outputs), "ternary")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.ones((32, 6), "float32"), np.zeros(32, "int32")
    before = Counting.calls
    history = model.fit(
        x, y, batch_size=8, verbose=0, callbacks=[StochasticQuantization()]
    ).history
    assert Counting.calls - before == 1
    assert 0 <= history["accuracy"][0] <= 1
    assert len(model.metrics) == 2
