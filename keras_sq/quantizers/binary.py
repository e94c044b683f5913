"""Binary kernels (BWN)."""

from keras import ops

from keras_sq.core.types import Tensor
from keras_sq.quantizers import filter_functions
from keras_sq.quantizers.base import Quantizer, register


@register
class BinaryQuantizer(Quantizer):
    """Maps each filter to {-scale, +scale}.

    Forward:  `q = scale * (+1 if w >= 0 else -1)`, `scale = mean(|w|)` of the
    filter, which minimizes `‖W_i − Q_i‖₂`.
    Backward: by the split update; no gradient through the scale.

    Example:
        >>> q = keras_sq.quantizers.BinaryQuantizer()
        >>> q(keras.ops.array([[0.5], [-1.5]])).numpy().tolist()
        [[1.0], [-1.0]]

    References:
        - [Rastegari et al., 2016, section 3.1](https://arxiv.org/abs/1603.05279)
    """

    any_shape = True

    @property
    def max_code(self) -> int:
        """The largest absolute code."""
        return 1

    @property
    def num_levels(self) -> int:
        """How many values a weight of a filter can take."""
        return 2

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns `(scale,)`."""
        sums = filter_functions.absolute_sums(kernel)
        return (filter_functions.per_weight(sums, kernel),)

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the signs, with +1 for 0."""
        return filter_functions.binary_codes(kernel)

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the error per filter; `Σ|w − q|` is `Σ||w| − scale|` here."""
        norm = filter_functions.absolute_sums(kernel)
        scale = filter_functions.per_weight(norm, kernel)
        (difference,) = filter_functions.filter_sums(
            lambda w, s: (ops.abs(ops.abs(w) - s),), kernel, scale
        )
        return filter_functions.relative_error(difference, norm)
