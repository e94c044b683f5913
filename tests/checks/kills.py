r"""Kills training runs with SIGKILL, and checks what is left and what becomes of it.

    python tests/checks/kills.py
    python tests/checks/kills.py --kills=8 --jobs=fit --seed=3

Two jobs are killed and started again until they end: `python -m keras_sq.train
--resume` (a float and an SQ network, exports, report), and `fit` with
`StochasticQuantization` and `AtomicBackup`, followed by an export. After every kill
each file that has its final name must be whole; at the end everything must be, bit
for bit, what an uninterrupted run leaves. Nothing else may lie there, but the hidden
`.tmp` files of killed exports, which `keras_sq.train` removes and `export` by itself
does not.

The rare moments are found by their events, not by the clock: each file that is
opened, renamed or removed, each array that HDF5 is given and each part of a `.keras`
file is one (Python's audit hook tells of the first kind). A kill is at a random event
of a chosen kind of work, at once or up to some milliseconds later. With the seed the
kills are the same, but for those milliseconds.

Processes are forked from one that has imported TensorFlow and run nothing.
"""

import argparse
import collections
import contextlib
import csv
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

import h5py
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import keras_sq
from keras_sq.callbacks import backup as backups
from keras_sq.experiments import run_folder, train
from keras_sq.experiments.flags import define_flags

WORK = {
    "step": 0.2,
    "backup": 0.4,
    "saving": 0.1,
    "export": 0.2,
    "report": 0.1,
}
"""What a run does, and how many of the kills are to fall into it."""

LATEST = {"export": 0.3}
"""Seconds after an event, at most; otherwise 0.02."""

UNFINISHED = ("unfinished", ".tmp")
"""How the names end of what is being written."""


# In the killed process.


