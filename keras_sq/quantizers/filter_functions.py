"""The mathematics of quantization, as pure functions of tensors.

Here live: sums over filters, scales, thresholds, codes and the quantization
error of a kernel. Everything takes a kernel whose **last axis is the filter
axis**, `(..., filters)`; the layers bring theirs into that form. Nothing here
has state, draws random numbers or defines a gradient.

Sums run in float32 whatever the kernel's dtype: a float16 sum of absolute
values loses a filter of a few thousand weights.

References:
    - [Dong et al., 2017, section 3](https://arxiv.org/abs/1708.01001)
    - [Rastegari et al., 2016](https://arxiv.org/abs/1603.05279) (binary)
    - [Li et al., 2016](https://arxiv.org/abs/1605.04711) (ternary)
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_sq.core import compilation
from keras_sq.core.types import Tensor

BLOCKWISE_MIN_SIZE = 2**16
"""Below this many weights a kernel fits the processor's cache as it is."""

BLOCK_SIZE = 2**14
"""Weights a block: 64 KiB of float32."""

BLOCK_WIDTH = 4096
"""Columns of a block at most, where a kernel has fewer filters than that."""

UNFUSED_MAX_SIZE = 2**22
"""Numbers in a term of several candidates, outside of a fused function: 16 MiB."""


LARGEST_ERROR = 1e37
"""Its inverse is a float32 that processors do not take for 0, too."""


