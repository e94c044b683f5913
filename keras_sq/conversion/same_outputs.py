"""Whether two models compute the same, tried once on a few random inputs.

This checks the copies that the package makes of a model. State of a layer that is in
neither its configuration nor its saved variables would otherwise be lost silently.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_sq.conversion.copying import stateful_layers
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, Layer, Model, Tensor, Variable
from keras_sq.inputs import random_inputs

UNKNOWN_SIZES = (32, 128)
"""What is tried for open sizes: some networks refuse small images."""

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference as a part of the largest output, of other than float32."""

FLOAT32_TOLERANCE = 1e-4

CHECKED = "computes what the original computes"


def check_same(
    original: Model,
    copy: Model,
    task: str,
    within: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
) -> str:
    """Raises if a copy computes something else than its original, at inference.

    Neither model is changed. Nothing is raised where this cannot be tried: the
    original cannot be called on random inputs, or its outputs are random.

    Args:
        original: The model.
        copy: Its copy, with the same layers.
        task: What was done, for the error: "quantize_model".
        within: Makes the context in which the copy is called.

    Returns:
        `CHECKED`, or "not checked: " and why.

    Raises:
        ValueError: Naming a layer that differs, if one does so by itself.
    """
    within = within or contextlib.nullcontext
    inputs, expected, reason = _first_outputs(original)
    if reason:
        return f"not checked: {reason}"
    try:
        with within():
            outputs = _call(copy, inputs)
        difference = _difference(expected, outputs, original)
    except Exception as error:
        difference = f"the copy cannot be called ({_line(error)})"
    if not difference:
        if _may_hold_functions(original):
            with within():
                _require_independent(original, copy, inputs, outputs)
        return CHECKED
    if _difference(expected, _call(original, inputs), original):
        return "not checked: its outputs are random"
    raise ValueError(
        f"`{task}` made a copy of model '{original.name}' that computes something "
        f"else than the model: {difference}. "
        f"{_first_difference(original, copy, within)} Keras would lose it too when the "
        "model is saved and loaded: let `get_config` return it, keep it in a weight, "
        "or save it in `save_own_variables` (or `save_assets`) and read it in "
        "`load_own_variables` (or `load_assets`)."
    )


def _first_outputs(model: Model) -> tuple[Any, Any, str]:
    """Returns inputs and outputs of a model, or why there are none."""
    reason = ""
    for size in UNKNOWN_SIZES:
        try:
            inputs = random_inputs.random_inputs(model, size)
        except random_inputs.NoInputsError as error:
            return None, None, str(error)
        try:
            return inputs, _call(model, inputs), ""
        except Exception as error:  # Whatever the model may raise.
            reason = f"it cannot be called on random inputs ({_line(error)})"
    return None, None, reason


def _call(
    model: Layer, inputs: Any, values: Sequence[tuple[Variable, Tensor]] = ()
) -> list[Array]:
    """Returns the outputs of a model as arrays; no variable changes.

    Args:
        model: The model.
        inputs: What it is called on.
        values: Of variables, for this call.
    """
    with keras.StatelessScope(values, collect_losses=True):
        outputs = model(inputs, training=False)
    return [_array(x) for x in keras.tree.flatten(outputs) if x is not None]


def _array(value: Any) -> Array:
    array: Array = keras.ops.convert_to_numpy(value)
    # NumPy cannot compute with bfloat16.
    return array.astype("float32") if "float" in str(array.dtype) else array


def _may_hold_functions(model: Model) -> bool:
    """Whether a layer may have a function, and this the variables of other layers."""
    return any(
        isinstance(layer, keras.layers.Lambda)
        or type(layer).__module__.split(".")[0] not in ("keras", "keras_sq")
        for layer in internals.flatten_layers(model, include_self=True)
    )


def _require_independent(
    original: Model, copy: Model, inputs: Any, outputs: list[Array]
) -> None:
    """Raises if a copy computes with the original's variables: where they are NaN."""
    spoilt = [
        (variable, keras.ops.full_like(internals.read(variable), np.nan))
        for variable in original.variables
        if "float" in keras.backend.standardize_dtype(variable.dtype)
    ]
    spoilt_outputs = _call(copy, inputs, spoilt)
    for one, other in zip(outputs, spoilt_outputs, strict=True):
        if one.dtype.kind in "fc" and np.any(np.isnan(other) & ~np.isnan(one)):
            raise ValueError(
                f"The copy of model '{original.name}' would compute with weights of "
                "the original: a function in it (a Lambda layer, or an argument of a "
                "layer of your own) refers to them. Make it a layer that holds the "
                "other layer, and returns it from `get_config`."
            )


def _difference(expected: list[Array], outputs: list[Array], model: Layer) -> str:
    """Returns how outputs differ, or an empty string."""
    if [x.shape for x in expected] != [x.shape for x in outputs]:
        return "its outputs have other shapes"
    dtypes = {x.compute_dtype for x in internals.flatten_layers(model, True)}
    tolerance = max(TOLERANCE.get(dtype, FLOAT32_TOLERANCE) for dtype in dtypes)
    for one, other in zip(expected, outputs, strict=True):
        if one.dtype.kind not in "fc":
            if not np.array_equal(one, other):
                return "its outputs differ"
            continue
        finite = np.isfinite(one)
        if not np.array_equal(finite, np.isfinite(other)):
            return "its outputs are finite in other places"
        # By example: those of large values have large outputs.
        axes = tuple(range(1, one.ndim))
        errors = np.where(finite, one, 0) - np.where(finite, other, 0)
        sizes = np.max(np.abs(np.where(finite, one, 0)), axes, initial=0.0)
        errors = np.max(np.abs(errors), axes, initial=0.0)
        if np.any(errors > tolerance * sizes + np.finfo("float32").tiny):
            worst = np.argmax(errors - tolerance * sizes)
            size, error = np.ravel(sizes)[worst], np.ravel(errors)[worst]
            return f"outputs of up to {size:.3g} differ by {error:.3g}"
    return ""


def _first_difference(
    original: Model,
    copy: Model,
    within: Callable[[], contextlib.AbstractContextManager[None]],
) -> str:
    """Returns which layer differs; calls each layer on random inputs."""
    generator = np.random.default_rng(0)
    pairs = zip(stateful_layers(original), stateful_layers(copy), strict=True)
    for old, new in pairs:
        if internals.sublayers(old) or not old.built:
            continue
        shape = (old.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, list | tuple) or not all(
            size is None or isinstance(size, int) for size in shape
        ):
            continue
        sizes = [UNKNOWN_SIZES[0] if size is None else size for size in shape]
        x = generator.normal(random_inputs.WIDE, random_inputs.WIDE, [1, *sizes[1:]])
        x = keras.ops.cast(x, old.compute_dtype) if _takes_floats(old) else x
        try:
            expected = _call(old, x)
        except Exception:  # Takes something else; then another layer may tell.
            continue
        try:
            with within():
                same = not _difference(expected, _call(new, x), old)
        except Exception:
            same = False
        if not same:
            return (
                f"It is layer '{old.name}' (of type {type(old).__name__}): it has "
                "state that is neither in its configuration nor saved."
            )
    return "A layer has state that is neither in its configuration nor saved."


def _takes_floats(layer: Layer) -> bool:
    return "float" in str(layer.compute_dtype)


def _line(error: Exception) -> str:
    # Keras puts a line before the error's own, and that in bold face.
    text = re.sub(r"\x1b\[\d*m|Exception encountered when calling .*", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
