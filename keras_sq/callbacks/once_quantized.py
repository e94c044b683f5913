"""Callbacks that judge a network wait until all of it is quantized.

While the ratio is below 1, the network that validation sees is not the one that is
being trained: its metrics are poor and jump. A callback that takes them for the
network's (`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint(save_best_only=True)`)
stops, slows down or saves too early.

Design note: **a wrapper**, not a rule in `StochasticQuantization`. Keras tells a
callback nothing of the others in `fit`, and a `stop_training` that is set could be
anyone's, a time limit's too; who it is that waits is the user's to say. Keras's own
`start_from_epoch` does the same for `EarlyStopping` alone, and has to be computed.
"""

from typing import Any

import keras

from keras_sq.layers import masks

Logs = dict[str, Any] | None


class OnceQuantized(keras.callbacks.Callback):
    """Hands an epoch's end on to another callback once everything is quantized.

    For callbacks that act on metrics at the end of an epoch. The epochs that end at a
    ratio below 1 do not exist for them: `EarlyStopping` does not stop and remembers no
    weights of them, `ModelCheckpoint` saves none of them, `ReduceLROnPlateau` does not
    count them. Everything else is handed on as it comes. The place among the
    callbacks does not matter.

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

    def on_train_end(self, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_train_end(logs)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Hands the call on if the epoch ended with everything quantized."""
        if masks.get_ratio(self.model) >= 1.0:
            self.callback.on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_train_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_test_begin(logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_test_end(logs)

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Hands the call on."""
        self.callback.on_test_batch_end(batch, logs)
