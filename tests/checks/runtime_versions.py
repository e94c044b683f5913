"""Runs exported files in several versions of the runtimes, old and new.

    python tests/checks/runtime_versions.py --environments=~/.cache/keras_sq_runtimes

Exports two small networks with four quantizers for every target but those with a
runtime of their own (microcontrollers', Larq Compute Engine's), makes a virtual
environment for each runtime, runs the files there and prints a table: `exact` is what
this environment's runtime gives, bit for bit; `close` differs by rounding; the rest
fail. The exit status is 1 if a file fails in a version for which its report says that
it runs.

Needs a package index, about two minutes and 1 GB of disk; with `--environments`
the next run starts at once. Not part of the test suite. `--packages` takes other
runtimes too, such as `tensorflow-cpu==2.18.1`.

In the environments this same file is the runner, hence only the standard library
and NumPy there.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGES = (
    "tflite-runtime==2.14.0",
    "ai-edge-litert==1.0.1",
    "ai-edge-litert==1.4.0",
    "ai-edge-litert==2.1.0",
    "ai-edge-litert==2.1.4",
    "ai-edge-litert==2.3.0",
)

# Package -> its name in `ExportReport.runtimes`.
FAMILIES = {
    "ai-edge-litert": "LiteRT",
    "tensorflow": "TensorFlow",
    "tensorflow-cpu": "TensorFlow",
    "tflite-runtime": "tflite-runtime",
}

OLDEST = "tflite-runtime 2.14"
"""Of files that have no types that it does not know."""

BATCH = 3
TOLERANCE = {"lowbit": 0.02}
OTHER_TOLERANCE = 1e-4
"""Of floats, relative to the largest output; more where activations are rounded."""
MAX_STEPS = 3
"""Of int8 outputs: kernels of other versions may round otherwise, layer by layer."""


# Here: exporting.


def networks():
    """Returns name -> network."""
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(32, 3, strides=2, use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(64, 3, activation="relu")(x)
    convolutions = keras.Model(
        image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    )
    sound = keras.Input((24, 16), name="sound")
    x = layers.Conv1D(64, 3, activation="relu")(sound)
    x = layers.Reshape((11, 2, 64))(x)
    x = layers.DepthwiseConv2D((3, 1), depth_multiplier=2)(x)
    x = layers.Dense(96, activation="relu")(layers.Flatten()(x))
    mixed = keras.Model(sound, layers.Dense(10, activation="softmax")(x))
    return {"convolutions": convolutions, "mixed": mixed}


def export_all(folder, chosen):
    """Exports all files; returns file name -> target and claimed runtimes.

    Args:
        folder: Where to.
        chosen: Targets, or `None` for all.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np

    import keras_sq
    from keras_sq.export import kinds

    quantizers = {
        "binary": keras_sq.quantizers.BinaryQuantizer(),
        "ternary": keras_sq.quantizers.TernaryQuantizer(),
        "uniform-3": keras_sq.quantizers.UniformQuantizer(3),
        "13 levels": keras_sq.quantizers.UniformQuantizer(4, num_levels=13),
    }
    cases = {}
    for name, target in kinds.KINDS.items():
        if target.single or (chosen and name not in chosen):
            continue
        cases[name] = (name, target.needs_examples)
        if target.int8_activations and not target.needs_examples:
            cases[f"{name}, int8"] = (name, True)
            if target.type_name is None:
                cases[f"{name}, old"] = (name, False)
    generator = np.random.default_rng(0)
    files = {}
    keras.utils.set_random_seed(0)
    for network, model in networks().items():
        shape = model.inputs[0].shape[1:]
        examples = generator.normal(size=(100, *shape)).astype("float32")
        for quantizer, instance in quantizers.items():
            quantized = keras_sq.quantize_model(model, instance, seed=0, overrides={})
            for case, (target, with_examples) in cases.items():
                path = folder / f"{len(files):03}_{target}.tflite"
                report = keras_sq.export(
                    quantized,
                    path,
                    target=target,
                    representative_data=examples if with_examples else None,
                    oldest_runtime=OLDEST if case.endswith("old") else None,
                    allow_untrained=True,
                )
                write_expected(path, examples[:BATCH])
                files[path.name] = {
                    "case": case,
                    "what": f"{network}, {quantizer}, {case}",
                    "runtimes": list(report.runtimes),
                }
    return files


