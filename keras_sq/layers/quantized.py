"""The mechanism that makes a Keras layer a stochastically quantized one.

A layer of this package is the Keras layer plus

- the **latent kernel**: Keras's own variable, same name and place, still what
  the optimizer updates;
- a **mask** (True = quantized; not trainable, and unrelated to Keras's
  sequence masking) that broadcasts to the kernel;
- the **ratio** the mask was last drawn for, and the state of the random
  generator that draws it.

It has no `call` of its own (Keras's is wrapped to quantize its input where that is
asked for, see `inputs.py`). A descriptor stands in for the kernel's
attribute: writing it stores the latent variable, reading it gives the kernel
to compute with - the hybrid kernel while training, the quantized kernel
otherwise. So every feature of the Keras layer, dilation or groups or
activations, works as it did, and a new layer needs its base class and the
names of its weights:

```python
class SQSeparableConv2D(StochasticallyQuantized, keras.layers.SeparableConv2D):
    quantized_weights = ("depthwise_kernel", "pointwise_kernel")
```

Design note: **training or not** is read from Keras's call context while the
call is traced, not from a switch of ours: replicas run in threads that share
the layer.
"""

import threading
import warnings
import weakref
from typing import Any, ClassVar

import keras
from keras import ops

from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Config, Tensor, Variable
from keras_sq.layers import settings as settings_module
from keras_sq.layers.codebooks import LearnedCodebooks
from keras_sq.layers.deployed_kernels import deployed_kernel
from keras_sq.layers.hybrid_kernel import HybridKernel, held_kernel
from keras_sq.layers.inputs import INPUT, QuantizedInputs
from keras_sq.layers.kernel_functions import (
    error_function,
    filters_last,
    forward_function,
)
from keras_sq.layers.saving import saving_methods
from keras_sq.layers.selection import Selection
from keras_sq.layers.settings import Settings, constructor_signature
from keras_sq.layers.split_update import split_update
from keras_sq.layers.weight_names import weights_present

_warned = threading.local()


