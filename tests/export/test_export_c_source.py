"""C++ sources: they compile, and hold the file."""

import pathlib
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from microcontroller import check

from keras_sq.export import ExportError
from keras_sq.export.micro import c_source
from keras_sq.export.micro.operators import ADD_METHODS, add_methods
from keras_sq.export.tflite.flatbuffer import TYPES, TFLiteFile, indices

FOLDER = pathlib.Path(__file__).parents[1] / "checks/microcontroller"
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]

OPERATORS = ("CONV_2D", "FULLY_CONNECTED", "MEAN", "TFLM_DECODE")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


@pytest.fixture(scope="module")
def content():
    """A full-integer file; compressed or not makes no difference here."""
    return check.int8_file()


def made(content, name="model", operators=OPERATORS):
    return c_source.c_sources(content, name, 4096, operators, "model.h")


def compile_usage(header, folder, *options):
    """Compiles the usage comment of a header with the stand-ins."""
    (folder / "model.h").write_text(header)
    (folder / "usage.cc").write_text(check.usage(header))
    command = [COMPILER, *FLAGS, "-I", folder, "-I", FOLDER / "stand_in", *options]
    command += ["-c", folder / "usage.cc", "-o", folder / "usage.o"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_compiler
def test_compiled_array_is_the_file(content, tmp_path):
    sources = made(content)
    (tmp_path / "model.h").write_text(sources.header)
    (tmp_path / "model.cc").write_text(sources.source)
    said = check.on_host(tmp_path, content)
    assert said == "the model is in place"


@pytest.mark.skipif(
    None in (shutil.which("arm-none-eabi-g++"), shutil.which("qemu-system-arm")),
    reason="there is no compiler or emulator for microcontrollers",
)
def test_array_in_emulated_flash_memory_is_the_file(content, tmp_path):
    sources = made(content)
    (tmp_path / "model.h").write_text(sources.header)
    (tmp_path / "model.cc").write_text(sources.source)
    assert check.on_board(tmp_path, content) == "the model is in place"
    with pytest.raises(subprocess.CalledProcessError, match="status 1"):
        check.on_board(tmp_path, content[:-1])


@needs_compiler
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "wrong length"),
        (lambda content: content[:-1] + b"\xff", "wrong bytes"),
    ],
)
def test_compiled_array_that_is_not_the_file_is_noticed(
    content, tmp_path, change, said
):
    sources = made(content)
    (tmp_path / "model.h").write_text(sources.header)
    (tmp_path / "model.cc").write_text(sources.source)
    with pytest.raises(subprocess.CalledProcessError, match="status 1") as caught:
        check.on_host(tmp_path, change(content))
    assert caught.value.stdout.decode().strip() == said


@needs_compiler
def test_usage_comment_compiles(content, tmp_path):
    result = compile_usage(made(content).header, tmp_path)
    assert result.returncode == 0, result.stderr


@needs_compiler
def test_usage_comment_with_every_operator_compiles(content, tmp_path):
    header = made(content, operators=sorted(ADD_METHODS)).header
    assert f"MicroMutableOpResolver<{len(ADD_METHODS)}>" in header
    result = compile_usage(header, tmp_path)
    assert result.returncode == 0, result.stderr


@needs_compiler
def test_usage_comment_with_an_unknown_method_does_not_compile(content, tmp_path):
    # The stand-ins are strict enough to notice.
    header = made(content).header.replace("AddConv2D", "AddConv2d")
    result = compile_usage(header, tmp_path)
    assert result.returncode != 0
    assert "AddConv2d" in result.stderr


@needs_compiler
@pytest.mark.parametrize("name", ["abs_model", "interpreter_model", "_model", "MODEL2"])
def test_usage_comment_with_another_name_compiles(content, tmp_path, name):
    result = compile_usage(made(content, name).header, tmp_path)
    assert result.returncode == 0, result.stderr


@needs_compiler
def test_usage_comment_with_several_types_compiles(content, tmp_path):
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    places = []
    for number, kind in enumerate(c_source._C_TYPES):
        places.append(file.add_tensor(graph, f"extra_{number}", (1, number + 1), kind))
    graph.inputs = np.array([*indices(graph.inputs), *places], np.int32)
    graph.outputs = np.array([*places, *indices(graph.outputs)], np.int32)
    header = made(file.pack()).header
    for c_type, _ in c_source._C_TYPES.values():
        assert re.search(rf"const {c_type}\* input_\d", header)
    assert "model_output_7_size = 10;" in header
    result = compile_usage(header, tmp_path)
    assert result.returncode == 0, result.stderr


