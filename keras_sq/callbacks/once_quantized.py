"""Callbacks that judge a network wait until all of it is quantized.

While the ratio is below 1, the network that validation sees is not the one that is
being trained: its metrics are poor and jump. A callback that takes them for the
network's (`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint(save_best_only=True)`)
stops, slows down or saves too early.

Design note: **a wrapper**, not a rule in `StochasticQuantization`. A callback does not
know the other callbacks of `fit`, and any of them, such as a time limit, may have set
`stop_training`. So the user chooses which callback waits. Keras's `start_from_epoch`
does the same for `EarlyStopping` alone, and the user must compute the epoch.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_sq.core.types import Logs
from keras_sq.layers import masks


class OnceQuantized(keras.callbacks.Callback):
    """Hands an epoch's end on to another callback once everything is quantized.

    For callbacks that act on metrics at the end of an epoch. They do not see the epochs
    that end at a ratio below 1: `EarlyStopping` does not stop in them and remembers no
    weights of them, `ModelCheckpoint` saves none of them, `ReduceLROnPlateau` does not
    count them. All other calls are handed on unchanged. The order of the callbacks does
    not matter.

    Args:
        callback: A `keras.callbacks.Callback`.

    Raises:
        TypeError: If `callback` is no callback.
        ValueError: When training begins, if the model has no quantized layer.

    Example:
        >>> sq = keras_sq.callbacks.StochasticQuantization()
        >>> stopping = keras.callbacks.EarlyStopping(
        ...     patience=5, restore_best_weights=True)
        >>> callbacks = [sq, keras_sq.callbacks.OnceQuantized(stopping)]
        >>> # model.fit(x, y, validation_data=(a, b), callbacks=callbacks)
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                "Argument `callback` must be a `keras.callbacks.Callback`. "
                f"Received: callback={callback!r} (of type {type(callback).__name__})"
            )
        self.callback = callback

    def set_params(self, params: dict[str, Any]) -> None:
        """Hands the parameters of `fit` on."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: Any) -> None:
        """Hands the model on."""
        super().set_model(model)
        self.callback.set_model(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Checks that there is something to wait for, and hands the call on."""
        masks.require_quantized(self.model)
        self.callback.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Hands the call on if the epoch ended with everything quantized."""
        if masks.get_ratio(self.model) >= 1.0:
            self.callback.on_epoch_end(epoch, logs)


def _handed_on(name: str) -> Callable[..., None]:
    def method(self: OnceQuantized, *args: Any, **kwargs: Any) -> None:
        getattr(self.callback, name)(*args, **kwargs)

    method.__doc__ = "Hands the call on."
    return method


for _name in dir(keras.callbacks.Callback):
    if _name.startswith("on_") and _name not in vars(OnceQuantized):
        setattr(OnceQuantized, _name, _handed_on(_name))
