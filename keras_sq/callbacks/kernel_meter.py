"""Measures the quantized kernels of a model while it trains, in one compiled call.

`history.py` and `tensorboard.py` decide when to measure and what to record.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_sq.core import backend, compilation
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, Tensor, Variable
from keras_sq.layers import masks
from keras_sq.layers.kernel_functions import filters_last
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.quantizers import Quantizer, filter_functions


class Measurement(NamedTuple):
    """The state of the kernels at one moment.

    Attributes:
        ratios: Float `(kernels,)`: the ratio of the kernel's layer.
        errors: Float `(kernels,)`: `‖W − Q‖₁ / ‖W‖₁` over the whole kernel.
        changed: Int `(kernels,)`: weights whose code differs from that of the
            measurement before; at the first, 0.
        masks: For each kernel that is watched, float `(filters,)`: which part of the
            filter the mask quantizes.
    """

    ratios: Array
    errors: Array
    changed: Array
    masks: tuple[Array, ...]


class KernelMeter:
    """Measures kernels; remembers their codes, a byte a weight, in between.

    Codes are those of the quantizer, also for weights that the mask leaves float for
    now.

    Args:
        pairs: Built layers with their paths.
        watched: Paths of the kernels (`"<layer>/<weight>"`) whose masks to measure.

    Attributes:
        paths: Of the kernels, in the order of all measurements.
        sizes: Weights of each.
        watched: Paths of the kernels whose masks are measured.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, StochasticallyQuantized]],
        watched: Sequence[str] = (),
    ) -> None:
        self._kernels = [
            (layer, name) for _, layer in pairs for name in layer.quantized_weights
        ]
        self.paths = [
            f"{path}/{name}"
            for path, layer in pairs
            for name in layer.quantized_weights
        ]
        latents = [layer.latent(name) for layer, name in self._kernels]
        self.sizes = np.array([math.prod(latent.shape) for latent in latents])
        self.watched = list(watched)
        self._watched = [self._kernels[self.paths.index(path)] for path in watched]
        self._codes = [_room_for_codes(*kernel) for kernel in self._kernels]
        layers = [layer for _, layer in pairs]
        self._measure = backend.compiled(
            self._now, [*masks.variables_of(layers), *self._codes]
        )
        self._first = True

    def measure(self) -> Measurement:
        """Returns the kernels' state, and keeps their codes for the next time."""
        ratios, errors, changed, *watched = self._measure()
        measured = Measurement(
            ops.convert_to_numpy(ratios).astype("float64"),
            ops.convert_to_numpy(errors).astype("float64"),
            ops.convert_to_numpy(changed).astype("int64"),
            tuple(ops.convert_to_numpy(mask) for mask in watched),
        )
        if self._first:
            self._first = False
            measured = measured._replace(changed=np.zeros_like(measured.changed))
        return measured

    def measure_ratios(self) -> list[float]:
        """Returns the ratio of each kernel's layer, and measures nothing else."""
        return [float(internals.read(layer.ratio)) for layer, _ in self._kernels]

    def mean_ratio(self, measurement: Measurement) -> float:
        """Returns the part of all weights that is quantized, as the logs have it."""
        return float(np.average(measurement.ratios, weights=self.sizes))

    def _now(self) -> list[Tensor]:
        ratios, errors, changed = [], [], []
        for (layer, name), codes in zip(self._kernels, self._codes, strict=True):
            quantizer = layer.quantization_settings.kernel_quantizer
            measure = _look_function(quantizer, layer.filter_axes(name))
            latent = internals.read(layer.latent(name))
            error, count, new = measure(
                latent, internals.read(codes), *layer.fitted(name)
            )
            errors.append(error)
            changed.append(count)
            codes.assign(new)
            ratios.append(ops.cast(internals.read(layer.ratio), "float32"))
        watched = [_quantized_part(*kernel) for kernel in self._watched]
        return [ops.stack(ratios), ops.stack(errors), ops.stack(changed), *watched]


# Cached, so that layers alike share one compiled function.
@functools.lru_cache(maxsize=1024)
def _look_function(
    quantizer: Quantizer, axes: tuple[int, ...]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Returns `look(latent, codes, *state) -> (error, how many changed, codes)`."""
    # Codes of quantizers with state are not signed.
    offset = 128 if quantizer.state_size else 0

    def look(
        latent: Tensor, codes: Tensor, *state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        columns, restore = filters_last(latent, axes)
        fitted = state or quantizer.fit(columns)

        norms = filter_functions.absolute_sums(columns)
        differences = norms * quantizer.filter_errors(columns, *fitted)
        error = ops.divide_no_nan(ops.sum(differences), ops.sum(norms))
        new = ops.cast(quantizer.encode(columns, *fitted), "int32") - offset
        new = ops.cast(restore(new), codes.dtype)
        changed = ops.sum(ops.cast(ops.not_equal(new, codes), "int32"))
        return error, changed, new

    return compilation.fused(look)


def _room_for_codes(layer: StochasticallyQuantized, name: str) -> Variable:
    latent = layer.latent(name)
    few = layer.quantization_settings.kernel_quantizer.num_levels <= 256
    codes = keras.Variable(
        np.zeros(latent.shape),
        dtype="int8" if few else "int32",
        trainable=False,
        name="codes",
    )
    internals.follow_layout(codes, latent, range(len(latent.shape)))
    return codes


def _quantized_part(layer: StochasticallyQuantized, name: str) -> Tensor:
    mask = ops.cast(internals.read(layer.mask(name)), "float32")
    columns, _ = filters_last(mask, layer.filter_axes(name))
    return ops.mean(columns, axis=0)
