"""The masks of whole models: redrawing them, the ratio by hand, bad kernels."""

import keras
import numpy as np
import pytest
from backends import array
from keras import ops

import keras_sq
from keras_sq import layers
from keras_sq.core import backend
from keras_sq.layers import masks


def small_model(**settings):
    """A model with kernels of several kinds, built and quantized."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.SQConv2D(8, 3, name="conv", **settings),
            layers.SQSeparableConv2D(7, 2, name="separable", **settings),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(name="flat"),
            layers.SQDense(5, name="dense", **settings),
        ],
        name="small",
    )


def quantized(model):
    return [layer for _, layer in layers.quantized_layers(model)]


def all_masks(model):
    return [
        layer.mask(name).numpy().copy()
        for layer in quantized(model)
        for name in layer.quantized_weights
    ]


def all_seeds(model):
    return [layer.mask_seed_generator.state.numpy() for layer in quantized(model)]


def counts(model):
    return [int(mask.sum()) for mask in all_masks(model)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def update(model, ratio, due):
    return array(
        masks.update_masks(
            quantized(model), ops.convert_to_tensor(ratio, "float32"), ops.array(due)
        )
    )


# set_ratio and get_ratio.


def test_masks_start_at_one():
    model = small_model()
    assert keras_sq.get_ratio(model) == 1.0
    # The depthwise kernel of 8 channels has 8 filters.
    assert counts(model) == [8, 8, 7, 5]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0, [0, 0, 0, 0]),
        (0.5, [4, 4, 4, 3]),
        (0.75, [6, 6, 6, 4]),
        (0.9, [8, 8, 7, 5]),
        (np.float32(0.25), [2, 2, 2, 2]),
        (1, [8, 8, 7, 5]),
    ],
)
def test_set_ratio(ratio, expected):
    model = small_model()
    keras_sq.set_ratio(model, ratio)
    assert keras_sq.get_ratio(model) == pytest.approx(float(ratio))
    assert counts(model) == expected
    assert all(layer.ratio_is_controlled for layer in quantized(model))


def test_set_ratio_does_not_touch_kernels():
    model = small_model()
    before = [w.numpy() for w in model.trainable_variables]
    keras_sq.set_ratio(model, 0.5)
    assert same(before, [w.numpy() for w in model.trainable_variables])


def test_set_ratio_elementwise_counts():
    model = small_model(granularity="element")
    keras_sq.set_ratio(model, 0.5)
    sizes = [
        layer.latent(name).numpy().size
        for layer in quantized(model)
        for name in layer.quantized_weights
    ]
    assert counts(model) == [size - size // 2 for size in sizes]
    for layer in quantized(model):
        for name in layer.quantized_weights:
            assert layer.mask(name).shape == layer.latent(name).shape


def test_set_ratio_draws_again():
    model = small_model()
    keras_sq.set_ratio(model, 0.5)
    drawn = set()
    for _ in range(5):
        keras_sq.set_ratio(model, 0.5)
        drawn.add(np.concatenate([m.reshape(-1) for m in all_masks(model)]).tobytes())
    assert len(drawn) > 1


def test_set_ratio_is_reproducible():
    first, second = small_model(mask_seed=3), small_model(mask_seed=3)
    for ratio in (0.5, 0.25):
        keras_sq.set_ratio(first, ratio)
        keras_sq.set_ratio(second, ratio)
        assert same(all_masks(first), all_masks(second))


def test_set_ratio_deterministic_takes_the_lowest_errors():
    model = small_model(selection="deterministic")
    keras_sq.set_ratio(model, 0.5)
    for layer in quantized(model):
        for name in layer.quantized_weights:
            errors = array(layer.quantization_errors(name)).reshape(-1)
            mask = layer.mask(name).numpy().reshape(-1)
            assert errors[mask].max() <= errors[~mask].min()


def test_set_ratio_of_one_layer():
    layer = layers.SQDense(6)
    layer.build((None, 4))
    keras_sq.set_ratio(layer, 0.5)
    assert keras_sq.get_ratio(layer) == 0.5
    assert int(layer.mask().numpy().sum()) == 3


def test_set_ratio_of_a_nested_model():
    inner = small_model()
    model = keras.Sequential([keras.Input((6, 6, 3)), inner, layers.SQDense(4)])
    keras_sq.set_ratio(model, 0.5)
    assert counts(model)[-1] == 2
    assert counts(inner) == [4, 4, 4, 3]


def test_get_ratio_is_the_least():
    model = small_model()
    keras_sq.set_ratio(model.get_layer("conv"), 0.25)
    keras_sq.set_ratio(model.get_layer("dense"), 0.5)
    assert keras_sq.get_ratio(model) == 0.25


# Bad input.


@pytest.mark.parametrize("ratio", [1.2, -0.1, float("nan")])
def test_set_ratio_out_of_range(ratio):
    model = small_model()
    with pytest.raises(ValueError, match=r"`ratio` must be in \[0, 1\]\. Received"):
        keras_sq.set_ratio(model, ratio)
    assert keras_sq.get_ratio(model) == 1.0


@pytest.mark.parametrize("ratio", ["0.5", None, True])
def test_set_ratio_no_number(ratio):
    with pytest.raises(TypeError, match="Argument `ratio` must be a number"):
        keras_sq.set_ratio(small_model(), ratio)


def test_nothing_quantized():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)], name="plain")
    message = r"'plain' has no quantized layer\. Make it.*quantize_model\(model\)"
    with pytest.raises(ValueError, match=message):
        keras_sq.set_ratio(model, 0.5)
    with pytest.raises(ValueError, match=message):
        keras_sq.get_ratio(model)


def test_not_built():
    model = keras.Sequential([layers.SQDense(2, name="first")])
    for function in (keras_sq.get_ratio, lambda m: keras_sq.set_ratio(m, 0.5)):
        with pytest.raises(ValueError, match="Layer 'first' is not built"):
            function(model)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["conv", "separable", "dense"])
def test_set_ratio_not_finite_kernel_changes_nothing(name, bad):
    model = small_model()
    keras_sq.set_ratio(model, 0.5)
    before, seeds = all_masks(model), all_seeds(model)
    layer = model.get_layer(name)
    variable = layer.latent(layer.quantized_weights[-1])
    kernel = variable.numpy().copy()
    kernel.reshape(-1)[-1] = bad
    variable.assign(kernel)
    with pytest.raises(ValueError, match=f"kernel of layer '{name}' holds NaN or inf"):
        keras_sq.set_ratio(model, 0.75)
    assert same(before, all_masks(model))
    assert same(seeds, all_seeds(model))
    assert keras_sq.get_ratio(model) == 0.5


def test_not_finite_kernels_are_all_named():
    model = small_model()
    for name in ("conv", "dense"):
        variable = model.get_layer(name).latent()
        variable.assign(variable.numpy() * np.nan)
    with pytest.raises(ValueError, match="layer 'conv', 'dense' holds NaN"):
        keras_sq.set_ratio(model, 0.5)


def test_kernel_whose_norm_overflows_is_named():
    # Finite weights, but no finite error to draw with.
    model = small_model()
    variable = model.get_layer("dense").latent()
    variable.assign(np.full(variable.shape, 3e38, "float32"))
    before = all_masks(model)
    with pytest.raises(ValueError, match="layer 'dense' holds NaN or infinite"):
        keras_sq.set_ratio(model, 0.5)
    assert same(before[-1:], all_masks(model)[-1:])


# update_masks.


def test_update_due_draws():
    model = small_model()
    assert update(model, 0.5, True).tolist() == [True] * 3
    assert counts(model) == [4, 4, 4, 3]
    assert keras_sq.get_ratio(model) == 0.5


def test_update_not_due_keeps_masks_and_random_state():
    model = small_model()
    update(model, 0.5, True)
    before, seeds = all_masks(model), all_seeds(model)
    assert update(model, 0.75, False).all()
    assert same(before, all_masks(model))
    assert same(seeds, all_seeds(model))
    assert keras_sq.get_ratio(model) == 0.75


@pytest.mark.parametrize("due", [False, True])
def test_update_full_quantizes_all_without_a_draw(due):
    model = small_model()
    update(model, 0.0, True)
    assert counts(model) == [0, 0, 0, 0]
    seeds = all_seeds(model)
    update(model, 1.0, due)
    assert counts(model) == [8, 8, 7, 5]
    assert same(seeds, all_seeds(model))
    assert keras_sq.get_ratio(model) == 1.0


def test_update_leaves_the_layer_that_is_not_finite():
    model = small_model()
    layer = model.get_layer("separable")
    kernel = layer.latent("pointwise_kernel").numpy().copy()
    kernel[0, 0, 0, 3] = np.nan
    layer.latent("pointwise_kernel").assign(kernel)
    assert update(model, 0.5, True).tolist() == [True, False, True]
    assert counts(model) == [4, 4, 7, 3]


def test_update_of_all_layers_is_one_trace():
    model = small_model()
    traces = []

    def function(ratio, due):
        traces.append(1)
        return masks.update_masks(quantized(model), ratio, due)

    call = backend.compiled(function, masks.variables_of(quantized(model)))
    seen = set()
    for ratio, due in [
        (0.25, True),
        (0.5, True),
        (0.5, False),
        (0.5, True),
        (1.0, True),
    ]:
        flags = call(ops.convert_to_tensor(ratio, "float32"), ops.array(due))
        assert array(flags).tolist() == [True] * 3
        assert keras_sq.get_ratio(model) == ratio
        seen.add(np.concatenate([m.reshape(-1) for m in all_masks(model)]).tobytes())
    assert len(traces) == 1
    assert len(seen) == 4
    assert counts(model) == [8, 8, 7, 5]


def test_update_compiled_equals_eager():
    eager, graph = small_model(mask_seed=9), small_model(mask_seed=9)
    call = backend.compiled(
        lambda ratio: masks.update_masks(quantized(graph), ratio, ops.array(True)),
        masks.variables_of(quantized(graph)),
    )
    for ratio in (0.5, 0.25, 0.75):
        update(eager, ratio, True)
        call(ops.convert_to_tensor(ratio, "float32"))
        assert same(all_masks(eager), all_masks(graph))


def test_update_mixed_ways_of_selecting():
    model = keras.Sequential(
        [
            keras.Input((9,)),
            layers.SQDense(12, probability="softmax"),
            layers.SQDense(4, draw="released"),
            layers.SQDense(300, granularity="element", probability="constant"),
            layers.SQDense(10, selection="fixed", kernel_quantizer="binary"),
            layers.SQDense(3, selection="deterministic", kernel_quantizer="uniform-4"),
        ]
    )
    assert update(model, 0.5, True).all()
    assert counts(model) == [6, 2, 600, 5, 2]
    assert all_masks(model)[2].shape == (4, 300)
    before = all_masks(model)
    assert update(model, 0.5, True).all()
    after = all_masks(model)
    assert same(before[3:], after[3:])
    assert not same(before[:3], after[:3])


def test_nan_is_seen_where_the_draw_needs_no_errors():
    layer = layers.SQDense(4, probability="constant")
    layer.build((None, 3))
    assert update(layer, 0.5, True).all()
    before = layer.mask().numpy()
    layer.latent().assign(np.full((3, 4), np.nan))
    assert not update(layer, 0.5, True).any()
    np.testing.assert_array_equal(layer.mask().numpy(), before)
    assert not array(masks.finite_kernels([layer])).any()
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        keras_sq.set_ratio(layer, 0.5)


# The checks.


def test_finite_kernels_per_layer():
    model = small_model()
    assert array(masks.finite_kernels(quantized(model))).tolist() == [True] * 3
    variable = model.get_layer("separable").latent("depthwise_kernel")
    variable.assign(variable.numpy() * np.inf)
    flags = array(masks.finite_kernels(quantized(model)))
    assert flags.tolist() == [True, False, True]


def test_require_finite_says_what_to_do():
    masks.require_finite(["a", "b"], ops.array([True, True]))
    with pytest.raises(
        ValueError, match=r"layer 'b' holds.*no mask was drawn.*clipnorm"
    ):
        masks.require_finite(["a", "b"], ops.array([True, False]))