def filter_sums(
    terms: Callable[..., tuple[Tensor, ...]],
    kernel: Tensor,
    *per_filter: Tensor,
    candidates: int = 1,
) -> tuple[Tensor, ...]:
    """Sums element-wise terms over all axes but the last.

    Inside a fused CPU function a large kernel is summed block of rows by
    block of rows, so that no term is ever written out at the kernel's size
    (XLA's CPU compiler does not fuse an element-wise operation into a sum
    over leading axes: 6.2 ms against 1.6 ms for a 2048 x 2048 kernel).

    Terms can be computed for several candidates at once, on an axis before the
    rows. Blocks are smaller then by their number, and outside of a fused function
    a kernel is summed by block, too, where the terms would take more than
    `UNFUSED_MAX_SIZE`: memory does not grow with the number of candidates.

    Args:
        terms: `terms(block, *per_filter) -> (term, ...)`: element-wise; each
            term has the shape of `block`, or `(candidates, *block.shape)`,
            float32.
        kernel: Float tensor `(..., filters)`.
        *per_filter: Tensors `(filters,)`, `(candidates, 1, filters)` or scalars,
            handed on to `terms`.
        candidates: Int: how many there are.

    Returns:
        A float32 tensor `(filters,)` per term, or `(candidates, filters)`.
    """
    rows = _as_rows(kernel)
    count, filters = rows.shape
    if count is None or filters is None:  # Traced once for small kernels of any shape.
        return _plain_sums(terms, rows, per_filter)
    size, limit = BLOCK_SIZE, BLOCKWISE_MIN_SIZE
    if not compilation.inside_fused():
        size = limit = UNFUSED_MAX_SIZE
        if candidates == 1:
            return _plain_sums(terms, rows, per_filter)
    if count * filters * candidates < limit:
        return _plain_sums(terms, rows, per_filter)

    # A few rows side by side make one wide row: the sum over a block then
    # has few, long steps (4 x 4096 took 0.4 of the time of 32 x 512).
    fold = 1
    while 2 * fold * filters <= BLOCK_WIDTH and count % (2 * fold) == 0:
        fold *= 2
    count, width = count // fold, fold * filters
    rows = ops.reshape(rows, (count, width))
    per_filter = tuple(_side_by_side(value, fold) for value in per_filter)
    block = max(1, size // (width * candidates))
    blocks = count // block

    def add_block(index: Tensor, sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        part = ops.slice(rows, (index * block, 0), (block, width))
        return _added(sums, _plain_sums(terms, part, per_filter))

    tail = _plain_sums(terms, rows[blocks * block :], per_filter)
    sums = tuple(ops.fori_loop(0, blocks, add_block, tail))
    return tuple(
        ops.sum(ops.reshape(x, (*x.shape[:-1], fold, filters)), axis=-2) for x in sums
    )


def _as_rows(kernel: Tensor) -> Tensor:
    """Returns a kernel as `(rows, filters)`; one that is so already as it is."""
    if len(kernel.shape) == 2:
        return kernel
    return ops.reshape(kernel, (-1, ops.shape(kernel)[-1]))


def _side_by_side(value: Tensor, fold: int) -> Tensor:
    """Returns values per filter for `fold` rows in one."""
    rank = len(getattr(value, "shape", ()))
    if fold == 1 or rank == 0:
        return value
    return ops.tile(value, (*[1] * (rank - 1), fold))


def _added(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _plain_sums(
    terms: Callable[..., tuple[Tensor, ...]],
    rows: Tensor,
    per_filter: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    rows = ops.cast(rows, "float32")
    return tuple(ops.sum(term, axis=-2) for term in terms(rows, *per_filter))


def absolute_sums(kernel: Tensor) -> Tensor:
    """Returns `‖W_i‖₁` of every filter, float32 `(filters,)`."""
    return filter_sums(lambda w: (ops.abs(w),), kernel)[0]


def absolute_maxima(kernel: Tensor) -> Tensor:
    """Returns `max(|w|)` of every filter, float32 `(filters,)`.

    From maximum and minimum: an `abs` before would be a copy of the kernel.
    """
    rows = _as_rows(ops.cast(kernel, "float32"))
    return ops.maximum(ops.max(rows, axis=0), -ops.min(rows, axis=0))


def weights_per_filter(kernel: Tensor) -> Any:
    """Returns how many weights a filter of `kernel` has.

    An int, or a float64 tensor where the shape is not known while a function is
    traced.
    """
    sizes = ops.shape(kernel)[:-1]
    if all(isinstance(size, int) for size in sizes):
        return math.prod(sizes)
    return math.prod(ops.cast(size, "float64") for size in sizes)


def per_weight(values: Tensor, kernel: Tensor) -> Tensor:
    """Returns float32 values over the number of weights that a filter of `kernel` has.

    Written as a product, which is what compilers make of a division by a constant: so
    the result is the same, bit for bit, whatever is known of the shape.
    """
    return values * ops.cast(1.0 / weights_per_filter(kernel), "float32")


def binary_codes(kernel: Tensor) -> Tensor:
    """Returns +1 where `w >= 0` and -1 elsewhere, in the kernel's dtype."""
    one = ops.ones((), kernel.dtype)
    return ops.where(kernel >= 0, one, -one)


def ternary_codes(kernel: Tensor, threshold: Tensor) -> Tensor:
    """Returns `sign(w)` where `|w| > threshold` and 0 elsewhere.

    Args:
        kernel: Float tensor `(..., filters)`.
        threshold: Scalar, or `(filters,)`.
    """
    threshold = ops.cast(threshold, "float32")
    wide = ops.cast(kernel, "float32")
    one = ops.ones((), kernel.dtype)
    zero = ops.zeros((), kernel.dtype)
    return ops.where(wide > threshold, one, ops.where(wide < -threshold, -one, zero))


def uniform_codes(kernel: Tensor, scale: Tensor, max_code: int) -> Tensor:
    """Returns `round(w / scale)` clipped to `[-max_code, max_code]`.

    Halves round to even. Where the scale is 0 the code is 0.

    Args:
        kernel: Float tensor `(..., filters)`.
        scale: `(filters,)`, not negative.
        max_code: Largest code, `2**(num_bits - 1) - 1`.
    """
    scale = ops.cast(scale, "float32")
    steps = ops.divide_no_nan(ops.cast(kernel, "float32"), scale)
    codes = ops.clip(ops.round(steps), -float(max_code), float(max_code))
    return ops.cast(codes, kernel.dtype)


def relative_error(difference: Tensor, norm: Tensor) -> Tensor:
    """Returns `difference / norm`, and 0 where the norm is 0; NaN stays.

    At most `LARGEST_ERROR`: a weight of 1e-38 whose level is 10 is finite, and so
    must be the error that it is selected by, and the logarithm of its inverse.
    """
    error = ops.divide_no_nan(difference, norm)
    return ops.where(error > LARGEST_ERROR, LARGEST_ERROR, error)
