r"""Trains the rows of the plan on an accelerator, in order, for some minutes.

    KERAS_BACKEND=jax python run.py --data=/tmp/kit/cifar10 --out=out --state=state \
        --minutes=9

Each call goes on where the one before ended: with the states in `--state`, which must
be brought along, and past the runs that have ended (known from `results.csv` beside
this file and from `--state`). It writes `<out>/runs/<row>-seed<k>.json`, a result for
each run, finished or not, and `<out>/codes/<row>-seed<k>.npz`, the integer codes of
finished ones.

Exit status: 0 if the plan is done or time is up; 2 if the request was wrong or the
machine does not do (no GPU, too little memory, data missing), with one line; 130 after
Ctrl-C. SIGTERM ends a run as the end of its time does: everything is saved.

How several runs share a card is in `together.py`, how a row is trained in `job.py`.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

from absl import app, flags

STARTED = time.time()
"""When the session began: imports count."""

TOGETHER = ("auto", "vmap", "processes", "1")

FLAGS = flags.FLAGS


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
        values: What takes them.
    """
    text = {
        "data": (None, "Folder of the images, as unpack.py leaves it."),
        "plan": (None, "CSV file of rows and seeds; the kit's if not said."),
        "out": ("out", "Folder of the results."),
        "state": ("state", "Folder of the states, brought along from call to call."),
        "bundle": (None, "Folder for all results and states as few small files."),
        "only": (None, "One run of the plan, as row:seed, or row:seed+seed."),
        "precision": (None, "Of float32 products: tensorfloat32, float32, ..."),
    }
    for name, (default, help_text) in text.items():
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    flags.DEFINE_float(
        "minutes", 9.0, "Ends in time by itself.", 0.01, flag_values=values
    )
    flags.DEFINE_float(
        "scale",
        1.0,
        "Factor on the length of each training; another than 1 is a rehearsal.",
        1e-6,
        flag_values=values,
    )
    flags.DEFINE_float(
        "save_every", 60.0, "Seconds between two states.", 0.0, flag_values=values
    )
    flags.DEFINE_integer(
        "test_every", 10, "Epochs between two tests.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "at_once", 8, "Runs that train at once, at most.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "steps_per_call",
        0,
        "Steps in a compiled call; 0: what the device takes best.",
        0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "together",
        "auto",
        TOGETHER,
        "How runs share the card; auto measures it and remembers.",
        flag_values=values,
    )
    booleans = {
        "allow_cpu": "Trains on the CPU, too.",
        "restart": "Sets the states of --only, or of all, aside, and begins anew.",
        "steps_only": "Only measures step times.",
        "nosteps": "Does not measure step times.",
    }
    for name, help_text in booleans.items():
        flags.DEFINE_boolean(name, False, help_text, flag_values=values)
    # For the processes that this command starts itself.
    flags.DEFINE_float("deadline", 0.0, "Not for people.", flag_values=values)
    flags.DEFINE_string("trial", None, "Not for people.", flag_values=values)
    flags.DEFINE_string("side", None, "Not for people.", flag_values=values)


class RequestError(ValueError):
    """What cannot be done; the message is one line."""


