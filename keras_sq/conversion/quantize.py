"""From a float model to a quantized one; `strip.py` goes the other way.

`quantize_model` copies the model (its configuration, then its state) and turns the
chosen layers of the copy into quantized ones in place. The report says what happened
to every layer, and why: `model.quantization_report`.

Design note: **copy, then change in place**, rather than rebuilding the graph
with new layers. Rebuilding reaches the layers of graph models only; layers
inside attention, recurrent or custom layers and subclassed models would need
a second way, and shared layers a third.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from keras_sq import layers as sq_layers
from keras_sq.conversion import training_signs
from keras_sq.conversion.copying import (
    copy_model,
    require_built,
    stateful_layers,
)
from keras_sq.conversion.plan import (
    QuantizationReport,
    check_kernels,
    plan_quantization,
)
from keras_sq.conversion.same_outputs import check_same
from keras_sq.core import backend, checks, keras_copying
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer, LayerKeys, Model, Overrides
from keras_sq.layers import container, promotion
from keras_sq.layers.hybrid_kernel import computing_float
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.layers.selection import SoftRefresh
from keras_sq.layers.settings import Settings


def quantize_model(
    model: Model,
    kernel_quantizer: Any = "ternary",
    *,
    input_quantizer: Any = None,
    input_granularity: str = "all",
    granularity: str = "filter",
    probability: str = "linear",
    selection: str | SoftRefresh = "roulette",
    draw: str = "paper",
    quantized_gradient: str = "straight_through",
    full_precision: str = "identity",
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
        input_quantizer: What the inputs of the quantized layers become, a name
            such as `"lq-2"` or a layer as a pattern, see
            `keras_sq.activation_rules.get`; `None` leaves them alone. Embeddings
            have none.
        input_granularity: `"all"`, or `"element"` for inputs that are quantized
            entry by entry, by a mask; see `keras_sq.layers.Settings` for this and
            the next seven.
        granularity: `"filter"` or `"element"`.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`.
        selection: `"roulette"`, `"deterministic"`, `"fixed"`, `"soft_refresh"` or
            a `keras_sq.SoftRefresh`.
        draw: `"paper"` or `"released"`.
        quantized_gradient: `"straight_through"`,
            `"clipped_straight_through"` or `"blocked"`.
        full_precision: `"identity"` or `"clip"`.
        inference: `"quantized"` or `"hybrid"`.
        skip: Layers that stay float: a name, a path, an `fnmatch` pattern of
            either, a layer class, a predicate `layer -> bool`, a place
            (`"@first"`: layers with a kernel that see the model's inputs;
            `"@last"`: those whose result no other one sees; `"@downsampling"`:
            convolutions no larger than their stride; `"@small"`: the smallest,
            with three tenths of the weights together at most), or a list of these. A
            layer that holds others (attention, a nested model) stands for all
            of them. `None` means nothing or, where inputs are quantized, the
            first and the last unless overridden, as in the papers; `()` always
            means nothing.
        overrides: Layer key (as in `skip`) -> a quantizer or its name, a
            dict of settings, or `None` to skip; the last match wins. `None`
            means `{"@small": UniformQuantizer(4, num_levels=13)}`, four bits
            where fewer cost most and save little, unless `kernel_quantizer` has
            as many or inputs are quantized; `{}` always means nothing.
        seed: Int seed of all random draws, or `None`.

    Returns:
        The quantized model.

    Raises:
        TypeError: If `model` or an argument has the wrong type.
        ValueError: If the model is not built, is quantized already, holds a
            kernel that is not finite, has nothing to quantize, cannot be
            copied, or has state that a copy loses, so that it computes something
            else; under a `tf.distribute.MultiWorkerMirroredStrategy` of several
            workers, which Keras 3 cannot train with; or if a key of `skip` or
            `overrides` matches no layer.

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
        input_quantizer=input_quantizer,
        input_granularity=input_granularity,
        granularity=granularity,
        probability=probability,
        selection=selection,
        draw=draw,
        quantized_gradient=quantized_gradient,
        full_precision=full_precision,
        inference=inference,
    )
    if seed is not None:
        checks.integer("seed", seed, 0)
    _require_a_strategy_that_trains()
    require_built(model)
    if sq_layers.quantized_layers(model):
        raise ValueError(
            f"Model '{model.name}' is quantized already (layer "
            f"'{sq_layers.quantized_layers(model)[0][0]}'). Start from the float "
            "model, or from `keras_sq.strip_quantization(model)`."
        )
    plan = plan_quantization(model, settings, skip, overrides, seed)
    check_kernels(plan)
    copy = copy_model(model)
    pairs = zip(stateful_layers(model), stateful_layers(copy), strict=True)
    copies = {id(old): new for old, new in pairs}
    chosen = {
        id(copies[id(entry.layer)]): entry.settings
        for entry in plan
        if entry.settings is not None
    }
    _promote(copy, chosen)
    report = QuantizationReport(
        entry.outcome for entry in plan if entry.outcome is not None
    )
    report.check = check_same(
        model, copy, "quantize_model", lambda: _computing_float(copy)
    )
    report.kernel_sums = training_signs.kernel_sums(copy)
    _set_report(copy, report)
    return copy


def _computing_float(model: Model) -> contextlib.AbstractContextManager[None]:
    return computing_float(layer for _, layer in sq_layers.quantized_layers(model))


def _set_report(model: Model, report: QuantizationReport) -> None:
    """Gives a model its report, which pickling and `copy.deepcopy` keep."""
    # Past Keras's attribute tracking, which would turn the list into its own.
    model.__dict__["quantization_report"] = report
    # Keras pickles a model as the file that `save` writes.
    model.__dict__["__reduce_ex__"] = lambda protocol: (
        _with_report,
        (*model.__reduce__(), report),
    )


def _with_report(
    restore: Callable[..., Model], arguments: Any, report: QuantizationReport
) -> Model:
    model = restore(*arguments)
    _set_report(model, report)
    return model


def _require_a_strategy_that_trains() -> None:
    workers = backend.workers_of_strategy()
    if workers > 1:
        raise ValueError(
            "Keras 3 cannot `fit` a model under a `tf.distribute."
            "MultiWorkerMirroredStrategy`: it fails with `Attempt to convert a value "
            "(PerReplica...)`. In one machine use a `tf.distribute.MirroredStrategy`; "
            "across machines Keras's JAX backend (KERAS_BACKEND=jax) with `keras."
            "distribution.DataParallel`. Received: a strategy of "
            f"{workers} workers in scope."
        )


def _promote(layer: Layer, chosen: dict[int, Settings]) -> None:
    """Turns the chosen layers below `layer` into quantized ones."""
    if not keras_copying.describes_layers(layer):
        children = {
            key: chosen[id(child)]
            for key, child in container.child_keys(layer)
            if id(child) in chosen
        }
        if children:
            layer.__class__ = container.container_class(type(layer))
            layer.set_quantized_children(children)
        return
    for child in internals.sublayers(layer):
        settings = chosen.get(id(child))
        if settings is None:
            _promote(child, chosen)
        elif not isinstance(child, StochasticallyQuantized):
            promotion.promote(child, settings)
