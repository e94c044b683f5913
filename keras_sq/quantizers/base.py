"""The base class of all kernel quantizers."""

import abc
import json
from typing import Any, ClassVar

import keras
from keras import ops

from keras_sq.core.types import Config, Tensor
from keras_sq.quantizers import filter_functions


class Quantizer(abc.ABC):
    """Maps a kernel to few values per filter: `codes · scale`.

    A subclass says how the scale (and whatever else is fitted to the kernel)
    is found, and how a weight becomes a code. Both see the kernel with its
    filter axis last, whatever the layer's own layout. A quantizer holds no
    state and defines no gradient (see `split_update`).

    One that learns from step to step has a `state_size`: its layers keep a
    variable of so many numbers a filter, which `update` moves in training, and
    which stands for what `fit` would return wherever a method takes `*state`.

    On TensorFlow a quantizer is traced for each shape of kernels. If its methods also
    work where `kernel.shape` has `None` in it, its class may say `any_shape = True`:
    it is then traced once for all small kernels, and training starts earlier. A
    subclass must say so itself.

    Two quantizers with the same configuration are equal, and a quantizer does
    not change once it is made.

    Example:
        >>> from keras import ops
        >>> class PowerOfTwo(keras_sq.quantizers.BinaryQuantizer):
        ...     '''Binary, with scales rounded to a power of two.'''
        ...     def fit(self, kernel):
        ...         (scale,) = super().fit(kernel)
        ...         return (2.0 ** ops.round(ops.log2(scale)),)
        >>> PowerOfTwo()(ops.array([[0.2], [-0.4]])).numpy().tolist()
        [[0.25], [-0.25]]
    """

    any_shape: ClassVar[bool] = False
    """Whether the methods can be traced for kernels of any shape at once."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not inherited: what a subclass adds may look at the shape.
        cls.any_shape = cls.__dict__.get("any_shape", False)

    @abc.abstractmethod
    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns what is fitted to a kernel: the scale, then the rest.

        Args:
            kernel: Float tensor `(..., filters)`.

        Returns:
            Float32 tensors, `(filters,)` or scalar; the first is the scale,
            `(filters,)` and not negative. Of a quantizer with state, the state.
        """

    @abc.abstractmethod
    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the codes, element by element.

        Args:
            kernel: Float tensor `(..., filters)`.
            *fitted: What `fit` returned.

        Returns:
            Integer values in the kernel's dtype and shape.
        """

    @property
    @abc.abstractmethod
    def max_code(self) -> int:
        """The largest absolute code."""

    @property
    def num_levels(self) -> int:
        """How many values a weight of a filter can take."""
        return 2 * self.max_code + 1

    @property
    def work(self) -> int:
        """How many times the work of a ternary quantizer it does, about."""
        return 1

    @property
    def state_size(self) -> int:
        """Numbers of state a filter; 0 for a quantizer without."""
        return 0

    @property
    def numbers_per_filter(self) -> int:
        """How many float numbers a filter needs besides its codes."""
        return self.state_size or 1

    def initial_state(self, weights: int, filters: int) -> Tensor:
        """Returns the state of a layer that was not trained yet.

        Args:
            weights: How many a filter has.
            filters: How many filters.

        Returns:
            Float32 `(state_size, filters)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state.")

    def update(self, kernel: Tensor, state: Tensor, updates: Tensor) -> Tensor:
        """Returns the state after one more training step.

        Args:
            kernel: Float tensor `(..., filters)`.
            state: Float32 `(state_size, filters)`.
            updates: Float32 scalar: how many steps there were.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state.")

    def decode(self, codes: Tensor, *fitted: Tensor) -> Tensor:
        """Returns `codes · scale` in the dtype of `codes`."""
        return codes * ops.cast(fitted[0], codes.dtype)

    def quantize(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns `decode(encode(kernel))` for what was fitted before."""
        return self.decode(self.encode(kernel, *fitted), *fitted)

    def __call__(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the quantized kernel.

        Call arguments:
            kernel: Float tensor `(..., filters)`.
            *state: The state, if there is one; else it is fitted.

        Returns:
            Tensor with the shape and dtype of `kernel`.

        Raises:
            TypeError: If the kernel is not of a float dtype.
        """
        kernel = ops.convert_to_tensor(kernel)
        if "float" not in keras.backend.standardize_dtype(kernel.dtype):
            raise TypeError(
                "Argument `kernel` must be a float tensor. "
                f"Received: a tensor of dtype {kernel.dtype}"
            )
        return self.quantize(kernel, *(state or self.fit(kernel)))

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the quantization error `‖W_i − Q_i‖₁ / ‖W_i‖₁` per filter.

        Args:
            kernel: Float tensor `(..., filters)`.
            *state: The state, if there is one; else it is fitted.

        Returns:
            Float32 `(filters,)`; 0 where the norm is 0, NaN where the filter
            is not finite.
        """

        def terms(weights: Tensor, *fitted: Tensor) -> tuple[Tensor, Tensor]:
            difference = weights - self.quantize(weights, *fitted)
            return ops.abs(difference), ops.abs(weights)

        fitted = state or self.fit(kernel)
        difference, norm = filter_functions.filter_sums(terms, kernel, *fitted)
        return filter_functions.relative_error(difference, norm)

    def element_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the error `|w − q| / |w|` of every weight.

        Args:
            kernel: Float tensor `(..., filters)`.
            *state: The state, if there is one; else it is fitted.

        Returns:
            Float32 tensor of the kernel's shape; 0 where the weight is 0.
        """
        wide = ops.cast(kernel, "float32")
        quantized = self.quantize(wide, *(state or self.fit(kernel)))
        return filter_functions.relative_error(ops.abs(wide - quantized), ops.abs(wide))

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {}

    @classmethod
    def from_config(cls, config: Config) -> "Quantizer":
        """Returns the quantizer that `get_config` described."""
        return cls(**config)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute once: compiled functions are kept per quantizer."""
        if name in self.__dict__:
            raise AttributeError(
                f"A quantizer does not change. Make a new {type(self).__name__} "
                f"instead of setting `{name}`."
            )
        super().__setattr__(name, value)

    def _key(self) -> tuple[Any, ...]:
        return (type(self), json.dumps(self.get_config(), sort_keys=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def register(cls: type[Quantizer]) -> type[Quantizer]:
    """Class decorator: makes the quantizer loadable from a `.keras` file.

    Example:
        >>> @keras_sq.quantizers.register
        ... class HalfScale(keras_sq.quantizers.BinaryQuantizer):
        ...     '''Binary, with half the scale.'''
        ...     def fit(self, kernel):
        ...         return tuple(scale / 2 for scale in super().fit(kernel))
        >>> config = keras_sq.quantizers.serialize(HalfScale())
        >>> keras_sq.quantizers.deserialize(config)
        HalfScale()
    """
    return keras.saving.register_keras_serializable("keras_sq")(cls)  # type: ignore[no-any-return]
