r"""Sizes of packed files against gzip and zstd, and how fast they are unpacked.

    python tests/benchmarks/packed_files.py
    python tests/benchmarks/packed_files.py --networks=resnet18:binary --targets=fast

The networks are those of `export_size.py`, not trained. `entropy` is what the symbols
of the segments take at least, each segment by itself, in bytes: the kernels, without
scales and the rest of the file. Times are processor times of one thread, the shortest
of several: packing in Python; unpacking by the C++ decoder, compiled by g++ with -O2,
with check sums, as time and as weights a second; by Java, warm; and by NumPy. Columns
of programs that are not installed are empty.
"""

import gzip
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))

import export_size
import numpy as np
import packed_decoders
from absl import app, flags

import keras_sq
from keras_sq.export.conversion import inputs
from keras_sq.export.packed import buffers, segments

NETWORKS = flags.DEFINE_list(
    "networks",
    ["resnet8:ternary", "mobilenet_v2:ternary", "resnet18:ternary", "resnet18:binary"],
    "Names and kernels, as of export_size.py.",
)
flags.FLAGS.set_default("targets", ["float", "fast", "int2", "small", "int8"])

CPP_PROGRAM = """
#include <stdio.h>
#include <time.h>
#include "keras_sq_unpack.h"

int main(int, char** arguments) {
  FILE* file = fopen(arguments[1], "rb");
  fseek(file, 0, SEEK_END);
  const size_t packed_size = ftell(file);
  rewind(file);
  uint8_t* packed = static_cast<uint8_t*>(malloc(packed_size));
  if (fread(packed, 1, packed_size, file) != packed_size) return 1;
  size_t size;
  if (keras_sq::UnpackedSize(packed, packed_size, &size) != keras_sq::kOk) return 1;
  uint8_t* out = static_cast<uint8_t*>(malloc(size));
  double best = 1e9;
  for (int run = 0; run < 15; ++run) {
    const clock_t start = clock();
    if (keras_sq::Unpack(packed, packed_size, out, size) != keras_sq::kOk) return 1;
    const double seconds = static_cast<double>(clock() - start) / CLOCKS_PER_SEC;
    if (seconds < best) best = seconds;
  }
  printf("%.6f", best);
}
"""

JAVA_PROGRAM = """
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.file.Files;
import java.nio.file.Paths;

public class Main {
  public static void main(String[] arguments) throws Exception {
    byte[] packed = Files.readAllBytes(Paths.get(arguments[0]));
    ThreadMXBean thread = ManagementFactory.getThreadMXBean();
    long best = Long.MAX_VALUE;
    for (int run = 0; run < 15; ++run) {
      long start = thread.getCurrentThreadCpuTime();
      keras_sq.Unpacker.unpack(packed);
      best = Math.min(best, thread.getCurrentThreadCpuTime() - start);
    }
    System.out.print(best / 1e9);
  }
}
"""


def programs(folder: pathlib.Path) -> dict[str, list]:
    """Returns the commands that measure, by language; those that can be compiled."""
    commands = {}
    sources = packed_decoders.SOURCES
    if packed_decoders.CPP is not None:
        (folder / "main.cc").write_text(CPP_PROGRAM)
        compiler = [packed_decoders.CPP, "-std=c++11", "-O2", "-I", sources]
        compiler += [folder / "main.cc", "-o", folder / "main"]
        subprocess.run(compiler, check=True)
        commands["C++"] = [folder / "main"]
    if packed_decoders.JAVA_COMPILER is not None:
        (folder / "Main.java").write_text(JAVA_PROGRAM)
        compiler = [packed_decoders.JAVA_COMPILER, "-d", folder]
        compiler += [folder / "Main.java", sources / "Unpacker.java"]
        subprocess.run(compiler, check=True)
        commands["Java"] = [packed_decoders.JAVA, "-cp", folder, "Main"]
    return commands


def timed(function, *arguments):
    """Returns the seconds that a call takes, and its result."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def entropy(content: bytes) -> float:
    """Returns the bytes that the symbols of a file's segments take at least."""
    array = np.frombuffer(content, np.uint8)
    total = 0.0
    for segment in segments.choose(array, buffers.constants(content)):
        for symbols in segment.blocks:
            counts = np.bincount(symbols)
            counts = counts[counts > 0]
            total += float(counts @ np.log2(len(symbols) / counts)) / 8
    return total


def zstd(content: bytes) -> str:
    """Returns the size that zstd makes of a file, empty without zstd."""
    if shutil.which("zstd") is None:
        return ""
    command = ["zstd", "-19", "--stdout", "--quiet"]
    result = subprocess.run(command, input=content, capture_output=True, check=True)
    return f"{len(result.stdout):,}"


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    titles = ["network", "kernels", "target", "bytes", "gzip -9", "zstd -19", "packed"]
    titles += ["entropy", "pack s", "C++ ms", "M weights/s", "Java ms", "NumPy ms"]
    export_size.row(titles)
    export_size.row(["---"] * len(titles))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        commands = programs(folder)
        for network in NETWORKS.value:
            rows(*network.split(":"), folder, commands)


def rows(name: str, kernels: str, folder: pathlib.Path, commands: dict) -> None:
    """Prints the rows of one network."""
    model = export_size.quantized(export_size.network(name), kernels)
    generator = np.random.default_rng(1)
    examples = [x.random(32, generator) for x in inputs.input_signature(model).inputs]
    path = folder / "model.tflite"
    for target in export_size.TARGETS.value:
        report = keras_sq.export(
            model,
            path,
            target=target,
            representative_data=examples if target in ("int8", "mcu") else None,
            allow_untrained=True,
        )
        content = path.read_bytes()
        weights = sum(kernel.weights for kernel in report.kernels)
        pack_seconds, packed = timed(keras_sq.pack_file, content)
        seconds = {"NumPy": min(timed(keras_sq.unpack_file, packed)[0] for _ in "abc")}
        (folder / "packed").write_bytes(packed)
        for language, command in commands.items():
            result = subprocess.run(
                [*command, folder / "packed"], capture_output=True, check=True
            )
            seconds[language] = float(result.stdout)
        times = {language: f"{1e3 * x:.1f}" for language, x in seconds.items()}
        speed = f"{weights / seconds['C++'] / 1e6:.0f}" if "C++" in seconds else ""
        export_size.row(
            [name, kernels, target, f"{len(content):,}"]
            + [f"{len(gzip.compress(content, 9)):,}", zstd(content), f"{len(packed):,}"]
            + [f"{entropy(content):,.0f}", f"{pack_seconds:.1f}", times.get("C++", "")]
            + [speed, times.get("Java", ""), times["NumPy"]]
        )


if __name__ == "__main__":
    app.run(main)
