"""Quantized activations, alone and as the inputs of quantized layers.

The oracle is float64 NumPy in plain loops, from the formulas of the papers.
"""

import inspect
import itertools
import json

import custom_layers
import keras
import layer_table
import numpy as np
import pytest
from backends import COMPILERS, JIT_COMPILE, compiled, gradients, tensor, two_devices
from backends import array as numpy
from keras import layers, ops

import keras_sq
from keras_sq import activation_rules
from keras_sq import layers as sq
from keras_sq.layers import (
    BinaryActivation,
    LearnedActivationQuantizer,
    Settings,
    UniformActivationQuantizer,
    quantized_layers,
)

# Keras says so of any layer without a `build` that it loads.
pytestmark = pytest.mark.filterwarnings("ignore:`build..` was called on layer")

RIDGE, DECAY = 1e-4, 0.9


def activations(shape=(16, 12), seed=0, scale=1.0):
    """Half normal, half zero: what comes out of a ReLU."""
    rng = np.random.default_rng(seed)
    return (scale * np.maximum(rng.normal(size=shape), 0)).astype("float32")


def trained(layer, x):
    return numpy(layer(x, training=True))


# The oracle.


class Oracle:
    """A learned codebook of activations."""

    def __init__(self, num_bits, signed=False):
        self.num_bits = num_bits
        self.bits = [-1, 1] if signed else [0, 1]
        unit = 0.6745 * 2 / (2**num_bits - 1)
        if signed:  # As of kernels.
            unit = 0.6745 / 2 ** (num_bits - 1)
        self.basis = np.array([unit * 2**j for j in range(num_bits)])
        self.updates = 0

    def table(self):
        """All levels with their codes, by level."""
        pairs = []
        for code in itertools.product(self.bits, repeat=self.num_bits):
            level = sum(c * v for c, v in zip(code, self.basis, strict=True))
            pairs.append((level, code))
        return sorted(pairs, key=lambda pair: pair[0])

    def place(self, x):
        levels = [level for level, _ in self.table()]
        place = 0
        for lower, upper in itertools.pairwise(levels):
            if x > (lower + upper) / 2:
                place += 1
        return place

    def forward(self, x):
        table = self.table()
        found = [table[self.place(value)][0] for value in x.reshape(-1)]
        return np.array(found).reshape(x.shape)

    def gradient(self, x, upstream):
        return np.where(x <= self.table()[-1][0], upstream, 0.0)

    def solution(self, x):
        table = self.table()
        square = RIDGE * np.eye(self.num_bits)
        product = RIDGE * self.basis.copy()
        for value in x.reshape(-1).astype("float64"):
            code = np.array(table[self.place(value)][1], "float64")
            for i in range(self.num_bits):
                product[i] += code[i] * value
                for j in range(self.num_bits):
                    square[i, j] += code[i] * code[j]
        return np.linalg.solve(square, product)

    def update(self, solution):
        # The average of all solutions so far, with weights 1, 0.9, 0.81...
        self.updates += 1
        share = (1 - DECAY) / (1 - DECAY**self.updates)
        self.basis = self.basis + share * (solution - self.basis)


def assert_learns_like(layer, oracle, batches, rtol=2e-5):
    for x in batches:
        np.testing.assert_allclose(trained(layer, x), oracle.forward(x), rtol=1e-6)
        oracle.update(oracle.solution(x))
        basis = numpy(layer.basis)
        np.testing.assert_allclose(basis, oracle.basis, rtol=rtol, atol=1e-6)
        # From the same basis: a value beside a threshold may not tip the next step.
        oracle.basis = basis.astype("float64")
    np.testing.assert_allclose(numpy(layer(x)), oracle.forward(x), rtol=1e-6)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 5, 6])
def test_learned_equals_the_oracle_over_several_steps(num_bits):
    layer, oracle = LearnedActivationQuantizer(num_bits), Oracle(num_bits)
    layer.build((None, 12))
    np.testing.assert_allclose(numpy(layer.basis), oracle.basis, rtol=1e-6)
    shapes = [(16, 12), (8, 4, 12), (5, 3, 2, 12), (40, 12)]
    batches = [
        activations(shape, seed, 1 + seed / 4) for seed, shape in enumerate(shapes)
    ]
    assert_learns_like(layer, oracle, batches)
    assert float(numpy(layer.rule_state()[1])) == len(batches)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 5])
