"""Selection: which filters (or weights) are quantized now.

Quantization error → probability → mask. Everything here is a pure function
of tensors and random numbers, so one compiled call draws the masks of all layers.

**Drawing without replacement.** The papers spin a roulette wheel once per
filter and take the filter that came up off the wheel. Adding Gumbel noise to
`log p` and keeping the k largest has exactly that distribution (Efraimidis &
Spirakis, 2006; Kool et al., 2019), in one sort instead of k dependent draws.

**Which draw.** `draw="paper"` draws the filters *to quantize*, with the
probability function applied to `f = 1 / (e + ε)`. `draw="released"` is what
the authors' code does: it draws the filters *to keep* at full precision, with
`p ∝ e`. The two distributions differ. The paper's is the default because it
is the published method and the one the four probability functions belong to.

| `probability` | p of a filter with `f = 1/(e + ε)` |
|---|---|
| `"constant"` | `1/m` |
| `"linear"` | `f / Σf` (the paper's choice) |
| `"softmax"` | `exp(f) / Σ exp(f)` |
| `"sigmoid"` | `1/(1 + exp(-f))`, normalized |

| `selection` | |
|---|---|
| `"roulette"` | drawn anew each time (the paper's "stochastic") |
| `"deterministic"` | the filters of least error |
| `"fixed"` | drawn once; what is quantized stays so, and a growing ratio adds newly drawn filters; a falling one draws all anew |
| `"soft_refresh"` or `SoftRefresh(rate)` | as `"fixed"`, but a small part of what is quantized is drawn anew each time (StoMPP) |

Design note: **log-probabilities, never probabilities.** With e = 0, f is 1e7
and `exp(f)` overflows; the log-probability of the softmax is f itself (less a
constant that no ranking sees), so nothing is ever exponentiated.

References:
    - [Dong et al., 2017, sections 3.1 and 3.2](https://arxiv.org/abs/1708.01001)
    - [Kool et al., 2019](https://arxiv.org/abs/1903.06059) (Gumbel top-k)
"""  # noqa: E501 (a table row cannot be broken)

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sq.core import checks
from keras_sq.core.types import Config, Tensor
from keras_sq.layers.ranking import Rows

GRANULARITIES = ("filter", "element")
PROBABILITIES = ("constant", "linear", "softmax", "sigmoid")
SELECTIONS = ("roulette", "deterministic", "fixed", "soft_refresh")
DRAWS = ("paper", "released")

EPSILON = 1e-7
"""ε of `f = 1/(e + ε)`."""


