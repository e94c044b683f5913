"""The codebooks of a quantized layer: the state of kernel quantizers that learn.

One variable a kernel, and one that counts how often it was moved. Layers whose
quantizer has no state have none of this. What a codebook is, and how it moves, is
the quantizer's matter (`keras_sq.quantizers.LearnedQuantizer`).
"""

import math
import threading
import weakref
from typing import Any

from keras import ops

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Tensor, Variable
from keras_sq.layers.kernel_functions import filters_last, update_function
from keras_sq.layers.settings import Settings

_held = threading.local()


class LearnedCodebooks:
    """Mixin of the quantized layers: keeps and moves the codebooks."""

    quantized_weights: tuple[str, ...]
    quantization_settings: Settings

    def codebook(self, name: str = "kernel") -> Variable:
        """Returns the state of the kernel's quantizer: a learned basis.

        Float32 `(state_size, filters)`; there is none for quantizers without.
        """
        return self.__dict__[f"_{name}_codebook"]

    def codebook_state(self) -> list[Variable]:
        """Returns all codebooks, and how often each was moved."""
        if not self.quantization_settings.kernel_quantizer.state_size:
            return []
        return [
            self.__dict__[f"_{name}_{what}"]
            for name in self.quantized_weights
            for what in ("codebook", "updates")
        ]

    def fitted(self, name: str = "kernel") -> tuple[Tensor, ...]:
        """Returns what is known of a kernel's quantizer beforehand.

        Returns:
            The codebook, or nothing: then the quantizer is fitted each time.
        """
        if not self.quantization_settings.kernel_quantizer.state_size:
            return ()
        return (internals.read(self.codebook(name)),)

    def add_codebook(self, name: str) -> None:
        """Creates the codebook of a kernel. For a layer that takes variables."""
        quantizer = self.quantization_settings.kernel_quantizer
        shape = self.latent(name).shape  # type: ignore[attr-defined]
        axes = self.filter_axes(name)  # type: ignore[attr-defined]
        filters = math.prod(shape[axis] for axis in axes)
        start = quantizer.initial_state(math.prod(shape) // filters, filters)
        # Replicas compute the same from the same kernel: one may speak for all.
        options: dict[str, Any] = {
            "dtype": "float32",
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        basis = self.add_weight(  # type: ignore[attr-defined]
            name=f"{name}_codebook",
            shape=(quantizer.state_size, filters),
            initializer=lambda shape, dtype: ops.cast(start, dtype),
            **options,
        )
        # Filters of several axes: where they are laid out is not one axis' matter.
        along = axes[0] if len(axes) == 1 else None
        internals.follow_layout(basis, self.latent(name), (None, along))  # type: ignore[attr-defined]
        self.__dict__[f"_{name}_codebook"] = basis
        self.__dict__[f"_{name}_updates"] = self.add_weight(  # type: ignore[attr-defined]
            name=f"{name}_updates", shape=(), initializer="zeros", **options
        )

    def fit_codebooks(self) -> None:
        """Fits the codebooks to the latent kernels as they are.

        As if the layer had been trained for long at these kernels: the start of
        a training from a trained network, and what is quantized without any.
        """
        quantizer = self.quantization_settings.kernel_quantizer
        if quantizer.state_size:
            for name in self.quantized_weights:
                value = internals.read(self.latent(name))  # type: ignore[attr-defined]
                columns, _ = filters_last(value, self.filter_axes(name))  # type: ignore[attr-defined]
                self.codebook(name).assign(quantizer.fit(columns)[0])

    def learn_codebook(self, name: str, value: Tensor, before: Tensor) -> None:
        """Moves a codebook for the steps to come, once a call of the model.

        Args:
            name: The kernel's.
            value: The latent kernel.
            before: The codebook.
        """
        done = getattr(_held, "learned", None)
        call = internals.call_under_way()
        if done is None or done[0]() is not call:
            names: set[tuple[int, str]] = set()
            # Weakly: on JAX the call holds all that is being traced.
            done = _held.learned = (weakref.ref(call), names)
        if (id(self), name) in done[1]:
            return  # A shared layer, called before.
        done[1].add((id(self), name))
        axes = self.filter_axes(name)  # type: ignore[attr-defined]
        update = update_function(self.quantization_settings.kernel_quantizer, axes)
        count = self.__dict__[f"_{name}_updates"]
        updates = internals.read(count)
        after, updates = update(ops.stop_gradient(value), before, updates)
        self.codebook(name).assign(after)
        count.assign(updates)