def test_signed_learned_equals_the_oracle_over_several_steps(num_bits):
    layer = LearnedActivationQuantizer(num_bits, signed=True)
    oracle = Oracle(num_bits, signed=True)
    layer.build((None, 12))
    np.testing.assert_allclose(numpy(layer.basis), oracle.basis, rtol=1e-6)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(9, 12)).astype("float32") * k for k in (1, 2, 1)]
    assert_learns_like(layer, oracle, batches)
    assert numpy(layer(batches[0])).min() < 0


@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_signed_learned_gradient_is_cut_beyond_both_ends(num_bits):
    layer = LearnedActivationQuantizer(num_bits, signed=True)
    x = np.linspace(-4, 4, 81, dtype="float32")
    low, *_, high = numpy(layer.activation_rule.levels(*built_state(layer)))
    assert low == -high
    _, (gradient,) = gradients(lambda x: ops.sum(layer(x)), x)
    expected = ((x >= low) & (x <= high)).astype("float32")
    assert 0 < expected.sum() < 81
    np.testing.assert_array_equal(numpy(gradient), expected)


def built_state(layer):
    layer.build((None, 3))
    return layer.rule_state()


def test_signed_by_name_and_in_configurations():
    rule = activation_rules.get("lq-2-signed")
    assert rule.signed and rule.name == "lq-2-signed" and rule.num_bits == 2
    assert activation_rules.deserialize(activation_rules.serialize(rule)) == rule
    # As it was saved before there was a choice.
    assert not activation_rules.LearnedRule.from_config({"num_bits": 2}).signed
    layer = LearnedActivationQuantizer(2, signed=True)
    again = LearnedActivationQuantizer.from_config(layer.get_config())
    assert again.activation_rule == rule
    with pytest.raises(TypeError, match="`signed` must be a bool.*signed=1"):
        LearnedActivationQuantizer(2, signed=1)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 6])
def test_learned_gradient_is_cut_above_the_top_level(num_bits):
    layer = LearnedActivationQuantizer(num_bits)
    x = np.linspace(-2, 4, 61).astype("float32")
    layer(x)
    top = numpy(layer.activation_rule.levels(*layer.rule_state()))[-1]
    x[3] = top  # On it, the gradient passes.
    upstream = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    _, (gradient,) = gradients(lambda x: ops.sum(layer(x, training=True) * upstream), x)
    np.testing.assert_array_equal(numpy(gradient), np.where(x <= top, upstream, 0))
    assert not layer.trainable_variables


def test_moving_average_is_bias_corrected():
    layer = LearnedActivationQuantizer(1)
    found = []
    for size in (1.0, 2.0, 4.0):
        trained(layer, np.full((10, 10), size, "float32"))
        found.append(float(numpy(layer.basis)[0]))
    # At one bit the basis is the mean of what exceeds the threshold.
    weights = np.array([0.81, 0.9, 1.0])
    expected = [1.0, (0.9 + 2.0) / 1.9, weights @ [1.0, 2.0, 4.0] / weights.sum()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_basis_is_frozen_at_inference():
    layer = LearnedActivationQuantizer(2)
    layer(activations())
    start = numpy(layer.basis)
    for training in (False, None):
        layer(activations(seed=1), training=training)
        np.testing.assert_array_equal(numpy(layer.basis), start)
    trained(layer, activations(seed=1))
    assert not np.array_equal(numpy(layer.basis), start)


def with_basis(values):
    layer = LearnedActivationQuantizer(len(values))
    layer.build((None, 3))
    layer.basis.assign(values)
    return layer


def test_ties_take_the_lower_level():
    layer = with_basis([1.0, 2.0])
    x = np.array([0.5, 1.5, 2.5, np.nextafter(np.float32(2.5), np.float32(3))])
    np.testing.assert_array_equal(numpy(layer(x.astype("float32"))), [0, 1, 2, 3])


def test_negative_activations_become_the_lowest_level():
    x = np.array([-9.0, -0.1, -np.inf, 0.2, np.inf], "float32")
    np.testing.assert_array_equal(numpy(with_basis([1.0, 2.0])(x)), [0, 0, 0, 0, 3])
    # Which is below 0 where the basis is.
    negative = with_basis([-1.0, 2.0])
    np.testing.assert_array_equal(numpy(negative(x)), [-1, 0, -1, 0, 2])
    levels = negative.activation_rule.levels(*negative.rule_state())
    np.testing.assert_array_equal(numpy(levels), [-1, 0, 1, 2])


def test_a_batch_all_negative_leaves_the_basis():
    layer = LearnedActivationQuantizer(3)
    layer(activations())
    start = numpy(layer.basis)
    out = trained(layer, -1 - activations())
    np.testing.assert_array_equal(out, np.zeros_like(out))
    np.testing.assert_allclose(numpy(layer.basis), start, rtol=1e-6)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [0.0, 0.3, 5.0])
