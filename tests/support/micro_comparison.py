"""Whether two files for microcontrollers compute the same, to the bit.

For tests of files that no Keras model is at hand for; `keras_sq.export` compares in
`keras_sq/export/verification/comparison.py`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_sq.export.errors import ExportError
from keras_sq.export.micro import runtime as micro_runtime
from keras_sq.export.micro.compression import operators
from keras_sq.export.micro.runtime import MicroRunner
from keras_sq.export.tflite.flatbuffer import TFLiteFile

Array = np.ndarray[Any, Any]

_LOOKUPS = {"EMBEDDING_LOOKUP", "GATHER", "GATHER_ND"}


def check_same(
    content: bytes,
    reference: bytes,
    examples: Iterable[Sequence[Array]] = (),
    arena_bytes: int | None = None,
    random_examples: int = 16,
    seed: int = 0,
) -> int:
    """Checks that two files give the same outputs, to the bit.

    Both are run with TensorFlow Lite Micro, on random inputs and on given ones.
    Files that look values up by their inputs are run on zeros, not on random
    inputs, which might point beyond the table.

    Args:
        content: The file to check.
        reference: The file that it should agree with.
        examples: Inputs in the files' order, with their shapes and dtypes.
        arena_bytes: Memory to run `content` in; plenty if `None`.
        random_examples: How many random inputs.
        seed: Of the random inputs.

    Returns:
        How many inputs were compared.

    Raises:
        ImportError: If the package `tflite-micro` is not installed.
        ValueError: If an example has other shapes or dtypes.
        ExportError: If an output differs, or one of the files cannot be run.
    """
    runner, expected = MicroRunner(content, arena_bytes), MicroRunner(reference)
    if (runner.inputs, runner.outputs) != (expected.inputs, expected.outputs):
        raise ExportError(
            "The compressed file has other inputs or outputs than the int8 file."
        )
    generator = np.random.default_rng(seed)
    lookups = _LOOKUPS & set(operators(TFLiteFile(reference)))
    count = 0
    for _ in range(random_examples):
        batch = [
            np.zeros(entry.shape, entry.dtype) if lookups else _random(entry, generator)
            for entry in expected.inputs
        ]
        _compare(runner, expected, batch, "random")
        count += 1
        if lookups:
            break
    for example in examples:
        _compare(runner, expected, example, "representative")
        count += 1
    return count


def _random(entry: micro_runtime.MicroTensor, generator: np.random.Generator) -> Array:
    dtype = np.dtype(entry.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(entry.shape).astype(dtype)
    if dtype.itemsize <= 2 and dtype.kind in "iu":
        info = np.iinfo(dtype)
        return generator.integers(
            info.min, info.max, entry.shape, dtype=dtype, endpoint=True
        )
    # Bools; and large integers, which count or point to something.
    return generator.integers(0, 2, entry.shape).astype(dtype)


def _compare(
    runner: MicroRunner, expected: MicroRunner, batch: Sequence[Array], kind: str
) -> None:
    pairs = zip(runner(batch), expected(batch), strict=True)
    for number, (actual, wanted) in enumerate(pairs):
        if actual.tobytes() != wanted.tobytes():
            differing = np.count_nonzero(actual != wanted)
            raise ExportError(
                "The compressed file does not compute what the int8 file does: on "
                f"{kind} inputs, {differing} of {actual.size} values of output "
                f"{number} differ. No file was written."
            )
