"""Compares a file of 2- and 4-bit weights with what it stands for.

- **Its graph**: with float weights in place of the codes, nothing is rounded, so it
  must agree with Keras as float files do. That shows that convolutions became the
  right products, and that codes times scales are the weights.
- **Its arithmetic**: with int8 weights of the same values, all sums are the same
  integers, so outputs must be the same bits with XNNPACK; of int8 activations also with
  the interpreter's kernels (`Comparer` does that).
- **Its outputs** against Keras, in the mean (`verification/comparison.py`): activations
  are rounded.

A runtime that is too old for the products refuses the file or fails one of these.
"""

import dataclasses

from keras_sq.export.errors import ExportError
from keras_sq.export.request import Candidate, Request
from keras_sq.export.runtimes import PRODUCT_RUNTIMES
from keras_sq.export.tflite.runtime import Runner
from keras_sq.export.verification.comparison import Comparer
from keras_sq.export.verification.running import check_equal, file_outputs, loaded


def check(candidate: Candidate, request: Request) -> None:
    """Checks the graph and the arithmetic of a file.

    Raises:
        ExportError: If it computes something else, or cannot be run here.
    """
    if candidate.plain is not None:
        plain = dataclasses.replace(candidate.converted, content=candidate.plain)
        Comparer(plain, request.reference, request.examples).compare_float()
    twin = candidate.twin
    if twin is None:
        return
    try:
        pair = [loaded(x, Runner, True) for x in (candidate.converted.content, twin)]
    except ExportError as error:
        raise ExportError(
            f"The runtime that is installed does not run the file ({error}). It needs "
            f"{' or '.join(PRODUCT_RUNTIMES)}: install a newer one (`pip install -U "
            "ai-edge-litert`), or choose target 'small'."
        ) from error
    for batch in request.examples.comparison(candidate.converted.signature):
        first, second = (file_outputs(runner, batch) for runner in pair)
        check_equal(first, second, batch.kind)