class StochasticallyQuantized(LearnedCodebooks, QuantizedInputs):
    """Mixin: quantizes the kernels of the Keras layer that it precedes."""

    quantized_weights: tuple[str, ...] = ("kernel",)
    """Attributes that are quantized; of a built layer, those that it has."""
    optional_weights: ClassVar[tuple[str, ...]] = ()
    """Those among them that a layer may be built without."""
    float_class: ClassVar[type]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.float_class = next(
            base
            for base in cls.__mro__
            if issubclass(base, keras.layers.Layer)
            and not issubclass(base, StochasticallyQuantized)
        )
        for name in cls.quantized_weights:
            setattr(cls, name, HybridKernel(name))
        save, load = saving_methods(cls.float_class)
        cls.save_own_variables, cls.load_own_variables = save, load  # type: ignore[attr-defined]
        cls.__signature__ = constructor_signature(cls.float_class)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        chosen, rest = settings_module.split(kwargs)
        self._set_settings(chosen)
        internals.record_arguments(self, self.float_class, args, rest)
        super().__init__(*args, **rest)

    def _set_settings(self, chosen: Settings) -> None:
        if chosen.input_quantizer is not None:
            self.check_input_quantizer()
        # Straight into the instance: Keras tracks nothing of it, and its own
        # constructor has not run yet.
        self.__dict__["quantization_settings"] = chosen
        self.__dict__["ratio_is_controlled"] = False
        self.__dict__["has_trained"] = False

    # What the layer has.

    quantization_settings: Settings
    mask_seed_generator: keras.random.SeedGenerator
    """Draws the masks; its state is `mask_seed_state`, a variable."""
    ratio_is_controlled: bool
    """Whether a callback or the user sets the ratio (else training warns)."""
    has_trained: bool
    """Whether a call has been told that it is for training."""

    def latent(self, name: str = "kernel") -> Variable:
        """Returns the latent kernel: the variable the optimizer updates."""
        return self.__dict__[f"_{name}"]

    @property
    def mask_names(self) -> tuple[str, ...]:
        """What has a mask: the kernels, and `"input"` if its entries are masked."""
        return (*self.quantized_weights, *((INPUT,) if self.masks_input else ()))

    def mask(self, name: str = "kernel") -> Variable:
        """Returns the mask variable: True = quantized; not trainable.

        Args:
            name: One of `mask_names`.
        """
        return self.__dict__[f"_{name}_mask"]

    def selection_of(self, name: str) -> Selection:
        """Returns how the quantized part of what has a mask is chosen."""
        settings = self.quantization_settings
        return settings.input_selection if name == INPUT else settings.mask_selection

    @property
    def ratio(self) -> Variable:
        """The ratio that the masks were last drawn for, in [0, 1]."""
        return self.__dict__["_quantized_ratio"]

    def quantization_state(self) -> list[Variable]:
        """Returns what the layer has beyond the Keras layer's variables."""
        masks = [self.mask(name) for name in self.quantized_weights]
        state = [self.ratio, self.mask_seed_generator.state]
        return [*masks, *self.codebook_state(), *state, *self.input_state()]

    def filter_axes(self, name: str) -> tuple[int, ...]:
        """Returns the axes of a kernel that tell its filters apart."""
        return (len(self.latent(name).shape) - 1,)

    # State.

    def _post_build(self) -> None:
        # Keras calls this after any `build`, with whatever signature; a
        # `build` of ours would have to repeat the signature of each layer's.
        super()._post_build()  # type: ignore[misc]
        if "_quantized_ratio" not in self.__dict__:
            self.add_quantization_state()

    def add_quantization_state(self) -> None:
        """Creates masks, ratio and random state. For a layer that is built."""
        with internals.unlocked(self):
            self._add_quantization_variables()

    def _add_quantization_variables(self) -> None:
        selection = self.quantization_settings.mask_selection
        # Past Keras's tracking of attributes.
        self.__dict__["quantized_weights"] = weights_present(type(self), self)
        for name in self.quantized_weights:
            if f"_{name}" not in self.__dict__:
                raise ValueError(
                    f"Layer '{self.name}' (of type {self.float_class.__name__}) has "  # type: ignore[attr-defined]
                    f"no weight `{name}` once it is built. `quantized_weights` must "
                    "name attributes that `build` assigns."
                )
            latent = self.latent(name)
            axes: tuple[int, ...] = tuple(range(len(latent.shape)))
            if selection.granularity == "filter":
                axes = self.filter_axes(name)
            along = [x if x in axes else None for x in range(len(latent.shape))]
            mask = self.add_weight(  # type: ignore[attr-defined]
                name=f"{name}_mask",
                shape=tuple(1 if x is None else latent.shape[x] for x in along),
                dtype="bool",
                initializer="ones",
                trainable=False,
            )
            internals.follow_layout(mask, latent, along)
            self.__dict__[f"_{name}_mask"] = mask
            if self.quantization_settings.kernel_quantizer.state_size:
                self.add_codebook(name)
        self.__dict__["_quantized_ratio"] = self.add_weight(  # type: ignore[attr-defined]
            name="quantized_ratio",
            shape=(),
            dtype="float32",
            initializer="ones",
            trainable=False,
            autocast=False,
        )
        # Keras does not save the states of generators it tracks (Dropout's
        # either), but it does save a layer's variables. So the state is one.
        generator = keras.random.SeedGenerator(
            self.quantization_settings.mask_seed, name="mask_seed_generator"
        )
        self.__dict__["mask_seed_generator"] = generator
        self.mask_seed_state = generator.state
        self.add_input_state()

    # Kernels.

    def kernel_to_compute_with(self, name: str) -> Tensor:
        """Returns the hybrid kernel while training, else the quantized one.

        Args:
            name: One of `quantized_weights`.

        Returns:
            Tensor of the kernel's shape, in the dtype that the call computes
            with. Its gradient is the split update's.
        """
        latent = self.latent(name)
        if f"_{name}_mask" not in self.__dict__:
            return latent  # Still building.
        computed = held_kernel(self, name)
        if computed is not None:
            return computed
        training = bool(internals.training_phase())
        dtype = internals.dtype_of(latent)
        if internals.in_autocast():
            dtype = self.compute_dtype  # type: ignore[attr-defined]
        if not training:
            deployed = deployed_kernel(self, name, dtype)
            if deployed is not None:
                return deployed
        value = internals.read(latent)
        settings = self.quantization_settings
        if training:
            self.__dict__["has_trained"] = True
            if not self.ratio_is_controlled:
                self._warn_uncontrolled()
        hybrid = training or settings.inference == "hybrid"
        mask = internals.read(self.mask(name)) if hybrid else ops.ones((), "bool")
        forward = forward_function(
            settings.kernel_quantizer,
            self.filter_axes(name),
            dtype,
            settings.full_precision if hybrid else None,
            training,
        )
        state = self.fitted(name)
        if state and training:
            self.learn_codebook(name, value, state[0])
        return split_update(
            value,
            mask,
            forward,
            settings.quantized_gradient,
            settings.full_precision if hybrid else "identity",
            state,
        )

    def inference_sources(self, name: str) -> list[Variable]:
        """Returns the variables that a kernel is computed from outside of training."""
        settings = self.quantization_settings
        sources = [self.latent(name)]
        if settings.inference == "hybrid":
            sources.append(self.mask(name))
        if settings.kernel_quantizer.state_size:
            sources.append(self.codebook(name))
        return sources

    def inference_kernel(self, name: str, dtype: str, *values: Tensor) -> Tensor:
        """Returns the kernel that a call computes with outside of training.

        Args:
            name: One of `quantized_weights`.
            dtype: The dtype of the result.
            *values: The values of `inference_sources`.
        """
        settings = self.quantization_settings
        latent, *rest = values
        hybrid = settings.inference == "hybrid"
        mask = rest.pop(0) if hybrid else ops.ones((), "bool")
        forward = forward_function(
            settings.kernel_quantizer,
            self.filter_axes(name),
            dtype,
            settings.full_precision if hybrid else None,
            False,
        )
        return forward(latent, mask, *rest)

    def quantized_kernel(self, name: str = "kernel") -> Tensor:
        """Returns `Q(W)`: the kernel that will be deployed."""
        value = internals.read(self.latent(name))
        columns, restore = filters_last(value, self.filter_axes(name))
        quantizer = self.quantization_settings.kernel_quantizer
        return restore(quantizer(columns, *self.fitted(name)))

    def quantization_errors(self, name: str = "kernel") -> Tensor:
        """Returns the quantization error of every filter (or weight).

        Returns:
            Float32 `(filters,)`, or the kernel's shape for element-wise
            granularity.
        """
        settings = self.quantization_settings
        function = error_function(
            settings.kernel_quantizer,
            self.filter_axes(name),
            settings.granularity,
        )
        return function(internals.read(self.latent(name)), *self.fitted(name))

    def _warn_uncontrolled(self) -> None:
        # Once for all layers of the model that is being called.
        for layer in internals.flatten_layers(internals.called_layer(), True):
            if isinstance(layer, StochasticallyQuantized):
                layer.ratio_is_controlled = True
        call = internals.call_under_way()
        warned = getattr(_warned, "call", None)
        if warned is not None and warned() is call:
            return  # On JAX each layer of a model is the one that is called.
        _warned.call = weakref.ref(call)
        warnings.warn(
            "Training stochastically quantized layers without the callback: the "
            "masks stay as they are, which in a new model means that everything is "
            "quantized from the first step on (direct quantization). Pass "
            "callbacks=[keras_sq.callbacks.StochasticQuantization()] to `fit`, or set "
            "the ratio by hand with `keras_sq.set_ratio(model, 1.0)` to do this on "
            "purpose.",
            UserWarning,
            stacklevel=2,
        )

    # Configuration.

    def get_config(self) -> Config:
        """Returns Keras's configuration and the settings, side by side."""
        return {**self.float_config(), **self.quantization_settings.get_config()}

    def float_config(self) -> Config:
        """Returns the configuration of the Keras layer alone."""
        config = super().get_config()  # type: ignore[misc]
        return internals.with_recorded_arguments(self, self.float_class, config)

    # What Keras offers and a quantized layer cannot.

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises: LoRA's update would go around the quantizer."""
        raise ValueError(
            f"Layer '{self.name}' is stochastically quantized and cannot take "  # type: ignore[attr-defined]
            "LoRA: its update would bypass the quantizer. Enable LoRA on the "
            "float model and merge it before `keras_sq.quantize_model`."
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises: Keras's post-training quantization needs a plain layer."""
        raise ValueError(
            f"Layer '{self.name}' is stochastically quantized already. Use "  # type: ignore[attr-defined]
            "`keras_sq.strip_quantization(model)` first for Keras's own "
            "post-training quantization."
        )
