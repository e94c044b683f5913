"""The hybrid kernel and its gradient: the split update of the SQ paper.

    hybrid = where(mask, Q(latent), full_precision(latent))

The full-precision part (mask 0) receives its own gradient:

| `full_precision` | what it computes with | its gradient |
|---|---|---|
| `"identity"` | `w` (SQ) | the hybrid kernel's, unchanged |
| `"clip"` | `min(max(w, -1), 1)` (StoMPP) | the same where `|w| <= 1`, else 0 |

For the quantized part (mask 1), whose derivative is zero almost everywhere, one of
three rules holds, by name:

| `quantized_gradient` | gradient of a quantized weight |
|---|---|
| `"straight_through"` | the hybrid kernel's, unchanged (SQ, section 3.3) |
| `"clipped_straight_through"` | the same where `|w| <= 1`, else 0 (BinaryConnect) |
| `"blocked"` | 0 (StoMPP) |

No gradient reaches scales, thresholds or the mask. With `"straight_through"` and
`"identity"` both parts receive the hybrid kernel's gradient as it is, so that the
backward pass of a layer costs exactly what the float layer's does.

`with_gradient` is the same means for other functions: quantized activations.

References:
    - [Dong et al., 2017, section 3.3](https://arxiv.org/abs/1708.01001)
    - [Smith & Islam, 2026](https://arxiv.org/abs/2601.22660) (StoMPP)
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Tensor

CLIP = 1.0
"""Beyond ±CLIP the clip is flat, and clipped straight-through gives nothing."""


def _everywhere(latent: Tensor) -> Tensor:
    return True


def _within_clip(latent: Tensor) -> Tensor:
    return ops.abs(latent) <= CLIP


def _nowhere(latent: Tensor) -> Tensor:
    return False


_Passes = Callable[[Tensor], Tensor]

QUANTIZED_GRADIENTS: dict[str, _Passes] = {
    "straight_through": _everywhere,
    "clipped_straight_through": _within_clip,
    "blocked": _nowhere,
}
"""Name -> where the gradient passes through the quantized part."""

FULL_PRECISION: dict[str, _Passes] = {"identity": _everywhere, "clip": _within_clip}
"""Name -> where the gradient passes through the full-precision part."""


def split_update(
    latent: Tensor,
    mask: Tensor,
    forward: Callable[..., Tensor],
    quantized_gradient: str = "straight_through",
    full_precision: str = "identity",
    state: Sequence[Tensor] = (),
) -> Tensor:
    """Returns the hybrid kernel, with the gradient of the split update.

    Forward:  `forward(latent, mask, *state)`, meant as
    `where(mask, Q(latent), full_precision_part(latent, full_precision))`.
    Backward: see the tables in this module's docstring.

    Args:
        latent: Float tensor, the latent kernel.
        mask: Bool tensor that broadcasts to `latent`: True = quantized.
        forward: Computes the hybrid kernel, in any float dtype.
        quantized_gradient: One of the names in the second table.
        full_precision: One of the names in the first.
        state: Further tensors that `forward` takes; no gradient reaches them.

    Returns:
        What `forward` returns; its gradient arrives at `latent`, in the
        dtype of `latent`.

    Raises:
        ValueError: If a name is not known, or the backend is not supported.

    Example:
        >>> w = keras.ops.array([-0.5, 2.0, 0.25])
        >>> mask = keras.ops.array([True, True, False])
        >>> sign = lambda w, m: keras.ops.where(m, keras.ops.sign(w), w)
        >>> split_update(w, mask, sign).numpy().tolist()
        [-1.0, 1.0, 0.25]
    """
    checks.one_of("quantized_gradient", quantized_gradient, QUANTIZED_GRADIENTS)
    checks.one_of("full_precision", full_precision, FULL_PRECISION)

    def backward(
        upstream: Tensor, latent: Tensor, mask: Tensor, *state: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient = latent_gradient(
            upstream, latent, mask, quantized_gradient, full_precision
        )
        return gradient, None, *(None for _ in state)

    return with_gradient([latent, mask, *state], forward, backward)


def full_precision_part(value: Tensor, full_precision: str) -> Tensor:
    """Returns what is computed with where the mask is 0.

    Args:
        value: Float tensor: a latent kernel, or activations.
        full_precision: One of `FULL_PRECISION`.
    """
    return value if full_precision == "identity" else ops.clip(value, -CLIP, CLIP)


def latent_gradient(
    upstream: Tensor,
    latent: Tensor,
    mask: Tensor,
    quantized_gradient: str,
    full_precision: str = "identity",
) -> Tensor:
    """Returns the latent kernel's gradient from the hybrid kernel's.

    Args:
        upstream: Gradient of the loss in the hybrid kernel.
        latent: The latent kernel.
        mask: Bool, broadcasts to `latent`: True = quantized.
        quantized_gradient: One of `QUANTIZED_GRADIENTS`.
        full_precision: One of `FULL_PRECISION`.

    Returns:
        Tensor with the shape and dtype of `latent`.
    """
    gradient = ops.cast(upstream, latent.dtype)
    quantized = QUANTIZED_GRADIENTS[quantized_gradient]
    rest = FULL_PRECISION[full_precision]
    if quantized is rest is _everywhere:
        return gradient
    passes = quantized(latent)
    if quantized is not rest:
        passes = ops.where(mask, passes, rest(latent))
    return ops.where(passes, gradient, ops.zeros((), latent.dtype))


def with_gradient(
    inputs: Sequence[Tensor],
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Tensor:
    """Returns `forward(*inputs)` with another gradient.

    Args:
        inputs: Tensors, no variables.
        forward: A function of tensors; its own gradient is not used.
        backward: `backward(upstream, *inputs)` returns a gradient, or `None`, for
            each input.

    Raises:
        ValueError: If the backend is not supported.

    Example:
        >>> x = keras.ops.array([0.4, 1.6])
        >>> with_gradient([x], keras.ops.round, lambda up, x: (up,)).numpy().tolist()
        [0.0, 2.0]
    """
    backend = keras.backend.backend()
    if backend not in _WITH_GRADIENT:
        raise ValueError(
            "Training stochastically quantized layers is implemented for the "
            "TensorFlow and JAX backends of Keras. Received: "
            f"keras.backend.backend()={backend!r}. Set the environment variable "
            "KERAS_BACKEND to 'tensorflow' or 'jax' before Keras is imported."
        )
    return _WITH_GRADIENT[backend](inputs, forward, backward)


def _by_tensorflow(
    inputs: Sequence[Tensor],
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Tensor:
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def computed(
        *inputs: Tensor,
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor | None, ...]]]:
        return forward(*inputs), lambda upstream: backward(upstream, *inputs)

    return computed(*(tf.convert_to_tensor(x) for x in inputs))


def _by_jax(
    inputs: Sequence[Tensor],
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Tensor:
    import jax

    # By a function that takes tensors only: JAX would also trace what `forward` has
    # defaults for.
    computed = jax.custom_vjp(lambda *inputs: forward(*inputs))
    computed.defvjp(
        lambda *inputs: (forward(*inputs), inputs),
        lambda inputs, upstream: backward(upstream, *inputs),
    )
    return computed(*(ops.convert_to_tensor(x) for x in inputs))


_WITH_GRADIENT = {"tensorflow": _by_tensorflow, "jax": _by_jax}
