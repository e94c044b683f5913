"""Which networks a training run makes and puts side by side.

A comparison is a list of methods. Each but the first starts from the float network's
weights and sees the same data for the same number of epochs, so that what differs
is the method. `keras_sq.train` trains, exports and tabulates them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_sq import _checks, presets, schedules
from keras_sq.presets import Preset

FLOAT = "float"
"""The method that comes first: the float network that others start from."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One network of a comparison.

    Attributes:
        name: Of its files: letters, digits and hyphens.
        title: In the table.
        preset: How it is quantized; `None` for a float network.
    """

    name: str
    title: str
    preset: Preset | None = None


def plain(quantizer: Any, schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """The float network, quantized directly, and by stochastic quantization."""
    return (
        Method(FLOAT, "float"),
        Method("direct", "quantized directly", presets.direct(quantizer, skip=())),
        Method(
            "sq",
            "quantized with SQ",
            presets.stochastic(quantizer, schedule, skip=()),
        ),
    )


def lq_nets(schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """Learned codebooks against float, uniform and ternary, at equal epochs.

    The first and the last layer are float in all of them. Besides the paper's:
    stochastic quantization over a learned codebook.
    """
    ends = {"skip": ("@first", "@last")}
    return (
        Method(FLOAT, "float, the start"),
        Method("float-longer", "float, trained on"),
        Method("ternary", "ternary, directly", presets.direct("ternary", **ends)),
        Method("uniform-2", "uniform, 2 bits", presets.direct("uniform-2", **ends)),
        Method("lq-1", "learned, 1 bit", presets.lq_nets(1)),
        Method("lq-2", "learned, 2 bits", presets.lq_nets(2)),
        Method(
            "lq-2-sq",
            "learned, 2 bits, with SQ",
            presets.stochastic("lq-2", schedule, **ends),
        ),
        Method(
            "uniform-2-2",
            "uniform, 2 bits, inputs too",
            presets.direct("uniform-2", input_quantizer="uniform-2", **ends),
        ),
        Method("lq-2-2", "learned, 2 bits, inputs too", presets.lq_nets(2, 2)),
    )


_BY_NAME: dict[str, Callable[[schedules.RatioSchedule], tuple[Method, ...]]] = {
    "lq-nets": lq_nets,
}

NAMES = tuple(_BY_NAME)
"""What `get` knows."""


def get(name: str, schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """Returns the methods of a comparison by its name.

    Args:
        name: One of `NAMES`.
        schedule: Of the methods with stochastic quantization.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> [method.name for method in get("lq-nets", keras_sq.schedules.exponential())]
        ['float', 'float-longer', 'ternary', 'uniform-2', 'lq-1', 'lq-2', 'lq-2-sq', \
'uniform-2-2', 'lq-2-2']
    """
    _checks.one_of("preset", name, NAMES)
    return _BY_NAME[name](schedule)