def test_constant_activations_leave_codes_of_rank_one(num_bits, value):
    layer, oracle = LearnedActivationQuantizer(num_bits), Oracle(num_bits)
    layer.build((None, 4))
    x = np.full((6, 4), value, "float32")
    assert_learns_like(layer, oracle, [x] * 5)
    assert np.isfinite(numpy(layer.basis)).all()
    if value == 5.0:  # All in the top level, which moves there.
        np.testing.assert_allclose(numpy(layer(x)), x, rtol=1e-4)


def test_one_activation_for_many_levels():
    layer, oracle = LearnedActivationQuantizer(4), Oracle(4)
    layer.build((None, 1))
    assert_learns_like(layer, oracle, [np.full((1, 1), 0.7, "float32")] * 3)


@pytest.mark.parametrize("basis", [[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
def test_collapsed_basis_stays_usable_and_recovers(basis):
    layer = with_basis(basis)
    x = activations((64, 3))
    levels = {a * basis[0] + b * basis[1] for a in (0, 1) for b in (0, 1)}
    assert set(np.unique(trained(layer, x))) <= levels
    for _ in range(30):
        assert np.isfinite(trained(layer, x)).all()
    error = np.mean((numpy(layer(x)) - x) ** 2)
    one_level = with_basis([0.0])
    for _ in range(30):
        trained(one_level, x)
    assert error <= 1.001 * np.mean((numpy(one_level(x)) - x) ** 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_teach_nothing(value):
    layer = LearnedActivationQuantizer(2)
    x = activations()
    trained(layer, x)
    before = [numpy(v) for v in layer.variables]
    spoilt = x.copy()
    spoilt[2, 3] = value
    out = trained(layer, spoilt)
    for variable, expected in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(numpy(variable), expected)
    # NaN shows, infinity is clipped, the others are what they were.
    expected = numpy(layer(x))
    top = numpy(layer.activation_rule.levels(*layer.rule_state()))[-1]
    expected[2, 3] = {np.inf: top, -np.inf: 0.0}.get(value, np.nan)
    np.testing.assert_array_equal(out, expected)


def test_empty_batch_leaves_the_basis():
    layer = LearnedActivationQuantizer(2)
    trained(layer, activations())
    before = numpy(layer.basis)
    assert trained(layer, np.zeros((0, 12), "float32")).shape == (0, 12)
    np.testing.assert_allclose(numpy(layer.basis), before, rtol=1e-6)


@pytest.mark.parametrize("num_bits", [1, 2, 3])
def test_error_falls_with_training_below_the_uniform_grid(num_bits):
    x = activations((256, 32))
    learned = LearnedActivationQuantizer(num_bits)
    for _ in range(50):
        trained(learned, x)
    error = np.mean((numpy(learned(x)) - x) ** 2)
    grid = UniformActivationQuantizer(num_bits, clip=float(x.max()), learned=False)
    assert error < np.mean((numpy(grid(x)) - x) ** 2)


# Uniform and binary.


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("clip", [1.0, 2.5])
@pytest.mark.parametrize("learned", [False, True])
def test_uniform_equals_the_oracle(num_bits, clip, learned):
    layer = UniformActivationQuantizer(num_bits, clip, learned)
    x = np.random.default_rng(1).normal(size=(20, 7)).astype("float32") * 2
    upstream = np.random.default_rng(2).normal(size=x.shape).astype("float32")
    layer(x)

    def loss(x):
        y = layer(x, training=True)
        return ops.sum(y * upstream), y

    (_, y), found = gradients(loss, x, variables=layer.trainable_variables)
    steps = 2**num_bits - 1
    expected, gradient, clip_gradient = [], [], 0.0
    for value, up in zip(x.reshape(-1), upstream.reshape(-1), strict=True):
        inside = min(max(float(value), 0.0), clip)
        expected.append(clip / steps * np.round(inside * steps / clip))
        gradient.append(up if 0 <= value < clip else 0.0)
        clip_gradient += float(up) if value >= clip else 0.0
    np.testing.assert_allclose(numpy(y).reshape(-1), expected, rtol=1e-6)
    np.testing.assert_array_equal(numpy(found[0]).reshape(-1), gradient)
    assert len(found) == 1 + learned
    if learned:
        np.testing.assert_allclose(numpy(found[1]), clip_gradient, rtol=1e-5)
    levels = numpy(layer.activation_rule.levels(*layer.rule_state()))
    np.testing.assert_allclose(levels, np.linspace(0, clip, steps + 1), rtol=1e-6)


def test_learned_clip_moves_and_its_loss_pulls():
    x = activations((32, 4), scale=9.0)
    finals = []
    for l2 in (0.0, 1.0):
        layer = UniformActivationQuantizer(3, clip=2.0, l2=l2)
        model = keras.Sequential([keras.Input((4,)), layer])
        assert len(model.losses) == (l2 > 0)
        if l2:
            np.testing.assert_allclose(numpy(model.losses[0]), 4.0)
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.fit(x, x, epochs=40, verbose=0)
        finals.append(float(numpy(layer.rule_state()[0])))
    assert finals[0] > 10  # Far towards the largest values.
    assert 2 < finals[1] < finals[0] - 1


def test_a_learned_clip_below_zero_stays_usable():
    layer = UniformActivationQuantizer(2)
    layer.build((None, 3))
    layer.rule_state()[0].assign(-1.0)
    out = numpy(layer(np.array([-1.0, 0.0, 2.0], "float32")))
    np.testing.assert_allclose(out, [0, 0, 1e-4])


def test_binary_is_the_sign_with_a_clipped_gradient():
    x = np.array([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5], "float32")
    layer = BinaryActivation()
    layer.build(x.shape)

    def loss(x):
        y = layer(x)
        return ops.sum(y * np.arange(1, 9, dtype="float32")), y

    (_, y), (gradient,) = gradients(loss, x)
    np.testing.assert_array_equal(numpy(y), [-1, -1, -1, 1, 1, 1, 1, 1])
    expected = [0, 2, 3, 4, 5, 6, 7, 0]
    np.testing.assert_array_equal(numpy(gradient), expected)


ALONE = {
    "learned": lambda **kwargs: LearnedActivationQuantizer(2, **kwargs),
    "learned, many bits": lambda **kwargs: LearnedActivationQuantizer(6, **kwargs),
    "uniform": lambda **kwargs: UniformActivationQuantizer(3, **kwargs),
    "uniform, fixed": lambda **kwargs: UniformActivationQuantizer(
        4, clip=1.0, learned=False, **kwargs
    ),
    "binary": lambda **kwargs: BinaryActivation(**kwargs),
}
every_layer = pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)


@every_layer
def test_nan_shows(make):
    x = np.array([[0.5, np.nan, -0.5, 2.0]], "float32")
    assert np.isnan(numpy(make()(x))).tolist() == [[False, True, False, False]]
    assert np.isnan(trained(make(), x)).tolist() == [[False, True, False, False]]


@every_layer
def test_output_is_one_of_the_levels(make):
    layer = make()
    x = activations((30, 5)) - 0.3
    out = trained(layer, x)
    for _ in range(3):
        out = numpy(layer(x, training=False))
        levels = numpy(layer.activation_rule.levels(*layer.rule_state()))
        assert set(np.unique(out)) <= set(levels)
        assert (np.diff(levels) >= 0).all()
        trained(layer, x)


@every_layer
def test_eager_graph_and_xla_agree(make):
    batches = [activations((32, 40), seed) for seed in range(3)]

    def run(how):
        layer = make()
        layer.build((None, 40))
        step = compiled(lambda x: layer(x, training=True), how, layer.variables)
        outs = [numpy(step(tensor(x))) for x in batches]
        return outs, [numpy(v) for v in layer.variables]

    expected = run("eager")
    for how in COMPILERS:
        found = run(how)
        for ours, theirs in zip(
            [*found[0], *found[1]], [*expected[0], *expected[1]], strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("num_bits", [2, 5])
def test_large_activations_of_unknown_batch_are_fused_and_equal(num_bits):
    import tensorflow as tf

    layer = LearnedActivationQuantizer(num_bits)
    layer.build((None, 64, 64))
    signature = [tf.TensorSpec((None, 64, 64), "float32")]
    step = tf.function(lambda x: layer(x, training=True), signature)
    for count in (8, 3):
        x = activations((count, 64, 64), count)
        expected = numpy(layer(x))
        # The levels are sums, taken in another order.
        np.testing.assert_allclose(numpy(step(x)), expected, rtol=1e-6)


@every_layer
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_learns_in_float32(make, dtype):
    layer = make(dtype=dtype)
    # The sum of these is beyond float16.
    x = activations((64, 64), scale=100.0).astype("float16").astype("float32")
    if dtype == "mixed_bfloat16":
        x = numpy(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    full = make()
    for _ in range(3):
        out = layer(x, training=True)
        full(x, training=True)
    assert keras.backend.standardize_dtype(out.dtype) == layer.compute_dtype
    for ours, theirs in zip(layer.variables, full.variables, strict=True):
        assert ours.dtype == "float32"
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-5)
    expected = ops.cast(full(x), layer.compute_dtype)
    np.testing.assert_array_equal(
        numpy(ops.cast(layer(x), "float32")), numpy(ops.cast(expected, "float32"))
    )


@every_layer
def test_saving_restores_all(make, tmp_path):
    x = activations((10, 6))
    model = keras.Sequential([keras.Input((6,)), make(name="alone"), layers.Dense(2)])
    for _ in range(3):
        model(x, training=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    other = keras.models.model_from_json(model.to_json())
    other.load_weights(tmp_path / "model.weights.h5")
    for copy in (loaded, other):
        assert copy.layers[0].get_config() == model.layers[0].get_config()
        for ours, theirs in zip(copy.variables, model.variables, strict=True):
            np.testing.assert_array_equal(numpy(ours), numpy(theirs))
        np.testing.assert_array_equal(numpy(copy(x)), numpy(model(x)))
        copy(x, training=True)
    model(x, training=True)  # And all go on alike.
    for ours, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


@every_layer
def test_masks_pass(make):
    layer = make()
    mask = np.array([[True, False]])
    x = layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    np.testing.assert_array_equal(numpy(layer(x)._keras_mask), mask)


def test_bad_arguments_are_refused():
    for make in (LearnedActivationQuantizer, UniformActivationQuantizer):
        for bits, word in ((0, "least 1"), (9, "most 8"), (-1, "least 1")):
            with pytest.raises(ValueError, match=f"`num_bits` must be at {word}"):
                make(bits)
        with pytest.raises(TypeError, match="`num_bits` must be an integer"):
            make(2.0)
    with pytest.raises(ValueError, match="`clip` must be a finite number above 0"):
        UniformActivationQuantizer(2, clip=0.0)
    with pytest.raises(TypeError, match="`learned` must be a bool"):
        UniformActivationQuantizer(2, learned=1)
    with pytest.raises(ValueError, match="`l2` must be a finite number above 0"):
        UniformActivationQuantizer(2, l2=-1.0)
    with pytest.raises(ValueError, match="`l2` acts on a learned clip"):
        UniformActivationQuantizer(2, l2=0.1, learned=False)
    with pytest.raises(TypeError, match="layer 'tokens' needs a dense float.*int32"):
        BinaryActivation(name="tokens")(np.ones((2, 2), "int32"))
    layer = sq.SQDense(2, input_quantizer="lq-2", name="dense")
    with pytest.raises(TypeError, match="layer 'dense' needs a dense float.*int32"):
        layer(np.ones((2, 2), "int32"))


def test_rules_are_values():
    for name in activation_rules.names():
        rule = activation_rules.get(name)
        assert rule.name == name
        assert rule == activation_rules.get(name) and hash(rule) is not None
        assert rule != activation_rules.get("uniform-5" if name == "lq-5" else "lq-5")
        config = json.loads(json.dumps(activation_rules.serialize(rule)))
        assert activation_rules.get(config) == rule
        levels = rule.levels(
            *(ops.convert_to_tensor(s.start) for s in rule.state_specs())
        )
        assert levels.shape == (2**rule.num_bits,)
    assert activation_rules.get(np.str_("lq-3")).num_bits == 3
    layer = UniformActivationQuantizer(np.int64(3), clip=2)
    assert activation_rules.get(layer) == activation_rules.UniformRule(3, 2.0)
    json.dumps(layer.get_config())
    with pytest.raises(AttributeError, match="cannot assign"):
        layer.activation_rule.num_bits = 4


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="'lq-9'.*Did you mean 'lq-"):
        activation_rules.get("lq-9")
    with pytest.raises(TypeError, match="name.*Received: 2 .of type int"):
        activation_rules.get(2)
    with pytest.raises(TypeError, match=r"an instance: LearnedActivationQuantizer\("):
        activation_rules.get(LearnedActivationQuantizer)
    config = keras.saving.serialize_keras_object(keras_sq.quantizers.get("binary"))
    with pytest.raises(TypeError, match="an activation rule.*BinaryQuantizer"):
        activation_rules.get(config)


# As inputs of quantized layers.

FLOAT_ROWS = [row for row in layer_table.ROWS if not row.takes_indices]
every_row = pytest.mark.parametrize("row", FLOAT_ROWS, ids=lambda row: row.note)
FIXED = activation_rules.UniformRule(2, clip=1.5, learned=False)


def grid(x):
    return (np.round(np.clip(x, 0, 1.5) / 0.5) * 0.5).astype("float32")


@pytest.mark.parametrize(
    "row",
    [row for row in FLOAT_ROWS if row.name not in ("MultiHeadAttention", "RNN")],
    ids=lambda row: row.note,
)
@pytest.mark.parametrize("training", [False, True])
def test_layer_computes_with_quantized_inputs(row, training):
    layer = row.layer(input_quantizer=FIXED, inference="hybrid")
    row.call(layer, row.data())
    layer_table.randomize(layer)
    keras_sq.set_ratio(layer, 0.0)
    twin = row.float_twin(layer)
    x = row.data(2)
    np.testing.assert_allclose(
        numpy(row.call(layer, x, training=training)),
        numpy(row.call(twin, grid(x), training=training)),
        rtol=1e-6,
        atol=1e-6,
    )


def test_first_argument_may_be_named():
    layer = sq.SQDense(3, input_quantizer=FIXED, use_bias=False)
    x = activations((4, 5)) - 0.2
    np.testing.assert_array_equal(numpy(layer(inputs=x)), numpy(layer(x)))
    assert not np.allclose(numpy(layer(x)), x @ numpy(layer.quantized_kernel()))


def test_attention_quantizes_what_its_projections_take():
    layer = sq.SQMultiHeadAttention(2, 3, input_quantizer=FIXED, inference="hybrid")
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    layer(x, x)
    keras_sq.set_ratio(layer, 0.0)
    seen = []
    for _, part in quantized_layers(layer):
        assert part.input_rule == FIXED
        seen.append(part.name)
    assert len(seen) == 4
    plain = keras.layers.MultiHeadAttention(2, 3)
    plain(x, x)
    for ours, theirs in zip(
        layer.trainable_variables, plain.trainable_variables, strict=True
    ):
        theirs.assign(ours)
    # Its own quantization of the output projection's input, by hand.
    q, k, v = (
        numpy(part(grid(x)))
        for part in (plain.query_dense, plain.key_dense, plain.value_dense)
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(3)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", shares, v)
    expected = numpy(plain.output_dense(grid(mixed)))
    np.testing.assert_allclose(numpy(layer(x, x)), expected, rtol=1e-4, atol=1e-5)


@every_row
def test_call_signature_is_the_keras_one(row):
    for ours in {type(part) for part, _, _ in row.kernels(row.built())}:
        theirs = ours.float_class
        assert inspect.signature(ours.call) == inspect.signature(theirs.call)


def step_count(layer):
    return float(numpy(layer.input_state()[1]))


@every_row
def test_learned_inputs_learn_once_a_call_and_are_saved(row, tmp_path):
    model = layer_table.as_model(row, row.layer(input_quantizer="lq-2"))
    keras_sq.set_ratio(model, 1.0)
    x = row.data(2)
    if row.call is layer_table.cell_call:
        x = np.repeat(x[:, None], 4, axis=1)
    model(x, training=True)
    model(x, training=True)
    found = quantized_layers(model)
    # Cells of a plain RNN, or behind another cell, get theirs step by step.
    stepwise = row.call is layer_table.cell_call
    learns_once = found[:1] if row.name == "RNN" else [] if stepwise else found
    for _, layer in learns_once:
        assert step_count(layer) == 2
    before = {v.path: numpy(v) for _, layer in found for v in layer.input_state()}
    assert len(before) == 2 * len(found)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    other = keras.models.model_from_json(model.to_json())
    other.load_weights(tmp_path / "model.weights.h5")
    for copy in (loaded, other):
        pairs = zip(quantized_layers(copy), found, strict=True)
        for (_, ours), (_, theirs) in pairs:
            assert ours.quantization_settings == theirs.quantization_settings
            assert ours.quantization_settings.input_quantizer.name == "lq-2"
            for a, b in zip(ours.input_state(), theirs.input_state(), strict=True):
                np.testing.assert_array_equal(numpy(a), numpy(b))
        np.testing.assert_array_equal(numpy(copy(x)), numpy(model(x)))


def test_sequences_are_learned_from_as_a_whole():
    x = activations((5, 7, 6))
    layer, oracle = sq.SQLSTM(3, input_quantizer="lq-2"), Oracle(2)
    layer(x)
    keras_sq.set_ratio(layer, 1.0)
    layer(x, training=True)
    oracle.update(oracle.solution(x))
    basis = numpy(layer.cell.input_state()[0])
    np.testing.assert_allclose(basis, oracle.basis, rtol=1e-5)


def test_a_shared_layer_learns_at_each_call():
    shared = sq.SQDense(4, input_quantizer="lq-2")
    x = keras.Input((4,))
    model = keras.Model(x, shared(shared(x)))
    keras_sq.set_ratio(model, 1.0)
    model(activations((8, 4)), training=True)
    assert step_count(shared) == 2


def test_subclass_with_its_own_call_reaches_the_quantizer():
    class Doubled(sq.SQDense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    layer = Doubled(3, input_quantizer=FIXED)
    x = activations((4, 5)) - 0.2
    layer(x)
    layer.bias.assign([1.0, 2.0, 3.0])
    expected = 2 * (grid(x) @ numpy(layer.quantized_kernel()) + [1, 2, 3])
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-5)


def test_embedding_has_no_input_quantizer():
    with pytest.raises(ValueError, match="type Embedding takes indices"):
        sq.SQEmbedding(5, 3, input_quantizer="lq-2")
    model = transformer()
    with pytest.raises(ValueError, match="type Embedding takes indices"):
        override = {layers.Embedding: {"input_quantizer": "binary"}}
        keras_sq.quantize_model(model, "ternary", overrides=override)
    quantized = keras_sq.quantize_model(
        model, "ternary", input_quantizer="lq-2", skip=()
    )
    rules = {o.layer_type: o.input_quantizer for o in quantized.quantization_report}
    assert rules == {"Embedding": None, "EinsumDense": "lq-2", "Dense": "lq-2"}


# Whole models.


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(8, 3, name="second"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, name="last"),
        ]
    )


def transformer():
    words = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 8)(words)
    x = custom_layers.TransformerBlock(2, 8)(x)
    return keras.Model(words, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def lstm():
    inputs = keras.Input((5, 4))
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(inputs)
    x = layers.TimeDistributed(layers.Dense(4, activation="relu"))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(6)(x)))


MODELS = {"cnn": cnn, "transformer": transformer, "lstm": lstm}


def data(model, count=48):
    rng = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 9, shape).astype("int32")
        return x, x[:, 0] % 3
    x = rng.normal(size=shape).astype("float32")
    return x, np.digitize(x.reshape(count, -1)[:, ::3].mean(1), [-0.1, 0.1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", ["lq-2", "uniform-4", "binary"])
def test_training_lowers_the_loss_and_the_model_can_be_saved(name, rule, tmp_path):
    float_model = MODELS[name]()
    model = keras_sq.quantize_model(
        float_model, "ternary", input_quantizer=rule, skip=(), seed=0
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=JIT_COMPILE,
    )
    x, y = data(model)
    callback = keras_sq.callbacks.StochasticQuantization()
    losses = model.fit(
        x, y, epochs=8, batch_size=16, verbose=0, callbacks=[callback]
    ).history["loss"]
    assert np.isfinite(losses).all()
    assert min(losses[-2:]) < losses[0]
    for _, layer in quantized_layers(model):
        if rule == "lq-2" and layer.input_rule is not None:
            assert step_count(layer) == 8 * 3
            assert np.isfinite(numpy(layer.input_state()[0])).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))
    assert set(keras_sq.get_codes(model)) == {
        f"{path}/{weight}"
        for path, layer in quantized_layers(model)
        for weight in layer.quantized_weights
    }


