"""What copying a model layer by layer needs of Keras beyond its public functions."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

# References between serialized objects are followed in Keras's own scopes only.
from keras.src.backend.common import global_state

# `type(keras.Model(inputs, outputs))` without building one.
# Whether Keras's configuration of a class in functional style is that of its graph.
from keras.src.models.functional import Functional, functional_like_constructor

from keras_sq.core.types import Layer, Model


def copy_build_shapes(old: Model, new: Model) -> None:
    """Lets a model save the shapes that another one was called on.

    Without them, Keras does not build a subclassed model that it loads, and so not the
    optimizer either.
    """
    shapes = getattr(old, "_build_shapes_dict", None)
    if shapes and not getattr(new, "_build_shapes_dict", None):
        new._build_shapes_dict = shapes


def describes_layers(layer: Layer) -> bool:
    """Whether a model's configuration describes its layers one by one.

    A class in functional style whose constructor has other arguments describes these,
    and creates its layers again.
    """
    cls = type(layer)
    if cls in (Functional, keras.Sequential):
        return True
    return (
        issubclass(cls, Functional)
        and functional_like_constructor(cls)
        and cls.get_config is Functional.get_config
    )


class _References(dict[int, Any]):
    """Objects whose serialized form says which object it is of."""

    def __setitem__(self, key: int, value: Any) -> None:
        """Notes nothing else: ids of objects that are gone may come again."""


class _Objects(dict[int, Any]):
    """Objects that take the place of serialized ones."""

    def __init__(self, answer: Callable[[int], Layer | None]) -> None:
        super().__init__()
        self.answer = answer

    def get(self, key: int, default: Any = None) -> Any:
        """Returns the object for a reference."""
        layer = self.answer(key)
        return default if layer is None else layer

    def __setitem__(self, key: int, value: Any) -> None:
        """Notes nothing: the copies are known already."""


@contextlib.contextmanager
def _global_attribute(name: str, value: Any) -> Iterator[None]:
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


def shared_references(ids: Iterable[int]) -> contextlib.AbstractContextManager[None]:
    """Within, serialized objects with one of these ids carry it.

    As in the scope in which Keras saves a whole model (`ObjectSharingScope`).
    """
    known = {key: dict[str, Any]() for key in ids}
    return _global_attribute("shared_objects/id_to_config_map", _References(known))


def shared_objects(
    answer: Callable[[int], Layer | None],
) -> contextlib.AbstractContextManager[None]:
    """Within, deserializing a reference gives the object that a function returns.

    Args:
        answer: Id -> the object, or `None` to make a new one.
    """
    return _global_attribute("shared_objects/id_to_obj_map", _Objects(answer))
