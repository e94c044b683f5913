"""Compiles a model's C++ sources into programs, and runs them.

    python tests/checks/microcontroller/check.py

makes a small binary network, compresses it, writes `model.h` and `model.cc`, and

1. `host`: compiles them with `g++` and checks, in the running program, that the
   array is the file: length, bytes, alignment.
2. `cortex-m4`: the same, compiled with `arm-none-eabi-g++` and run from the
   flash memory of an emulated board (QEMU's mps2-an386). On Debian:
   `apt install gcc-arm-none-eabi qemu-system-arm`.
3. `library`: compiles the header's usage comment with TensorFlow Lite Micro's
   C++ library, runs the model in exactly the memory that the header states, and
   compares the output with that of the Python package. For this, the environment
   variable TFLM_ROOT names the library's source tree, and TFLM_LIBRARY the
   static library (`libtensorflow-microlite.a`) that was built from it for this
   computer, as its own documentation says, with its third-party headers in
   `tensorflow/lite/micro/tools/make/downloads` (or where TFLM_INCLUDE says:
   folders, with colons between them).

What a step needs and is not there, it says, and is skipped. The exit status is 1 if
a step failed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_sq.export.conversion import convert, inputs, integer
from keras_sq.export.examples import Examples
from keras_sq.export.micro import c_source, compression
from keras_sq.export.micro.runtime import MicroRunner

HERE = pathlib.Path(__file__).resolve().parent
CXX_FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
BOARD_FLAGS = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft"]
BOARD_FLAGS += ["-ffreestanding", "-fno-exceptions", "-fno-rtti"]
BOARD_LINK_FLAGS = ["-nostdlib", "-nostartfiles", "-T", str(HERE / "board.ld")]
BOARD_LINK_FLAGS += ["-lgcc"]
EMULATOR_FLAGS = ["-machine", "mps2-an386", "-nographic", "-monitor", "none"]
EMULATOR_FLAGS += ["-serial", "none", "-chardev", "stdio,id=out"]
EMULATOR_FLAGS += ["-semihosting-config", "enable=on,target=native,chardev=out"]


class Skipped(Exception):
    """Raised by a step that lacks something."""


class Failed(Exception):
    """Raised by a step that finds a mistake."""


def main():
    """Runs all steps; returns the exit status."""
    steps = {"host": on_host, "cortex-m4": on_board, "library": with_library}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        content = write_sources(folder)
        for name, step in steps.items():
            try:
                print(f"{name}: {step(folder, content)}")
            except Skipped as reason:
                print(f"{name}: skipped, {reason}")
            except Failed as reason:
                failed = 1
                print(f"{name}: FAILED, {reason}")
            except subprocess.CalledProcessError as error:
                failed = 1
                said = (error.stdout or b"") + (error.stderr or b"")
                command = pathlib.Path(error.cmd[0]).name
                print(f"{name}: FAILED, {command} returned {error.returncode}")
                print(said.decode(errors="replace"))
    return failed


def write_sources(folder):
    """Writes model.h and model.cc; returns the bytes of the file in them."""
    made = compression.compress(int8_file())
    sources = c_source.c_sources(
        made.content, "model", made.arena_bytes, made.operators, "model.h"
    )
    (folder / "model.h").write_text(sources.header)
    (folder / "model.cc").write_text(sources.source)
    print(
        f"model: {made.int8_bytes:,} bytes as int8, {len(made.content):,} compressed, "
        f"{made.arena_bytes:,} bytes of memory, operators {', '.join(made.operators)}"
    )
    return made.content


def int8_file():
    """Returns a full-integer file of a binary network."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            scale = np.abs(kernel).reshape(-1, kernel.shape[-1]).mean(axis=0)
            bias = generator.normal(0, 0.1, bias.shape)
            layer.set_weights([np.where(kernel < 0, -scale, scale), bias])
    examples = generator.normal(size=(16, 16, 16, 3)).astype("float32")
    signature = inputs.input_signature(model, examples).with_batch(1)
    floats = convert.float_file(model, signature, integers=True)
    return integer.int8_file(floats, Examples([examples]))


