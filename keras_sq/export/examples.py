"""Which examples a file is calibrated, compared and checked on."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from keras_sq.core.types import Array
from keras_sq.inputs.model_inputs import InputSignature

RANDOM_BATCHES = (1, 3)
"""Sizes of the random batches, where the file takes any."""

MAX_COMPARED = 256
"""Representative examples that the whole file is compared on at most."""

COMPARED_BATCH = 32
"""Representative examples in a batch, where the file takes any."""

MAX_QUICK = 32
"""Representative examples on which every tensor is looked at, at most."""

QUICK_BATCH = 8
"""How many of them are in a batch: all tensors of a file take much memory."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs of a model.

    Attributes:
        kind: `"random"` or `"representative"`.
        names: Names of the inputs.
        arrays: One array an input, examples on the first axis.
    """

    kind: str
    names: tuple[str, ...]
    arrays: list[Array]

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.arrays[0])

    @property
    def by_name(self) -> dict[str, Array]:
        """Name of an input -> array."""
        return dict(zip(self.names, self.arrays, strict=True))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Representative examples, or random ones in their place.

    The methods take the signature of the file, whose batch size may be fixed.

    Attributes:
        arrays: One array an input, or `None` without representative examples.
    """

    arrays: Sequence[Array] | None = None

    def calibration(self, signature: InputSignature) -> Iterator[dict[str, Array]]:
        """Yields all representative examples one by one, by name of the input."""
        for batch in self._representative(signature.with_batch(1), None, 1):
            yield batch.by_name

    def comparison(self, signature: InputSignature, seed: int = 0) -> Iterator[Batch]:
        """Yields random batches, then representative ones of evenly spaced examples.

        Args:
            signature: Inputs of the file.
            seed: Seed of the random inputs.
        """
        names = tuple(entry.name for entry in signature.inputs)
        generator = np.random.default_rng(seed)
        fixed = signature.batch
        for size in RANDOM_BATCHES if fixed is None else (fixed, fixed):
            arrays = [x.random(size, generator) for x in signature.inputs]
            yield Batch("random", names, arrays)
        yield from self._representative(signature, MAX_COMPARED, COMPARED_BATCH)

    def quick(self, signature: InputSignature) -> Iterator[Batch]:
        """Yields few examples: representative ones, or random ones without any."""
        if self.arrays is None:
            yield from self.comparison(signature)
        yield from self._representative(signature, MAX_QUICK, QUICK_BATCH)

    def _representative(
        self, signature: InputSignature, most: int | None, size: int
    ) -> Iterator[Batch]:
        if self.arrays is None:
            return
        names = tuple(entry.name for entry in signature.inputs)
        count = len(self.arrays[0])
        chosen = np.linspace(0, count - 1, min(count, most or count)).astype(int)
        size = signature.batch or size
        for start in range(0, len(chosen), size):
            indices = chosen[start : start + size]
            if signature.batch is not None:  # The last batch is filled up.
                indices = np.resize(indices, size)
            arrays = [array[indices] for array in self.arrays]
            yield Batch("representative", names, arrays)