def main(values: flags.FlagValues) -> int:
    """Runs what parsed flags ask for.

    Args:
        values: Parsed flags.

    Returns:
        Exit status.
    """
    if not values.deadline:
        # This process may leave the card to others that it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        return _main(values)
    except (ImportError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        print(f"run.py: error: {text}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        import together

        if not together.is_out_of_memory(error):
            raise
        print(
            "run.py: error: the card has too little memory for this row, one run at a "
            "time. What was saved is kept; leave the row out of the plan.",
            file=sys.stderr,
        )
        return together.NO_MEMORY if values.deadline else 2


def _main(values: flags.FlagValues) -> int:
    import bundle
    import session as sessions
    import state
    import together

    if values.data is None:
        raise RequestError("Flag --data must name the folder of the images.")
    _prepare_jax(values)
    deadline = values.deadline or STARTED + 60 * values.minutes
    signal.signal(signal.SIGTERM, _end_soon)
    session = sessions.Session(
        data=pathlib.Path(values.data),
        out=pathlib.Path(values.out),
        state=pathlib.Path(values.state),
        deadline=deadline,
        scale=values.scale,
        save_every=values.save_every,
        test_every=values.test_every,
        together=values.side or "1",
        steps_per_call=values.steps_per_call,
    )
    if values.trial:
        row, seeds = _only(values.only)
        return together.trial(row, seeds, session, pathlib.Path(values.trial))
    if values.only and values.deadline:
        row, seeds = _only(values.only)
        together.in_this_process(row, seeds, session)
        return 0
    bundle.unpack(session.state, session.out, session.state)
    pending = _pending(values, session)
    if values.restart:
        for row, seed in pending:
            state.set_aside(session.state_path(row, seed))
            state.set_aside(session.kept_path(row, seed))
    if values.steps_only or not values.nosteps:
        _measure_steps(values, session, only=values.steps_only)
    if not values.steps_only:
        plan = together.Plan(pending, session, values.at_once, values.bundle)
        plan.carry_out(values.together)
    if values.bundle:
        bundle.pack(session.out, session.state, pathlib.Path(values.bundle))
    return 0


def _prepare_jax(values: flags.FlagValues) -> None:
    """Looks for a card, and lets compiled programs outlast this process.

    Raises:
        RequestError: If there is no GPU and the CPU is not allowed.
    """
    import jax

    cache = pathlib.Path(values.state) / "compiled"
    cache.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(cache.resolve()))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if values.precision:
        jax.config.update("jax_default_matmul_precision", values.precision)
    try:
        platform = jax.devices()[0].platform
    except RuntimeError as error:
        raise RequestError(f"JAX has no device: {error}") from error
    if platform != "gpu" and not values.allow_cpu:
        raise RequestError(
            f"There is no GPU: JAX has {platform!r} only. Use --allow_cpu, with a "
            "small --scale, to rehearse on the CPU."
        )


def _only(text: str) -> tuple[object, list[int]]:
    import rows

    name, _, seeds = text.partition(":")
    parts = (seeds or "0").split("+")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise RequestError(
            f"Flag --only must be row:seed or row:seed+seed. Received: {text!r}"
        )
    return rows.get(name), [int(part) for part in parts]


def _pending(values: flags.FlagValues, session: object) -> list[tuple[object, int]]:
    """Returns the runs that are to be trained, in order."""
    import result_files
    import rows

    if values.only:
        row, seeds = _only(values.only)
        planned = [(row, seed) for seed in seeds]
    else:
        planned = rows.read_plan(values.plan or rows.PLAN)
    ended = set()
    if values.scale == 1:
        known = result_files.read_csv(result_files.RESULTS, result_files.Run)
        ended = {run.key for run in known if run.finished}
    if values.restart:
        return planned
    return [
        (row, seed)
        for row, seed in planned
        if (row.name, seed) not in ended and not _has_ended(row, seed, session)
    ]


def _has_ended(row: object, seed: int, session: object) -> bool:
    """Whether a run ended in an earlier call, with the settings that the row has."""
    try:
        result = json.loads(session.kept_path(row, seed).read_text())
    except FileNotFoundError:
        return False
    except ValueError as error:
        path = session.kept_path(row, seed)
        raise RequestError(f"Result {path} is damaged: remove it.") from error
    return bool(result["settings"] == json.loads(json.dumps(row.settings)))


def _measure_steps(values: flags.FlagValues, session: object, only: bool) -> None:
    """Measures step times, unless an earlier call did.

    In a process that ends: it would keep the card's memory.

    Raises:
        RequestError: If it failed and nothing else was asked for.
    """
    import state

    kept = session.state / f"steps-scale{values.scale:g}.json"
    if kept.exists() and not only:
        return
    # A short part of a session that has rows to train.
    minutes = max(session.left / 60 * (0.9 if only else 0.25), 0.02)
    script = pathlib.Path(__file__).with_name("steps.py")
    command = [sys.executable, str(script), f"--out={session.out}"]
    command += [f"--scale={values.scale}", f"--minutes={minutes:.3f}"]
    try:
        failed = subprocess.run(command, timeout=max(session.left, 1)).returncode
    except subprocess.TimeoutExpired:
        failed = 1
    if failed:
        if only:
            raise RequestError("The step times were not measured: see above.")
        print("The step times were not measured: see above.", flush=True)
        return
    written = json.loads((session.out / "steps.json").read_text())
    state.write_json(kept, written)


def _end_soon(signal_number: int, frame: object) -> None:
    import session

    session.ENDS.set()


def _main_of_process(argv: list[str]) -> int:
    from keras_sq.core import commands

    return commands.run(
        "run.py",
        lambda values, _: main(values),
        argv,
        example="--minutes=9",
        goes_on="Go on with the same flags.",
    )


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(_main_of_process)
