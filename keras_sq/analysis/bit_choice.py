"""Which layer gets how many bits, so that a network fits into the flash of a chip.

`layer_sensitivity.py` measures what each layer minds, `knapsack.py` finds the best
choice within the budget, and the choice goes into `keras_sq.quantize_model`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from keras_sq.analysis import kernel_sizes, knapsack
from keras_sq.analysis.layer_sensitivity import FLOAT, Sensitivity, sensitivity
from keras_sq.conversion import quantize
from keras_sq.core import checks
from keras_sq.core.types import Config, LayerKeys, Model
from keras_sq.quantizers import Quantizer

CANDIDATES = (
    "binary",
    "ternary",
    *(f"uniform-{bits}" for bits in range(2, 9)),
    FLOAT,
)


@dataclasses.dataclass(frozen=True)
class BitChoice:
    """What `keras_sq.choose_bits` returns.

    Attributes:
        assignment: Path of a layer -> name of its quantizer, or `"float"`.
        max_bytes: The budget.
        packed_bytes: What the weights take: codes in whole bits, the numbers of
            filters, and all float weights (biases, normalization, layers that were
            skipped), as `keras_sq.summary` counts.
        baseline: Loss or metric of the float network.
        predicted: What is expected right after quantization: the baseline and the
            harm of each layer quantized alone.
        gap: By how much a better choice could be predicted to do less harm; 0 if
            there is none.
        sensitivity: What the choice was made from.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8, name="hidden")])
        >>> model.compile("sgd", "mse")
        >>> data = np.ones((32, 4)), np.ones((32, 8))
        >>> choice = keras_sq.choose_bits(
        ...     model, data, max_bytes=80, candidates=["binary"])
        >>> choice.settings["overrides"], choice.packed_bytes
        ({'hidden': BinaryQuantizer()}, 68)
    """

    assignment: Mapping[str, str]
    max_bytes: int
    packed_bytes: int
    baseline: float
    predicted: float
    gap: float
    sensitivity: Sensitivity

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `keras_sq.quantize_model`.

        Raises:
            ValueError: If every layer stays float: then nothing is to be quantized.
        """
        counts = Counter(name for name in self.assignment.values() if name != FLOAT)
        if not counts:
            raise ValueError(
                f"The float network fits into {self.max_bytes:,} bytes and no layer "
                "is better quantized: there is nothing to quantize."
            )
        by_name = self.sensitivity.quantizers
        # The last key that matches wins: a name at the top may be one below, too.
        paths = sorted(self.assignment, key=lambda path: path.count("/"))
        overrides: dict[str, Quantizer | None] = {
            path: by_name.get(self.assignment[path]) for path in paths
        }
        (most, _), *_ = counts.most_common(1)
        skip = self.sensitivity.skip
        return {
            "kernel_quantizer": by_name[most],
            "skip": () if skip is None else skip,
            "overrides": overrides,
        }

    def quantize_model(self, model: Model, **changes: Any) -> Model:
        """Returns the quantized model, as `keras_sq.quantize_model` does.

        Args:
            model: The model that the choice was made for; it is left alone.
            **changes: Arguments that replace or complete `settings`.

        Raises:
            TypeError: As `keras_sq.quantize_model`.
            ValueError: As `keras_sq.quantize_model`, and as `settings`.
        """
        return quantize.quantize_model(model, **{**self.settings, **changes})

    def to_dict(self) -> Config:
        """Returns the choice, JSON-serializable."""
        return {
            "assignment": dict(self.assignment),
            "max_bytes": self.max_bytes,
            "packed_bytes": self.packed_bytes,
            "metric": self.sensitivity.metric,
            "baseline": self.baseline,
            "predicted": self.predicted,
            "gap": self.gap,
        }

    def __str__(self) -> str:
        width = max(map(len, self.assignment))
        lines = [f"{path:<{width}}  {q}" for path, q in self.assignment.items()]
        lines.append(
            f"{self.packed_bytes:,} of {self.max_bytes:,} bytes; "
            f"{self.sensitivity.metric} {self.baseline:.4g} as float, "
            f"{self.predicted:.4g} predicted before training"
        )
        return "\n".join(lines)


