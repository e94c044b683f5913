r"""Many experiments, over seeds, and one table: `python -m keras_sq.sweep`.

    python -m keras_sq.sweep --experiments='cifar10_resnet56_*wn' --seeds=3 \
        --scale=0.05 --protocols=paper,equal --output_dir=sweep

Each run is a process of its own, `python -m keras_sq.train`, in a folder of its own:
one that fails, for whatever reason, does not stop the others, and is tried again by the
same command. What is finished is skipped; what was killed is gone on with. So the
command can be killed, or given a time (`--minutes`), and repeated until nothing is left
to do. A folder may serve several sweeps.

When it ends, and when it stops, the folder has the table of all that is finished there,
by earlier sweeps too, as `results.csv` (a row a network and seed) and `results.md`
(mean and spread over the seeds, beside what was published), and `failed/` has the
output of what failed.

Design note: processes and not functions, since a network that takes too much memory, or
a crash below Python, ends a process.
"""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from keras_sq.core import checks, commands
from keras_sq.experiments import catalogue, run_folder, sweep_report
from keras_sq.experiments.config import MAX_SEEDS, PROTOCOLS
from keras_sq.experiments.training_files import DamagedRunError, write_text

PROGRAM = "keras_sq.sweep"

GRACE = 30
"""Seconds that a process is given to stop."""


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What a sweep is to do.

    Attributes:
        experiments: Names of experiments, with wildcards.
        protocols: How long to train, see `TrainConfig.protocol`; a column each.
        seeds: Runs of each experiment, with seeds 0, 1, ….
        scale: Factor on the length of every training.
        limit: Number of training examples, or `None` for all.
        data_dir: Folder of prepared TFDS data, or `None` for TFDS's own.
        download: Whether TFDS may download.
        output_dir: Folder of the sweep.
        minutes: When to stop, after so many; `None` is when all is done. A training
            goes on from its last whole epoch.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range, or no experiment has the name.
        OSError: If the folder cannot be written to.
    """

    experiments: tuple[str, ...]
    protocols: tuple[str, ...] = ("paper",)
    seeds: int = 1
    scale: float = 1.0
    limit: int | None = None
    data_dir: str | None = None
    download: bool = False
    output_dir: str = "keras_sq_sweep"
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Checks everything, of each run too."""
        if not self.experiments:
            raise ValueError(
                "Argument `experiments` must name at least one: "
                "`--experiments='cifar10_vgg9_*'`. `python -m keras_sq.train --list` "
                "prints them all."
            )
        for protocol in self.protocols:
            checks.one_of("protocols", protocol, PROTOCOLS)
        checks.integer("seeds", self.seeds, minimum=1, maximum=MAX_SEEDS)
        if self.minutes is not None:
            checks.positive("minutes", self.minutes)
        run_folder.check_writable(pathlib.Path(self.output_dir))
        for run in self.runs():
            run.experiment.config(**run.settings)

    def runs(self) -> list["Run"]:
        """Returns all runs: first all experiments of one seed, then of the next.

        Raises:
            ValueError: If no experiment has the name.
        """
        shared = {
            "scale": self.scale,
            "limit": self.limit,
            "data_dir": self.data_dir,
            "download": self.download,
        }
        chosen = [catalogue.get(x) for x in catalogue.names(self.experiments)]
        runs_by_key: dict[tuple[str, int, str], Run] = {}
        for seed in range(self.seeds):
            for experiment in chosen:
                name = experiment.name
                for protocol in self.protocols:
                    if "protocol" not in experiment.settings:
                        # As long in both; to be trained once.
                        protocol = PROTOCOLS[0]
                    folder = pathlib.Path(
                        self.output_dir, name, protocol, f"seed-{seed}"
                    )
                    settings = {
                        **shared,
                        "protocol": protocol,
                        "seed": seed,
                        "output_dir": str(folder),
                    }
                    key = (name, seed, protocol)
                    runs_by_key[key] = Run(experiment, protocol, seed, folder, settings)
        return list(runs_by_key.values())


