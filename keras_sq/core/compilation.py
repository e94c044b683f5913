"""Parts of a step that are compiled, or traced, on their own.

Design note: **why parts of a step are compiled on their own.** Quantizing a
kernel is a handful of element-wise operations around a sum. Run one by one,
each of them allocates and writes a tensor of the kernel's size, and on a CPU
this traffic, not the arithmetic, is the cost: for a 2048 x 2048 kernel on one
core, 21 ms (binary) and 37 ms (ternary) a step. Fused by XLA, with the sums
taken block by block (`functional.filter_sums`), it is 5 ms and 8 ms, and no
copy of the kernel is made but the result. So `fused` compiles just these few
operations, inside whatever the surrounding step is compiled with. Small
kernels (`FUSED_MIN_SIZE`) stay with plain operations: to compile a function for one
shape takes 0.4 s on one core, and a step saves 0.15 ms by it for a ternary kernel of
83,000 weights (2,400 steps until it pays) and 0.6 ms for 262,000 (600 steps).
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras

F = TypeVar("F", bound=Callable[..., Any])

FUSED_MIN_SIZE = 2**17
"""Kernels with fewer weights are quantized by plain operations."""

_NOT_INLINED = {"_noinline": True}
"""Of a TensorFlow function that is optimized once, not in each graph that calls it."""

UNKNOWN_SIZE = 32
"""What an unknown dimension, the batch, counts for."""

_state = threading.local()


def inside_fused() -> bool:
    """Whether the code is being traced into a fused CPU function."""
    return bool(getattr(_state, "depth", 0))


def fused(
    function: F,
    result_shapes: Callable[..., Sequence[Sequence[int]]] | None = None,
    work: int = 1,
) -> F:
    """Returns `function` compiled on its own, into one kernel where it pays.

    Args:
        function: A pure function of tensors, the first of which decides by its size.
            Gradients do not pass: call it from within a custom gradient.
        result_shapes: As of `traced_once`, which is what becomes of it for small
            tensors; `None`: the function has to know their shapes.
        work: Int, how many times the work of a usual function it does: one that does
            more is compiled for smaller tensors, too.
    """
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        return function

    @functools.wraps(function)
    def blockwise(*args: Any) -> Any:
        # Read while tracing only: it picks the form of the sums.
        _state.depth = getattr(_state, "depth", 0) + 1
        try:
            return function(*args)
        finally:
            _state.depth -= 1

    # The sums by block are for CPUs; on a GPU, XLA fuses the plain ones.
    if backend == "jax":
        import jax

        on_cpu = jax.default_backend() == "cpu"
        return jax.jit(blockwise if on_cpu else function)  # type: ignore[return-value]
    import tensorflow as tf

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    by_xla = tf.function(
        function if on_gpu else blockwise, autograph=False, jit_compile=True
    )
    # Traced once per shape, however many layers have it.
    options = {"autograph": False, "experimental_attributes": _NOT_INLINED}
    of_any_shape = by_parts = tf.function(function, **options)
    if result_shapes is not None:
        of_any_shape = traced_once(function, result_shapes, inlined=False)

    @functools.wraps(function)
    def dispatch(*args: Any) -> Any:
        size = math.prod(n or UNKNOWN_SIZE for n in args[0].shape)
        if size * work < FUSED_MIN_SIZE:
            return of_any_shape(*args)
        return by_xla(*args) if _xla_works() else by_parts(*args)

    return dispatch  # type: ignore[return-value]


def traced_once(
    function: F,
    result_shapes: Callable[..., Sequence[Sequence[int]]] | None = None,
    inlined: bool = True,
) -> F:
    """Returns `function` as one that TensorFlow traces once for all shapes of a rank.

    Args:
        function: A pure function of tensors whose shapes it need not know.
        result_shapes: Returns the shapes of the results for the arguments, if they
            are to be known.
        inlined: Whether it becomes a part of the graph that calls it; else it is
            optimized once, however many layers call it.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    traced: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        key = tuple((x.dtype, len(x.shape)) for x in args)
        if key not in traced:
            traced[key] = tf.function(
                function,
                input_signature=[tf.TensorSpec([None] * n, dtype) for dtype, n in key],
                autograph=False,
                experimental_attributes=None if inlined else _NOT_INLINED,
            )
        result = traced[key](*args)
        shapes = result_shapes(*args) if result_shapes else ()
        for tensor, shape in zip(tf.nest.flatten(result), shapes, strict=False):
            tensor.set_shape(shape)
        return result

    return call  # type: ignore[return-value]


@functools.cache
def _xla_works() -> bool:
    """Tries XLA once: some TensorFlow builds come without it."""
    import tensorflow as tf

    try:
        with tf.init_scope():
            double = tf.function(lambda x: x + x, autograph=False, jit_compile=True)
            return bool(double(tf.constant(1.0)) == 2.0)
    except (tf.errors.OpError, ValueError):
        return False
