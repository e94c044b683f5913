"""Examples to measure and compare on, as arrays that fit what a model takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sq.core.types import Array, Model
from keras_sq.export.examples import Examples
from keras_sq.inputs import input_data
from keras_sq.inputs.model_inputs import UNKNOWN_SIZE as UNKNOWN_SIZE
from keras_sq.inputs.model_inputs import InputSignature as InputSignature
from keras_sq.inputs.model_inputs import ModelInput as ModelInput
from keras_sq.inputs.model_inputs import input_signature as input_signature

MAX_EXAMPLES = 512
"""Representative examples that are used at most.

Evenly spaced ones of arrays, the first ones of what yields them.
"""

ARGUMENT = "representative_data"


def prepare(
    model: Model, representative_data: Any
) -> tuple[InputSignature, Examples, tuple[str, ...]]:
    """Returns the signature of a model, checked examples, and notes on them.

    Args:
        model: A built model.
        representative_data: As in `keras_sq.export`; `None` gives no examples.

    Raises:
        TypeError: If the data is of a kind that is not known, or not numbers of the
            input's kind.
        ValueError: If it does not fit the model's inputs, is empty, or holds values
            that are not finite.
    """
    signature = input_signature(model)
    if representative_data is None:
        return signature, Examples(), ()
    arrays, notes = _read(signature, representative_data)
    signature = input_signature(model, arrays)
    checked = [
        _checked(entry, array)
        for entry, array in zip(signature.inputs, arrays, strict=True)
    ]
    return signature, Examples(checked), notes


def _read(signature: InputSignature, data: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Returns at most `MAX_EXAMPLES` examples, and a note if there are more."""
    source = input_data.read(signature, data, ARGUMENT)
    if source.columns is not None:
        count = len(source.columns[0])
        _require_examples(count)
        if count <= MAX_EXAMPLES:
            return source.columns, ()
        chosen = np.linspace(0, count - 1, MAX_EXAMPLES).astype(int)
        columns = [np.asarray(column)[chosen] for column in source.columns]
        note = (
            f"used {MAX_EXAMPLES} of {count:,} representative examples, evenly spaced"
        )
        return columns, (note,)
    parts: list[list[Array]] = []
    count = 0
    more = False
    for part, _ in source.parts:
        more = count == MAX_EXAMPLES
        # A part without examples counts as one, for there may be no end of them.
        if more or len(parts) == MAX_EXAMPLES:
            break
        parts.append([np.asarray(array) for array in part])
        count += len(part[0])
        more = count > MAX_EXAMPLES
        if more:
            break
    _require_examples(count)
    columns = [
        _joined(entry, [part[index] for part in parts])[:MAX_EXAMPLES]
        for index, entry in enumerate(signature.inputs)
    ]
    note = f"used the first {MAX_EXAMPLES} representative examples; there are more"
    return columns, (note,) if more else ()


def _require_examples(count: int) -> None:
    if not count:
        raise ValueError(
            f"Argument `{ARGUMENT}` must hold the same number of examples, at least "
            "one, for every input. Received: [0]"
        )


def _joined(entry: ModelInput, arrays: Sequence[Array]) -> Array:
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"Argument `{ARGUMENT}` must hold examples of one shape for input "
            f"'{entry.name}': pad or crop them. Received: shapes "
            f"{', '.join(map(str, shapes[:4]))}"
        )
    return np.concatenate(arrays)


def _checked(entry: ModelInput, column: Any) -> Array:
    array = np.asarray(column)
    if array.dtype.name == "bfloat16":
        array = array.astype("float32")
    integers = "int" in entry.dtype
    wanted = "integers" if integers else "numbers"
    if array.dtype.kind not in ("iu" if integers else "iufb"):
        raise TypeError(
            f"Argument `{ARGUMENT}` must hold {wanted} for input '{entry.name}' (of "
            f"dtype {entry.dtype}). Received: dtype={array.dtype}"
        )
    with np.errstate(over="ignore"):
        converted: Array = array.astype(entry.dtype)
    if not np.all(np.isfinite(converted)):
        raise ValueError(
            f"Argument `{ARGUMENT}` must be finite. Received NaN or infinite values "
            f"for input '{entry.name}'."
        )
    if integers and not np.array_equal(converted, array):
        raise ValueError(
            f"Argument `{ARGUMENT}` must fit into {entry.dtype} for input "
            f"'{entry.name}'. Received: values from {array.min()} to {array.max()}"
        )
    return converted
