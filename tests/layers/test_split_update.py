"""The split update's gradients, against formulas derived by hand.

The loss is `L(h) = Σ a·h + ½ Σ b·h²` of the hybrid kernel h, so that
`∂L/∂h = a + b·h` depends on h: a gradient taken at the latent kernel instead of
the hybrid one shows. With q = Q(w) the gradient in the latent weight w is

    mask 0, identity:                   a + b·w
    mask 0, clip, c = clip(w):          a + b·c where |w| <= 1, else 0
    mask 1, straight_through:           a + b·q
    mask 1, clipped_straight_through:   a + b·q where |w| <= 1, else 0
    mask 1, blocked:                    0
"""

import functools

import keras
import numpy as np
import pytest
from backends import COMPILERS, WAYS, array, compiled, gradients
from keras import ops

from keras_sq.layers.split_update import (
    FULL_PRECISION,
    QUANTIZED_GRADIENTS,
    full_precision_part,
    latent_gradient,
    split_update,
)

# Inside, on and beyond the clip; every value and its square exact in float16.
LATENT = np.array(
    [
        [-2.0, -1.0, -0.5, 0.0],
        [0.25, 1.0, 1.5, -0.75],
        [-1.0009765625, 1.0009765625, 0.125, 3.0],
    ]
)
A = np.array([[1.0, -2.0, 0.5, 4.0], [-1.0, 0.25, 2.0, 8.0], [0.0, 1.0, -4.0, 2.0]])
B = np.array([[0.5, 1.0, -2.0, 1.0], [2.0, -1.0, 0.0, 0.5], [1.0, 1.0, 4.0, -0.5]])
SCALE = 0.5

MASKS = {
    "full": np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]], bool),
    "filters": np.array([[True, False, True, False]]),
    "filters, one axis": np.array([False, True, True, False]),
    "rows": np.array([[True], [False], [True]]),
    "scalar true": np.array(True),
    "scalar false": np.array(False),
}


def quantize(kernel):
    return ops.where(
        kernel >= 0, ops.cast(SCALE, kernel.dtype), ops.cast(-SCALE, kernel.dtype)
    )


def forward(latent, mask, full_precision="identity"):
    rest = full_precision_part(latent, full_precision)
    return ops.where(mask, quantize(latent), rest)


def by_hand(latent, mask, mode, a=A, b=B, full_precision="identity"):
    """The hybrid kernel and the latent kernel's gradient, weight by weight."""
    mask = np.broadcast_to(mask, latent.shape)
    hybrid, gradient = np.zeros(latent.shape), np.zeros(latent.shape)
    for i in np.ndindex(latent.shape):
        w = latent[i]
        q = SCALE if w >= 0 else -SCALE
        c = w if full_precision == "identity" else min(max(w, -1.0), 1.0)
        hybrid[i] = q if mask[i] else c
        if not mask[i]:
            gradient[i] = a[i] + b[i] * c if c == w else 0.0
        elif mode == "straight_through":
            gradient[i] = a[i] + b[i] * q
        elif mode == "clipped_straight_through":
            gradient[i] = (a[i] + b[i] * q) if abs(w) <= 1 else 0.0
    return hybrid, gradient


def loss_and_gradient(latent, mask, mode, forward=forward, full_precision="identity"):
    if full_precision != "identity":
        forward = functools.partial(forward, full_precision=full_precision)

    def loss(latent):
        hybrid = split_update(latent, mask, forward, mode, full_precision)
        a, b = ops.cast(A, hybrid.dtype), ops.cast(B, hybrid.dtype)
        return ops.sum(a * hybrid + 0.5 * b * hybrid * hybrid), hybrid

    (_, hybrid), (gradient,) = gradients(loss, latent)
    return hybrid, gradient


