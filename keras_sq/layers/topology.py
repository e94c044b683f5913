"""The order of a model's layers: which come first, which last, which resize.

Layerwise schedules go from input to output, and many papers leave the first and the
last layer in full precision. Both need the order in which data pass through the
layers, residual branches included, and not the order of creation.

Sequential and functional models, nested ones too, have a graph, which gives this
order. Other layers and subclassed models have none: their layers count as a chain in
the order of their creation.
"""

import dataclasses
from collections.abc import Callable, Iterable

from keras_sq.core import keras_graphs
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, Model
from keras_sq.layers import layer_paths


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer stands among those that count.

    Attributes:
        path: Names of the layers above it and its name, joined by slashes.
        layer: The layer.
        first: Whether it is called, at least once, on data that no other layer
            has seen.
        last: Whether its result, at least once, reaches no other layer.
    """

    path: str
    layer: Layer
    first: bool
    last: bool


def places(model: Model, counts: Callable[[Layer], bool]) -> list[Place]:
    """Returns the layers that count, in a topological order of the graph.

    A layer that is called more than once stands at its first call.

    Args:
        model: A built model.
        counts: Which layers to look at, for example those with a kernel.

    Example:
        >>> model = keras_sq.models.get("digits_cnn", (8, 8, 1), 10)
        >>> [p.layer.name for p in places(model, lambda x: hasattr(x, "kernel"))
        ...  if p.first or p.last]
        ['conv1', 'logits']
    """
    calls = _Calls(counts)
    calls.visit(model, frozenset())
    paths = {id(layer): path for path, layer in layer_paths(model)}
    by_layer: dict[int, Place] = {}
    for index, (layer, before) in enumerate(calls.noted):
        known = by_layer.get(id(layer))
        first, last = not before, index not in calls.followed
        if known is not None:
            first, last = first or known.first, last or known.last
        by_layer[id(layer)] = Place(paths[id(layer)], layer, first, last)
    return list(by_layer.values())


def resizes(layer: Layer) -> bool:
    """Whether a layer is a convolution that does no more than down-sample.

    That is one whose kernel is no larger than its stride, such as the 1 x 1 (or
    2 x 2) convolution of stride 2 in the shortcut of a residual network.
    """
    strides = getattr(layer, "strides", None)
    size = getattr(layer, "kernel_size", None)
    if not isinstance(strides, tuple) or not isinstance(size, tuple):
        return False
    return max(strides) > 1 and all(k <= s for k, s in zip(size, strides, strict=False))


class _Calls:
    """The calls of layers that count; each knows the calls right before it."""

    def __init__(self, counts: Callable[[Layer], bool]) -> None:
        self.counts = counts
        self.noted: list[tuple[Layer, frozenset[int]]] = []
        self.followed: set[int] = set()

    def visit(self, layer: Layer, before: frozenset[int]) -> frozenset[int]:
        """Notes a call; returns the calls that its result comes from.

        Args:
            layer: What is called.
            before: The calls that its inputs come from.
        """
        if self.counts(layer):
            self.followed |= before
            self.noted.append((layer, before))
            return frozenset({len(self.noted) - 1})
        if not internals.has_graph(layer):
            return self._chain(internals.sublayers(layer), before)
        graph = keras_graphs.graph_calls(layer)
        if graph is None:
            return self._chain(layer.layers, before)
        results: list[frozenset[int]] = []
        for operation, parents in graph.calls:
            inputs = before if not parents else _union(results[p] for p in parents)
            called = keras_graphs.is_layer(operation)
            results.append(self.visit(operation, inputs) if called else inputs)
        return _union(results[index] for index in graph.outputs)

    def _chain(self, layers: list[Layer], before: frozenset[int]) -> frozenset[int]:
        for layer in layers:
            before = self.visit(layer, before)
        return before


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)
