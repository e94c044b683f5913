"""Seeing and replacing what the layers of one model compute, for a while.

Keras offers no hook for it. Its classes stay as they are: each layer of the model gets
an attribute `call` for a while, which calls the old one in all other threads.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Layer

_replacing = threading.RLock()


@contextlib.contextmanager
def calls_replaced(
    calls: Iterable[tuple[Any, Callable[..., Any]]],
) -> Iterator[None]:
    """Within, layers and operations are called by other functions, in this thread.

    Another thread that wants to replace calls, too, waits.

    Args:
        calls: Layers and operations, each with a function that gets what is called
            otherwise, and then the arguments.
    """
    thread = threading.get_ident()

    def here(original: Callable[..., Any], new: Callable[..., Any]) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **kwargs)
            return new(original, *args, **kwargs)

        return call

    with _replacing, contextlib.ExitStack() as stack:
        for operation, new in calls:
            # Layers that Keras itself has quantized are called by another name.
            rounded = getattr(operation, "quantization_mode", None) is not None
            name = "quantized_call" if rounded else "call"
            function = here(getattr(operation, name), new)
            stack.enter_context(internals.own_attribute(operation, name, function))
        yield


@contextlib.contextmanager
def calls_watched(
    model: Layer,
    called: Callable[[Layer, tuple[Any, ...]], None],
    returned: Callable[[Layer, tuple[Any, ...], Any], None],
) -> Iterator[None]:
    """Within, functions see each call of a model and of the layers below it.

    Calls in other threads are none of their business.

    Args:
        model: A built model or layer.
        called: Gets the layer and its positional and named arguments, in order.
        returned: Gets the result besides.
    """

    def watched(layer: Layer) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            arguments = (*args, *kwargs.values())
            called(layer, arguments)
            result = original(*args, **kwargs)
            returned(layer, arguments, result)
            return result

        return call

    layers = internals.flatten_layers(model, include_self=True)
    with calls_replaced((layer, watched(layer)) for layer in layers):
        yield
