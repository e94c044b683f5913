"""Learned codebooks of kernels: against the formulas, weight by weight, in float64.

The oracle is written from the paper's formulas in plain Python; it shares nothing
with the package but the constants of the paper.
"""

import contextlib
import itertools
import json

import keras
import numpy as np
import pytest
from backends import array, gradients, two_devices
from keras import layers as kl
from keras import ops

import keras_sq
from keras_sq import quantizers
from keras_sq.quantizers import BinaryQuantizer, LearnedQuantizer, codebook

RIDGE, DECAY = 1e-4, 0.9


# The oracle: one filter at a time.


def oracle_levels(basis):
    """All sums of the basis with signs, sorted, with their codes."""
    found = []
    for code in itertools.product([-1, 1], repeat=len(basis)):
        # The package counts with the first bit fastest; ties keep that order.
        code = code[::-1]
        found.append((sum(b * v for b, v in zip(code, basis, strict=True)), code))
    return sorted(found, key=lambda entry: entry[0])


def oracle_rank(weight, levels):
    """How many midpoints between neighbouring levels the weight exceeds."""
    return sum(
        weight > (low[0] + high[0]) / 2 for low, high in itertools.pairwise(levels)
    )


def oracle_quantize(column, basis):
    levels = oracle_levels(basis)
    return [levels[oracle_rank(w, levels)][0] for w in column]


def oracle_step(column, basis):
    """(BᵀB + ridge·I)⁻¹ (Bᵀw + ridge·v)."""
    levels = oracle_levels(basis)
    codes = np.array([levels[oracle_rank(w, levels)][1] for w in column], float)
    square = codes.T @ codes + RIDGE * np.eye(len(basis))
    return np.linalg.solve(square, codes.T @ np.array(column) + RIDGE * np.array(basis))


def oracle_average(values):
    """Weights decay**0, decay**1, ... from the last value back, normalized."""
    shares = [DECAY**age for age in range(len(values))][::-1]
    return sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)


def kernels():
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(60, 8))
    normal[:, 2] = 0.0
    normal[:, 3] = 0.25
    normal[:, 4] = np.round(normal[:, 4])  # Ties, and few values.
    normal[:, 5] *= 1e-6
    normal[:, 6] *= 1e6
    return normal.astype("float32")


def close(actual, expected, weights):
    """To float32's rounding of the largest weight of the filter."""
    bound = 2e-5 * np.max(np.abs(weights), axis=0) + 1e-12
    assert (np.abs(np.asarray(actual, float) - expected) <= bound).all()


BITS = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("num_bits", BITS)
def test_levels_and_nearest_levels(num_bits):
    weights = kernels()
    basis = np.random.default_rng(num_bits).normal(size=(num_bits, 8))
    basis = basis.astype("float32")
    quantizer = LearnedQuantizer(num_bits)
    levels = ops.convert_to_numpy(quantizer.levels(basis))
    found = ops.convert_to_numpy(quantizer(weights, basis))
    codes = ops.convert_to_numpy(quantizer.encode(ops.array(weights), basis))
    for f in range(8):
        expected = oracle_levels(basis[:, f].tolist())
        np.testing.assert_allclose(
            levels[:, f], [level for level, _ in expected], rtol=1e-5, atol=1e-6
        )
        # The nearest level, by looking at all of them.
        distance = np.abs(weights[:, f, None] - levels[None, :, f])
        np.testing.assert_allclose(
            np.abs(weights[:, f] - found[:, f]), distance.min(axis=1), rtol=1e-6
        )
        np.testing.assert_array_equal(levels[codes[:, f].astype(int), f], found[:, f])
        np.testing.assert_allclose(
            found[:, f],
            oracle_quantize(weights[:, f].tolist(), basis[:, f].tolist()),
            rtol=1e-4,
            atol=1e-5 * np.abs(basis[:, f]).sum(),
        )
    assert set(np.unique(codes)) <= set(range(2**num_bits))


def test_weight_on_a_threshold_takes_the_lower_level():
    basis = np.array([[1.0], [2.0]], "float32")  # Levels -3, -1, 1, 3.
    weights = ops.array([[-2.0], [0.0], [2.0], [2.0001]])
    assert array(LearnedQuantizer(2)(weights, basis)).ravel().tolist() == [
        -3.0,
        -1.0,
        1.0,
        3.0,
    ]


