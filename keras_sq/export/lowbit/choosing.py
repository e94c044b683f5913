"""Which form each weight tensor gets: by bytes, and by estimated time.

`optimize="size"`: the fastest file of those that are up to 8 % larger than the
smallest; 2-bit weights that are multiplied as they are count as small, though packed
ones of two or three values take less. `optimize="speed"`: the smallest file of those
that are up to 5 % slower than the fastest. Both start from the best form of each tensor
alone, and exchange forms, the most gained for the least lost first.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence, Set

import numpy as np

from keras_sq.export.lowbit import codes, costs, patches, tables
from keras_sq.export.lowbit.codes import MatrixCodes
from keras_sq.export.lowbit.products import Product, Window, products_of, work_of
from keras_sq.export.lowbit.rewriting import (
    Direct,
    bias_scale,
    matrix_bytes,
    padded_channels,
)
from keras_sq.export.tflite import forms, plans
from keras_sq.export.tflite.flatbuffer import TFLiteFile, indices
from keras_sq.export.tflite.forms import Table
from keras_sq.export.tflite.plans import Plan
from keras_sq.export.tflite.weights import WeightTensor

Shapes = Mapping[int, tuple[int, ...]]
"""Place -> shape of the tensors of a main graph."""

LARGER = 1.08
"""Size of a file over the smallest, up to which it may be faster."""

SLOWER = 1.05
"""Time of a file over the least, up to which it may be smaller."""

FASTER = 0.8
"""Time of a packed form over that of a direct one, from which it competes."""

STEP = 0.5
LEVEL_STEP = 1 / 16
"""The largest multiples that sums are of, in steps of the output.

The second where activations have levels: there a step may decide much.
"""

ROWS_TIME, TABLE_TIME = 1.0, 2.0
"""Times of looking rows up as they are, and of unfolding a whole table before.

