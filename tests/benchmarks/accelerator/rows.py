"""The rows of the paper-scale table: which network, quantized how, trained how long.

A row is an experiment of `keras_sq.experiments` with, at most, another protocol or
another length; `python -m keras_sq.train --experiment=...` trains the same network.
Nothing here trains, and nothing here needs TensorFlow.

Groups of rows, in the order of the table:

| group | question |
|---|---|
| `resnet20_equal` | Is SQ better than direct quantization at equal epochs (200)? |
| `resnet20_long` | Is it in its paper's protocol, if the baselines train as long? |
| `resnet56`, `vgg9` | Both questions for the networks of the SQ paper |
| `resnet20_stompp`, `resnet56_stompp` | Is StoMPP better than straight-through? |
| `resnet20_lq` | Learned codebooks for weights, and for activations too |

How each group trains, and from where that is, is in `NOTES`, which the page shows.

Design note: a baseline that is trained as long as SQ (`_long`) repeats its training
four times with the weights carried over, the learning rate restarted and the momentum
cleared. So it differs from SQ in one thing, the ratio. One training of 800 epochs with
one learning rate was the alternative; it would change two things.
"""

import csv
import pathlib
from typing import Any

from row import INPUT_SHAPE as INPUT_SHAPE
from row import MOMENTUM as MOMENTUM
from row import NUM_CLASSES as NUM_CLASSES
from row import TRAIN_EXAMPLES as TRAIN_EXAMPLES
from row import Length as Length
from row import Row as Row

STAGES = 4
"""Trainings of a row that is as long as SQ in the protocol of its paper."""

PLAN = pathlib.Path(__file__).parent / "plan.csv"
"""Which rows are trained, in this order, with which seeds."""

GROUPS = {
    "resnet20_equal": "ResNet-20, 200 epochs for every method",
    "resnet20_long": "ResNet-20, 800 epochs for every method",
    "resnet56": "ResNet-56 of the SQ paper",
    "vgg9": "VGG-9 of the SQ paper",
    "resnet20_stompp": "ResNet-20 with hard tanh: StoMPP against straight-through",
    "resnet56_stompp": "ResNet-56 with hard tanh: StoMPP against straight-through",
    "resnet20_lq": "ResNet-20 with learned codebooks (LQ-Nets)",
}
"""Group -> title, in the order of the table."""

NOTES = {
    "resnet20_equal": """\
Trained as in PARQ's code (Jin et al., 2025, arXiv 2503.15748; `qat_resnet_cifar10.py`
and `qat_resnet_cifar10.sh` in facebookresearch/parq): batch 128, SGD with momentum 0.9,
learning rate 0.1, divided by 10 at epochs 80, 120 and 150 (float: 100 and 150), weight
decay 2e-4, images mirrored, padded by 4 and cropped; all kernels are quantized, the
first and the last too. What differs: PARQ has one scale for each layer and weight decay
on the gains of batch normalization too; here the 80 images that do not fill a batch are
left out of each epoch. The short ramp is the default schedule of this package: 50, 75
and 87.5 % in the first 15 % of the training. With 4 trainings of 50 epochs the learning
rate starts again in each stage.""",
    "resnet20_long": """\
The same recipe, four times in a row: weights carried over, learning rate restarted,
momentum cleared. SQ quantizes 50, 75, 87.5 and 100 % of the filters in the four
trainings; BWN and TWN quantize all of them in each.""",
    "resnet56": """\
Trained as in the code of the SQ paper (Dong et al., 2017, arXiv 1708.01001): batch 128,
SGD with momentum 0.9, learning rate 0.1, divided by 10 at 32,000 and 48,000 of 64,000
steps (here in whole epochs: 164), weight decay 1e-4; convolutions in the shortcuts, no
activation after an addition; all kernels are quantized. As long as BWN or TWN, SQ has
four equal stages within one training, and the learning rate starts once.""",
    "vgg9": """\
Trained as in the code of the SQ paper: batch 100, SGD with momentum 0.9, learning rate
0.1, divided by 10 every 15,000 of 100,000 steps, weight decay 1e-4, dropout; all
kernels are quantized.""",
    "resnet20_stompp": """\
Trained as in StoMPP (Smith & Islam, 2026, arXiv 2601.22660): batch 256, SGD with
momentum 0.9, constant learning rate 0.1, no weight decay; the first, the last and
down-sampling layers stay float. The network is smaller than the paper's, and the length
was chosen here.""",
    "resnet56_stompp": "As ResNet-20 above.",
    "resnet20_lq": """\
Length and rates of He et al. (2015), because the code of LQ-Nets (Zhang et al., 2018,
arXiv 1807.10029) has none for this network: batch 128, SGD with momentum 0.9, learning
rate 0.1, divided by 10 at 32,000 and 48,000 of 64,000 steps, weight decay 1e-4; the
first and the last layer stay float.""",
}
"""Group -> how its rows are trained, and from where that is."""

_PAPER = {"changes": {"protocol": "paper"}}
_EQUAL = {"changes": {"protocol": "equal"}}
_RESTARTS = {"changes": {"protocol": "paper", "scale": 1 / STAGES}}
_LONG = {"repeats": STAGES}
_KINDS = {
    "fwn": ("float", "float"),
    "bwn": ("BWN", "binary"),
    "twn": ("TWN", "ternary"),
    "sq_bwn": ("SQ-BWN", "binary"),
    "sq_twn": ("SQ-TWN", "ternary"),
}
"""Method, as in names of experiments -> method and topic."""


