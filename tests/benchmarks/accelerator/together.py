"""How several runs share one card, and which way is the fastest there.

| way | |
|---|---|
| `1` | one run after the other, in this process |
| `vmap` | the seeds of a row as one program: convolutions become grouped ones |
| `processes` | a process for each run; each gets a share of the card's memory |

Which is best depends on card, network and libraries. `auto` measures, on the runs that
come first in the plan: it starts them, waits until all have compiled, lets them train
for `TRIAL_SECONDS`, and adds up their steps a second. The answer is kept in
`<state>/together.json`. What was compiled for a trial is in the cache, so a trial
costs little more than starting the processes. Stacking is tried only if there are at
least half as many seeds as processes: fewer have no chance.

A way that takes more memory than there is is given up for one with half the runs.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import bundle
import jax
import state
from job import Job
from row import Row
from session import ENDS, Session, load_images

try:
    import fcntl
except ImportError:  # Windows: two processes compile the same program there.
    fcntl = None

LEAST = 40.0
"""Seconds that must be left to begin with another row: it has to be compiled."""

TRIAL_SECONDS = 8.0
TRIAL_LIMIT = 90.0
"""Seconds until all runs of a trial must have compiled."""

NO_MEMORY = 75
"""Exit status of a process for which the card had too little memory."""

MEMORY = 0.85
"""Part of the card's memory that the processes share."""


