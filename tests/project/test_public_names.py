"""The package's names are all there, and each says how to use it."""

import inspect

import pytest

import keras_sq

PARTS = [name for name in keras_sq.__all__ if inspect.ismodule(getattr(keras_sq, name))]

WITHOUT_EXAMPLE = {
    # Bases and helpers of own classes; the examples are with what is made of them.
    "activation_rules": {"ActivationRule", "StateSpec", "register"},
    "layers": {"QuantizedActivation", "QuantizedContainer", "StochasticallyQuantized"},
    "learning_rates": {"RatioSchedule"},
    "schedules": {"RatioSchedule", "check_fits", "check_length", "nearest_step"},
}

NAMED_BY_GET = {"datasets", "models"}
"""Parts of which a user calls one function, `models.get` or `datasets.load`."""


def public(module):
    """Returns the classes and functions of this package that a module shows."""
    names = getattr(module, "__all__", None) or [x for x in vars(module) if x[0] != "_"]
    found = {name: getattr(module, name) for name in names}
    return {
        name: value
        for name, value in found.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("keras_sq")
    }


def test_all_names_what_the_package_has():
    assert sorted(keras_sq.__all__) == keras_sq.__all__
    assert set(keras_sq.__all__) <= set(dir(keras_sq))
    assert {"plots", "models", "datasets", "callbacks", "quantizers"} <= set(PARTS)
    # What the package imports for its users, and not only for itself.
    found = {
        name
        for name, value in vars(keras_sq).items()
        if getattr(value, "__module__", "").startswith("keras_sq.")
    }
    assert found - set(keras_sq.__all__) == set()


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="has no attribute 'quantise_model'"):
        _ = keras_sq.quantise_model


def test_every_public_name_has_an_example():
    # The suite runs them, as doctests.
    missing = set()
    for part in ["", *sorted(set(PARTS) - NAMED_BY_GET)]:
        module = getattr(keras_sq, part) if part else keras_sq
        for name, value in public(module).items():
            if ">>>" not in (inspect.getdoc(value) or ""):
                missing.add((part, name))
    allowed = {
        (part, name) for part, names in WITHOUT_EXAMPLE.items() for name in names
    }
    assert missing - allowed == set()
