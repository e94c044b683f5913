"""Trains one network with this package and with others, and prints a table.

    python tests/benchmarks/peers.py --dataset=cifar10 --data_dir=~/tfds \
        --environments=~/.cache/keras_sq_peers --work=peers

The same network (MLPerf Tiny's ResNet-8) from the same float start, on the same images
in the same order with the same augmentation, for the same epochs: accuracy on the test
split, the time of a training step against the float network's, and the size of what the
peer's own way to a .tflite file gives. Each peer gets a virtual environment of its own,
kept in `--environments`, and each method a process of its own. What one cannot do is a
line under the table, with its message; it stops nobody else.

What is done is in `--work`, and not done again; `--retry` tries again what failed. The
defaults suit two cores (two to eight minutes a method on busy ones);
`--dataset=digits --epochs=10` needs no data. Needs a package index and 2 GB of disk for
each peer. Not part of the test suite.

The scripts of the peers are in peer_scripts/: `network.py` has the network,
`prepare.py` makes what they work on, `harness.py` is what they share.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import peer_table

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = pathlib.Path(__file__).resolve().parent / "peer_scripts"
KERAS_2 = ("tensorflow==2.21.*", "tf-keras==2.21.*")
KERAS_3 = ("tensorflow==2.21.*", "keras==3.15.*")
LEGACY = {"TF_USE_LEGACY_KERAS": "1"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """One of the packages.

    Attributes:
        methods: What its script can be asked for.
        requirements: Of its environment; `None`: this one will do.
        variables: Of its processes.
        script: Its name in peer_scripts/, if it is not made of the peer's.
    """

    methods: tuple[str, ...]
    requirements: tuple[str, ...] | None
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    script: str | None = None


PEERS = {
    "float": Peer(("start", "trained-on"), None),
    "keras_sq": Peer(
        tuple(
            f"{quantizer}{way}"
            for quantizer in ("ternary", "binary")
            for way in ("-default", "", "-sq")
        ),
        None,
    ),
    "larq": Peer(
        ("ternary", "binary"),
        (*KERAS_2, "larq==0.14.*", "larq-compute-engine==0.16.*", "numpy<2"),
        LEGACY,
    ),
    "qkeras": Peer(("ternary", "binary"), (*KERAS_3, "qkeras-v3==1.2.1")),
    "hgq2": Peer(("ternary", "default"), (*KERAS_3, "HGQ2==0.2.0")),
    "tfmot": Peer(
        ("int8", "clusters-3"),
        (*KERAS_2, "tensorflow-model-optimization==0.8.*"),
        LEGACY,
    ),
    "keras": Peer(("int8", "int4"), KERAS_3),
    "ai-edge-quantizer": Peer(
        ("int8", "int4-weights", "int2-dynamic"),
        (*KERAS_3, "ai-edge-quantizer==0.10.*"),
        script="with_ai_edge_quantizer.py",
    ),
}
"""The first two are what the others are held against."""

SETTINGS = (
    "dataset",
    "data_dir",
    "limit",
    "batch_size",
    "start_epochs",
    "epochs",
    "learning_rate",
    "pairs",
    "threads",
)
"""Flags that results depend on: a folder holds those of one choice."""


class PeersError(Exception):
    """What stops everything; the message is for the user."""


def parsed(arguments=None):
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    add("--work", help="folder of data and results; a temporary one if not given")
    add("--environments", help="folder of the environments; likewise")
    add("--dataset", default="cifar10", help="'digits' needs no files")
    add("--data_dir", help="folder of data that TFDS has prepared")
    add(
        "--limit",
        type=int,
        default=10_000,
        help="training images; 0: all, as of digits",
    )
    add("--batch_size", type=int, default=64)
    add("--start_epochs", type=int, default=6, help="of the float network at first")
    add("--epochs", type=int, default=3, help="of all trainings from there")
    add("--learning_rate", type=float, default=1e-3, help="of Adam; ends at 0")
    add("--seeds", type=int, default=1, help="runs, with seeds from 0")
    add("--pairs", type=int, default=25, help="of steps that are timed")
    add("--threads", type=int, default=1, help="of TensorFlow")
    add("--timeout", type=float, default=7200, help="seconds of a process")
    add("--retry", action="store_true", help="try again what could not be done")
    return parser.parse_args(arguments)


def claim(folder, flags):
    """Makes the folder of the work, or sees whether it is one of the same settings.

    Raises:
        PeersError: If it is another's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(flags, name) for name in SETTINGS}
    if flags.dataset == "digits" or not flags.limit:
        settings["limit"] = None
    if flags.data_dir:
        settings["data_dir"] = str(pathlib.Path(flags.data_dir).expanduser())
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.iterdir()):
            raise PeersError(f"'{folder}' is not empty, and no folder of this script.")
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != settings:
        raise PeersError(
            f"'{folder}' holds work of other settings: {found}. Choose these, or "
            "another --work."
        )