class ProcessError(ValueError):
    """A process of the session failed; the message is one line."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the card has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def in_this_process(row: Row, seeds: Sequence[int], session: Session) -> bool:
    """Trains seeds of a row here; where the card is too small, fewer at once.

    Returns:
        Whether all of them have ended.
    """
    images = load_images(session.data, session.scale)
    rest = list(seeds)
    while rest:
        if session.left < (LEAST if jax.default_backend() == "gpu" else 1.0):
            return False
        try:
            job = Job(row, rest, session, images)
            with _compiling_alone(row, session):
                job.compile()
            if not job.train(_print):
                return False
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(rest) == 1:
                raise
            half = rest[: len(rest) // 2]
            job = None  # Its memory is needed.
            if not in_this_process(row, half, session):
                return False
            rest = rest[len(half) :]
            continue
        rest = [seed for seed in rest if seed not in job.seeds]
    return True


@contextlib.contextmanager
def _compiling_alone(row: Row, session: Session) -> Iterator[None]:
    """Keeps two processes from compiling the same program: the second finds it."""
    folder = session.state / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / row.name, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def trial(
    row: Row, seeds: Sequence[int], session: Session, folder: pathlib.Path
) -> int:
    """Measures how fast runs train while others of the trial do; saves nothing.

    Args:
        row: The row.
        seeds: Its seeds.
        session: As for training.
        folder: Where the processes of a trial wait for each other.

    Returns:
        Exit status.
    """
    job = Job(row, seeds, session, load_images(session.data, session.scale))
    with _compiling_alone(row, session):
        job.compile()
    job.advance()  # The first call is slower.
    name = f"{row.name}-{seeds[0]}"
    state.write_json(folder / f"{name}.ready", {})
    while not (folder / "go").exists():
        if session.left < 0:
            return 1
        time.sleep(0.02)
    began, steps, seconds = time.time(), 0, 0.0
    while seconds < TRIAL_SECONDS and not job.finished:
        before = job.positions[0]
        before = before.epoch * job.length.steps_per_epoch + before.step
        job.advance()
        after = job.positions[0]
        steps += after.epoch * job.length.steps_per_epoch + after.step - before
        seconds = time.time() - began
    rate = steps * len(job.seeds) / seconds if seconds else 0.0
    state.write_json(folder / f"{name}.json", {"steps_a_second": rate})
    return 0


class Plan:
    """The runs of a session, and the processes that train them.

    Args:
        pending: Rows and seeds, in order.
        session: Where and how long.
        at_once: Runs that train at once, at most.
        bundle_folder: Where all of it is written as few files, or `None`.
    """

    def __init__(
        self,
        pending: Sequence[tuple[Row, int]],
        session: Session,
        at_once: int,
        bundle_folder: str | None = None,
    ) -> None:
        self.pending = list(pending)
        self.session = session
        self.at_once = at_once
        self.bundle_folder = bundle_folder

    def carry_out(self, way: str) -> None:
        """Trains until the plan is done or time is up.

        Args:
            way: One of the table, or `"auto"`.

        Raises:
            ProcessError: If a process failed for another reason than memory.
        """
        if not self.pending:
            _print("All runs of the plan have ended.")
            return
        if way == "auto":
            way = self._fastest()
        _print(f"{len(self.pending)} runs to train, together: {way}")
        if way == "processes":
            self._in_processes(min(self.at_once, len(self.pending)))
            return
        while self.pending:
            row, seeds = self._next_seeds(self.at_once if way == "vmap" else 1)
            text = f"vmap {len(seeds)}" if len(seeds) > 1 else "1"
            session = dataclasses.replace(self.session, together=text)
            if not in_this_process(row, seeds, session):
                break
            self.pending = [
                (other, seed)
                for other, seed in self.pending
                if other.name != row.name or seed not in seeds
            ]
            self._bundle()

    def _next_seeds(self, number: int) -> tuple[Row, list[int]]:
        """Returns the row that comes next, with some of its seeds."""
        row, _ = self.pending[0]
        seeds = [seed for other, seed in self.pending if other.name == row.name]
        return row, seeds[:number]

    # Processes.

    def _in_processes(self, number: int) -> None:
        """Keeps so many processes at work."""
        waiting = list(self.pending)
        running: dict[subprocess.Popen[bytes], tuple[Row, int, int]] = {}
        bundled = time.time()
        while running or (waiting and self.session.left > LEAST):
            while waiting and len(running) < number and self.session.left > LEAST:
                row, seed = waiting.pop(0)
                process = self._start(row, [seed], number, f"processes {number}")
                running[process] = row, seed, number
            time.sleep(0.2)
            if ENDS.is_set():
                for process in running:
                    process.terminate()
            for process in [x for x in running if x.poll() is not None]:
                row, seed, beside = running.pop(process)
                if process.returncode == NO_MEMORY and beside > 1:
                    # Those that were started together fail together.
                    if beside // 2 < number:
                        number = beside // 2
                        _print(f"Too little memory: from now {number} runs at once.")
                    waiting.insert(0, (row, seed))
                elif process.returncode:
                    for other in running:
                        other.terminate()
                    for other in running:
                        other.wait()
                    raise ProcessError(
                        f"The run of {row.name}, seed {seed}, failed: see "
                        f"{self._log(row, seed)}. The others were saved."
                    )
            if time.time() - bundled > self.session.save_every:
                self._bundle()
                bundled = time.time()

    def _start(
        self, row: Row, seeds: Sequence[int], number: int, side: str, *more: str
    ) -> subprocess.Popen[bytes]:
        session = self.session
        log = self._log(row, seeds[0])
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = {
            "data": session.data,
            "out": session.out,
            "state": session.state,
            "deadline": session.deadline,
            "scale": session.scale,
            "save_every": session.save_every,
            "test_every": session.test_every,
            "steps_per_call": session.steps_per_call,
            "only": f"{row.name}:{'+'.join(map(str, seeds))}",
            "side": side,
            **(
                {"precision": p}
                if (p := jax.config.jax_default_matmul_precision)
                else {}
            ),
        }
        command = [sys.executable, str(pathlib.Path(__file__).with_name("run.py"))]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        command += ["--allow_cpu", *more]
        environment = dict(os.environ)
        environment.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{MEMORY / number:.3f}"
        with open(log, "ab") as file:
            return subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def _log(self, row: Row, seed: int) -> pathlib.Path:
        return self.session.out / "logs" / f"{row.name}-seed{seed}.txt"

    # What is fastest.

    def _fastest(self) -> str:
        """Returns the fastest way for the runs that come first, measured once."""
        number = min(self.at_once, len(self.pending))
        if number == 1 or jax.default_backend() == "cpu":
            return "1"
        row, seeds = self._next_seeds(self.at_once)
        path = self.session.state / "together.json"
        known = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        kind = jax.devices()[0].device_kind
        key = f"{kind}, {row.network_name}, batch {row.batch_size}, {number} runs"
        if key in known:
            return str(known[key]["way"])
        rates = {"1": self._rate([(row, seeds[:1])], "1")}
        singles = [(other, [seed]) for other, seed in self.pending[:number]]
        rates["processes"] = self._rate(singles, "processes")
        if len(seeds) > 1 and 2 * len(seeds) >= number:
            rates["vmap"] = self._rate([(row, seeds)], "vmap")
        for way, rate in rates.items():
            _print(f"{way}: {rate:.0f} steps a second, all runs together")
        best = max(rates, key=lambda way: rates[way])
        known[key] = {"way": best, "steps_a_second": rates}
        state.write_json(path, known)
        return best

    def _rate(self, groups: Sequence[tuple[Row, Sequence[int]]], way: str) -> float:
        """Returns the steps a second of runs that train at the same time.

        0 if one of them fails, or they need too long to compile.
        """
        folder = self.session.out / "trials" / way
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        limit = min(time.time() + TRIAL_LIMIT, self.session.deadline - 60.0)
        started = [
            self._start(
                row,
                seeds,
                len(groups),
                way,
                f"--trial={folder}",
                f"--deadline={limit}",
            )
            for row, seeds in groups
        ]
        ready = 0
        while ready < len(groups) and time.time() < limit:
            if any(process.poll() is not None for process in started):
                break
            ready = len(list(folder.glob("*.ready")))
            time.sleep(0.05)
        if ready == len(groups):
            state.write_json(folder / "go", {})
        for process in started:
            try:
                process.wait(TRIAL_SECONDS * 3 if ready == len(groups) else 1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        if len(found) < len(groups):
            return 0.0
        return float(sum(x["steps_a_second"] for x in found))

    def _bundle(self) -> None:
        if self.bundle_folder:
            bundle.pack(
                self.session.out, self.session.state, pathlib.Path(self.bundle_folder)
            )


def _print(text: str) -> None:
    print(text, flush=True)
