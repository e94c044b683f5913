"""A file as C++ source, to be compiled into the program of a microcontroller.

What lives here: the header and the source as text, and the names in them. They
hold the bytes, what a program needs to know of inputs and outputs, and a usage
comment that compiles with TensorFlow Lite Micro's C++ library.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_sq.export.errors import ExportError
from keras_sq.export.micro import compression, lookup_tables
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.micro.operators import add_methods
from keras_sq.export.tflite.flatbuffer import (
    ALIGNMENT,
    TYPE_NAMES,
    TFLiteFile,
    indices,
    shape_of,
)
from keras_sq.export.tflite.runtime import signature_names

USAGE_BEGIN = "// Usage:"
USAGE_END = "// End of usage."
"""Lines around the usage comment; what is between them compiles, less `// `."""

_BYTES_PER_LINE = 12

_C_TYPES = {
    "BOOL": ("bool", "b"),
    "FLOAT32": ("float", "f"),
    "INT16": ("int16_t", "i16"),
    "INT32": ("int32_t", "i32"),
    "INT64": ("int64_t", "i64"),
    "INT8": ("int8_t", "int8"),
    "UINT8": ("uint8_t", "uint8"),
}
"""Type of a tensor -> its type in C++, and the member of the tensor's data."""


@dataclasses.dataclass(frozen=True)
class CSources:
    """The text of two files.

    Attributes:
        header: What programs include.
        source: What is compiled once.
    """

    header: str
    source: str


def identifier(name: str) -> str:
    """Returns a valid C++ name for an array, like a file's name.

    It has `model` in it, so that it is no keyword and no function of the library.

    Args:
        name: Any text, such as the name of a file without its ending.

    Example:
        >>> identifier("kws-v2"), identifier("2nd model"), identifier("abs")
        ('kws_v2_model', 'model_2nd_model', 'abs_model')
    """
    # Double underscores, and leading ones, are the compiler's.
    words = re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_")
    if not words:
        return "model"
    if words[0].isdigit():
        words = f"model_{words}"
    return words if "model" in words.lower() else f"{words}_model"


def write(
    content: bytes,
    destination: pathlib.Path,
    arena_bytes: int,
    writers: Mapping[str, Callable[[bytes], None]],
) -> None:
    """Writes the sources of a file beside it.

    Args:
        content: The bytes of the file.
        destination: Its path.
        arena_bytes: The memory that it needs.
        writers: What writes the header, under `".h"`, and the source, under `".cc"`.
    """
    texts = c_sources(
        content,
        identifier(destination.stem),
        arena_bytes,
        compression.operators(TFLiteFile(content)),
        destination.with_suffix(".h").name,
    )
    writers[".h"](texts.header.encode())
    writers[".cc"](texts.source.encode())


def c_sources(
    content: bytes,
    name: str,
    arena_bytes: int,
    operators: Sequence[str],
    header_name: str,
) -> CSources:
    """Returns a file as C++ header and source.

    Args:
        content: The bytes of a `.tflite` file.
        name: Of the array, as `identifier` returns it.
        arena_bytes: The memory that the interpreter needs.
        operators: Names of the file's operators, such as `"CONV_2D"`.
        header_name: Name of the header's file.

    Raises:
        ValueError: If one of the names cannot be used.
        ExportError: If TensorFlow Lite Micro lacks one of the operators, or an
            input or output has a type that programs cannot exchange with it.
    """
    if not re.fullmatch(r"[a-zA-Z_]\w*", name, re.ASCII):
        raise ValueError(
            f"Argument `name` must be a name in C++. Received: name={name!r}"
        )
    if not header_name.isprintable() or set(header_name) & set('"\\'):
        raise ValueError(
            "Argument `header_name` must not hold quotation marks, backslashes or "
            f"control characters. Received: header_name={header_name!r}"
        )
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    names = signature_names(file)
    tensors = [
        *_tensors(graph, "input", indices(graph.inputs), names[0]),
        *_tensors(graph, "output", indices(graph.outputs), names[1]),
    ]
    constants = "\n".join(
        line for tensor in tensors for line in _constants(name, tensor)
    )
    version = ""
    if lookup_tables.DECODE in operators:
        version = f"""
//
// Its kernels are compressed: the library must have the operator {lookup_tables.DECODE}
// as of version {micro_runtime.TFLITE_MICRO_VERSION} of the Python package, which
// checked the model. Libraries from before October 2025 do not have it."""
    usage = _usage(name, tensors, add_methods(operators), header_name)
    guard = f"KERAS_SQ_{identifier(header_name).upper()}_"
    header = f"""\
// A TensorFlow Lite Micro model of {len(content):,} bytes. Made by keras_sq.{version}

#ifndef {guard}
#define {guard}

// The model: a .tflite file.
alignas({ALIGNMENT}) extern const unsigned char {name}[];
extern const unsigned int {name}_len;

// Memory that the interpreter needs, in bytes: the least in which the model ran with
// the portable kernels on a 64-bit computer. A 32-bit chip needs less with them;
// optimized kernels of a chip's vendor may need more.
constexpr unsigned int {name}_arena_bytes = {arena_bytes};

// Inputs and outputs: real value = scale * (value - zero_point), and the other way
// value = round(real value / scale) + zero_point, held to [-128, 127].
{constants}

{USAGE_BEGIN}
{_commented(usage)}
{USAGE_END}

#endif  // {guard}
"""
    source = f"""\
// Made by keras_sq.

#include "{header_name}"

alignas({ALIGNMENT}) const unsigned char {name}[] = {{
{_hexadecimal(content)}
}};
const unsigned int {name}_len = {len(content)};
"""
    return CSources(header, source)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """An input or output, by its name in C++."""

    label: str
    name: str
    place: str
    shape: tuple[int, ...]
    c_type: str
    member: str
    quantization: tuple[float, int] | None

    @property
    def is_input(self) -> bool:
        return self.label.startswith("input")


