"""Checks of the accelerator's runner that need JAX: run in a process of their own.

    KERAS_BACKEND=jax python tests/benchmarks/accelerator_checks.py same:sq

`test_accelerator_runner.py` starts it. Prints what was compared; an assertion that
fails ends it with an error.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import signal
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).parent / "accelerator"
sys.path.insert(0, str(FOLDER))

import augmentation  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import rows  # noqa: E402
import run  # noqa: E402
import state  # noqa: E402
from absl import flags  # noqa: E402
from augmentation import Images  # noqa: E402
from job import Job  # noqa: E402
from row import Row  # noqa: E402
from session import Session, load_images  # noqa: E402
from training import Trainer  # noqa: E402

import keras_sq  # noqa: E402
from keras_sq import models, presets, schedules  # noqa: E402
from keras_sq.core import keras_internals as internals  # noqa: E402

STEPS, BATCH = 50, 4

SQ = dataclasses.replace(
    presets.sq_twn(), schedule=schedules.Stages([0.5, 0.75], allow_partial=True)
)
"""With a stage that begins within the steps, and momentum that is cleared there."""

METHODS = {
    "sq": SQ,
    "lq-2": presets.lq_nets(2),
    "stompp": presets.stompp(ramp=1.0),
}


def images(examples=STEPS * BATCH, side=8, seed=0):
    """Returns random images whose brightness says their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, examples).astype("int32")
    pixels = rng.integers(0, 120, (examples, side, side, 3))
    pixels = (pixels + 12 * labels[:, None, None, None]).astype("uint8")
    mean, std = augmentation.channel_statistics(pixels)
    return Images(*map(jnp.asarray, (pixels, labels, pixels, labels, mean, std)))


def small_network(side=8):
    """Returns a network that is compiled quickly, with all that moves in training."""
    decay = keras.regularizers.L2(5e-5)
    layers = keras.layers
    more = {"use_bias": False, "kernel_regularizer": decay}
    return keras.Sequential(
        [
            keras.Input((side, side, 3)),
            layers.Conv2D(8, 3, strides=2, name="conv1", **more),
            layers.BatchNormalization(name="bn1"),
            layers.ReLU(),
            layers.Conv2D(12, 3, strides=2, name="conv2", **more),
            layers.BatchNormalization(name="bn2"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.1, seed=3),
            layers.Dense(10, name="logits", kernel_regularizer=decay),
        ]
    )


def network(method):
    """Returns a network, quantized and compiled."""
    keras.utils.set_random_seed(1)
    if method == "stompp":
        model = models.resnet((8, 8, 3), 10, depth=8, activation="hard_tanh")
    else:
        model = small_network()
    model = METHODS[method].quantize_model(model, seed=0)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [20, 35], [0.1, 0.03, 0.01]
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    return model


class Watch(keras.callbacks.Callback):
    """Keeps all values of a model and its optimizer after every step of `fit`."""

    def __init__(self, variables):
        super().__init__()
        self.variables, self.values = variables, []

    def on_train_batch_end(self, batch, logs=None):
        self.model.jax_state_sync()
        self.values.append([np.array(x.value) for x in self.variables])


