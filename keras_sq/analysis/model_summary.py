"""What is quantized in a model, how, what stays float, and what it all costs.

The rows and their numbers; how they are laid out as a table is in
`core/text_tables.py`, how operations are counted in `operation_counts.py`, and sizes
in `kernel_sizes.py`.
How small the files get is the exporter's matter.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_sq.analysis import kernel_sizes, operation_counts
from keras_sq.analysis.operation_counts import Count, Counts, macs_of
from keras_sq.analysis.operation_rules import PRODUCTS, float_class
from keras_sq.core import checks, text_tables
from keras_sq.core import keras_internals as internals
from keras_sq.core.text_tables import Column, short
from keras_sq.core.types import Config, Layer, Model
from keras_sq.layers import QuantizedActivation, layer_paths
from keras_sq.layers.masks import require_quantized
from keras_sq.layers.quantized import StochasticallyQuantized
from keras_sq.schedules import Layerwise, RatioSchedule


class LayerSummary(NamedTuple):
    """One weight of a layer, or the float weights of a layer taken together.

    Attributes:
        path: Layer path and, for a quantized kernel, the weight's name.
        layer_type: Class name of the float layer.
        weights: Number of weights.
        quantizer: The quantizer, `"float"`, or an empty string for a layer that
            quantizes activations only, or multiplies nothing but activations. What
            that learns is no weight.
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
        shape: Of the kernel; of float weights taken together, that of the largest.
        granularity: `"filter"` or `"element"`: what a mask chooses; `None` for float.
        sparsity: Fraction of the quantized kernel's weights that are 0, `None` for
            float.
        float_bytes: Bytes as float32.
        packed_bytes: Bytes with a quantized kernel packed, scales included.
        macs: Multiply-accumulates for one example, `None` if unknown.
        bit_operations: `macs` times the bits of a weight's code times those of an
            activation, 32 for float; `None` if unknown.
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
    shape: tuple[int, ...] = ()
    granularity: str | None = None
    sparsity: float | None = None
    float_bytes: int = 0
    packed_bytes: int = 0
    macs: int | None = None
    bit_operations: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """What `keras_sq.summary` returns: rows, totals, and a printable table.

    Attributes:
        rows: A `LayerSummary` per quantized kernel and per float layer.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> sq_model = keras_sq.quantize_model(model, "ternary")
        >>> table = keras_sq.summary(sq_model, print_fn=lambda text: None)
        >>> table.float_bytes, table.packed_bytes, table.macs, table.bit_operations
        (144, 40, 32, 2048)
        >>> table.to_records()[0]["shape"]  # pandas.DataFrame(table.to_records())
        '8 x 4'
    """

    rows: tuple[LayerSummary, ...]

    @property
    def float_bytes(self) -> int:
        """Bytes of all weights as float32."""
        return sum(row.float_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all weights with the quantized ones packed."""
        return math.ceil(sum(round(row.weights * row.bits) for row in self.rows) / 8)

    @property
    def quantized_bits(self) -> float:
        """Bits a weight over the quantized kernels, scales included."""
        rows = [row for row in self.rows if row.error is not None]
        return sum(r.weights * r.bits for r in rows) / sum(r.weights for r in rows)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one example.

        The sum of what is known: without those of `unknown_macs`. `None` if this is
        nothing.
        """
        return _sum_of_known([row.macs for row in self.rows])

    @property
    def bit_operations(self) -> int | None:
        """Bit operations for one example, of what is known as with `macs`."""
        return _sum_of_known([row.bit_operations for row in self.rows])

    @property
    def unknown_macs(self) -> tuple[str, ...]:
        """Paths of the rows whose operations are unknown; none: totals are complete."""
        return tuple(row.path for row in self.rows if row.macs is None)

    def to_dict(self) -> Config:
        """Returns rows and totals, JSON-serializable."""
        return {
            "layers": [{**row._asdict(), "shape": [*row.shape]} for row in self.rows],
            "float_bytes": self.float_bytes,
            "packed_bytes": self.packed_bytes,
            "quantized_bits": self.quantized_bits,
            "macs": self.macs,
            "bit_operations": self.bit_operations,
            "unknown_macs": [*self.unknown_macs],
        }

    def to_records(self) -> list[Config]:
        """Returns a flat dict a row, as `pandas.DataFrame` takes them.

        Every value is a number, a string or `None`; shapes are text.
        """
        return [
            {**row._asdict(), "shape": " x ".join(map(str, row.shape))}
            for row in self.rows
        ]

    def text(self, line_length: int | None = None) -> str:
        """Returns the table.

        Args:
            line_length: Characters a line, 40 or more; by default those of the
                terminal. Where not all columns fit, a line says which are left out.

        Raises:
            TypeError: If it is no integer.
            ValueError: If it is less than 40.
        """
        if line_length is None:
            line_length = text_tables.terminal_width()
        checks.integer("line_length", line_length, text_tables.MIN_WIDTH)
        smaller = self.float_bytes / max(self.packed_bytes, 1)
        unknown = self.unknown_macs
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        footer = [
            ("at least " if unknown else "")
            + f"{short(self.macs or 0)} multiply-accumulates and "
            f"{short(self.bit_operations or 0)} bit operations for one example"
            + (f" (unknown: {', '.join(unknown[:3])}{more})" if unknown else ""),
            f"{self.float_bytes:,} bytes as float32, {self.packed_bytes:,} packed "
            f"({smaller:.1f} x smaller); {self.quantized_bits:.2f} bits a quantized "
            "weight",
        ]
        notes = [row.reason for row in self.rows]
        return text_tables.layout(self._columns(), notes, footer, line_length)

    def __str__(self) -> str:
        return self.text()

    def _columns(self) -> list[Column]:
        rows = self.rows
        with_inputs = any(row.inputs for row in rows)

        def column(
            title: str, importance: int, cell: Callable[[LayerSummary], str]
        ) -> Column:
            return Column(title, [cell(row) for row in rows], importance)

        def number(
            title: str, importance: int, cell: Callable[[LayerSummary], str]
        ) -> Column:
            return Column(title, [cell(row) for row in rows], importance, right=True)

        def if_known(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        def inputs(row: LayerSummary) -> str:
            if not with_inputs:
                return ""
            return row.inputs or ("float" if row.error is not None else "")

        return [
            column("layer", 99, lambda r: r.path),
            number("turn", 85, lambda r: f"{r.turn or ''}"),
            column("type", 20, lambda r: r.layer_type),
            column("shape", 25, lambda r: " x ".join(map(str, r.shape))),
            number("weights", 60, lambda r: f"{r.weights:,}"),
            column("quantizer", 90, lambda r: r.quantizer),
            column("mask", 30, lambda r: r.granularity or ""),
            column("inputs", 80, inputs),
            number("ratio", 75, lambda r: if_known(r.ratio, ".3g")),
            number("error", 70, lambda r: if_known(r.error, ".3f")),
            number("zeros", 35, lambda r: if_known(r.sparsity, ".0%")),
            number("bits", 65, lambda r: f"{r.bits:.2f}" if r.weights else ""),
            number("float32", 15, lambda r: short(r.float_bytes, "B")),
            number("packed", 55, lambda r: short(r.packed_bytes, "B")),
            number("MACs", 50, lambda r: short(r.macs)),
            number("bit ops", 40, lambda r: short(r.bit_operations)),
        ]


def summary(
    model: Model,
    print_fn: Callable[[str], Any] | None = None,
    *,
    line_length: int | None = None,
    schedule: RatioSchedule | None = None,
) -> ModelSummary:
    """Prints what is quantized in a model, layer by layer, and returns it.

    Packed bytes are those of codes in whole bits and the float32 numbers of each
    filter: what `choose_bits` counts, too. Operations are those of one example;
    multiply-accumulates (MACs) of kernels and of attention count, nothing else. A
    MAC takes as many bit operations as the bits of the weight's code times those of
    the activation, each 32 for float. To count them, the model is called once on an
    example of zeros. A question mark (`None` in the rows) means unknown: the layer's
    class is none of Keras, or a size is open. Totals are then those of all others, and
    `unknown_macs` names what they lack.

    Args:
        model: A model with quantized layers.
        print_fn: Receives the table as one string; by default it goes to
            standard output.
        line_length: Characters a line of the table, 40 or more; by default those of
            the terminal. What does not fit is left out, the least important columns
            first; the returned object has everything.
        schedule: A `keras_sq.schedules.Layerwise`, to show the turn of each layer
            in it. Other schedules have none to show.

    Returns:
        A `ModelSummary`.

    Raises:
        TypeError: If `line_length` is no integer.
        ValueError: If nothing in the model is quantized, the order of the
            schedule does not fit the model, or `line_length` is less than 40.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(2)])
        >>> sq_model = keras_sq.quantize_model(model, "binary", overrides={})
        >>> table = keras_sq.summary(sq_model, print_fn=lambda text: None)
        >>> [(row.weights, row.macs, row.bit_operations) for row in table.rows]
        [(32, 32, 1024), (4, 0, 0), (8, 8, 256), (2, 0, 0)]
    """
    require_quantized(model)
    if line_length is not None:
        checks.integer("line_length", line_length, text_tables.MIN_WIDTH)
    turns = _turns(model, schedule)
    counts = operation_counts.count_operations(model)
    reasons = {
        outcome.path: outcome.reason
        for outcome in model.__dict__.get("quantization_report", [])
    }
    rows: list[LayerSummary] = []
    for path, layer in layer_paths(model):
        if isinstance(layer, StochasticallyQuantized):
            turn = turns.get(id(layer))
            quantized_rows = _quantized_rows(path, layer, counts)
            rows.extend(row._replace(turn=turn) for row in quantized_rows)
        if isinstance(layer, QuantizedActivation):
            rows.append(_activation_row(path, layer))
            continue
        rest = _float_row(path, layer, counts)
        if rest.weights or (counts is not None and rest.macs != 0):
            rows.append(rest._replace(reason=reasons.get(path, "")))
    result = ModelSummary(tuple(rows))
    (print_fn or _print)(result.text(line_length))
    return result


def _turns(model: Model, schedule: RatioSchedule | None) -> dict[int, int]:
    """Returns the turn of each quantized layer, from 1, by the layer's id."""
    if not isinstance(schedule, Layerwise):
        return {}
    visits = enumerate(schedule.visits(model), 1)
    together = schedule.order == "global"
    return {id(layer): 1 if together else turn for turn, (_, layer) in visits}


def _quantized_rows(
    path: str, layer: StochasticallyQuantized, counts: Counts | None
) -> list[LayerSummary]:
    settings = layer.quantization_settings
    quantizer = settings.kernel_quantizer
    rows = []
    for name in layer.quantized_weights:
        latent = internals.read(layer.latent(name))
        weights = math.prod(latent.shape)
        filters = math.prod(latent.shape[axis] for axis in layer.filter_axes(name))
        quantized = layer.quantized_kernel(name)
        norm = float(ops.sum(ops.abs(latent)))
        difference = float(ops.sum(ops.abs(latent - quantized)))
        zeros = float(ops.sum(ops.cast(quantized == 0, "float32")))
        bits = kernel_sizes.packed_bits(quantizer, weights, filters)
        count = macs_of(counts, layer, (name, PRODUCTS))
        rows.append(
            LayerSummary(
                f"{path}/{name}",
                layer.float_class.__name__,
                weights,
                type(quantizer).__name__.removesuffix("Quantizer").lower(),
                float(ops.convert_to_numpy(layer.ratio)),
                difference / norm if norm else 0.0,
                bits / weights,
                shape=tuple(latent.shape),
                granularity=settings.granularity,
                sparsity=zeros / weights,
                float_bytes=4 * weights,
                packed_bytes=math.ceil(bits / 8),
                macs=count.macs,
                bit_operations=_bit_operations(
                    count, kernel_sizes.code_bits(quantizer)
                ),
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
        macs=0,
        bit_operations=0,
    )


def _float_row(path: str, layer: Layer, counts: Counts | None) -> LayerSummary:
    """Returns what a layer has besides quantized kernels, if anything."""
    variables = kernel_sizes.float_variables(layer)
    names = [name for key, name in counts or () if key == id(layer)]
    weights = sum(math.prod(v.shape) for v in variables)
    count = macs_of(counts, layer, names)
    if isinstance(layer, StochasticallyQuantized):
        count = Count(0)  # The biases.
    largest = max(variables, key=lambda v: math.prod(v.shape), default=None)
    return LayerSummary(
        path,
        float_class(layer).__name__,
        weights,
        "float" if weights else "",
        None,
        None,
        float(kernel_sizes.FLOAT_BITS) if weights else 0.0,
        shape=() if largest is None else tuple(largest.shape),
        float_bytes=4 * weights,
        packed_bytes=4 * weights,
        macs=count.macs,
        bit_operations=_bit_operations(count, kernel_sizes.FLOAT_BITS),
    )


def _bit_operations(count: Count, weight_bits: int) -> int | None:
    if count.macs is None:
        return None
    return count.macs * weight_bits * count.activation_bits


def _sum_of_known(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    total = sum(known)
    return total if total or len(known) == len(values) else None


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
