"""Inputs that are quantized entry by entry: values, gradients, masks, files.

The oracle of the hybrid and its gradient is NumPy in plain loops, in float64:

    mask 1:   sign(x);                   gradient 0 (blocked), or a where |x| <= 1
    mask 0:   x or min(max(x, -1), 1);   gradient a, or a where |x| <= 1
"""

import keras
import layer_table
import numpy as np
import pytest
from backends import array as numpy
from backends import compiled, gradients, tensor
from keras import ops

import keras_sq
from keras_sq import activation_rules, layers
from keras_sq.layers import inputs, masks
from keras_sq.layers.inputs import MaskedPart, follow_rule
from keras_sq.layers.selection import Selection, SoftRefresh
from keras_sq.layers.settings import Settings

# Keras says so of any layer without a `build` that it loads.
pytestmark = pytest.mark.filterwarnings("ignore:`build..` was called on layer")

STOMPP = {
    "kernel_quantizer": "sign",
    "input_quantizer": "binary",
    "input_granularity": "element",
    "granularity": "element",
    "probability": "constant",
    "quantized_gradient": "blocked",
    "full_precision": "clip",
}


def values(shape, seed=0):
    """Activations on both sides of the clip, on it, and 0."""
    x = np.random.default_rng(seed).normal(size=shape).astype("float32") * 1.2
    x.reshape(-1)[:4] = [1.0, -1.0, 0.0, np.nextafter(np.float32(1), np.float32(2))]
    return x


def by_hand(x, mask, upstream, full_precision, quantized_gradient):
    out, gradient = np.zeros(x.shape), np.zeros(x.shape)
    mask = np.broadcast_to(mask, x.shape)
    for i in np.ndindex(x.shape):
        inside = abs(x[i]) <= 1
        if mask[i]:
            out[i] = 1.0 if x[i] >= 0 else -1.0
            blocked = quantized_gradient == "blocked"
            gradient[i] = upstream[i] if inside and not blocked else 0.0
        elif full_precision == "clip":
            out[i] = min(max(x[i], -1.0), 1.0)
            gradient[i] = upstream[i] if inside else 0.0
        else:
            out[i], gradient[i] = x[i], upstream[i]
    return out, gradient


# Values and gradients.


@pytest.mark.parametrize("how", ["eager", "xla"])
@pytest.mark.parametrize("full_precision", ["identity", "clip"])
@pytest.mark.parametrize(
    "quantized_gradient", ["blocked", "straight_through", "clipped_straight_through"]
)
def test_hybrid_by_hand(quantized_gradient, full_precision, how):
    x = values((6, 5, 3))
    upstream = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    mask = np.random.default_rng(2).random((5, 3)) < 0.5

    def function(x, mask):
        part = MaskedPart(mask, full_precision, quantized_gradient)
        rule = activation_rules.get("binary")

        def loss(x):
            y = follow_rule(rule, [], x, True, "layer", part)
            return ops.sum(y * upstream), y

        (_, y), (gradient,) = gradients(loss, x)
        return y, gradient

    found = compiled(function, how)(tensor(x), tensor(mask))
    expected = by_hand(x, mask, upstream, full_precision, quantized_gradient)
    np.testing.assert_array_equal(numpy(found[0]), expected[0].astype("float32"))
    np.testing.assert_array_equal(numpy(found[1]), expected[1].astype("float32"))


def hybrid_kernel(layer):
    """The kernel by hand, and where its gradient passes."""
    w, mask = numpy(layer.latent()), numpy(layer.mask())
    kernel = np.where(mask, np.where(w >= 0, 1.0, -1.0), np.clip(w, -1, 1))
    return kernel.astype("float32"), ~mask & (np.abs(w) <= 1)


