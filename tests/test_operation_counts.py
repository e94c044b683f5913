"""MACs and bit operations are those of the arithmetic, or said to be unknown."""

import keras
import pytest

import keras_sq

KL = keras.layers


def rows_of(model, **settings):
    quantized = keras_sq.quantize_model(
        model, "binary", **{"overrides": {}, **settings}
    )
    table = keras_sq.summary(quantized, print_fn=lambda text: None)
    return table, {row.path: row for row in table.rows}


# Layer, shape of its input, MACs of each kernel. By hand: pixels of the output (of
# the input for transposed ones) times the weights that each is multiplied with.
LAYERS = [
    (KL.Dense(5), (7,), {"kernel": 7 * 5}),
    (KL.Dense(5), (3, 7), {"kernel": 3 * 7 * 5}),
    (
        KL.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4)),
        (3, 6),
        {"kernel": 3 * 6 * 2 * 4},
    ),
    (
        KL.EinsumDense("...x,xy->...y", output_shape=(4,)),
        (3, 5, 6),
        {"kernel": 3 * 5 * 6 * 4},
    ),
    (KL.Conv1D(5, 3), (10, 4), {"kernel": 8 * 3 * 4 * 5}),
    (
        KL.Conv2D(8, 3, strides=2, padding="same"),
        (9, 9, 4),
        {"kernel": 25 * 9 * 4 * 8},
    ),
    (
        KL.Conv2D(8, 3, padding="same", groups=2),
        (5, 5, 4),
        {"kernel": 25 * 9 * 2 * 8},
    ),
    (KL.Conv2D(8, 3, dilation_rate=2), (9, 9, 4), {"kernel": 25 * 9 * 4 * 8}),
    (KL.Conv3D(2, 2), (3, 4, 5, 3), {"kernel": 2 * 3 * 4 * 8 * 3 * 2}),
    (KL.Conv1DTranspose(5, 3, strides=2), (10, 4), {"kernel": 10 * 3 * 4 * 5}),
    (KL.Conv2DTranspose(5, 3), (6, 6, 4), {"kernel": 36 * 9 * 4 * 5}),
    (KL.DepthwiseConv1D(3, depth_multiplier=2), (10, 4), {"kernel": 8 * 3 * 4 * 2}),
    (
        KL.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 6, 4),
        {"kernel": 16 * 9 * 4 * 2},
    ),
    (
        KL.SeparableConv2D(8, 3, depth_multiplier=2),
        (6, 6, 4),
        {"depthwise_kernel": 16 * 9 * 8, "pointwise_kernel": 16 * 8 * 8},
    ),
    (
        KL.LSTM(5),
        (6, 3),
        {"lstm_cell/kernel": 6 * 3 * 20, "lstm_cell/recurrent_kernel": 6 * 5 * 20},
    ),
    (
        KL.GRU(5, return_sequences=True),
        (6, 3),
        {"gru_cell/kernel": 6 * 3 * 15, "gru_cell/recurrent_kernel": 6 * 5 * 15},
    ),
    (
        KL.Bidirectional(KL.SimpleRNN(5)),
        (6, 3),
        {
            f"{way}_simple_rnn/simple_rnn_cell/{name}": 6 * size * 5
            for way in ("forward", "backward")
            for name, size in (("kernel", 3), ("recurrent_kernel", 5))
        },
    ),
    (KL.TimeDistributed(KL.Dense(5)), (4, 3, 7), {"dense/kernel": 4 * 3 * 7 * 5}),
]


@pytest.mark.parametrize(
    ("layer", "shape", "macs"), LAYERS, ids=lambda x: getattr(x, "name", None)
)
def test_macs_of_a_layer(layer, shape, macs):
    layer = type(layer).from_config({**layer.get_config(), "name": "layer"})
    table, rows = rows_of(keras.Sequential([keras.Input(shape), layer]))

    def plain(path):  # Keras numbers the names of cells.
        return "/".join(
            part.rstrip("0123456789").rstrip("_") for part in path.split("/")
        )

    counts = {plain(path): row.macs for path, row in rows.items() if row.error}
    assert counts == {f"layer/{name}": count for name, count in macs.items()}
    assert table.macs == sum(macs.values())
    # One bit for the weight, a float for the activation.
    assert table.bit_operations == 32 * table.macs


def test_embedding_multiplies_nothing_and_attention_its_scores():
    tokens = keras.Input((5,), dtype="int32")
    x = KL.Embedding(11, 6, name="embedding")(tokens)
    memory = keras.Input((7, 6))
    x = KL.MultiHeadAttention(2, 3, name="attention")(x, memory)
    table, rows = rows_of(keras.Model([tokens, memory], x))
    assert rows["embedding/embeddings"].macs == 0
    assert rows["attention/query/kernel"].macs == 5 * 6 * 2 * 3
    assert rows["attention/value/kernel"].macs == 7 * 6 * 2 * 3
    assert rows["attention/attention_output/kernel"].macs == 5 * 2 * 3 * 6
    # Floats times floats, for each head.
    products = rows["attention"]
    assert (products.weights, products.quantizer) == (0, "")
    assert products.macs == 2 * 5 * 7 * (3 + 3)
    assert products.bit_operations == 32 * 32 * products.macs
    assert table.macs == sum(row.macs for row in rows.values())