@pytest.mark.parametrize("num_bits", BITS)
def test_one_alternation(num_bits):
    weights = kernels()
    start = np.abs(weights).mean(axis=0) * 2.0 ** np.arange(num_bits)[:, None]
    start = (start / 2 ** (num_bits - 1)).astype("float32")
    found = ops.convert_to_numpy(codebook.step(ops.array(weights), start, signed=True))
    for f in range(8):
        expected = oracle_step(weights[:, f].tolist(), start[:, f].tolist())
        close(found[:, f], expected, weights[:, f])


@pytest.mark.parametrize("num_bits", [2, 3, 4])
def test_linearly_dependent_codes_keep_to_the_basis_before(num_bits):
    # All weights of a filter have one code: only its sum is determined.
    weights = np.full((50, 1), 3.0, "float32")
    start = np.arange(1.0, num_bits + 1).reshape(-1, 1).astype("float32")
    found = ops.convert_to_numpy(codebook.step(ops.array(weights), start, signed=True))
    expected = oracle_step(weights[:, 0].tolist(), start[:, 0].tolist())
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
    quantized = LearnedQuantizer(num_bits)(weights, found)
    np.testing.assert_allclose(quantized, 3.0, rtol=1e-4)


def test_moving_average_is_bias_corrected():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(7, 2, 3))
    average = ops.array(generator.normal(size=(2, 3)).astype("float32"))
    for count, value in enumerate(values):
        average = codebook.moved(average, ops.array(value, "float32"), float(count))
        np.testing.assert_allclose(
            average, oracle_average(list(values[: count + 1])), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4])
def test_alternation_lowers_the_squared_error_every_time(num_bits):
    generator = np.random.default_rng(num_bits)
    weights = ops.array(generator.laplace(size=(300, 50)).astype("float32"))
    quantizer = LearnedQuantizer(num_bits)
    basis = quantizer.initial_state(300, 50)
    before = None
    for _ in range(12):
        error = ops.convert_to_numpy(
            ops.mean((weights - quantizer(weights, basis)) ** 2, axis=0)
        )
        if before is not None:
            assert (error <= before * (1 + 1e-5)).all()
        before = error
        basis = codebook.step(weights, basis, signed=True)


def test_one_bit_is_the_binary_quantizer():
    weights = np.delete(kernels(), 2, axis=1)  # Zeros have no sign.
    weights = weights[:, [0, 1, 2, 4, 5, 6]]
    learned = ops.convert_to_numpy(LearnedQuantizer(1)(weights))
    binary = ops.convert_to_numpy(BinaryQuantizer()(weights))
    np.testing.assert_allclose(learned, binary, rtol=1e-5)


def test_zero_filters_stay_zero_and_constant_ones_constant():
    for num_bits in (1, 2, 3, 5):
        found = ops.convert_to_numpy(LearnedQuantizer(num_bits)(kernels()))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, 2], 0.0, atol=1e-6)
        np.testing.assert_allclose(found[:, 3], 0.25, rtol=1e-3)


def thousand_kernels():
    generator = np.random.default_rng(0)
    shape = (72, 400)
    trained = kl.Conv2D(64, 3, use_bias=False)
    trained.build((None, 8, 8, 8))
    # Of a network after training: what it learned, on top of where it began.
    start = ops.convert_to_numpy(trained.kernel).reshape(72, 64)
    learned = start + 0.1 * start * np.abs(generator.standard_t(3, start.shape))
    return {
        "normal": generator.normal(size=shape).astype("float32"),
        "Laplace": generator.laplace(size=shape).astype("float32"),
        "trained": np.concatenate([learned] * 4, axis=1)[:, :200].astype("float32"),
    }


