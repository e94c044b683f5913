"""The runner of the paper-scale kit in `benchmarks/accelerator/`.

What needs JAX runs in processes of its own, whatever the backend of the suite:
`benchmarks/accelerator_checks.py` has the checks.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import bundle
import numpy as np
import pytest
import state
from backends import needs_jax
from hiding import TENSORFLOW, hide

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "benchmarks" / "accelerator"


def check(folder, *checks):
    """Runs checks in a process on JAX; returns what it printed.

    Args:
        folder: Folder for what it compiles, as a job compiles what others did, and
            for what hides TensorFlow: the machine with the GPU has none.
        *checks: As `accelerator_checks.py` takes them.
    """
    cache = folder / "cache"
    cache.mkdir()
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([hide(folder, TENSORFLOW), str(ROOT)]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, FOLDER.parent / "accelerator_checks.py", *checks],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_jax
def test_fifty_steps_are_those_of_fit_with_the_callback(tmp_path):
    printed = check(tmp_path, "same:sq", "same:lq-2")
    for method in ("sq", "lq-2"):
        assert f"{method}: fit and steps 0.0" in printed


@pytest.mark.slow
@needs_jax
def test_fifty_steps_of_stompp_are_those_of_fit(tmp_path):
    assert "stompp: fit and steps 0.0" in check(tmp_path, "same:stompp")


@needs_jax
def test_runs_resumed_killed_and_together_end_alike(tmp_path):
    (tmp_path / "kill").mkdir()
    jobs, killed = f"jobs:{tmp_path}", f"killed:{tmp_path / 'kill'}"
    printed = check(tmp_path, jobs, killed)
    for what in ("vmap", "resumed", "refused", "cleared", "killed at step"):
        assert what in printed


# Processes that share a card, without a card.


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Returns a function that makes a plan whose processes run a small script."""
    pytest.importorskip("jax")
    import rows
    import together
    from session import Session

    def make(script, count, **changes):
        def start(self, row, seeds, number, side, *more):
            given = [row.name, "+".join(map(str, seeds)), str(number), *more]
            with open(tmp_path / "started.txt", "a") as file:
                file.write(" ".join(given[:3]) + "\n")
            return subprocess.Popen([sys.executable, "-c", script, *given])

        monkeypatch.setattr(together.Plan, "_start", start)
        session = Session(
            data=tmp_path / "data",
            out=tmp_path / "out",
            state=tmp_path / "state",
            deadline=time.time() + 600,
        )
        return together.Plan(rows.read_plan()[:count], session, **changes)

    return make


def started(folder):
    return [x.split() for x in (folder / "started.txt").read_text().splitlines()]


def test_processes_take_the_plan_in_order(plan, tmp_path):
    plan("", 5, at_once=2).carry_out("processes")
    assert [line[1:] for line in started(tmp_path)] == [
        *(["0", "2"], ["1", "2"], ["0", "2"], ["1", "2"], ["0", "2"])
    ]
    assert started(tmp_path)[0][0] == "resnet20_float"


def test_processes_without_memory_are_tried_again_with_fewer(plan, tmp_path, capsys):
    script = "import sys; sys.exit(75 if int(sys.argv[3]) > 2 else 0)"
    plan(script, 4, at_once=4).carry_out("processes")
    assert "from now 2 runs at once" in capsys.readouterr().out
    done = [tuple(line[:2]) for line in started(tmp_path) if int(line[2]) <= 2]
    assert sorted(set(done)) == sorted(
        [(name, seed) for name in ("resnet20_float", "resnet20_bwn") for seed in "01"]
    )


def test_process_that_fails_is_named(plan):
    import together

    with pytest.raises(together.ProcessError, match="resnet20_float, seed 0, failed"):
        plan("import sys; sys.exit(1)", 1, at_once=2).carry_out("processes")


TRIAL = """
import json, pathlib, sys, time
name, seeds, number, folder = *sys.argv[1:4], sys.argv[4].partition("=")[2]
folder = pathlib.Path(folder)
(folder / f"{name}-{seeds}.ready").write_text("{}")
while not (folder / "go").exists():
    time.sleep(0.01)
(folder / f"{name}-{seeds}.json").write_text(json.dumps({"steps_a_second": 100.0}))
"""


