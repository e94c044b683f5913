"""A run that is killed in mid-epoch and started again ends as if it never was."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from keras_sq import schedules
from keras_sq.layers.selection import SoftRefresh, serialize_way

# Trains 4 epochs of 5 batches; `kill_at` is an optimizer step, or -1.
SCRIPT = textwrap.dedent(
    """
    import json, os, signal, sys

    import keras
    import numpy as np
    from keras import layers

    import keras_sq

    EPOCHS, STEPS, BATCH = 4, 5, 8

    class Batches(keras.utils.PyDataset):
        '''Data whose order depends on the epoch only.'''

        def __init__(self):
            super().__init__()
            rng = np.random.default_rng(0)
            self.x = rng.normal(size=(STEPS * BATCH, 6, 6, 2)).astype("float32")
            self.y = (self.x.mean((1, 2, 3)) > 0).astype("int32")
            self.begin(0)

        def begin(self, epoch):
            self.order = np.random.default_rng(epoch).permutation(len(self.x))

        def __len__(self):
            return STEPS

        def __getitem__(self, index):
            chosen = self.order[index * BATCH : (index + 1) * BATCH]
            return self.x[chosen], self.y[chosen]

    class Kill(keras.callbacks.Callback):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == self.step:
                os.kill(os.getpid(), signal.SIGKILL)

    def model_of(settings, optimizer):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="logits"),
        ], name="net")
        model = keras_sq.quantize_model(model, "ternary", **settings)
        model.compile(
            keras.optimizers.get(optimizer),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=keras.backend.backend() == "jax",
        )
        return model

    def run(folder, backup, kill_at, settings, optimizer, callback):
        keras.backend.clear_session()  # Automatic names begin again.
        model = model_of(settings, optimizer)
        data, epochs = Batches(), []

        def begin(epoch, logs):
            epochs.append(epoch)
            data.begin(epoch)

        callbacks = [
            # Not counted in the data set's `on_epoch_end`, which Keras also calls
            # once before training.
            keras.callbacks.LambdaCallback(on_epoch_begin=begin),
            keras.callbacks.BackupAndRestore(backup, delete_checkpoint=False),
            keras_sq.callbacks.StochasticQuantization(**callback),
            Kill(kill_at),
        ]
        model.fit(
            data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks
        )
        arrays = {f"model:{v.path}": v for v in model.variables}
        arrays |= {f"optimizer:{v.path}": v for v in model.optimizer.variables}
        arrays = {k: np.asarray(v.value) for k, v in arrays.items()}
        np.savez(os.path.join(folder, "end.npz"), **arrays)
        return epochs[0]

    for job in json.loads(sys.argv[1]):
        os.makedirs(job["folder"], exist_ok=True)
        if job["kill_at"] < 0:
            job["first_epoch"] = run(**job)
            with open(os.path.join(job["folder"], "done.json"), "w") as file:
                json.dump(job, file)
            continue
        # These jobs come first: a process in which nothing has run can be forked.
        process = os.fork()
        if not process:
            try:
                run(**job)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert not os.path.exists(os.path.join(job["folder"], "end.npz"))
    """
)

CASES = {
    "momentum, seed": (
        {"seed": 5},
        {"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}},
        {"clear_momentum": True},
    ),
    "Adam, no seed, redraw every third step": (
        {"granularity": "element"},
        {"class_name": "Adam", "config": {"learning_rate": 0.01}},
        {"resample_every": 3, "schedule": "cubic"},
    ),
    # Two turns, of steps 0 to 7 and 8 to 14: killed in the middle of the second.
    "layer after layer, inputs too, soft refresh": (
        {
            "granularity": "element",
            "probability": "constant",
            "selection": serialize_way(SoftRefresh(0.25)),
            "quantized_gradient": "blocked",
            "full_precision": "clip",
            "input_quantizer": "binary",
            "input_granularity": "element",
            "skip": [],
        },
        {"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}},
        {"schedule": schedules.serialize(schedules.Layerwise())},
    ),
}
KILL_AT = 12  # In the third epoch, three updates after a checkpoint at step 10.


def start(jobs):
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def job(folder, case, backup, kill_at):
    settings, optimizer, callback = CASES[case]
    return {
        "folder": str(folder),
        "backup": str(backup),
        "kill_at": kill_at,
        "settings": settings,
        "optimizer": optimizer,
        "callback": callback,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Per case the final state of a whole run and of one that was killed."""
    root = tmp_path_factory.mktemp("resume")
    jobs = []
    for index, case in enumerate(CASES):
        folder = root / str(index)
        jobs.append(job(folder / "resumed", case, folder / "backup", KILL_AT))
    for index, case in enumerate(CASES):
        folder = root / str(index)
        jobs.append(job(folder / "whole", case, folder / "other backup", -1))
        jobs.append(job(folder / "resumed", case, folder / "backup", -1))
    finished = start(jobs)
    assert finished.returncode == 0, finished.stderr
    found = {}
    for index, case in enumerate(CASES):
        folder = root / str(index)
        first = json.loads((folder / "resumed" / "done.json").read_text())[
            "first_epoch"
        ]
        found[case] = (
            dict(np.load(folder / "whole" / "end.npz")),
            dict(np.load(folder / "resumed" / "end.npz")),
            first,
        )
    return found


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(case, runs):
    whole, resumed, first_epoch = runs[case]
    masked = any("input_mask" in name for name in whole)
    assert masked == ("input_granularity" in CASES[case][0])
    assert first_epoch == 2  # It was resumed, not begun anew.
    assert whole.keys() == resumed.keys()
    for part in ("kernel_mask", "quantized_ratio", "mask_seed_generator", "/kernel"):
        assert any(part in name for name in whole), part
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