def on_host(folder, content):
    """Compiles and runs the check on this computer."""
    compiler = program("g++")
    flags = [*CXX_FLAGS, *expectations(content), f"-I{HERE}", f"-I{folder}"]
    sources = [HERE / "host.cc", HERE / "check_model.cc", folder / "model.cc"]
    run(compiler, *flags, *sources, "-o", folder / "host")
    return run(folder / "host").decode().strip()


def on_board(folder, content):
    """Compiles the check for a Cortex-M4 and runs it in the emulator."""
    compiler, emulator = program("arm-none-eabi-g++"), program("qemu-system-arm")
    flags = [*CXX_FLAGS, *BOARD_FLAGS, *expectations(content)]
    flags += [f"-I{HERE}", f"-I{folder}"]
    sources = [HERE / "board.cc", HERE / "check_model.cc", folder / "model.cc"]
    run(compiler, *flags, *sources, *BOARD_LINK_FLAGS, "-o", folder / "board.elf")
    said = run(emulator, *EMULATOR_FLAGS, "-kernel", folder / "board.elf", timeout=60)
    return said.decode().strip()


def with_library(folder, content):
    """Runs the model with the C++ library; compares with the Python package."""
    compiler = program("g++")
    paths = {}
    for name in ("TFLM_ROOT", "TFLM_LIBRARY"):
        if name not in os.environ:
            raise Skipped(f"the environment variable {name} is not set")
        paths[name] = pathlib.Path(os.environ[name])
        if not paths[name].exists():
            raise Skipped(f"{name} names '{paths[name]}', which does not exist")
    root = paths["TFLM_ROOT"]
    downloads = root / "tensorflow/lite/micro/tools/make/downloads"
    includes = [root, folder]
    includes += [downloads / x for x in ("flatbuffers/include", "gemmlowp", "ruy")]
    includes += [x for x in os.environ.get("TFLM_INCLUDE", "").split(":") if x]
    header = (folder / "model.h").read_text()
    source = usage(header) + (HERE / "interpreter.cc").read_text()
    (folder / "interpreter.cc").write_text(source)
    # As the library is compiled: the layout of its classes depends on it.
    flags = ["-std=c++17", "-O1", "-DTF_LITE_STATIC_MEMORY"]
    flags += ["-fno-exceptions", "-fno-rtti", *(f"-I{x}" for x in includes)]
    sources = [folder / "interpreter.cc", folder / "model.cc", paths["TFLM_LIBRARY"]]
    run(compiler, *flags, *sources, "-lm", "-o", folder / "interpreter")
    runner = MicroRunner(content)
    generator = np.random.default_rng(0)
    count = 20
    for _ in range(count):
        example = generator.integers(-128, 128, runner.inputs[0].shape).astype(np.int8)
        (folder / "input").write_bytes(example.tobytes())
        run(folder / "interpreter", folder / "input", folder / "output")
        (expected,) = runner([example])
        if (folder / "output").read_bytes() != expected.tobytes():
            raise Failed("the outputs differ from those of the Python package")
    return f"{count} outputs as of the Python package"


def usage(header):
    """Returns the code in the usage comment of a header."""
    comment = header.split(c_source.USAGE_BEGIN)[1].split(c_source.USAGE_END)[0]
    lines = [line.removeprefix("//").removeprefix(" ") for line in comment.split("\n")]
    return "\n".join(lines) + "\n"


def expectations(content):
    """Returns what the check compares with, as options of the compiler."""
    checksum = 2166136261
    for byte in content:
        checksum = (checksum ^ byte) * 16777619 % 2**32
    return [f"-DEXPECTED_LENGTH={len(content)}u", f"-DEXPECTED_CHECKSUM={checksum}u"]


def program(name):
    """Returns the path of a program."""
    path = shutil.which(name)
    if path is None:
        raise Skipped(f"there is no {name}")
    return path


def run(*command, timeout=300):
    """Runs a command; returns what it printed."""
    return subprocess.run(
        [str(word) for word in command],
        check=True,
        capture_output=True,
        timeout=timeout,
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
