"""The knapsack finds what trying everything finds."""

import itertools

import numpy as np
import pytest

from keras_sq.analysis import knapsack


def by_trying_all(costs, sizes, budget):
    best = None
    for options in itertools.product(*(range(len(group)) for group in costs)):
        size = sum(group[i] for group, i in zip(sizes, options, strict=True))
        cost = sum(group[i] for group, i in zip(costs, options, strict=True))
        if size <= budget and (best is None or (cost, size) < best):
            best = (cost, size)
    return best


def random_problem(seed, groups, options, whole):
    """Returns costs and sizes; costs that tie, are negative and not monotone too."""
    generator = np.random.default_rng(seed)
    sizes, costs = [], []
    for _ in range(groups):
        count = int(generator.integers(1, options + 1))
        sizes.append([int(x) for x in generator.integers(0, 60, count)])
        values = generator.normal(size=count) + 2
        if whole:
            values = np.round(values)
        if generator.random() < 0.7:
            values = np.sort(values)[::-1]
            sizes[-1].sort()
        costs.append([float(x) for x in values])
    return costs, sizes


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_choice_is_the_one_of_trying_all(seed, whole):
    costs, sizes = random_problem(seed, groups=5, options=5, whole=whole)
    least = knapsack.smallest_size(sizes)
    most = sum(max(group) for group in sizes)
    for budget in {least, (2 * least + most) // 3, (least + most) // 2, most, 10**9}:
        found = knapsack.solve(costs, sizes, budget)
        cost, size = by_trying_all(costs, sizes, budget)
        assert found.cost == pytest.approx(cost, abs=1e-9)
        assert found.size == size or not whole
        assert found.size <= budget and found.gap == 0.0
        taken = list(zip(found.options, costs, sizes, strict=True))
        assert found.cost == pytest.approx(sum(c[i] for i, c, _ in taken))
        assert found.size == sum(s[i] for i, _, s in taken)


def test_sixty_layers_of_nine_options_are_solved_exactly():
    generator = np.random.default_rng(0)
    weights = generator.integers(500, 2_000_000, 60)
    bits = np.array([1, 2, 2, 3, 4, 5, 6, 8, 32])
    sizes = [[int(x) for x in w * bits] for w in weights]
    # Losses fall with the bits, in each layer otherwise, with noise.
    falling = np.array([9.0, 5.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0])
    costs = [
        [float(x) for x in generator.lognormal() * falling + 0.01 * generator.normal()]
        for _ in weights
    ]
    budget = int(weights.sum() * 2.7)
    found = knapsack.solve(costs, sizes, budget)
    assert found.gap == 0.0 and found.size <= budget
    assert found.size > 0.99 * budget


@pytest.mark.parametrize("seed", range(8))
def test_too_many_states_give_a_choice_with_an_honest_gap(seed):
    costs, sizes = random_problem(seed, groups=7, options=5, whole=False)
    budget = (knapsack.smallest_size(sizes) + sum(map(max, sizes))) // 2
    exact, _ = by_trying_all(costs, sizes, budget)
    gaps = []
    for states in (1, 2, 3, 5):
        found = knapsack.solve(costs, sizes, budget, max_states=states)
        assert found.size <= budget
        assert found.cost - found.gap <= exact + 1e-9 <= found.cost + 2e-9
        gaps.append(found.gap)
    assert max(gaps) > 0 or seed != 3


def test_impossible_budget_raises_with_the_smallest_size():
    with pytest.raises(ValueError, match=r"at least 7\. Received: budget=6"):
        knapsack.solve([[1.0, 0.0], [1.0]], [[3, 9], [4]], 6)