def test_layer_by_hand_in_both_its_parts():
    # Dense: y = h(x) k(w); every gradient follows from these two.
    layer = layers.SQDense(4, use_bias=False, mask_seed=0, **STOMPP)
    layer.build((None, 7))
    layer.latent().assign(values((7, 4), 3))
    keras_sq.set_ratio(layer, 0.5)
    x, upstream = values((9, 7)), values((9, 4), 5)

    def loss(x):
        y = layer(x, training=True)
        return ops.sum(y * upstream), y

    (_, y), (of_x, of_w) = gradients(loss, x, variables=[layer.latent()])
    kernel, passes = hybrid_kernel(layer)
    mask = numpy(layer.mask("input"))
    assert mask.shape == (7,)
    assert mask.sum() == 4  # 7 - int(0.5 * 7)
    hybrid, _ = by_hand(x, mask, upstream @ kernel.T, "clip", "blocked")
    _, expected = by_hand(x, mask, upstream @ kernel.T, "clip", "blocked")
    np.testing.assert_allclose(numpy(y), hybrid @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(numpy(of_x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        numpy(of_w), np.where(passes, hybrid.T @ upstream, 0), rtol=1e-4, atol=1e-4
    )
    # Exactly 0 on what is frozen or beyond the clip, and not elsewhere.
    np.testing.assert_array_equal(numpy(of_w) != 0, passes)
    np.testing.assert_array_equal(
        numpy(of_x) != 0, np.broadcast_to(~mask, x.shape) & (np.abs(x) <= 1)
    )


@pytest.mark.parametrize("quantized_gradient", ["blocked", "straight_through"])
def test_a_trained_clip_learns_from_quantized_entries_only(quantized_gradient):
    rule = activation_rules.UniformRule(2, clip=1.5)
    layer = layers.SQDense(
        2,
        input_quantizer=rule,
        input_granularity="element",
        quantized_gradient=quantized_gradient,
        mask_seed=1,
    )
    layer.build((None, 6))
    layer.mask("input").assign([True, False, True, False, True, False])
    x = np.abs(values((8, 6))) * 2
    # Not in training: no mask.
    _, (of_x,) = gradients(lambda x: ops.sum(layer.quantize_input(x)), x)
    np.testing.assert_array_equal(numpy(of_x), (x < 1.5).astype("float32"))
    clip = layer.input_state()[0]
    part = MaskedPart(
        ops.convert_to_tensor(layer.mask("input")), "identity", quantized_gradient
    )

    def loss(x):
        y = follow_rule(rule, [clip], x, True, "layer", part)
        return ops.sum(y), y

    (_, y), (of_x, of_clip) = gradients(loss, x, variables=[clip])
    quantized = np.arange(6) % 2 == 0
    assert float(of_clip) == (x >= 1.5)[:, quantized].sum()
    own = (x < 1.5) & (quantized_gradient == "straight_through")
    np.testing.assert_array_equal(numpy(of_x), np.where(quantized, own, 1.0))
    np.testing.assert_array_equal(numpy(y)[:, ~quantized], x[:, ~quantized])


def test_a_learned_codebook_learns_as_if_all_were_quantized():
    made = []
    for granularity in ("all", "element"):
        layer = layers.SQDense(
            3, input_quantizer="lq-2", input_granularity=granularity, mask_seed=0
        )
        layer.build((None, 5))
        keras_sq.set_ratio(layer, 0.5)
        layer(np.abs(values((16, 5))), training=True)
        made.append(numpy(layer.input_state()[0]))
    np.testing.assert_array_equal(made[0], made[1])


def test_inference_quantizes_everything_unless_hybrid_is_asked_for():
    x = values((4, 6))
    outputs = {}
    for inference in ("quantized", "hybrid"):
        layer = layers.SQDense(
            3, use_bias=False, mask_seed=0, inference=inference, **STOMPP
        )
        keras.utils.set_random_seed(0)
        layer.build((None, 6))
        keras_sq.set_ratio(layer, 0.5)
        outputs[inference] = numpy(layer(x)), numpy(layer(x, training=True))
        w = numpy(layer.latent())
    signs = np.where(x >= 0, 1, -1) @ np.where(w >= 0, 1, -1)
    np.testing.assert_array_equal(outputs["quantized"][0], signs)
    np.testing.assert_array_equal(outputs["hybrid"][0], outputs["hybrid"][1])
    np.testing.assert_array_equal(outputs["quantized"][1], outputs["hybrid"][1])
    assert not np.array_equal(outputs["hybrid"][0], signs)


def sign_with_clipped_gradient(x):
    """Hard signs, written anew.

    The clipped `x`, whose gradient it is, plus what it lacks, as a constant.
    """
    inside = ops.where(ops.abs(x) <= 1, x, ops.stop_gradient(x))
    signs = ops.where(x >= 0, 1.0, -1.0)
    return inside + ops.stop_gradient(signs - inside)


def test_all_frozen_equals_the_network_with_hard_signs():
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(5, 3, name="one"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2D(4, 2, strides=2, name="two"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="three"),
        ]
    )
    settings = STOMPP | {"quantized_gradient": "straight_through"}
    sq_model = keras_sq.quantize_model(
        model,
        settings.pop("kernel_quantizer"),
        skip=(),
        **{"overrides": {}, **settings},
    )
    keras_sq.set_ratio(sq_model, 1.0)
    x = values((4, 6, 6, 3))
    weights = {path: part.latent() for path, part in parts_of(sq_model)}
    assert list(weights) == ["one", "two", "three"]
    signs = [np.where(numpy(w) >= 0, 1, -1) for w in weights.values()]
    for training in (False, True):

        def ours_of(x, training=training):
            y = sq_model(x, training=training)
            return ops.sum(y * y), y

        def theirs_of(x, one, two, three, training=training):
            y = ops.conv(sign_with_clipped_gradient(x), one, 1, "valid")
            y = model.get_layer("norm")(y, training=training)
            y = ops.conv(sign_with_clipped_gradient(y), two, 2, "valid")
            y = ops.reshape(y, (len(x), -1))
            y = ops.matmul(sign_with_clipped_gradient(y), three)
            return ops.sum(y * y), y

        (_, ours), found = gradients(ours_of, x, variables=list(weights.values()))
        (_, theirs), expected = gradients(
            theirs_of, x, *(sign.astype("float32") for sign in signs)
        )
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-5, atol=1e-5)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(numpy(one), numpy(two), rtol=1e-4, atol=1e-3)


