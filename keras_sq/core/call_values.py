"""Values that a TensorFlow function is given at each call, computed before it runs.

What a `tf.function` reads of Python it reads when it is traced; what is asked for here
is asked for again at each call. On other backends there is no such thing, and a
function has to compute the value itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq.core.types import Tensor, Variable


def can_take_value(variables: Sequence[Variable]) -> bool:
    """Whether the function being traced can be given a value when it is called.

    A value that is computed from variables, and whose gradient nobody asks for.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    # Neither of these has a public name.
    from tensorflow.python.eager.record import could_possibly_record
    from tensorflow.python.ops.control_flow_v2_func_graphs import ControlFlowFuncGraph

    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return False
    values = [variable._value for variable in variables]
    on_cpu = all(
        isinstance(x, tf.Variable) and "CPU" in (x.device or "CPU") for x in values
    )
    if not on_cpu or could_possibly_record():
        return False
    handles = {id(x.handle) for x in values}
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and hasattr(graph, "external_captures"):
        # The function may have written what it has a handle of, or a later turn of
        # a loop may.
        if isinstance(graph, ControlFlowFuncGraph) or any(
            id(x) in handles for x in graph.external_captures
        ):
            return False
        graph = graph.outer_graph
    return True


def value_at_call(
    compute: Callable[[], Tensor], key: Any, shape: tuple[int, ...], dtype: str
) -> Tensor:
    """Returns what is computed each time that the function being traced is called.

    Args:
        compute: Called before the function runs; returns an eager tensor.
        key: Hashable, what tells values apart.
        shape: The shape of the value.
        dtype: The dtype of the value.
    """
    import tensorflow as tf

    graph = tf.compat.v1.get_default_graph()
    spec = tf.TensorSpec(shape, dtype)
    return graph.capture_call_time_value(compute, spec, key=key)


def value_now(variable: Variable) -> Tensor:
    """Returns a variable's value, an eager tensor that shares its memory."""
    return variable._value.read_value()


def same_memory(these: Sequence[Tensor], those: Sequence[Tensor]) -> bool:
    """Whether eager tensors on the CPU, pair by pair, share their memory."""

    def address(tensor: Tensor) -> int:
        return int(np.asarray(tensor).__array_interface__["data"][0])

    return all(address(x) == address(y) for x, y in zip(these, those, strict=True))