@dataclasses.dataclass(frozen=True)
class Run:
    """One process: an experiment, its protocol and its seed.

    Attributes:
        experiment: What is trained.
        protocol: One of `PROTOCOLS`.
        seed: Of everything random.
        folder: Where.
        settings: What `Experiment.config` takes.
    """

    experiment: catalogue.Experiment
    protocol: str
    seed: int
    folder: pathlib.Path
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.experiment.name}, {self.protocol}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether its results are there."""
        return run_folder.RunFolder(self.folder).is_finished

    def command(self) -> list[str]:
        """Returns the command line of the process."""
        arguments = [
            f"--{key}" if value is True else f"--{key}={value}"
            for key, value in self.settings.items()
            if value is not None and value is not False
        ]
        name = f"--experiment={self.experiment.name}"
        return [sys.executable, "-m", "keras_sq.train", name, "--resume", *arguments]


def sweep(config: SweepConfig) -> int:
    """Does what is left to do, and writes the tables.

    Args:
        config: What to do.

    Returns:
        Exit status: 0 if every run is finished; 1 if one failed; 3 if the time was up
        first.

    Raises:
        ValueError: If the folder holds other settings of the same experiment.
        DamagedRunError: If results in the folder are damaged.
        OSError: If the folder cannot be written to.
    """
    runs = config.runs()
    folder = pathlib.Path(config.output_dir)
    for run in runs:
        _check_folder(run)
    (folder / "failed").mkdir(parents=True, exist_ok=True)
    end = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    failed: list[Run] = []
    in_time = True
    for number, run in enumerate(runs, start=1):
        if run.is_finished:
            continue
        if end is not None and time.monotonic() >= end:
            in_time = False
            break
        print(f"{number} of {len(runs)}: {run.title}", file=sys.stderr, flush=True)
        before = _progress(run)
        try:
            status = _in_time(run, end, folder)
        finally:
            # After every run: whatever ends the sweep leaves the table of what is done.
            _write_tables(folder, runs)
        if status is None:
            in_time = False
            if _progress(run) == before:
                print(
                    f"{run.title} finished no epoch in its time, and what is less is "
                    "lost: give `--minutes` for an epoch at least.",
                    file=sys.stderr,
                )
            break
        if status:
            failed.append(run)
    print(_write_tables(folder, runs), end="")
    left = sum(not run.is_finished for run in runs)
    for run in failed:
        print(f"Failed: {run.title}; see {_log(folder, run)}.", file=sys.stderr)
    if left:
        print(
            f"{left} of {len(runs)} runs are not finished; the same command goes on.",
            file=sys.stderr,
        )
    return 1 if failed else 0 if in_time else 3


def _check_folder(run: Run) -> None:
    """Raises if a run could not go on in its folder; makes nothing."""
    earlier = run_folder.RunFolder(run.folder).earlier_description()
    asked = run.experiment.config(**run.settings).description()
    changes = "" if earlier is None else run_folder.differences(earlier, asked)
    if changes:
        raise ValueError(
            f"The run in '{run.folder}' has other settings: {changes}. Choose another "
            "`--output_dir`, or remove the folder."
        )


def _in_time(run: Run, end: float | None, folder: pathlib.Path) -> int | None:
    """Returns the exit status of a run, or `None` if it was stopped at the end."""
    log = _log(folder, run)
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            run.command(), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            status: int | None = process.wait(left)
        except subprocess.TimeoutExpired:
            _stop(process)
            status = None
        except BaseException:
            _stop(process)
            raise
    if not status:
        log.unlink()
    return status


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stops a process; what it has done so far is in its last backup."""
    # What a shell runs in the background ignores SIGINT, and so do its children.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _progress(run: Run) -> set[str]:
    """Returns what a stopped run would go on with: backups, trained networks."""
    folder = run_folder.RunFolder(run.folder)
    files = [*folder.path.glob("*.keras"), *folder.state.glob("*/epoch-*")]
    return {str(path.relative_to(folder.path)) for path in files}


def _log(folder: pathlib.Path, run: Run) -> pathlib.Path:
    name = f"{run.experiment.name}-{run.protocol}-seed-{run.seed}.txt"
    return folder / "failed" / name


def _results(folder: pathlib.Path, runs: Iterable[Run]) -> list[sweep_report.Result]:
    """Reads what is finished: of these runs, then of earlier sweeps in the folder."""
    results = []
    asked = {run.folder for run in runs}
    for run in (*runs, *(x for x in _runs_in(folder) if x.folder not in asked)):
        if run.is_finished:
            path = run_folder.RunFolder(run.folder).results
            results += sweep_report.read(path, run.experiment, run.protocol, run.seed)
    return results


def _runs_in(folder: pathlib.Path) -> list[Run]:
    """Returns the runs whose folders are in the folder of a sweep."""
    runs = []
    for path in sorted(folder.glob("*/*/seed-*")):
        name, protocol, seed = path.relative_to(folder).parts
        number = seed.removeprefix("seed-")
        if protocol in PROTOCOLS and number.isdecimal():
            try:
                experiment = catalogue.get(name)
            except ValueError:
                continue  # Not a folder of this command.
            runs.append(Run(experiment, protocol, int(number), path, {}))
    return runs


def _write_tables(folder: pathlib.Path, runs: Iterable[Run]) -> str:
    """Writes both tables of what is finished; returns the one for people."""
    results = _results(folder, runs)
    table = sweep_report.markdown(results)
    write_text(folder / "results.csv", sweep_report.csv_text(results))
    write_text(folder / "results.md", table)
    return table


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command.

    Args:
        values: Where to define them.
    """
    kw: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_list(
        "experiments", [], "Names, with wildcards: 'cifar10_vgg9_*'.", **kw
    )
    flags.DEFINE_list(
        "protocols", ["paper"], "paper, equal, or both, see keras_sq.train.", **kw
    )
    flags.DEFINE_integer("seeds", 1, "Runs of each experiment.", **kw)
    flags.DEFINE_float("scale", 1.0, "Factor on the length of every training.", **kw)
    flags.DEFINE_integer("limit", None, "Use so many training examples. [all]", **kw)
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS data.", **kw)
    flags.DEFINE_bool("download", False, "Let TFDS fetch data sets.", **kw)
    flags.DEFINE_string("output_dir", "keras_sq_sweep", "Folder of the sweep.", **kw)
    flags.DEFINE_float("minutes", None, "Stop after so many. [when all is done]", **kw)


def main(values: flags.FlagValues) -> int:
    """Runs what parsed flags ask for.

    Args:
        values: Parsed flags.

    Returns:
        Exit status: that of `sweep`, or 2 if the request was wrong.
    """
    names = [field.name for field in dataclasses.fields(SweepConfig)]
    settings = {name: getattr(values, name) for name in names}
    for name in ("experiments", "protocols"):
        settings[name] = tuple(settings[name])
    try:
        return sweep(SweepConfig(**settings))
    except (DamagedRunError, OSError, TypeError, ValueError) as error:
        return commands.fail(PROGRAM, error, commands.WRONG_REQUEST)


def main_of_process(argv: Sequence[str]) -> int:
    """Runs the command with the flags of this process; returns the exit status."""
    # As after Ctrl-C, the training must not go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return commands.run(
        PROGRAM,
        lambda values, _: main(values),
        argv,
        example="--seeds=3",
        goes_on="The same command goes on.",
    )