def write_expected(path, examples):
    """Writes inputs and this environment's outputs beside a file."""
    import numpy as np

    arrays = {}
    runner = signature_runner(path)
    for name, detail in runner.get_input_details().items():
        arrays[f"in:{name}"] = quantized(examples, detail)
    for delegates in (True, False):
        outputs = signature_runner(path, delegates)(
            **{name[3:]: value for name, value in arrays.items() if name[:3] == "in:"}
        )
        for name, value in outputs.items():
            arrays[f"out{int(delegates)}:{name}"] = np.array(value)
    np.savez(path.with_suffix(".npz"), **arrays)


def quantized(values, detail):
    """Returns floats as a file takes them."""
    import numpy as np

    if detail["dtype"] != np.int8:
        return values
    scale, zero_point = detail["quantization"]
    return np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)


# There: running.


def signature_runner(path, delegates=True):
    """Returns the function that runs a file, in any runtime.

    Args:
        path: Of the file.
        delegates: Whether with the runtime's default delegates (XNNPACK).
    """
    try:
        from ai_edge_litert import interpreter as module
    except ImportError:
        try:
            from tflite_runtime import interpreter as module
        except ImportError:
            from tensorflow.lite.python import interpreter as module
    kinds = module.OpResolverType
    kind = kinds.AUTO if delegates else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = module.Interpreter(
        model_path=str(path), experimental_op_resolver_type=kind
    )
    return interpreter.get_signature_runner()


def outcome(path, tolerance):
    """Returns `"exact"`, `"close"` or what went wrong with a file."""
    import numpy as np

    with np.load(path.with_suffix(".npz")) as content:
        arrays = dict(content)
    inputs = {name[3:]: x for name, x in arrays.items() if name.startswith("in:")}
    worst = "exact"
    for delegates in (True, False):
        try:
            outputs = signature_runner(path, delegates)(**inputs)
        except (RuntimeError, ValueError) as error:
            return " ".join(str(error).split())[:300]
        for name, actual in outputs.items():
            expected = arrays[f"out{int(delegates)}:{name}"]
            if actual.shape != expected.shape or actual.dtype != expected.dtype:
                return f"gives {actual.dtype} {actual.shape}"
            if np.array_equal(actual, expected):
                continue
            difference = np.max(np.abs(actual.astype("f8") - expected))
            allowed = MAX_STEPS
            if actual.dtype.kind == "f":
                allowed = tolerance * np.max(np.abs(expected))
            # Written so that NaN is no closeness.
            if not difference <= allowed:
                return f"differs by {difference:.3g}, allowed {allowed:.3g}"
            worst = "close"
    return worst


def run_files(paths):
    """Prints the outcome of each file, as a line of JSON."""
    for path in paths:
        place = pathlib.Path(path)
        target = place.name.partition(".")[0].partition("_")[2]
        tolerance = TOLERANCE.get(target, OTHER_TOLERANCE)
        print(json.dumps([path, outcome(place, tolerance)]), flush=True)


# Here: environments and the table.


