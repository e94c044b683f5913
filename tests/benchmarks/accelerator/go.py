"""Unpacks what has come, checks the machine, and trains: the one command there.

    python tests/benchmarks/accelerator/go.py --pieces=build/accelerator \
        --folder=/tmp/kit --out=results --state=state --minutes=8

Takes the pieces that are there; run the same command again when others have come.
With all of them it starts `run.py` afresh, with Keras, keras_sq and the data of the
kit, and on JAX. Flags that are not named here go on to `run.py`.

Exit status: that of `run.py`; 3 while pieces are missing; 2 after an error, which is
told in one line. Neither loses what has been unpacked or trained.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import unpack
from pieces import INCOMPLETE, KitError, run

CHECK = """
import json, platform, sys
# Not the checkout's keras_sq, if this is the checkout's folder.
sys.path[:] = filter(None, sys.path)
import jax, keras, keras_sq
print(json.dumps({
    "python": platform.python_version(),
    "jax": jax.__version__,
    "keras": keras.__version__,
    "keras_sq": keras_sq.__version__,
    "platform": jax.default_backend(),
    "devices": [device.device_kind for device in jax.devices()],
}))
"""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of this command, and those of the runner."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="Further flags go on to run.py.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pieces", type=pathlib.Path, required=True, help="the pieces that have come"
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, required=True, help="where to unpack to"
    )
    parser.add_argument(
        "--allow_cpu", action="store_true", help="rehearse without a GPU"
    )
    return parser.parse_known_args(arguments)


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Returns the environment of a process that uses the kit's packages."""
    paths = [str(unpack.site_path(folder).resolve()), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def check_machine(folder: pathlib.Path, allow_cpu: bool) -> str:
    """Returns what JAX computes on, and the versions, as one line.

    Args:
        folder: Path of the unpacked kit.
        allow_cpu: Whether a machine without a GPU will do.

    Raises:
        KitError: If JAX, Keras or keras_sq cannot be imported, or there is no GPU.
    """
    # JAX is asked in a process that ends: it would keep the GPU's memory.
    preallocate = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    result = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**environment(folder), **preallocate},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it ended at once"])[-1]
        raise KitError(
            f"JAX, Keras and keras_sq do not start here: {reason} (JAX and NumPy must "
            "be installed; the rest is in the kit)"
        )
    machine = json.loads(result.stdout.splitlines()[-1])
    if machine["platform"] == "cpu" and not allow_cpu:
        raise KitError(
            f"JAX {machine['jax']} sees no GPU here. Install JAX with CUDA, or "
            "rehearse on the CPU with --allow_cpu --scale=0.001."
        )
    devices = ", ".join(machine["devices"])
    return (
        f"{devices}; Python {machine['python']}, JAX {machine['jax']}, Keras "
        f"{machine['keras']}, keras_sq {machine['keras_sq']}"
    )


def train(folder: pathlib.Path, flags: list[str]) -> None:
    """Becomes the runner: signals, output and exit status are its own.

    Args:
        folder: Path of the unpacked kit.
        flags: Flags of the runner.
    """
    runner = unpack.scripts_path(folder) / "run.py"
    if not runner.exists():
        raise KitError("The kit has no run.py: pack it again with a whole checkout.")
    command = [sys.executable, str(runner), f"--data={unpack.data_path(folder)}"]
    sys.stdout.flush()
    os.execve(sys.executable, [*command, *flags], environment(folder))


def main(arguments: list[str]) -> int:
    """Unpacks and trains; returns the exit status."""
    flags, others = parse(arguments)
    missing = unpack.unpack(flags.pieces, flags.folder)
    if unpack.is_made(unpack.site_path(flags.folder)):
        # Told with the first pieces: without a GPU, the others need not be sent.
        print(check_machine(flags.folder, flags.allow_cpu), flush=True)
    if missing:
        have = unpack.arrived(flags.folder)
        line = unpack.describe_missing(missing, flags.pieces, have)
        raise KitError(line, INCOMPLETE)
    train(flags.folder, [*(["--allow_cpu"] if flags.allow_cpu else []), *others])
    return 0


if __name__ == "__main__":
    sys.exit(run("go.py", main))