def test_fastest_way_is_measured_once(plan, tmp_path, monkeypatch, capsys):
    import together

    monkeypatch.setattr(together.jax, "default_backend", lambda: "gpu")
    assert plan(TRIAL, 4, at_once=4)._fastest() == "processes"
    remembered = json.loads((tmp_path / "state" / "together.json").read_text())
    ((key, value),) = remembered.items()
    assert "resnet20, batch 128, 4 runs" in key
    # One program has two seeds of one row; each of four processes is as fast.
    assert value["steps_a_second"] == {"1": 100.0, "processes": 400.0, "vmap": 100.0}
    assert "400 steps a second" in capsys.readouterr().out
    count = len(started(tmp_path))
    assert plan("", 4, at_once=4)._fastest() == "processes"
    assert len(started(tmp_path)) == count


def test_way_that_fails_is_not_taken(plan, monkeypatch, capsys):
    import together

    monkeypatch.setattr(together.jax, "default_backend", lambda: "gpu")
    script = "import sys\nif int(sys.argv[3]) > 1: sys.exit(75)\n" + TRIAL
    assert plan(script, 4, at_once=4)._fastest() == "1"
    assert "processes: 0 steps" in capsys.readouterr().out


def test_program_too_large_for_the_card_is_tried_with_fewer_seeds(
    plan, tmp_path, monkeypatch
):
    import together

    together_at, most = [], 2

    class Job:
        def __init__(self, row, seeds, session, images):
            self.seeds = list(seeds)

        def compile(self):
            if len(self.seeds) > most:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        def train(self, report):
            together_at.append(self.seeds)
            return True

    monkeypatch.setattr(together, "Job", Job)
    monkeypatch.setattr(together, "load_images", lambda *arguments: None)
    made = plan("", 1, at_once=4)
    ((row, _),) = made.pending
    assert together.in_this_process(row, [0, 1, 2, 3], made.session)
    assert together_at == [[0, 1], [2, 3]]
    most = 0
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        together.in_this_process(row, [0, 1], made.session)


# Files.


def test_bundle_brings_results_and_states_back(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PART_BYTES", 1000)
    out, states, folder = (tmp_path / name for name in ("out", "state", "bundle"))
    state.write_json(out / "runs" / "a-seed0.json", {"row": "a"})
    noise = np.random.default_rng(0).normal(size=5000)
    state.save(states / "a-seed0.npz", {"row": "a"}, state.Position(), [noise])
    state.write_json(states / "compiled" / "program", {})
    (states / ".b.npz.unfinished").write_bytes(b"half")
    bundle.pack(out, states, folder)
    parts = sorted(folder.iterdir())
    assert len(parts) > 10
    assert all(path.stat().st_size <= 1000 for path in parts)
    others = tmp_path / "there" / "out", tmp_path / "there" / "state"
    others[1].mkdir(parents=True)
    for path in parts:
        (others[1] / path.name).write_bytes(path.read_bytes())
    bundle.unpack(others[1], *others)
    for before, after in zip((out, states), others, strict=True):
        names = {path.relative_to(before) for path in before.rglob("*.*")}
        names = {name for name in names if name.suffix != ".unfinished"}
        assert {path.relative_to(after) for path in after.rglob("*.*")} == names
        for name in names:
            assert (before / name).read_bytes() == (after / name).read_bytes()
    # Parts of an earlier, longer bundle do not stay; what is newer does.
    state.write_json(others[0] / "runs" / "a-seed0.json", {"row": "newer"})
    bundle.pack(out, tmp_path / "nothing", folder)
    assert len(list(folder.iterdir())) < len(parts)
    bundle.unpack(folder, *others)
    assert "newer" in (others[0] / "runs" / "a-seed0.json").read_text()


def test_bundle_that_lacks_a_part_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PART_BYTES", 1000)
    state.write_json(tmp_path / "out" / "runs" / "a.json", {"row": "a"})
    for number in (0, 4, 10):
        folder = tmp_path / f"bundle-{number}"
        bundle.pack(tmp_path / "out", tmp_path / "state", folder)
        count = len(list(folder.iterdir()))
        assert count == 11
        (folder / f"bundle.tar.{number}").unlink()
        with pytest.raises(ValueError, match="is missing|damaged"):
            bundle.unpack(folder, tmp_path / "new", tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert len(list(folder.iterdir())) == count - 1
