"""What a TFLite file holds, printed for 80 columns."""

import textwrap
from collections.abc import Sequence

from keras_sq.export.inspection.contents import Constant, Contents, Interface, Weight

WIDTH = 80
MIN_NAME = 14
"""Names are not shortened below this; wide rows then go past `WIDTH`."""

_INDENT = " " * 13


def table(contents: Contents, title: str) -> str:
    """Returns sizes, interface and operators, then weights and other constants.

    Args:
        contents: Of the file.
        title: What it is called, such as its path.
    """
    lines = [
        f"{printable(title)}: {contents.num_bytes:,} bytes "
        f"({contents.constant_bytes:,} of constants, {contents.other_bytes:,} of the "
        "rest)"
    ]
    for signature in contents.signatures:
        key = f"{signature.key}: " if len(contents.signatures) > 1 else ""
        lines += _entry("takes", key + _interfaces(signature.inputs))
        lines += _entry("gives", key + _interfaces(signature.outputs))
    if contents.weights:
        weights = sum(weight.weights for weight in contents.weights)
        lines += _entry(
            "weights",
            f"{weights:,} in {_count(len(contents.weights), 'tensor')}: "
            f"{contents.weight_bytes:,} bytes, {_bits(contents.bits_per_weight)} bits "
            "a weight",
        )
    for number, graph in enumerate(contents.graphs):
        of_graph = f"graph {number}: " if len(contents.graphs) > 1 else ""
        total = sum(graph.operators.values())
        lines += _entry("operators", f"{of_graph}{total}: {_counts(graph.operators)}")
    sizes = (f"{name} ({size:,} bytes)" for name, size in contents.metadata.items())
    if contents.metadata:
        lines += _entry("metadata", ", ".join(sizes))
    if contents.report is not None:
        lines += _entry("exported", f"target '{contents.report.get('target')}'")
    for note in contents.notes:
        lines += _entry("note", note)
    lines += _weights(contents.weights)
    of_weights = {index for weight in contents.weights for index in weight.constants}
    lines += _others(
        [
            constant
            for index, constant in enumerate(contents.constants)
            if index not in of_weights
        ]
    )
    return "\n".join(lines)


def _weights(weights: Sequence[Weight]) -> list[str]:
    if not weights:
        return []
    header = ("weight", "shape", "stored as", "levels", "/filter", "bits", "bytes")
    rows = [
        (
            _name(weight),
            _shape(weight.shape),
            weight.stored_as,
            _number(weight.levels),
            _number(weight.channel_levels),
            _bits(weight.bits_per_weight),
            f"{weight.num_bytes:,}" + ("*" if weight.shared_bytes else " "),
        )
        for weight in weights
    ]
    lines = ["", *_aligned([header, *rows], left=(0, 1, 2))]
    if any(weight.shared_bytes for weight in weights):
        lines.append("  * some of it shared by several weights; counted once above")
    return lines


def _others(constants: Sequence[Constant]) -> list[str]:
    if not constants:
        return []
    header = ("other constant", "shape", "type", "levels", "bits", "bytes", "read by")
    rows = [
        (
            _name(constant),
            _shape(constant.shape),
            constant.type,
            _number(constant.levels),
            _bits(constant.bits_per_value),
            f"{constant.num_bytes:,}" + ("*" if constant.shares_bytes else " "),
            _counts(constant.readers),
        )
        for constant in constants
    ]
    lines = ["", *_aligned([header, *rows], left=(0, 1, 2, 6))]
    if any(constant.shares_bytes for constant in constants):
        lines.append("  * stored once for several tensors; counted once above")
    return lines


def _aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Returns rows as lines of columns; the names in the first get the rest."""
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows) for column in columns]
    if columns[-1] in left:
        widths[-1] = min(widths[-1], 22)  # Of the readers, the first tell enough.
    room = WIDTH - 2 - sum(width + 2 for width in widths[1:])
    names = short_names([row[0] for row in rows[1:]], max(room, MIN_NAME))
    widths[0] = max(map(len, (rows[0][0], *names)))
    lines = []
    for row, name in zip(rows, (rows[0][0], *names), strict=True):
        cells = [
            cell.ljust(widths[column]) if column in left else cell.rjust(widths[column])
            for column, cell in enumerate((name, *row[1:]))
        ]
        if len(cells[-1]) > widths[-1]:
            cells[-1] = cells[-1][: widths[-1] - 1] + "…"
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Returns names cut to a width, so that most can still be told apart.

    Converters name a tensor by the path in the graph, and fused ones by several
    with semicolons between.

    Args:
        names: Of tensors.
        width: In characters.
    """
    short = [printable(name).split(";")[0] for name in names]
    while max(map(len, short), default=0) > width:
        heads = {name.split("/")[0] for name in short}
        if len(heads) > 1 or not all("/" in name.strip("/") for name in short):
            break
        short = [name.partition("/")[2] for name in short]
    return [shorten(name, width) for name in short]


def shorten(text: str, width: int) -> str:
    """Returns a text with its middle left out, if it is too long."""
    if len(text) <= width:
        return text
    tail = width // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def printable(text: str) -> str:
    """Returns a text from a file without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _entry(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=f"  {label}".ljust(len(_INDENT)),
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )


def _name(tensor: Weight | Constant) -> str:
    """Returns a tensor's name; of one without, who reads it."""
    return tensor.name or f"(of {next(iter(tensor.readers), 'none')})"


def _interfaces(entries: Sequence[Interface]) -> str:
    return "; ".join(map(_interface, entries)) or "nothing"


def _interface(entry: Interface) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in entry.shape)
    text = f"{entry.name} ({sizes}) {entry.dtype}"
    if entry.zero_point is None:
        return text
    scale = "?" if entry.scale is None else f"{entry.scale:.6g}"
    return f"{text}, scale {scale}, zero point {entry.zero_point}"


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(
        printable(name) + (f" {count}" if count > 1 else "") for name, count in ordered
    )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.2f}"


def _number(number: int | None) -> str:
    if number is None:
        return "?"
    for limit, unit in ((10**7, "M"), (10**5, "k")):
        if number >= limit:
            return f"{number // (10**6 if unit == 'M' else 10**3)}{unit}"
    return str(number)
