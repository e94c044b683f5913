"""The papers' experiments: a row of a table in a JSON file of this folder.

    python -m keras_sq.train --experiment=cifar10_resnet56_sq_twn --scale=0.05

Each paper has a file; `keras_sq.json` has the other experiments. A file is a list of
tables, each of one network on one data set: the source, the end of the titles, settings
that the rows share, and the rows. A row has a title, further settings, and what was
published. Settings are attributes of `keras_sq.experiments.config.TrainConfig`: an
experiment says nothing that flags could not. `--protocol=equal` trains for as long as
the baselines; the files have the papers' protocol. Many at once: `keras_sq.sweep`.

What was published and could not be looked up again is marked `"confirmed": false`, and
said so wherever it is printed.
"""

import dataclasses
import fnmatch
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_sq.core import checks
from keras_sq.experiments.config import TrainConfig
from keras_sq.files import file_checks

FREE = frozenset(
    {
        "data_dir",
        "download",
        "limit",
        "output_dir",
        "overwrite",
        "protocol",
        "resume",
        "scale",
        "seed",
        "seeds",
        "target",
        "verbose",
    }
)
"""Settings that no experiment decides."""

_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings with a name.

    Attributes:
        name: Name of its row.
        title: For people: method, network, data set.
        source: Where the settings are from.
        published: What was published: numbers by name, such as `"test_error"`
            (percent), and `"confirmed"`, whether the number was looked up.
        settings: Attributes of `TrainConfig`.
    """

    name: str
    title: str
    source: str
    published: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def published_text(self) -> str:
        """What was published, in a line; empty if nothing was."""
        numbers = [
            f"{key.replace('_', ' ')} {value}"
            for key, value in self.published.items()
            if key != "confirmed"
        ]
        doubt = "" if self.published.get("confirmed", True) else " (not confirmed)"
        return ", ".join(numbers) + doubt

    @property
    def caption(self) -> str:
        """Title and what was published, in a line."""
        if not self.published:
            return self.title
        return f"{self.title}; published, in %: {self.published_text}"

    def config(self, **changes: Any) -> TrainConfig:
        """Returns the settings of a run.

        Args:
            **changes: Attributes of `TrainConfig` that are in `FREE`.

        Raises:
            TypeError: As `TrainConfig`.
            ValueError: As `TrainConfig`; or if the experiment decides a setting.
            OSError: As `TrainConfig`.
        """
        for name, value in changes.items():
            if name not in FREE:
                raise ValueError(
                    f"Arguments `experiment` and `{name}` exclude each other: the "
                    f"experiment {self.name!r} decides it. Its settings, to be changed "
                    f"one by one as flags: {self.flags()} Received: {name}={value!r}"
                )
        return TrainConfig(experiment=self.name, **{**self.settings, **changes})

    def flags(self) -> str:
        """Returns the settings as the flags of the command line."""
        parts = []
        for name, value in self.settings.items():
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            parts.append(f"--{name}={text}")
        return " ".join(parts) + "."


def names(patterns: Sequence[str] = ("*",)) -> list[str]:
    """Returns the names of experiments, in the order of the patterns.

    Args:
        patterns: Names, with wildcards: `"cifar10_*_sq_twn"`.

    Raises:
        ValueError: If a pattern matches no experiment.

    Example:
        >>> names(["cifar10_vgg9_*wn"])
        ['cifar10_vgg9_bwn', 'cifar10_vgg9_fwn', 'cifar10_vgg9_sq_bwn', \
'cifar10_vgg9_sq_twn', 'cifar10_vgg9_twn']
    """
    matches: dict[str, None] = {}
    for pattern in patterns:
        hits = fnmatch.filter(_experiments(), pattern)
        if not hits:
            raise ValueError(
                f"There is no experiment {pattern!r}."
                f"{checks.did_you_mean(pattern, _experiments())} "
                "`python -m keras_sq.train --list` prints them all."
            )
        matches.update(dict.fromkeys(hits))
    return list(matches)


def get(name: str) -> Experiment:
    """Returns an experiment by its name.

    Raises:
        ValueError: If there is none, with the nearest name.

    Example:
        >>> get("cifar10_resnet56_sq_twn").settings["quantizer"]
        'ternary'
    """
    (name,) = names([name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")])
    return _experiments()[name]


@functools.cache
def _experiments() -> dict[str, Experiment]:
    """Returns name -> experiment, of all files, sorted by name."""
    experiments: dict[str, Experiment] = {}
    for path in _FOLDER.glob("*.json"):
        for table in file_checks.read_json(path, list):
            for name, row in table["rows"].items():
                experiments[name] = _experiment(name, table, dict(row))
    return dict(sorted(experiments.items()))


def _experiment(name: str, table: Mapping[str, Any], row: dict[str, Any]) -> Experiment:
    titles = (row.pop("title"), table.get("title"))
    source = row.pop("source", table["source"])
    published = row.pop("published", {})
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**table["settings"], **row}.items()
    }
    return Experiment(
        name, ", ".join(filter(None, titles)), source, published, settings
    )
