"""One way to differentiate and to compile, on every backend that the tests run on.

A test says what it computes, in functions of tensors; how a gradient is taken
(`tf.GradientTape`, `jax.grad`) and how a function is compiled (`tf.function`,
`jax.jit`) stands here. What is about TensorFlow alone carries the marker
`tensorflow` instead; `conftest.py` leaves it out elsewhere, and says so.
"""

import contextlib
import importlib.util

import keras
import numpy as np
import pytest
from keras import ops

from keras_sq.core import backend

BACKEND = keras.backend.backend()

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX 0.8 needs Python 3.11"
)
"""For tests that start a process on JAX."""

COMPILERS = {"tensorflow": ("graph", "xla"), "jax": ("xla",)}[BACKEND]
"""What `compiled` can do: JAX knows XLA only."""

WAYS = ("eager", *COMPILERS)

JIT_COMPILE = BACKEND == "jax"
"""For `Model.compile` in tests of something else: what compiles fastest.

False is a graph on TensorFlow, but one operation after the other on JAX.
"""


def array(value):
    """Returns NumPy's copy of a tensor or variable, in its own dtype."""
    # NumPy warns when it is given a variable itself.
    value = value.value if isinstance(value, keras.Variable) else value
    return np.array(ops.convert_to_numpy(backend.as_tensor(value)))


def tensor(value, dtype=None):
    """Returns a tensor; on JAX 64 bits become 32."""
    if BACKEND == "jax" and dtype == "int64":
        dtype = "int32"  # It would warn.
    return ops.convert_to_tensor(value, dtype=dtype)


def compiled(function, how=None, variables=()):
    """Returns `function` as one compiled call.

    Args:
        function: Of tensors and structures of them.
        how: One of `WAYS`; by default the first of `COMPILERS`. `"eager"`
            returns `function` itself.
        variables: Which `function` assigns, or reads anew at each call.
    """
    how = how or COMPILERS[0]
    if how == "eager":
        return function
    assert how in COMPILERS
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False, jit_compile=how == "xla")
    if variables:
        return backend.compiled(function, variables)
    import jax

    return jax.jit(function)


def gradients(function, *inputs, variables=()):
    """Differentiates `function(*inputs)`; can be compiled.

    Args:
        function: Returns a scalar, or a tuple whose first entry is one.
        *inputs: Tensors.
        variables: Which `function` reads, of Keras.

    Returns:
        What `function` returns, and a list of gradients, as tensors: in each of
        the inputs, then in each of the variables. None where there is none:
        on TensorFlow if nothing connects them, on JAX for integers and bools.
        On JAX, what `function` assigns to variables is forgotten.
    """
    inputs = [tensor(x) for x in inputs]
    take = _by_tensorflow if BACKEND == "tensorflow" else _by_jax
    return take(function, inputs, list(variables))


def _scalar(value):
    return value[0] if isinstance(value, tuple) else value


def _by_tensorflow(function, inputs, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
    sources = [*inputs, *(variable.value for variable in variables)]
    found = tape.gradient(_scalar(value), sources)
    return value, [None if g is None else tf.convert_to_tensor(g) for g in found]


def _by_jax(function, inputs, variables):
    import jax

    def loss(inputs, values):
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            value = function(*inputs)
        return _scalar(value), value

    differentiate = jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
    values = [variable.value for variable in variables]
    (of_inputs, of_variables), value = differentiate(inputs, values)
    found = [*of_inputs, *of_variables]
    return value, [None if g.dtype == jax.dtypes.float0 else g for g in found]


@contextlib.contextmanager
def two_devices():
    """A scope in which models live on the two CPUs of `conftest.py` (TensorFlow)."""
    import tensorflow as tf

    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    assert len(devices) == 2
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        yield strategy
