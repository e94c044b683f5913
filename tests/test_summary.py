"""The summary's numbers are the model's, and its table is readable."""

import json

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
    model = keras_sq.quantize_model(small_model(), "binary", skip="logits")
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
    model = keras_sq.quantize_model(float_model, quantizer)
    table = keras_sq.summary(model, print_fn=lambda text: None)
    assert table.float_bytes == 4 * float_model.count_params()
    quantized, scales = 216 + 640, 8 + 5
    rest = float_model.count_params() - quantized
    assert table.packed_bytes == quantized * bits / 8 + 4 * (scales + rest)
    assert table.quantized_bits == pytest.approx(bits + 32 * scales / quantized)


def test_ratio_is_the_one_of_the_last_draw():
    model = keras_sq.quantize_model(small_model(), "ternary")
    keras_sq.set_ratio(model, 0.5)
    rows = keras_sq.summary(model, print_fn=lambda text: None).rows
    assert {row.ratio for row in rows} == {0.5, None}


def test_layers_inside_layers_appear_by_path():
    x = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras_sq.quantize_model(keras.Model(x, attention(x, x)), "binary")
    rows = keras_sq.summary(model, print_fn=lambda text: None).rows
    assert "attention/query/kernel" in [row.path for row in rows]


def test_table_is_aligned_and_fits(capsys):
    table = keras_sq.summary(keras_sq.quantize_model(small_model(), "ternary"))
    text = capsys.readouterr().out
    assert text == f"{table}\n"
    lines = text.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    column = lines[0].index("quantizer")
    assert {line[column - 1] for line in lines[2:-1]} == {" "}
    assert lines[-1].endswith("bits a quantized weight")


def test_to_dict_is_json():
    model = keras_sq.quantize_model(small_model(), "ternary")
    table = keras_sq.summary(model, print_fn=lambda text: None)
    again = json.loads(json.dumps(table.to_dict()))
    assert again["packed_bytes"] == table.packed_bytes
    assert len(again["layers"]) == len(table.rows)


def test_float_model_is_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match=r"'small'.*quantize_model"):
        keras_sq.summary(small_model())