def environment(folder, package):
    """Returns the Python of a virtual environment with a runtime in it."""
    place = folder / re.sub(r"\W+", "_", package)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = place / "done"
    if not done.exists():
        print(f"Installing {package} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        # The older ones were built for it.
        old = FAMILIES[name_of(package)] != "LiteRT" or version_of(package) < (1, 1)
        numpy = "numpy<2" if old else "numpy"
        install = [python, "-m", "pip", "install", "--quiet", package, numpy]
        subprocess.run(install, check=True)
        done.touch()
    return python


def run_there(python, paths):
    """Returns path -> outcome, by a process that may die and be begun again."""
    outcomes = {}
    while rest := [str(path) for path in paths if str(path) not in outcomes]:
        result = subprocess.run(
            [python, __file__, "--run", *rest], capture_output=True, text=True
        )
        for line in result.stdout.splitlines():
            if line.startswith("["):
                path, found = json.loads(line)
                outcomes[path] = found
        if result.returncode:
            last = (result.stderr.strip().splitlines() or [""])[-1]
            stopped = next(path for path in rest if path not in outcomes)
            outcomes[stopped] = f"ends the process ({result.returncode}): {last}"
    return outcomes


def name_of(package):
    return package.split("==")[0]


def version_of(package):
    return tuple(int(x) for x in re.findall(r"\d+", package.split("==")[1]))


def claimed(package, runtimes):
    """Whether a report says that a file runs in a version of a runtime."""
    for claim in runtimes:
        match = re.fullmatch(r"(\S+) >= ([\d.]+)", claim)
        if match and match[1] == FAMILIES[name_of(package)]:
            return version_of(package) >= tuple(map(int, match[2].split(".")))
    return False


def summary(outcomes):
    """Returns a cell of the table."""
    counts = collections.Counter(
        x if x in ("exact", "close") else "fail" for x in outcomes
    )
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


def print_table(files, packages, outcomes):
    """Prints cases by packages, then why files fail."""
    cases = list(dict.fromkeys(entry["case"] for entry in files.values()))
    rows = [["target", *packages]]
    reasons = collections.Counter()
    for case in cases:
        row = [case]
        for package in packages:
            found = []
            for name, entry in files.items():
                if entry["case"] != case:
                    continue
                result = outcomes[package][name]
                found.append(result)
                if result not in ("exact", "close"):
                    word = "CLAIMED" if claimed(package, entry["runtimes"]) else "not"
                    reasons[case, package, word, result] += 1
            row.append(summary(found))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    for (case, package, word, reason), count in reasons.items():
        said = "" if word == "CLAIMED" else "not "
        print(f"\n{count} of {case!r} in {package}, {said}claimed to run: {reason}")


def unclaimed(files, packages, outcomes):
    """Prints where all files of a case run and none is claimed to."""
    for case in dict.fromkeys(entry["case"] for entry in files.values()):
        of_case = {k: v for k, v in files.items() if v["case"] == case}
        for package in packages:
            runs = all(outcomes[package][x] in ("exact", "close") for x in of_case)
            claims = any(claimed(package, x["runtimes"]) for x in of_case.values())
            if runs and not claims:
                print(f"\n{case!r} runs in {package} too, which no report claims.")


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", help="Folder to keep; else a temporary one.")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="By commas.")
    parser.add_argument("--targets", help="By commas; else all.")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_files(arguments.run)
        return 0
    packages = arguments.packages.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        environments = folder / "environments"
        if arguments.environments:
            environments = pathlib.Path(arguments.environments).expanduser().resolve()
        pythons = {x: environment(environments, x) for x in packages}
        chosen = arguments.targets.split(",") if arguments.targets else None
        files = export_all(folder, chosen)
        outcomes = {}
        for package, python in pythons.items():
            there = run_there(python, [folder / name for name in files])
            outcomes[package] = {pathlib.Path(k).name: v for k, v in there.items()}
    print_table(files, packages, outcomes)
    unclaimed(files, packages, outcomes)
    wrong = [
        (package, entry["what"])
        for package in packages
        for name, entry in files.items()
        if outcomes[package][name] not in ("exact", "close")
        and claimed(package, entry["runtimes"])
    ]
    for package, what in wrong:
        print(f"\nWrong claim: {what} fails in {package}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