def test_fit_compiled_by_xla_learns_the_same():
    def run(jit_compile):
        keras.utils.set_random_seed(3)
        model = keras_sq.quantize_model(
            cnn(), "binary", input_quantizer="lq-2", skip=(), seed=0
        )
        model.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        keras_sq.set_ratio(model, 1.0)
        x, y = data(model)
        model.fit(x, y, batch_size=20, verbose=0, shuffle=False)
        return [numpy(v) for _, s in quantized_layers(model) for v in s.input_state()]

    for ours, theirs in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_overrides_and_skip_reach_single_layers():
    model = keras_sq.quantize_model(
        cnn(),
        "ternary",
        input_quantizer="lq-2",
        skip="last",
        overrides={"first": {"input_quantizer": None}, "second": "binary"},
    )
    settings = {p: s.quantization_settings for p, s in quantized_layers(model)}
    assert settings["first"].input_quantizer is None
    assert settings["second"].input_quantizer == activation_rules.get("lq-2")
    report = [(o.path, o.input_quantizer) for o in model.quantization_report]
    assert report == [("first", None), ("second", "lq-2"), ("last", None)]
    layer = UniformActivationQuantizer(3, clip=2.0)
    model = keras_sq.quantize_model(cnn(), "ternary", input_quantizer=layer, skip=())
    for _, found in quantized_layers(model):
        assert found.input_rule == layer.activation_rule
        (clip,) = found.input_state()
        assert clip.trainable and float(numpy(clip)) == 2.0
    assert Settings(**model.layers[0].quantization_settings.get_config()) == (
        model.layers[0].quantization_settings
    )
    with pytest.raises(ValueError, match="`input_quantizer` must be one of.*'lq-22'"):
        keras_sq.quantize_model(cnn(), "ternary", input_quantizer="lq-22")


