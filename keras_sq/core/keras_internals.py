"""What this package needs of Keras and Keras does not offer in public.

Everything that reaches below `keras.*` is here and in `keras_copying.py`, each with its
reason, so a new Keras release is checked in one place (`tests/core/test_internals.py`).
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

# Whether a layer trains or infers is known to the call context only: layers
# without a `training` argument (Dense, the convolutions) are not told.
from keras.src.backend.common import global_state

# The layer that a weight is being made for, to name it in an error.
from keras.src.backend.common.name_scope import current_path

# Stands for one call of a whole model on JAX, see `call_under_way`.
from keras.src.backend.common.stateless_scope import get_stateless_scope

# A variable read during a mixed-precision call arrives in float16; scales and
# thresholds must be found in the variable's own dtype.
from keras.src.backend.common.variables import AutocastScope

# The cell of ConvLSTM1D, 2D and 3D, which has no public name.
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell as ConvLSTMCell

# `type(keras.Model(inputs, outputs))` without building one.
from keras.src.models.functional import Functional as Functional

# Functions in a graph for which an exported file has another form.
from keras.src.ops.numpy import Argmax as Argmax
from keras.src.ops.numpy import Argmin as Argmin
from keras.src.ops.numpy import Repeat as Repeat
from keras.src.ops.numpy import Roll as Roll

from keras_sq.core import backend
from keras_sq.core.types import Config, Layer, Model, Tensor, Variable


def training_phase() -> bool | None:
    """Returns the `training` value of the Keras call under way, if any."""
    context = global_state.get_global_attribute("current_call_ctx")
    return None if context is None else context.get_value("training")


def called_layer() -> Layer:
    """Returns the outermost layer or model of the Keras call under way."""
    return global_state.get_global_attribute("current_call_ctx").entry_layer


def call_under_way() -> object | None:
    """Returns an object that stands for the outermost Keras call under way."""
    # On JAX the trainer runs a model's `call` by itself: each of its layers then is
    # an outermost call, but all of them are within one scope.
    scope: object | None = get_stateless_scope()
    if scope is None:
        scope = global_state.get_global_attribute("current_call_ctx")
    return scope


@contextlib.contextmanager
def called(layer: Layer, training: bool | None) -> Iterator[None]:
    """Makes what is called inside part of a call of `layer`.

    Keras's `stateless_call`, by which the JAX trainer runs a model, does not: layers
    whose model does not hand `training` on to them would not hear of it.
    """
    context = layer._get_call_context()
    if training is not None:
        context.set_value("training", training)
    try:
        yield
    finally:
        layer._maybe_reset_call_context()


def in_keras_inference() -> bool:
    """Whether a model is called by Keras's own `predict_step` or `test_step`.

    While `predict` or `evaluate` traces its function. These steps only read weights,
    which is not known of a step that a class overrides, nor of any other function.
    Keras leaves no other trace of who calls a model than the Python stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code in _step_callers():
            variables = frame.f_locals
            step = variables.get("step_function")
            if step is None:
                step = variables["self"].predict_step
            return getattr(step, "__func__", None) in (
                keras.Model.predict_step,
                keras.Model.test_step,
            )
        frame = frame.f_back
    return False


@functools.cache
def _step_callers() -> tuple[Any, ...]:
    """Returns the code of the functions by which Keras's trainer calls a step."""
    return tuple(
        code
        for method in ("_make_function", "make_predict_function")
        for code in getattr(keras.Model, method).__code__.co_consts
        if inspect.iscode(code) and code.co_name == "one_step_on_data"
    )


def in_autocast() -> bool:
    """Whether variables are being read in a lower precision just now."""
    scope = global_state.get_global_attribute("autocast_scope")
    return scope is not None and scope.dtype is not None


def read(variable: Variable) -> Tensor:
    """Returns a variable's value in the variable's own dtype."""
    with AutocastScope(None):
        return backend.as_tensor(keras.ops.convert_to_tensor(variable))


def dtype_of(variable: Variable) -> str:
    """Returns a variable's own dtype, also where it is read in a lower precision."""
    # `variable.dtype` within `AutocastScope(None)` is `None`.
    return str(keras.backend.standardize_dtype(variable._dtype))


