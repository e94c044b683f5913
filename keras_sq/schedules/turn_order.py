"""Which quantized layer of a model has which turn in a layerwise schedule."""

from collections.abc import Sequence
from typing import Any

from keras_sq.core import checks
from keras_sq.core.types import Layer, Model
from keras_sq.layers import quantized_layers
from keras_sq.layers.layer_keys import quantized_paths
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.topology import places

ORDERS = ("forward", "reverse", "global")


def check_order(order: Any) -> str | tuple[str, ...]:
    """Returns an order, a list of names as a tuple.

    Args:
        order: One of `ORDERS`, or names of layers.

    Raises:
        TypeError: If it is something else.
        ValueError: If the name of the order is unknown, or the list empty.
    """
    if isinstance(order, str):
        return checks.one_of("order", order, ORDERS)
    if not isinstance(order, Sequence) or not all(isinstance(x, str) for x in order):
        raise TypeError(
            f"Argument `order` must be one of {', '.join(map(repr, ORDERS))}, or a "
            f"list of layer names, paths or patterns. Received: order={order!r}"
        )
    if not order:
        raise ValueError(
            "Argument `order` must name at least one layer. Received: order=[]"
        )
    return tuple(order)


def layers_in_order(
    model: Model, order: str | Sequence[str]
) -> list[tuple[str, Layer]]:
    """Returns the quantized layers of a model with their paths, by turn.

    Args:
        model: A built model with quantized layers.
        order: As `check_order` returned it; `"global"` is as `"forward"` here.

    Raises:
        ValueError: If a name matches no quantized layer, or a layer has no turn.
    """
    pairs = [
        (place.path, place.layer)
        for place in places(model, lambda x: isinstance(x, StochasticallyQuantized))
    ]
    seen = {id(layer) for _, layer in pairs}
    # The rest: layers that a model has outside of its graph.
    pairs += [pair for pair in quantized_layers(model) if id(pair[1]) not in seen]
    if order == "reverse":
        return pairs[::-1]
    return pairs if isinstance(order, str) else _listed(model, order, pairs)


def _listed(
    model: Model, order: Sequence[str], pairs: list[tuple[str, Layer]]
) -> list[tuple[str, Layer]]:
    """Returns the layers in the order of the names.

    Raises:
        ValueError: If a name matches no layer, or a layer has no turn.
    """
    left, chosen = pairs, []
    for key in order:
        hits = quantized_paths("order", key, model, [path for path, _ in pairs])
        chosen += [pair for pair in left if pair[0] in hits]
        left = [pair for pair in left if pair[0] not in hits]
    if left:
        raise ValueError(
            "Argument `order` must give every quantized layer a turn, and leaves out "
            f"{checks.listed(path for path, _ in left)} of model '{model.name}'. Add "
            "'*' as the last name for all others."
        )
    return chosen
