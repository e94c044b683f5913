"""The exact distribution of masks, and whether drawn ones have it.

A draw without replacement is sequential: one entry after the other, each with
its probability among the entries that are left. `subset_probabilities` goes
through all of them in float64; `fits` is a chi-square test whose bound a right sampler
exceeds once in a million.
"""

import fractions
import math

import numpy as np
from backends import array, compiled
from keras import ops

EPSILON = 1e-7


VECTORS = [
    [0.3, 0.35, 0.4, 0.5],
    [0.0, 0.2, 0.5, 0.9],
    [1.0, 1e-6, 0.5, 1e-3],
    [0.0, 0.0, 0.0, 0.0],
    [0.4, 0.4, 0.4, 0.4, 0.4],
    [0.0, 0.0, 0.3, 0.6, 0.6],
    [0.2, 0.25, 0.3, 0.35, 0.4, 0.9],
    [0.15, 0.15, 0.5, 0.5, 0.5, 0.5],
]


def log_weights(errors, probability, draw):
    """Log p of each entry, up to a constant, from the formulas of the paper."""
    if draw == "released":
        return [math.log(e) if e > 0 else -math.inf for e in errors]
    f = [1.0 / (e + EPSILON) for e in errors]
    return {
        "constant": [0.0 for _ in f],
        "linear": [math.log(x) for x in f],
        "softmax": f,
        "sigmoid": [-math.log1p(math.exp(-x)) for x in f],
    }[probability]


def next_probabilities(logs, left):
    """Probability of each of the entries left to be drawn next."""
    top = max(logs[i] for i in left)
    if top == -math.inf:  # All p = 0: by chance alone.
        return {i: 1.0 / len(left) for i in left}
    weights = {i: math.exp(logs[i] - top) for i in left}
    total = sum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def drawn_subsets(logs, number, entries=None):
    """{subset: probability} of `number` draws without replacement."""
    entries = frozenset(range(len(logs)) if entries is None else entries)
    now = {frozenset(): 1.0}
    for _ in range(number):
        after = {}
        for subset, chance in now.items():
            for i, p in next_probabilities(logs, entries - subset).items():
                key = subset | {i}
                after[key] = after.get(key, 0.0) + chance * p
        now = after
    return now


def subset_probabilities(errors, number, probability, draw):
    """{set of quantized entries: probability}."""
    logs = log_weights(errors, probability, draw)
    if draw == "paper":
        return drawn_subsets(logs, number)
    every = frozenset(range(len(errors)))
    kept = drawn_subsets(logs, len(errors) - number)
    return {every - subset: chance for subset, chance in kept.items()}


Z = 4.75  # One-sided normal quantile of 1e-6.


def chi_square_bound(freedom):
    """Quantile of the chi-square distribution (Wilson & Hilferty, 1931)."""
    part = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - part + Z * math.sqrt(part)) ** 3


def poisson_bound(mean):
    """Least n with P(N > n) < 1e-6."""
    n, term = 0, math.exp(-mean)
    below = term
    while 1.0 - below > 1e-6:
        n += 1
        term *= mean / n
        below += term
    return n


def fits(counts, probabilities):
    """Whether counts by subset agree with the exact probabilities.

    Subsets that are expected fewer than ten times are put together; if even
    together they are, their number is held to its Poisson bound.
    """
    draws = sum(counts.values())
    rare_expected, rare_counted = 0.0, 0
    statistic, cells = 0.0, 0
    for subset in {*counts, *probabilities}:
        mean = draws * probabilities.get(subset, 0.0)
        count = counts.get(subset, 0)
        if mean < 10.0:
            rare_expected += mean
            rare_counted += count
        else:
            statistic += (count - mean) ** 2 / mean
            cells += 1
    if rare_expected >= 10.0:
        statistic += (rare_counted - rare_expected) ** 2 / rare_expected
        cells += 1
    elif rare_counted > poisson_bound(rare_expected):
        return False
    return cells < 2 or statistic <= chi_square_bound(cells - 1)


def count_subsets(rows):
    """{subset: count} of masks, a row each."""
    codes = rows.astype(int) @ (1 << np.arange(rows.shape[1]))
    found, counts = np.unique(codes, return_counts=True)
    return {
        frozenset(i for i in range(rows.shape[1]) if code >> i & 1): int(count)
        for code, count in zip(found, counts, strict=True)
    }


def draw_masks(chosen, cases, draws, seed, previous=None):
    """Draws masks for kernels of different sizes, all in the same calls.

    Args:
        chosen: A `Selection`.
        cases: For each case its errors and how many entries to quantize.
        draws: How many masks of each.
        seed: Of the random numbers.
        previous: For each case its masks until now, `(draws, entries)`.

    Returns:
        For each case bool `(draws, entries)`.
    """
    copies = 50
    errors = [np.array(e, "float32") for e, _ in cases for _ in range(copies)]
    sizes = [len(e) for e in errors]
    ratios = np.array(
        [number / len(e) for e, number in cases for _ in range(copies)], "float32"
    )

    ends = np.cumsum(sizes)[:-1]

    def function(uniform, before):
        drawn = chosen.masks(
            [ops.array(e) for e in errors],
            ops.array(ratios),
            ops.split(uniform, chosen.numbers_per_entry * ends),
            ops.split(before, ends),
        )
        return ops.concatenate(drawn, 0)

    call = compiled(function)
    rng = np.random.default_rng(seed)
    result = [np.empty((draws, len(e)), bool) for e, _ in cases]
    for index in range(draws // copies):
        part = slice(index * copies, (index + 1) * copies)
        if previous is None:
            before = np.ones(sum(sizes), bool)
        else:
            before = np.concatenate([p[part].reshape(-1) for p in previous])
        size = chosen.numbers_per_entry * sum(sizes)
        flat = array(call(rng.random(size, dtype="float32"), before))
        start = 0
        for rows in result:
            size = copies * rows.shape[1]
            rows[part] = flat[start : start + size].reshape(copies, -1)
            start += size
    return result


def exact_number(ratio, size):
    """m - int((1 - r)·m), for the ratio that was written."""
    return size - int((1 - fractions.Fraction(ratio)) * size)