@pytest.mark.parametrize("num_bits", [2, 3, 4])
def test_error_is_below_the_uniform_quantizers_on_average(num_bits):
    means, worse, count = [], 0, 0
    for weights in thousand_kernels().values():
        errors = [
            ((weights - ops.convert_to_numpy(quantizer(weights))) ** 2).mean(axis=0)
            for quantizer in (
                LearnedQuantizer(num_bits),
                quantizers.UniformQuantizer(num_bits, "least_squares"),
            )
        ]
        scale = (weights**2).mean(axis=0)
        means.append([(error / scale).mean() for error in errors])
        worse += int((errors[0] > errors[1]).sum())
        count += weights.shape[1]
    assert count == 1000
    print(f"{num_bits} bits: {worse} of {count} kernels have a larger error (minima)")
    assert all(learned < uniform for learned, uniform in means)
    assert worse < count / 4


@pytest.mark.parametrize("num_bits", [2, 3, 5])
def test_not_a_number_stays_visible(num_bits):
    weights = kernels()
    weights[3, 0] = np.nan
    basis = LearnedQuantizer(num_bits).fit(ops.array(kernels()))[0]
    found = ops.convert_to_numpy(LearnedQuantizer(num_bits)(weights, basis))
    assert np.isnan(found[3, 0])
    assert np.isfinite(np.delete(found[:, 0], 3)).all()


@pytest.mark.parametrize("num_bits", [0, 9, -1])
def test_bits_out_of_range_are_an_error(num_bits):
    with pytest.raises(ValueError, match="`num_bits` must be"):
        LearnedQuantizer(num_bits)


def test_bits_that_are_no_integer_are_an_error():
    with pytest.raises(TypeError, match="`num_bits` must be an integer"):
        LearnedQuantizer(2.5)


def test_names_and_configuration():
    for num_bits in range(1, 9):
        quantizer = quantizers.get(f"lq-{num_bits}")
        assert quantizer == LearnedQuantizer(num_bits)
        config = json.loads(json.dumps(quantizers.serialize(quantizer)))
        assert quantizers.deserialize(config) == quantizer
        assert quantizer.num_levels == 2**num_bits


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4])
def test_errors_are_those_of_the_quantized_kernel(num_bits):
    # Large enough for the sums by blocks, and small.
    for shape in ((64, 8), (600, 256)):
        weights = np.random.default_rng(0).normal(size=shape).astype("float32")
        layer = keras_sq.layers.SQDense(shape[1], kernel_quantizer=f"lq-{num_bits}")
        layer.build((None, shape[0]))
        layer.latent().assign(weights)
        layer.fit_codebooks()
        quantized = ops.convert_to_numpy(layer.quantized_kernel())
        expected = np.abs(weights - quantized).sum(0) / np.abs(weights).sum(0)
        np.testing.assert_allclose(layer.quantization_errors(), expected, rtol=1e-4)


# In a layer.


def trained_layer(num_bits=2, **kwargs):
    layer = keras_sq.layers.SQDense(
        6, kernel_quantizer=f"lq-{num_bits}", use_bias=False, **kwargs
    )
    layer.build((None, 20))
    keras_sq.set_ratio(layer, 1.0)
    return layer


def test_initial_basis_is_the_papers():
    layer = trained_layer(3)
    expected = 0.6745 * np.sqrt(2 / 6) / 4 * np.array([1, 2, 4])
    np.testing.assert_allclose(
        layer.codebook(), np.repeat(expected[:, None], 6, 1), rtol=1e-6
    )


@pytest.mark.parametrize("num_bits", [1, 2, 3])
def test_codebook_moves_once_a_step_after_the_kernel_was_used(num_bits):
    layer = trained_layer(num_bits)
    generator = np.random.default_rng(0)
    x = np.eye(20, dtype="float32")
    values, basis = [], ops.convert_to_numpy(layer.codebook()).astype(float)
    for _ in range(4):
        kernel = generator.normal(size=(20, 6)).astype("float32")
        layer.latent().assign(kernel)
        output = ops.convert_to_numpy(layer(x, training=True))
        for f in range(6):  # Quantized with the basis from before.
            column = kernel[:, f].tolist()
            close(output[:, f], oracle_quantize(column, basis[:, f]), kernel[:, f])
        steps = [oracle_step(kernel[:, f].tolist(), basis[:, f]) for f in range(6)]
        values.append(np.array(steps).T)
        basis = oracle_average(values)
        np.testing.assert_allclose(layer.codebook(), basis, rtol=1e-4, atol=1e-5)
    # Outside of training it is used as it is.
    before = ops.convert_to_numpy(layer.codebook())
    output = ops.convert_to_numpy(layer(x, training=False))
    np.testing.assert_array_equal(layer.codebook(), before)
    np.testing.assert_array_equal(output, layer.quantized_kernel())


