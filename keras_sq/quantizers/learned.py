"""Kernels of a learned codebook (LQ-Nets)."""

import functools
import math

from keras import ops

from keras_sq.core import backend, checks
from keras_sq.core.types import Config, Tensor
from keras_sq.quantizers import codebook, filter_functions
from keras_sq.quantizers.base import Quantizer, register

FIT_STEPS = 20
"""Alternations of a fit without state; they hardly change anything after ten."""

FEW_BITS = 3
"""Up to here, the distance to every level takes less time than the nearest level:
2.5 against 7.8 ms for two bits and a 2048 x 2048 kernel, 43 against 27 for four."""


@register
class LearnedQuantizer(Quantizer):
    """Maps each filter to `2**num_bits` levels of its own, learned with the kernel.

    Forward:  `q` is the level nearest to `w`; the levels are all sums of the
    filter's basis `v` with signs, `±v_1 ± v_2 ...`.
    Backward: by the split update; no gradient through the basis.

    The basis is state of the layer, one `(num_bits, filters)` variable a kernel,
    not trained by gradients: at each training step the kernel is encoded with it,
    the least squares basis of these codes found, and a bias-corrected moving
    average (decay 0.9) moves there. Outside of training it stays as it is. Where
    there is no layer, as in a call of the quantizer itself, the basis is fitted to
    the kernel in 20 such alternations.

    With one bit this is `BinaryQuantizer` with a smoothed scale. With `k` bits,
    levels are denser where weights are.

    Args:
        num_bits: Int from 1 to 8.

    Raises:
        TypeError: If `num_bits` is no integer.
        ValueError: If `num_bits` is out of its range.

    Example:
        >>> q = keras_sq.quantizers.LearnedQuantizer(2)
        >>> kernel = keras.ops.array([[-3.0], [-1.1], [-0.9], [1.0], [3.1], [2.9]])
        >>> q(kernel).numpy().round(2).ravel().tolist()
        [-3.0, -1.0, -1.0, 1.0, 3.0, 3.0]

    References:
        - [Zhang et al., 2018, section 3](https://arxiv.org/abs/1807.10029)
    """

    any_shape = True

    def __init__(self, num_bits: int) -> None:
        self.num_bits = checks.integer("num_bits", num_bits, 1, 8)

    @property
    def max_code(self) -> int:
        """The largest code: the number of the highest level."""
        return self.num_levels - 1

    @property
    def num_levels(self) -> int:
        """How many values a weight of a filter can take."""
        return int(2**self.num_bits)

    @property
    def state_size(self) -> int:
        """Numbers of state a filter."""
        return self.num_bits

    def initial_state(self, weights: int, filters: int) -> Tensor:
        """Returns the basis of a layer that was not trained yet.

        For weights of He's initialization (normal, fan-out), as in the paper.

        Args:
            weights: How many a filter has.
            filters: How many filters.
        """
        del weights  # The paper counts the fan-out; so the filters stand for it.
        spread = (
            math.sqrt(2.0 / filters)
            * codebook.NORMAL_QUARTILE
            / 2 ** (self.num_bits - 1)
        )
        powers = 2.0 ** ops.arange(self.num_bits, dtype="float32")
        return ops.broadcast_to((spread * powers)[:, None], (self.num_bits, filters))

    def update(self, kernel: Tensor, state: Tensor, updates: Tensor) -> Tensor:
        """Returns the basis after one more training step.

        Args:
            kernel: Float tensor `(..., filters)`.
            state: The basis, float32 `(num_bits, filters)`.
            updates: Float32 scalar: how many steps there were.
        """
        basis = codebook.step(kernel, state, signed=True)
        return codebook.moved(state, basis, updates)

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns `(basis,)`, fitted to a kernel by alternations alone."""
        filters = int(kernel.shape[-1])
        wide = ops.reshape(ops.cast(kernel, "float32"), (-1, filters))
        # From the mean of a filter, so that its size does not matter.
        size = ops.mean(ops.abs(wide), axis=0)
        powers = 2.0 ** ops.arange(self.num_bits, dtype="float32")
        basis = powers[:, None] * size / 2 ** (self.num_bits - 1)
        steps = FIT_STEPS if self.num_bits > 1 else 1
        if backend.has_numbers(wide):
            start = ops.convert_to_numpy(basis)
            basis = codebook.fitted(ops.convert_to_numpy(wide), start, steps)
            return (ops.convert_to_tensor(basis),)
        for _ in range(steps):
            basis = codebook.step(wide, basis, signed=True)
        return (basis,)

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the numbers of the levels, from 0, the lowest first."""
        levels = self.levels(*fitted)
        wide = ops.cast(kernel, "float32")
        rank = codebook.ranks(wide, codebook.thresholds_of(levels))
        return ops.cast(rank, kernel.dtype)

    def levels(self, *fitted: Tensor) -> Tensor:
        """Returns the levels, sorted: float32 `(num_levels, filters)`."""
        return codebook.levels_of(fitted[0], signed=True)

    def decode(self, codes: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the levels that codes stand for, in the dtype of `codes`."""
        levels = self.levels(*fitted)
        flat = ops.reshape(ops.cast(codes, "int32"), (-1, codes.shape[-1]))
        values = ops.take_along_axis(levels, flat, axis=0)
        return ops.cast(ops.reshape(values, codes.shape), codes.dtype)

    def quantize(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the nearest levels."""
        wide = ops.cast(kernel, "float32")
        return ops.cast(codebook.nearest(wide, self.levels(*fitted)), kernel.dtype)

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the error per filter."""
        (basis,) = state or self.fit(kernel)
        levels = self.levels(basis)
        if self.num_bits > codebook.MAX_UNROLLED_BITS:
            wide = ops.cast(kernel, "float32")
            wide = ops.reshape(wide, (-1, ops.shape(kernel)[-1]))
            sums = ops.sum(ops.abs(wide - codebook.nearest(wide, levels)), axis=0)
            return filter_functions.relative_error(
                sums, filter_functions.absolute_sums(kernel)
            )

        def terms(weights: Tensor, *levels: Tensor) -> tuple[Tensor, Tensor]:
            if self.num_bits > FEW_BITS:
                difference = ops.abs(weights - codebook.nearest(weights, levels))
            else:
                distances = [ops.abs(weights - level) for level in levels]
                difference = functools.reduce(ops.minimum, distances)
            return difference, ops.abs(weights)

        sums, norm = filter_functions.filter_sums(
            terms, kernel, *ops.unstack(levels, self.num_levels)
        )
        return filter_functions.relative_error(sums, norm)

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {"num_bits": self.num_bits}
