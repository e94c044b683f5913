"""Names for the types that the signatures of this package share.

Keras has no public type for "a tensor of whichever backend runs", so the
aliases are `Any` for a type checker; they are there for the reader.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
"""A NumPy array of any shape and dtype."""

Tensor: TypeAlias = Any
"""A tensor of the active Keras backend, or anything that converts to one."""

Variable: TypeAlias = Any
"""A `keras.Variable`."""

Layer: TypeAlias = Any
"""A `keras.layers.Layer` (Keras ships no type information)."""

Model: TypeAlias = Any
"""A `keras.Model`."""

Config: TypeAlias = dict[str, Any]
"""What `get_config()` returns: JSON-serializable."""

Logs: TypeAlias = dict[str, Any] | None
"""What Keras gives its callbacks: metrics by name."""

LayerKey: TypeAlias = str | type | Callable[[Layer], bool]
"""Names layers: a name, a path or an `fnmatch` pattern of either, a layer
class, or a predicate on the layer."""

LayerKeys: TypeAlias = LayerKey | Sequence[LayerKey]

Overrides: TypeAlias = Mapping[LayerKey, Any]
"""Layer key -> quantizer, settings dict, or `None` (stays float)."""