def parts_of(model):
    return layers.quantized_layers(model)


# Every layer.

# Keras builds attention's output projection for sequences of any length.
ROWS = [
    row
    for row in layer_table.ROWS
    if not row.takes_indices and row.name != "MultiHeadAttention"
]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.note)


@every_row
def test_every_layer_has_a_mask_of_what_it_is_built_for(row):
    layer = row.layer(
        input_quantizer="binary", input_granularity="element", full_precision="clip"
    )
    x = row.data()
    row.call(layer, x)
    for part in row.parts(layer):
        assert part.mask_names == (*part.quantized_weights, "input")
        assert part.mask("input").shape == part.get_build_config()["input_shape"][1:]
        assert any(v is part.mask("input") for v in part.non_trainable_variables)
    keras_sq.set_ratio(layer, 0.5)
    for part in row.parts(layer):
        mask = numpy(part.mask("input"))
        assert mask.sum() == mask.size - mask.size // 2
    # At ratio 0 the inputs are clipped and nothing more, at ratio 1 all are signs.
    keras_sq.set_ratio(layer, 1.0)
    full = numpy(row.call(layer, x, training=True))
    np.testing.assert_allclose(numpy(row.call(layer, x)), full, rtol=1e-5, atol=1e-6)
    keras_sq.set_ratio(layer, 0.0)
    assert not np.allclose(numpy(row.call(layer, x, training=True)), full)


def test_attention_but_for_its_output_projection():
    x = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model(x, attention(x, x))
    settings = {"input_quantizer": "binary", "input_granularity": "element"}
    message = "Layer 'attention_output'.*overrides={'attention_output': {'input_gran"
    with pytest.raises(ValueError, match=message):
        keras_sq.quantize_model(model, "sign", skip=(), **{"overrides": {}, **settings})
    sq_model = keras_sq.quantize_model(
        model,
        "sign",
        skip=(),
        overrides={"attention_output": {"input_granularity": "all"}},
        **settings,
    )
    keras_sq.set_ratio(sq_model, 0.5)
    shapes = {
        part.name: tuple(part.mask("input").shape) if part.masks_input else None
        for _, part in parts_of(sq_model)
    }
    assert shapes == {
        "query": (4, 6),
        "key": (4, 6),
        "value": (4, 6),
        "attention_output": None,
    }
    assert sq_model(values((2, 4, 6)), training=True).shape == (2, 4, 6)


def test_ratio_zero_is_the_float_layer_of_clipped_inputs():
    layer = layers.SQConv2D(4, 3, mask_seed=0, **(STOMPP | {"full_precision": "clip"}))
    layer.build((None, 6, 5, 2))
    keras_sq.set_ratio(layer, 0.0)
    plain = keras.layers.Conv2D(4, 3)
    plain.build((None, 6, 5, 2))
    plain.set_weights([np.clip(numpy(layer.latent()), -1, 1), numpy(layer.bias)])
    x = values((3, 6, 5, 2))
    np.testing.assert_allclose(
        numpy(layer(x, training=True)), numpy(plain(np.clip(x, -1, 1))), rtol=1e-5
    )


