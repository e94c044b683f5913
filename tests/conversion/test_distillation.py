"""Distillation: the loss against NumPy, and that only the student learns."""

import backends
import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_sq
from keras_sq.conversion.distillation import Distilled

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(12, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 12)


def network(units=3, activation=None, seed=0, hidden=5, regularizer=None):
    """Returns a small network with a hidden layer."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,)),
            kl.Dense(hidden, "tanh", kernel_regularizer=regularizer, name="hidden"),
            kl.Dense(units, activation, name="output"),
        ]
    )


def softmax(logits):
    """Returns probabilities, float64."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def outputs(model, x=X):
    """Returns the outputs as float64."""
    return backends.array(model(x)).astype("float64")


def training_loss(distilled, x=X, y=Y, **kwargs):
    """Returns the loss of a training step, without the step."""
    found = distilled(x, training=True)
    return float(distilled.compute_loss(x, y, found, training=True, **kwargs))


def cross_entropy(labels, logits):
    """Returns the cross-entropy of each example."""
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def divergence(taught, found, temperature):
    """Returns temperature ** 2 * KL of each example."""
    p, q = softmax(taught / temperature), softmax(found / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_of_classes_equals_the_formula(from_logits, weighted):
    activation = None if from_logits else "softmax"
    student, teacher = network(3, activation), network(3, activation, seed=1)
    distilled = keras_sq.distill(student, teacher, weight=0.3, temperature=2.5)
    distilled.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    )
    s, t = outputs(student), outputs(teacher)
    if not from_logits:
        s, t = np.log(s), np.log(t)
    weights = RANDOM.random(12) if weighted else np.ones(12)
    expected = np.mean(
        weights * (0.7 * cross_entropy(Y, s) + 0.3 * divergence(t, s, 2.5))
    )
    given = {"sample_weight": weights.astype("float32")} if weighted else {}
    assert training_loss(distilled, **given) == pytest.approx(expected, rel=1e-5)


def test_loss_by_name_is_one_of_probabilities():
    student, teacher = network(3, "softmax"), network(3, "softmax", seed=1)
    distilled = keras_sq.distill(student, teacher, weight=1.0, temperature=1.0)
    distilled.compile("sgd", "sparse_categorical_crossentropy")
    s, t = np.log(outputs(student)), np.log(outputs(teacher))
    expected = divergence(t, s, 1.0).mean()
    assert training_loss(distilled) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("from_logits", [True, False])
