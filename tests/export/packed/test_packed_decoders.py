"""The three decoders return the same bytes, and refuse the same damaged files."""

import ctypes
import subprocess
import zlib

import documents
import numpy as np
import packed_decoders
import packed_samples
import pytest
from packed_decoders import needs_cpp, needs_java

from keras_sq.export.packed import container, segments
from keras_sq.export.packed.tables import number

OK, DAMAGED, UNKNOWN_VERSION, WRONG_SIZE = range(4)
CONTENT, CONSTANTS = packed_samples.content_and_constants()
DECODERS = [
    pytest.param("cpp", marks=needs_cpp),
    pytest.param("java", marks=needs_java),
]


def python_status(content):
    try:
        return OK, zlib.crc32(container.read(content))
    except container.Damaged as error:
        return UNKNOWN_VERSION if "version" in str(error) else DAMAGED, 0


@pytest.fixture(scope="module")
def packed():
    return packed_samples.packed(CONTENT, CONSTANTS)


@pytest.fixture(scope="module")
def unpack_all(tmp_path_factory):
    """Unpacks files with a decoder, which is compiled once."""
    commands = {}

    def unpack(decoder, files):
        folder = tmp_path_factory.getbasetemp() / decoder
        if decoder not in commands:
            folder.mkdir()
            commands[decoder] = (
                packed_decoders.build_cpp(folder, "-O1", *packed_decoders.SANITIZERS)
                if decoder == "cpp"
                else packed_decoders.build_java(folder)
            )
        return packed_decoders.unpack_all(commands[decoder], folder, files)

    return unpack


