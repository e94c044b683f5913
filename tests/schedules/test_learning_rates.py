"""Learning rates that restart with every stage."""

import json

import keras
import numpy as np
import pytest
from backends import BACKEND, compiled, tensor

from keras_sq import schedules
from keras_sq.schedules.learning_rates import StagewiseLearningRate

KERAS = keras.optimizers.schedules


@keras.saving.register_keras_serializable(package="test_learning_rates")
class StepCount(KERAS.LearningRateSchedule):
    """The step itself, as a rate: shows what the inner schedule is asked."""

    def __call__(self, step):
        return keras.ops.cast(step, "float32")

    def get_config(self):
        return {}


def test_restarts_at_every_stage():
    rate = StagewiseLearningRate(StepCount(), [0, 2, 5])
    assert [float(rate(step)) for step in range(9)] == [0, 1, 0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_traced_equals_eager_equals_int(dtype):
    rate = StagewiseLearningRate(KERAS.CosineDecay(0.1, 40), [0, 7, 30])
    traces = []

    def function(step):
        traces.append(1)
        return rate(step)

    traced = compiled(function)

    for step in range(80):
        start = max(s for s in (0, 7, 30) if s <= step)
        t = min(step - start, 40) / 40
        expected = 0.05 * (1 + np.cos(np.pi * t))
        given = tensor(step, dtype)
        assert float(rate(step)) == pytest.approx(expected, abs=1e-8)
        assert float(rate(given)) == float(rate(step))
        # Keras's own cosine is one rounding off when compiled.
        assert float(traced(given)) == pytest.approx(float(rate(step)), abs=1e-8)
    assert len(traces) == 1


def test_huge_steps():
    rate = StagewiseLearningRate(KERAS.CosineDecay(0.1, 10, alpha=0.5), [0, 2**31 - 2])
    for step, expected in [(2**31 - 2, 0.1), (2**31 - 3, 0.05), (2**40, 0.05)]:
        assert float(rate(step)) == pytest.approx(expected)
        if step < 2**31 or BACKEND == "tensorflow":  # JAX has no more bits.
            assert float(rate(tensor(step, "int64"))) == pytest.approx(expected)


def test_a_float_is_the_same_everywhere():
    rate = StagewiseLearningRate(0.25, [0, 10])
    for step in (0, 9, 10, tensor(11, "int64")):
        assert float(rate(step)) == 0.25


def test_takes_the_stages_of_a_bound_schedule():
    ratio = schedules.exponential().bind(total_steps=40, steps_per_epoch=None)
    assert StagewiseLearningRate(0.1, ratio).stage_starts == (0, 10, 20, 30)
    ramp = schedules.linear(length=5, unit="steps")
    assert StagewiseLearningRate(0.1, ramp).stage_starts == (0,)


@pytest.mark.parametrize(
    "learning_rate",
    [0.1, KERAS.CosineDecay(0.1, 40), KERAS.PiecewiseConstantDecay([5], [0.1, 0.01])],
)
def test_json_round_trip(learning_rate):
    rate = StagewiseLearningRate(learning_rate, [0, 10])
    config = json.loads(json.dumps(KERAS.serialize(rate)))
    restored = KERAS.deserialize(config)
    assert isinstance(restored, StagewiseLearningRate)
    assert restored.get_config() == rate.get_config()
    assert [float(restored(i)) for i in range(20)] == [
        float(rate(i)) for i in range(20)
    ]


def test_trains_and_is_saved_with_the_model(tmp_path):
    rate = StagewiseLearningRate(
        KERAS.PiecewiseConstantDecay([1], [0.5, 0.125]), [0, 3]
    )
    kernel = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), kernel])
    # Of the loss mean(y) with input 1 the gradient is 1: a step moves by the rate.
    model.compile(keras.optimizers.SGD(rate), loss=lambda y_true, y_pred: y_pred)
    x = np.ones((6, 1), "float32")
    model.fit(x, x, batch_size=1, verbose=0)
    # PiecewiseConstantDecay takes its first value up to and including step 1.
    moved = 0.5 + 0.5 + 0.125 + 0.5 + 0.5 + 0.125
    assert float(kernel.kernel[0, 0]) == pytest.approx(-moved)

    model.compile(keras.optimizers.SGD(rate), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    restored = loaded.optimizer.get_config()["learning_rate"]
    assert restored["class_name"] == "StagewiseLearningRate"
    assert restored["config"] == rate.get_config()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (0.1, schedules.exponential()),
            ValueError,
            r"must be a bound ratio schedule.*schedule\.bind\(total_steps",
        ),
        ((0.1, [1, 5]), ValueError, r"increasing steps, the first 0.*\[1, 5\]"),
        ((0.1, []), ValueError, "increasing steps, the first 0"),
        ((0.1, [0, 5, 5]), ValueError, "increasing steps, the first 0"),
        ((0.1, [0, -5]), ValueError, r"`stages\[1\]` must be at least 0"),
        ((0.1, [0, 2.5]), TypeError, r"`stages\[1\]` must be an integer"),
        ((0.1, 5), TypeError, "`stages` must be a bound ratio schedule"),
        ((0.1, "exponential"), TypeError, "`stages` must be a bound ratio schedule"),
        ((0.0, [0]), ValueError, "`learning_rate` must be a finite number above 0"),
        (("0.1", [0]), TypeError, "`learning_rate` must be a number or a"),
    ],
)
def test_bad_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        StagewiseLearningRate(*arguments)


@pytest.mark.parametrize("step", [-1, 0.5])
def test_bad_step_raises(step):
    rate = StagewiseLearningRate(0.1, [0])
    with pytest.raises((TypeError, ValueError), match="Argument `step` must be"):
        rate(step)