def test_summary_shows_inputs():
    float_model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, name="a"), BinaryActivation(name="sign")]
        + [layers.Dense(3, name="b")]
    )
    override = {"a": {"input_quantizer": None}}
    model = keras_sq.quantize_model(
        float_model, "binary", input_quantizer="lq-2", skip=(), overrides=override
    )
    table = keras_sq.summary(model, print_fn=lambda text: None)
    assert [(r.path, r.weights, r.inputs, r.input_bits) for r in table.rows] == [
        ("a/kernel", 24, None, None),
        ("a", 4, None, None),
        ("sign", 0, "binary", 1),
        ("b/kernel", 12, "lq-2", 2),
        ("b", 3, None, None),
    ]
    lines = str(table).splitlines()
    column = lines[0].index("inputs")
    shown = [line[column : column + 6].strip() for line in lines[2:7]]
    assert shown == ["float", "", "binary", "lq-2", ""]
    json.dumps(table.to_dict())
    plain = keras_sq.quantize_model(
        float_model.__class__([keras.Input((6,)), layers.Dense(4)]), overrides={}
    )
    assert "inputs" not in str(keras_sq.summary(plain, print_fn=lambda text: None))


def test_stripping_quantized_activations_is_refused():
    model = keras_sq.quantize_model(cnn(), "ternary", input_quantizer="lq-2")
    with pytest.raises(ValueError, match="layer 'second'.*plain Keras layers cannot"):
        keras_sq.strip_quantization(model)
    alone = keras.Sequential([keras.Input((3,)), BinaryActivation(), sq.SQDense(2)])
    with pytest.raises(ValueError, match="'binary_activation.*plain Keras layers"):
        keras_sq.strip_quantization(alone)


