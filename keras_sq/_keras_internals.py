"""What this package needs of Keras and Keras does not offer in public.

Everything that reaches below `keras.*` stands here, each with its reason, so
that a new Keras release is checked in one place (`tests/test_internals.py`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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

# `type(keras.Model(inputs, outputs))` without building one.
from keras.src.models.functional import Functional as Functional

# Functions in a graph for which an exported file has another form.
from keras.src.ops.numpy import Repeat as Repeat
from keras.src.ops.numpy import Roll as Roll

from keras_sq import _backend
from keras_sq.types import Layer, Model, Tensor, Variable


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
    found: object | None = get_stateless_scope()
    if found is None:
        found = global_state.get_global_attribute("current_call_ctx")
    return found


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


def in_autocast() -> bool:
    """Whether variables are being read in a lower precision just now."""
    scope = global_state.get_global_attribute("autocast_scope")
    return scope is not None and scope.dtype is not None


def read(variable: Variable) -> Tensor:
    """Returns a variable's value in the variable's own dtype."""
    with AutocastScope(None):
        return _backend.as_tensor(keras.ops.convert_to_tensor(variable))


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
    """Returns a layer's variables without those of its sublayers, in order."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


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

    with _backend.variables_watched(of_layer):
        yield


@contextlib.contextmanager
def own_attribute(layer: Layer, name: str, value: Any) -> Iterator[None]:
    """Within, a layer has an attribute of its own, past Keras's tracking."""
    own = layer.__dict__
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


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


def is_graph_model(model: Model) -> bool:
    """Whether a model's configuration describes its layers one by one."""
    return type(model) in (Functional, keras.Sequential)


class GraphCalls(NamedTuple):
    """The calls that a graph model consists of.

    Attributes:
        calls: In an order in which they can be made: the layer or operation, and
            the indices of the calls whose results it takes; of the model's inputs
            none.
        outputs: Indices of the calls whose results the model returns.
    """

    calls: tuple[tuple[Any, tuple[int, ...]], ...]
    outputs: tuple[int, ...]


def graph_calls(model: Model) -> GraphCalls | None:
    """Returns the graph of a model, or None for a Sequential without a graph."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if graph is None:
        return None
    # Keras sorts operations of the same depth by their creation, nodes by nothing.
    place = {id(operation): i for i, operation in enumerate(graph.operations)}
    nodes = [
        node
        for depth in sorted(graph._nodes_by_depth, reverse=True)
        for node in sorted(
            graph._nodes_by_depth[depth], key=lambda node: place[id(node.operation)]
        )
    ]
    index = {id(node): i for i, node in enumerate(nodes)}

    def made_by(tensor: Any) -> int:
        history = tensor._keras_history
        return index[id(history.operation._inbound_nodes[history.node_index])]

    calls = tuple(
        (
            node.operation,
            tuple(dict.fromkeys(made_by(t) for t in node.input_tensors)),
        )
        for node in nodes
    )
    return GraphCalls(calls, tuple(made_by(t) for t in graph._outputs))


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


def graph_tensors(model: Model) -> list[tuple[str, tuple[int | None, ...]]]:
    """Returns what the calls of a graph model result in: who made it, and its shape."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    nodes: list[Any] = []
    if graph is not None:
        nodes = sum(graph._nodes_by_depth.values(), [])
    return [
        (node.operation.name, tuple(tensor.shape))
        for node in nodes
        for tensor in node.outputs
    ]


def is_layer(operation: Any) -> bool:
    """Whether an operation of a graph is a layer, not a function such as `ops.pad`."""
    return isinstance(operation, keras.layers.Layer)


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