def difference(these, those):
    """Returns how far floats differ, after checking that all else is the same."""
    worst = 0.0
    for one, other in zip(map(np.array, these), those, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.dtype == np.float32:
            worst = max(worst, float(np.abs(one - other).max(initial=0.0)))
        else:
            assert np.array_equal(one, other), "masks, seeds or counters differ"
    return worst


def same(method):
    """Fifty steps of `fit` with the callback, and of the runner, step by step."""
    data = images()
    order = np.asarray(augmentation.epoch_order(7, 0, STEPS * BATCH))
    assert sorted(order) == list(range(STEPS * BATCH))
    preset = METHODS[method]
    model = network(method)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    variables += model.optimizer.variables
    start = [np.array(x.value) for x in variables]
    watch = Watch(variables)
    history = model.fit(
        np.asarray(augmentation.standardize(data.train[order], data)),
        np.asarray(data.train_labels[order]),
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[*preset.callbacks(), watch],
    ).history
    # The very model again: the runner starts from the values that it is told.
    compiled = Trainer(
        model,
        preset.callbacks(),
        epochs=1,
        steps_per_epoch=STEPS,
        batch_size=BATCH,
        augment=False,
    )
    values, loss, far = compiled.stack([start]), 0.0, []
    for step in range(STEPS):
        values, sums = compiled.train(values, data, 7, 0, step, 1)
        loss += float(sums.loss)
        assert bool(sums.finite)
        far.append(difference(values, watch.values[step]))
    assert abs(loss / STEPS - history["loss"][0]) < 1e-5
    ratio = compiled.ratio(values)
    assert ratio == history.get("quantized_ratio", [1.0])[0]
    masks = [x for x in watch.values[STEPS // 3] if x.dtype == bool]
    part = sum(x.sum() for x in masks) / sum(x.size for x in masks)
    # In a loop XLA computes convolutions otherwise, so that the last bits differ.
    values, _ = compiled.train(compiled.stack([start]), data, 7, 0, 0, 5)
    in_loop = difference(values, watch.values[4])
    print(f"{method}: fit and steps {max(far)}, five in a loop {in_loop:.1e}")
    assert max(far) == 0.0
    assert in_loop < 1e-5
    assert part == 1.0 if method == "lq-2" else 0.0 < part < 1.0


# Jobs of a small row.


class SmallRow(Row):
    """A row of the plan with another network and a small batch."""

    def config(self, scale=1.0, seed=0):
        return dataclasses.replace(super().config(scale, seed), batch_size=16)

    def float_network(self):
        return small_network(side=32)


ROW = SmallRow("small_sq", "resnet20_equal", "small", "none", "cifar10_resnet20_sq_twn")
LONG = SmallRow(
    "small_long", "resnet20_long", "small", "none", "cifar10_resnet20_bwn", repeats=4
)
SCALE = 0.009
"""Factor that leaves 2 of 200 epochs, of 4 steps each."""


def write_images(folder):
    """Writes what `unpack.py` leaves."""
    folder.mkdir()
    data = images(80, side=32)
    for part in ("train", "test"):
        np.save(folder / f"{part}_images.npy", np.asarray(data.train))
        labels = np.asarray(data.train_labels).astype("uint8")
        np.save(folder / f"{part}_labels.npy", labels)
    return folder


def session(folder, name, **settings):
    """Returns a session with folders of its own."""
    settings = {"scale": SCALE, "deadline": time.time() + 600, **settings}
    return Session(
        data=folder / "data",
        out=folder / name,
        state=folder / name / "state",
        **settings,
    )


def run_job(row, seeds, session, steps=None):
    """Trains seeds of a row, some steps or all; returns the job."""
    job = Job(row, seeds, session, load_images(session.data, session.scale))
    if steps is None:
        assert job.train(lambda line: None)
        return job
    for _ in range(steps):
        job.advance()
        if job.positions[0].step == 0:
            job.end_epoch(lambda line: None)
    return job


def result(session, row, seed):
    """Returns what a run left, without what depends on the time."""
    found = json.loads(session.result_path(row, seed).read_text())
    for line in found["curve"]:
        del line["seconds"]
    for key in ("seconds_per_epoch", "date", "together"):
        del found[key]
    return found


def jobs(folder):
    """Seeds one by one, together, and stopped and resumed: the same results."""
    folder = pathlib.Path(folder)
    write_images(folder / "data")
    alone = session(folder, "alone")
    values = [run_job(ROW, [seed], alone) for seed in (0, 1)]
    assert not alone.state_path(ROW, 0).exists()
    assert alone.kept_path(ROW, 0).exists()
    found = result(alone, ROW, 0)
    assert found["finished"] and found["epochs_done"] == found["epochs"] == 2
    assert [line["epoch"] for line in found["curve"]] == [1, 2]
    assert found["test_accuracy"] == found["curve"][-1]["test_accuracy"] > 0
    assert found["settings"] == ROW.settings
    with np.load(alone.out / "codes" / "small_sq-seed0.npz") as codes:
        kernels = [name for name in codes.files if name.endswith("/codes")]
        assert len(kernels) == 3
        assert {codes[name].dtype for name in kernels} == {np.dtype("int8")}
        assert set(np.unique(codes[kernels[0]])) == {-1, 0, 1}
    # Together: another program, so that last bits may differ.
    both = run_job(ROW, [0, 1], session(folder, "both"))
    assert both.trainer.runs == 2
    for one, other in zip(
        (x.trainer.unstack(x.values)[0] for x in values),
        both.trainer.unstack(both.values),
        strict=True,
    ):
        assert difference(one, other) < 1e-4
    print("vmap: the same masks, and kernels up to rounding")
    # Time that is up in the middle of an epoch; then it goes on, bit for bit.
    parts = session(folder, "parts")
    job = run_job(ROW, [0], parts, steps=3)
    job.save()
    assert not result(parts, ROW, 0)["finished"]
    assert parts.state_path(ROW, 0).stat().st_size < 2**20
    job = run_job(ROW, [0], parts)
    ended = values[0].trainer.unstack(values[0].values)[0]
    assert difference(job.trainer.unstack(job.values)[0], ended) == 0.0
    assert result(parts, ROW, 0) == found
    print("resumed: the same bits")
    refused(folder, parts)
    cleared(folder)


def refused(folder, parts):
    """States that no run goes on from stay as they are."""
    job = run_job(ROW, [1], parts, steps=1)
    job.save()
    path = parts.state_path(ROW, 1)
    before = path.read_bytes()

    def message(**changes):
        identity = {**job.identities[1], **changes}
        try:
            state.load(path, identity, job.trainer.unstack(job.values)[0])
        except state.StateError as error:
            return str(error)
        return "no error"

    assert message() == "no error"
    assert "with keras_sq='0" in message(keras_sq="99")
    assert "with settings={" in message(settings={})
    assert path.read_bytes() == before
    path.write_bytes(before[:-1000])
    assert "is damaged" in message()
    state.set_aside(path)
    assert not path.exists()
    assert path.with_name(path.name + ".old-1").read_bytes() == before[:-1000]
    print("refused: other versions, other settings, damage")


def cleared(folder):
    """A baseline in four trainings: the momentum is cleared, the rate restarts."""
    job = run_job(LONG, [0], session(folder, "long"), steps=4)
    assert job.length.stage_starts == (0, 8, 16, 24)
    optimizer = job.trainer.model.optimizer
    place = {id(x): i for i, x in enumerate(job.trainer.variables)}
    slots = [place[id(x)] for x in internals.optimizer_slots(optimizer)]
    values = job.trainer.unstack(job.values)[0]
    assert all(values[slot].any() for slot in slots)
    without = list(values)
    for slot in slots:
        without[slot] = np.zeros_like(values[slot])
    for step, begins in ((7, False), (8, True), (9, False)):
        after = []
        for start in (values, without):
            start[place[id(optimizer.iterations)]] = np.asarray(step, "int32")
            trained, _ = job.trainer.train(
                job.trainer.stack([start]), job.images, 0, step // 4, step % 4, 1
            )
            after.append(job.trainer.unstack(trained)[0])
        assert (difference(*after) == 0.0) == begins
    print("cleared: the momentum, where a training begins again")


# The command.


def command(*flags_given):
    """Runs the command in this process; returns its status and both outputs."""
    rows._BY_NAME.update({row.name: row for row in (ROW, LONG)})
    values = flags.FlagValues()
    run.define_flags(values)
    values(["run.py", "--nosteps", *map(str, flags_given)])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run.main(values)
    return status, out.getvalue(), err.getvalue()


def folders(folder, name):
    """Returns the flags that say where a session reads and writes."""
    folder = pathlib.Path(folder)
    return (
        f"--data={folder / 'data'}",
        f"--out={folder / name}",
        f"--state={folder / name / 'state'}",
        f"--plan={folder / 'plan.csv'}",
        "--allow_cpu",
    )


KILLED = ("--scale=0.25", "--save_every=0", "--test_every=3", "--minutes=9")
"""Fifty epochs of five steps, with a state after each step."""


def victim(folder):
    """Trains until it is killed."""
    print(command(*folders(folder, "killed"), *KILLED))


def killed(folder):
    """A run that is killed in the middle ends as one that is not."""
    folder = pathlib.Path(folder)
    write_images(folder / "data")
    (folder / "plan.csv").write_text("row,seeds\nsmall_sq,0\n")
    saved = session(folder, "killed", scale=0.25).state_path(ROW, 0)
    process = subprocess.Popen(
        [sys.executable, __file__, f"victim:{folder}"], stderr=subprocess.PIPE
    )
    while not saved.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    with np.load(saved) as file:
        position = json.loads(file["meta"].tobytes())["position"]
    assert 0 < position["epoch"] * 5 + position["step"] < 250
    for name in ("killed", "whole"):
        status, out, err = command(*folders(folder, name), *KILLED[:1], KILLED[2])
        assert (status, err) == (0, "")
        assert "epoch 50 of 50" in out
    one, other = (session(folder, name, scale=0.25) for name in ("killed", "whole"))
    assert result(one, ROW, 0) == result(other, ROW, 0)
    codes = []
    for where in (one, other):
        with np.load(where.out / "codes" / "small_sq-seed0.npz") as file:
            codes.append({name: file[name] for name in file.files})
    assert codes[0].keys() == codes[1].keys()
    assert all(np.array_equal(codes[0][name], codes[1][name]) for name in codes[0])
    # What has ended is known from the states, and not trained again.
    status, out, err = command(*folders(folder, "whole"), *KILLED[:1])
    assert (status, out, err) == (0, "All runs of the plan have ended.\n", "")
    print(f"killed at step {position['epoch'] * 5 + position['step']} of 250: the same")
    requests(folder)


def requests(folder):
    """What cannot be done is said in one line, and changes nothing."""
    usual = folders(folder, "requests")

    def refused(part, *flags_given):
        status, out, err = command(*flags_given)
        assert status == 2, (status, out, err)
        assert part in err and err.startswith("run.py: error: ")
        assert err.count("\n") == 1, err

    refused("There is no GPU", *usual[:-1])
    refused("Flag --data must", *usual[1:])
    refused("is missing: unpack", *usual, "--data=nowhere", "--scale=0.001")
    refused("must be one of", *usual, "--only=resnet21")
    refused("must be row:seed", *usual, "--only=small_sq:x")
    (folder / "broken").mkdir()
    for path in (folder / "data").iterdir():
        (folder / "broken" / path.name).write_bytes(path.read_bytes()[:100])
    broken = f"--data={folder / 'broken'}"
    refused("is damaged: unpack", *usual, broken, "--scale=0.001")
    # Another package: the state stays, until it is set aside.
    small = ("--only=small_long:0", "--scale=0.001")
    status, _, err = command(*usual, *small, f"--deadline={time.time() + 1.5}")
    assert (status, err) == (0, "")
    saved = session(folder, "requests", scale=0.001).state_path(LONG, 0)
    if not saved.exists():  # It was quick enough to end.
        state.save(saved, {}, state.Position(), [])
    before = saved.read_bytes()
    session(folder, "requests", scale=0.001).kept_path(LONG, 0).unlink(missing_ok=True)
    version, keras_sq.__version__ = keras_sq.__version__, "99"
    try:
        refused("Use --restart to begin anew", *usual, *small)
        assert saved.read_bytes() == before
        status, _, err = command(*usual, *small, "--restart")
        assert (status, err) == (0, "")
        assert saved.with_name(saved.name + ".old-1").read_bytes() == before
        assert result(session(folder, "requests"), LONG, 0)["finished"]
    finally:
        keras_sq.__version__ = version
    print("refused: one line each, nothing lost")


CHECKS = {"same": same, "jobs": jobs, "killed": killed, "victim": victim}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        check, _, rest = argument.partition(":")
        CHECKS[check](*([rest] if rest else []))
