"""`AtomicBackup`: whole or not there, and never of weights that are not finite."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
from backends import JIT_COMPILE
from file_limits import largest_file

import keras_sq
from keras_sq.callbacks import AtomicBackup, NotFiniteError, StochasticQuantization
from keras_sq.callbacks import backup as backups

EPOCHS = 3


def make(optimizer="sgd", units=4, quantizer="binary"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(units, name="hidden"),
            keras.layers.Dense(2, name="logits"),
        ]
    )
    model = keras_sq.quantize_model(model, quantizer, seed=0, overrides={})
    model.compile(optimizer, "mse", jit_compile=JIT_COMPILE)
    return model


def fit(model, *callbacks, epochs=EPOCHS):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 5)), rng.normal(size=(16, 2))
    return model.fit(
        x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


def state(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"quantizer": "ternary"},
            "quantization has in entry 0 .*Ternary.*, here .*Bi",
        ),
        ({"units": 3}, r"weights has in entry 0 \(5, 3\) float32, here \(5, 4\)"),
        ({"optimizer": "adam"}, "optimizer has in entry 0 Adam, here SGD"),
    ],
)
def test_backup_of_another_network_is_refused_and_stays(other, message, tmp_path):
    fit(make(**other), StochasticQuantization(), AtomicBackup(tmp_path))
    before, model = contents(tmp_path), make()
    start = state(model)
    with pytest.raises(ValueError, match=f"of another network: its {message}"):
        fit(model, StochasticQuantization(), AtomicBackup(tmp_path))
    assert contents(tmp_path) == before
    for old, new in zip(start, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_backup_without_a_description_of_its_network_is_taken(tmp_path):
    """Those of earlier versions."""
    fit(make(), StochasticQuantization(), AtomicBackup(tmp_path), epochs=2)
    backup = AtomicBackup(tmp_path)
    (backup.newest / "network.json").unlink()
    (sums,) = (path for path in backup.newest.iterdir() if "sums" in path.name)
    found = json.loads(sums.read_text())
    del found["network.json"]
    sums.write_text(json.dumps(found))
    assert len(fit(make(), StochasticQuantization(), backup).epoch) == 1


class Spoil(keras.callbacks.Callback):
    """Makes a kernel NaN after the last batch of the second epoch."""

    def __init__(self, name="hidden"):
        super().__init__()
        self.name, self.epoch = name, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 3:
            layer = self.model.get_layer(self.name)
            kernel = layer.latent() if hasattr(layer, "latent") else layer.kernel
            kernel.assign(np.full(kernel.shape, np.nan))


def test_stopped_run_goes_on_bit_for_bit(tmp_path):
    whole = make("adam")
    fit(whole, StochasticQuantization("linear"))
    stopped = make("adam")

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == 7:
                raise KeyboardInterrupt("step 7")

    with pytest.raises(KeyboardInterrupt, match="step 7"):
        fit(stopped, StochasticQuantization("linear"), AtomicBackup(tmp_path), Stop())
    resumed = make("adam")
    backup = AtomicBackup(str(tmp_path))
    assert backup.initial_epoch == 1
    history = fit(resumed, backup, StochasticQuantization("linear"))
    assert history.epoch == [1, 2]
    for one, other in zip(state(resumed), state(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    # Kept until it is discarded; a run that is done trains nothing.
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000003"]
    again = make("adam")
    assert fit(again, backup, StochasticQuantization("linear")).epoch == []
    for one, other in zip(state(again), state(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    backup.discard()
    assert not tmp_path.exists()


def test_every_step_of_a_backup_leaves_a_whole_one(tmp_path, monkeypatch):
    """Stopped at every change of the folder, it holds what can be restored."""
    model = make()
    fit(model, AtomicBackup(tmp_path), StochasticQuantization(), epochs=1)
    calls = []

    def stopping(function, at):
        def call(*arguments, **keywords):
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(function.__name__)
            return function(*arguments, **keywords)

        return call

    epoch = 1
    for at in range(100):
        calls.clear()
        backup = AtomicBackup(tmp_path)
        backup.set_model(model)
        with monkeypatch.context() as patch:
            for name in ("replace", "mkdir", "rmdir", "unlink"):
                patch.setattr(os, name, stopping(getattr(os, name), at))
            try:
                backup.on_epoch_end(epoch)
                done = True
            except KeyboardInterrupt:
                done = False
        names = sorted(path.name for path in tmp_path.glob("epoch-*"))
        for name in names:
            metadata = json.loads(
                (tmp_path / name / "training_metadata.json").read_text()
            )
            assert metadata["epoch"] == int(name.removeprefix("epoch-"))
            make().load_weights(tmp_path / name / "latest.weights.h5")
        assert 1 <= len(names) <= 2
        restored = AtomicBackup(tmp_path)
        restored.set_model(make())
        restored.on_train_begin()
        if done:
            break
        epoch = restored.initial_epoch
    assert done and at >= 4
    assert {"replace", "unlink"} <= set(calls)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    # A layer that is not quantized, so that no mask is drawn from it.
    model = make()
    plain = keras_sq.strip_quantization(model)
    plain.compile("sgd", "mse")
    with pytest.raises(NotFiniteError, match=r"Weight '.*logits/kernel' .* epoch 1 "):
        fit(plain, AtomicBackup(tmp_path), Spoil("logits"))
    assert AtomicBackup(tmp_path).initial_epoch == 1


@pytest.mark.parametrize("first", ["ours", "keras", "atomic"])
def test_kernel_that_diverges_does_not_replace_a_backup(first, tmp_path):
    """Whatever the order of the callbacks, Keras's own backup too."""
    model = make()
    sq = StochasticQuantization("linear")
    keras_backup = keras.callbacks.BackupAndRestore(str(tmp_path / "keras"))
    atomic = AtomicBackup(tmp_path / "atomic")
    order = {
        "ours": [Spoil(), sq, keras_backup, atomic],
        "keras": [keras_backup, Spoil(), atomic, sq],
        "atomic": [atomic, keras_backup, Spoil(), sq],
    }[first]
    with pytest.raises(NotFiniteError, match="kernel of layer 'hidden' holds NaN"):
        fit(model, *order)
    for folder in (tmp_path / "keras", next((tmp_path / "atomic").iterdir())):
        metadata = json.loads((folder / "training_metadata.json").read_text())
        assert metadata["epoch"] == 1
        good = make()
        good.load_weights(folder / "latest.weights.h5")
        assert backups.not_finite_weight(good) is None