@keras.saving.register_keras_serializable("keras_sq")
@dataclasses.dataclass(frozen=True)
class SoftRefresh:
    """Keeps a mask and draws a small part of it anew, while the ratio grows.

    At every draw

    1. each entry that is quantized is released with probability `rate`,
       independently of the others; the rest of them stay quantized;
    2. the released ones and those at full precision compete for the places that
       are left, by the usual probabilities and without replacement. A released
       entry may win its place back.

    The count is exact at every draw, whatever was released. `rate=0` only ever adds
    to the mask; `rate=1` is the roulette. Should the ratio fall, those to drop are
    chosen at random among the ones that would stay. A mask with everything
    quantized, as in a new model, says nothing of what to keep: all is drawn then.

    StoMPP redraws about one mask entry in a hundred a step; its exact rule is not
    published. This one was chosen because the two limits are the known methods,
    because at a constant ratio under constant probability every entry is quantized
    equally often in the long run, and because it takes no second draw: what stays
    goes first in the same Gumbel top-k. An entry stays quantized for `1 / rate`
    draws or longer on average.

    Args:
        rate: Float in [0, 1], the expected part of the quantized entries that is
            released at a draw (a step, if the masks are drawn at every step).

    Raises:
        TypeError: If `rate` is no number.
        ValueError: If it is outside [0, 1].

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(
        ...     model, "sign", granularity="element",
        ...     selection=keras_sq.SoftRefresh(0.02))

    References:
        - [Smith & Islam, 2026](https://arxiv.org/abs/2601.22660) (StoMPP)
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", checks.fraction("rate", self.rate))

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {"rate": self.rate}

    @classmethod
    def from_config(cls, config: Config) -> "SoftRefresh":
        """Returns what `get_config` described."""
        return cls(**config)


def get_way(identifier: Any) -> str | SoftRefresh:
    """Returns a way of selecting from its name, or from what describes it.

    Args:
        identifier: One of `SELECTIONS`, a `SoftRefresh`, or what
            `serialize_way` returned.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it describes something else.
    """
    if isinstance(identifier, dict):
        identifier = checks.deserialized(identifier, SoftRefresh, "a `SoftRefresh`")
    if isinstance(identifier, SoftRefresh):
        return identifier
    name = checks.one_of("selection", identifier, SELECTIONS)
    return SoftRefresh() if name == "soft_refresh" else name


def serialize_way(way: str | SoftRefresh) -> str | Config:
    """Returns a way of selecting, JSON-serializable."""
    if isinstance(way, str):
        return way
    config: Config = keras.saving.serialize_keras_object(way)
    return config


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the quantized part of a kernel is chosen.

    Args:
        granularity: `"filter"`, or `"element"` for single weights.
        probability: See the table in this module's docstring.
        selection: See the table in this module's docstring.
        draw: `"paper"` or `"released"`.

    Raises:
        ValueError: If a name is unknown, or `probability` is given together
            with `draw="released"`, which has its own.
    """

    granularity: str = "filter"
    probability: str = "linear"
    selection: str | SoftRefresh = "roulette"
    draw: str = "paper"

    def __post_init__(self) -> None:
        checks.one_of("granularity", self.granularity, GRANULARITIES)
        checks.one_of("probability", self.probability, PROBABILITIES)
        object.__setattr__(self, "selection", get_way(self.selection))
        checks.one_of("draw", self.draw, DRAWS)
        if self.draw == "released" and self.probability != "linear":
            raise ValueError(
                'Argument `draw="released"` draws with p proportional to the error '
                "and takes no other probability function; leave `probability` out "
                f'or use `draw="paper"`. Received: probability={self.probability!r}'
            )

    def get_config(self) -> Config:
        """Returns the constructor's arguments, JSON-serializable."""
        return {
            "granularity": self.granularity,
            "probability": self.probability,
            "selection": serialize_way(self.selection),
            "draw": self.draw,
        }

    @property
    def needs_errors(self) -> bool:
        """Whether the selection looks at the quantization errors at all."""
        constant = self.probability == "constant" and self.draw == "paper"
        return self.selection == "deterministic" or not constant

    @property
    def rate(self) -> float:
        """Fraction of the quantized entries that a draw releases, in [0, 1]."""
        if isinstance(self.selection, SoftRefresh):
            return self.selection.rate
        return 0.0 if self.selection == "fixed" else 1.0

    @property
    def numbers_per_entry(self) -> int:
        """How many random numbers a draw takes for each entry."""
        return 2 if 0.0 < self.rate < 1.0 else 1

    def masks(
        self,
        errors: Sequence[Tensor],
        ratio: Tensor,
        uniform: Sequence[Tensor],
        previous: Sequence[Tensor],
    ) -> list[Tensor]:
        """Returns the masks of several kernels for a ratio: True = quantized.

        Exactly `number_quantized(ratio, m)` entries of each are True. All
        kernels are ranked together, as rows of one matrix: a model of 50
        layers costs a few operations, not a few for each layer.

        Args:
            errors: For each kernel float32 `(m,)`, the quantization error of
                each filter (or weight).
            ratio: Scalar in [0, 1], or one for each kernel.
            uniform: For each kernel float32 `(numbers_per_entry * m,)`, random
                numbers in [0, 1).
            previous: For each kernel bool `(m,)`, the mask until now (used by
                `"fixed"` and `SoftRefresh`).

        Returns:
            For each kernel bool `(m,)`.
        """
        rows = Rows([int(error.shape[0]) for error in errors])
        matrix = rows.join(errors)
        return rows.split(self.drawn(rows, matrix, ratio, uniform, previous))

    def drawn(
        self,
        rows: Rows,
        matrix: Tensor,
        ratio: Tensor,
        uniform: Sequence[Tensor],
        previous: Sequence[Tensor],
    ) -> Tensor:
        """Returns the masks as one matrix, bool.

        Args:
            rows: Joins and splits such matrices.
            matrix: Float32, the errors of `masks`, joined.
            ratio: As for `masks`.
            uniform: As for `masks`.
            previous: As for `masks`.
        """
        sizes = np.asarray(rows.sizes, "int32")
        number = number_quantized(ratio, sizes)
        if self.selection == "deterministic":
            return rows.largest(-matrix, number)
        draws = [[x] for x in uniform]
        if self.numbers_per_entry > 1:
            draws = [ops.split(x, self.numbers_per_entry) for x in uniform]
        fresh = rows.join([draw[0] for draw in draws])
        noise = gumbel(fresh)
        if self.draw == "released":
            scores = ops.log(ops.maximum(matrix, 1e-30))
        else:
            scores = log_probability(matrix, self.probability)
        tie_break = noise if self.probability == "softmax" else None
        scores = scores + noise
        if self.rate < 1.0:
            before = rows.join([ops.cast(mask, "float32") for mask in previous])
            before = ops.cast(before, "int32")  # Float32 counts to 2**24 only.
            count = ops.sum(before, axis=-1)
            if self.selection == "fixed":
                keeps = count <= number
            else:
                keeps = count != sizes
            stays = ops.logical_and(before > 0, ops.expand_dims(keeps, -1))
            if self.rate > 0.0:
                release = rows.join([draw[1] for draw in draws])
                stays = ops.logical_and(stays, release >= self.rate)
            # What stays goes first among those to quantize, last among those to keep:
            # no score reaches 2**31. For a ratio that falls it is in random order;
            # float32 loses nothing here, as `fresh` comes in steps of 2**-23.
            first = (-(2.0**31) if self.draw == "released" else 2.0**31) * (1.0 + fresh)
            scores = ops.where(stays, first, scores)
        if self.draw == "released":
            # The entries drawn are the ones to keep: quantize the others.
            return ops.logical_not(rows.largest(scores, sizes - number))
        return rows.largest(scores, number, tie_break)


