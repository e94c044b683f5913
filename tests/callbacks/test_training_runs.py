"""Trainings as people write them: the schedule goes on, and an end below 1 is told.

Own optimizers, loss scaling, callbacks that stop or save, several calls of `fit`, own
loops. What a batch is trained with is compared with the schedule, by hand.
"""

import warnings

import keras
import numpy as np
import pytest
from backends import BACKEND, JIT_COMPILE
from backends import array as numpy
from keras import callbacks, layers, ops

import keras_sq
from keras_sq import schedules
from keras_sq.callbacks import OnceQuantized, StochasticQuantization, training_warnings
from keras_sq.conversion import training_signs

rng = np.random.default_rng(0)
X = rng.normal(size=(16, 5)).astype("float32")
Y = rng.normal(size=(16, 8)).astype("float32")
STEPS = [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]  # `exponential()` of 8 steps


def network(quantizer="binary", units=8, **settings):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(units, name="d")])
    settings = {"seed": 0, "overrides": {}} | settings
    return keras_sq.quantize_model(model, quantizer, **settings)


def make(optimizer="sgd", **arguments):
    model = network()
    arguments = {"jit_compile": JIT_COMPILE} | arguments
    model.compile(optimizer, "mse", **arguments)
    return model


class Ratios(callbacks.Callback):
    """Notes the ratio that each batch is trained with."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(keras_sq.get_ratio(self.model))


def fit(model, *extra, schedule="exponential", epochs=2, y=Y, **arguments):
    """Trains, 4 batches an epoch, and returns the ratio of each batch."""
    ratios, settings = Ratios(), {}
    for name in ("total_steps", "clear_momentum"):
        if name in arguments:
            settings[name] = arguments.pop(name)
    sq = StochasticQuantization(schedule, **settings)
    arguments = {"batch_size": 4, "verbose": 0, "shuffle": False} | arguments
    used = [sq, ratios, *extra]
    model.fit(X, y, epochs=epochs, callbacks=used, **arguments)
    return ratios.found


# Optimizers of the model's own.


class Gan(keras.Model):
    """As in the examples of keras.io: `compile` takes two optimizers."""

    critic_steps = 1

    def __init__(self, quantize_critic=False):
        super().__init__()
        self.generator = network(units=5)
        self.critic = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        if quantize_critic:
            self.critic = network(units=1)
        self.built = True

    def compile(self, d_optimizer, g_optimizer):
        super().compile(jit_compile=False)
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, real):
        import tensorflow as tf

        noise = tf.random.normal(tf.shape(real))
        for _ in range(self.critic_steps):
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                loss = tf.reduce_mean(
                    self.critic(fake, training=True) - self.critic(real, training=True)
                )
            variables = self.critic.trainable_weights
            gradients = tape.gradient(loss, variables)
            self.d_optimizer.apply_gradients(zip(gradients, variables, strict=True))
        with tf.GradientTape() as tape:
            fake = self.generator(noise, training=True)
            loss = -tf.reduce_mean(self.critic(fake, training=True))
        variables = self.generator.trainable_weights
        gradients = tape.gradient(loss, variables)
        self.g_optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss}


class Wgan(Gan):
    critic_steps = 3


class Accumulating(keras.Model):
    """Accumulates gradients by hand, as answers on the web have it."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.built = True
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False)

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.count.assign_add(1)

        def step():
            self.optimizer.apply_gradients(
                zip(gradients, self.trainable_variables, strict=True)
            )

        tf.cond(self.count % 4 == 0, step, lambda: None)
        return {"loss": loss}


def gan(kind=Gan, **arguments):
    model = kind(**arguments)
    model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    return model


