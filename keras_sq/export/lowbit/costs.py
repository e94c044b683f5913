"""About how long operators take with a weight tensor in each form, as measured.

A time is a sum of what there is for each call, multiplication, weight and output, and
for each input that is copied into rows. The factors were fitted to measured times of
single operators by `tests/benchmarks/lowbit_costs.py`, for each kind of processor of
`costs.json`. They tell forms apart; they do not predict the time of a network.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_sq.export.lowbit.products import Work

TERMS = ("calls", "multiplications", "weights", "outputs")
"""What a factor is for; times are in nanoseconds."""

PATH = pathlib.Path(__file__).with_name("costs.json")


@functools.cache
def _processors() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Returns processor -> form -> term -> nanoseconds."""
    content: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return content["processors"]  # type: ignore[no-any-return]


def microseconds(work: Work, form: str, copied: int = 0) -> float:
    """Returns about how long operators take, for one example.

    The mean over the processors that were measured.

    Args:
        work: What they compute.
        form: Form of the weights, such as `"INT2, int8 activations"`.
        copied: Number of inputs that are copied into rows before.
    """
    times = []
    for table in _processors().values():
        factors = table[form]
        time = sum(float(factors[term] * getattr(work, term)) for term in TERMS)
        if copied:
            # As many bytes as an activation takes.
            patches = table["rows" + form[form.index(",") :]]
            time += patches["calls"] * work.calls + patches["inputs"] * copied
        times.append(time / 1000)
    return sum(times) / len(times)
