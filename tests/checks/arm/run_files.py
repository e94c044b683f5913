"""Runs TFLite files on any machine: what `arm_files.py` starts here and in QEMU.

    run_files.py outputs FOLDER LABEL  every FOLDER/*.tflite, with its inputs
    run_files.py count RUNS FILE ...    marks the instructions of runs, see below

`outputs` reads the inputs of `x.tflite` from `x.in.npz` and writes the outputs of
XNNPACK and of the runtime's other kernels to `x.LABEL.npz`, and prints the runtime.
`count` calls getppid before RUNS runs of a file, before twice as many, and after those:
QEMU's plugin `count_instructions.c` notes how many instructions were executed at each
call. It needs no more than NumPy and LiteRT.
"""

import os
import pathlib
import platform
import sys
from importlib import metadata

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

KERNELS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


def loaded(path, kernels="xnnpack"):
    """Returns the interpreter of a file, on one thread."""
    interpreter = Interpreter(
        model_path=str(path),
        num_threads=1,
        experimental_op_resolver_type=KERNELS[kernels],
    )
    interpreter.allocate_tensors()
    return interpreter


def write_outputs(folder, label):
    """Runs all files of a folder on their inputs.

    Args:
        folder: Path of the folder.
        label: Of the machine, for the names of the output files.
    """
    for path in sorted(folder.glob("*.tflite")):
        with np.load(path.with_suffix(".in.npz")) as content:
            examples = dict(content)
        outputs = {}
        for kernels in KERNELS:
            interpreter = loaded(path, kernels)
            results = []
            for place in range(len(next(iter(examples.values())))):
                for detail in interpreter.get_input_details():
                    values = examples[str(detail["index"])][place : place + 1]
                    interpreter.set_tensor(detail["index"], values)
                interpreter.invoke()
                details = interpreter.get_output_details()
                results.append([interpreter.get_tensor(x["index"]) for x in details])
            for number, values in enumerate(zip(*results, strict=True)):
                outputs[f"{kernels}:{number}"] = np.concatenate(values)
        np.savez(path.with_suffix(f".{label}.npz"), **outputs)
    print(f"LiteRT {metadata.version('ai-edge-litert')}, {platform.machine()}")


def mark_runs(paths, runs):
    """Calls getppid around the runs of each file.

    Args:
        paths: Of the files.
        runs: Number of runs between the first two calls, half of those after them.
    """
    for path in paths:
        interpreter = loaded(path)
        for _ in range(2):  # What a first run sets up does not count.
            interpreter.invoke()
        for count in (runs, 2 * runs):
            os.getppid()
            for _ in range(count):
                interpreter.invoke()
        os.getppid()


if __name__ == "__main__":
    if sys.argv[1] == "outputs":
        write_outputs(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        mark_runs(sys.argv[3:], int(sys.argv[2]))
