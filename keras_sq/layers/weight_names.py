"""Which weights of a layer are quantized: the attributes by their names.

A quantized class names them once, in `quantized_weights`. Those of them that are in
`optional_weights`, too, are there on a condition only, such as the reverse projection
of a `ReversibleEmbedding`, which has its own only if it is not tied to the table.
"""

from typing import Any


def weights_present(quantized_class: Any, layer: Any) -> tuple[str, ...]:
    """Returns which of the weights that a class quantizes a built layer has.

    Those that are not optional are among them in any case.

    Args:
        quantized_class: A quantized class.
        layer: A layer of this class, or of the float class that it stands for.
    """
    values = layer.__dict__
    return tuple(
        name
        for name in quantized_class.quantized_weights
        if name not in quantized_class.optional_weights
        or values.get(f"_{name}", values.get(name)) is not None
    )