def test_converted_layers_start_with_the_first_basis():
    model = keras_sq.quantize_model(
        lstm(), "ternary", input_quantizer="lq-3", skip=(), seed=0
    )
    found = [layer for _, layer in quantized_layers(model)]
    assert len(found) == 5
    for layer in found:
        basis, updates = layer.input_state()
        np.testing.assert_allclose(numpy(basis), Oracle(3).basis, rtol=1e-6)
        assert float(numpy(updates)) == 0
        assert not basis.trainable and not updates.trainable


# Two devices; tests/conftest.py makes two CPUs of one.


@pytest.mark.tensorflow
def test_replicas_take_the_mean_of_what_each_learns():
    with two_devices() as strategy:
        layer = LearnedActivationQuantizer(2)
        inner = sq.SQDense(3, input_quantizer="lq-2")
        model = keras.Sequential([keras.Input((12,)), layer, inner])
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    keras_sq.set_ratio(model, 1.0)
    x = activations((32, 12))
    model.fit(x, x[:, :3], batch_size=16, verbose=0, shuffle=False)
    oracle = Oracle(2)
    for start in (0, 16):
        halves = x[start : start + 8], x[start + 8 : start + 16]
        solutions = [oracle.solution(half) for half in halves]
        oracle.update(np.mean(solutions, axis=0))
    values = strategy.experimental_local_results(layer.basis.value)
    assert len(values) == 2
    for value in values:
        np.testing.assert_allclose(numpy(value), oracle.basis, rtol=1e-5)
    assert step_count(inner) == 2
    left, right = strategy.experimental_local_results(inner.input_state()[0].value)
    np.testing.assert_array_equal(numpy(left), numpy(right))