def environment(name, peer, folder):
    """Returns the Python of a peer, in a new environment if there is none yet.

    Raises:
        PeersError: If it cannot be made.
    """
    if peer.requirements is None:
        return sys.executable
    folder = folder / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "requirements.txt"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return str(python)
    print(f"{name}: installing", file=sys.stderr, flush=True)
    made = [sys.executable, "-m", "venv", "--clear", str(folder)]
    install = [str(python), "-m", "pip", "install", "--quiet", *peer.requirements]
    for command in (made, install):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise PeersError(f"environment: {last_line(ended.stderr)}")
    done.write_text(wanted, encoding="utf-8")
    return str(python)


def last_line(text):
    """Returns the last line with something in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def process(command, log, flags, variables):
    """Runs a script, its output into a file; returns what went wrong, or `None`."""
    threads = str(flags.threads)
    own = {
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
    inherited = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    with open(log, "w", encoding="utf-8") as output:
        try:
            ended = subprocess.run(
                command,
                env=inherited | own | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=flags.timeout,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {flags.timeout:g} seconds"
        except OSError as error:
            return str(error)
    if ended.returncode == 0:
        return None
    said = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return f"ended with exit status {ended.returncode}: {said}"


def prepare(folder, seed, flags):
    """Makes the data and float networks of a seed.

    Raises:
        PeersError: If that fails.
    """
    if (folder / f"seed-{seed}" / "trained.npz").exists():
        return
    print(f"seed {seed}: data and float networks", file=sys.stderr, flush=True)
    command = [sys.executable, str(SCRIPTS / "prepare.py"), f"--work={folder}"]
    log = folder / f"prepare-{seed}.log"
    wrong = process([*command, f"--seed={seed}"], log, flags, with_package())
    if wrong:
        raise PeersError(f"{wrong} (all of it: {log})")


def with_package():
    """Returns the variables of processes that import this package."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def read(path):
    """Returns a result, `None` if there is none that is whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_done(result, retry):
    """Whether a method need not be run (again)."""
    if result is None or not result.get("finished"):
        return False
    return not (retry and result["could_not"])


def run_method(name, method, seed, python, folder, flags):
    """Runs one method of a peer, unless its result is there."""
    path = folder / f"seed-{seed}" / f"{name}-{method}.json"
    if is_done(read(path), flags.retry):
        return
    print(f"{name}: {method}, seed {seed}", file=sys.stderr, flush=True)
    path.unlink(missing_ok=True)
    peer = PEERS[name]
    script = SCRIPTS / (peer.script or f"with_{name}.py")
    command = [python, str(script), method, f"--work={folder}", f"--seed={seed}"]
    variables = peer.variables if peer.requirements else with_package()
    log = path.with_suffix(".log")
    wrong = process([*command, f"--result={path}"], log, flags, variables)
    result = read(path)
    if result is None or not result.get("finished"):
        note_failure(path, wrong or "ended without a result")


def note_failure(path, wrong):
    """Writes down that a process failed, beside what it had done."""
    result = read(path) or {"could_not": {}}
    result["could_not"]["process"] = wrong
    result["finished"] = True
    path.write_text(json.dumps(result, indent=2), encoding="utf-8")


def run_peer(name, folder, environments, flags):
    """Runs all methods of a peer; what fails is in their results."""
    pairs = [(m, seed) for seed in range(flags.seeds) for m in PEERS[name].methods]
    paths = [folder / f"seed-{seed}" / f"{name}-{m}.json" for m, seed in pairs]
    if all(is_done(read(path), flags.retry) for path in paths):
        return
    try:
        python = environment(name, PEERS[name], environments)
    except (PeersError, OSError) as error:
        for path in paths:
            if not is_done(read(path), flags.retry):
                path.unlink(missing_ok=True)
                note_failure(path, str(error))
        return
    for method, seed in pairs:
        run_method(name, method, seed, python, folder, flags)


def results(folder, flags):
    """Returns `{(peer, method): results of all seeds}`."""
    found = {}
    for name in flags.only:
        for method in PEERS[name].methods:
            paths = (
                folder / f"seed-{seed}" / f"{name}-{method}.json"
                for seed in range(flags.seeds)
            )
            rows = [row for row in map(read, paths) if row is not None]
            if rows:
                found[name, method] = rows
    return found


def describe(folder, flags):
    """Returns what has been done, in a sentence or two."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    images = settings["limit"] or "all"
    return (
        f"ResNet-8 (MLPerf Tiny), {settings['dataset']}, {images} training images, "
        f"{settings['start_epochs']} epochs of a float network, then "
        f"{settings['epochs']} from there for each; batch {settings['batch_size']}, "
        f"Adam {settings['learning_rate']:g} with one cosine, {flags.seeds} seed(s); "
        f"{settings['threads']} thread(s), no XLA; {settings['pairs']} pairs of steps."
    )


def main(arguments=None):
    """Does what is not done, and prints the table."""
    flags = parsed(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(flags.work or f"{temporary}/work").expanduser().absolute()
        environments = pathlib.Path(flags.environments or temporary).expanduser()
        began = peer_table.state()
        try:
            claim(work, flags)
            for seed in range(flags.seeds):
                prepare(work, seed, flags)
        except PeersError as error:
            print(f"peers.py: error: {error}", file=sys.stderr)
            return 1
        for name in flags.only:
            run_peer(name, work, environments.absolute(), flags)
        states = began, peer_table.state()
        text = peer_table.report(results(work, flags), describe(work, flags), states)
        (work / "peers.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
