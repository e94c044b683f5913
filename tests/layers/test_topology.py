"""The order of layers, and which are first, last or resize."""

import keras
import pytest

import keras_sq
from keras_sq.layers import topology
from keras_sq.models import get


def has_kernel(layer):
    return isinstance(
        layer, keras.layers.Dense | keras.layers.Conv2D | keras.layers.EinsumDense
    )


def order(model):
    return [place.path for place in topology.places(model, has_kernel)]


def ends(model):
    places = topology.places(model, has_kernel)
    return (
        [place.path for place in places if place.first],
        [place.path for place in places if place.last],
    )


def dense(name):
    return keras.layers.Dense(4, name=name)


def test_order_of_a_residual_network_is_topological():
    model = get("resnet8", (32, 32, 3), 10)
    found = order(model)
    assert len(found) == 10
    assert found[0] == "conv1" and found[-1] == "logits"
    for stage in (1, 2, 3):
        assert found.index(f"block{stage}_conv1") < found.index(f"block{stage}_conv2")
    assert found.index("block1_conv2") < found.index("block2_shortcut")
    assert found.index("block2_shortcut") < found.index("block3_conv1")
    assert ends(model) == (["conv1"], ["logits"])


def test_order_does_not_follow_creation():
    late, early = dense("made_first"), dense("made_second")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, late(early(inputs)))
    assert order(model) == ["made_second", "made_first"]


def test_ends_of_parallel_branches():
    inputs = keras.Input((4,))
    left, right = dense("left")(inputs), dense("right")(inputs)
    merged = keras.layers.Add()([left, right])
    model = keras.Model(inputs, [dense("a")(merged), dense("b")(merged)])
    assert ends(model) == (["left", "right"], ["a", "b"])


def test_ends_where_a_shortcut_reaches_the_output():
    inputs = keras.Input((4,))
    x = dense("stem")(inputs)
    y = dense("inner")(x)
    model = keras.Model(inputs, keras.layers.Add()([x, y]))
    assert ends(model) == (["stem"], ["inner"])


def test_nested_models_are_entered():
    inner = keras.Sequential(
        [keras.Input((4,)), dense("one"), dense("two")], name="inner"
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, dense("head")(inner(dense("stem")(inputs))))
    assert order(model) == ["stem", "inner/one", "inner/two", "head"]
    assert ends(model) == (["stem"], ["head"])


def test_nested_model_at_the_input_holds_the_first_layer():
    inner = keras.Sequential(
        [keras.Input((4,)), dense("one"), dense("two")], name="inner"
    )
    model = keras.Sequential([keras.Input((4,)), inner, dense("head")])
    assert ends(model) == (["inner/one"], ["head"])


def test_shared_layer_stands_at_its_first_call():
    shared = dense("shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(dense("middle")(shared(inputs))))
    assert order(model) == ["shared", "middle"]
    # Called on the input and for the output: it is both.
    assert ends(model) == (["shared"], ["shared"])


def test_layers_without_kernel_and_operations_are_passed():
    inputs = keras.Input((4,))
    x = keras.layers.Rescaling(2.0)(inputs)
    x = keras.ops.relu(keras.layers.BatchNormalization()(dense("one")(x)))
    model = keras.Model(inputs, keras.layers.Softmax()(dense("two")(x)))
    assert ends(model) == (["one"], ["two"])


def test_subclassed_model_is_a_chain_of_creation():
    class Chain(keras.Model):
        def __init__(self):
            super().__init__()
            self.a = dense("a")
            self.b = dense("b")

        def call(self, x):
            return self.b(self.a(x))

    model = Chain()
    model(keras.ops.ones((1, 4)))
    assert order(model) == ["a", "b"]
    assert ends(model) == (["a"], ["b"])


def test_layers_inside_attention_count_as_a_chain():
    inputs = keras.Input((5, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, dense("head")(attention(inputs, inputs)))
    found = order(model)
    assert found[-1] == "head"
    assert {path.split("/")[0] for path in found[:-1]} == {"attention"}
    assert ends(model) == ([found[0]], ["head"])


def test_order_of_a_quantized_model_is_that_of_the_float_model():
    model = get("resnet20", (32, 32, 3), 10)
    quantized = keras_sq.quantize_model(model, "binary", overrides={})
    assert order(model) == order(quantized)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (keras.layers.Conv2D(4, 1, strides=2), True),
        (keras.layers.Conv2D(4, 2, strides=2), True),
        (keras.layers.Conv2D(4, 3, strides=2), False),
        (keras.layers.Conv2D(4, 1), False),
        (keras.layers.Conv1D(4, 1, strides=2), True),
        (keras.layers.DepthwiseConv2D(3, strides=2), False),
        (keras.layers.Dense(4), False),
        (keras.layers.MaxPooling2D(2), False),
    ],
)
def test_resizing_convolutions_are_recognized(layer, expected):
    assert topology.resizes(layer) is expected
