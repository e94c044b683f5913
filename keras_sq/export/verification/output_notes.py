"""What the report notes of outputs that are far from Keras's."""

from keras_sq.export.report import OutputError, TensorReport
from keras_sq.export.verification.comparison import Comparison
from keras_sq.export.verification.differences import FEW_STEPS, SILENT, listed

COARSE_ERROR = 0.1
"""Mean difference of int8 outputs from Keras that is worth a note."""

COARSE_ENTRY_ERROR = 0.5
"""Mean difference of an entry, in parts of its spread, that is worth a note.

What is always the mean of the entry differs by 1.
"""

FIXED_STEP = (1 / 256, -128)
"""Scale and zero point that int8 softmax and sigmoid have, whatever their values."""


def notes(comparison: Comparison, jumps: bool) -> tuple[str, ...]:
    """Returns notes on the outputs of a file.

    Args:
        comparison: How the file compares with Keras.
        jumps: Whether activations are rounded to levels, where single examples may
            differ by much.
    """
    texts = list(_coarse(comparison))
    texts += [
        f"{fraction:.1%} of the integers of {name} are those of Keras: int8 steps "
        "decide between values that are close"
        for name, fraction in comparison.equal_integers.items()
        if fraction < 1
    ]
    tensors = {output.name: output for output in comparison.outputs}
    for error in comparison.output_errors:
        texts += [*_silent(error), *_nan(error)]
        narrow = _narrow(error, tensors[error.name])
        texts += narrow
        if not narrow and not jumps:
            texts += _coarse_entry(error)
    return tuple(texts)


def _coarse(comparison: Comparison) -> tuple[str, ...]:
    if comparison.mean_error <= COARSE_ERROR:
        return ()
    steps = [
        f"{output.name}: {output.scale:.3g}"
        for output in comparison.outputs
        if output.scale is not None
    ]
    note = (
        f"outputs differ from Keras's by {comparison.mean_error:.2g} of their size in "
        "the mean"
    )
    if steps:
        note += f"; the steps of int8 are {', '.join(steps)}"
    explain = comparison.explain
    where = explain(comparison.mean_error) if explain is not None else ""
    return (f"{note}. {where}".rstrip(". "),)


def _silent(error: OutputError) -> tuple[str, ...]:
    if error.largest is None or error.largest > SILENT or not error.entries:
        return ()
    nearly = f", but for {error.largest:.1e}" if error.largest else ""
    note = f"{error.name} is 0 on every example{nearly}"
    return (f"{note}: is the network trained?",)


def _nan(error: OutputError) -> tuple[str, ...]:
    if not error.nan_entries:
        return ()
    which = listed(error.nan_entries)
    return (f"{which} of {error.name} {_verb(which)} NaN on every example",)


def _narrow(error: OutputError, tensor: TensorReport) -> tuple[str, ...]:
    if not error.narrow_entries or tensor.scale is None:
        return ()
    assert error.narrow_span is not None  # There are entries.
    count = sum(last - first + 1 for first, last in error.narrow_entries)
    whole = count == error.entries
    if (tensor.scale, tensor.zero_point) == FIXED_STEP:
        # A class that no example shows is 0 in all of them, and none the worse.
        if not whole:
            return ()
        remedy = "let the model return what goes into the softmax or sigmoid"
    elif whole:
        remedy = (
            "let the model return them without what they have in common, such as a "
            "large constant"
        )
    else:
        remedy = "make them outputs of their own"
    few = "less than one int8 step"
    if error.narrow_span >= tensor.scale:
        few = f"less than {FEW_STEPS} int8 steps"
    which = "all entries" if whole else listed(error.narrow_entries)
    if error.entries == 1:
        which = "the values"
    spans = "spans" if which.startswith("entry") else "span"
    return (f"{which} of {error.name} {spans} {few} ({tensor.scale:.3g}): {remedy}",)


def _coarse_entry(error: OutputError) -> tuple[str, ...]:
    if error.worst_error is None or error.worst_error <= COARSE_ENTRY_ERROR:
        return ()
    assert error.worst_entry is not None  # It has an error.
    if any(first <= error.worst_entry <= last for first, last in error.narrow_entries):
        return ()  # See above.
    return (
        f"entry {error.worst_entry} of {error.name} differs from Keras's by "
        f"{error.worst_error:.2g} of its spread in the mean",
    )


def _verb(which: str) -> str:
    return "is" if which.startswith("entry") else "are"
