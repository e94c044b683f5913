"""Uniform k-bit kernels."""

import math

import numpy as np
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.quantizers import filter_functions
from keras_sq.quantizers.base import Quantizer, register

SCALES = ("output_error", "max", "least_squares")

OUTPUT_ERROR_BITS = 6
"""Above, `"max"` is as close: the grid is fine enough for the tails."""

CANDIDATES = 8
"""How many scales are tried. More take more time, and lower the error little."""

NEARLY_BEST = 1e-3
"""Of scales whose errors are this close, the largest is taken: compiled or not, on any
device, a filter has the same one, whatever the last bits of the sums are."""

LARGEST_FINEST = 0.7
"""The least of them, over the largest, is at most this: also a uniform distribution is
better off if the largest weights are clipped a little."""

SMALLEST_FINEST = 1e-3
"""And at least this, which keeps its inverse and squares in range."""

MEAN_WEIGHT = 1 / (math.pi - 1)
"""Squared mean over variance of what ReLU leaves of N(0, 1)."""

LEAST_SQUARES_STEPS = 4

GAUSSIAN_SCALES = {
    1: 1.224,
    3: 0.651,
    7: 0.353,
    15: 0.193,
    31: 0.105,
    63: 0.0573,
    127: 0.0309,
}
"""Largest code -> the scale of least squared error for N(0, 1), found numerically
(Max has the first ones)."""

MEAN_TO_DEVIATION = (math.pi / 2) ** 0.5
"""Standard deviation of Gaussian weights over the mean of their `|w|`."""


def gaussian_scale(max_code: int) -> float:
    """Returns about the scale of least squared error for N(0, 1).

    Between the entries of the table it is a power of the largest code.
    """
    codes, scales = np.array(list(GAUSSIAN_SCALES.items())).T
    return float(np.exp(np.interp(np.log(max_code), np.log(codes), np.log(scales))))


