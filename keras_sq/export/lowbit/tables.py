"""Digit tables of packed weights, which several tensors share: which of them pay.

A packed form may need a table of about `TABLE_BYTES`, however many tensors use it. A
choice tensor by tensor does not count it; here it is made again with one table more, as
long as the file gets smaller.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence, Set
from typing import Protocol, TypeVar

from keras_sq.export.tflite.forms import TABLE_BYTES, Int8Codes, Table
from keras_sq.export.tflite.plans import Plan


class PricedForm(Protocol):
    """A form with what it costs, as in `choosing.py`."""

    @property
    def num_bytes(self) -> float:
        """About what it takes in the file, tables not counted."""

    @property
    def time(self) -> float:
        """About how long its operators take."""

    @property
    def plan(self) -> Plan:
        """The plan of the tensor with this form alone."""

    @property
    def packed(self) -> bool:
        """Whether it is unfolded before it is used."""


FormType = TypeVar("FormType", bound=PricedForm)

Choice = Sequence[PricedForm | None]


def without(plan: Plan, dear: Set[Table]) -> Plan | None:
    """Returns a plan for a packed form without some tables; `None` if nothing is left.

    Args:
        plan: The plan, with the packed forms and those to fall back on.
        dear: The tables.
    """
    options = tuple(x for x in plan.options if x.table not in dear)
    left = dataclasses.replace(plan, options=options)
    best = left.best()
    return None if best is None or best.name == Int8Codes.name else left


def packed_bytes(plan: Plan) -> int:
    """Returns about what the best form of a plan takes in the file."""
    best = plan.best()
    return plan.num_bytes if best is None else best.total_bytes


def used(plans: Sequence[Plan]) -> set[Table]:
    """Returns the tables that the best forms of plans need."""
    forms = [plan.best() for plan in plans]
    return {form.table for form in forms if form is not None and form.table is not None}


def possible(plans: Sequence[Plan]) -> set[Table]:
    """Returns the tables that any form of plans needs."""
    return {x.table for plan in plans for x in plan.options if x.table is not None}


def without_dear(
    choose: Callable[[Set[Table]], list[FormType | None]],
    possible: Set[Table],
    slower: float | None,
) -> list[FormType | None]:
    """Returns a choice of forms whose tables pay.

    Begins without tables, for a form that lacks one may take another.

    Args:
        choose: Function from the tables that must not be used to a choice.
        possible: The tables that there may be.
        slower: Time over that of a choice with all tables, up to which the file may be
            smaller; `None` for any.
    """
    limit = math.inf
    if slower is not None:
        limit = slower * _time(choose(frozenset()))

    def cost(choice: Choice) -> tuple[float, float]:
        return max(_time(choice) - limit, 0.0), _size(choice)

    dear = possible
    best = choose(dear)
    while dear:
        trials = [(choose(dear - {x}), dear - {x}) for x in sorted(dear)]
        trial, rest = min(trials, key=lambda entry: cost(entry[0]))
        if cost(trial) >= cost(best):
            break
        best, dear = trial, rest
    return best


def _tables(choice: Choice) -> set[Table]:
    return used([form.plan for form in choice if form is not None and form.packed])


def _size(choice: Choice) -> float:
    """Returns about what the forms and their tables take in the file."""
    size = sum(form.num_bytes for form in choice if form is not None)
    return size + TABLE_BYTES * len(_tables(choice))


def _time(choice: Choice) -> float:
    return sum(form.time for form in choice if form is not None)
