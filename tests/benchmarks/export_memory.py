r"""Memory and time that the export of a large network takes, target by target.

    python tests/benchmarks/export_memory.py
    python tests/benchmarks/export_memory.py --memory_targets=small

A ResNet50V2 of 25.6 million weights, ternary, not trained. Each target has a process
of its own; printed is the peak of its resident memory, before the export began and
at the end, and the time and size.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

MEMORY_TARGETS = flags.DEFINE_list(
    "memory_targets",
    ["fast", "int4", "int2", "small", "int8", "small+int8"],
    "Targets.",
)
ONE_TARGET = flags.DEFINE_string("one_target", None, "For the processes themselves.")


def peak() -> str:
    """Returns the largest resident memory so far."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kibibytes / 2**20:.2f} GiB"


def export(target: str) -> None:
    """Exports to one target, and prints its line."""
    import keras
    import numpy as np

    import keras_sq

    model = keras.applications.ResNet50V2(weights=None)
    sq_model = keras_sq.quantize_model(model, "ternary", seed=0, overrides={})
    examples = None
    if "int8" in target:
        examples = np.random.default_rng(0).normal(size=(8, 224, 224, 3))
    before, start = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = keras_sq.export(
            sq_model,
            os.path.join(folder, "model.tflite"),
            target=target.removesuffix("+int8"),
            representative_data=examples,
            allow_untrained=True,
        )
    seconds = time.perf_counter() - start
    print(
        f"{target:10}  {report.num_bytes:12,} bytes  {report.times_smaller:5.1f} x  "
        f"{seconds:5.0f} s  {before} before, {peak()} at most",
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Starts a process for each target."""
    if ONE_TARGET.value:
        export(ONE_TARGET.value)
        return
    for target in MEMORY_TARGETS.value:
        command = [sys.executable, argv[0], f"--one_target={target}"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    app.run(main)
