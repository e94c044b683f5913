"""Kernels of signs, without a scale."""

from keras import ops

from keras_sq.core.types import Tensor
from keras_sq.quantizers import filter_functions
from keras_sq.quantizers.base import register
from keras_sq.quantizers.binary import BinaryQuantizer


@register
class SignQuantizer(BinaryQuantizer):
    """Maps each weight to its sign, -1 or +1.

    Forward:  `q = +1 if w >= 0 else -1`. NaN stays NaN. A filter of zeros becomes
    one of ones: there is no scale that could be 0.
    Backward: by the split update.

    `BinaryQuantizer` with the scale 1. What a scale would do is left to the batch
    normalization behind the layer, as in networks with binary activations.

    Example:
        >>> q = keras_sq.quantizers.SignQuantizer()
        >>> q(keras.ops.array([[0.5], [-1.5]])).numpy().tolist()
        [[1.0], [-1.0]]

    References:
        - [Hubara et al., 2016, section 1.1](https://arxiv.org/abs/1602.02830)
    """

    any_shape = True

    @property
    def numbers_per_filter(self) -> int:
        """How many float numbers a filter needs besides its codes."""
        return 0

    def fit(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Returns `(scale,)`, all 1."""
        return (ops.ones((ops.shape(kernel)[-1],), "float32"),)

    def encode(self, kernel: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the signs, with +1 for 0."""
        # No scale carries a NaN here, and a NaN must show.
        return ops.where(
            ops.isnan(kernel), kernel, filter_functions.binary_codes(kernel)
        )

    def decode(self, codes: Tensor, *fitted: Tensor) -> Tensor:
        """Returns the codes."""
        return codes

    def filter_errors(self, kernel: Tensor, *state: Tensor) -> Tensor:
        """Returns the error per filter; `Σ|w − q|` is `Σ||w| − 1|` here."""
        difference, norm = filter_functions.filter_sums(
            lambda w: (ops.abs(ops.abs(w) - 1.0), ops.abs(w)), kernel
        )
        return filter_functions.relative_error(difference, norm)