def flatten_layers(layer: Layer, include_self: bool = False) -> list[Layer]:
    """Returns all layers below a layer or model, each once.

    `Model.layers` stops at custom layers; this enters them. The order is that
    of their creation, the same for every instance of a class.
    """
    return list(layer._flatten_layers(include_self=include_self))


def sublayers(layer: Layer) -> list[Layer]:
    """Returns the layers that a layer holds itself."""
    return list(layer._layers)


def is_built(model: Model) -> bool:
    """Whether a model has its variables.

    `model.built` stays False for a subclassed model that was loaded, although
    all of its layers are built.
    """
    below = flatten_layers(model)
    return bool(model.built or (below and all(layer.built for layer in below)))


def own_variables(layer: Layer) -> list[Variable]:
    """Returns a layer's variables without those of its sublayers, in order.

    Keras lists a sublayer's variable twice if the layer has it as an attribute, too,
    as `SpectralNormalization` has the kernel of its layer.
    """
    variables = [*layer._trainable_variables, *layer._non_trainable_variables]
    below = {
        id(variable)
        for sublayer in (flatten_layers(layer) if layer._layers else ())
        for variable in (
            *sublayer._trainable_variables,
            *sublayer._non_trainable_variables,
        )
    }
    return [variable for variable in variables if id(variable) not in below]


def with_recorded_arguments(layer: Layer, base: type, config: Config) -> Config:
    """Returns a configuration with what Keras adds where a class describes nothing.

    Keras records the arguments of each constructor, and they are the configuration of
    a layer whose class has no `get_config`. A class of ours always has one.

    Args:
        layer: The layer.
        base: The class that it was, or stands for.
        config: What Keras returns for the layer itself.
    """
    recorded = layer.__dict__.get("_auto_config")
    if recorded is None or not _leaves_config_to_keras(base):
        return config
    return {**recorded.config, **config}


def record_arguments(layer: Layer, base: type, arguments: Any, named: Any) -> None:
    """Records what the constructor of a base class is called with, as Keras does."""
    if _leaves_config_to_keras(base):
        twin: Any = base.__new__(base, *arguments, **named)
        layer.__dict__["_auto_config"] = getattr(twin, "_auto_config", None)


def _leaves_config_to_keras(base: Any) -> bool:
    return bool(getattr(base.get_config, "_is_default", False))


def seed_states(layer: Layer) -> list[Variable]:
    """Returns the states of a layer's own random generators."""
    return [generator.state for generator in layer._seed_generators]


@contextlib.contextmanager
def unlocked(layer: Layer) -> Iterator[None]:
    """Allows a built layer to get new variables, under its own name scope.

    Keras locks a layer when it is built; its own `quantize()` and
    `enable_lora()` lift the lock in the same way.
    """
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        with layer._open_name_scope():
            yield
    finally:
        if locked:
            layer._lock_state()


@contextlib.contextmanager
def weights_watched(watch: Callable[[str, Sequence[int], str], None]) -> Iterator[None]:
    """Within, a function sees each weight that this thread is about to make.

    Before it takes memory, as far as the backend tells: all of TensorFlow's, and
    JAX's from Keras 3.14 on. Keras itself stays as it is, for other threads too.

    Args:
        watch: Called with the path of the layer, the shape and the dtype; raises if
            the weight must not be made.
    """

    def of_layer(name: str, shape: Sequence[int], dtype: str) -> None:
        # JAX gives the path; TensorFlow the name, in Keras's scope of the layer.
        path = name.rpartition("/")[0] or current_path() or name
        watch(path, shape, dtype)

    with backend.variables_watched(of_layer):
        yield


@contextlib.contextmanager
def own_attribute(layer: Layer, name: str, value: Any) -> Iterator[None]:
    """Within, an instance has an attribute with another value; Keras tracks nothing."""
    attributes = layer.__dict__
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(before)


