"""Ternary kernels (TWN)."""

from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.quantizers import filter_functions
from keras_sq.quantizers.base import Quantizer, register

THRESHOLDS = ("layer", "released", "filter")


@register
class TernaryQuantizer(Quantizer):
    """Maps each filter to {-scale, 0, +scale}.

    Forward:  `q = scale * sign(w) * (|w| > threshold)`, with `scale` the mean
    of `|w|` over the filter's weights above the threshold (0 if there are
    none).
    Backward: by the split update; no gradient through scale or threshold.

    The threshold is `threshold_factor` times

    | `threshold` | |
    |---|---|
    | `"layer"` | the mean of `abs(W)` over the whole layer (the papers) |
    | `"released"` | the mean of `abs(W − mean(W))` over the whole layer, applied to the un-centred weights (the released code of SQ) |
    | `"filter"` | the mean of `abs(W_i)` of each filter: no filter can end up all zero because its neighbours are larger |

    Args:
        threshold: String, see the table.
        threshold_factor: Float > 0.

    Raises:
        ValueError: If `threshold` is unknown or `threshold_factor` not > 0.

    Example:
        >>> q = keras_sq.quantizers.TernaryQuantizer()
        >>> q(keras.ops.array([[0.1], [-2.0], [3.0]])).numpy().tolist()
        [[0.0], [-2.5], [2.5]]

    References:
        - [Li et al., 2016, section 2.2](https://arxiv.org/abs/1605.04711)
    """  # noqa: E501 (a table row cannot be broken)

    any_shape = True

    def __init__(self, threshold: str = "layer", threshold_factor: float = 0.7) -> None:
        self.threshold = checks.one_of("threshold", threshold, THRESHOLDS)
        self.threshold_factor = checks.positive("threshold_factor", threshold_factor)

    @property
    def max_code(self) -> int:
        """The largest absolute code."""
        return 1

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns `(scale, threshold)`."""
        return self._fit(kernel, filter_functions.absolute_sums(kernel))

    def _fit(self, kernel: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        if self.threshold == "filter":
            mean = filter_functions.per_weight(norm, kernel)
        elif self.threshold == "layer":
            mean = ops.mean(filter_functions.per_weight(norm, kernel))
        else:
            (sums,) = filter_functions.filter_sums(lambda w: (w,), kernel)
            centre = ops.mean(filter_functions.per_weight(sums, kernel))
            (spread,) = filter_functions.filter_sums(
                lambda w, c: (ops.abs(w - c),), kernel, centre
            )
            mean = ops.mean(filter_functions.per_weight(spread, kernel))
        threshold = self.threshold_factor * mean

        def terms(weights: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
            size = ops.abs(weights)
            above = size > limit
            zero = ops.zeros((), "float32")
            return (
                ops.where(above, size, zero),
                ops.where(above, ops.ones((), "float32"), zero),
            )

        total, number = filter_functions.filter_sums(terms, kernel, threshold)
        return ops.divide_no_nan(total, number), threshold

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns -1, 0 or +1."""
        return filter_functions.ternary_codes(kernel, fitted[1])

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the error per filter.

        `|w − q|` is `||w| − scale|` above the threshold and `|w|` below: no
        codes are needed.
        """
        norm = filter_functions.absolute_sums(kernel)

        def terms(weights: Tensor, scale: Tensor, limit: Tensor) -> tuple[Tensor]:
            size = ops.abs(weights)
            return (ops.where(size > limit, ops.abs(size - scale), size),)

        (difference,) = filter_functions.filter_sums(
            terms, kernel, *self._fit(kernel, norm)
        )
        return filter_functions.relative_error(difference, norm)

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {
            "threshold": self.threshold,
            "threshold_factor": self.threshold_factor,
        }