def test_loss_of_two_classes_equals_the_formula(from_logits):
    activation = None if from_logits else "sigmoid"
    student, teacher = network(1, activation), network(1, activation, seed=1)
    y = RANDOM.integers(0, 2, (12, 1))
    distilled = keras_sq.distill(student, teacher, weight=0.6, temperature=3.0)
    distilled.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    s, t = outputs(student), outputs(teacher)
    if not from_logits:
        s, t = np.log(s / (1 - s)), np.log(t / (1 - t))
    both = np.concatenate([s, 0 * s], -1), np.concatenate([t, 0 * t], -1)
    labels = 1 - y[:, 0]
    expected = np.mean(
        0.4 * cross_entropy(labels, both[0]) + 0.6 * divergence(both[1], both[0], 3.0)
    )
    assert training_loss(distilled, y=y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
def test_other_losses_take_the_teacher_for_the_targets(loss):
    student, teacher = network(2), network(2, seed=1)
    y = RANDOM.normal(size=(12, 2)).astype("float32")
    distilled = keras_sq.distill(student, teacher, weight=0.25)
    distilled.compile("sgd", loss)
    s, t = outputs(student), outputs(teacher)
    expected = 0.75 * np.mean((s - y) ** 2) + 0.25 * np.mean((s - t) ** 2)
    assert training_loss(distilled, y=y) == pytest.approx(expected, rel=1e-5)


def test_regularizers_count_once_and_in_full():
    regularizer = keras.regularizers.L2(0.1)
    student = network(2, regularizer=regularizer)
    teacher = network(2, seed=1, regularizer=regularizer)
    y = np.zeros((12, 2), "float32")
    distilled = keras_sq.distill(student, teacher, weight=0.5)
    distilled.compile("sgd", "mse")
    s, t = outputs(student), outputs(teacher)
    kernel = backends.array(student.get_layer("hidden").kernel).astype("float64")
    expected = 0.5 * np.mean(s**2) + 0.5 * np.mean((s - t) ** 2)
    expected += 0.1 * np.sum(kernel**2)
    assert training_loss(distilled, y=y) == pytest.approx(expected, rel=1e-5)


def test_evaluation_is_that_of_the_student():
    student, teacher = network(), network(seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distilled = keras_sq.distill(student, teacher)
    distilled.compile("sgd", loss, metrics=["accuracy"])
    student.compile("sgd", loss, metrics=["accuracy"])
    assert distilled.evaluate(X, Y, verbose=0) == student.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(
        distilled.predict(X, verbose=0), student.predict(X, verbose=0)
    )


def test_training_trains_the_quantized_student_alone():
    teacher = network(hidden=16)
    student = keras_sq.quantize_model(teacher, "ternary", overrides={})
    before = [np.array(x) for x in teacher.get_weights()]
    distilled = keras_sq.distill(student, teacher, weight=0.9)
    distilled.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callback = keras_sq.callbacks.StochasticQuantization("exponential")
    x = np.concatenate([X] * 4)
    labels = np.argmax(outputs(teacher, x), -1)
    history = distilled.fit(
        x, labels, batch_size=12, epochs=8, verbose=0, callbacks=[callback]
    ).history
    assert history["quantized_ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1, 1]
    assert keras_sq.get_ratio(student) == 1.0
    for old, copy, own in zip(
        before, distilled.teacher.get_weights(), teacher.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, copy)
        np.testing.assert_array_equal(old, own)
    assert teacher.trainable
    # It did learn, and is a model by itself.
    found = outputs(student, x)
    wanted = outputs(teacher, x)
    fresh = outputs(keras_sq.quantize_model(teacher, "ternary", overrides={}), x)
    assert np.mean((found - wanted) ** 2) < np.mean((fresh - wanted) ** 2)
    plain = keras_sq.strip_quantization(student)
    np.testing.assert_allclose(outputs(plain, x), found, atol=1e-5)


def test_keras_distiller_trains_a_quantized_student_by_hidden_features():
    teacher = network()
    student = keras_sq.quantize_model(teacher, "ternary", overrides={})
    features = keras.distillation.FeatureDistillation(
        loss="mse", teacher_layer_name="hidden", student_layer_name="hidden"
    )
    distiller = keras.distillation.Distiller(teacher, student, features)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss)
    callback = keras_sq.callbacks.StochasticQuantization("exponential")
    before = student.get_weights()
    history = distiller.fit(X, Y, epochs=8, verbose=0, callbacks=[callback]).history
    assert history["quantized_ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1, 1]
    assert keras_sq.get_ratio(student) == 1.0
    assert np.any(before[0] != student.get_weights()[0])


def test_layerwise_schedule_finds_the_layers_in_order():
    teacher = network()
    student = keras_sq.quantize_model(teacher, "sign", overrides={})
    distilled = keras_sq.distill(student, teacher)
    schedule = keras_sq.schedules.Layerwise(keras_sq.schedules.cubic(), "forward")
    paths = [path for path, _ in schedule.visits(distilled)]
    assert [path.split("/")[-1] for path in paths] == ["hidden", "output"]


def test_distilled_model_is_saved_and_loaded(tmp_path):
    distilled = keras_sq.distill(network(), network(seed=1), weight=0.3)
    distilled.save(tmp_path / "distilled.keras")
    loaded = keras.saving.load_model(tmp_path / "distilled.keras")
    for model in (distilled, loaded):
        model.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    assert isinstance(loaded, Distilled)
    assert training_loss(loaded) == pytest.approx(training_loss(distilled), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5}, r"Argument `weight` must be .*weight=1.5"),
        ({"temperature": 0.0}, r"Argument `temperature` must be .*temperature=0.0"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_sq.distill(network(), network(), **arguments)


def test_something_else_than_a_model_is_refused():
    with pytest.raises(TypeError, match="Argument `teacher` must be a keras.Model"):
        keras_sq.distill(network(), "float.keras")


def test_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="Argument `student` must be a built model"):
        keras_sq.distill(keras.Sequential([kl.Dense(3)]), network())


def test_outputs_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"outputs of the same shape.*3.*4"):
        keras_sq.distill(network(3), network(4))


def test_several_outputs_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [kl.Dense(3)(inputs), kl.Dense(3)(inputs)])
    with pytest.raises(ValueError, match="`student` must be a model of one output"):
        keras_sq.distill(model, network())


def test_several_losses_are_refused():
    distilled = keras_sq.distill(network(), network())
    distilled.compile("sgd", ["mse"])
    with pytest.raises(ValueError, match="must be compiled with one loss"):
        training_loss(distilled, y=np.zeros((12, 3), "float32"))
