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
    (  # Four gates of 5 filters; the state is what comes out: 6 x 6, or 4 x 4.
        KL.ConvLSTM2D(5, 3),
        (4, 8, 8, 2),
        {
            "conv_lstm_cell/kernel": 4 * 36 * 9 * 2 * 20,
            "conv_lstm_cell/recurrent_kernel": 4 * 36 * 9 * 5 * 20,
        },
    ),
    (
        KL.Bidirectional(KL.ConvLSTM1D(5, 3, strides=2, padding="same")),
        (3, 8, 2),
        {
            f"{way}_conv_lstm1d/conv_lstm_cell/{name}": 3 * 4 * 3 * size * 20
            for way in ("forward", "backward")
            for name, size in (("kernel", 2), ("recurrent_kernel", 5))
        },
    ),
    (
        KL.TimeDistributed(
            keras.Sequential([KL.Dense(5), KL.Conv1D(4, 2)], name="two")
        ),
        (3, 6, 7),
        {
            "two/dense/kernel": 3 * 6 * 7 * 5,
            "two/conv1d/kernel": 3 * 5 * 2 * 5 * 4,
        },
    ),
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


def test_conv_lstm_counts_what_its_convolutions_would():
    inputs = keras.Input((3, 6, 7, 2))
    model = keras.Model(inputs, KL.ConvLSTM2D(4, (3, 2), name="loop")(inputs))
    _, rows = rows_of(model)
    # The same arithmetic, with all gates at once: of the inputs, and of the states.
    frames, states = keras.Input((6, 7, 2)), keras.Input((4, 6, 4))
    of_frames = KL.Conv2D(16, (3, 2), name="frames")(frames)
    of_states = KL.Conv2D(16, (3, 2), padding="same", name="states")(states)
    _, twins = rows_of(keras.Model([frames, states], [of_frames, of_states]))
    for name, twin in (("kernel", "frames"), ("recurrent_kernel", "states")):
        row = rows[f"loop/conv_lstm_cell/{name}"]
        assert row.macs == 3 * twins[f"{twin}/kernel"].macs


def test_reversible_embedding_multiplies_in_reverse_only():
    tokens = keras.Input((5,), dtype="int32")
    for tied, name in ((True, "embeddings"), (False, "reverse_embeddings")):
        table = KL.ReversibleEmbedding(11, 6, tie_weights=tied, name="tokens")
        model = keras.Model(tokens, table(table(tokens), reverse=True))
        _, rows = rows_of(model)
        assert rows[f"tokens/{name}"].macs == 5 * 6 * 11
        assert sum(row.macs for row in rows.values()) == 5 * 6 * 11


@keras.saving.register_keras_serializable("test_operation_counts")
class LayerScale(KL.Layer):
    """As that of ConvNeXt."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma


def test_layers_with_vectors_only_count_nothing():
    x = inputs = keras.Input((8, 8, 3))
    x = KL.Conv2D(4, 2, strides=2, name="stem")(x)
    y = KL.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = KL.LayerNormalization()(y)
    y = KL.Dense(4, name="pointwise")(y)
    x = x + LayerScale(name="scale")(y)
    table, rows = rows_of(keras.Model(inputs, KL.Dense(2, name="logits")(x)))
    assert rows["scale"].macs == 0
    kernels = 16 * 12 * 4 + 16 * 9 * 4 + 16 * 4 * 4 + 16 * 4 * 2
    assert (table.macs, table.unknown_macs) == (kernels, ())


@keras.saving.register_keras_serializable("test_operation_counts")
class Windowed(KL.MultiHeadAttention):
    """Attention that computes something of its own."""

    def call(self, query, value, key=None):
        return super().call(query[:, :2], value)


def test_transformer_counts_what_is_known_and_names_the_rest():
    x = inputs = keras.Input((6, 8))
    x = x + KL.GroupQueryAttention(2, 4, 2, name="grouped")(x, x)
    x = KL.AdditiveAttention(name="additive")([x, x])
    x = Windowed(2, 3, name="windowed")(x, x)
    table, rows = rows_of(keras.Model(inputs, KL.Dense(2, name="logits")(x)))
    assert rows["grouped"].macs == 4 * 6 * 6 * (2 + 2)
    assert rows["grouped/query/kernel"].macs == 6 * 8 * 4 * 2
    assert rows["grouped/key/kernel"].macs == 6 * 8 * 2 * 2
    assert rows["additive"].macs == 6 * 6 * (8 + 8)
    assert rows["windowed"].macs is None
    assert rows["windowed/query/kernel"].macs == 2 * 8 * 2 * 3
    known = [row for row in rows.values() if row.macs is not None]
    assert table.unknown_macs == ("windowed",)
    assert table.macs == sum(row.macs for row in known) > 1000
    assert table.bit_operations == sum(row.bit_operations for row in known)
    assert table.to_dict()["unknown_macs"] == ["windowed"]
    unknown = [r["path"] for r in table.to_records() if r["macs"] is None]
    assert unknown == ["windowed"]
    assert "at least" in table.text(120) and "unknown: windowed" in table.text(120)


def test_spectrogram_counts_the_kernels_of_its_transform():
    x = inputs = keras.Input((200, 2))
    x = KL.STFTSpectrogram(frame_length=32, frame_step=16, name="frames")(x)
    table, rows = rows_of(keras.Model(inputs, KL.Dense(2, name="logits")(x)))
    frames, bins = (200 - 32) // 16 + 1, 32 // 2 + 1
    assert rows["frames"].macs == 2 * 2 * frames * 32 * bins
    assert table.unknown_macs == ()


@keras.saving.register_keras_serializable("test_operation_counts")
class DenseCell(KL.Layer):
    """A cell of one's own, out of a layer of Keras."""

    state_size = 5

    def build(self, input_shape):
        self.dense = KL.Dense(5, name="dense")
        self.dense.build((None, input_shape[-1] + 5))

    def call(self, x, states):
        state = self.dense(keras.ops.concatenate([x, states[0]], axis=-1))
        return state, [state]