def test_shared_layer_counts_at_each_call_and_nested_ones_too():
    dense = KL.Dense(6, name="dense")
    inner = keras.Sequential([keras.Input((6,)), dense], name="inner")
    x = inputs = keras.Input((6,))
    for _ in range(3):
        x = inner(x)
    _, rows = rows_of(keras.Model(inputs, x))
    assert rows["inner/dense/kernel"].macs == 3 * 36


def test_layers_inside_a_subclassed_model_are_counted():
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = KL.Conv2D(4, 3, name="first")
            self.last = KL.Dense(2, name="last")

        def call(self, x, training=None):
            x = keras.ops.mean(self.first(x), axis=(1, 2))
            return self.last(x)

    keras.saving.register_keras_serializable("test")(Net)
    net = Net()
    net(keras.ops.zeros((2, 5, 5, 3)))
    _, rows = rows_of(net)
    assert rows["first/kernel"].macs == 9 * 27 * 4
    assert rows["last/kernel"].macs == 8


def test_bit_operations_know_the_bits_of_weights_and_activations():
    x = inputs = keras.Input((8, 8, 3))
    x = KL.Conv2D(4, 3, name="first")(x)
    x = keras_sq.layers.UniformActivationQuantizer(4, name="levels")(x)
    x = KL.MaxPooling2D()(x)  # Takes levels from place to place.
    x = KL.Conv2D(4, 3, name="second")(x)
    x = KL.Flatten()(x)
    x = KL.Dense(5, name="third")(x)
    x = KL.Dense(2, name="fourth")(x)
    overrides = {
        "second": "ternary",
        "third": {"kernel_quantizer": "uniform-8", "input_quantizer": "lq-2"},
    }
    _, rows = rows_of(keras.Model(inputs, x), overrides=overrides, skip="fourth")
    factors = {
        path: row.bit_operations / row.macs for path, row in rows.items() if row.macs
    }
    assert factors == {
        "first/kernel": 1 * 32,
        "second/kernel": 2 * 4,
        "third/kernel": 8 * 2,
        "fourth": 32 * 32,
    }


def test_open_sizes_are_unknown_and_the_rest_is_known():
    x = inputs = keras.Input((None, None, 3))
    x = KL.Conv2D(4, 3, name="conv")(x)
    x = KL.GlobalAveragePooling2D()(x)
    x = KL.Dense(2, name="logits")(x)
    table, rows = rows_of(keras.Model(inputs, x))
    assert rows["conv/kernel"].macs is None
    assert rows["conv/kernel"].bit_operations is None
    assert rows["logits/kernel"].macs == 8
    assert table.macs is None and table.bit_operations is None
    assert "at least 8 multiply-accumulates" in table.text(80)
    assert " ?" in table.text(160)


def test_custom_layers_are_unknown_also_if_they_derive_from_a_known_one():
    class Twice(KL.Dense):
        def call(self, x, training=None):
            return super().call(super().call(x))

    class Table(KL.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(shape=(input_shape[-1], 4), name="table")

        def call(self, x):
            return x @ self.table

    keras_sq.register(Table, ("table",))
    layers = [keras.Input((6,)), KL.Dense(6, name="dense"), Table(name="table")]
    table, rows = rows_of(keras.Sequential([*layers, Twice(4, name="twice")]))
    assert rows["table/table"].macs is None
    assert rows["twice"].macs is None
    assert rows["dense/kernel"].macs == 36
    assert table.macs is None


def test_model_that_cannot_be_called_on_zeros_is_unknown():
    class Picky(KL.Layer):
        def call(self, x):
            if x.shape[0] == 1:
                raise RuntimeError("one is not enough")
            return x

    dense = KL.Dense(4, name="dense")
    model = keras.Sequential([keras.Input((6,)), dense])
    quantized = keras_sq.quantize_model(model, "binary", overrides={})
    quantized.add(Picky())
    table = keras_sq.summary(quantized, print_fn=lambda text: None)
    assert table.macs is None and {row.macs for row in table.rows} == {None, 0}


def test_counting_leaves_the_model_alone():
    model = keras.Sequential([keras.Input((4,)), KL.Dense(3), KL.Dropout(0.5)])
    quantized = keras_sq.quantize_model(model, "lq-2", overrides={})
    before = [keras.ops.convert_to_numpy(v) for v in quantized.variables]
    call = keras.layers.Layer.__call__
    nodes = len(quantized.layers[0]._inbound_nodes)
    keras_sq.summary(quantized, print_fn=lambda text: None)
    assert keras.layers.Layer.__call__ is call
    assert len(quantized.layers[0]._inbound_nodes) == nodes
    for old, variable in zip(before, quantized.variables, strict=True):
        assert (old == keras.ops.convert_to_numpy(variable)).all()
