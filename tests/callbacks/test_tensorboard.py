"""The events that TensorBoard reads are there and hold what happened."""

import collections
import sys

import keras
import numpy as np
import pytest
from backends import BACKEND

import keras_sq
from keras_sq.callbacks import (
    QuantizationHistory,
    QuantizationTensorBoard,
    StochasticQuantization,
)
from keras_sq.callbacks import tensorboard as tensorboard_logs

tf = pytest.importorskip("tensorflow")


def model(**settings):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(16, activation="relu", name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]
    return compiled(
        keras_sq.quantize_model(
            keras.Sequential(layers, name="net"),
            "ternary",
            seed=3,
            **settings,
            overrides={},
        )
    )


def compiled(quantized, **settings):
    quantized.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=BACKEND == "jax",
        **settings,
    )
    return quantized


def fit(quantized, *callbacks, epochs=4, validate=True):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 6)).astype("float32")
    y = np.argmax(x[:, :3], axis=1)
    quantized.fit(
        *(x[:32], y[:32]),
        batch_size=4,
        epochs=epochs,
        validation_data=(x[32:], y[32:]) if validate else None,
        callbacks=list(callbacks),
        verbose=0,
    )


def events(folder):
    """Returns tag -> {step: value} of all event files below a folder."""
    found = collections.defaultdict(dict)
    paths = sorted(str(path) for path in folder.glob("quantization/events*"))
    for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name in ("scalars", "")
            found[value.tag][event.step] = float(tf.make_ndarray(value.tensor))
    return dict(found)


def test_ratio_errors_and_flips_are_those_of_the_history(tmp_path):
    history = QuantizationHistory(every=3)
    log = QuantizationTensorBoard(tmp_path, every=3)
    fit(model(), StochasticQuantization(), history, log)
    found = events(tmp_path)
    steps = history.steps.tolist()

    def logged(tag):
        assert list(found[tag]) == steps
        return list(found[tag].values())

    np.testing.assert_allclose(logged("quantization/ratio"), history.ratio)
    total = history.flips.sum(axis=1)
    np.testing.assert_allclose(logged("quantization/flips_per_step"), total, rtol=1e-6)
    assert total.sum() > 0
    for index, path in enumerate(("hidden/kernel", "logits/kernel")):
        errors, flips = history.errors[:, index], history.flips[:, index]
        np.testing.assert_allclose(logged(f"quantization_error/{path}"), errors)
        np.testing.assert_allclose(
            logged(f"quantization_flips/{path}"), flips, rtol=1e-6
        )
    assert not [tag for tag in found if tag.startswith("quantization_ratio/")]


class BothByHand(keras.callbacks.Callback):
    """After every epoch, evaluates copies of the model in both ways."""

    def __init__(self, x, y):
        super().__init__()
        self.data, self.found = (x, y), {"quantized": [], "hybrid": []}
        self.others = {name: model(inference=name) for name in self.found}

    def on_epoch_end(self, epoch, logs=None):
        for inference, found in self.found.items():
            other = self.others[inference]
            other.set_weights(self.model.get_weights())
            found.append(other.evaluate(*self.data, verbose=0, return_dict=True))


@pytest.mark.parametrize("inference", ["quantized", "hybrid"])
def test_deployed_and_hybrid_validation_are_told_apart(inference, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 6)).astype("float32")[32:]
    by_hand = BothByHand(x, np.argmax(x[:, :3], axis=1))
    log = QuantizationTensorBoard(tmp_path)
    schedule = StochasticQuantization("exponential")
    fit(model(inference=inference), schedule, by_hand, log)
    found = events(tmp_path)
    for kind, name in (("quantized", "deployed"), ("hybrid", "hybrid")):
        for metric in ("loss", "accuracy"):
            logged = found[f"validation_{name}/{metric}"]
            assert list(logged) == [8, 16, 24, 32]
            expected = [logs[metric] for logs in by_hand.found[kind]]
            np.testing.assert_allclose(list(logged.values()), expected, rtol=1e-5)
    deployed = list(found["validation_deployed/loss"].values())
    hybrid = list(found["validation_hybrid/loss"].values())
    # At ratio 1, in the last epoch, they are one network; before, they are two.
    assert np.abs(np.subtract(deployed, hybrid))[:3].min() > 1e-3
    assert deployed[3] == hybrid[3]


def test_other_validation_changes_nothing_of_the_run(tmp_path):
    def run(*callbacks):
        keras.utils.set_random_seed(1)
        quantized = model()
        history = keras.callbacks.History()
        fit(quantized, StochasticQuantization(), *callbacks, history)
        weights = [keras.ops.convert_to_numpy(v) for v in quantized.variables]
        return history.history, weights, quantized

    plain, weights, _ = run()
    logs, watched, quantized = run(QuantizationTensorBoard(tmp_path))
    assert logs == plain
    for one, other in zip(weights, watched, strict=True):
        np.testing.assert_array_equal(one, other)
    for _, layer in keras_sq.layers.quantized_layers(quantized):
        assert layer.quantization_settings.inference == "quantized"
    assert "test_step" not in quantized.__dict__


def test_without_validation_data_or_wish_nothing_is_evaluated(tmp_path):
    quantized = model()
    keras_sq.set_ratio(quantized, 0.5)
    fit(quantized, QuantizationTensorBoard(tmp_path / "a"), validate=False, epochs=1)
    assert not [tag for tag in events(tmp_path / "a") if tag.startswith("validation")]
    log = QuantizationTensorBoard(tmp_path / "b", both_validations=False)
    fit(quantized, log, epochs=1)
    tags = {tag for tag in events(tmp_path / "b") if tag.startswith("validation")}
    assert tags == {"validation_deployed/loss", "validation_deployed/accuracy"}


def test_layerwise_ratios_are_logged_for_each_kernel(tmp_path):
    schedule = keras_sq.schedules.Layerwise("constant")
    log = QuantizationTensorBoard(tmp_path, every=4)
    fit(model(), StochasticQuantization(schedule), log, validate=False)
    found = events(tmp_path)
    early = {
        path: found[f"quantization_ratio/{path}/kernel"][4]
        for path in ("hidden", "logits")
    }
    assert early == {"hidden": 1.0, "logits": 0.0}


def test_missing_tensorflow_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match="pip install tensorflow-cpu"):
        tensorboard_logs._tensorflow()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log_dir": 3}, TypeError, "`log_dir` must be a path"),
        ({"log_dir": "x", "every": 0}, ValueError, "`every` must be at least 1"),
        ({"log_dir": "x", "both_validations": 1}, TypeError, "must be a bool"),
    ],
)
def test_impossible_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        QuantizationTensorBoard(**arguments)
