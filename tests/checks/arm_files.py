"""Runs exported files on 64-bit ARM, in QEMU, and compares outputs with those here.

    python tests/checks/arm_files.py --environment=arm

Exports files of every target for small dense, convolutional and depthwise networks, and
makes others of them whose FULLY_CONNECTED reads codes of 8, 4 or 2 bits. Runs them with
LiteRT here and in QEMU's user mode, on processors with and without dot products, by
XNNPACK and by the runtime's other kernels. Prints where outputs are equal, bit for bit,
and the largest differences of the others: of int8 outputs in steps, of floats as a part
of the largest output. Then prints how many instructions a run of a file takes on ARM,
for the small networks with ternary weights and for a dense network of 7.4 million of
them. These are instructions, not cycles: there are neither caches nor pipelines.

The exit status is 1 if a file does not run, or differs by more than `MAX_STEPS` or
`TOLERANCE`. Takes about ten minutes; not part of the test suite.

The folder `arm` holds Debian for ARM, unpacked, with Python, and packages for that
Python, which need not be installed anywhere else:

    apt-get install qemu-user debootstrap
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 \\
        bookworm arm/root
    for package in arm/root/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" arm/root
    done
    pip install --target=arm/site --only-binary=:all: --python-version=3.11 \\
        --platform=manylinux_2_27_aarch64 --platform=manylinux_2_28_aarch64 \\
        --platform=manylinux2014_aarch64 ai-edge-litert numpy

To count instructions, QEMU has to load plugins, as that of Debian's `qemu-user` does
(that of `qemu-user-static` cannot), and there has to be a C compiler. No ARM program is
installed here, and nothing is run as root but the first two commands.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

FOLDER = pathlib.Path(__file__).with_name("arm")

# Name -> QEMU's option, and implementer and part, as /proc/cpuinfo has them.
PROCESSORS = {
    # Without dot products: those of Raspberry Pi 3 and 4, and of phones before 2018.
    "cortex-a53": ("cortex-a53", "0x41", "0xd03"),
    "cortex-a72": ("cortex-a72", "0x41", "0xd08"),
    # With dot products of int8: that of Raspberry Pi 5.
    "cortex-a76": ("cortex-a76", "0x41", "0xd0b"),
    # With products of int8 matrices, too; without SME, of which QEMU 7.2 computes SMOPA
    # wrongly. LiteRT crashes at QEMU's numbers for it: these are of a Neoverse N2.
    "max": ("max,sme=off", "0x41", "0xd49"),
}
KERNELS = {"xnnpack": "XNNPACK", "builtin": "other kernels"}
HERE = "here"

MAX_STEPS = 3
"""Of int8 outputs: kernels of other processors may round otherwise, layer by layer."""
TOLERANCE = 1e-3
"""Of floats, relative to the largest output: where activations become int8 at run time,
one may be rounded to the other side."""

RUNS = 4
"""Runs of which instructions are counted; and twice as many, for the difference."""


# Running.


class Emulator:
    """Runs Python programs for ARM.

    Args:
        qemu: Program of QEMU's user mode.
        environment: Folder with `root` and `site`, see above.
        processor: Key of `PROCESSORS`.
    """

    def __init__(self, qemu, environment, processor):
        self.processor = processor
        self.root = environment / "root"
        self.command = [qemu, "-cpu", PROCESSORS[processor][0], "-L", self.root]
        self.site = environment / "site"

    def run(self, *arguments, options=()):
        """Runs `run_files.py`; returns what it printed.

        Args:
            *arguments: Arguments of the program.
            options: Further options of QEMU.

        Raises:
            RuntimeError: If it fails, with the end of what it wrote.
        """
        self._show_processor()
        python = self.root / "usr" / "bin" / "python3"
        return run([*self.command, *options, python, *arguments], str(self.site))

    def _show_processor(self):
        # LiteRT crashes at the file of another architecture; QEMU 7.2 shows it.
        _, implementer, part = PROCESSORS[self.processor]
        place = self.root / "proc" / "cpuinfo"
        place.parent.mkdir(exist_ok=True)
        place.write_text(
            f"processor\t: 0\nCPU implementer\t: {implementer}\nCPU architecture: 8\n"
            f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 0\n",
            "ascii",
        )


def run(command, path=None):
    """Runs `run_files.py` by some Python; returns what it printed."""
    python, *arguments = command
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = path
    result = subprocess.run(
        [python, *arguments], env=environment, capture_output=True, text=True
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"it ended with status {result.returncode}: {last}")
    return result.stdout.strip()


# Comparing outputs.


def differences(folder, name, processor):
    """Returns kernels -> largest difference of a file's outputs, and its unit.

    Args:
        folder: Folder of the file and of the outputs.
        name: Name of the file.
        processor: Key of `PROCESSORS`.
    """
    worst = {}
    with (
        np.load((folder / name).with_suffix(f".{HERE}.npz")) as expected,
        np.load((folder / name).with_suffix(f".{processor}.npz")) as actual,
    ):
        assert set(expected.files) == set(actual.files)
        for key in expected.files:
            kernels = key.partition(":")[0]
            entry = difference(actual[key], expected[key])
            worst[kernels] = max(worst.get(kernels, entry), entry)
    return worst


def difference(actual, expected):
    """Returns the largest difference and its unit: `"steps"`, or `""` of floats."""
    unit = "steps" if expected.dtype.kind in "iu" else ""
    if np.array_equal(actual, expected):
        return 0.0, unit
    largest = np.max(np.abs(actual.astype("f8") - expected.astype("f8")))
    if not unit:
        largest /= max(np.max(np.abs(expected)), np.finfo("f4").tiny)
    return float(largest), unit


def too_large(largest, unit):
    """Whether a difference is none of rounding; that of NaN is not."""
    return not largest <= (MAX_STEPS if unit else TOLERANCE)


def cell(entries):
    """Returns what a table says of several files.

    Args:
        entries: Difference and unit of each.
    """
    different = [entry for entry in entries if entry[0] != 0]
    if not different:
        return "equal"
    largest, unit = max(different)
    size = f"{largest:.0f} {unit}" if unit else f"{largest:.0e}"
    return f"{size} ({len(different)} of {len(entries)})"


def compare(folder, files, processors):
    """Prints the tables of differences; returns those that are too large.

    Args:
        folder: Folder of the files and outputs.
        files: Name of a file -> network, quantizer and case.
        processors: Names of processors.
    """
    rows = {}
    wrong = []
    for name, (network, quantizer, case) in files.items():
        row = rows.setdefault((network, case), collections.defaultdict(list))
        for processor in processors:
            for kernels, entry in differences(folder, name, processor).items():
                row[kernels, processor].append(entry)
                if too_large(*entry):
                    what = f"{network}, {quantizer}, {case}"
                    wrong.append(f"{what} differs by {entry} on {processor}, {kernels}")
    for kernels, title in KERNELS.items():
        lines = [[title, "target", *processors]]
        for (network, case), row in rows.items():
            cells = (cell(row[kernels, processor]) for processor in processors)
            lines.append([network, case, *cells])
        print_table(lines)
    return wrong


# Counting instructions.


def build_plugin(folder):
    """Returns the path of QEMU's plugin, compiled, or `None` without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    path = folder / "count_instructions.so"
    source = FOLDER / "count_instructions.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", path, source], check=True
    )
    return path


