"""What depends on the backend that runs.

This, `compilation.py` and `layers/split_update.py` are the only files of the training
path that name a backend.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras

from keras_sq.core.types import Tensor, Variable

F = TypeVar("F", bound=Callable[..., Any])


def as_tensor(value: Any) -> Any:
    """Returns a plain tensor: on TensorFlow, Keras hands out `tf.Variable`s."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(value)
    return value


def has_numbers(value: Any) -> bool:
    """Whether a tensor has its values already, and does not stand for ones to come."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        # NumPy's arrays have the one, TensorFlow's eager tensors the other.
        return hasattr(value, "__array_interface__") or hasattr(value, "numpy")
    if backend == "jax":
        import jax

        return not isinstance(value, jax.core.Tracer)
    return True


def array_in_memory(variable: Variable) -> Any:
    """Returns a variable's value as a NumPy array without a copy, if there is one.

    There is none on another device than the CPU, nor while a function is traced.
    """
    import numpy as np

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        value = variable._value
        if not tf.executing_eagerly() or not isinstance(value, tf.Variable):
            return None
        tensor = value.read_value()
        return np.asarray(tensor) if "CPU" in tensor.device else None
    if backend == "jax":
        import jax

        value = variable.value
        if isinstance(value, jax.core.Tracer) or jax.default_backend() != "cpu":
            return None
        return np.asarray(value)
    return None


def uniform_numbers(seeds: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Returns vectors of random numbers, as `keras.random.uniform` for each seed.

    Args:
        seeds: Integer `(vectors, 2)`, states of a `keras.random.SeedGenerator`.
        sizes: The lengths of the vectors.

    Returns:
        Float32 vectors of numbers in [0, 1).
    """
    if keras.backend.backend() != "tensorflow":
        return [
            keras.random.uniform((size,), dtype="float32", seed=seeds[row])
            for row, size in enumerate(sizes)
        ]
    import tensorflow as tf

    # As Keras does it, but for all seeds at once, and by what
    # `tf.random.stateless_uniform` consists of: less to trace for each vector.
    seeds = tf.cast(tf.math.floormod(seeds, tf.int32.max - 1), "int32")
    algorithm = tf.constant(tf.random.Algorithm.AUTO_SELECT.value)
    numbers = []
    for size, seed in zip(sizes, tf.unstack(seeds, len(sizes)), strict=True):
        key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
        numbers.append(
            tf.raw_ops.StatelessRandomUniformV2(
                shape=[size], key=key, counter=counter, alg=algorithm
            )
        )
    return numbers


def strings(values: Any) -> Any:
    """Returns strings as a tensor, which only TensorFlow has.

    Raises:
        ImportError: If TensorFlow is not installed.
    """
    import tensorflow as tf

    return tf.constant(values, "string")


def unshared(value: Any) -> Any:
    """Returns a value that two variables may be given.

    On JAX a variable takes an array as it is, and a training step overwrites the
    arrays of its model's variables: another variable would lose its value.
    """
    if keras.backend.backend() != "jax":
        return value
    return keras.ops.copy(keras.ops.convert_to_tensor(value))


@contextlib.contextmanager
def variables_watched(
    watch: Callable[[str, Sequence[int], str], None],
) -> Iterator[None]:
    """Within, a function sees the variables that this thread makes, one by one.

    Args:
        watch: Called with the name or path, the shape and the dtype, before the
            variable has a value; may raise.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Asked for its value symbolically here, an initializer takes no memory.
        drafts = tf.Graph()

        def create(next_creator: Any, **kwargs: Any) -> Any:
            value, variable = kwargs["initial_value"], None
            if callable(value):
                try:
                    with drafts.as_default():
                        value = tf.convert_to_tensor(value())
                except Exception:  # One of a user's own, that needs real numbers.
                    value = variable = next_creator(**kwargs)
            watch(kwargs["name"], tuple(value.shape), value.dtype.name)
            return next_creator(**kwargs) if variable is None else variable

        with tf.variable_creator_scope(create):
            yield
        return
    if keras.backend.backend() != "jax":
        yield
        return
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(_WatchingDistribution(before, watch))
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


class _WatchingDistribution:
    """Stands for a `keras.distribution.Distribution`, which is told of variables.

    Args:
        distribution: The one to be asked, or `None`.
        watch: As of `variables_watched`.
    """

    def __init__(
        self, distribution: Any, watch: Callable[[str, Sequence[int], str], None]
    ) -> None:
        self._distribution = distribution
        self._watch = watch
        self._asked_for: Variable = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._distribution, name)

    def get_variable_layout(self, variable: Variable) -> Any:
        # Keras asks again for one and the same when it has its first value.
        if variable is not self._asked_for:
            self._asked_for = variable
            self._watch(variable.path, variable.shape, str(variable.dtype))
        if self._distribution is None:
            return None
        return self._distribution.get_variable_layout(variable)

    def get_tensor_layout(self, path: str) -> Any:
        if self._distribution is None:
            return None
        return self._distribution.get_tensor_layout(path)


def compiled(function: F, variables: Sequence[Variable]) -> F:
    """Returns `function` as one compiled call (a graph on TensorFlow).

    Args:
        function: Takes tensors that do not change shape; reads and assigns
            `variables` and no others.
        variables: Those variables.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)  # type: ignore[no-any-return]
    if backend != "jax":
        return function
    import jax

    variables = list(variables)
    assigned: list[int] = []

    @jax.jit
    def stateless(values: list[Tensor], *args: Tensor) -> tuple[Any, list[Tensor]]:
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            before = [scope.get_current_value(variable) for variable in variables]
            result = function(*args)
            after = [scope.get_current_value(variable) for variable in variables]
        # Known once traced, and the same each time.
        assigned[:] = [i for i, x in enumerate(before) if after[i] is not x]
        return result, [after[i] for i in assigned]

    @functools.wraps(function)
    def call(*args: Tensor) -> Any:
        values = [variable.value for variable in variables]
        result, after = stateless(values, *args)
        for index, value in zip(assigned, after, strict=True):
            variables[index].assign(value)
        return result

    return call  # type: ignore[return-value]


def outside_of_graphs() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which variables are not those of the function traced.

    TensorFlow traces a function again in which variables were made: `init_scope` alone
    does not hide them. Replicas make them as they always do.
    """
    stack = contextlib.ExitStack()
    if keras.backend.backend() != "tensorflow":
        return stack
    import tensorflow as tf
    from tensorflow.python.eager import context

    if not tf.distribute.has_strategy():
        stack.enter_context(tf.init_scope())
        stack.enter_context(tf.Graph().as_default())
        stack.enter_context(context.eager_mode())
    return stack


def workers_of_strategy() -> int:
    """Returns how many workers the strategy in scope trains with, or 0.

    Only those of a `MultiWorkerMirroredStrategy` count.
    """
    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, ())) for job in ("chief", "worker"))


def float64() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which tensors can be float64.

    JAX turns them into float32 otherwise.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)  # type: ignore[no-any-return]