@register
class UniformQuantizer(Quantizer):
    """Maps each filter to `scale · {-n, …, 0, …, +n}`, `2 n + 1 = num_levels`.

    Forward:  `q = scale * clip(round(w / scale), -n, n)`.
    Backward: by the split update; no gradient through the scale.

    The levels are symmetric, as integer kernels of TFLite are; 2 bits are
    three levels. Of four bits, 13 levels lose next to nothing against 15, and packed
    files (target `"small"`) hold them in 4 bits a weight instead of 5.3.

    The scale of a filter is

    | `scale` | |
    |---|---|
    | `"output_error"` | the one of least expected error of the filter's output, of eight that are tried (see below) |
    | `"max"` | `max(abs(w)) / n`: nothing is clipped; as good from about 7 bits on, and computed in less time |
    | `"least_squares"` | what four rounds of `scale = <w, codes> / <codes, codes>` make of the best scale for Gaussian weights. Files of earlier versions have it, and compute what they did. It clips the large weights of trained kernels; take `"output_error"` for new networks |

    An error `e = q - w` of the weights changes the output of a filter by
    `sum(e * x)`. If the inputs `x` are independent and each is what ReLU leaves of
    N(0, 1), the expected square of that is, but for a factor,

        sum(e**2) + sum(e)**2 / (pi - 1)

    The second term is there because inputs after a ReLU have a mean: errors of one
    sign add up. With three levels it is left out: those networks are trained in any
    case, and without it a scale stays the best for longer while the weights move.

    Tried are the scales `s_max**(1 - i/7) * s_low**(i/7)`, `i` from 0 to 7, where
    `s_max` is the `"max"` scale, and `s_low` the best for Gaussian weights with the
    same mean of `abs(w)`, or `0.7 * s_max` if that is less. Of those within 0.1 % of
    the least error the largest is taken. By this measure no result is worse than that
    of `"max"`, but for these 0.1 %, and a filter whose weights are on such a grid
    already keeps them. No data are needed.

    Args:
        num_bits: Int from 2 to 8.
        scale: String, see the table. `None` is `"output_error"` up to
            `OUTPUT_ERROR_BITS` bits, and `"max"` above.
        num_levels: Odd int, at most the default, `2**num_bits - 1`, and more than
            one bit less would hold.

    Raises:
        TypeError: If `num_bits` or `num_levels` is no integer.
        ValueError: If an argument is out of its range.

    Example:
        >>> q = keras_sq.quantizers.UniformQuantizer(3, "max")
        >>> q(keras.ops.array([[0.9], [-3.0], [1.6]])).numpy().tolist()
        [[1.0], [-3.0], [2.0]]
        >>> keras_sq.quantizers.UniformQuantizer(4, num_levels=13).max_code
        6

    References:
        - [Guo et al., 2022, section 3](https://arxiv.org/abs/2202.07471) (SQuant): the
          same two terms, lowered by other codes instead of another scale
        - [Nagel et al., 2019, section 3.2](https://arxiv.org/abs/1906.04721): why errors
          with a mean are what post-training quantization suffers from
        - [Max, 1960](https://doi.org/10.1109/TIT.1960.1057548): scales for N(0, 1)
    """  # noqa: E501 (a table row cannot be broken)

    any_shape = True

    def __init__(
        self,
        num_bits: int,
        scale: str | None = None,
        num_levels: int | None = None,
    ) -> None:
        self.num_bits = checks.integer("num_bits", num_bits, 2, 8)
        if scale is None:
            scale = "output_error" if num_bits <= OUTPUT_ERROR_BITS else "max"
        self.scale = checks.one_of("scale", scale, SCALES)
        most = int(2**self.num_bits - 1)
        if num_levels is None:
            num_levels = most
        least = (most + 1) // 2 + 1
        self._num_levels = checks.integer("num_levels", num_levels, least, most)
        if self._num_levels % 2 == 0:
            raise ValueError(
                "Argument `num_levels` must be odd: 0, and as many levels above as "
                f"below. Received: num_levels={num_levels}"
            )

    @property
    def num_levels(self) -> int:
        """How many values a weight of a filter can take."""
        return self._num_levels

    @property
    def max_code(self) -> int:
        """The largest absolute code."""
        return self._num_levels // 2

    @property
    def work(self) -> int:
        """How many times the work of a ternary quantizer it does, about."""
        return 2 if self.scale == "output_error" else 1

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns `(scale,)`."""
        largest = filter_functions.absolute_maxima(kernel) / self.max_code
        if self.scale == "max":
            return (largest,)
        best_for_gauss = gaussian_scale(self.max_code) * MEAN_TO_DEVIATION
        factor = best_for_gauss / filter_functions.weights_per_filter(kernel)
        guess = ops.cast(factor, "float32") * filter_functions.absolute_sums(kernel)
        if self.scale == "least_squares":
            return (self._least_squares(kernel, ops.minimum(largest, guess)),)
        finest = ops.divide_no_nan(guess, largest)
        finest = ops.clip(finest, SMALLEST_FINEST, LARGEST_FINEST)
        exponents = np.linspace(0, 1, CANDIDATES, dtype="float32")[:, None]
        ratios = ops.power(finest, exponents)
        errors = self._output_errors(kernel, largest, ratios)
        # Fewer operations than `argmin` and `take_along_axis`.
        best = errors <= ops.min(errors, axis=0) * (1 + NEARLY_BEST)
        ratio = ops.max(ops.where(best, ratios, ops.zeros((), "float32")), axis=0)
        return (largest * ratio,)

    def _output_errors(self, kernel: Tensor, largest: Tensor, ratios: Tensor) -> Tensor:
        """Returns the criterion for every candidate, over `largest**2`.

        Args:
            kernel: Float tensor `(..., filters)`.
            largest: The `"max"` scale, `(filters,)`.
            ratios: Candidates over `largest`, `(candidates, filters)`.

        Returns:
            Float32 `(candidates, filters)`.
        """
        limit = float(self.max_code)

        # In steps of a candidate: squares of weights would leave float32's range.
        def terms(
            weights: Tensor, largest: Tensor, inverses: Tensor
        ) -> tuple[Tensor, ...]:
            steps = ops.divide_no_nan(weights, largest) * inverses
            difference = steps - ops.clip(ops.round(steps), -limit, limit)
            squares = ops.square(difference)
            return (squares, difference) if limit > 1 else (squares,)

        inverses = ops.reshape(1 / ratios, (CANDIDATES, 1, -1))
        error, *totals = filter_functions.filter_sums(
            terms, kernel, largest, inverses, candidates=CANDIDATES
        )
        for total in totals:
            error = error + MEAN_WEIGHT * ops.square(total)
        return ops.square(ratios) * error

    def _least_squares(self, kernel: Tensor, scale: Tensor) -> Tensor:
        def terms(weights: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            codes = filter_functions.uniform_codes(weights, step, self.max_code)
            return weights * codes, codes * codes

        for _ in range(LEAST_SQUARES_STEPS):
            product, square = filter_functions.filter_sums(terms, kernel, scale)
            scale = ops.divide_no_nan(product, square)
        return scale

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns integers from -n to n."""
        return filter_functions.uniform_codes(kernel, fitted[0], self.max_code)

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        config: Config = {"num_bits": self.num_bits, "scale": self.scale}
        if self.num_levels != 2**self.num_bits - 1:
            config["num_levels"] = self.num_levels
        return config
