"""Compiles the decoders of packed files in C++ and Java, and runs them on files."""

import pathlib
import shutil
import struct
import subprocess

import pytest

import keras_sq

SOURCES = pathlib.Path(keras_sq.__file__).parent / "export/packed/decoders"
CPP, JAVA_COMPILER, JAVA = (shutil.which(name) for name in ("g++", "javac", "java"))
CPP_FLAGS = ["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
CPP_FLAGS += ["-fno-exceptions", "-fno-rtti"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

needs_cpp = pytest.mark.skipif(CPP is None, reason="there is no g++")
needs_java = pytest.mark.skipif(
    None in (JAVA_COMPILER, JAVA), reason="there is no Java compiler"
)

LARGEST = 2**26
"""Largest size of an unpacked file that the programs allow, as an app should."""

CPP_PROGRAM = """
#include "keras_sq_unpack.h"
#include <stdio.h>

// Both buffers have the exact size, and on the heap: the sanitizer guards their ends.
int main(int, char** arguments) {
  FILE* file = fopen(arguments[1], "rb");
  uint8_t size[4];
  while (fread(size, 1, 4, file) == 4) {
    const size_t packed_size = keras_sq::unpacking::Load(size);
    uint8_t* packed = static_cast<uint8_t*>(malloc(packed_size));
    if (fread(packed, 1, packed_size, file) != packed_size) return 2;
    size_t unpacked_size = 0;
    int status = keras_sq::UnpackedSize(packed, packed_size, &unpacked_size);
    if (status == 0 && unpacked_size > LARGEST) status = keras_sq::kNoMemory;
    uint32_t sum = 0;
    if (status == keras_sq::kOk) {
      uint8_t* out = static_cast<uint8_t*>(malloc(unpacked_size));
      status = keras_sq::Unpack(packed, packed_size, out, unpacked_size);
      if (status == keras_sq::kOk) sum = keras_sq::unpacking::Crc(out, unpacked_size);
      free(out);
    }
    free(packed);
    printf("%d %u\\n", status, sum);
  }
  fclose(file);
}
"""

JAVA_PROGRAM = """
import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.util.zip.CRC32;

public class Main {
  public static void main(String[] arguments) throws IOException {
    String path = arguments[0];
    try (DataInputStream file = new DataInputStream(new FileInputStream(path))) {
      while (file.available() > 0) {
        byte[] packed = new byte[Integer.reverseBytes(file.readInt())];
        file.readFully(packed);
        int status = 1;
        CRC32 sum = new CRC32();
        try {
          byte[] out = keras_sq.Unpacker.unpack(packed);
          sum.update(out, 0, out.length);
          status = 0;
        } catch (IOException e) {
          if (e.getMessage().contains("version")) status = 2;
        }
        System.out.println(status + " " + sum.getValue());
      }
    }
  }
}
"""


def build_cpp(folder, *options):
    """Compiles the program in C++; returns the command that runs it."""
    source, program = folder / "main.cc", folder / "main"
    source.write_text(CPP_PROGRAM)
    flags = [*CPP_FLAGS, *options, f"-DLARGEST={LARGEST}", "-I", SOURCES]
    subprocess.run([CPP, *flags, source, "-o", program], check=True, timeout=120)
    return [program]


def build_java(folder):
    """Compiles the program in Java; returns the command that runs it."""
    source = folder / "Main.java"
    source.write_text(JAVA_PROGRAM)
    command = [JAVA_COMPILER, "-Xlint:all", "-Werror", "-d", folder]
    # Old enough for every Android; that javac says it is old is no error.
    command += ["-Xlint:-options", "--release", "8", SOURCES / "Unpacker.java", source]
    subprocess.run(command, check=True, timeout=120)
    return [JAVA, "-XX:+UseSerialGC", "-cp", folder, "Main"]


def unpack_all(command, folder, files):
    """Unpacks files with a program.

    Args:
        command: What `build_cpp` or `build_java` returned.
        folder: Where to write.
        files: Bytes of packed files.

    Returns:
        For each, the status (0: unpacked, 2: of another version) and the CRC-32 of what
        was unpacked.
    """
    path = folder / "files.bin"
    path.write_bytes(b"".join(struct.pack("<I", len(x)) + x for x in files))
    result = subprocess.run(
        [*command, path], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert len(lines) == len(files)
    return [tuple(map(int, line.split())) for line in lines]
