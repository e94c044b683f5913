"""One row of the plan, trained: from its state, or anew, until it ends or time is up.

Several seeds of a row can train together in one program (`vmap`). What is written, a
state and a result for each seed, is the same as if they had trained one by one, up to
the rounding of another program.
"""

import contextlib
import datetime
import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import state
from augmentation import Images
from row import Row
from session import Session, train_examples
from state import Position
from training import Trainer

import keras_sq

CHUNK_STEPS = 130
"""Steps in one compiled call on an accelerator, at most: a third of an epoch."""

MARGIN = 3.0
"""Seconds that are left at the end, besides what saving took before."""


def precision() -> str:
    """Returns how float32 products are computed, for the results."""
    default = "tensorfloat32" if jax.default_backend() == "gpu" else "float32"
    chosen = str(jax.config.jax_default_matmul_precision or default)
    return "tf32" if chosen == "tensorfloat32" else chosen


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which single operations run on the CPU.

    A network is made of hundreds of them, each of which is compiled first.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out.
        return contextlib.nullcontext()


def new_network(row: Row, seed: int, steps: int) -> keras.Model:
    """Returns a row's network with new weights, quantized and compiled.

    With the random seeds of `keras_sq.train`: the same first weights for all rows.

    Args:
        row: The row.
        seed: Of the run.
        steps: Of the whole run.
    """
    with on_cpu():
        keras.utils.set_random_seed(seed + 1)
        network = row.float_network()
        keras.utils.set_random_seed(seed + 2)
        model = row.quantized(network, seed)
        model.compile(
            keras.optimizers.SGD(row.learning_rate(steps), momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )
        model.optimizer.build(model.trainable_variables)
    return model


class Job:
    """Seeds of a row that train together.

    Args:
        row: The row.
        seeds: One seed; or several, for one program.
        session: Where and how long.
        images: As from `load_images`.

    Raises:
        state.StateError: If a state cannot be gone on from.
    """

    def __init__(
        self, row: Row, seeds: Sequence[int], session: Session, images: Images
    ) -> None:
        self.row, self.session = row, session
        examples = train_examples(row, images, session.scale)
        self.length = row.length(examples, session.scale)
        # Statistics are of all images.
        images = images._replace(
            train=images.train[:examples], train_labels=images.train_labels[:examples]
        )
        model = new_network(row, seeds[0], self.length.steps)
        values = [np.array(x.value) for x in _variables(model)]
        self.identities = {seed: self._identity(seed, examples) for seed in seeds}
        read = {}
        for number, seed in enumerate(seeds):
            path = session.state_path(row, seed)
            read[seed] = state.load(path, self.identities[seed], values)
            if read[seed] is None:
                if number:
                    other = new_network(row, seed, self.length.steps)
                    values = [np.array(x.value) for x in _variables(other)]
                read[seed] = Position(), values
        # Only runs at the same step share a program; the others' turn comes later.
        first = read[seeds[0]][0]
        self.seeds = [
            seed
            for seed in seeds
            if (read[seed][0].epoch, read[seed][0].step) == (first.epoch, first.step)
        ]
        self.positions = [read[seed][0] for seed in self.seeds]
        with on_cpu(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.trainer = Trainer(
                model,
                row.callbacks(),
                epochs=self.length.epochs,
                steps_per_epoch=self.length.steps_per_epoch,
                batch_size=row.batch_size,
                clear_at=self.length.stage_starts if row.clear_momentum else (),
                runs=len(self.seeds) if len(self.seeds) > 1 else 0,
            )
        self.chunk = session.steps_per_call or _steps_per_call(
            self.length.steps_per_epoch
        )
        self.values = self.trainer.stack([read[seed][1] for seed in self.seeds])
        self.images = Images(*map(jnp.asarray, images))
        self._slowest = {"call": 0.5, "test": 0.5, "save": 0.5}

    def _identity(self, seed: int, examples: int) -> dict[str, Any]:
        return {
            "row": self.row.name,
            "settings": self.row.settings,
            "seed": seed,
            "scale": self.session.scale,
            "train_examples": examples,
            "epochs": self.length.epochs,
            "keras_sq": keras_sq.__version__,
            "keras": keras.__version__,
        }

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.positions[0].epoch >= self.length.epochs

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.finished or all(position.problem for position in self.positions)

    @property
    def _seed_argument(self) -> Any:
        return self.seeds if self.trainer.runs else self.seeds[0]

    def compile(self) -> None:
        """Compiles what an epoch needs, if the cache has it not."""
        self.trainer.compile(self.chunk, self.values, self.images, self._seed_argument)
        self.trainer.compile_test(self.values, self.images)

    def train(self, report: Callable[[str], None] = print) -> bool:
        """Trains until the runs end, time is up or nothing is left that can go on.

        Args:
            report: Gets a line of text for each test.

        Returns:
            Whether the runs have ended, by their length or because they diverged.
        """
        self.compile()
        saved = time.time()
        while not self.ended:
            needed = self._slowest["call"] * 1.2 + self._slowest["test"]
            if self.session.left < needed + 2 * self._slowest["save"] + MARGIN:
                break
            self.advance()
            if self.positions[0].step == 0:
                self.end_epoch(report)
            if time.time() - saved > self.session.save_every:
                self.save()
                saved = time.time()
        self.save()
        if self.finished:
            self._keep_codes()
        for position, seed in zip(self.positions, self.seeds, strict=True):
            if self.finished or position.problem:
                result = self.session.result_path(self.row, seed)
                kept = self.session.kept_path(self.row, seed)
                state.write_json(kept, json.loads(result.read_text()))
            if self.finished and not position.problem:
                self.session.state_path(self.row, seed).unlink(missing_ok=True)
        return self.ended

    def advance(self) -> float:
        """Trains one call of steps, and returns how many seconds it took."""
        now = self.positions[0]
        length = min(self.chunk, self.length.steps_per_epoch - now.step)
        self.trainer.compile(length, self.values, self.images, self._seed_argument)
        began = time.time()
        self.values, sums = self.trainer.train(
            self.values,
            self.images,
            self._seed_argument,
            now.epoch,
            now.step,
            length,
        )
        sums = [np.atleast_1d(np.asarray(x)) for x in sums]
        seconds = time.time() - began
        self._slowest["call"] = max(self._slowest["call"], seconds)
        ends = now.step + length == self.length.steps_per_epoch
        for run, position in enumerate(self.positions):
            position.loss += float(sums[0][run])
            position.correct += int(sums[1][run])
            position.seconds += seconds
            position.step = 0 if ends else position.step + length
            position.epoch += int(ends)
            if not sums[2][run] and not position.problem:
                position.problem = f"diverged in epoch {position.epoch + 1 - ends}"
        return seconds

    def end_epoch(self, report: Callable[[str], None]) -> None:
        """Notes the epoch in the curves, tested if it is due."""
        epoch, steps = self.positions[0].epoch, self.length.steps_per_epoch
        tests = None
        if epoch % self.session.test_every == 0 or self.finished:
            began = time.time()
            tests = np.atleast_1d(self.trainer.test(self.values, self.images))
            self._slowest["test"] = max(self._slowest["test"], time.time() - began)
        ratio = self.trainer.ratio(self.values)
        for run, position in enumerate(self.positions):
            if position.problem:
                continue
            accuracy = None if tests is None else float(tests[run])
            line = {
                "epoch": epoch,
                "loss": position.loss / steps,
                "train_accuracy": 100.0
                * position.correct
                / (steps * self.row.batch_size),
                "ratio": ratio,
                "test_accuracy": accuracy,
                "seconds": position.seconds,
            }
            position.curve.append(line)
            position.loss, position.correct, position.seconds = 0.0, 0, 0.0
            if accuracy is not None:
                report(
                    f"{self.row.name} seed {self.seeds[run]}: epoch {epoch} of "
                    f"{self.length.epochs}, loss {line['loss']:.3f}, train "
                    f"{line['train_accuracy']:.2f} %, test {accuracy:.2f} %, "
                    f"{line['seconds']:.2f} s an epoch"
                )

    def save(self) -> None:
        """Saves states and results; of a run that diverged only the result."""
        began = time.time()
        for seed, position, values in zip(
            self.seeds,
            self.positions,
            self.trainer.unstack(self.values),
            strict=True,
        ):
            if not position.problem:
                state.save(
                    self.session.state_path(self.row, seed),
                    self.identities[seed],
                    position,
                    values,
                )
            path = self.session.result_path(self.row, seed)
            state.write_json(path, self._result(seed, position))
        self._slowest["save"] = max(self._slowest["save"], time.time() - began)

    def _result(self, seed: int, position: Position) -> dict[str, Any]:
        device = jax.devices()[0]
        times = [line["seconds"] for line in position.curve]
        finished = self.finished and not position.problem
        return {
            "row": self.row.name,
            "settings": self.row.settings,
            "seed": seed,
            "scale": self.session.scale,
            "epochs": self.length.epochs,
            "epochs_done": len(position.curve),
            "finished": finished,
            "problem": position.problem,
            "test_accuracy": position.curve[-1]["test_accuracy"] if finished else None,
            "seconds_per_epoch": float(np.median(times)) if times else None,
            "train_examples": self.identities[seed]["train_examples"],
            "device": f"{device.platform}: {device.device_kind}",
            "precision": precision(),
            "together": self.session.together,
            "keras_sq": keras_sq.__version__,
            "keras": keras.__version__,
            "jax": jax.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            ),
            "curve": position.curve,
        }

    def _keep_codes(self) -> None:
        """Writes integer codes and scales; of a float network nothing."""
        if not self.trainer.layers:
            return
        for seed, position, values in zip(
            self.seeds,
            self.positions,
            self.trainer.unstack(self.values),
            strict=True,
        ):
            if position.problem:
                continue
            with on_cpu():
                self.trainer.put(values)
                codes = keras_sq.get_codes(self.trainer.model)
            arrays = {}
            for name, kernel in codes.items():
                arrays[f"{name}/codes"] = kernel.codes
                arrays[f"{name}/scale"] = kernel.scale
                if kernel.levels is not None:
                    arrays[f"{name}/levels"] = kernel.levels
            path = self.session.out / "codes" / f"{self.row.name}-seed{seed}.npz"
            state.write_whole(
                path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays)
            )


def _variables(model: keras.Model) -> list[Any]:
    """Returns all variables of a model and its optimizer, in `Trainer`'s order."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]


def _steps_per_call(steps_per_epoch: int) -> int:
    """Returns how many steps a compiled call has: equal parts of an epoch."""
    if jax.default_backend() == "cpu":
        return 1  # XLA computes convolutions in a loop many times slower there.
    return max(n for n in range(1, CHUNK_STEPS + 1) if steps_per_epoch % n == 0)