class Events:
    """Counts the events of each kind of work, and asks to be killed at one.

    Args:
        folder: Of the files that count.
        pipe: Descriptor to write to when it is time.
        work: Kind of work to be killed in; `None` is never.
        number: At which of its events, from 1.
        at_once: Whether to die there, and not only tell the parent.
    """

    def __init__(self, folder, pipe, work=None, number=0, at_once=True):
        self.folder, self.pipe = str(folder), pipe
        self.work, self.number, self.at_once = work, number, at_once
        self.counts = collections.Counter()
        self.now = []

    def install(self):
        sys.addaudithook(self.audit)
        for owner, name in (
            (h5py.Group, "create_dataset"),
            (h5py.File, "close"),
            (zipfile.ZipFile, "writestr"),
            (zipfile.ZipFile, "open"),
            (zipfile.ZipFile, "close"),
        ):
            setattr(owner, name, self.counted(getattr(owner, name)))
        for owner, name, work in (
            (backups.AtomicBackup, "on_epoch_end", "backup"),
            (train, "_save", "saving"),
            (train, "export", "export"),
            (keras_sq, "export", "export"),
            (train, "write_text", "report"),
            (train, "write_json", "report"),
            (run_folder, "write_json", "report"),
            (train, "_plot", "report"),
        ):
            setattr(owner, name, self.during(getattr(owner, name), work))

        def batch(callback, index, logs=None):
            self.event("step")

        backups.AtomicBackup.on_train_batch_begin = batch

    def audit(self, event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            path = str(arguments[0])
            reads = event == "open" and arguments[1] in ("r", "rb")
            if self.now and path.startswith(self.folder) and not reads:
                self.event(self.now[0])

    def counted(self, function):
        def call(*arguments, **keywords):
            if self.now:
                self.event(self.now[0])
            return function(*arguments, **keywords)

        return call

    def during(self, function, work):
        def call(*arguments, **keywords):
            self.now.append(work)
            try:
                return function(*arguments, **keywords)
            finally:
                self.now.pop()

        return call

    def event(self, work):
        self.counts[work] += 1
        if work == self.work and self.counts[work] == self.number:
            os.write(self.pipe, b"x")
            if self.at_once:
                os.kill(os.getpid(), signal.SIGKILL)


def train_job(folder):
    """The command line's job."""
    values = flags.FlagValues()
    define_flags(values)
    values(
        [
            *("train", "--model=mlp", "--only=sq", "--limit=160", "--batch_size=32"),
            *("--epochs=3", "--float_epochs=2", "--verbose=0", "--resume"),
            f"--output_dir={folder / 'run'}",
            f"--data_dir={folder.parent / 'data'}",
        ]
    )
    with contextlib.redirect_stdout(None):
        return train.main(values)


def fit_job(folder):
    """A loop of one's own, with learned codebooks and Adam."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(12, activation="relu"), layers.Dense(2)]
    )
    model = keras_sq.quantize_model(model, "lq-2", seed=0, overrides={})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 8)).astype("float32")
    model.fit(
        x,
        (x[:, 0] > 0).astype("int32"),
        batch_size=8,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[
            backups.AtomicBackup(folder / "run" / "backup"),
            keras_sq.callbacks.StochasticQuantization("linear"),
        ],
    )
    keras_sq.export(model, folder / "run" / "model.tflite", target="small")
    return 0


JOBS = {"train": train_job, "fit": fit_job}


def start(job, folder, **events):
    """Runs a job in a process of its own.

    Args:
        job: Its name.
        folder: Its own folder.
        **events: Where to kill it, as `Events` takes it, and `delay` in seconds.

    Returns:
        Whether it was killed, and the events that were counted if it was not.
    """
    delay = events.pop("delay", 0.0)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            tf.config.experimental.enable_op_determinism()
            tf.config.threading.set_intra_op_parallelism_threads(1)
            (folder / "run").mkdir(parents=True, exist_ok=True)
            counted = Events(folder / "run", write, at_once=not delay, **events)
            counted.install()
            status = JOBS[job](folder)
            (folder / "counts.json").write_text(json.dumps(counted.counts))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        if pipe.read(1) and delay:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
        return True, {}
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return False, json.loads((folder / "counts.json").read_text())


# What is left.


def arrays(file):
    """Returns all arrays of an HDF5 file, by path."""
    found = {}
    with h5py.File(file, "r") as opened:

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        opened.visititems(visit)
    return found


def same_arrays(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def keras_file(path):
    """Returns the arrays of a .keras file, all of which is read."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None, f"{path} is damaged"
        json.loads(file.read("config.json"))
        with file.open("model.weights.h5") as weights:
            return arrays(weights)


def check_file(path, reference):
    """Raises unless a file that has its final name is whole: as the reference's."""
    if path.suffix == ".keras":
        assert same_arrays(keras_file(path), keras_file(reference)), f"{path} differs"
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"{path} is cut off"
    else:
        assert path.read_bytes() == reference.read_bytes(), f"{path} differs"


def check_backup(folder):
    """Raises unless a backup is whole and of the epoch that its name says."""
    epoch = int(folder.name.removeprefix("epoch-"))
    metadata = json.loads((folder / "training_metadata.json").read_text())
    assert metadata["epoch"] == epoch, f"{folder} is of another epoch"
    found = arrays(folder / "latest.weights.h5")
    assert any("kernel" in name or "vars" in name for name in found), folder
    if (folder / "history.json").exists():
        assert len(json.loads((folder / "history.json").read_text())) == epoch


def check(run, reference, ended=False):
    """Checks everything in a run's folder.

    Args:
        run: The folder.
        reference: Of the uninterrupted run.
        ended: Whether the run came to its end, so that nothing may be missing.
    """
    left = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    whole = {path.relative_to(reference) for path in reference.rglob("*.*")}
    if ended:
        wanted = {path for path in whole if (reference / path).is_file()}
        if not (run / "state").exists():
            # `export` cannot know whether such a file is another process's.
            left = {path for path in left if path.suffix != ".tmp"}
        assert left == wanted, f"{run}: {left ^ wanted} left or missing"
    for path in left:
        if any(part.endswith(UNFINISHED) for part in path.parts):
            continue
        backup = next((p for p in path.parents if p.name.startswith("epoch-")), None)
        if backup is not None:
            check_backup(run / backup)
        elif path.parts[0] != "state" or path.suffix == ".json":
            check_file(run / path, reference / path)
    if (run / "history.csv").exists():
        with (run / "history.csv").open() as file:
            assert len({len(row) for row in csv.reader(file)}) == 1


def kill_again_and_again(kills, jobs, seed, root):
    """Kills so many processes, and prints and returns into what they fell."""
    chance = random.Random(seed)
    fell = collections.Counter()
    counts = {}
    for job in jobs:
        killed, counts[job] = start(job, root / f"{job}-whole")
        assert not killed
        print(f"{job}: events of a whole run: {dict(counts[job])}", flush=True)
    number = chain = 0
    while number < kills:
        job = jobs[chain % len(jobs)]
        chain += 1
        folder, reference = root / f"{job}-{chain}", root / f"{job}-whole" / "run"
        here = 0
        while True:
            possible = [work for work in WORK if counts[job].get(work)]
            aims = [work for work in possible if fell[work] < WORK[work] * (number + 1)]
            work = chance.choice(aims or possible)
            at = {
                "work": work,
                # Of what may be left to do, rather an early one.
                "number": 1 + int(chance.random() ** 2 * counts[job][work]),
                "delay": chance.choice(
                    [0.0, chance.uniform(1e-5, LATEST.get(work, 0.02))]
                ),
            }
            if number >= kills or here == 12:
                at = {}
            began = time.monotonic()
            killed, _ = start(job, folder, **at)
            if not killed:
                break
            number, here = number + 1, here + 1
            fell[work] += 1
            check(folder / "run", reference)
            print(
                f"{number:3} {job:5} killed in {work:6} event {at['number']:3} "
                f"+ {at['delay'] * 1e3:4.1f} ms, {time.monotonic() - began:4.1f} s",
                flush=True,
            )
        check(folder / "run", reference, ended=True)
        print(f"    {job:5} ended as the uninterrupted run", flush=True)
        shutil.rmtree(folder)
    print(f"{number} kills: {dict(fell)}", flush=True)
    return fell


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", default="train,fit")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        kill_again_and_again(
            chosen.kills, chosen.jobs.split(","), chosen.seed, pathlib.Path(root)
        )


if __name__ == "__main__":
    main()
