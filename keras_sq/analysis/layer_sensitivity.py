"""What quantizing one layer alone does to the loss of a trained network.

Each layer in turn gets quantized kernels, everything else stays float, and the model
is evaluated. The result says which layers mind; `bit_choice.py` makes a choice of it.

Design note: **the kernels are swapped in the model itself**, for the time of an
evaluation, and put back bit for bit. So its own compiled loss, metrics and `test_step`
are what is evaluated, whatever they are, and it is compiled once for all of them. A
quantized copy that is compiled alike cannot be had: Keras's compile configuration
knows no losses and metrics of one's own.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_sq import quantizers
from keras_sq.analysis import kernel_sizes
from keras_sq.conversion import quantize
from keras_sq.conversion.copying import require_built
from keras_sq.core import checks, text_tables
from keras_sq.core import keras_internals as internals
from keras_sq.core.types import Array, Config, LayerKeys, Model, Variable
from keras_sq.layers import QuantizedActivation, layer_paths, quantized_layers
from keras_sq.layers.kernel_functions import filters_last
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.quantizers import Quantizer

FLOAT = "float"
"""The candidate that leaves a layer as it is."""

CANDIDATES = ("binary", "ternary", "uniform-4", "uniform-8")

BETTER_IF_HIGHER = ("acc", "auc", "precision", "recall", "f1", "iou", "r2")
"""Parts of the names of metrics that are to be maximized, for `mode="auto"`."""

MODES = ("auto", "min", "max")


class LayerSensitivity(NamedTuple):
    """What one quantizer does to one layer.

    Attributes:
        path: Of the layer.
        layer_type: Its class.
        quantizer: The candidate.
        value: Loss or metric with this layer alone quantized.
        harm: By how much that is worse than the float network; negative if better.
        error: `‖W − Q‖₁ / ‖W‖₁` over the layer's kernels.
        weights: How many these have.
        packed_bits: What they take packed, the numbers of filters included.
    """

    path: str
    layer_type: str
    quantizer: str
    value: float
    harm: float
    error: float
    weights: int
    packed_bits: int


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What `keras_sq.sensitivity` returns.

    Attributes:
        metric: What was evaluated, such as `"loss"`.
        mode: `"min"` or `"max"`: what of it is better.
        baseline: Its value for the float network.
        rows: A `LayerSensitivity` for each layer and candidate, the worst first.
        quantizers: Name of a candidate -> the quantizer.
        layers: Paths of the layers, in the order of the model.
        float_weights: Weights of everything else: biases, normalization, layers that
            were skipped or cannot be quantized.
        skip: The argument.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8, name="hidden")])
        >>> model.compile("sgd", "mse")
        >>> data = np.ones((32, 4)), np.ones((32, 8))
        >>> found = keras_sq.sensitivity(model, data, candidates=["binary"])
        >>> row = found.row("hidden", "binary")
        >>> row.value - found.baseline == row.harm, row.packed_bits
        (True, 288)
    """

    metric: str
    mode: str
    baseline: float
    rows: tuple[LayerSensitivity, ...]
    quantizers: Mapping[str, Quantizer]
    layers: tuple[str, ...]
    float_weights: int
    skip: LayerKeys | None = None

    def row(self, path: str, quantizer: str) -> LayerSensitivity:
        """Returns the row of a layer and a candidate.

        Raises:
            ValueError: If there is none.
        """
        checks.one_of("path", path, self.layers)
        checks.one_of("quantizer", quantizer, self.quantizers)
        return next(r for r in self.rows if (r.path, r.quantizer) == (path, quantizer))

    def to_records(self) -> list[Config]:
        """Returns a flat dict a row, as `pandas.DataFrame` takes them."""
        return [row._asdict() for row in self.rows]

    def to_dict(self) -> Config:
        """Returns everything measured, JSON-serializable."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "baseline": self.baseline,
            "float_weights": self.float_weights,
            "layers": self.to_records(),
        }

    def __str__(self) -> str:
        names = list(self.quantizers)
        worst = dict.fromkeys(row.path for row in self.rows)
        table = [
            [path, f"{self.row(path, names[0]).weights:,}"]
            + [f"{self.row(path, name).value:.4g}" for name in names]
            for path in worst
        ]
        header = ["layer", "weights", *names]
        lines = text_tables.aligned([header, *table])
        lines.insert(1, "-" * len(lines[0]))
        title = f"{self.metric} with one layer quantized; float: {self.baseline:.4g}"
        return "\n".join([title, *lines])


def sensitivity(
    model: Model,
    data: Any,
    *,
    candidates: Sequence[Any] = CANDIDATES,
    metric: str = "loss",
    mode: str = "auto",
    skip: LayerKeys | None = None,
    batch_size: int = 128,
) -> Sensitivity:
    """Evaluates a float network with one layer quantized at a time.

    Right away, without training: what is measured is the harm at the moment of
    quantization, most of which a training makes good. The order of the layers is what
    it is good for. It takes one evaluation for each layer and candidate, and one of
    the float network; nothing is compiled anew in between.

    Args:
        model: A built, compiled, trained float model. Its kernels are exchanged
            meanwhile, and are the same bits again at the end, also after an error.
        data: What to evaluate on: `(x, y)`, `(x, y, sample_weight)`, or what
            `model.evaluate` takes and can be gone through often (a `tf.data.Dataset`,
            a `keras.utils.PyDataset`), such as a part of the validation data. Without
            shuffling or augmentation, or values differ by chance.
        candidates: Quantizers, or their names.
        metric: `"loss"`, or the name of a compiled metric, as in the logs.
        mode: `"min"` or `"max"`: what is better. `"auto"` takes the largest for names
            with `acc`, `auc`, `precision`, `recall`, `f1`, `iou` or `r2` in them.
        skip: Layers that stay float, as in `keras_sq.quantize_model`.
        batch_size: Of arrays.

    Returns:
        A `Sensitivity`; its rows are sorted, the worst first.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model is not built, not compiled, has no loss, is quantized
            already, or its value is not finite; if there is no data; or if a name is
            not known.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8, name="hidden"),
        ...      keras.layers.Dense(1, name="output")])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 1))
        >>> found = keras_sq.sensitivity(model, (x, y), candidates=["binary"])
        >>> sorted(row.path for row in found.rows)
        ['hidden', 'output']
    """
    chosen = _named(candidates)
    checks.one_of("mode", mode, MODES)
    checks.integer("batch_size", batch_size, 1)
    arguments = _evaluate_arguments(data, batch_size)
    _require_loss(model, metric)
    # What is quantized, and what the filters are, is that function's to say.
    plan = quantize.quantize_model(
        model, next(iter(chosen.values())), skip=skip, overrides={}
    )

    def evaluate() -> float:
        logs = model.evaluate(**arguments, verbose=0, return_dict=True)
        if metric not in logs:
            raise ValueError(
                f"Argument `metric` must be one of {checks.listed(logs)}, which "
                f"the evaluation of the model gives. Received: metric={metric!r}"
                f"{'' if logs else ' (is there any data?)'}."
            )
        return float(logs[metric])

    baseline = evaluate()
    if not math.isfinite(baseline):
        raise ValueError(
            f"The float model's {metric} is {baseline} on this data: train it first, "
            "and look at the data."
        )
    if mode == "auto":
        higher = any(part in metric.lower() for part in BETTER_IF_HIGHER)
        mode = "max" if higher else "min"
    originals = dict(layer_paths(model))
    rows = []
    for path, layer in quantized_layers(plan):
        kernels = _kernels(originals[path], layer)
        for name, quantizer in chosen.items():
            value, error = _with_quantized(layer, kernels, quantizer, evaluate)
            harm = value - baseline if mode == "min" else baseline - value
            rows.append(
                LayerSensitivity(
                    path,
                    layer.float_class.__name__,
                    name,
                    value,
                    harm if math.isfinite(harm) else math.inf,
                    error,
                    sum(math.prod(variable.shape) for variable in kernels.values()),
                    _packed_bits(layer, quantizer),
                )
            )
    rows.sort(key=lambda row: -row.harm)
    return Sensitivity(
        metric,
        mode,
        baseline,
        tuple(rows),
        chosen,
        tuple(path for path, _ in quantized_layers(plan)),
        sum(
            math.prod(variable.shape)
            for _, layer in layer_paths(plan)
            if not isinstance(layer, QuantizedActivation)
            for variable in kernel_sizes.float_variables(layer)
        ),
        skip,
    )


def _named(candidates: Sequence[Any]) -> dict[str, Quantizer]:
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise TypeError(
            "Argument `candidates` must be a list of quantizers or their names. "
            f"Received: candidates={candidates!r}"
        )
    if not candidates:
        raise ValueError("Argument `candidates` must name at least one quantizer.")
    named = {}
    for candidate in candidates:
        quantizer = quantizers.get(candidate)
        named[candidate if isinstance(candidate, str) else repr(quantizer)] = quantizer
    return named


def _evaluate_arguments(data: Any, batch_size: int) -> Config:
    """Returns the arguments of `model.evaluate`.

    Raises:
        TypeError: If the data can be gone through once only, or has no targets.
        ValueError: If there is none.
    """
    if isinstance(data, tuple):
        if not 2 <= len(data) <= 3:
            raise ValueError(
                "Argument `data` must be (x, y) or (x, y, sample_weight). Received: a "
                f"tuple of {len(data)}."
            )
        names = ("x", "y", "sample_weight")
        first = data[0]
        while isinstance(first, dict | list | tuple) and first:
            first = next(iter(first.values() if isinstance(first, dict) else first))
        if hasattr(first, "__len__") and not len(first):
            raise ValueError("Argument `data` must hold examples. Received: none.")
        arguments = dict(zip(names, data, strict=False))
        return {**arguments, "batch_size": batch_size}
    if isinstance(data, Iterator):
        raise TypeError(
            "Argument `data` is evaluated many times, so it must be possible to go "
            "through it often: arrays (x, y), a `tf.data.Dataset` or a "
            f"`keras.utils.PyDataset`. Received: a {type(data).__name__}."
        )
    if data is None or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(
            "Argument `data` must be (x, y), or a data set for `model.evaluate`. "
            f"Received: data={data!r}"
        )
    if isinstance(data, np.ndarray | list):
        raise TypeError(
            "Argument `data` must be a tuple (x, y): a loss needs targets. Received: a "
            f"{type(data).__name__}."
        )
    return {"x": data}


def _require_loss(model: Model, metric: str) -> None:
    require_built(model)
    if not model.compiled:
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no loss. Compile it as "
            "for its training: `model.compile(optimizer, loss, metrics=[...])`."
        )
    if metric == "loss" and model.loss is None and not model.losses:
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss. Compile it with one, or "
            "name a metric: `metric='...'`."
        )


def _kernels(original: Any, layer: StochasticallyQuantized) -> dict[str, Variable]:
    """Returns the float layer's variables behind the names of its kernels."""
    ours = {id(v) for v in layer.quantization_state()}
    mine = [v for v in internals.own_variables(layer) if id(v) not in ours]
    theirs = internals.own_variables(original)
    by_latent = {id(a): b for a, b in zip(mine, theirs, strict=True)}
    return {n: by_latent[id(layer.latent(n))] for n in layer.quantized_weights}


