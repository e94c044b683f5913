"""Callbacks of `fit`: masks and ratio, backups, history, TensorBoard."""

from keras_sq.callbacks.backup import AtomicBackup as AtomicBackup
from keras_sq.callbacks.history import QuantizationHistory as QuantizationHistory
from keras_sq.callbacks.once_quantized import OnceQuantized as OnceQuantized
from keras_sq.callbacks.stochastic import (
    StochasticQuantization as StochasticQuantization,
)
from keras_sq.callbacks.tensorboard import (
    QuantizationTensorBoard as QuantizationTensorBoard,
)
from keras_sq.layers.masks import NotFiniteError as NotFiniteError