def accumulating():
    model = Accumulating()
    model.compile("sgd", jit_compile=False)
    return model


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "build",
    [gan, lambda: gan(Wgan, quantize_critic=True), accumulating],
    ids=["gan", "wgan", "accumulating"],
)
def test_schedule_goes_on_with_optimizers_of_the_model_s_own(build):
    model = build()
    y = Y if isinstance(model, Accumulating) else None
    assert fit(model, y=y) == STEPS
    with pytest.warns(UserWarning, match="ended at step 3.*at step 8 already"):
        assert fit(model, y=y, epochs=1) == [1.0] * 4
    # Interrupted, and restored in another process: the epoch says where the run stands.
    halves = build()
    with pytest.warns(UserWarning, match="total_steps=8 only 4 are done"):
        assert fit(halves, y=y, epochs=1, total_steps=8) == STEPS[:4]
    del halves.__dict__["quantization_progress"]
    first, *later = fit(halves, y=y, initial_epoch=1)
    # An optimizer that has counted some batches is believed for one more.
    assert first == (0.75 if isinstance(model, Accumulating) else STEPS[4])
    assert later == STEPS[5:]


class WithoutOptimizer(keras.Model):
    """Steps its weights by itself, on either backend."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.built = True

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def train_step(self, *arguments):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            x, y = arguments[0]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            for v, g in zip(
                self.trainable_variables,
                tape.gradient(loss, self.trainable_variables),
                strict=True,
            ):
                v.assign_sub(0.01 * g)
            return {"loss": loss}
        import jax

        (trainable, others, slots, metrics), (x, y) = arguments

        def loss_of(trainable):
            found, _ = self.stateless_call(trainable, others, x, training=True)
            return ops.mean((found - y) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(trainable)
        stepped = [v - 0.01 * g for v, g in zip(trainable, gradients, strict=True)]
        return {"loss": loss}, (stepped, others, slots, metrics)


def test_model_that_nobody_steps_and_its_momentum():
    model = WithoutOptimizer()
    model.compile("sgd", jit_compile=JIT_COMPILE)
    assert fit(model) == STEPS
    assert int(numpy(model.optimizer.iterations)) == 0
    again = WithoutOptimizer()
    again.compile("sgd", jit_compile=JIT_COMPILE)
    with pytest.raises(ValueError, match="`clear_momentum=True`.*SGD, which made no"):
        fit(again, clear_momentum=True)


def test_skipped_steps_are_not_counted_and_told():
    """Float32 gradients times 1e38 are infinite: all of eight steps are skipped."""
    inner = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=3e38)
    model = make(scaled)
    with pytest.warns(
        UserWarning, match="at ratio 0.5: loss scaling skipped 8 steps.*initial_scale"
    ):
        assert fit(model, y=1e6 * Y) == [0.5] * 8
    assert int(numpy(inner.iterations)) == 0


# Callbacks that judge by metrics.


class Worse(callbacks.Callback):
    """A score that is best after the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = float(epoch)


def judged(judge, *, ours_first, epochs=6):
    model = make()
    sq = StochasticQuantization([0.5, 1.0])  # The second from epoch 3 on.
    pair = [sq, judge] if ours_first else [judge, sq]
    history = model.fit(
        X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[Worse(), *pair]
    )
    return model, history


def early_stopping(**arguments):
    return callbacks.EarlyStopping("score", mode="min", patience=1, **arguments)


def test_stopping_in_the_ramp_is_told_with_the_remedy():
    match = r"at ratio 0.5: it was stopped at step 4.*at step 6.*OnceQuantized"
    with pytest.warns(UserWarning, match=match + r".*start_from_epoch=3\)"):
        model, _ = judged(early_stopping(), ours_first=True)
    assert keras_sq.get_ratio(model) == 0.5
    # What the warning says.
    model, history = judged(early_stopping(start_from_epoch=3), ours_first=True)
    assert len(history.epoch) == 5 and keras_sq.get_ratio(model) == 1.0


