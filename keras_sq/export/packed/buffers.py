"""Where the constants of a TFLite file lie."""

from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

from keras_sq.export.packed.segments import Constant
from keras_sq.export.tflite.flatbuffer import IDENTIFIER

_DATA_FIELD = 4  # Where the first field of a buffer is looked up.


def constants(content: bytes) -> list[Constant]:
    """Returns the constants in the order of their places; they do not overlap.

    Args:
        content: The bytes of a TFLite file.

    Raises:
        ValueError: If it is no TFLite file, or a damaged one. The message begins with
            "it".
    """
    if not content:
        raise ValueError("it is empty")
    if content[4:8] != IDENTIFIER:
        raise ValueError("it is no TFLite file (there is no 'TFL3' at its start)")
    try:
        model = schema.Model.GetRootAsModel(content, 0)
        entries = sorted(_entries(model), key=lambda entry: (entry.start, -entry.size))
    except Exception as error:  # Whatever wrong offsets lead to.
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"it is damaged or cut off ({reason})") from error
    separate: list[Constant] = []
    end = 0
    for entry in entries:
        if entry.start + entry.size > len(content):
            raise ValueError("it is damaged or cut off (a constant ends beyond it)")
        if entry.start >= end and entry.size:
            separate.append(entry)
            end = entry.start + entry.size
    return separate


def _entries(model: Any) -> list[Constant]:
    shapes: dict[int, tuple[int, ...]] = {}
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            shape = tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))
            shapes.setdefault(tensor.Buffer(), shape)
    entries = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if size := buffer.DataLength():
            field = buffer._tab.Offset(_DATA_FIELD)
            start = int(buffer._tab.Vector(field))
        elif buffer.Offset() > 1:  # Of a file above 2 GB: behind the flatbuffer.
            start, size = buffer.Offset(), buffer.Size()
        else:
            continue
        entries.append(Constant(start, int(size), shapes.get(index, ())))
    return entries
