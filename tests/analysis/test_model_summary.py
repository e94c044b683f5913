"""The summary's numbers are the model's, and its table is readable."""

import json
import re

import keras
import pytest

import keras_sq


def small_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="logits"),
        ],
        name="small",
    )


def test_rows_hold_the_kernels_and_what_stays_float():
    model = keras_sq.quantize_model(
        small_model(), "binary", skip="logits", overrides={}
    )
    rows = keras_sq.summary(model, print_fn=lambda text: None).rows
    assert [(r.path, r.weights, r.quantizer, r.ratio) for r in rows] == [
        ("conv/kernel", 216, "binary", 1.0),
        ("norm", 32, "float", None),
        ("logits", 645, "float", None),
    ]
    assert rows[0].bits == 1 + 32 * 8 / 216
    assert 0.2 < rows[0].error < 0.8
    assert rows[2].reason == "named by skip='logits'"


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("binary", 1), ("ternary", 2), ("uniform-4", 4)]
)
def test_totals_count_every_parameter_once(quantizer, bits):
    float_model = small_model()
    model = keras_sq.quantize_model(float_model, quantizer, overrides={})
    table = keras_sq.summary(model, print_fn=lambda text: None)
    assert table.float_bytes == 4 * float_model.count_params()
    quantized, scales = 216 + 640, 8 + 5
    rest = float_model.count_params() - quantized
    assert table.packed_bytes == quantized * bits / 8 + 4 * (scales + rest)
    assert table.quantized_bits == pytest.approx(bits + 32 * scales / quantized)


def test_ratio_is_the_one_of_the_last_draw():
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    keras_sq.set_ratio(model, 0.5)
    rows = keras_sq.summary(model, print_fn=lambda text: None).rows
    assert {row.ratio for row in rows} == {0.5, None}


def test_layers_inside_layers_appear_by_path():
    x = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras_sq.quantize_model(
        keras.Model(x, attention(x, x)), "binary", overrides={}
    )
    rows = keras_sq.summary(model, print_fn=lambda text: None).rows
    assert "attention/query/kernel" in [row.path for row in rows]


def test_table_goes_to_standard_output_at_the_width_of_the_terminal(
    capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    table = keras_sq.summary(
        keras_sq.quantize_model(small_model(), "ternary", overrides={})
    )
    assert capsys.readouterr().out == f"{table}\n" == f"{table.text(100)}\n"


def deep_model():
    """Returns a model with long paths, inputs quantized, and a skipped layer."""
    x = inputs = keras.Input((8, 6), name="a_sequence")
    for number in range(2):
        name = f"encoder_block_{number}_self_attention_over_time"
        x = keras.layers.MultiHeadAttention(2, 3, name=name)(x, x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(4), name="both_directions")(x)
    x = keras.layers.Dense(4, name="hidden")(x)
    outputs = keras.layers.Dense(3, name="logits")(x)
    return keras_sq.quantize_model(
        keras.Model(inputs, outputs, name="deep"),
        "ternary",
        input_quantizer="lq-2",
        skip="logits",
    )


@pytest.fixture(scope="module")
def deep_table():
    return keras_sq.summary(deep_model(), print_fn=lambda text: None)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_table_is_aligned_and_fits(deep_table, width):
    lines = deep_table.text(width).splitlines()
    assert max(map(len, lines)) <= width
    head, rule = lines[0], lines[1]
    body = lines[2 : lines.index(rule, 2)]
    # Between two columns there are spaces in every line but those of reasons.
    body = [line for line in body if not line.startswith("    ")]
    for title in head.split()[1:]:
        if title not in ("quantizer", "inputs", "type", "shape", "mask"):
            continue
        column = head.index(title)
        assert {line[column - 1] for line in body if len(line) > column} == {" "}
    # Every path is there, if in parts.
    text = "".join(re.split(" {2,}", line.strip())[0] for line in body)
    assert [row.path for row in deep_table.rows if row.path not in text] == []


def test_narrow_table_says_what_it_leaves_out(deep_table):
    wide, narrow = deep_table.text(220), deep_table.text(80)
    assert "Not shown" not in wide
    (note,) = [line for line in narrow.splitlines() if "Not shown" in line]
    assert note.startswith("Not shown at 80 columns: type, shape,")
    for title in ("layer", "quantizer", "ratio", "error", "bits"):
        assert title in narrow.splitlines()[0]


def test_reason_stands_beside_or_beneath_its_row():
    model = keras_sq.quantize_model(
        small_model(), "binary", skip="logits", overrides={}
    )
    table = keras_sq.summary(model, print_fn=lambda text: None)
    (line,) = [x for x in table.text(200).splitlines() if "[" in x]
    assert line.startswith("logits ") and line.endswith("[named by skip='logits']")
    lines = table.text(80).splitlines()
    at = lines.index("    [named by skip='logits']")
    assert lines[at - 1].startswith("logits ")


@pytest.mark.parametrize(
    ("line_length", "error", "message"),
    [(39, ValueError, "at least 40"), ("80", TypeError, "must be an integer")],
)
def test_impossible_line_length_raises_before_anything_is_printed(
    line_length, error, message, capsys
):
    model = keras_sq.quantize_model(small_model(), "binary", overrides={})
    with pytest.raises(error, match=message):
        keras_sq.summary(model, line_length=line_length)
    assert capsys.readouterr().out == ""


def test_to_dict_is_json():
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    table = keras_sq.summary(model, print_fn=lambda text: None)
    again = json.loads(json.dumps(table.to_dict()))
    assert again["packed_bytes"] == table.packed_bytes
    assert len(again["layers"]) == len(table.rows)


def test_to_dict_and_records_have_a_row_each_with_all_columns():
    model = keras_sq.quantize_model(
        small_model(), "ternary", skip="logits", overrides={}
    )
    table = keras_sq.summary(model, print_fn=lambda text: None)
    records = table.to_records()
    # What pandas.DataFrame takes: flat dicts, each with the same keys.
    assert isinstance(records, list) and len(records) == len(table.rows)
    assert {tuple(record) for record in records} == {tuple(records[0])}
    kinds = {type(value) for record in records for value in record.values()}
    assert kinds <= {str, int, float, type(None)}
    assert records[0]["shape"] == "3 x 3 x 3 x 8"
    assert table.to_dict()["layers"][0]["shape"] == [3, 3, 3, 8]
    kernel = table.rows[0]
    assert (kernel.granularity, kernel.layer_type) == ("filter", "Conv2D")
    assert (kernel.float_bytes, kernel.packed_bytes) == (864, 86)
    assert table.float_bytes == sum(record["float_bytes"] for record in records)


def test_sparsity_is_the_part_of_zeros():
    model = keras_sq.quantize_model(small_model(), "ternary", overrides={})
    table = keras_sq.summary(model, print_fn=lambda text: None)
    codes = keras_sq.get_codes(model)
    for row in table.rows:
        if row.path in codes:
            assert row.sparsity == pytest.approx((codes[row.path].codes == 0).mean())
            assert 0.2 < row.sparsity < 0.8
        else:
            assert row.sparsity is None


def test_float_model_is_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match=r"'small'.*quantize_model"):
        keras_sq.summary(small_model())
