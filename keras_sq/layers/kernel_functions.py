"""What is computed with a latent kernel, each function compiled once.

The quantizers see a kernel with its filters last; here it gets there and back.
"""

import functools
import math
from collections.abc import Callable, Sequence

from keras import ops

from keras_sq.core import backend
from keras_sq.core.types import Tensor
from keras_sq.layers.split_update import full_precision_part
from keras_sq.quantizers import Quantizer


def filters_last(
    kernel: Tensor, axes: tuple[int, ...]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Returns the kernel as `(weights, filters)`, and the way back.

    Args:
        kernel: Tensor.
        axes: Its filter axes, ascending.

    Returns:
        A 2-D tensor, and a function that takes a tensor of this shape to the
        kernel's.
    """
    # Of tensors where it is not known while traced.
    shape = ops.shape(kernel)
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    order = others + axes
    ordered = order == tuple(range(len(shape)))
    if ordered and len(shape) == 2 and len(axes) == 1:
        return kernel, lambda columns: columns
    moved = kernel if ordered else ops.transpose(kernel, order)

    def restore(columns: Tensor) -> Tensor:
        if ordered:
            return ops.reshape(columns, shape)
        back = ops.reshape(columns, tuple(shape[axis] for axis in order))
        inverse = tuple(order.index(axis) for axis in range(len(shape)))
        return ops.transpose(back, inverse)

    filters = math.prod(shape[axis] for axis in axes)
    return ops.reshape(moved, (-1, filters)), restore


# Cached, so that layers alike share one compiled function.
@functools.lru_cache(maxsize=1024)
def forward_function(
    quantizer: Quantizer,
    axes: tuple[int, ...],
    dtype: str,
    full_precision: str | None,
    compile: bool,
) -> Callable[..., Tensor]:
    """Returns `forward(latent, mask, *state)`: the kernel to compute with.

    Args:
        quantizer: What the quantized part becomes.
        axes: The kernel's filter axes.
        dtype: Of the result.
        full_precision: What the rest becomes, one of
            `keras_sq.layers.split_update.FULL_PRECISION`; `None`: there is no rest.
        compile: Whether to fuse the operations of a large kernel.
    """

    def forward(latent: Tensor, mask: Tensor, *state: Tensor) -> Tensor:
        columns, restore = filters_last(latent, axes)
        kernel = restore(quantizer(columns, *_states(quantizer, state)))
        if full_precision is not None:
            rest = full_precision_part(latent, full_precision)
            kernel = ops.where(mask, kernel, rest)
        return ops.cast(kernel, dtype)

    if not compile:
        return forward
    return _fused(quantizer, forward, lambda latent, *_: [latent.shape])


@functools.lru_cache(maxsize=1024)
def error_function(
    quantizer: Quantizer, axes: tuple[int, ...], granularity: str
) -> Callable[..., Tensor]:
    """Returns `errors(latent, *state)`: of every filter, or of every weight."""
    by_element = granularity == "element"

    def errors(latent: Tensor, *state: Tensor) -> Tensor:
        columns, restore = filters_last(latent, axes)
        state = _states(quantizer, state)
        if by_element:
            return restore(quantizer.element_errors(columns, *state))
        return quantizer.filter_errors(columns, *state)

    def shapes(latent: Tensor, *_: Tensor) -> list[tuple[int, ...]]:
        shape = tuple(latent.shape)
        filters = math.prod(shape[axis] for axis in axes)
        return [shape if by_element else (filters,)]

    return _fused(quantizer, errors, shapes)


@functools.lru_cache(maxsize=1024)
def update_function(
    quantizer: Quantizer, axes: tuple[int, ...]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns `update(latent, state, updates)`: the quantizer's next state."""

    def update(latent: Tensor, state: Tensor, updates: Tensor) -> Tensor:
        columns, _ = filters_last(latent, axes)
        (state,) = _states(quantizer, (state,))
        return quantizer.update(columns, state, updates)

    return _fused(quantizer, update, lambda _, state, updates: [state.shape])


def _fused(
    quantizer: Quantizer,
    function: Callable[..., Tensor],
    result_shapes: Callable[..., list[tuple[int, ...]]],
) -> Callable[..., Tensor]:
    return backend.fused(function, result_shapes if quantizer.any_shape else None)


def _states(quantizer: Quantizer, state: Sequence[Tensor]) -> list[Tensor]:
    """Returns states whose size is known where those of the filters are not."""
    return [ops.reshape(x, (quantizer.state_size, -1)) for x in state]
