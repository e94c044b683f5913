"""Tables, the entropy coder and copies: exact, and close to the entropy."""

import numpy as np
import pytest

from keras_sq.export.packed import entropy, matches, segments, tables
from keras_sq.export.packed.segments import Constant
from keras_sq.export.packed.tables import Damaged, Numbers


def entropy_bytes(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    return float(counts @ np.log2(len(symbols) / counts)) / 8


def samples():
    generator = np.random.default_rng(0)
    skewed = np.minimum(generator.geometric(0.4, 5000), 255)
    return {
        "ternary": generator.choice([129, 0, 127], 5000, p=[0.2, 0.5, 0.3]),
        "binary": generator.choice([129, 127], 5001),
        "one symbol": np.full(999, 7),
        "rare symbol": np.r_[np.zeros(30000, int), 200],
        "skewed": skewed,
        "even": generator.integers(0, 256, 3000),
        "short": np.array([3]),
        "none": np.array([], int),
    }


SAMPLES = {name: array.astype(np.uint8) for name, array in samples().items()}


# Tables.


@pytest.mark.parametrize("name", SAMPLES)
def test_table_is_complete_and_can_be_read(name):
    counts = np.bincount(SAMPLES[name], minlength=256)
    table = tables.best_table(counts)
    assert table.sum() == tables.SCALE
    assert np.all(table[counts > 0] > 0)
    numbers = Numbers(tables.table_bytes(table))
    np.testing.assert_array_equal(tables.read_table(numbers), table)
    numbers.check_end()


def test_tables_of_few_or_even_symbols_take_few_bytes():
    sizes = {
        name: len(tables.table_bytes(tables.best_table(np.bincount(x, minlength=256))))
        for name, x in SAMPLES.items()
    }
    assert sizes["even"] == 1
    assert sizes["ternary"] <= 11
    assert sizes["one symbol"] <= 6


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**31 - 1])
def test_numbers_come_back(value):
    numbers = Numbers(tables.number(value) + tables.number(5))
    assert (numbers.next(), numbers.next()) == (value, 5)
    with pytest.raises(Damaged, match="description is too short"):
        numbers.next()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80", "is not complete"),
        (b"\xff" * 6, "is too large"),
        (tables.number(17), "a table is wrong"),
        (tables.number(0) + tables.number(4097), "a table is wrong"),
        (tables.number(0) + tables.number(0) + tables.number(255), "table is wrong"),
    ],
)
def test_wrong_table_is_refused(content, message):
    with pytest.raises(Damaged, match=message):
        tables.read_table(Numbers(content))


# The coder.


@pytest.mark.parametrize("lanes", [1, 4, 32, 512])
def test_blocks_come_back_in_their_order(lanes):
    known = [tables.best_table(np.bincount(x, minlength=256)) for x in SAMPLES.values()]
    blocks = [entropy.Block(x, index) for index, x in enumerate(SAMPLES.values())]
    decoder = entropy.Decoder(entropy.encode(blocks, known, lanes), lanes)
    for block in blocks:
        symbols = decoder.decode(len(block.symbols), known[block.table])
        np.testing.assert_array_equal(symbols, block.symbols)
    decoder.check_end()


@pytest.mark.parametrize("zeros", [0.34, 0.5, 0.9])
def test_codes_take_two_percent_more_than_their_entropy_at_most(zeros):
    generator = np.random.default_rng(1)
    chances = [zeros, (1 - zeros) / 2, (1 - zeros) / 2]
    symbols = generator.choice(3, 300_000, p=chances).astype(np.uint8)
    table = tables.best_table(np.bincount(symbols, minlength=256))
    codes = entropy.encode([entropy.Block(symbols, 0)], [table], lanes=64)
    assert len(codes) < 1.005 * entropy_bytes(symbols) + 4 * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes[:-2], "end too early"),
        (lambda codes: codes[:15], "states are not complete"),
        (lambda codes: codes + b"\0", "states are not complete"),
        (lambda codes: codes + b"\0\0", "do not end as they should"),
        (lambda codes: codes[:3] + b"\x7f" + codes[4:], "end"),
    ],
)
def test_damaged_codes_are_noticed(change, message):
    symbols = SAMPLES["ternary"]
    table = tables.best_table(np.bincount(symbols, minlength=256))
    codes = entropy.encode([entropy.Block(symbols, 0)], [table], lanes=4)
    with pytest.raises(Damaged, match=message):
        decoder = entropy.Decoder(change(codes), 4)
        decoder.decode(len(symbols), table)
        decoder.check_end()