def test_gradient_is_straight_through():
    layer = trained_layer()
    x = np.random.default_rng(0).normal(size=(5, 20)).astype("float32")
    _, (gradient,) = gradients(
        lambda: ops.sum(layer(x, training=True)), variables=layer.trainable_variables
    )
    expected = np.repeat(x.sum(0)[:, None], 6, 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert [v.name for v in layer.trainable_variables] == ["kernel"]


def test_masked_filters_stay_full_precision():
    layer = trained_layer()
    keras_sq.set_ratio(layer, 0.5)
    output = ops.convert_to_numpy(layer(np.eye(20, dtype="float32"), training=True))
    full = ~ops.convert_to_numpy(layer.mask())[0]
    assert full.sum() == 3
    latent = ops.convert_to_numpy(layer.latent())
    np.testing.assert_array_equal(output[:, full], latent[:, full])
    assert (np.array([len(np.unique(c)) for c in output[:, ~full].T]) <= 4).all()


def network():
    a, b = keras.Input((12, 12, 4)), keras.Input((12, 12, 4))
    shared = kl.Conv2D(16, 3, activation="relu", name="shared")
    x = kl.SeparableConv2D(16, 3, name="separable")(shared(a) + shared(b))
    x = kl.BatchNormalization()(x)
    return keras.Model([a, b], kl.Dense(3, name="top")(kl.Flatten()(x)))


def data():
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(32, 12, 12, 4)).astype("float32") for _ in range(2)]
    return x, generator.integers(0, 3, 32)


def compiled(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, **kwargs)
    return model


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_updates_once_a_step_also_of_shared_layers(jit_compile):
    model = keras_sq.quantize_model(network(), "lq-2", seed=0, overrides={})
    compiled(model, jit_compile=jit_compile)
    callback = keras_sq.callbacks.StochasticQuantization()
    history = model.fit(
        *data(), batch_size=8, epochs=5, verbose=0, callbacks=[callback]
    )
    assert history.history["loss"][-1] < history.history["loss"][0]
    for _, layer in keras_sq.layers.quantized_layers(model):
        for name in layer.quantized_weights:
            assert float(layer.__dict__[f"_{name}_updates"]) == 20


def test_steps_of_one_execution_each_update():
    model = keras_sq.quantize_model(network(), "lq-2", seed=0, overrides={})
    keras_sq.set_ratio(model, 1.0)
    compiled(model, steps_per_execution=2)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0)
    assert float(model.get_layer("top").__dict__["_kernel_updates"]) == 8


def test_quantize_model_fits_the_codebooks_to_the_trained_kernels():
    model = network()
    sq_model = keras_sq.quantize_model(model, "lq-3", overrides={})
    kernel = ops.convert_to_numpy(model.get_layer("top").kernel)
    (expected,) = LearnedQuantizer(3).fit(ops.array(kernel))
    np.testing.assert_allclose(
        sq_model.get_layer("top").codebook(), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_codebook_is_saved_and_restored(suffix, tmp_path):
    model = compiled(keras_sq.quantize_model(network(), "lq-2", seed=0, overrides={}))
    callback = keras_sq.callbacks.StochasticQuantization()
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[callback])
    path = tmp_path / f"m{suffix}"
    x, _ = data()
    if suffix == ".keras":
        model.save(path)
        loaded = keras.models.load_model(path)
    else:
        model.save_weights(path)
        loaded = keras_sq.quantize_model(network(), "lq-2", seed=1, overrides={})
        loaded.load_weights(path)
    for old, new in zip(model.variables, loaded.variables, strict=False):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


