"""Which networks a training run makes and puts side by side.

A comparison is a list of methods. Each but the first sees the same data for the same
number of epochs, and all start from the float network's weights or all from new
ones, so that what differs is the method. `keras_sq.train` trains, exports and
tabulates them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_sq import schedules
from keras_sq.conversion import presets
from keras_sq.conversion.presets import Preset
from keras_sq.core import checks
from keras_sq.layers.layer_keys import DOWNSAMPLING, FIRST, LAST

FLOAT = "float"
"""The method that comes first: the float network that others start from."""


TRAINED_ON = "float, trained on"
"""Title of the float network that is trained for as long as the others."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One network of a comparison.

    Attributes:
        name: Of its files: letters, digits and hyphens.
        title: In the table.
        preset: How it is quantized; `None` for a float network.
        from_float: Whether it starts from the trained float network, and not anew.
        stages: Number of parts of the training, each as long as that of the others,
            with a learning rate that begins again.
        distill: Weight of the float network's outputs, see `keras_sq.distill`; 0 is
            none.
        temperature: Of these outputs.
        reestimate: Batches to measure the statistics of batch normalization on when
            the training is done, see `keras_sq.reestimate_batch_norm`.
    """

    name: str
    title: str
    preset: Preset | None = None
    from_float: bool = True
    stages: int = 1
    distill: float = 0.0
    temperature: float = 4.0
    reestimate: int = 0

    def as_in_the_paper(self) -> "Method":
        """Returns the method with a whole training for each stage of its schedule.

        The learning rate begins again and the momentum is cleared, as in the paper of
        stochastic quantization. Methods without stages stay what they are.
        """
        if self.preset is None:
            return self
        schedule = self.preset.schedule
        if not isinstance(schedule, schedules.Stages) or len(schedule.ratios) == 1:
            return self
        preset = dataclasses.replace(
            self.preset,
            schedule=schedules.Stages(schedule.ratios),
            clear_momentum=True,
        )
        return dataclasses.replace(self, preset=preset, stages=len(schedule.ratios))


def plain(
    quantizer: Any, schedule: schedules.RatioSchedule, **settings: Any
) -> tuple[Method, ...]:
    """The float network, quantized directly, and by stochastic quantization.

    All layers alike, the small ones too: what differs is the method. The defaults of
    `keras_sq.quantize_model` are in `defaults`.

    Args:
        quantizer: Of the kernels.
        schedule: Of stochastic quantization.
        **settings: Further arguments of `keras_sq.quantize_model`, of both.
    """
    settings = {"skip": (), "overrides": {}, **settings}
    return (
        Method(FLOAT, "float"),
        Method("direct", "quantized directly", presets.direct(quantizer, **settings)),
        Method(
            "sq",
            "quantized with SQ",
            presets.stochastic(quantizer, schedule, **settings),
        ),
    )


def defaults(schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """What `quantize_model` and its callback do where nothing is said, step by step.

    For few bits of each kind: all layers directly, the small ones with four bits, and
    that with stochastic quantization.

    Args:
        schedule: Of stochastic quantization.
    """
    methods = [Method(FLOAT, "float, the start"), Method("float-longer", TRAINED_ON)]
    for bits in ("ternary", "binary"):
        directly = presets.direct(bits)
        small = presets.direct(bits, overrides=None)
        methods += [
            Method(f"{bits}-direct", f"{bits}, directly", directly),
            Method(f"{bits}-small", f"{bits}, directly, small layers 4 bits", small),
            Method(bits, f"{bits}, default", presets.stochastic(bits, schedule)),
        ]
    return tuple(methods)


def lq_nets(schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """Learned codebooks against float, uniform and ternary, at equal epochs.

    The first and the last layer are float in all of them. Besides the paper's:
    stochastic quantization over a learned codebook.
    """
    ends = {"skip": (FIRST, LAST), "overrides": {}}
    return (
        Method(FLOAT, "float, the start"),
        Method("float-longer", TRAINED_ON),
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


def stompp(schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """Layerwise progressive binarization against plain straight-through training.

    Fully binary networks and networks of binary weights, all trained anew. The first,
    the last and down-sampling layers are float in all of them. Meant for networks with
    `hard_tanh`.

    Args:
        schedule: Not used: the schedules are StoMPP's.
    """
    skip = {"skip": (FIRST, LAST, DOWNSAMPLING)}
    plain = {
        "kernel_quantizer": "sign",
        "quantized_gradient": "clipped_straight_through",
        **skip,
    }
    fully = {**plain, "input_quantizer": "binary"}
    presets_by_name = {
        "ste": ("binary, straight-through", presets.direct(**fully)),
        "forward": ("binary, StoMPP", presets.stompp()),
        "global": ("binary, all layers at once", presets.stompp("global")),
        "reverse": ("binary, last layer first", presets.stompp("reverse")),
        "forward-ste": ("binary, StoMPP+STE", presets.stompp(straight_through=True)),
        "weights-ste": ("weights only, straight-through", presets.direct(**plain)),
        "weights-forward": (
            "weights only, StoMPP",
            presets.stompp(binary_activations=False),
        ),
        "weights-reverse": (
            "weights only, last layer first",
            presets.stompp("reverse", binary_activations=False),
        ),
    }
    return (
        Method(FLOAT, "float"),
        *(
            Method(name, title, preset, from_float=False)
            for name, (title, preset) in presets_by_name.items()
        ),
    )


def refresh(schedule: schedules.RatioSchedule) -> tuple[Method, ...]:
    """StoMPP with no refresh of the masks, a soft one, and masks drawn anew.

    Args:
        schedule: Not used: the schedules are StoMPP's.
    """
    return (
        Method(FLOAT, "float"),
        *(
            Method(
                f"refresh-{rate:g}".replace(".", "-"),
                f"binary, StoMPP, refresh {100 * rate:g} %",
                presets.stompp(refresh=rate),
                from_float=False,
            )
            for rate in (0.0, 0.01, 1.0)
        ),
    )


_BY_NAME: dict[str, Callable[[schedules.RatioSchedule], tuple[Method, ...]]] = {
    "defaults": defaults,
    "lq-nets": lq_nets,
    "stompp": stompp,
    "stompp-refresh": refresh,
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
    checks.one_of("preset", name, NAMES)
    return _BY_NAME[name](schedule)