def test_sample_has_every_form(packed):
    chosen = segments.choose(np.frombuffer(CONTENT, np.uint8), CONSTANTS)
    forms = {(segment.kind, segment.width) for segment in chosen}
    bits, planes, palette = segments.BITS, segments.PLANES, segments.PALETTE
    assert {(bits, 8), (bits, 4), (bits, 2), (bits, 1)} <= forms
    assert {(planes, 4), (planes, 2), (palette, 4), (palette, 1)} <= forms


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_returns_the_bytes(decoder, packed, unpack_all):
    larger, constants = packed_samples.content_and_constants(scale=40)
    contents = [CONTENT, larger, CONTENT[:9], bytes(5000), b""]
    files = [
        packed,
        packed_samples.packed(larger, constants),
        *(packed_samples.packed(content, []) for content in contents[2:]),
    ]
    assert {2 ** file[5] for file in files} == {4, 64}  # Numbers of lanes.
    expected = [(OK, zlib.crc32(content)) for content in contents]
    assert unpack_all(decoder, files) == expected
    assert [python_status(file) for file in files] == expected


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_tells_an_unknown_version(decoder, packed, unpack_all):
    newer = packed_samples.resealed(packed[:4] + b"\x02" + packed[5:])
    files = [newer, newer[:-1], b"", b"TFL3", packed + b"\0"]
    expected = [UNKNOWN_VERSION, UNKNOWN_VERSION, DAMAGED, DAMAGED, DAMAGED]
    assert [status for status, _ in unpack_all(decoder, files)] == expected
    assert [python_status(file)[0] for file in files] == expected


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_refuses_every_truncation(decoder, packed, unpack_all):
    step = max(1, len(packed) // 1500)
    cuts = [packed[:size] for size in range(0, len(packed), step)]
    # With a header that fits the shorter file, too.
    files = cuts + [packed_samples.resealed(cut) for cut in cuts]
    assert {status for status, _ in unpack_all(decoder, files)} == {DAMAGED}


LARGE = number(2**31 - 1)
EVEN_TABLE = number(1) + number(16)
NO_STREAMS = bytes(14)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_refuses_what_claims_too_much(decoder, packed, unpack_all):
    descriptions = {
        "nothing": b"",
        "a number that does not end": b"\xff" * 9,
        "too many tables": number(2000) + number(16) * 2000 + NO_STREAMS,
        "no tables": number(0) + NO_STREAMS + number(0) + number(0),
        "a table that is missing": EVEN_TABLE + bytes(13) + b"\1" + bytes(2),
        "large streams": EVEN_TABLE + (LARGE + b"\0") * 7 + LARGE + b"\0",
        "a large rest": EVEN_TABLE + NO_STREAMS + LARGE + b"\0",
        "many segments": EVEN_TABLE + NO_STREAMS + b"\0" + LARGE,
        "a large segment": EVEN_TABLE + NO_STREAMS + bytes([0, 1, 0, 0, 8]) + LARGE,
        "channels of no size": EVEN_TABLE
        + NO_STREAMS
        + bytes([0, 1, 0, 2, 1, 8, 0, 0, 1, 0]),
        "many channels": EVEN_TABLE
        + NO_STREAMS
        + bytes([0, 1, 0, 2, 1, 8])
        + LARGE * 3
        + b"\0",
    }
    files = []
    for description in descriptions.values():
        size = len(description).to_bytes(4, "little")
        file = packed[:20] + size + packed[24:28] + description + packed[-3000:]
        files.append(packed_samples.resealed(file))
    expected = dict.fromkeys(descriptions, DAMAGED)
    statuses = [status for status, _ in unpack_all(decoder, files)]
    assert dict(zip(descriptions, statuses, strict=True)) == expected
    statuses = [python_status(file)[0] for file in files]
    assert dict(zip(descriptions, statuses, strict=True)) == expected


@pytest.mark.parametrize(
    ("decoder", "cases"),
    [
        pytest.param("cpp", 6000, marks=needs_cpp),
        pytest.param("java", 2000, marks=needs_java),
        ("python", 160),
    ],
)
def test_damaged_file_is_an_error(decoder, cases, packed, unpack_all):
    files = packed_samples.damaged(packed, cases, seed=0)
    results = (
        [python_status(file) for file in files]
        if decoder == "python"
        else unpack_all(decoder, files)
    )
    check_results(files, results, zlib.crc32(CONTENT))


def check_results(files, results, expected):
    """Checks that whatever was unpacked is right, and nearly nothing was."""
    accepted = [
        (file, result)
        for file, result in zip(files, results, strict=True)
        if result[0] == OK
    ]
    # A description may say the same in other numbers.
    assert {sum for _, (_, sum) in accepted} <= {expected}
    assert len(accepted) < len(files) // 100
    assert all(python_status(file) == result for file, result in accepted)


@needs_cpp
def test_functions_of_the_guide_compile_and_unpack(packed, tmp_path):
    blocks = documents.blocks(documents.ROOT / "docs/guides/packed.md")
    source, header = (
        next(block.text for block in blocks if block.language == language)
        for language in ("cpp", "c")
    )
    # With the declarations of the bridging header, which have to agree.
    source = f'extern "C" {{\n{header}}}\n{source}'
    (tmp_path / "KerasSq.cpp").write_text(source)
    library = tmp_path / "library.so"
    command = [packed_decoders.CPP, *packed_decoders.CPP_FLAGS, "-shared", "-fPIC"]
    command += ["-I", packed_decoders.SOURCES, tmp_path / "KerasSq.cpp", "-o", library]
    subprocess.run(command, check=True, timeout=120)
    functions, size = ctypes.CDLL(str(library)), ctypes.c_size_t()
    source = packed, ctypes.c_size_t(len(packed))
    assert functions.keras_sq_unpacked_size(*source, ctypes.byref(size)) == OK
    assert size.value == len(CONTENT)
    model = ctypes.create_string_buffer(size.value)
    assert functions.keras_sq_unpack(*source, model, size) == OK
    assert model.raw == CONTENT
    wrong_size = ctypes.c_size_t(size.value - 1)
    assert functions.keras_sq_unpack(*source, model, wrong_size) == WRONG_SIZE


@needs_cpp
@pytest.mark.slow
def test_damaged_file_is_an_error_in_many_more_cases(packed, unpack_all):
    for seed in range(1, 41):
        files = packed_samples.damaged(packed, 5000, seed)
        check_results(files, unpack_all("cpp", files), zlib.crc32(CONTENT))
