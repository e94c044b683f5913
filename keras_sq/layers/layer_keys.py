"""How a caller names layers: by name, path, pattern, class, predicate or place.

`skip` and `overrides` of `quantize_model` take such keys. The model's graph says which
layers a place such as `"@first"` names.
"""

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from keras_sq.core import checks
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, LayerKey, LayerKeys, Model, Overrides, Variable
from keras_sq.layers import layer_paths, promotion, topology
from keras_sq.layers.settings import Settings

FIRST, LAST, DOWNSAMPLING, SMALL = "@first", "@last", "@downsampling", "@small"
PLACES = (FIRST, LAST, DOWNSAMPLING, SMALL)
"""Keys for layers with kernels: those that see the model's inputs, those whose result
no other one sees, convolutions that only down-sample (see `topology.resizes`), and the
smallest ones (see `smallest_paths`)."""

ABSENT = (DOWNSAMPLING, SMALL)
"""Keys that may match nothing: not every network has such layers."""

SMALL_PART = 0.3
"""Part of the weights that `SMALL` layers hold together, at most."""


def as_keys(keys: LayerKeys | None, name: str = "skip") -> list[LayerKey]:
    """Returns an argument that names layers as a list of keys.

    Args:
        keys: The argument.
        name: What it is called.

    Raises:
        TypeError: If it holds something that is no key.
    """
    if keys is None:
        return []
    if isinstance(keys, str | type) or callable(keys):
        return [keys]
    if not isinstance(keys, Sequence | set | frozenset):
        raise TypeError(
            f"Argument `{name}` must be a layer name, path, pattern, class, predicate, "
            f"or a list of these. Received: {name}={keys!r}"
        )
    for key in keys:
        if not (isinstance(key, str | type) or callable(key)):
            raise TypeError(
                f"Argument `{name}` must hold names, paths, patterns, layer classes or "
                f"predicates. Received: {key!r} (of type {type(key).__name__})"
            )
    return list(keys)


def override_settings(
    overrides: Overrides | None, settings: Settings
) -> list[tuple[LayerKey, Settings | None]]:
    """Returns the `overrides` argument as keys with complete settings.

    Args:
        overrides: Key -> quantizer, settings to change, or `None` (skip).
        settings: What holds where nothing is overridden.

    Raises:
        TypeError: If it is no mapping, or a setting has the wrong type.
        ValueError: If a setting is unknown.
    """
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "Argument `overrides` must be a dict from layer names, paths, patterns, "
            "classes or predicates to quantizers or settings. "
            f"Received: overrides={overrides!r}"
        )
    replaced: list[tuple[LayerKey, Settings | None]] = []
    for key, value in overrides.items():
        if value is None:
            replaced.append((key, None))
        elif isinstance(value, Settings):
            replaced.append((key, value))
        elif isinstance(value, Mapping) and "class_name" not in value:
            replaced.append((key, settings.replace(**value)))
        else:
            replaced.append((key, settings.replace(kernel_quantizer=value)))
    return replaced


def matching_paths(
    key: LayerKey, paths: list[tuple[str, Layer]], model: Model
) -> set[str]:
    """Returns the paths that a key names, and all paths below these.

    Args:
        key: A name, path, pattern, class, predicate, or one of `PLACES`.
        paths: All layers of the model with their paths.
        model: The model.

    Raises:
        ValueError: If the key looks like a place and is none.
    """
    if isinstance(key, str) and key.startswith("@"):
        if key == SMALL:
            return smallest_paths(paths)
        return _paths_at(key, model)
    hits = []
    for path, layer in paths:
        if isinstance(key, str):
            names = (path, layer.name)
            hit = key in names or any(fnmatch.fnmatchcase(n, key) for n in names)
        elif isinstance(key, type):
            hit = isinstance(layer, key)
        else:
            hit = bool(key(layer))
        if hit:
            hits.append(path)
    below = tuple(f"{hit}/" for hit in hits)
    return {p for p, _ in paths if p in hits or (below and p.startswith(below))}


def quantized_paths(
    argument: str, key: LayerKey, model: Model, quantized: Iterable[str]
) -> set[str]:
    """Returns the paths of the quantized layers that a key names.

    Args:
        argument: Name of the argument that has the key, for the error.
        key: A key of layers.
        model: The model.
        quantized: Paths of its quantized layers.

    Raises:
        ValueError: If the key matches none of them.
    """
    known = list(quantized)
    hits = matching_paths(key, layer_paths(model), model) & set(known)
    if not hits:
        raise ValueError(
            f"Argument `{argument}` names {key!r}, which matches no quantized layer of "
            f"model '{model.name}'. These are: {checks.listed(known)}."
            f"{meant(key, known)}"
        )
    return hits


def _paths_at(place: str, model: Model) -> set[str]:
    checks.one_of("skip", place, PLACES)
    return {
        at.path
        for at in topology.places(model, has_kernels)
        if (place == FIRST and at.first)
        or (place == LAST and at.last)
        or (place == DOWNSAMPLING and topology.resizes(at.layer))
    }


def smallest_paths(paths: list[tuple[str, Layer]]) -> set[str]:
    """Returns the paths of the layers that `SMALL` names.

    These are the layers with the smallest kernels, up to `SMALL_PART` of the weights
    that can be quantized. Layers of one size are all included or all excluded, so equal
    blocks are treated alike. Typical ones are first convolutions, depthwise ones,
    shortcuts and heads.

    Args:
        paths: All layers of the model with their paths.
    """
    by_size: defaultdict[int, set[str]] = defaultdict(set)
    for path, layer in paths:
        if promotion.quantized_class_of(layer) is not None:
            by_size[sum(math.prod(v.shape) for v in _matrices(layer))].add(path)
    limit = SMALL_PART * sum(size * len(alike) for size, alike in by_size.items())
    small: set[str] = set()
    weights = 0
    for size in sorted(by_size):
        weights += size * len(by_size[size])
        if weights > limit:
            break
        small |= by_size[size]
    return small


def has_kernels(layer: Layer) -> bool:
    """Whether a layer itself has a weight that could be quantized."""
    if promotion.quantized_class_of(layer) is not None:
        return True
    return not internals.sublayers(layer) and has_matrix(layer)


def has_matrix(layer: Layer) -> bool:
    """Whether a layer itself has a weight of two axes or more."""
    return bool(_matrices(layer))


def large_matrices(layer: Layer) -> list[Variable]:
    """Returns a layer's own weights that are more than a vector.

    A vector is what has one axis, or ones before the last: a class token
    `(1, 1, size)`, which has no filters to tell apart either.
    """
    return [v for v in _matrices(layer) if math.prod(v.shape[:-1]) > 1]


def _matrices(layer: Layer) -> list[Variable]:
    return [v for v in internals.own_variables(layer) if len(v.shape) >= 2]


def meant(key: LayerKey, paths: Iterable[str]) -> str:
    """Returns a question for a key that matches no path, but nearly does.

    Args:
        key: The key.
        paths: Of the layers; their names are looked at, too.
    """
    known = list(paths)
    names = [path.rsplit("/", 1)[-1] for path in known]
    return checks.did_you_mean(key, [*known, *names])


def name_of(key: LayerKey) -> str:
    """Returns how a key is called in a report."""
    return repr(key) if isinstance(key, str) else getattr(key, "__name__", repr(key))
