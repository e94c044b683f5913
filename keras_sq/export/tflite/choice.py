"""Which form each weight tensor gets, and why.

The smallest form of those that a target allows is taken (`plans.py` says which the
values allow); where none is smaller, the constant stays.
"""

import dataclasses
import json
import zlib
from collections.abc import Sequence

from keras_sq.export.report import KernelReport
from keras_sq.export.tflite import plans
from keras_sq.export.tflite.flatbuffer import TFLiteFile
from keras_sq.export.tflite.forms import TABLE_BYTES, Table
from keras_sq.export.tflite.levels import FilterLevels
from keras_sq.export.tflite.plans import Plan
from keras_sq.export.tflite.rewriter import Rewriter
from keras_sq.export.tflite.weights import WeightTensor

UNSURE = 0.1
UNSURE_BYTES = 4000
"""How far estimates of a file's size may be off, at most."""

PREFERENCE_BYTES = 64
"""Bytes that the first of several sets of forms has to save."""


def store_float_weights(
    file: TFLiteFile, weights: Sequence[WeightTensor], forms: Sequence[str]
) -> list[KernelReport]:
    """Puts the weights of a float file into the tightest forms.

    Args:
        file: The file, changed in place.
        weights: Its weight tensors.
        forms: Names of forms.

    Returns:
        What became of each tensor.
    """
    chosen = [
        plans.allowed(plans.float_plan(file, weight), forms) for weight in weights
    ]
    return _store(file, _without_dear_tables(chosen))


def store_smallest(
    content: bytes, weights: Sequence[WeightTensor], choices: Sequence[Sequence[str]]
) -> tuple[TFLiteFile, list[KernelReport]]:
    """Puts the weights of a float file into those forms that make it smallest.

    The size of a file is estimated well enough to choose forms tensor by tensor, but
    only its bytes tell whether it is larger than another.

    Args:
        content: The bytes of the file.
        weights: Its weight tensors.
        choices: Sets of forms to try, see `store_float_weights`. In doubt, not the
            first.

    Returns:
        The file, and what became of each tensor.
    """
    file = TFLiteFile(content)
    all_plans = [plans.float_plan(file, weight) for weight in weights]
    trials = [
        [plans.allowed(plan, forms) for plan in all_plans]
        for forms in dict.fromkeys(tuple(forms) for forms in choices)
    ]
    if len(trials) > 1:
        trials.append(_unpacked(trials[0]))
    return _smallest(content, trials)


def _unpacked(trial: Sequence[Plan]) -> list[Plan]:
    return [
        dataclasses.replace(plan, options=(), dear=bool(plan.options)) for plan in trial
    ]


def store_plans(
    content: bytes, chosen: Sequence[Plan]
) -> tuple[TFLiteFile, list[KernelReport]]:
    """Puts the weights of a file into the forms of plans.

    Args:
        content: The bytes of the file.
        chosen: A plan for each of its weight tensors, with the forms allowed.

    Returns:
        The file, and what became of each tensor.
    """
    return _smallest(content, [chosen])


def _smallest(
    content: bytes, choices: Sequence[Sequence[Plan]]
) -> tuple[TFLiteFile, list[KernelReport]]:
    """Returns the smallest file that one of several choices of forms makes."""
    trials = [_without_dear_tables(choice) for choice in choices]
    estimates = [_total_bytes(trial) for trial in trials]
    limit = min(estimates) + UNSURE * min(estimates) + UNSURE_BYTES
    best: tuple[int, TFLiteFile, list[KernelReport]] | None = None
    for place, (trial, estimate) in enumerate(zip(trials, estimates, strict=True)):
        if estimate > limit:
            continue
        file = TFLiteFile(content)
        moved = [dataclasses.replace(x, weight=x.weight.of(file)) for x in trial]
        kernels = _store(file, moved)
        size = len(file.pack()) + _text_bytes(kernels)
        size += PREFERENCE_BYTES if place == 0 else 0
        if best is None or size < best[0]:
            best = size, file, kernels
    assert best is not None  # The smallest estimate is within the limit.
    return best[1:]


