"""Objects by their names: what the `get` functions of the package have in common."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from keras_sq.core import checks
from keras_sq.core.types import Config

_Kind = TypeVar("_Kind")


def lookup(
    identifier: Any,
    kind: type,
    by_name: Mapping[str, Callable[[], _Kind]],
    deserialize: Callable[[Config], _Kind],
    argument: str,
    expected: str,
) -> _Kind:
    """Returns the object that an identifier stands for.

    Args:
        identifier: An object of the kind, a name, or a serialized object.
        kind: The class.
        by_name: Name -> function that returns the object.
        deserialize: Returns an object from its configuration.
        argument: Name of the argument, for the error about an unknown name.
        expected: The sentence that lists what is accepted, for the error about a
            wrong type; `{names}` stands for the names.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If the identifier is of another type.
    """
    if isinstance(identifier, kind):
        return cast(_Kind, identifier)
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, str):
        return by_name[checks.one_of(argument, identifier, by_name)]()
    hint = ""
    if isinstance(identifier, type):
        hint = f" Pass an instance: {identifier.__name__}(…)."
    names, received = ", ".join(map(repr, by_name)), type(identifier).__name__
    raise TypeError(
        f"{expected.format(names=names)} Received: {identifier!r} (of type "
        f"{received}).{hint}"
    )