@pytest.mark.parametrize("ours_first", [True, False])
def test_early_stopping_waits_for_the_quantized_network(ours_first):
    stopping = early_stopping(restore_best_weights=True)
    model, history = judged(OnceQuantized(stopping), ours_first=ours_first)
    # Epochs 0 to 2 do not exist for it; 3 is the best, and 4 no better.
    assert stopping.best_epoch == 3 and len(history.epoch) == 5
    assert keras_sq.get_ratio(model) == 1.0
    assert numpy(model.get_layer("d").mask()).all()


def test_checkpoints_and_plateaus_wait_too(tmp_path):
    path = tmp_path / "best.keras"
    best = callbacks.ModelCheckpoint(path, "score", mode="min", save_best_only=True)
    plateau = callbacks.ReduceLROnPlateau("score", mode="min", patience=1, factor=0.5)
    rates = []
    note = callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: rates.append(
            float(numpy(model.optimizer.learning_rate))
        )
    )
    model = make(keras.optimizers.SGD(0.5))
    used = [Worse(), OnceQuantized(best), OnceQuantized(plateau), note]
    sq = StochasticQuantization([0.5, 1.0])
    model.fit(X, Y, batch_size=8, epochs=6, verbose=0, callbacks=[*used, sq])
    assert keras_sq.get_ratio(keras.saving.load_model(path)) == 1.0
    assert rates == [0.5] * 5 + [0.25]


def test_best_weights_of_an_early_epoch():
    """They were validated with everything quantized."""
    stopping = early_stopping(restore_best_weights=True)
    stopping.patience = 5
    model, _ = judged(stopping, ours_first=False)
    assert keras_sq.get_ratio(model) == 1.0
    assert numpy(model.get_layer("d").mask()).all()


@pytest.mark.tensorflow
def test_export_says_why_best_weights_are_partly_quantized(tmp_path):
    stopping = early_stopping(restore_best_weights=True)
    stopping.patience = 5
    model, _ = judged(stopping, ours_first=True)
    assert keras_sq.get_ratio(model) == 0.5
    with pytest.raises(ValueError, match="part of the way.*0.5.*OnceQuantized"):
        keras_sq.export(model, tmp_path / "m.tflite")


def test_once_quantized_refuses_what_is_no_callback():
    with pytest.raises(TypeError, match="`callback` must be a `keras.callbacks.Call"):
        OnceQuantized(5)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="has no quantized layer"):
        model.fit(X, Y, verbose=0, callbacks=[OnceQuantized(early_stopping())])


# Several calls of `fit`.


@pytest.mark.parametrize(
    "schedule, again",
    [("exponential", True), (schedules.Layerwise("linear"), False)],
    ids=["compiled again", "the same, layer by layer"],
)
def test_ratio_is_not_taken_back(schedule, again):
    model = make()
    fit(model, schedule=schedule)
    if again:  # As for a lower learning rate.
        model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    # Of six epochs the first two are a third: half of the filters, by itself.
    assert fit(model, schedule=schedule, epochs=6, initial_epoch=2) == [1.0] * 16


def test_goes_on_where_the_epochs_say_when_compiled_again():
    model = make()
    with pytest.warns(UserWarning, match="total_steps=8 only 4 are done"):
        fit(model, total_steps=8, epochs=1)
    model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    assert fit(model, initial_epoch=1) == STEPS[4:]
    # Without it, the training begins anew.
    model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    assert fit(model) == STEPS


def test_epochs_of_the_float_network_are_no_part_of_the_schedule(tmp_path):
    """Trained as float for four epochs, quantized, and trained from there on."""
    model, backup = make(), keras_sq.callbacks.AtomicBackup(tmp_path)
    stop = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        fit(model, backup, stop, epochs=6, initial_epoch=4)
    # Resumed in another process.
    assert fit(make(), backup, epochs=6, initial_epoch=4) == STEPS[4:]
    assert fit(make(), epochs=6, initial_epoch=4) == STEPS


def told(model, calls, **arguments):
    """Returns the ratios of several calls of `fit`, and the warnings."""
    ratios = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            ratios += fit(model, epochs=1, **arguments)
    return ratios, [str(w.message) for w in caught if w.category is UserWarning]


