"""A table of what is quantized in a model, how, and what stays float.

The size of a packed kernel is that of its codes in whole bits (1 for two
levels, 2 for three or four), and the float32 numbers of each filter: a scale, a
learned basis or, for signs, nothing. How small the files get is the exporter's
matter.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_sq import _keras_internals as internals
from keras_sq.layers import QuantizedActivation, layer_paths
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.masks import require_quantized
from keras_sq.schedules import Layerwise, RatioSchedule
from keras_sq.types import Config, Layer, Model


class LayerSummary(NamedTuple):
    """One weight of a layer, or the float weights of a layer taken together.

    Attributes:
        path: Layer path and, for a quantized kernel, the weight's name.
        layer_type: Class name of the float layer.
        weights: Number of weights.
        quantizer: The quantizer, `"float"`, or an empty string for a layer that
            quantizes activations only. What that learns is no weight.
        ratio: Ratio of the last draw, `None` for float weights.
        error: `‖W − Q‖₁ / ‖W‖₁` over the whole kernel, `None` for float.
        bits: Bits a weight, scales included.
        reason: Why a kernel stays float, if that is known.
        inputs: Short name of what quantizes the layer's input (`"lq-2"`), on the
            row of its first kernel or, for a layer that does nothing else, its
            own; else `None`.
        input_bits: Bits of an activation, `None` for float.
        turn: Of a quantized layer: its place in the order of a layerwise schedule,
            from 1; `None` if no such schedule was given.
    """

    path: str
    layer_type: str
    weights: int
    quantizer: str
    ratio: float | None
    error: float | None
    bits: float
    reason: str = ""
    inputs: str | None = None
    input_bits: int | None = None
    turn: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """What `keras_sq.summary` returns: rows, totals, and a printable table.

    Attributes:
        rows: A `LayerSummary` per quantized kernel and per float layer.
    """

    rows: tuple[LayerSummary, ...]

    @property
    def float_bytes(self) -> int:
        """Bytes of all weights as float32."""
        return 4 * sum(row.weights for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all weights with the quantized ones packed."""
        return math.ceil(sum(row.weights * row.bits for row in self.rows) / 8)

    @property
    def quantized_bits(self) -> float:
        """Bits a weight over the quantized kernels, scales included."""
        rows = [row for row in self.rows if row.error is not None]
        return sum(r.weights * r.bits for r in rows) / sum(r.weights for r in rows)

    def to_dict(self) -> Config:
        """Returns rows and totals, JSON-serializable."""
        return {
            "layers": [row._asdict() for row in self.rows],
            "float_bytes": self.float_bytes,
            "packed_bytes": self.packed_bytes,
            "quantized_bits": self.quantized_bits,
        }

    def __str__(self) -> str:
        header: tuple[str, ...]
        header = ("layer", "type", "weights", "quantizer", "ratio", "error", "bits")
        body: list[tuple[str, ...]] = [
            (
                row.path,
                row.layer_type,
                f"{row.weights:,}",
                row.quantizer,
                "" if row.ratio is None else f"{row.ratio:.3g}",
                "" if row.error is None else f"{row.error:.3f}",
                f"{row.bits:.2f}",
            )
            for row in self.rows
        ]
        right = {2, 4, 5, 6}
        if any(row.inputs for row in self.rows):
            header = (*header[:4], "inputs", *header[4:])
            body = [
                (*cells[:4], row.inputs or ("float" if row.error else ""), *cells[4:])
                for cells, row in zip(body, self.rows, strict=True)
            ]
            right = {2, 5, 6, 7}
        if any(row.turn for row in self.rows):
            header = ("turn", *header)
            body = [
                (f"{row.turn or ''}", *cells)
                for cells, row in zip(body, self.rows, strict=True)
            ]
            right = {0, *(column + 1 for column in right)}
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

        def line(cells: tuple[str, ...]) -> str:
            parts = [
                cell.rjust(width) if index in right else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(parts).rstrip()

        lines = [line(header), "-" * len(line(tuple("-" * w for w in widths)))]
        for cells, row in zip(body, self.rows, strict=True):
            lines.append(line(cells) + (f"  [{row.reason}]" if row.reason else ""))
        ratio = self.float_bytes / max(self.packed_bytes, 1)
        lines.append(
            f"{self.float_bytes:,} bytes as float32, {self.packed_bytes:,} packed "
            f"({ratio:.1f} x smaller); {self.quantized_bits:.2f} bits a quantized "
            "weight"
        )
        return "\n".join(lines)


def summary(
    model: Model,
    print_fn: Callable[[str], Any] | None = None,
    *,
    schedule: RatioSchedule | None = None,
) -> ModelSummary:
    """Prints what is quantized in a model, layer by layer, and returns it.

    Args:
        model: A model with quantized layers.
        print_fn: Receives the table as one string; by default it goes to
            standard output.
        schedule: A `keras_sq.schedules.Layerwise`, to show the turn of each layer
            in it. Other schedules have none to show.

    Returns:
        A `ModelSummary`.

    Raises:
        ValueError: If nothing in the model is quantized, or the order of the
            schedule does not fit the model.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(2)])
        >>> sq_model = keras_sq.quantize_model(model, "binary")
        >>> table = keras_sq.summary(sq_model, print_fn=lambda text: None)
        >>> [row.weights for row in table.rows]
        [32, 4, 8, 2]
    """
    require_quantized(model)
    turns = _turns(model, schedule)
    reasons = {
        outcome.path: outcome.reason
        for outcome in model.__dict__.get("quantization_report", [])
    }
    rows: list[LayerSummary] = []
    for path, layer in layer_paths(model):
        if isinstance(layer, StochasticallyQuantized):
            turn = turns.get(id(layer))
            rows.extend(r._replace(turn=turn) for r in _quantized_rows(path, layer))
        if isinstance(layer, QuantizedActivation):
            rows.append(_activation_row(path, layer))
            continue
        rest = _float_weights(layer)
        if rest:
            base = getattr(type(layer), "float_class", None) or type(layer)
            reason = reasons.get(path, "")
            rows.append(
                LayerSummary(
                    path, base.__name__, rest, "float", None, None, 32.0, reason
                )
            )
    result = ModelSummary(tuple(rows))
    (print_fn or _print)(str(result))
    return result


def _turns(model: Model, schedule: RatioSchedule | None) -> dict[int, int]:
    """Returns the turn of each quantized layer, from 1, by the layer's id."""
    if not isinstance(schedule, Layerwise):
        return {}
    visits = enumerate(schedule.visits(model), 1)
    together = schedule.order == "global"
    return {id(layer): 1 if together else turn for turn, (_, layer) in visits}


def _quantized_rows(path: str, layer: StochasticallyQuantized) -> list[LayerSummary]:
    quantizer = layer.quantization_settings.kernel_quantizer
    rows = []
    for name in layer.quantized_weights:
        latent = internals.read(layer.latent(name))
        weights = math.prod(latent.shape)
        filters = math.prod(latent.shape[axis] for axis in layer.filter_axes(name))
        norm = float(ops.sum(ops.abs(latent)))
        difference = float(ops.sum(ops.abs(latent - layer.quantized_kernel(name))))
        rows.append(
            LayerSummary(
                f"{path}/{name}",
                layer.float_class.__name__,
                weights,
                type(quantizer).__name__.removesuffix("Quantizer").lower(),
                float(ops.convert_to_numpy(layer.ratio)),
                difference / norm if norm else 0.0,
                math.ceil(math.log2(quantizer.num_levels))
                + 32 * quantizer.numbers_per_filter * filters / weights,
            )
        )
    rule = layer.input_rule
    if rule is not None:
        rows[0] = rows[0]._replace(inputs=rule.name, input_bits=rule.num_bits)
    return rows


def _activation_row(path: str, layer: QuantizedActivation) -> LayerSummary:
    rule = layer.activation_rule
    return LayerSummary(
        *(path, type(layer).__name__, 0, "", None, None, 0.0),
        inputs=rule.name,
        input_bits=rule.num_bits,
    )


def _float_weights(layer: Layer) -> int:
    variables = internals.own_variables(layer)
    if isinstance(layer, StochasticallyQuantized):
        ours = {id(v) for v in layer.quantization_state()}
        ours |= {id(layer.latent(name)) for name in layer.quantized_weights}
        variables = [v for v in variables if id(v) not in ours]
    return sum(math.prod(v.shape) for v in variables)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
