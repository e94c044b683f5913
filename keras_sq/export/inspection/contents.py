"""What a TFLite file contains, as data: the result of inspecting it.

    contents(content) -> {
        "num_bytes": size of the file, unpacked,
        "packed_bytes": size of a packed file (`keras_sq.pack_file`), of others `None`,
        "constant_bytes": size of the constants; what several share counts once,
        "other_bytes": the rest: graphs, names, metadata, padding,
        "weight_bytes": what weights are made of, counted alike, with scales and zero
            points, which are not in "constant_bytes",
        "bits_per_weight": bits of "weight_bytes" over all weights,
        "schema_version", "description": of the file,
        "signatures": ways to call the file: {"key", "graph", "inputs", "outputs"}, the
            last two lists of {"name", "shape", "dtype", "scale", "zero_point"},
        "graphs": the main one first: {"name", "tensors": how many, "operators"},
        "constants": see `_constant_entry`,
        "weights": see `_weight_entry`,
        "metadata": name -> bytes,
        "report": what `keras_sq.export` reported,
        "notes": what could not be computed, and what is unusual,
    }

Sizes are in bytes, shapes lists with `None` for a size that is open. What is unknown is
`None`.
"""

import collections
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_sq.export.inspection.tensors import (
    InvalidFile,
    Json,
    Tensor,
    Unknown,
    item,
    text,
)
from keras_sq.export.inspection.weights import Graph, Weight
from keras_sq.export.packed import container
from keras_sq.export.tflite.flatbuffer import IDENTIFIER, TFLiteFile

Array = np.ndarray[Any, Any]

REPORT_NAME = "keras_sq.report"
"""Name of the metadata with the report; `METADATA_NAME` of `export/report.py`."""

MAX_REPORT_BYTES = 2**24


def contents(content: Any) -> Json:
    """Returns what a file contains, see above.

    Args:
        content: The bytes of the file, or a map of it; packed or not.

    Raises:
        InvalidFile: If the file is none of TFLite, or is damaged.
    """
    if not len(content):
        raise InvalidFile("it is empty")
    if container.is_packed(content):
        try:
            unpacked = container.read(bytes(content))
        except ValueError as error:
            raise InvalidFile(str(error)) from error
        if container.is_packed(unpacked):
            raise InvalidFile("it is packed twice")
        return {**contents(unpacked), "packed_bytes": len(content)}
    if content[4:8] != IDENTIFIER:
        raise InvalidFile("it is no TFLite file (there is no 'TFL3' at its start)")
    try:
        return _contents(content, TFLiteFile(content))
    except (InvalidFile, MemoryError):
        raise
    except Exception as error:  # Whatever wrong offsets and numbers lead to.
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InvalidFile(f"it is damaged or cut off ({reason})") from error


def _contents(content: Any, file: TFLiteFile) -> Json:
    model = file.model
    for buffer in model.buffers or []:
        if buffer.data is None and buffer.offset > 1:
            # Of a file above 2 GB: behind the flatbuffer.
            place = (buffer.size, buffer.offset)
            buffer.data = np.frombuffer(content, np.uint8, *place)
    graphs = [Graph(file, table) for table in model.subgraphs or []]
    if not graphs:
        raise InvalidFile("it has no graph")
    constants = [t for graph in graphs for t in graph.tensors if len(t.data)]
    uses = collections.Counter(tensor.table.buffer for tensor in constants)
    sizes = {tensor.table.buffer: len(tensor.data) for tensor in constants}
    constant_bytes = sum(sizes.values())
    if constant_bytes > len(content):
        raise InvalidFile("it is damaged: its constants overlap")
    weights = [weight for graph in graphs for weight in graph.weights.values()]
    weight_uses = collections.Counter(i for weight in weights for i in weight.buffers)
    weight_bytes = sum(sizes[index] for index in weight_uses)
    parts = {tensor for weight in weights for tensor in weight.constants}
    weight_bytes += sum(tensor.scale_bytes for tensor in parts)
    numbers = {tensor: number for number, tensor in enumerate(constants)}
    metadata = {
        text(entry.name): item(model.buffers, entry.buffer, "buffer").data
        for entry in model.metadata or []
    }
    report, notes = _report(metadata.get(REPORT_NAME))
    return {
        "num_bytes": len(content),
        "packed_bytes": None,
        "constant_bytes": constant_bytes,
        "other_bytes": len(content) - constant_bytes,
        "weight_bytes": weight_bytes,
        "bits_per_weight": _ratio(
            8 * weight_bytes, sum(w.tensor.size for w in weights)
        ),
        "schema_version": model.version,
        "description": text(model.description),
        "signatures": _signatures(model, graphs),
        "graphs": [
            {
                "name": text(graph.table.name),
                "tensors": len(graph.tensors),
                "operators": collections.Counter(op.name for op in graph.operators),
            }
            for graph in graphs
        ],
        "constants": [
            {"graph": number, **_constant_entry(tensor, uses)}
            for number, graph in enumerate(graphs)
            for tensor in graph.tensors
            if len(tensor.data)
        ],
        "weights": [
            {"graph": number, **_weight_entry(weight, weight_uses, numbers)}
            for number, graph in enumerate(graphs)
            for weight in graph.weights.values()
        ],
        "metadata": {
            name: 0 if data is None else len(data) for name, data in metadata.items()
        },
        "report": report,
        "notes": [*notes, *_notes([t for graph in graphs for t in graph.tensors])],
    }