def number_quantized(ratio: Tensor, size: Any) -> Tensor:
    """Returns how many of `size` filters are quantized: `m - int((1 - r) m)`.

    The rounding favours quantizing, and ratio 1 quantizes all, always.
    A product that float32 cannot tell from the integer above it counts as that
    integer, so that ratio 0.9 of 10 filters keeps one although `1 - 0.9` is not
    0.1. For element-wise masks of many thousand weights this can be one less
    to quantize than in exact arithmetic.

    Args:
        ratio: Float in [0, 1], or a tensor of them.
        size: Number of filters, or an array of them.

    Returns:
        Int32 tensor.
    """
    wide = ops.cast(size, "float32")
    kept = (1.0 - ops.cast(ratio, "float32")) * wide
    # The rounding of ratio, difference and product adds up to less than this;
    # below 1, so that nothing is kept at ratio 1.
    slack = ops.minimum(wide * 2.0**-23, 0.5)
    kept = ops.cast(ops.floor(kept + slack), "int32")
    return size - ops.clip(kept, 0, size)


def log_probability(errors: Tensor, probability: str) -> Tensor:
    """Returns `log p` of every filter, up to a constant.

    Args:
        errors: Float32 `(m,)`, not negative.
        probability: `"constant"`, `"linear"`, `"softmax"` or `"sigmoid"`.

    Returns:
        Float32 `(m,)`, finite.
    """
    if probability == "constant":
        return ops.zeros_like(errors)
    inverse = 1.0 / (errors + EPSILON)
    if probability == "linear":
        return ops.log(inverse)
    if probability == "softmax":
        return inverse
    return ops.log_sigmoid(inverse)


def gumbel(uniform: Tensor) -> Tensor:
    """Returns standard Gumbel noise from uniform random numbers.

    `-log(Exponential)` with the exponential from `log1p` keeps float32's full
    resolution where it decides the ranking, at the large values; `-log(-log
    (u))` has a granularity of 6e-8 in `1 - u` there.

    Args:
        uniform: Float32 tensor, in [0, 1).

    Returns:
        Float32 tensor of the same shape, finite.
    """
    # The middle of the step of 2**-23 in which the generator's numbers come:
    # 0 is among them, and would win over any score.
    middle = ops.minimum(uniform + 2.0**-24, 1.0 - 2.0**-24)
    return -ops.log(-ops.log1p(-middle))