def test_time_steps_share_the_mask_of_the_cell():
    layer = layers.SQLSTM(
        3, input_quantizer="binary", input_granularity="element", mask_seed=0
    )
    layer.build((None, 7, 4))
    cell = layer.cell
    cell.ratio_is_controlled = True
    cell.mask("input").assign([True, False, True, False])
    x = values((2, 7, 4))
    twin = keras.layers.LSTM(3)
    twin.build((None, 7, 4))
    kernels = [numpy(cell.quantized_kernel(name)) for name in cell.quantized_weights]
    twin.set_weights([*kernels, numpy(cell.bias)])
    hybrid = np.where([True, False, True, False], np.where(x >= 0, 1, -1), x)
    expected = numpy(twin(hybrid.astype("float32")))
    # Before the loop, all steps at once; and in the loop of a plain layer.
    for over in (layer, keras.layers.RNN(cell)):
        found = numpy(over(x, training=True))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Masks.


def test_masks_are_drawn_with_those_of_the_kernels():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SQConv2D(4, 3, mask_seed=1, **STOMPP),
            keras.layers.Flatten(),
            layers.SQDense(5, mask_seed=2, **(STOMPP | {"input_granularity": "all"})),
        ]
    )
    found = [layer for _, layer in parts_of(model)]
    assert [x.mask_names for x in found] == [("kernel", "input"), ("kernel",)]
    seen = set()
    for _ in range(3):
        masks.update_masks(found, ops.array(0.25), ops.array(True))
        mask = numpy(found[0].mask("input"))
        assert mask.shape == (8, 8, 3)
        assert mask.sum() == 48
        seen.add(mask.tobytes())
    assert len(seen) == 3
    masks.update_masks(found, ops.array(1.0), ops.array(False))
    assert numpy(found[0].mask("input")).all()
    masks.update_masks(found, ops.array(0.0), ops.array(True))
    assert not numpy(found[0].mask("input")).any()


def test_soft_refresh_of_the_input_mask():
    layer = layers.SQDense(3, selection=SoftRefresh(0.0), mask_seed=0, **STOMPP)
    layer.build((None, 200))
    before = np.zeros(200, bool)
    for ratio in (0.1, 0.4, 0.7):
        keras_sq.set_ratio(layer, ratio)
        mask = numpy(layer.mask("input"))
        assert mask.sum() == round(ratio * 200)
        assert (mask | ~before).all()
        before = mask


def test_not_finite_kernel_is_still_named():
    layer = layers.SQDense(3, name="bad", mask_seed=0, **STOMPP)
    layer.build((None, 4))
    layer.latent().assign(np.full((4, 3), np.nan))
    assert not numpy(masks.update_masks([layer], ops.array(0.5), ops.array(True)))
    with pytest.raises(ValueError, match="kernel of layer 'bad' holds NaN"):
        keras_sq.set_ratio(layer, 0.5)


# Files, precision.


def conv_model(**settings):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="dense"),
        ]
    )
    settings = STOMPP | {"selection": SoftRefresh(0.25)} | settings
    quantizer = settings.pop("kernel_quantizer")
    return keras_sq.quantize_model(
        model, quantizer, skip=(), seed=0, **{"overrides": {}, **settings}
    )


def test_files_restore_the_masks(tmp_path):
    model = conv_model()
    keras_sq.set_ratio(model, 0.5)
    x = values((4, 6, 6, 3))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    other = conv_model()
    other.load_weights(tmp_path / "model.weights.h5")
    for again in (loaded, other):
        for (_, one), (_, two) in zip(parts_of(model), parts_of(again), strict=True):
            assert one.quantization_settings == two.quantization_settings
            for name in one.mask_names:
                np.testing.assert_array_equal(
                    numpy(one.mask(name)), numpy(two.mask(name))
                )
            two.ratio_is_controlled = True
        np.testing.assert_array_equal(
            numpy(model(x, training=True)), numpy(again(x, training=True))
        )
    keras_sq.set_ratio(model, 0.75)
    keras_sq.set_ratio(loaded, 0.75)
    for (_, one), (_, two) in zip(parts_of(model), parts_of(loaded), strict=True):
        np.testing.assert_array_equal(
            numpy(one.mask("input")), numpy(two.mask("input"))
        )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    dtype = policy.removeprefix("mixed_")
    model = conv_model()
    keras_sq.set_ratio(model, 0.5)
    layer = model.get_layer("conv")
    x = ops.cast(values((4, 6, 6, 3)), dtype)

    def loss(x):
        y = model(x, training=True)
        return ops.sum(ops.cast(y, "float32")), y

    (_, y), (of_x, of_w) = gradients(loss, x, variables=[layer.latent()])
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert of_w.dtype == "float32"
    mask, passes = numpy(layer.mask("input")), hybrid_kernel(layer)[1]
    wide = numpy(ops.cast(x, "float32"))
    gradient = numpy(ops.cast(of_x, "float32"))
    assert not gradient[:, mask].any()
    assert not gradient[np.abs(wide) > 1].any()
    assert gradient.any()
    np.testing.assert_array_equal(numpy(of_w)[~passes], 0)
    assert numpy(of_w)[passes].any()