@pytest.mark.parametrize(
    ("how", "name"),
    # XLA takes its time to compile.
    [
        (how, name)
        for how in WAYS
        for name in (("full", "filters") if how == "xla" else MASKS)
    ],
)
@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
@pytest.mark.parametrize("full_precision", FULL_PRECISION)
def test_gradient_by_hand(full_precision, mode, how, name):
    mask = MASKS[name]

    def function(latent, mask):
        return loss_and_gradient(latent, mask, mode, full_precision=full_precision)

    function = compiled(function, how)
    hybrid, gradient = function(ops.array(LATENT, "float32"), ops.array(mask))
    expected_hybrid, expected = by_hand(
        LATENT, mask, mode, full_precision=full_precision
    )
    np.testing.assert_array_equal(hybrid, expected_hybrid)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("how", COMPILERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
def test_gradient_half_precision_latent(mode, dtype, how):
    function = compiled(lambda w, m: loss_and_gradient(w, m, mode), how)
    latent = ops.cast(LATENT, dtype)
    hybrid, gradient = function(latent, ops.array(MASKS["full"]))
    assert keras.backend.standardize_dtype(hybrid.dtype) == dtype
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    rounded = ops.convert_to_numpy(ops.cast(latent, "float32")).astype("float64")
    _, expected = by_hand(rounded, MASKS["full"], mode)
    tolerance = 2**-10 if dtype == "float16" else 2**-7
    np.testing.assert_allclose(
        ops.cast(gradient, "float32"), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
def test_gradient_mixed_precision_arrives_in_float32(mode, dtype):
    def low(latent, mask):
        return ops.cast(forward(latent, mask), dtype)

    latent = ops.array(LATENT, "float32")
    hybrid, gradient = loss_and_gradient(latent, ops.array(MASKS["full"]), mode, low)
    assert keras.backend.standardize_dtype(hybrid.dtype) == dtype
    assert gradient.dtype == "float32"
    _, expected = by_hand(LATENT, MASKS["full"], mode)
    tolerance = 2**-9 if dtype == "float16" else 2**-6
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance)


def test_clip_looks_at_the_latent_kernel_in_its_own_precision():
    # 1.0009765625 is 1 in bfloat16, in which the layer computes: still clipped.
    def low(latent, mask):
        return ops.cast(forward(latent, mask), "bfloat16")

    mode = "clipped_straight_through"
    latent = ops.array(LATENT, "float32")
    _, gradient = loss_and_gradient(latent, ops.array(True), mode, low)
    assert array(gradient)[2, :2].tolist() == [0.0, 0.0]
    assert (array(gradient)[[0, 1], 1] != 0.0).all()  # Exactly on the clip.


@pytest.mark.parametrize("how", COMPILERS)
@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
def test_gradient_second_use_inside_a_function(mode, how):
    first, second = MASKS["full"], MASKS["filters"]
    traces = []

    def loss(latent):
        traces.append(1)
        one = split_update(latent, ops.array(first), forward, mode)
        two = split_update(latent, ops.array(second), forward, mode)
        return ops.sum(A.astype("float32") * one) + ops.sum(
            0.5 * B.astype("float32") * two * two
        )

    step = compiled(lambda latent: gradients(loss, latent)[1][0], how)
    zero = np.zeros_like(A)
    for latent in (LATENT, -LATENT, LATENT):  # The trace is used again, too.
        expected = (
            by_hand(latent, first, mode, b=zero)[1]
            + by_hand(latent, second, mode, a=zero)[1]
        )
        np.testing.assert_array_equal(step(ops.array(latent, "float32")), expected)
    assert len(traces) == 1


@pytest.mark.tensorflow
@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
def test_gradient_persistent_tape(mode):
    import tensorflow as tf

    latent = ops.array(LATENT, "float32")
    mask = MASKS["full"]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(latent)
        hybrid = split_update(latent, ops.array(mask), forward, mode)
        linear = ops.sum(A.astype("float32") * hybrid)
        square = ops.sum(0.5 * B.astype("float32") * hybrid * hybrid)
    zero = np.zeros_like(A)
    for _ in range(2):
        np.testing.assert_array_equal(
            tape.gradient(linear, latent), by_hand(LATENT, mask, mode, b=zero)[1]
        )
        np.testing.assert_array_equal(
            tape.gradient(square, latent), by_hand(LATENT, mask, mode, a=zero)[1]
        )


@pytest.mark.parametrize("mode", QUANTIZED_GRADIENTS)
def test_gradient_through_a_matrix_product(mode):
    # L = ½‖x h‖², ∂L/∂h = xᵀ x h, then the table.
    x = np.random.default_rng(0).normal(size=(5, 3))
    variable = keras.Variable(LATENT.astype("float32"))
    mask = MASKS["rows"]

    def loss():
        hybrid = split_update(variable, ops.array(mask), forward, mode)
        y = ops.matmul(x.astype("float32"), hybrid)
        return 0.5 * ops.sum(y * y)

    step = compiled(lambda: gradients(loss, variables=[variable])[1][0])
    hybrid, _ = by_hand(LATENT, mask, mode)
    upstream = x.T @ x @ hybrid
    quantized = np.broadcast_to(mask, LATENT.shape)
    passes = {
        "straight_through": np.ones_like(quantized),
        "clipped_straight_through": ~quantized | (np.abs(LATENT) <= 1),
        "blocked": ~quantized,
    }[mode]
    np.testing.assert_allclose(step(), upstream * passes, rtol=1e-4, atol=1e-6)


def test_no_gradient_through_the_scale():
    # Q(w) = mean|w|·sign(w): with a gradient through the scale all weights of a
    # filter would get a share of each.
    def scaled(latent, mask):
        scale = ops.mean(ops.abs(latent), axis=0)
        return ops.where(mask, scale * ops.sign(latent), latent)

    def loss(latent):
        return ops.sum(split_update(latent, ops.array(True), scaled)[0, 0])

    _, (gradient,) = gradients(loss, ops.array(LATENT, "float32"))
    expected = np.zeros(LATENT.shape)
    expected[0, 0] = 1.0
    np.testing.assert_array_equal(gradient, expected)


def test_mask_gets_no_gradient():
    latent, mask = ops.array(LATENT, "float32"), ops.array(MASKS["full"])
    _, (gradient, none) = gradients(
        lambda w, m: ops.sum(split_update(w, m, forward)), latent, mask
    )
    assert gradient is not None
    assert none is None


def test_default_is_straight_through():
    latent, mask = ops.array(LATENT, "float32"), ops.array(True)
    _, (gradient,) = gradients(
        lambda w: ops.sum(split_update(w, mask, forward)), latent
    )
    np.testing.assert_array_equal(gradient, np.ones_like(LATENT))


def test_infinite_upstream_gradient_of_a_blocked_weight_is_zero():
    upstream = ops.array([float("inf"), float("nan"), 1.0])
    gradient = latent_gradient(
        upstream, ops.zeros((3,)), ops.array([True, True, False]), "blocked"
    )
    assert array(gradient).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["straight-through", "ste", "", None, 1])
def test_unknown_name(name):
    message = (
        "Argument `quantized_gradient` must be one of 'straight_through', "
        "'clipped_straight_through', 'blocked'"
    )
    with pytest.raises(ValueError, match=message):
        split_update(ops.ones((2,)), ops.array(True), forward, name)


@pytest.mark.parametrize("name", ["clipped", "", None, 1.0])
def test_unknown_full_precision(name):
    message = "Argument `full_precision` must be one of 'identity', 'clip'"
    with pytest.raises(ValueError, match=message):
        split_update(ops.ones((2,)), ops.array(True), forward, full_precision=name)


def test_other_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"TensorFlow and JAX backends.*'torch'"):
        split_update(np.ones(2), np.array(True), forward)