def _with_quantized(
    layer: StochasticallyQuantized,
    kernels: Mapping[str, Variable],
    quantizer: Quantizer,
    evaluate: Callable[[], float],
) -> tuple[float, float]:
    """Returns what `evaluate` does with quantized kernels, and their error."""
    before: dict[str, Array] = {
        name: np.copy(ops.convert_to_numpy(internals.read(variable)))
        for name, variable in kernels.items()
    }
    difference = norm = 0.0
    try:
        for name, variable in kernels.items():
            value = internals.read(layer.latent(name))
            columns, restore = filters_last(value, layer.filter_axes(name))
            quantized = restore(quantizer(columns))
            difference += float(ops.sum(ops.abs(value - quantized)))
            norm += float(ops.sum(ops.abs(value)))
            variable.assign(quantized)
        return evaluate(), difference / norm if norm else 0.0
    finally:
        for name, variable in kernels.items():
            variable.assign(before[name])


def _packed_bits(layer: StochasticallyQuantized, quantizer: Quantizer) -> int:
    total = 0
    for name in layer.quantized_weights:
        shape = layer.latent(name).shape
        filters = math.prod(shape[axis] for axis in layer.filter_axes(name))
        total += kernel_sizes.packed_bits(quantizer, math.prod(shape), filters)
    return total
