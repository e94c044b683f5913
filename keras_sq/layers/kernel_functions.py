"""What is computed with a latent kernel, each function compiled once.

The quantizers see a kernel with its filters last; here it gets there and back.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

from keras import ops

from keras_sq.core import compilation
from keras_sq.core.types import Tensor
from keras_sq.layers.split_update import full_precision_part
from keras_sq.quantizers import Quantizer

F = TypeVar("F", bound=Callable[..., Any])


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
        kernel = restore(_once(quantizer, "__call__", columns)(columns, *state))
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
        if by_element:
            of_elements = _once(quantizer, "element_errors", columns)
            return restore(of_elements(columns, *state))
        return _once(quantizer, "filter_errors", columns)(columns, *state)

    def shapes(latent: Tensor, *_: Tensor) -> list[tuple[int, ...]]:
        shape = tuple(latent.shape)
        filters = math.prod(shape[axis] for axis in axes)
        return [shape if by_element else (filters,)]

    return _fused(quantizer, errors, shapes)


@functools.lru_cache(maxsize=1024)
def update_function(
    quantizer: Quantizer, axes: tuple[int, ...]
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns `update(latent, state, updates) -> (state, updates)`, the next ones.

    A kernel that is not finite ends the training, but does not take the state with it:
    both stay as they are.
    """

    def update(latent: Tensor, state: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
        columns, _ = filters_last(latent, axes)
        after = _once(quantizer, "update", columns)(columns, state, updates)
        finite = ops.all(ops.isfinite(after))
        after = ops.where(finite, after, state)
        return after, updates + ops.cast(finite, updates.dtype)

    return _fused(
        quantizer, update, lambda _, state, updates: [state.shape, updates.shape]
    )


def _fused(
    quantizer: Quantizer,
    function: F,
    result_shapes: Callable[..., list[tuple[int, ...]]],
) -> F:
    return compilation.fused(
        function, result_shapes if quantizer.any_shape else None, quantizer.work
    )


def _once(quantizer: Quantizer, name: str, columns: Tensor) -> Callable[..., Tensor]:
    """Returns a method of a quantizer for a kernel of two axes.

    Where the shape is not known, one that is traced once, however the kernels that it
    is called for are laid out.
    """
    if all(size is not None for size in columns.shape):
        return getattr(quantizer, name)  # type: ignore[no-any-return]
    return _traced_method(quantizer, name)


@functools.lru_cache(maxsize=1024)
def _traced_method(quantizer: Quantizer, name: str) -> Callable[..., Tensor]:
    method = getattr(quantizer, name)

    def with_sizes(columns: Tensor, *rest: Tensor) -> Tensor:
        if quantizer.state_size:
            # Its size is known where those of the filters are not.
            state = ops.reshape(rest[0], (quantizer.state_size, -1))
            rest = (state, *rest[1:])
        return method(columns, *rest)

    return compilation.traced_once(with_sizes)