@pytest.mark.parametrize("first", ["terminate", "ours"])
def test_terminate_on_nan_stops_and_the_layer_is_named(first, tmp_path):
    model = make(keras.optimizers.SGD(1e12))
    callbacks = [
        keras.callbacks.TerminateOnNaN(),
        StochasticQuantization("linear"),
        AtomicBackup(tmp_path / "backup"),
    ]
    if first == "ours":
        callbacks.reverse()
    with pytest.warns(UserWarning, match="was stopped. The kernel of layer 'hidden'"):
        history = fit(model, *callbacks, epochs=20)
    assert len(history.epoch) < 20
    assert backups.not_finite_weight(model) is not None
    kept = AtomicBackup(tmp_path / "backup").newest
    if kept is not None:
        model.load_weights(kept / "latest.weights.h5")
        assert backups.not_finite_weight(model) is None


def test_full_disk_keeps_the_backup_before(tmp_path):
    model = make(units=30_000)
    backup = AtomicBackup(tmp_path)
    fit(model, backup, StochasticQuantization(), epochs=1)
    before = contents(tmp_path)
    with (
        # More than JAX keeps of what it compiles, less than a backup.
        largest_file(400_000),
        pytest.raises(OSError, match="backup of epoch 1 .*large"),
    ):
        fit(model, backup, StochasticQuantization(), epochs=2)
    assert contents(tmp_path) == before
    fit(model, backup, StochasticQuantization(), epochs=2)
    assert backup.initial_epoch == 2


def test_folder_must_be_a_path():
    with pytest.raises(TypeError, match="`folder` must be a string or a path"):
        AtomicBackup(3)


def test_backup_that_cannot_get_its_name_is_told(tmp_path, monkeypatch):
    model = make()
    fit(model, StochasticQuantization(), AtomicBackup(tmp_path), epochs=1)
    backup = AtomicBackup(tmp_path)
    backup.set_model(model)

    def no_rename(source, target):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(os, "replace", no_rename)
    match = r"Cannot write the backup of epoch 1 \(from 0\) in .*Permission denied"
    with pytest.raises(OSError, match=match):
        backup.on_epoch_end(1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001"]


def test_older_backup_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    model = make()
    fit(model, StochasticQuantization(), AtomicBackup(tmp_path), epochs=1)
    backup, replace = AtomicBackup(tmp_path), os.replace
    backup.set_model(model)

    def no_removal(source, target):
        if pathlib.Path(source).name == "epoch-000001":
            raise PermissionError(13, "Permission denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_removal)
    with pytest.raises(OSError, match="Wrote the backup of epoch 1 .*cannot remove"):
        backup.on_epoch_end(1)
    assert backup.initial_epoch == 2


def test_strangers_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "epoch-notes").mkdir()
    (tmp_path / "epoch-999999").write_text("a file")
    (tmp_path / "epoch-best.keras").write_text("another")
    backup = AtomicBackup(tmp_path)
    assert backup.newest is None and backup.initial_epoch == 0
    fit(make(), StochasticQuantization(), backup, epochs=2)
    assert backup.initial_epoch == 2
    backup.discard()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"epoch-notes", "epoch-999999", "epoch-best.keras"}


def test_folder_of_a_backup_s_name_without_check_sums(tmp_path):
    (tmp_path / "epoch-000003").mkdir()
    with pytest.raises(ValueError, match="epoch-000003' is no backup.*no checksums"):
        fit(make(), AtomicBackup(tmp_path))


def test_newest_backup_is_that_of_most_epochs(tmp_path):
    for name in ("epoch-999999", "epoch-1000000"):
        (tmp_path / name).mkdir()
    assert AtomicBackup(tmp_path).initial_epoch == 1000000


def test_seed_of_the_masks_may_be_another(tmp_path):
    """It is part of the state: whatever the new model was made with."""
    fit(make(), StochasticQuantization(), AtomicBackup(tmp_path), epochs=2)
    other = keras_sq.quantize_model(
        keras_sq.strip_quantization(make()), "binary", seed=5, overrides={}
    )
    other.compile("sgd", "mse", jit_compile=JIT_COMPILE)
    history = fit(other, StochasticQuantization(), AtomicBackup(tmp_path))
    assert history.epoch == [2]
    # Files of earlier versions name the seed.
    newest = AtomicBackup(tmp_path).newest
    text = json.loads((newest / "network.json").read_text())
    text["quantization"] = [x | {"mask_seed": 3} for x in text["quantization"]]
    (newest / "network.json").write_text(json.dumps(text))
    (newest / "checksums.json").unlink()
    backups.file_checks.seal(newest)
    backup = AtomicBackup(tmp_path)
    assert fit(make(), StochasticQuantization(), backup).epoch == []
