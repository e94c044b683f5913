"""What a TFLite file contains, printed for 80 columns."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from keras_sq.core import text_tables
from keras_sq.core.text_tables import Column

Json = dict[str, Any]

WIDTH = 80

_INDENT = " " * 13


def table(contents: Json, title: str) -> str:
    """Returns sizes, interface and operators, then weights and other constants.

    Args:
        contents: What `reader.read` returns.
        title: Name of the file, such as its path.
    """
    lines = [
        f"{title}: {contents['num_bytes']:,} bytes ({contents['constant_bytes']:,} of "
        f"constants, {contents['other_bytes']:,} of the rest)"
    ]
    if (packed := contents["packed_bytes"]) is not None:
        lines += _entry("packed", f"{packed:,} bytes; other sizes are those unpacked")
    weights, graphs = contents["weights"], contents["graphs"]
    for signature in contents["signatures"]:
        key = f"{signature['key']}: " if len(contents["signatures"]) > 1 else ""
        lines += _entry("takes", key + _interfaces(signature["inputs"]))
        lines += _entry("gives", key + _interfaces(signature["outputs"]))
    if weights:
        count = sum(weight["weights"] for weight in weights)
        tensors = "1 tensor" if len(weights) == 1 else f"{len(weights)} tensors"
        bits = _bits(contents["bits_per_weight"])
        size = f"{contents['weight_bytes']:,} bytes, {bits} bits a weight"
        lines += _entry("weights", f"{count:,} in {tensors}: {size}")
    for number, graph in enumerate(graphs):
        of_graph = f"graph {number}: " if len(graphs) > 1 else ""
        total = sum(graph["operators"].values())
        counts = _counts(graph["operators"])
        lines += _entry("operators", f"{of_graph}{total}: {counts}")
    sizes = [f"{name} ({size:,} bytes)" for name, size in contents["metadata"].items()]
    if sizes:
        lines += _entry("metadata", ", ".join(sizes))
    if contents["report"] is not None:
        lines += _entry("exported", f"target '{contents['report'].get('target')}'")
    for note in contents["notes"]:
        lines += _entry("note", note)
    of_weights = {index for weight in weights for index in weight["constants"]}
    others = [
        constant
        for index, constant in enumerate(contents["constants"])
        if index not in of_weights
    ]
    return printable("\n".join([*lines, *_weights(weights), *_others(others)]))


def _weights(weights: Sequence[Json]) -> list[str]:
    columns = [
        _column("weight", weights, _name),
        _column("shape", weights, _shape),
        _column("stored as", weights, lambda x: str(x["stored_as"])),
        _column("levels", weights, lambda x: _number(x["levels"]), True),
        _column("/filter", weights, lambda x: _number(x["channel_levels"]), True),
        _column("bits", weights, lambda x: _bits(x["bits_per_weight"]), True),
        _column("bytes", weights, lambda x: _bytes(x, bool(x["shared_bytes"])), True),
    ]
    some = any(weight["shared_bytes"] for weight in weights)
    return _lines(columns, "some of it shared by several weights" if some else "")


def _others(constants: Sequence[Json]) -> list[str]:
    columns = [
        _column("other constant", constants, _name),
        _column("shape", constants, _shape),
        _column("type", constants, lambda x: str(x["type"])),
        _column("levels", constants, lambda x: _number(x["levels"]), True),
        _column("bytes", constants, lambda x: _bytes(x, x["shares_bytes"]), True),
        _column("read by", constants, _readers),
    ]
    some = any(constant["shares_bytes"] for constant in constants)
    return _lines(columns, "stored once for several tensors" if some else "")


def _column(
    title: str,
    entries: Sequence[Json],
    cell: Callable[[Json], str],
    right: bool = False,
) -> Column:
    return Column(title, [cell(entry) for entry in entries], 0, right)


def _lines(columns: list[Column], shared: str) -> list[str]:
    rows = len(columns[0].cells)
    footer = [f"* {shared}; counted once above"] if shared else []
    return ["", text_tables.layout(columns, [""] * rows, footer, WIDTH)] if rows else []


def printable(text: str) -> str:
    """Returns a text from a file without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _entry(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {label}".ljust(len(_INDENT)),
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )


def _name(entry: Json) -> str:
    """Returns a tensor's name; of one without, who reads it.

    The converter joins the names of fused operators with semicolons.
    """
    name = entry["name"].split(";")[0].replace("\n", "?")
    return str(name or f"(of {next(iter(entry['readers']), 'none')})")


def _interfaces(entries: Sequence[Json]) -> str:
    return "; ".join(map(_interface, entries)) or "nothing"


def _interface(entry: Json) -> str:
    sizes = ("any" if size is None else str(size) for size in entry["shape"])
    text = f"{entry['name']} ({', '.join(sizes)}) {entry['dtype']}"
    if entry["zero_point"] is None:
        return text
    scale = "?" if entry["scale"] is None else f"{entry['scale']:.6g}"
    return f"{text}, scale {scale}, zero point {entry['zero_point']}"


def _readers(entry: Json) -> str:
    names = list(entry["readers"])
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else ""


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{name} {count}" if count > 1 else name for name, count in ordered
    )


def _shape(entry: Json) -> str:
    return "x".join(map(str, entry["shape"])) or "()"


def _bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.2f}"


def _bytes(entry: Json, shared: bool) -> str:
    return f"{entry['num_bytes']:,}" + ("*" if shared else " ")


def _number(number: int | None) -> str:
    if number is None:
        return "?"
    return (
        text_tables.short(number).replace(" ", "") if number >= 10**5 else str(number)
    )
