"""Checks of user input, with one wording for all errors of the package.

Every message says the rule, then the value received (`Argument `ratio` must
be in [0, 1]. Received: ratio=1.2`), and is raised before anything changes.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeVar

import keras

_Kind = TypeVar("_Kind")

MAX_NAMES = 40
"""Most names that a message lists; there may be thousands."""

MAX_NAME_LENGTH = 80
"""Most characters of each."""


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Returns `value` if it is one of the known strings.

    Raises:
        ValueError: If it is not; the message lists the known ones and, for a
            near miss, what was probably meant.
    """
    choices = list(known)
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(
        f"Argument `{name}` must be one of {', '.join(map(repr, choices))}. "
        f"Received: {name}={value!r}.{did_you_mean(value, choices)}"
    )


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for a near miss, else an empty string."""
    if not isinstance(value, str):
        return ""
    close = difflib.get_close_matches(value, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[Any]) -> str:
    """Returns names for a message, quoted: the first `MAX_NAMES`, and how many more."""
    known = [repr(str(name)[:MAX_NAME_LENGTH]) for name in names]
    more = len(known) - MAX_NAMES
    tail = f" and {more:,} more" if more > 0 else ""
    return ", ".join(known[:MAX_NAMES]) + tail


def deserialized(config: Any, kind: type[_Kind], what: str) -> _Kind:
    """Returns the object that a Keras configuration describes.

    Args:
        config: What `keras.saving.serialize_keras_object` returned.
        kind: What it must be.
        what: What that is called in the error, such as `"a quantizer"`.

    Raises:
        TypeError: If it is something else.
    """
    instance = keras.saving.deserialize_keras_object(config)
    if not isinstance(instance, kind):
        raise TypeError(
            f"Expected the configuration of {what}. "
            f"Received one of a {type(instance).__name__}."
        )
    return instance


def fraction(name: str, value: Any) -> float:
    """Returns `value` as a float in [0, 1].

    Raises:
        TypeError: If it is no real number.
        ValueError: If it lies outside [0, 1] or is NaN.
    """
    number = _real(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(
            f"Argument `{name}` must be in [0, 1]. Received: {name}={value}"
        )
    return number


def positive(name: str, value: Any) -> float:
    """Returns `value` as a finite float above 0.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is not finite or not above 0.
    """
    number = _real(name, value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(
            f"Argument `{name}` must be a finite number above 0. "
            f"Received: {name}={value}"
        )
    return number


def boolean(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"Argument `{name}` must be a bool. Received: {name}={value!r}")
    return value


def integer(
    name: str, value: Any, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Returns `value` as an int within the bounds (both inclusive).

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"Argument `{name}` must be an integer. "
            f"Received: {name}={value!r} (of type {type(value).__name__})"
        )
    number = int(value)
    if minimum is not None and number < minimum:
        raise ValueError(
            f"Argument `{name}` must be at least {minimum}. Received: {name}={value}"
        )
    if maximum is not None and number > maximum:
        raise ValueError(
            f"Argument `{name}` must be at most {maximum}. Received: {name}={value}"
        )
    return number


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"Argument `{name}` must be a number. "
            f"Received: {name}={value!r} (of type {type(value).__name__})"
        )
    return float(value)