def _constant_entry(tensor: Tensor, uses: collections.Counter[int]) -> Json:
    return {
        **_entry(tensor, tensor.stored),
        "index": tensor.index,
        "values": tensor.size,
        "num_bytes": len(tensor.data),
        "scale_bytes": tensor.scale_bytes,
        "bits_per_value": _ratio(8 * len(tensor.data), tensor.size),
        "packing": tensor.packing,
        "shares_bytes": uses[tensor.table.buffer] > 1,
    }


def _weight_entry(
    weight: Weight, uses: collections.Counter[int], numbers: dict[Tensor, int]
) -> Json:
    sizes = weight.buffers.items()
    return {
        **_entry(weight.tensor, weight.values),
        "weights": weight.tensor.size,
        "chain": [operator.name for operator in weight.chain],
        # Numbers of the constants that it is made of, the largest first.
        "constants": [numbers[tensor] for tensor in weight.constants],
        "num_bytes": weight.num_bytes,
        # As much of it as is in other weights too.
        "shared_bytes": sum(size for index, size in sizes if uses[index] > 1),
        "bits_per_weight": _ratio(8 * weight.num_bytes, weight.tensor.size),
        "stored_as": weight.stored_as,
    }


def _entry(tensor: Tensor, values: Callable[[], Array]) -> Json:
    if tensor.levels is None:  # A constant may be a weight, too.
        tensor.levels = (None, None)
        try:
            tensor.levels = count_levels(values(), tensor.axis)
        except Unknown as error:
            tensor.unknown = str(error)
    levels, channel_levels = tensor.levels
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "type": tensor.type,
        "channel_axis": tensor.axis,
        "levels": levels,
        "channel_levels": channel_levels,
        "readers": tensor.readers,
    }


def count_levels(values: Array, axis: int | None) -> tuple[int, int | None]:
    """Returns the number of different values, and the most in a channel.

    Args:
        values: Numbers of any shape and dtype.
        axis: The channels' axis; without one there is no second number.
    """
    if axis is None or not values.size:
        return len(np.unique(values)), None if axis is None else 0
    channels = [np.unique(channel) for channel in np.moveaxis(values, axis, 0)]
    return len(np.unique(np.concatenate(channels))), max(map(len, channels))


def _signatures(model: Any, graphs: list[Graph]) -> list[Json]:
    signatures = []
    for entry in model.signatureDefs or []:
        graph = item(graphs, entry.subgraphIndex, "graph")
        ends = [
            [
                (text(x.name), item(graph.tensors, x.tensorIndex, "tensor"))
                for x in end or []
            ]
            for end in (entry.inputs, entry.outputs)
        ]
        signatures.append((text(entry.signatureKey), entry.subgraphIndex, *ends))
    if not signatures:
        ends = [[(t.name, t) for t in x] for x in (graphs[0].inputs, graphs[0].outputs)]
        signatures = [("", 0, *ends)]
    return [
        {
            "key": key,
            "graph": number,
            "inputs": [tensor.interface(name) for name, tensor in inputs],
            "outputs": [tensor.interface(name) for name, tensor in outputs],
        }
        for key, number, inputs, outputs in signatures
    ]


def _notes(tensors: list[Tensor]) -> list[str]:
    notes = []
    external = sum(bool(tensor.table.externalBuffer) for tensor in tensors)
    if external:
        notes.append(f"the values of {external} tensors are in another file")
    unknown: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.unknown:
            unknown.setdefault(tensor.unknown, []).append(tensor.name)
    for reason, names in unknown.items():
        example = next((f", such as '{name}'" for name in names if name), "")
        notes.append(f"levels unknown of {len(names)} tensors ({reason}){example}")
    return notes


def _report(data: Array | None) -> tuple[Json | None, list[str]]:
    """Returns the export report in a file's metadata, and what is wrong with it."""
    if data is None:
        return None, []
    try:
        unpacker = zlib.decompressobj()
        report = json.loads(unpacker.decompress(bytes(data), MAX_REPORT_BYTES))
        if not unpacker.eof or not isinstance(report, dict):
            raise ValueError("no JSON object, or too large")
    except (zlib.error, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        return None, [f"the metadata {REPORT_NAME!r} cannot be read ({reason})"]
    return report, []


def _ratio(amount: int, count: int) -> float | None:
    return amount / count if count else None
