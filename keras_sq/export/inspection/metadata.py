"""The export report that a TFLite file carries as metadata, read with distrust."""

import json
import math
import zlib
from typing import Any

import numpy as np

from keras_sq.export.report import METADATA_NAME

Array = np.ndarray[Any, Any]

MAX_REPORT_BYTES = 2**24
"""Most that the report is unpacked to."""

MAX_REPORT_DEPTH = 32
"""How deep the report may be nested."""


def embedded_report(data: Array | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Returns the report in a file's metadata, and what is wrong with it.

    Args:
        data: The bytes of the metadata, `None` if the file has none.
    """
    if data is None:
        return None, []
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(bytes(data), MAX_REPORT_BYTES)
        if not unpacker.eof:
            raise ValueError("cut off, or too large")
        # JSON has no NaN; Python reads and writes it, and 1e999 as infinity.
        report = json.loads(
            text.decode("utf-8"),
            parse_constant=lambda _: None,
            parse_float=lambda x: float(x) if math.isfinite(float(x)) else None,
        )
        if not isinstance(report, dict):
            raise ValueError("no JSON object")
        if _depth(report) > MAX_REPORT_DEPTH:
            raise ValueError(f"nested more than {MAX_REPORT_DEPTH} levels deep")
    except (zlib.error, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        return None, [f"the metadata {METADATA_NAME!r} cannot be read ({reason})"]
    return report, []


def _depth(value: Any) -> int:
    """Returns how deep JSON is nested, of any depth."""
    depth, level = 0, [value]
    while level := [
        inner
        for entry in level
        if isinstance(entry, dict | list)
        for inner in (entry.values() if isinstance(entry, dict) else entry)
    ]:
        depth += 1
    return depth