def test_training_trains_and_ends_with_signs():
    model = conv_model(quantized_gradient="straight_through")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6, 6, 3)).astype("float32")
    y = (x[:, :3, :3].mean((1, 2, 3)) > 0).astype("int32")
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(
        x,
        y,
        epochs=8,
        batch_size=16,
        verbose=0,
        callbacks=[keras_sq.callbacks.StochasticQuantization("cubic")],
    ).history
    assert np.isfinite(history["loss"]).all()
    assert all(numpy(p.mask("input")).all() for _, p in parts_of(model))
    part = model.get_layer("conv")
    assert set(np.unique(numpy(part.quantized_kernel()))) == {-1.0, 1.0}


def test_layers_alike_share_one_fused_function():
    rule = activation_rules.get("binary")
    one = inputs._hybrid_forward_function(rule, "clip", True)
    assert inputs._hybrid_forward_function(rule, "clip", True) is one
    x, mask = values((40, 50, 40)), np.arange(40) % 2 == 0
    out = one(tensor(x), tensor(mask))  # Fused, by its size.
    expected, _ = by_hand(x[:2], mask, x[:2], "clip", "blocked")
    np.testing.assert_array_equal(numpy(out)[:2], expected.astype("float32"))


# Bad input.


def test_unknown_feature_map_is_refused():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="dense"),
        ]
    )
    message = (
        r"Layer 'conv' has a mask for each entry of its input.*must be known.*"
        r"`keras\.Input` of fixed size.*Received: input shape \(None, None, None, 3\)"
    )
    settings = {"input_quantizer": "binary", "input_granularity": "element"}
    with pytest.raises(ValueError, match=message):
        keras_sq.quantize_model(model, "sign", skip=(), **{"overrides": {}, **settings})
    made = keras_sq.quantize_model(
        model,
        "sign",
        skip=(),
        overrides={"conv": {"input_granularity": "all"}},
        **settings,
    )
    assert made.get_layer("dense").mask("input").shape == (4,)
    with pytest.raises(ValueError, match="Layer 'direct' has a mask for each entry"):
        layers.SQConv1D(2, 3, name="direct", **STOMPP).build((None, None, 3))


def test_inputs_of_another_shape_are_refused():
    layer = layers.SQConv2D(2, 3, name="conv", mask_seed=0, **STOMPP)
    layer.build((None, 6, 6, 1))
    keras_sq.set_ratio(layer, 0.5)
    message = (
        r"Layer 'conv' has a mask for inputs of shape \(6, 6, 1\).*"
        r"Received: input shape \(2, 5, 6, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        layer(np.ones((2, 5, 6, 1), "float32"), training=True)
    assert layer(np.ones((2, 5, 6, 1), "float32")).shape == (2, 3, 4, 2)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="`input_granularity` must be one of 'all'"):
        Settings(input_granularity="filter")
    message = r"needs a way of selecting that looks at no errors.*'deterministic'"
    with pytest.raises(ValueError, match=message):
        Settings(
            input_quantizer="binary",
            input_granularity="element",
            selection="deterministic",
        )
    with pytest.raises(ValueError, match="`full_precision` must be one of 'identity'"):
        Settings(full_precision="relu")


def test_settings_know_how_inputs_are_selected():
    settings = Settings(**(STOMPP | {"selection": SoftRefresh(0.5)}))
    assert settings.masks_input
    assert settings.input_selection == Selection(
        "element", "constant", SoftRefresh(0.5), "paper"
    )
    assert not settings.input_selection.needs_errors
    # Without an input quantizer there is nothing to mask.
    assert not Settings(input_granularity="element").masks_input
    assert Settings(**settings.get_config()) == settings
