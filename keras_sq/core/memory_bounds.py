"""Whether what a model claims fits this machine, asked before it is tried.

A file of a few kilobytes can describe an input of 60,000 x 60,000 pixels. Code that
runs a model on random inputs of the stated sizes checks them here first.
"""

import math
import os
import pathlib
from collections.abc import Iterator

import keras

from keras_sq.core import keras_graphs
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Model

OPEN_SIZE = 32
"""What a size that a model leaves open counts for."""

BYTES_PER_VALUE = 20
"""What a value takes while a model is run on random inputs: 8 bytes while it is drawn,
and 4 each as an array, as a tensor and in the interpreter that it is compared with."""

_UNKNOWN = 2**36
_CGROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def memory_bytes() -> int:
    """Returns the memory that this process can have at most, in bytes.

    That of the machine, or of the container that it runs in; 64 GiB if the system
    does not tell.
    """
    limits = [_UNKNOWN]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _CGROUPS:
        try:
            limits.append(int(pathlib.Path(name).read_text("ascii")))
        except (OSError, ValueError):  # Not there, or "max".
            continue
    return min(limits)


def check_sizes(model: Model, examples: int) -> None:
    """Refuses a model with a tensor that could not be run on a few examples.

    Looked at are the inputs, and in graph models the results of all layers, by the
    shapes that Keras knows. Sizes that are open count as `OPEN_SIZE`.

    Args:
        model: A built model.
        examples: How many it is to be run on at once.

    Raises:
        ValueError: Naming the tensor, and what it would take.
    """
    memory = memory_bytes()
    for name, shape in _tensors(model):
        sizes = [OPEN_SIZE if size is None else size for size in shape[1:]]
        needed = BYTES_PER_VALUE * examples * math.prod(sizes)
        if needed > memory:
            raise ValueError(
                f"Model '{model.name[:60]}' is too large to be run here: tensor "
                f"'{name[:60]}' has the shape {shape}, which for {examples} examples "
                f"takes {needed / 2**30:,.0f} GiB; this machine has "
                f"{memory / 2**30:,.0f} GiB. Make it smaller, or leave the size open "
                "(`None`)."
            )


def _tensors(model: Model) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    specs = internals.input_specs(model)
    for spec in [] if specs is None else keras.tree.flatten(specs):
        yield spec.name, tuple(spec.shape)
    for layer in internals.flatten_layers(model, include_self=True):
        if isinstance(layer, keras.Sequential | internals.Functional):
            yield from keras_graphs.graph_tensors(layer)