def count_instructions(emulator, plugin, paths):
    """Returns the number of instructions of a run of each file.

    Args:
        emulator: Of a processor.
        plugin: Path of the plugin.
        paths: Of the files.

    Raises:
        RuntimeError: If QEMU cannot load the plugin, or a file does not run.
    """
    out = plugin.with_suffix(".txt")
    emulator.run(
        *(FOLDER / "run_files.py", "count", str(RUNS), *paths),
        options=("-plugin", f"file={plugin},out={out}"),
    )
    return per_run([int(line) for line in out.read_text("ascii").split()])


def per_run(marks):
    """Returns instructions of a run, of marks by threes.

    What is besides the runs, such as the marks themselves, falls out.

    Args:
        marks: Instructions before `RUNS` runs, before twice as many, and after.
    """
    threes = zip(marks[::3], marks[1::3], marks[2::3], strict=True)
    return [
        ((last - middle) - (middle - first)) // RUNS for first, middle, last in threes
    ]


def print_counts(title, cases, counts):
    """Prints instructions of a run of each case by processors.

    Args:
        title: Name of the network.
        cases: Names of the cases; the first one is that of ratio 1.
        counts: Processor -> instructions of each case.
    """
    lines = [[title, *(x for name in counts for x in (name, "ratio"))]]
    for place, case in enumerate(cases):
        line = [case]
        for numbers in counts.values():
            ratio = numbers[place] / numbers[0]
            line += [f"{numbers[place]:,}", f"{ratio:.3f}"]
        lines.append(line)
    print_table(lines)


def print_table(rows):
    """Prints rows of cells, and an empty line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (x.ljust(width) for x, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print()


# The command.


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--environment", required=True, help="Folder with `root` and `site`.")
    add("--qemu", default="qemu-aarch64", help="Program of QEMU's user mode.")
    add("--cpus", default=",".join(PROCESSORS), help="By commas.")
    add("--files", help="Folder for the files, kept and used again; else a new one.")
    arguments = parser.parse_args()
    environment = pathlib.Path(arguments.environment).resolve()
    for part in ("root", "site"):
        if not (environment / part).is_dir():
            parser.error(f"there is no folder {environment / part}; see the docstring")
    processors = arguments.cpus.split(",")
    if unknown := set(processors) - set(PROCESSORS):
        parser.error(f"--cpus must be of {', '.join(PROCESSORS)}, not {unknown}")
    emulators = [Emulator(arguments.qemu, environment, x) for x in processors]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.files or temporary).resolve()
        small, large = exported(folder)
        wrong = []
        print(run([sys.executable, FOLDER / "run_files.py", "outputs", folder, HERE]))
        for emulator in emulators:
            label = emulator.processor
            said = emulator.run(FOLDER / "run_files.py", "outputs", folder, label)
            print(f"{said}, {label}")
        print()
        named = {name: ("large", "ternary", case) for case, name in large.items()}
        wrong = compare(folder, small | named, processors)
        plugin = build_plugin(pathlib.Path(temporary))
        if plugin is None:
            print("Instructions are not counted: there is no C compiler.")
            return 1
        networks = {"large": large}
        for name, (network, quantizer, case) in small.items():
            if quantizer == "ternary":
                networks.setdefault(network, {})[case] = name
        for network, names in networks.items():
            paths = [folder / name for name in names.values()]
            counts = {
                emulator.processor: count_instructions(emulator, plugin, paths)
                for emulator in emulators
            }
            print_counts(f"{network}: instructions of a run", list(names), counts)
    for what in wrong:
        print(what)
    return 1 if wrong else 0


def exported(folder):
    """Returns name -> what it is of small files, and case -> name of the large ones."""
    record = folder / "files.json"
    if not record.exists():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(FOLDER))
        import exported_files

        folder.mkdir(exist_ok=True)
        small = exported_files.export_small(folder)
        large = exported_files.export_large(folder)
        names = {case: path.name for case, path in large.items()}
        record.write_text(json.dumps([small, names]), "utf-8")
    return json.loads(record.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