def input_specs(model: Model) -> Any:
    """Returns shapes and dtypes of a model's inputs, batch first, or `None`.

    As `keras.KerasTensor`s, in the structure that the model takes. Of a subclassed
    model those that it was built with, as floats.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if isinstance(graph, Functional):
        return graph._inputs_struct
    built = (model.get_build_config() or {}).get("input_shape")
    if built is None:
        return None

    def spec(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: spec(value) for key, value in shape.items()}
        if all(size is None or isinstance(size, int) for size in shape):
            return keras.KerasTensor(tuple(shape))
        return [spec(value) for value in shape]

    return spec(built)


def has_graph(layer: Layer) -> bool:
    """Whether a layer is a model that knows the graph of its layers.

    Functional and Sequential models, and classes made in functional style:
    `super().__init__(inputs=..., outputs=...)`.
    """
    return isinstance(layer, Functional | keras.Sequential)


def operations(model: Model) -> list[Any]:
    """Returns the layers of a model, and the operations of its graphs, each once."""
    layers = flatten_layers(model, include_self=True)
    graphs = [getattr(layer, "_functional", None) or layer for layer in layers]
    inside = [
        operation
        for graph in graphs
        if isinstance(graph, Functional)
        for operation in graph.operations
    ]
    return list({id(x): x for x in (*layers, *inside)}.values())


@contextlib.contextmanager
def own_test_step(model: Model) -> Iterator[None]:
    """Within, the model's `test_step` is another function object.

    JAX keeps what it has traced by the function, and bound methods of one model are
    equal: a new `test_function` of the model would be the old one.
    """
    step = model.test_step
    with own_attribute(model, "test_step", lambda *args, **kw: step(*args, **kw)):
        yield


def evaluate_validation_data(model: Model) -> dict[str, float] | None:
    """Returns loss and metrics on the validation data of the `fit` under way.

    Keras keeps it from epoch to epoch, and tells callbacks nothing of it.

    Returns:
        By name, or `None` where there is no such data.
    """
    if getattr(model, "_eval_epoch_iterator", None) is None:
        return None
    logs = model.evaluate(verbose=0, return_dict=True, _use_cached_eval_dataset=True)
    return {name: float(value) for name, value in logs.items()}


def batches_applied(optimizer: Any) -> Variable:
    """Returns the variable that counts the batches an optimizer has seen.

    `optimizer.iterations` counts updates: fewer under gradient accumulation.
    """
    return optimizer._iterations


def make_metrics_outside_of_steps(model: Model) -> None:
    """Lets the variables of a compiled model's metrics be made outside of its steps.

    Keras makes them in the first step, so that TensorFlow traces that step twice.
    """
    metrics = getattr(model, "_compile_metrics", None)
    if metrics is None or metrics.built:
        return
    build = metrics.build

    def build_outside(*arguments: Any) -> None:
        del metrics.build  # Back to that of the class.
        with backend.outside_of_graphs():
            build(*arguments)

    metrics.build = build_outside


def optimizer_slots(optimizer: Any) -> list[Variable]:
    """Returns an optimizer's state of each weight: momentum, moments.

    Not the counter, the learning rate, the moving average of the weights
    (`use_ema`) and gradients that are being accumulated.
    """
    others = [
        optimizer._iterations,
        optimizer._learning_rate,
        *(getattr(optimizer, "_model_variables_moving_average", None) or ()),
        *(getattr(optimizer, "_accumulated_gradients", None) or ()),
    ]
    kept = {id(variable) for variable in others}
    return [v for v in optimizer.variables if id(v) not in kept]


def follow_layout(
    variable: Variable, leader: Variable, axes: Sequence[int | None]
) -> None:
    """Lays a variable out over the devices of a mesh as another one is.

    Keras looks layouts up by the variable's path, which a `LayoutMap` made for the
    float model does not know. Does nothing if the leader is not laid out.

    Args:
        variable: The variable, built.
        leader: Such as a kernel.
        axes: For each axis of the variable the leader's axis that it goes along, or
            `None`: every device has all of it.
    """
    layout = getattr(leader, "_layout", None)
    if isinstance(layout, keras.distribution.TensorLayout):
        along = [None if axis is None else layout.axes[axis] for axis in axes]
        variable._layout = keras.distribution.TensorLayout(along, layout.device_mesh)
        variable.assign(variable.value)