def test_fit_once_a_step_warns_once():
    # Of each call four steps: the first goes through the schedule.
    ratios, texts = told(make(), 3)
    assert ratios == [0.5, 0.75, 0.875] + [1.0] * 9
    (text,) = texts
    assert "ended at step 3" in text and "`fit` is called once an epoch" in text
    # What the warning says.
    ratios, texts = told(make(), 8, total_steps=8, batch_size=16)
    assert ratios == STEPS
    (text,) = texts
    assert "total_steps=8 only 1 are done" in text


def test_masks_are_traced_once_for_all_calls(monkeypatch):
    from keras_sq.layers import masks

    traces, original = [], masks.update_masks

    def update_masks(*arguments):
        traces.append(1)
        return original(*arguments)

    monkeypatch.setattr(masks, "update_masks", update_masks)
    model = make()
    with pytest.warns(UserWarning, match="total_steps=8 only 4 are done"):
        first = fit(model, total_steps=8, epochs=1)
    assert first == STEPS[:4] and len(traces) == 1
    # The schedule is another object, and the same.
    assert fit(model, total_steps=8, epochs=1) == STEPS[4:]
    assert len(traces) == 1
    with pytest.warns(UserWarning, match="ended at step 3"):
        fit(model, schedule="linear", epochs=1)
    assert len(traces) == 2


@pytest.mark.parametrize("same", [True, False])
def test_two_of_our_callbacks_are_an_error(same):
    model = make()
    first = StochasticQuantization("constant")
    pair = [first, first if same else StochasticQuantization("constant")]
    with pytest.raises(ValueError, match="one `StochasticQuantization`.*two of them"):
        model.fit(X, Y, verbose=0, callbacks=pair)
    # Nothing is left of it, nor of a run that was interrupted.
    stop = callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        fit(model, stop)
    model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    assert fit(model) == STEPS


def test_one_execution_for_the_whole_run_is_told():
    model = make(steps_per_execution=8)
    match = r"at ratio 0.5: .*everything at step 3.*`steps_per_execution`.*without tr"
    with pytest.warns(UserWarning, match=match):
        fit(model, epochs=1)
    assert keras_sq.get_ratio(model) == 1.0


# Schedules that would not be followed.


def test_masks_that_are_never_drawn_in_the_ramp():
    of = training_warnings.of_masks_not_drawn
    for schedule, every, expected in [
        (schedules.linear(length=20, unit="steps"), 30, True),
        (schedules.linear(length=20, unit="steps"), 20, True),
        (schedules.linear(length=20, unit="steps"), 7, False),
        (schedules.linear(length=20, unit="steps"), 1, False),
        (schedules.Stages([0.5, 1.0], [20], unit="steps"), 30, False),
        (schedules.constant(1.0), 30, False),
        (schedules.Layerwise("linear", lengths=[9, 9], unit="steps"), 30, True),
        (schedules.Layerwise("linear", lengths=[9, 9], unit="steps"), 5, False),
    ]:
        text = of(schedule, every)
        assert (text is not None) == expected, (schedule, every)
        assert text is None or "smaller number" in text
    model = make()
    sq = StochasticQuantization("linear", resample_every=100)
    with pytest.warns(UserWarning, match="drawn every 100 steps.*to 1 within 6"):
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[sq])


def test_length_of_an_epoch_that_is_not_known():
    schedule = schedules.Stages([0.5, 1.0], [1], unit="epochs")
    match = "needs `steps_per_epoch`.*Give `steps_per_epoch` to `fit`, or use"
    with pytest.raises(ValueError, match=match):
        schedule.bind(total_steps=100, steps_per_epoch=None)


# Loops of one's own.