def choose_bits(
    model: Model,
    data: Any,
    *,
    max_bytes: int,
    candidates: Sequence[Any] = CANDIDATES,
    metric: str = "loss",
    mode: str = "auto",
    skip: LayerKeys | None = None,
    batch_size: int = 128,
) -> BitChoice:
    """Chooses a quantizer for each layer, so that the weights fit a budget.

    Of all assignments within the budget, the one with the least predicted loss: that
    of the float network, and the harm of each layer when quantized alone, added up. It
    is found exactly (`gap` says otherwise where a network has hundreds of layers).
    That harms add up is an assumption; what a training makes good is not looked at. So
    compare the choice with a plain one after training.

    Costs one evaluation on the data for each layer and candidate. For other budgets
    keep the `keras_sq.sensitivity` and give it to `choose_within`, which costs none:
    `keras_sq.choose_bits(...).sensitivity` is one.

    Args:
        model: A built, compiled, trained float model.
        data: As in `keras_sq.sensitivity`.
        max_bytes: What all weights may take, packed as `keras_sq.summary` counts: with
            biases, batch normalization and whatever stays float. The file has a frame
            besides, and its forms differ a little.
        candidates: Quantizers or their names, and `"float"`.
        metric: As in `keras_sq.sensitivity`.
        mode: As in `keras_sq.sensitivity`.
        skip: Layers that stay float, and count as such.
        batch_size: Of arrays.

    Returns:
        A `BitChoice`: `keras_sq.quantize_model(model, **choice.settings)`, or
        `choice.quantize_model(model)`.

    Raises:
        TypeError: As `keras_sq.sensitivity`.
        ValueError: As `keras_sq.sensitivity`; and if nothing fits the budget: the
            error says what the smallest choice takes.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8, name="hidden"),
        ...      keras.layers.Dense(1, name="output")])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 1))
        >>> choice = keras_sq.choose_bits(model, (x, y), max_bytes=100)
        >>> choice.packed_bytes <= 100, list(choice.assignment)
        (True, ['hidden', 'output'])
        >>> sq_model = choice.quantize_model(model)
    """
    checks.integer("max_bytes", max_bytes, 1)
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise TypeError(
            "Argument `candidates` must be a list of quantizers or their names. "
            f"Received: candidates={candidates!r}"
        )
    measured = [x for x in candidates if not (isinstance(x, str) and x == FLOAT)]
    result = sensitivity(
        model,
        data,
        candidates=measured,
        metric=metric,
        mode=mode,
        skip=skip,
        batch_size=batch_size,
    )
    return choose_within(result, max_bytes, allow_float=len(measured) < len(candidates))


def choose_within(
    measured: Sensitivity, max_bytes: int, *, allow_float: bool = True
) -> BitChoice:
    """Returns the best choice within a budget from what was measured.

    Args:
        measured: What `keras_sq.sensitivity` returned.
        max_bytes: The budget, as in `choose_bits`.
        allow_float: Whether a layer may stay float.

    Raises:
        TypeError: If `max_bytes` is no integer.
        ValueError: If nothing fits the budget.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> model.compile("sgd", "mse")
        >>> measured = keras_sq.sensitivity(model, (np.ones((32, 4)), np.ones((32, 8))))
        >>> [keras_sq.choose_within(measured, size).packed_bytes <= size
        ...  for size in (80, 100, 120)]
        [True, True, True]
    """
    checks.integer("max_bytes", max_bytes, 1)
    names: list[list[str]] = []
    costs: list[list[float]] = []
    sizes: list[list[int]] = []
    for path in measured.layers:
        rows = [measured.row(path, name) for name in measured.quantizers]
        usable = [row for row in rows if math.isfinite(row.harm)]
        names.append([row.quantizer for row in usable])
        costs.append([row.harm for row in usable])
        sizes.append([row.packed_bits for row in usable])
        if allow_float:
            names[-1].append(FLOAT)
            costs[-1].append(0.0)
            sizes[-1].append(kernel_sizes.FLOAT_BITS * rows[0].weights)
        if not names[-1]:
            raise ValueError(
                f"Layer '{path}' makes the {measured.metric} infinite with every "
                "candidate. Add 'float' to the candidates, or name it in `skip`."
            )
    rest = kernel_sizes.FLOAT_BITS * measured.float_weights
    least = math.ceil((rest + knapsack.smallest_size(sizes)) / 8)
    if max_bytes < least:
        raise ValueError(
            f"Argument `max_bytes` must be at least {least:,}, which these candidates "
            f"take at the least, {rest // 8:,} of them for weights that stay float "
            f"(biases, normalization, skipped layers). Received: max_bytes={max_bytes}"
        )
    solution = knapsack.solve(costs, sizes, 8 * max_bytes - rest)
    assignment = {
        path: group[option]
        for path, group, option in zip(
            measured.layers, names, solution.options, strict=True
        )
    }
    sign = 1.0 if measured.mode == "min" else -1.0
    return BitChoice(
        assignment,
        max_bytes,
        math.ceil((rest + solution.size) / 8),
        measured.baseline,
        measured.baseline + sign * solution.cost,
        solution.gap,
        measured,
    )
