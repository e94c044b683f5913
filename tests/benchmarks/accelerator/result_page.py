"""The page `docs/results/paper_scale.md`, generated from CSV files of this folder.

Nothing on the page is written by hand: `report.py` writes it, and a test compares it
with what the CSV files give. What was not run is said to be not run.
"""

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Sequence

import result_files
import rows
from result_files import Measurement, Run
from rows import Row

from keras_sq import experiments

PUBLISHED = result_files.FOLDER / "published.csv"
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "results" / "paper_scale.md"

NOT_RUN = "not run yet"

TEST_IMAGES = 10_000

PAIRS = (
    ("SQ-BWN against BWN, ResNet-20, 200 epochs", "resnet20_sq_bwn", "resnet20_bwn"),
    ("SQ-TWN against TWN, ResNet-20, 200 epochs", "resnet20_sq_twn", "resnet20_twn"),
    (
        "SQ-BWN against BWN, ResNet-20, 800 epochs",
        "resnet20_sq_bwn_paper",
        "resnet20_bwn_long",
    ),
    (
        "SQ-TWN against TWN, ResNet-20, 800 epochs",
        "resnet20_sq_twn_paper",
        "resnet20_twn_long",
    ),
    ("SQ-BWN against BWN, ResNet-56, 164 epochs", "resnet56_sq_bwn", "resnet56_bwn"),
    ("SQ-TWN against TWN, ResNet-56, 164 epochs", "resnet56_sq_twn", "resnet56_twn"),
    (
        "SQ-BWN against BWN, ResNet-56, 656 epochs",
        "resnet56_sq_bwn_paper",
        "resnet56_bwn_long",
    ),
    (
        "SQ-TWN against TWN, ResNet-56, 656 epochs",
        "resnet56_sq_twn_paper",
        "resnet56_twn_long",
    ),
    ("SQ-BWN against BWN, VGG-9, 200 epochs", "vgg9_sq_bwn", "vgg9_bwn"),
    ("SQ-TWN against TWN, VGG-9, 200 epochs", "vgg9_sq_twn", "vgg9_twn"),
    ("SQ-BWN against BWN, VGG-9, 800 epochs", "vgg9_sq_bwn_paper", "vgg9_bwn_long"),
    ("SQ-TWN against TWN, VGG-9, 800 epochs", "vgg9_sq_twn_paper", "vgg9_twn_long"),
    (
        "StoMPP against straight-through, ResNet-20, all binary",
        "resnet20_stompp_forward",
        "resnet20_stompp_ste",
    ),
    (
        "StoMPP against straight-through, ResNet-56, all binary",
        "resnet56_stompp_forward",
        "resnet56_stompp_ste",
    ),
)
"""Question, the row with the method, and the row that it is compared with."""

_HOW_TO_RUN = """## How to run

Here, pack what must travel: Keras, this package, the scripts, CIFAR-10 without loss.

```bash
python tests/benchmarks/accelerator/pack.py --data_dir=~/tensorflow_datasets
```

On the machine with the GPU, which needs JAX and no TensorFlow, one command checks and
unpacks the pieces and, once all of them are there, trains the rows of the plan in
order. It stops in time by itself; the same command goes on from the saved state:

```bash
python tests/benchmarks/accelerator/go.py --pieces=build/accelerator \\
    --folder=/tmp/kit --out=results --state=state --minutes=8.5
```

Back here, the results are checked and merged, and this page is written anew:

```bash
python tests/benchmarks/accelerator/report.py --results=results
```

The README of that folder says more. A run with another `--scale` than 1 is a rehearsal:
the report leaves it out.
"""

_HONEST = """## What an honest comparison needs

- **Equal length.** In the SQ paper each of the four stages is as long as the whole
  training of a baseline, so that SQ trained four times as long. Here there are both: SQ
  within the epochs of one baseline, and baselines that repeat their training four times
  (weights carried over, learning rate restarted, momentum cleared). The second differs
  from SQ in the ratio alone. No published comparison that does this was found.
- **The same recipe.** Rows that are compared share network, batch, learning rate,
  decay, augmentation and number of steps. Only the float ResNet-20 drops the learning
  rate at other epochs than the quantized ones, as it does in PARQ's code.
- **All 50,000 training images, and nothing chosen by a score.** The last epoch counts,
  with everything quantized. The test images choose no epoch and no setting.
- **More than one seed.** Chance of the 10,000 test images alone is {error} points (one
  standard error at an accuracy of 91 %). With two seeds the spread itself is uncertain;
  a difference that is smaller than the spreads is none.
- **Published numbers are of other code.** PARQ's code has one scale for each layer,
  here there is one for each filter. Its ResNet-56 has another shortcut than that of the
  SQ paper. MetaQuant starts from a float network and reports the best epoch. Numbers
  that are marked "not confirmed" were quoted from memory of the paper's tables.
"""


