"""The multiple-choice knapsack: one option of each group, within a budget.

Pure NumPy; what the groups are is in `bit_choice.py`. Solved by the dominance rule
of Nemhauser and Ullmann: group after group, all partial choices are kept that no
other one beats in both size and cost. What cannot become better than a choice known
already, even if options could be mixed in the groups to come, is dropped; by this
bound few are left.

References:
    - Nemhauser & Ullmann, 1969, Discrete dynamic programming and capital allocation
    - Kellerer, Pferschy & Pisinger, 2004, Knapsack Problems, chapter 11
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from keras_sq.core.types import Array

MAX_STATES = 200_000
"""Partial choices kept. Beyond, the least promising are dropped, and the result says
how much could be lost."""


class Solution(NamedTuple):
    """A choice.

    Attributes:
        options: The number of the option taken, for each group.
        cost: The sum of their costs.
        size: The sum of their sizes.
        gap: The optimum costs at most so much less; 0 if this is it.
    """

    options: tuple[int, ...]
    cost: float
    size: int
    gap: float


def smallest_size(sizes: Sequence[Sequence[int]]) -> int:
    """Returns the size of the smallest choice."""
    return sum(min(group) for group in sizes)


def solve(
    costs: Sequence[Sequence[float]],
    sizes: Sequence[Sequence[int]],
    budget: int,
    max_states: int = MAX_STATES,
) -> Solution:
    """Returns the cheapest choice of one option a group within the budget.

    Of choices that cost the same, the smallest.

    Args:
        costs: For each group the costs of its options, finite.
        sizes: Likewise their sizes, not negative.
        budget: The largest sum of sizes.
        max_states: Bound on memory, see `MAX_STATES`.

    Raises:
        ValueError: If no choice is within the budget.

    Example:
        >>> solve([[3.0, 0.0], [5.0, 0.0]], [[1, 9], [1, 8]], budget=10)
        Solution(options=(0, 1), cost=3.0, size=9, gap=0.0)
    """
    if smallest_size(sizes) > budget:
        raise ValueError(
            f"Argument `budget` must be at least {smallest_size(sizes)}. "
            f"Received: budget={budget}"
        )
    hulls = [_hull(c, s) for c, s in zip(costs, sizes, strict=True)]
    bounds = [_relaxation(hulls[start:]) for start in range(len(hulls) + 1)]
    good = _greedy(hulls, budget)
    # Sums in another order differ by rounding.
    known = good.cost + 1e-12 * sum(max(map(abs, group)) for group in costs)

    state_sizes, state_costs = np.zeros(1, np.int64), np.zeros(1)
    links: list[tuple[Array, Array]] = []
    dropped = np.inf
    for group, (group_costs, group_sizes) in enumerate(zip(costs, sizes, strict=True)):
        total = np.add.outer(state_sizes, np.asarray(group_sizes, np.int64)).ravel()
        cost = np.add.outer(state_costs, np.asarray(group_costs, float)).ravel()
        floor = cost + bounds[group + 1](budget - total)
        kept = np.flatnonzero(floor <= known)
        if not len(kept):  # Only after states were dropped for want of room.
            return good._replace(gap=max(0.0, good.cost - dropped))
        # Sorted by size, then cost: what is not cheaper than all before is beaten.
        kept = kept[np.lexsort((cost[kept], total[kept]))]
        cheapest = np.minimum.accumulate(cost[kept])
        kept = kept[np.concatenate([[True], cost[kept][1:] < cheapest[:-1]])]
        if len(kept) > max_states:
            order = np.argsort(floor[kept], kind="stable")
            dropped = min(dropped, float(floor[kept[order[max_states]]]))
            kept = kept[np.sort(order[:max_states])]
        links.append(np.divmod(kept, len(group_costs)))
        state_sizes, state_costs = total[kept], cost[kept]

    best = int(np.argmin(state_costs))
    value, size = float(state_costs[best]), int(state_sizes[best])
    options: list[int] = []
    for parents, chosen in reversed(links):
        options.append(int(chosen[best]))
        best = int(parents[best])
    return Solution(tuple(reversed(options)), value, size, max(0.0, value - dropped))


_Option = tuple[int, float, int]
"""Size, cost and number of an option."""


def _hull(costs: Sequence[float], sizes: Sequence[int]) -> list[_Option]:
    """Returns the lower convex hull of a group's options, by growing size."""
    hull: list[_Option] = []
    for option in sorted(zip(sizes, costs, range(len(costs)), strict=True)):
        if hull and option[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(*hull[-2:]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: _Option, b: _Option) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _steps(
    hulls: Sequence[list[_Option]],
) -> list[tuple[float, int, _Option, _Option]]:
    """Returns slope, group and both ends of all steps on hulls, the best first."""
    return sorted(
        (_slope(a, b), group, a, b)
        for group, hull in enumerate(hulls)
        for a, b in zip(hull, hull[1:], strict=False)
    )


def _relaxation(hulls: Sequence[list[_Option]]) -> Callable[[Array], Array]:
    """Returns what groups cost at least within sizes, if options could be mixed."""
    steps = _steps(hulls)
    start_size = sum(hull[0][0] for hull in hulls)
    start_cost = sum(hull[0][1] for hull in hulls)
    at = start_size + np.cumsum([0, *(b[0] - a[0] for _, _, a, b in steps)])
    worth = start_cost + np.cumsum([0.0, *(b[1] - a[1] for _, _, a, b in steps)])

    def bound(room: Array) -> Array:
        least: Array = np.interp(room, at, worth)
        return np.where(room < start_size, np.inf, least)

    return bound


def _greedy(hulls: Sequence[list[_Option]], budget: int) -> Solution:
    """Returns a good choice: the best steps first, as long as they fit."""
    taken = [hull[0] for hull in hulls]
    room = budget - sum(option[0] for option in taken)
    stopped: set[int] = set()
    for _, group, before, after in _steps(hulls):
        if group in stopped or after[0] - before[0] > room:
            stopped.add(group)
            continue
        room -= after[0] - before[0]
        taken[group] = after
    options = tuple(option[2] for option in taken)
    cost = float(sum(option[1] for option in taken))
    return Solution(options, cost, budget - room, 0.0)