def test_callback_in_a_loop_of_one_s_own():
    """By the list that Keras has for it; the model is not even compiled."""
    model, found = network(), []
    model.optimizer = None
    sq = StochasticQuantization("exponential")
    listed = callbacks.CallbackList([sq], model=model, epochs=2, steps=4)
    listed.on_train_begin()
    for epoch in range(2):
        listed.on_epoch_begin(epoch)
        for batch in range(4):
            listed.on_train_batch_begin(batch)
            found.append(keras_sq.get_ratio(model))
            model(X[:4], training=True)
            listed.on_train_batch_end(batch)
        listed.on_epoch_end(epoch)
    listed.on_train_end()
    assert found == STEPS


def step_by_tape(model, training):
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, **training) - y) ** 2)
        variables = model.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )

    step(X, Y)


def step_by_jax(model):
    import jax

    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    def loss_of(trainable):
        found, _ = model.stateless_call(trainable, others, X, training=True)
        return ops.mean((found - Y) ** 2)

    gradients = jax.grad(loss_of)(trainable)
    for v, g in zip(model.trainable_variables, gradients, strict=True):
        v.assign(v.value - 0.1 * g)


def step_by_batch(model):
    model.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    model.train_on_batch(X, Y)


def load_what_was_trained(model, tmp_path):
    other = network()
    other.get_layer("d").latent().assign(rng.normal(size=(5, 8)))
    other.save_weights(tmp_path / "other.weights.h5")
    model.load_weights(tmp_path / "other.weights.h5")


def trained_by_a_teacher(model):
    taught = keras_sq.distill(model, network("ternary"))
    taught.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    sq = StochasticQuantization("constant")
    with pytest.warns(UserWarning, match="quantized and frozen"):  # The teacher's.
        taught.fit(X, Y, verbose=0, callbacks=[sq])


WAYS = {
    "batch": step_by_batch,
    "load": load_what_was_trained,
    "teacher": trained_by_a_teacher,
}
if BACKEND == "jax":
    WAYS["stateless"] = step_by_jax
else:
    WAYS["tape"] = lambda model: step_by_tape(model, {"training": True})
    WAYS["tape without training"] = lambda model: step_by_tape(model, {})


@pytest.mark.parametrize("way", WAYS)
def test_model_trained_in_a_loop_of_one_s_own_is_trained(way, tmp_path):
    model = network()
    keras_sq.set_ratio(model, 1.0)
    assert training_signs.is_untrained(model)
    model(X)
    assert training_signs.is_untrained(model)
    arguments = (tmp_path,) if way == "load" else ()
    WAYS[way](model, *arguments)
    assert not training_signs.is_untrained(model)
    model.save(tmp_path / "m.keras")
    assert not training_signs.is_untrained(
        keras.saving.load_model(tmp_path / "m.keras")
    )


@pytest.mark.tensorflow
def test_export_takes_a_model_trained_in_a_loop_of_one_s_own(tmp_path):
    model = network()
    with pytest.raises(ValueError, match="was not trained since"):
        keras_sq.export(model, tmp_path / "m.tflite", target="float")
    keras_sq.set_ratio(model, 1.0)
    step_by_tape(model, {})
    keras_sq.export(model, tmp_path / "m.tflite", target="float")


def test_frozen_layers_that_are_quantized_are_named_once():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="base"), layers.Dense(2, name="head")]
    )
    model.layers[0].trainable = False
    sq_model = keras_sq.quantize_model(model, "binary", overrides={})
    sq_model.compile("sgd", "mse")
    callback = keras_sq.callbacks.StochasticQuantization()
    x, y = np.ones((32, 4)), np.ones((32, 2))
    with pytest.warns(UserWarning, match="Layers 'base' are quantized and frozen"):
        sq_model.fit(x, y, batch_size=1, verbose=0, callbacks=[callback])
    left = keras_sq.quantize_model(model, "binary", skip="base", overrides={})
    left.compile("sgd", "mse")
    left.fit(x, y, batch_size=1, verbose=0, callbacks=[callback])
