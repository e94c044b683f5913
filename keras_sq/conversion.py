"""From a float model to a quantized one, and back.

`quantize_model` copies the model (by its configuration, then its state) and
turns the kernels' layers of the copy into quantized ones where they stand;
`strip_quantization` builds the plain model again, with the quantized kernels
as its weights. What happened to every layer, and why, is on the model:
`model.quantization_report`.

Design note: **copy, then change in place**, rather than rebuilding the graph
with new layers. Rebuilding reaches the layers of graph models only; layers
inside attention, recurrent or custom layers and subclassed models would need
a second way, and shared layers a third.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq import _checks
from keras_sq import _keras_internals as internals
from keras_sq import layers as sq_layers
from keras_sq.layers import container, registry
from keras_sq.layers.quantized import StochasticallyQuantized, filters_last
from keras_sq.layers.settings import Settings
from keras_sq.quantizers import Quantizer
from keras_sq.types import Layer, LayerKey, LayerKeys, Model, Overrides


@dataclasses.dataclass(frozen=True)
class LayerOutcome:
    """What `quantize_model` did with a layer that has weights of its own.

    Attributes:
        path: Names of the layers that hold it and its own, by slashes.
        layer_type: Class name in the float model.
        quantizer: The quantizer as text, or `None` if the layer stays float.
        reason: Why it stays float, or an empty string.
    """

    path: str
    layer_type: str
    quantizer: str | None
    reason: str = ""


def quantize_model(
    model: Model,
    kernel_quantizer: Any = "ternary",
    *,
    granularity: str = "filter",
    probability: str = "linear",
    selection: str = "roulette",
    draw: str = "paper",
    quantized_gradient: str = "straight_through",
    inference: str = "quantized",
    skip: LayerKeys | None = None,
    overrides: Overrides | None = None,
    seed: int | None = None,
) -> Model:
    """Returns a copy of a model whose kernels are stochastically quantized.

    The copy has the weights, names and layer sharing of the original, which
    is left alone. It is not compiled. Train it with
    `keras_sq.callbacks.StochasticQuantization`; without this callback
    everything is quantized from the first step on.

    Works on Sequential, functional, nested and subclassed models, with
    layers shared or inside custom layers; these must have a `get_config`
    from which Keras can make them again, as for saving.

    Args:
        model: A built `keras.Model`.
        kernel_quantizer: A quantizer or its name, see `keras_sq.quantizers`.
        granularity: `"filter"` or `"element"`; see `keras_sq.layers.Settings`
            for this and the next five.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`.
        selection: `"roulette"`, `"deterministic"` or `"fixed"`.
        draw: `"paper"` or `"released"`.
        quantized_gradient: `"straight_through"`,
            `"clipped_straight_through"` or `"blocked"`.
        inference: `"quantized"` or `"hybrid"`.
        skip: Layers that stay float: a name, a path, an `fnmatch` pattern of
            either, a layer class, a predicate `layer -> bool`, or a list of
            these. A layer that holds others (attention, a nested model)
            stands for all of them.
        overrides: Layer key (as in `skip`) -> a quantizer or its name, a
            dict of settings, or `None` to skip; the last match wins.
        seed: Int seed of all random draws, or `None`.

    Returns:
        The quantized model.

    Raises:
        TypeError: If `model` or an argument has the wrong type.
        ValueError: If the model is not built, is quantized already, holds a
            kernel that is not finite, has nothing to quantize or cannot be
            copied, or if a key of `skip` or `overrides` matches no layer.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4, name="hidden"),
        ...      keras.layers.Dense(2, name="logits")])
        >>> sq_model = keras_sq.quantize_model(model, "binary", skip="logits")
        >>> [outcome.quantizer for outcome in sq_model.quantization_report]
        ['BinaryQuantizer()', None]
    """
    settings = Settings(
        kernel_quantizer=kernel_quantizer,
        granularity=granularity,
        probability=probability,
        selection=selection,
        draw=draw,
        quantized_gradient=quantized_gradient,
        inference=inference,
    )
    if seed is not None:
        _checks.integer("seed", seed, 0)
    _check_model(model)
    if sq_layers.quantized_layers(model):
        raise ValueError(
            f"Model '{model.name}' is quantized already (layer "
            f"'{sq_layers.quantized_layers(model)[0][0]}'). Start from the float "
            "model, or from `keras_sq.strip_quantization(model)`."
        )
    plan = _plan(model, settings, skip, overrides)
    _check_kernels(model, plan)
    copy = copy_model(model)
    seeds = np.random.SeedSequence(seed).generate_state(len(plan))
    chosen: dict[int, Settings] = {}
    for (_, layer), entry, new_seed in zip(
        sq_layers.layer_paths(copy), plan, seeds, strict=True
    ):
        if entry.settings is not None:
            mask_seed = None if seed is None else int(new_seed >> 1)
            chosen[id(layer)] = entry.settings.replace(mask_seed=mask_seed)
    _promote(copy, chosen)
    # Past Keras's attribute tracking, which would turn the list into its own.
    copy.__dict__["quantization_report"] = [
        entry.outcome for entry in plan if entry.outcome is not None
    ]
    return copy


def strip_quantization(model: Model) -> Model:
    """Returns a plain Keras model with the quantized kernels as weights.

    It computes what the quantized model computes at inference, and loads
    without this package. Layers that were not quantized keep their weights.

    Args:
        model: A built model from `quantize_model`, or with layers of
            `keras_sq.layers`. It is left alone.

    Returns:
        The plain model, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is not built, has no quantized layer or cannot be
            copied.
    """
    _check_model(model)
    if not sq_layers.quantized_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no quantized layer: nothing to strip."
        )
    return copy_model(model, _float_copy, _copy_quantized_kernels)


@dataclasses.dataclass(frozen=True)
class KernelCodes:
    """A quantized kernel, taken apart: `codes · scale`.

    Attributes:
        codes: Int8 array of the kernel's shape.
        scale: Float array that broadcasts to it.
    """

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]

    @property
    def kernel(self) -> np.ndarray[Any, Any]:
        """The quantized kernel, `codes · scale`."""
        return self.codes.astype(self.scale.dtype) * self.scale


def get_codes(model: Model) -> dict[str, KernelCodes]:
    """Returns the integer codes and scales of all quantized kernels.

    Args:
        model: A model with quantized layers, or one such layer.

    Returns:
        Dict from `"<path of the layer>/<weight>"` to codes and scale.

    Raises:
        ValueError: If nothing is quantized.

    Example:
        >>> layer = keras_sq.layers.SQDense(1, kernel_quantizer="binary")
        >>> layer.build((None, 2))
        >>> _ = layer.latent().assign([[0.5], [-1.5]])
        >>> (codes,) = keras_sq.get_codes(layer).values()
        >>> codes.codes.tolist(), codes.scale.tolist()
        ([[1], [-1]], [[1.0]])
    """
    found = {}
    for path, layer in sq_layers.quantized_layers(model):
        quantizer = layer.quantization_settings.kernel_quantizer
        for name in layer.quantized_weights:
            value = internals.read(layer.latent(name))
            columns, restore = filters_last(value, layer.filter_axes(name))
            fitted = quantizer.fit(columns)
            codes = restore(quantizer.encode(columns, *fitted))
            axes = layer.filter_axes(name)
            shape = tuple(
                size if axis in axes else 1 for axis, size in enumerate(value.shape)
            )
            scale = keras.ops.reshape(keras.ops.cast(fitted[0], value.dtype), shape)
            found[f"{path}/{name}"] = KernelCodes(
                keras.ops.convert_to_numpy(codes).astype(np.int8),
                keras.ops.convert_to_numpy(scale),
            )
    if not found:
        raise ValueError(
            "No quantized layer found. Make the model one with "
            "`keras_sq.quantize_model(model)`."
        )
    return found


# Copying.


def copy_model(
    model: Model,
    copy_layer: Callable[[Layer], Layer] | None = None,
    copy_state: Callable[[Layer, Layer], None] | None = None,
) -> Model:
    """Returns a new model with the architecture and the state of a model.

    Args:
        model: A built model.
        copy_layer: Makes a new, stateless layer from an old one; by default
            from its configuration.
        copy_state: `copy_state(old, new)` copies the variables of a layer,
            not of the layers inside; by default all of them, in order.

    Raises:
        ValueError: If a layer cannot be made from its configuration.
    """
    make = _safely(copy_layer or _same_copy)
    with _strategy_scope(model):
        if internals.is_graph_model(model):
            copy = keras.models.clone_model(model, clone_function=make, recursive=True)
        else:
            copy = make(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        old_layers = internals.flatten_layers(model, include_self=True)
        new_layers = internals.flatten_layers(copy, include_self=True)
        if len(old_layers) != len(new_layers) or not copy.built:
            raise ValueError(
                f"Model '{model.name}' (of type {type(model).__name__}) could not be "
                "copied: the model made from its configuration is not built, or "
                "has other layers. Its `get_config()` must describe all of its "
                "constructor's arguments, and it must be callable on its own "
                "inputs alone."
            )
        for old, new in zip(old_layers, new_layers, strict=True):
            (copy_state or _copy_variables)(old, new)
            # Layers made by a custom layer's constructor got fresh names.
            if new.name != old.name:
                new.name = old.name
    return copy


def _same_copy(layer: Layer) -> Layer:
    if isinstance(layer, keras.layers.Lambda):
        # Its `from_config` refuses Python code, which here is the caller's own.
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    return type(layer).from_config(layer.get_config())


def _float_copy(layer: Layer) -> Layer:
    if isinstance(layer, StochasticallyQuantized | container.QuantizedContainer):
        config = _float_config(layer.float_config())
        return type(layer).float_class.from_config(config)  # type: ignore[union-attr]
    return _same_copy(layer)


def _float_config(config: Any) -> Any:
    """Returns a configuration with the quantized layers inside made plain.

    Wrappers such as TimeDistributed describe the layer they wrap.
    """
    if isinstance(config, list | tuple):
        return type(config)(_float_config(entry) for entry in config)
    if not isinstance(config, dict):
        return config
    new = {key: _float_config(value) for key, value in config.items()}
    quantized = None
    if isinstance(new.get("registered_name"), str):
        quantized = keras.saving.get_registered_object(new["registered_name"])
    if isinstance(quantized, type) and issubclass(quantized, StochasticallyQuantized):
        ours = set(Settings().get_config())
        inner = {k: v for k, v in new["config"].items() if k not in ours}
        return new | container.class_reference(quantized.float_class) | {
            "config": inner
        }
    if isinstance(quantized, type) and registry.is_static_container(quantized):
        inner = dict(new["config"])
        inner.pop("quantized_children", None)
        base = quantized.float_class  # type: ignore[attr-defined]
        return new | container.class_reference(base) | {"config": inner}
    return new


def _copy_variables(old: Layer, new: Layer) -> None:
    pairs = [
        (internals.own_variables(old), internals.own_variables(new)),
        (internals.seed_states(old), internals.seed_states(new)),
    ]
    for sources, targets in pairs:
        if [tuple(v.shape) for v in sources] != [tuple(v.shape) for v in targets]:
            raise ValueError(
                f"Layer '{old.name}' (of type {type(old).__name__}) could not be "
                "copied: the layer made from its configuration has other "
                "variables. Its `get_config()` must describe all of its "
                "constructor's arguments."
            )
        for source, target in zip(sources, targets, strict=True):
            target.assign(source)


def _copy_quantized_kernels(old: Layer, new: Layer) -> None:
    if not isinstance(old, StochasticallyQuantized):
        _copy_variables(old, new)
        return
    # These have no counterpart; the others are in the same order.
    quantized = {id(old.latent(name)): name for name in old.quantized_weights}
    extra = {id(v) for v in old.quantization_state()}
    sources = [v for v in internals.own_variables(old) if id(v) not in extra]
    for source, target in zip(sources, internals.own_variables(new), strict=True):
        name = quantized.get(id(source))
        target.assign(source if name is None else old.quantized_kernel(name))
    seeds = zip(internals.seed_states(old), internals.seed_states(new), strict=True)
    for source, target in seeds:
        target.assign(source)


def _safely(make: Callable[[Layer], Layer]) -> Callable[[Layer], Layer]:
    def made(layer: Layer) -> Layer:
        try:
            return make(layer)
        except Exception as error:
            raise ValueError(
                f"Layer '{layer.name}' (of type {type(layer).__name__}) could not "
                "be made again from its configuration, as copying and saving "
                "need it. Give the class a `get_config()` that returns all of "
                f"its constructor's arguments. Keras says: {error}"
            ) from error

    return made


def _strategy_scope(model: Model) -> Any:
    """Returns the scope of the strategy that a model was made under."""
    import contextlib

    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


# Planning and promotion.


@dataclasses.dataclass(frozen=True)
class _Entry:
    settings: Settings | None
    outcome: LayerOutcome | None


def _plan(
    model: Model,
    settings: Settings,
    skip: LayerKeys | None,
    overrides: Overrides | None,
) -> list[_Entry]:
    """Returns what happens to every layer, in the order of `layer_paths`.

    Raises:
        ValueError: If a key matches nothing or nothing is left to quantize.
    """
    paths = sq_layers.layer_paths(model)
    skipped = _as_keys(skip)
    replaced = _override_settings(overrides, settings)
    skip_hits = {id(key): _matches(key, paths) for key in skipped}
    override_hits = {id(key): _matches(key, paths) for key, _ in replaced}
    for argument, keys, hits in (
        ("skip", skipped, skip_hits),
        ("overrides", [key for key, _ in replaced], override_hits),
    ):
        for key in keys:
            if not hits[id(key)]:
                known = [path for path, _ in paths]
                hint = _checks.did_you_mean(
                    key, [*known, *(path.rsplit("/", 1)[-1] for path in known)]
                )
                raise ValueError(
                    f"Argument `{argument}` names {key!r}, which matches no layer of "
                    f"model '{model.name}'. Its layers: "
                    f"{', '.join(map(repr, known[:40]))}.{hint}"
                )
    plan: list[_Entry] = []
    for path, layer in paths:
        choice: Settings | None = settings
        reason = ""
        for key, replacement in replaced:
            if path in override_hits[id(key)]:
                choice = replacement
                reason = "" if replacement else f"overrides[{key!r}] is None"
        for key in skipped:
            if path in skip_hits[id(key)]:
                choice, reason = None, f"named by skip={_name_of(key)}"
        plan.append(_entry(path, layer, choice, reason))
    if not any(entry.settings for entry in plan):
        reasons = "; ".join(
            f"'{e.outcome.path}': {e.outcome.reason}"
            for e in plan
            if e.outcome is not None
        )
        raise ValueError(
            f"Model '{model.name}' has nothing to quantize. Layers with weights: "
            f"{reasons or 'none'}. Covered are: "
            f"{', '.join(sorted(base.__name__ for base in registry.covered()))}; "
            "others by `keras_sq.register(MyLayer, ('kernel',))`."
        )
    return plan


def _entry(path: str, layer: Layer, choice: Settings | None, reason: str) -> _Entry:
    layer_type = type(layer).__name__
    if registry.quantized_class(type(layer)) is None:
        if not _has_kernel(layer):
            return _Entry(None, None)
        base = next((b for b in type(layer).__mro__ if b in registry.covered()), None)
        why = f"no quantized class for {layer_type}"
        if base is not None:
            why = f"{layer_type} is a subclass of {base.__name__}"
        return _Entry(
            None,
            LayerOutcome(
                path, layer_type, None, f"{why}; see `keras_sq.register`"
            ),
        )
    if choice is not None and not layer.built:
        choice, reason = None, "was never built: the model does not call it"
    if choice is None:
        return _Entry(None, LayerOutcome(path, layer_type, None, reason))
    registry.assert_supported(layer)
    quantizer = repr(choice.kernel_quantizer)
    return _Entry(choice, LayerOutcome(path, layer_type, quantizer))


def _has_kernel(layer: Layer) -> bool:
    return any(len(v.shape) >= 2 for v in internals.own_variables(layer))


def _as_keys(keys: LayerKeys | None) -> list[LayerKey]:
    if keys is None:
        return []
    if isinstance(keys, str | type) or callable(keys):
        return [keys]
    if not isinstance(keys, Sequence | set | frozenset):
        raise TypeError(
            "Argument `skip` must be a layer name, path, pattern, class, predicate, "
            f"or a list of these. Received: skip={keys!r}"
        )
    for key in keys:
        if not (isinstance(key, str | type) or callable(key)):
            raise TypeError(
                "Argument `skip` must hold names, paths, patterns, layer classes or "
                f"predicates. Received: {key!r} (of type {type(key).__name__})"
            )
    return list(keys)


def _override_settings(
    overrides: Overrides | None, settings: Settings
) -> list[tuple[LayerKey, Settings | None]]:
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


def _matches(key: LayerKey, paths: list[tuple[str, Layer]]) -> set[str]:
    """Returns the paths that a key names, and all paths below these."""
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


def _name_of(key: LayerKey) -> str:
    return repr(key) if isinstance(key, str) else getattr(key, "__name__", repr(key))


def _promote(layer: Layer, chosen: dict[int, Settings]) -> None:
    """Turns the chosen layers below `layer` into quantized ones."""
    if not internals.is_graph_model(layer):
        keys = container.child_keys(layer)
        children = {key: chosen[id(child)] for key, child in keys if id(child) in chosen}
        if children:
            layer.__class__ = registry.container_class(type(layer))
            layer.set_quantized_children(children)
        return
    for child in internals.sublayers(layer):
        settings = chosen.get(id(child))
        if settings is None:
            _promote(child, chosen)
        elif not isinstance(child, StochasticallyQuantized):
            registry.promote(child, settings)


# Checks.


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a keras.Model (of Keras 3; `tf_keras` models "
            "are not). "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no kernels yet. Call it "
            "on a batch, give it a `keras.Input`, or call `model.build(input_shape)`."
        )


def _check_kernels(model: Model, plan: list[_Entry]) -> None:
    for (path, layer), entry in zip(
        sq_layers.layer_paths(model), plan, strict=True
    ):
        if entry.settings is None:
            continue
        for variable in internals.own_variables(layer):
            value = keras.ops.convert_to_numpy(internals.read(variable))
            if not np.all(np.isfinite(value.astype("float32"))):
                raise ValueError(
                    f"Weight '{variable.name}' of layer '{path}' holds NaN or "
                    "infinite values. Train or load the float model anew: such a "
                    "kernel has no quantization error to select by."
                )