@pytest.mark.tensorflow
def test_replicas_agree_with_one_device():
    def train(scope):
        with scope:
            keras.utils.set_random_seed(0)
            x = keras.Input((20,))
            inner = kl.Dense(32, activation="relu", name="inner")(x)
            model = keras.Model(x, kl.Dense(3)(inner))
            model = keras_sq.quantize_model(model, "lq-2", seed=0, overrides={})
            keras_sq.set_ratio(model, 1.0)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(64, 20)).astype("float32")
        model.fit(
            inputs,
            generator.integers(0, 3, 64),
            batch_size=16,
            epochs=2,
            shuffle=False,
            verbose=0,
        )
        return [ops.convert_to_numpy(v) for v in model.weights]

    many = train(two_devices())
    one = train(contextlib.nullcontext())
    for left, right in zip(one, many, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_mixed_precision_keeps_the_codebook_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_sq.quantize_model(network(), "lq-2", seed=0, overrides={})
    compiled(model)
    callback = keras_sq.callbacks.StochasticQuantization()
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[callback])
    layer = model.get_layer("shared")
    assert layer.codebook().dtype == "float32"
    assert np.isfinite(ops.convert_to_numpy(layer.codebook())).all()


def test_kernel_that_is_not_finite_leaves_the_codebook():
    layer = trained_layer()
    before = ops.convert_to_numpy(layer.codebook())
    layer.latent().assign(ops.full((20, 6), np.nan))
    output = ops.convert_to_numpy(layer(np.ones((1, 20), "float32"), training=True))
    assert np.isnan(output).all()
    np.testing.assert_array_equal(layer.codebook(), before)
    assert float(layer.__dict__["_kernel_updates"]) == 0


def test_filters_with_fewer_weights_than_levels():
    layer = keras_sq.layers.SQDense(5, kernel_quantizer="lq-4")
    layer.build((None, 3))
    layer.fit_codebooks()
    quantized = ops.convert_to_numpy(layer.quantized_kernel())
    assert np.isfinite(quantized).all()
    np.testing.assert_allclose(quantized, layer.latent(), atol=0.2)


def test_collapsed_basis_stays_usable():
    layer = trained_layer(2)
    layer.codebook().assign(ops.ones((2, 6)))  # Levels -2, 0, 0, 2.
    x = np.eye(20, dtype="float32")
    for _ in range(3):
        layer(x, training=True)
    basis = ops.convert_to_numpy(layer.codebook())
    assert np.isfinite(basis).all()
    error = ops.mean((layer.latent() - layer.quantized_kernel()) ** 2)
    assert float(error) < float(ops.mean(layer.latent() ** 2))


# What comes after.


def test_codes_levels_and_stripped_kernel_agree():
    model = keras_sq.quantize_model(network(), "lq-2", seed=0, overrides={})
    plain = keras_sq.strip_quantization(model)
    for path, codes in keras_sq.get_codes(model).items():
        assert codes.codes.dtype == np.uint8
        assert codes.codes.max() <= 3
        assert len(codes.levels) == 4
        layer = model.get_layer(path.split("/")[0])
        expected = layer.quantized_kernel(path.split("/")[1])
        np.testing.assert_array_equal(codes.kernel, expected)
        np.testing.assert_array_equal(
            getattr(plain.get_layer(layer.name), path.split("/")[1]), codes.kernel
        )


@pytest.mark.tensorflow
@pytest.mark.parametrize("num_bits", [2, 3])
def test_export_holds_every_level(num_bits, tmp_path):
    x = keras.Input((12, 12, 16))
    y = kl.Conv2D(64, 3, use_bias=False, name="conv")(x)
    y = kl.ReLU()(kl.BatchNormalization()(y))
    model = keras.Model(x, kl.Dense(10, name="top")(kl.Flatten()(y)))
    model = keras_sq.quantize_model(model, f"lq-{num_bits}", overrides={})
    path = tmp_path / "m.tflite"
    report = keras_sq.export(model, path, target="small", allow_untrained=True)
    assert {kernel.path for kernel in report.kernels} == {"conv/kernel", "top/kernel"}
    for kernel in report.kernels:
        assert kernel.stored_as == "packed levels"
        assert kernel.levels == 2**num_bits
    assert report.largest_error < 2e-6
    examples = np.random.default_rng(0).normal(size=(20, 12, 12, 16))
    report = keras_sq.export(
        model,
        path,
        target="mcu",
        allow_untrained=True,
        representative_data=examples.astype("float32"),
    )
    assert report.bit_exact
    stored = {kernel.stored_as for kernel in report.kernels}
    assert stored == {f"{num_bits}-bit table"}