# Copies.


CONTENTS = {
    "nothing": b"",
    "one": b"x",
    "text": b"a name of a tensor, a name of an operator, " * 50,
    "zeros": bytes(3000),
    "period of 8": bytes([1, 0, 0, 0, 0, 0, 0, 0]) * 400,
    "random": np.random.default_rng(2).bytes(2000),
    "far": np.random.default_rng(3).bytes(70_000) * 2,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_copies_give_the_bytes_back(name):
    content = np.frombuffer(CONTENTS[name], np.uint8)
    streams = matches.split(content)
    assert matches.join(streams, len(content)).tobytes() == CONTENTS[name]


def test_repeated_bytes_are_copied():
    sizes = {
        name: sum(map(len, matches.split(np.frombuffer(content, np.uint8))))
        for name, content in CONTENTS.items()
    }
    assert sizes["zeros"] < 16
    assert sizes["period of 8"] < 24
    assert sizes["text"] < 120
    assert sizes["far"] < 70_200
    assert sizes["random"] < 2010


def test_only_the_first_bytes_are_searched(monkeypatch):
    monkeypatch.setattr(matches, "MAX_BYTES", 1000)
    content = np.zeros(5000, np.uint8)
    streams = matches.split(content)
    assert 4000 <= sum(map(len, streams)) < 4100
    np.testing.assert_array_equal(matches.join(streams, 5000), content)


@pytest.mark.parametrize("stream", range(matches.NUM_STREAMS))
def test_streams_that_are_too_short_are_noticed(stream):
    content = np.frombuffer(CONTENTS["text"], np.uint8)
    streams = matches.split(content)
    streams[stream] = streams[stream][:-1]
    with pytest.raises(Damaged, match="it is damaged"):
        matches.join(streams, len(content))


# Choosing forms.


def form(values):
    array = np.ascontiguousarray(values)
    content = array.reshape(-1).view(np.uint8)
    chosen = segments.choose(content, [Constant(0, array.nbytes, array.shape)])
    return [(segment.kind, segment.width) for segment in chosen]


def test_form_fits_the_values():
    generator = np.random.default_rng(4)
    codes = generator.integers(-1, 2, (64, 3, 3, 64)).astype(np.int8)
    scales = generator.random((64, 1, 1, 1), np.float32)
    assert form(codes * np.int8(127)) == [(segments.BITS, 8)]
    # Of each channel, whether it is the first axis or the last.
    assert form(codes * scales) == [(segments.PALETTE, 4)]
    assert form(codes * scales.reshape(64)) == [(segments.PALETTE, 4)]
    assert form((codes * scales).astype(np.float16)) == [(segments.PALETTE, 2)]
    assert form(generator.normal(size=4096).astype(np.float32)) == [
        (segments.PLANES, 4)
    ]
    # DEFLATE would be smaller; nothing would.
    assert form(np.tile(generator.integers(0, 256, 64).astype(np.uint8), 64)) == []
    assert form(generator.integers(0, 256, 500).astype(np.uint8)) == []
    # Not searched for copies, as that would be in vain.
    assert form(generator.integers(0, 256, 4096).astype(np.uint8)) == [
        (segments.BITS, 8)
    ]


def test_segments_begin_and_end_at_multiples_of_four():
    codes = np.random.default_rng(5).integers(-1, 2, 1003).astype(np.int8)
    content = np.r_[np.zeros(5, np.uint8), codes.view(np.uint8)]
    (segment,) = segments.choose(content, [Constant(5, 1003, (17, 59))])
    assert (segment.start, segment.size) == (8, 1000)