def _text_bytes(kernels: Sequence[KernelReport]) -> int:
    """Returns about what the rows take in the file's metadata."""
    text = json.dumps([dataclasses.asdict(kernel) for kernel in kernels])
    return len(zlib.compress(text.encode()))


def store_int8_weights(
    content: bytes, weights: Sequence[WeightTensor]
) -> tuple[TFLiteFile, list[KernelReport]]:
    """Packs the weights of a full-integer file, if that makes it smaller.

    Args:
        content: The bytes of the file.
        weights: Its weight tensors.

    Returns:
        The file, and what became of each tensor.
    """
    file = TFLiteFile(content)
    all_plans = [plans.int8_plan(file, weight) for weight in weights]
    return _smallest(content, [all_plans, _unpacked(all_plans)])


def _store(file: TFLiteFile, trial: Sequence[Plan]) -> list[KernelReport]:
    rewriter = Rewriter(file)
    return [_put(rewriter, plan) for plan in trial]


def _without_dear_tables(choice: Sequence[Plan]) -> list[Plan]:
    """Drops the forms whose table takes more than they gain, all together."""
    tables = {x.table for plan in choice for x in plan.options if x.table}
    chosen: set[Table] = set()
    best = _with_tables(choice, chosen)
    while True:
        more = [
            (_with_tables(choice, {*chosen, table}), table)
            for table in sorted(tables - chosen)
        ]
        if not more:
            return best
        trial, table = min(more, key=lambda entry: _total_bytes(entry[0]))
        if _total_bytes(trial) >= _total_bytes(best):
            return best
        chosen.add(table)
        best = trial


def _with_tables(choice: Sequence[Plan], tables: set[Table]) -> list[Plan]:
    return [
        dataclasses.replace(
            plan,
            options=tuple(
                x for x in plan.options if x.table is None or x.table in tables
            ),
            dear=plan.dear
            or any(x.table and x.table not in tables for x in plan.options),
        )
        for plan in choice
    ]


def _total_bytes(choice: Sequence[Plan]) -> int:
    best = [plan.best() for plan in choice]
    tables = {option.table for option in best if option and option.table}
    weights = sum(
        option.total_bytes if option else plan.num_bytes
        for plan, option in zip(choice, best, strict=True)
    )
    return weights + TABLE_BYTES * len(tables)


def _put(rewriter: Rewriter, plan: Plan) -> KernelReport:
    """Stores a tensor in its best form."""
    weight, best = plan.weight, plan.best()
    if best is None:
        reason = plan.reason
        if plan.options or plan.dear:
            reason = "; ".join(filter(None, [reason, plans.TOO_SMALL]))
        return kept(weight, plan.levels, reason)
    best.store(rewriter, weight)
    reason = best.described(plan.reason)
    return reported(weight, plan.levels, best.stored_as, best.constant_bytes, reason)


def kept(
    weight: WeightTensor, levels: FilterLevels | None, reason: str
) -> KernelReport:
    """Returns the report of a tensor that stays as the converter stored it."""
    bits = {"FLOAT32": 32, "INT8": 8, "FLOAT16": 16}.get(weight.type_name, 32)
    size = weight.size * bits // 8
    return reported(weight, levels, weight.type_name.lower(), size, reason)


def reported(
    weight: WeightTensor,
    levels: FilterLevels | None,
    stored_as: str,
    num_bytes: int,
    reason: str,
) -> KernelReport:
    """Returns the report of a tensor."""
    return KernelReport(
        path=weight.kernel or weight.name,
        weights=weight.size,
        levels=None if levels is None else levels.num_levels,
        stored_as=stored_as,
        num_bytes=num_bytes,
        quantized=weight.kernel is not None,
        reason=reason,
    )