@dataclasses.dataclass(frozen=True)
class Published:
    """A line of `published.csv`.

    Attributes:
        topic: Network and bits; `Row.topic` says which rows it belongs to.
        work: Short name of the publication.
        method: As there.
        test_accuracy: Percent, or empty.
        gain: Points over straight-through, or empty.
        confirmed: `yes` if the number was read in the source, or `no`.
        conditions: What differs from the rows here.
        source: Publication.
    """

    topic: str
    work: str
    method: str
    test_accuracy: str
    gain: str
    confirmed: str
    conditions: str
    source: str


def published() -> list[Published]:
    """Returns the published numbers, in the order of the file."""
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        return [Published(**line) for line in csv.DictReader(file)]


def page_text(runs: Sequence[Run], measurements: Sequence[Measurement]) -> str:
    """Returns the page.

    Args:
        runs: Those of `results.csv`.
        measurements: Those of `steps.csv`.
    """
    error = 100 * (0.91 * 0.09 / TEST_IMAGES) ** 0.5
    parts = [
        "# Paper-scale results",
        "<!-- Written by tests/benchmarks/accelerator/report.py. Do not edit. -->",
        _introduction(runs),
        _HONEST.format(error=f"{error:.2f}"),
        "## Differences",
        _differences(runs),
        *_groups(runs),
        "## Step time",
        _step_times(measurements),
        _HOW_TO_RUN,
        "## The files",
        _files(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _introduction(runs: Sequence[Run]) -> str:
    planned = {(row.name, seed) for row, seed in rows.read_plan()}
    done = {run.key for run in runs if run.finished}
    epochs = sum(rows.get(name).length().epochs for name, _ in planned)
    text = (
        "The papers' claims are about long trainings from new weights. This page lists "
        f"{len(rows.all_rows())} such trainings on CIFAR-10 and what came of them. The "
        f"plan has {len(planned)} runs (rows and seeds), {epochs:,} epochs in all; a "
        "GPU takes them in order, a quarter of an hour at a time."
    )
    if not runs:
        text += (
            "\n\n**Nothing has been trained at full length yet: every row below says "
            '"not run yet".** The kit has been rehearsed on CPUs, with a thousandth of '
            "the length, which says nothing about accuracy."
        )
    else:
        text += (
            f"\n\n**{len(done & planned)} of the {len(planned)} planned runs are "
            f"finished.** Rows without a number were not trained to the end."
        )
    return text


def _differences(runs: Sequence[Run]) -> str:
    lines = []
    for question, name, baseline in PAIRS:
        ours, theirs = _accuracies(name, runs), _accuracies(baseline, runs)
        if ours and theirs:
            points = statistics.mean(ours) - statistics.mean(theirs)
            difference = f"{points:+.2f} points"
            seeds = f"{len(ours)} and {len(theirs)}"
        else:
            difference, seeds = NOT_RUN, ""
        lines.append((question, difference, seeds))
    return _table(("Question", "Difference of the means", "Seeds"), lines)


def _groups(runs: Sequence[Run]) -> list[str]:
    """Returns the sections of the groups; published numbers where they come first."""
    parts = []
    shown: set[str] = set()
    for group, title in rows.GROUPS.items():
        members = [row for row in rows.all_rows() if row.group == group]
        topics = list(dict.fromkeys(row.topic for row in members))
        note = rows.NOTES[group]
        parts.append(f"## {title}\n\n{note}\n\n{_ours(members, runs)}")
        if theirs := [topic for topic in topics if topic not in shown]:
            parts.append(f"{_CAPTION}\n\n{_theirs(theirs)}")
        else:
            parts.append("Published numbers of these networks are above.")
        shown.update(topics)
    return parts


_CAPTION = "Published, under the conditions that are named:"


def _ours(members: Sequence[Row], runs: Sequence[Run]) -> str:
    lines = [
        (
            row.title,
            f"`{row.name}`",
            str(row.length().epochs),
            _mean(_accuracies(row.name, runs)),
            _state(row, runs),
            _published_for(row),
        )
        for row in members
    ]
    head = ("Row", "Name", "Epochs", "Test accuracy, %", "Seeds", "Published, %")
    return _table(head, lines)


def _published_for(row: Row) -> str:
    """Returns what was published for this very row, of the same length."""
    experiment = experiments.get(row.experiment)
    protocol = experiment.settings.get("protocol", "equal")
    changed = "scale" in row.changes or row.repeats > 1
    if changed or row.changes.get("protocol", protocol) != protocol:
        return ""
    accuracy = experiment.published.get("test_accuracy")
    if "test_error" in experiment.published:
        accuracy = 100 - experiment.published["test_error"]
    if accuracy is None:
        return ""
    confirmed = experiment.published.get("confirmed", True)
    return f"{accuracy:.2f}" + ("" if confirmed else " (not confirmed)")


def _theirs(topics: Sequence[str]) -> str:
    lines = [
        (
            entry.topic,
            f"{entry.work}: {entry.method}"
            if entry.method != entry.work
            else entry.work,
            _number_of(entry),
            entry.conditions,
            entry.source,
        )
        for topic in topics
        for entry in published()
        if entry.topic == topic
    ]
    names = ("Network", "Published", "Test accuracy, %", "Conditions", "Source")
    return _table(names, lines)


def _number_of(entry: Published) -> str:
    number = entry.test_accuracy or f"+{entry.gain} points"
    return number if entry.confirmed == "yes" else f"{number} (not confirmed)"


def _accuracies(name: str, runs: Sequence[Run]) -> list[float]:
    return [
        run.test_accuracy
        for run in runs
        if run.row == name and run.finished and run.test_accuracy is not None
    ]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return NOT_RUN
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _state(row: Row, runs: Sequence[Run]) -> str:
    own = [run for run in runs if run.row == row.name]
    parts = []
    if done := [str(run.seed) for run in own if run.finished]:
        parts.append(", ".join(done))
    parts += [
        f"{run.seed} {run.problem}"
        if run.problem
        else f"{run.seed} unfinished (epoch {run.epochs_done} of {run.epochs})"
        for run in own
        if not run.finished
    ]
    return "; ".join(parts)


def _step_times(measurements: Sequence[Measurement]) -> str:
    if not measurements:
        return (
            "Not measured on a GPU yet. The same command measures a step of SQ with "
            "the masks redrawn against a step of the float network (ResNet-20, "
            "ResNet-50 at 224 pixels, three dense layers of 2048, a small "
            "transformer), and the input pipeline."
        )
    steps, rates = [], []
    by_key = {entry.key: entry for entry in measurements}
    for device, name in dict.fromkeys((x.device, x.name) for x in measurements):
        found = {
            quantity: by_key[device, name, quantity]
            for quantity in ("float", "sq", "ratio", "rate")
            if (device, name, quantity) in by_key
        }
        first = next(iter(found.values()))
        known = [_quartiles(found.get(x)) for x in ("float", "sq", "ratio")]
        tail = (device, first.precision, first.date[:10])
        if "rate" in found:
            rates.append((name, str(first.batch_size), _quartiles(first), *tail))
        else:
            steps.append((name, str(first.batch_size), *known, *tail))
    tail = ("Device", "Precision", "Date")
    head = ("Network", "Batch", "Float, ms", "SQ, ms", "SQ / float", *tail)
    parts = [
        "Median, and first to third quartile; both networks take turns in one run."
    ]
    if steps:
        parts.append(_table(head, steps))
    if rates:
        parts.append(_table(("Input", "Batch", "Images a second", *tail), rates))
    return "\n\n".join(parts)


def _quartiles(entry: Measurement | None) -> str:
    if entry is None:
        return ""
    if entry.problem:
        return entry.problem
    digits = {"ms": 3, "images/s": 0}.get(entry.unit, 3)
    median, low, high = (
        f"{value:,.{digits}f}" for value in (entry.median, entry.low, entry.high)
    )
    return f"{median} ({low} to {high})"


def _files() -> str:
    described = result_files.__doc__ or ""
    tables = described[described.index("Columns of `results.csv`") :]
    return (
        "All of it is in `tests/benchmarks/accelerator/`: the plan is `plan.csv`, the "
        "rows with their settings `rows.py`, published numbers `published.csv`, "
        f"results `results.csv` and `steps.csv`.\n\n{tables}"
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = "|" + "---|" * len(head)
    body = ["| " + " | ".join(line) + " |" for line in (head, *lines)]
    return "\n".join([body[0], rule, *body[1:]])