def test_layers_inside_a_cell_of_ones_own_count_once_a_step():
    cells = [DenseCell(name="own"), KL.GRUCell(4, name="gru")]
    model = keras.Sequential([keras.Input((7, 3)), KL.RNN(cells, name="rnn")])
    table, rows = rows_of(model)
    counts = {
        path.rpartition("rnn_cells")[2].partition("/")[2]: row.macs
        for path, row in rows.items()
        if row.macs
    }
    assert counts == {
        "own/dense/kernel": 7 * 8 * 5,
        "gru/kernel": 7 * 5 * 12,
        "gru/recurrent_kernel": 7 * 4 * 12,
    }
    assert table.macs == sum(counts.values())


def test_open_sizes_are_unknown_and_the_rest_is_known():
    x = inputs = keras.Input((None, None, 3))
    x = KL.Conv2D(4, 3, name="conv")(x)
    x = KL.GlobalAveragePooling2D()(x)
    x = KL.Dense(2, name="logits")(x)
    table, rows = rows_of(keras.Model(inputs, x))
    assert rows["conv/kernel"].macs is None
    assert rows["conv/kernel"].bit_operations is None
    assert rows["logits/kernel"].macs == 8
    # One bit for the weight, a float for the activation.
    assert (table.macs, table.bit_operations) == (8, 8 * 32)
    assert table.unknown_macs == ("conv/kernel",)
    assert "at least 8 multiply-accumulates" in table.text(80)
    assert "unknown: conv/kernel" in table.text(120)
    assert " ?" in table.text(160)


def test_open_lengths_are_tried_with_short_sequences_too():
    class Positions(KL.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(shape=(20, input_shape[-1]), name="table")

        def call(self, x):
            return x + self.table[: keras.ops.shape(x)[1]]

        def compute_output_shape(self, input_shape):
            return input_shape

    keras.saving.register_keras_serializable("test_operation_counts")(Positions)
    x = inputs = keras.Input((None, 3))
    x = Positions(name="positions")(x)  # No more than 20.
    x = KL.GlobalAveragePooling1D()(x)
    table, _ = rows_of(keras.Model(inputs, KL.Dense(2, name="logits")(x)))
    assert (table.macs, table.unknown_macs) == (6, ("positions",))


def test_custom_layers_are_unknown_also_if_they_derive_from_a_known_one():
    class Twice(KL.Dense):
        def call(self, x, training=None):
            return super().call(super().call(x))

    class Named(KL.Dense):
        def __init__(self, units, **kwargs):
            super().__init__(units, **{"activation": "relu", **kwargs})

    class Table(KL.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(shape=(input_shape[-1], 4), name="table")

        def call(self, x):
            return x @ self.table

    keras_sq.register(Table, ("table",))
    layers = [keras.Input((6,)), KL.Dense(6, name="dense"), Table(name="table")]
    layers += [Named(4, name="named"), Twice(4, name="twice")]
    table, rows = rows_of(keras.Sequential(layers))
    assert rows["table/table"].macs is None
    assert rows["twice"].macs is None
    assert rows["dense/kernel"].macs == 36
    assert rows["named/kernel"].macs == 16
    assert table.unknown_macs == ("table/table", "twice")
    assert table.macs == 36 + 16


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
    assert table.unknown_macs == ("dense/kernel",)


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