def _tensors(
    graph: Any, kind: str, places: Sequence[int], names: Sequence[str]
) -> list[_Tensor]:
    rows = []
    for number, (index, name) in enumerate(zip(places, names, strict=True)):
        tensor = graph.tensors[index]
        type_name = TYPE_NAMES[tensor.type]
        quantization = tensor.quantization
        scaled = None
        if quantization is not None and quantization.scale is not None:
            if len(quantization.scale):
                scaled = float(quantization.scale[0]), int(quantization.zeroPoint[0])
        if type_name not in _C_TYPES:
            raise ExportError(
                f"The file has an {kind} of type {type_name}; for C++ sources, inputs "
                f"and outputs must have one of the types {', '.join(_C_TYPES)}."
            )
        c_type, member = _C_TYPES[type_name]
        rows.append(
            _Tensor(
                f"{kind}_{number}",
                re.sub(r"\W", "_", name),
                f"{kind}({number})",
                shape_of(tensor),
                c_type,
                member,
                scaled,
            )
        )
    return rows


def _constants(name: str, tensor: _Tensor) -> list[str]:
    prefix = f"{name}_{tensor.label}"
    size = int(np.prod(tensor.shape, dtype=np.int64))
    shape = ", ".join(map(str, tensor.shape))
    lines = [
        f"// {tensor.label} ({tensor.name}): {tensor.c_type}, shape ({shape})",
        f"constexpr unsigned int {prefix}_size = {size};",
    ]
    if tensor.quantization is not None:
        scale, zero_point = tensor.quantization
        # The shortest digits that give the same float32.
        digits = np.format_float_scientific(np.float32(scale))
        lines += [
            f"constexpr float {prefix}_scale = {digits}f;",
            f"constexpr int {prefix}_zero_point = {zero_point};",
        ]
    return lines


def _usage(
    name: str, tensors: Sequence[_Tensor], methods: Sequence[str], header_name: str
) -> str:
    parameters = ", ".join(
        f"{'const ' if tensor.is_input else ''}{tensor.c_type}* {tensor.label}"
        for tensor in tensors
    )
    added = " ||\n      ".join(
        f"resolver.{method}() != kTfLiteOk" for method in methods
    )
    copied = {True: "", False: ""}
    for tensor in tensors:
        data = f"{name}_interpreter->{tensor.place}->data.{tensor.member}"
        size = f"{name}_{tensor.label}_size * sizeof({tensor.c_type})"
        first, second = tensor.label, data
        if tensor.is_input:
            first, second = second, first
        copied[tensor.is_input] += f"  std::memcpy({first}, {second},\n"
        copied[tensor.is_input] += f"              {size});\n"
    return f"""\
#include <cstdint>
#include <cstring>

#include "{header_name}"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{
alignas({ALIGNMENT}) uint8_t {name}_arena[{name}_arena_bytes];
tflite::MicroInterpreter* {name}_interpreter = nullptr;
}}  // namespace

// Call once. Returns whether all went well.
bool {name}_setup() {{
  static tflite::MicroMutableOpResolver<{len(methods)}> resolver;
  if ({added}) {{
    return false;
  }}
  static tflite::MicroInterpreter interpreter(
      tflite::GetModel({name}), resolver, {name}_arena, {name}_arena_bytes);
  {name}_interpreter = &interpreter;
  return interpreter.AllocateTensors() == kTfLiteOk;
}}

// Call for each example. Returns whether all went well.
bool {name}_run({parameters}) {{
{copied[True]}\
  if ({name}_interpreter->Invoke() != kTfLiteOk) {{
    return false;
  }}
{copied[False]}\
  return true;
}}"""


def _commented(code: str) -> str:
    return "\n".join(f"// {line}".rstrip() for line in code.splitlines())


def _hexadecimal(content: bytes) -> str:
    """Returns bytes as lines of an initializer, without a loop over them."""
    table = np.frombuffer(
        "".join(f" 0x{value:02x}," for value in range(256)).encode(), np.uint8
    ).reshape(256, -1)
    cells = table[np.frombuffer(content, np.uint8)]
    full = len(cells) - len(cells) % _BYTES_PER_LINE
    lines = cells[:full].reshape(-1, _BYTES_PER_LINE * table.shape[1])
    indented = np.pad(lines, ((0, 0), (1, 1)), constant_values=ord(" "))
    indented[:, -1] = ord("\n")
    rest = b" " + cells[full:].tobytes() if full < len(cells) else b""
    return (indented.tobytes() + rest).decode().rstrip("\n")
