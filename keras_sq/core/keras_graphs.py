"""The graphs of functional and Sequential models, which Keras describes in private."""

from typing import Any, NamedTuple

import keras

from keras_sq.core.types import Model


class GraphCalls(NamedTuple):
    """The calls that a graph model consists of.

    Attributes:
        calls: In an executable order: the layer or operation, and the indices of the
            calls whose results it takes; the model's inputs have no index.
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


def graph_tensors(model: Model) -> list[tuple[str, tuple[int | None, ...]]]:
    """Returns the name of the layer and the shape of every result in a graph."""
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