def test_header_states_memory_shapes_and_quantization(content):
    header = made(content).header
    assert f"// A TensorFlow Lite Micro model of {len(content):,} bytes." in header
    assert "constexpr unsigned int model_arena_bytes = 4096;" in header
    assert re.search(r"// input_0 \(\w+\): int8_t, shape \(1, 16, 16, 3\)", header)
    assert "constexpr unsigned int model_input_0_size = 768;" in header
    assert "constexpr unsigned int model_output_0_size = 10;" in header
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    for label, (index,) in (("input", graph.inputs), ("output", graph.outputs)):
        quantization = graph.tensors[index].quantization
        (scale,) = re.findall(rf"model_{label}_0_scale = (.*)f;", header)
        assert np.float32(scale) == np.float32(quantization.scale[0])
        (zero_point,) = re.findall(rf"model_{label}_0_zero_point = (.*);", header)
        assert int(zero_point) == quantization.zeroPoint[0]


def test_header_says_which_library_decodes(content):
    assert "the operator TFLM_DECODE" in made(content).header
    plain = made(content, operators=("CONV_2D",)).header
    assert "TFLM_DECODE" not in plain
    assert "AddDecode" not in plain


def test_float_inputs_have_no_quantization(content):
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    tensor = graph.tensors[graph.inputs[0]]
    tensor.type, tensor.quantization = TYPES["FLOAT32"], None
    header = made(file.pack()).header
    assert "model_input_0_scale" not in header
    assert "data.f, input_0" in header


def test_type_without_form_in_c_raises(content):
    file = TFLiteFile(content)
    graph = file.subgraphs[0]
    graph.tensors[graph.outputs[0]].type = TYPES["COMPLEX64"]
    with pytest.raises(ExportError, match="has an output of type COMPLEX64; for C"):
        made(file.pack())


def test_operator_that_the_library_lacks_raises(content):
    with pytest.raises(ExportError, match="has no operator CONV_3D, FlexErf. Replace"):
        made(content, operators=("FlexErf", "CONV_2D", "CONV_3D"))


def test_methods_are_sorted_and_named_once():
    operators = ["MEAN", "CONV_2D", "MEAN", "TFLM_DECODE", "CUMSUM"]
    expected = ["AddConv2D", "AddCumSum", "AddDecode", "AddMean"]
    assert add_methods(operators) == expected
    assert len(set(ADD_METHODS.values())) == len(ADD_METHODS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model", "model"),
        ("my-model.v2", "my_model_v2"),
        ("Kws Model", "Kws_Model"),
        ("2nd", "model_2nd"),
        ("double", "double_model"),
        ("_a__b_", "a_b_model"),
        ("größe", "gr_e_model"),
        ("模型", "model"),
        ("", "model"),
    ],
)
def test_identifier_is_valid(text, name):
    assert c_source.identifier(text) == name
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name)


@pytest.mark.parametrize("name", ["", "2nd", "a-b", "größe", "a b"])
def test_name_that_is_none_in_c_raises(content, name):
    with pytest.raises(ValueError, match="`name` must be a name in C.*Received: name="):
        made(content, name)


@pytest.mark.parametrize("header", ['a".h', "a\n.h", "a\\b.h"])
def test_header_name_that_cannot_be_included_raises(content, header):
    with pytest.raises(ValueError, match="`header_name` must not hold .* Received: "):
        c_source.c_sources(content, "model", 16, (), header)


@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 24, 1000])
def test_bytes_are_written_in_order(count):
    content = np.random.default_rng(0).integers(0, 256, count).astype(np.uint8)
    text = c_source._hexadecimal(content.tobytes())
    assert bytes.fromhex(re.sub(r"0x|,|\s", "", text)) == content.tobytes()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(text.splitlines()) == -(-count // 12)


def test_a_megabyte_is_written_fast():
    start = time.perf_counter()
    c_source._hexadecimal(bytes(2**20))
    # Some hundredths of a second; a loop over the bytes takes a second.
    assert time.perf_counter() - start < 0.5