def _row(
    network: str, group: str, key: str, length: str = "", suffix: str = "", **more: Any
) -> Row:
    """Returns the row of a method of `_KINDS`.

    Args:
        network: Name of the network in topics.
        group: Key of `GROUPS`.
        key: Key of `_KINDS`.
        length: Rest of the title.
        suffix: Rest of the name.
        **more: Further attributes of `Row`.
    """
    method, kind = _KINDS[key]
    short = network.lower().replace("-", "")
    name = f"{short}_{key.replace('fwn', 'float')}{suffix}"
    title, topic = f"{method}{length}", f"{network} {kind}"
    return Row(name, group, title, topic, f"cifar10_{short}_{key}", **more)


def _resnet20() -> list[Row]:
    network, equal, long = "ResNet-20", "resnet20_equal", "resnet20_long"
    restarts, repeated = ", 4 trainings of 50 epochs", ", 4 trainings of 200 epochs"
    return [
        *(_row(network, equal, key) for key in ("fwn", "bwn", "twn")),
        _row(network, equal, "sq_bwn", ", short ramp"),
        _row(network, equal, "sq_twn", ", short ramp"),
        _row(network, equal, "sq_bwn", restarts, "_restarts", **_RESTARTS),
        _row(network, equal, "sq_twn", restarts, "_restarts", **_RESTARTS),
        _row(network, long, "sq_bwn", repeated, "_paper", **_PAPER),
        _row(network, long, "bwn", repeated, "_long", **_LONG),
        _row(network, long, "sq_twn", repeated, "_paper", **_PAPER),
        _row(network, long, "twn", repeated, "_long", **_LONG),
        _row(network, long, "fwn", repeated, "_long", **_LONG),
    ]


def _of_sq_paper(network: str, group: str) -> list[Row]:
    repeated = ", 4 trainings"
    return [
        *(_row(network, group, key) for key in ("fwn", "bwn", "twn")),
        _row(network, group, "sq_bwn", ", as long as BWN", **_EQUAL),
        _row(network, group, "sq_twn", ", as long as TWN", **_EQUAL),
        _row(network, group, "sq_bwn", repeated, "_paper", **_PAPER),
        _row(network, group, "bwn", repeated, "_long", **_LONG),
        _row(network, group, "sq_twn", repeated, "_paper", **_PAPER),
        _row(network, group, "twn", repeated, "_long", **_LONG),
        _row(network, group, "fwn", repeated, "_long", **_LONG),
    ]


def _stompp(depth: int) -> list[Row]:
    titles = {
        "ste": "binary weights and activations, straight-through",
        "forward": "binary weights and activations, StoMPP",
        "forward_ste": "binary weights and activations, StoMPP+STE",
        "weights_ste": "binary weights, straight-through",
        "weights_forward": "binary weights, StoMPP",
    }
    return [
        Row(
            f"resnet{depth}_stompp_{key}",
            f"resnet{depth}_stompp",
            title,
            "StoMPP weights" if key.startswith("weights") else "StoMPP",
            f"cifar10_resnet{depth}_stompp_{key}",
        )
        for key, title in titles.items()
    ]


def _lq() -> list[Row]:
    # Experiment without its beginning -> title and topic.
    rows = {
        "float": ("float, 164 epochs", "float"),
        "lq_2_32": ("2-bit weights", "2/32 bits"),
        "lq_2_2": ("2-bit weights and activations", "2/2 bits"),
    }
    return [
        Row(
            f"resnet20_{'lq_float' if key == 'float' else key}",
            "resnet20_lq",
            title,
            f"ResNet-20 {topic}",
            f"cifar10_resnet20_{key}",
        )
        for key, (title, topic) in rows.items()
    ]


_ROWS = (
    *_resnet20(),
    *_of_sq_paper("ResNet-56", "resnet56"),
    *_of_sq_paper("VGG-9", "vgg9"),
    *_stompp(20),
    *_stompp(56),
    *_lq(),
)
_BY_NAME = {row.name: row for row in _ROWS}


def all_rows() -> tuple[Row, ...]:
    """Returns all rows, in the order of the table."""
    return _ROWS


def get(name: str) -> Row:
    """Returns a row by its name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"Argument `name` must be one of {', '.join(_BY_NAME)}. "
            f"Received: name={name!r}"
        )
    return _BY_NAME[name]


def read_plan(path: str | pathlib.Path = PLAN) -> list[tuple[Row, int]]:
    """Returns rows and seeds in the order in which they are to be trained.

    Args:
        path: A CSV file with the columns `row` and `seeds` (numbers with spaces
            between them). Each row and seed is there once.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file has other columns, or a line that names no row, or
            seeds that are not numbers from 0 on or are in the plan already. The
            message names the line.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns != ("row", "seeds"):
            raise ValueError(
                f"The plan must have the columns row,seeds: {path} has "
                f"{','.join(columns) or 'none'}."
            )
        planned: dict[tuple[str, int], tuple[Row, int]] = {}
        for line in reader:
            where = f"Line {reader.line_num} of {path}"
            row = _BY_NAME.get(line["row"])
            if row is None:
                raise ValueError(f"{where} must name a row, not {line['row']!r}.")
            seeds = (line["seeds"] or "").split()
            if not seeds or not all(x.isascii() and x.isdigit() for x in seeds):
                raise ValueError(
                    f"{where} must have seeds such as '0 1', not {line['seeds']!r}."
                )
            for seed in map(int, seeds):
                if (row.name, seed) in planned:
                    raise ValueError(
                        f"{where} repeats the row {row.name} with the seed {seed}."
                    )
                planned[row.name, seed] = row, seed
    return list(planned.values())