Not measured: what counts is that the second is longer.
"""

PRODUCT_BYTES = 100
PAD_BYTES = 250
ROWS_BYTES = 700
"""About what operators and tensors take: of a product, of zero channels, of rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A form that a weight tensor can have.

    Attributes:
        num_bytes: About what it takes in the file.
        time: About how long its operators take, in microseconds.
        plan: The plan of the tensor with this form alone.
        direct: The tensor, if its weights are multiplied as they are.
        packed: Whether it is unfolded before it is used.
    """

    num_bytes: float
    time: float
    plan: Plan
    direct: Direct | None = None
    packed: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Option:
    """A weight tensor, and the forms that it can have.

    Attributes:
        plan: What is known of its values; after the choice, with the form chosen.
        forms: The forms, if there is a choice.
        reason: Why its weights are not multiplied as they are.
        windows: How the convolutions that read it move.
        looks_up: Whether its rows are looked up.
        direct: The tensor in its direct form, if that was chosen.
        share: Part of the estimated time of all tensors.
    """

    plan: Plan
    forms: tuple[Form, ...] = ()
    reason: str = ""
    windows: tuple[Window, ...] = ()
    looks_up: bool = False
    direct: Direct | None = None
    share: float = 0.0


def float_option(
    file: TFLiteFile, weight: WeightTensor, shapes: Shapes, rounds: bool
) -> Option:
    """Returns the forms of a weight tensor of a float file.

    Args:
        file: The file.
        weight: The tensor.
        shapes: See `products.work_of`.
        rounds: Whether activations are rounded to levels, which the runtime's rounding
            to int8 would change.
    """
    plan = plans.float_plan(file, weight)
    array = file.array(weight.tensor)
    matrix: MatrixCodes | None = None
    if not plan.reason and weight.axis == 0 and array is not None:
        matrix = codes.of_floats(array)
    reason = ""
    if rounds:
        reason = "activations have levels: pass `representative_data`"
    return _option(file, plan, matrix, shapes, reason, "float")


def integer_option(
    file: TFLiteFile, weight: WeightTensor, shapes: Shapes, rounds: bool
) -> Option:
    """Returns the forms of a weight tensor of a full-integer file.

    Args:
        file: The file.
        weight: The tensor.
        shapes: See `products.work_of`.
        rounds: Whether activations are rounded to levels.
    """
    plan = plans.int8_plan(file, weight)
    matrix = codes.of_integers(file, weight) if weight.axis == 0 else None
    return _option(file, plan, matrix, shapes, "", "int8", rounds)


def _option(
    file: TFLiteFile,
    plan: Plan,
    matrix: MatrixCodes | None,
    shapes: Shapes,
    reason: str,
    activations: str,
    rounds: bool = False,
) -> Option:
    """Returns the forms of a weight tensor.

    Args:
        file: The file.
        plan: What is known of its values.
        matrix: Its codes, if it has some.
        shapes: See `products.work_of`.
        reason: Why it is not to be multiplied as it is, if so.
        activations: Type of the activations.
        rounds: Whether int8 activations are rounded to levels.
    """
    weight = plan.weight
    products: list[Product] = []
    if not reason:
        products, reason = products_of(file, weight)
    types = () if matrix is None else matrix.types
    if not reason and not types:
        reason = "its values are not codes of 2 or 4 bits"
    if not reason and activations == "int8":
        assert matrix is not None
        reason = _coarse_sums(products, matrix, LEVEL_STEP if rounds else STEP)
    work = work_of(file, weight, shapes)

    def time(form: str, copied: int = 0) -> float:
        if work.kind == "lookup":
            return ROWS_TIME if form in types else TABLE_TIME
        return costs.microseconds(work, f"{form}, {activations} activations", copied)

    options: list[Form] = []
    windows = tuple(x.window for x in products if x.window is not None)
    copied = sum(window.copied for window in windows)
    for name in () if reason else types:
        assert matrix is not None  # Or there are no types.
        direct = Direct(weight, matrix, name)
        size = matrix_bytes(direct) + PRODUCT_BYTES * len(products)
        if padded_channels(weight.shape[-1], name) > weight.shape[-1]:
            # In rows, zero channels take no operator of their own.
            size += PAD_BYTES * (len(products) - len(windows))
        options.append(Form(size, time(name, copied), plan, direct))
    wide, packed = _other_plans(plan, activations, bool(options))
    depth = "depthwise " if work.kind == "depthwise" else ""
    # Plans of int8 weights do not count these, for they stay.
    scales = _scale_bytes(weight) if activations == "int8" else 0
    if wide is not None:
        best = wide.best()
        size = plan.num_bytes if best is None else best.total_bytes
        options.append(Form(size + scales, time(f"{depth}INT8"), wide))
    if packed is not None:
        size = tables.packed_bytes(packed)
        form = Form(size + scales, time(f"{depth}packed"), packed, packed=True)
        options.append(form)
    looks_up = any(product.looks_up for product in products)
    return Option(plan, tuple(options), reason, windows, looks_up)


def _other_plans(
    plan: Plan, activations: str, direct: bool
) -> tuple[Plan | None, Plan | None]:
    """Returns the plans for int8 weights and for packed ones.

    Args:
        plan: What is known of the values.
        activations: Type of the activations.
        direct: Whether they can be multiplied as they are, in the types of codes that
            would be dequantized otherwise.
    """
    if plan.reason and not plan.options:
        return None, None
    if activations == "int8":
        return dataclasses.replace(plan, options=()), tables.without(plan, frozenset())
    wide = plans.allowed(plan, ("INT8",))
    short = () if direct else ("INT2", "INT4")
    # INT8 is what is left where a table of digits does not pay.
    packed = plans.allowed(plan, (*forms.PACKED_FORMS, *short, "INT8"))
    return (wide if wide.options else None), tables.without(packed, frozenset())


def _scale_bytes(weight: WeightTensor) -> int:
    quantization = weight.tensor.quantization
    scale = None if quantization is None else quantization.scale
    return 0 if scale is None else 4 * len(scale)


def _coarse_sums(
    products: Sequence[Product], matrix: MatrixCodes, largest: float
) -> str:
    """Returns why sums need int8 weights; an empty string if they do not.

    Sums, and the bias in them, are multiples of a code times a step of the input, to
    which the bias is rounded. Those of the interpreter's kernels, unlike XNNPACK's, are
    rounded twice: first to about as much, then to a step of the output.

    Args:
        products: The products.
        matrix: Their codes.
        largest: The largest multiple, in steps of the output.
    """
    for product in products:
        tensors = product.weight.subgraph.tensors
        source = tensors[indices(product.operator.inputs)[0]]
        output = tensors[indices(product.operator.outputs)[0]]
        step = bias_scale(source, matrix.scale)
        if np.any(step > largest * float(output.quantization.scale[0])):
            return (
                f"a code times a step of its input is more than {largest:g} steps of "
                "its output"
            )
    return ""


def choose(options: Sequence[Option], optimize: str) -> list[Option]:
    """Returns the tensors, each with its form.

    Args:
        options: The tensors, with the forms that they can have.
        optimize: `"size"` or `"speed"`.
    """
    sharing = collections.Counter(x for option in options for x in option.windows)
    by_size = optimize == "size"
    priced = [
        _worth_a_trial(_with_rows(option, sharing), by_size) for option in options
    ]

    def chosen(dear: Set[Table]) -> list[Form | None]:
        allowed = [_without_tables(option, dear) for option in priced]
        best = [_best(option, by_size) for option in allowed]
        return _exchanged(allowed, best, by_size)

    packed = [form.plan for option in priced for form in option.forms if form.packed]
    slower = None if by_size else SLOWER
    best = tables.without_dear(chosen, tables.possible(packed), slower)
    total = sum(form.time for form in best if form is not None) or 1.0
    return [
        _taken(option, form, total) for option, form in zip(priced, best, strict=True)
    ]


def _with_rows(option: Option, sharing: collections.Counter[Window]) -> Option:
    """Returns a tensor whose direct form counts its part of the indices of rows."""
    size = sum(
        ROWS_BYTES + patches.index_bytes(window) / sharing[window]
        for window in set(option.windows)
    )
    priced = [
        dataclasses.replace(form, num_bytes=form.num_bytes + size)
        if form.direct is not None
        else form
        for form in option.forms
    ]
    return dataclasses.replace(option, forms=tuple(priced))


def _without_tables(option: Option, dear: Set[Table]) -> Option:
    """Drops what needs some tables of digits from the packed form of a tensor."""
    kept = []
    for form in option.forms:
        if not form.packed or not dear & tables.used([form.plan]):
            kept.append(form)
        elif (plan := tables.without(form.plan, dear)) is not None:
            more = tables.packed_bytes(plan) - tables.packed_bytes(form.plan)
            size = form.num_bytes + more
            kept.append(dataclasses.replace(form, plan=plan, num_bytes=size))
    return dataclasses.replace(option, forms=tuple(kept))


def _worth_a_trial(option: Option, by_size: bool) -> Option:
    """Drops a packed form that is slower than a direct one and not half as large.

    And codes of 2 bits in 4, where size counts.
    """
    direct = next((form for form in option.forms if form.direct is not None), None)
    if direct is None:
        return option
    kept = []
    for form in option.forms:
        if form.packed:
            faster = form.time <= FASTER * direct.time
            useful = faster or 2 * form.num_bytes <= direct.num_bytes
        else:
            useful = form is direct or form.direct is None or not by_size
        if useful:
            kept.append(form)
    return dataclasses.replace(option, forms=tuple(kept))


def _measures(form: Form, by_size: bool) -> tuple[float, float]:
    """Returns what counts of a form first, and second."""
    pair = form.num_bytes, form.time
    return pair if by_size else (pair[1], pair[0])


def _best(option: Option, by_size: bool) -> Form | None:
    return min(option.forms, key=lambda x: _measures(x, by_size), default=None)


def _exchanged(
    options: Sequence[Option], best: Sequence[Form | None], by_size: bool
) -> list[Form | None]:
    """Returns forms that gain in what counts second, within what may be lost."""
    chosen = list(best)
    total = sum(_measures(form, by_size)[0] for form in chosen if form is not None)
    left = total * ((LARGER if by_size else SLOWER) - 1)
    while True:
        exchanges = [
            (gain / max(loss, 1e-9), place, form, loss)
            for place, (option, current) in enumerate(zip(options, chosen, strict=True))
            if current is not None
            for form in option.forms
            for loss, gain in [_difference(current, form, by_size)]
            if gain > 0 and loss <= left
        ]
        if not exchanges:
            return chosen
        _, place, form, loss = max(exchanges, key=lambda entry: entry[:2])
        chosen[place] = form
        left -= loss


def _difference(current: Form, other: Form, by_size: bool) -> tuple[float, float]:
    """Returns what another form loses of what counts first, and gains of the second."""
    first, second = _measures(current, by_size), _measures(other, by_size)
    return second[0] - first[0], first[1] - second[1]


def _taken(option: Option, form: Form | None, total: float) -> Option:
    """Returns a tensor with its form."""
    if form is None:
        return option
    reason = option.reason
    other = next((x for x in option.forms if x.direct is not None), None)
    if form.direct is None and other is not None and other.direct is not None:
        less = "larger" if other.num_bytes > form.num_bytes else "slower"
        reason = f"{other.direct.type_name} weights would be {less}"
    return dataclasses.replace(
        option,
        plan=form.plan,
        direct=form.direct,
        reason=reason,
        share=form.time / total,
    )
