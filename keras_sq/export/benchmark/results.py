"""What was measured, as data and as a table."""

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from keras_sq.export.benchmark.processes import FileProcess

Json = dict[str, Any]


def entries(measured: Sequence[FileProcess]) -> list[Json]:
    """Returns the results of each file, in a form that JSON has.

    Args:
        measured: The processes of the files; ratios are to the first one.
    """
    if not measured:
        return []
    first = {mode: _median(times) for mode, times in measured[0].times.items()}
    results = []
    for process in measured:
        modes = {
            mode: {
                "runs": len(times),
                "cpu_ms": spread([cpu for cpu, _ in times]),
                "wall_ms": spread([wall for _, wall in times]),
                "ratio": _median(times) / first[mode] if first[mode] else None,
            }
            for mode, times in process.times.items()
        }
        entry = {"path": process.path, "num_bytes": os.path.getsize(process.path)}
        # The Python interface of no runtime has the times of its operators.
        results.append(entry | process.loaded | {"modes": modes, "operators": None})
    return results


def _median(times: Sequence[tuple[int, int]]) -> float:
    return statistics.median(cpu for cpu, _ in times)


def spread(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Returns the median, quartiles and minimum of times, in milliseconds."""
    values = [value / 1e6 for value in nanoseconds]
    low = median = high = values[0]
    if len(values) > 1:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "min": min(values)}


def table(results: Sequence[Json], threads: int) -> str:
    """Returns the results as text.

    Args:
        results: As of `entries`.
        threads: Number of threads of the runtime.
    """
    runtimes = ", ".join(dict.fromkeys(entry["runtime"] for entry in results))
    rows = [["file", "bytes", "load ms", "peak MB"]]
    for entry in results:
        peak = entry["peak_bytes"]
        memory = "unknown" if peak is None else f"{peak / 1e6:.1f}"
        load = f"{entry['load_ms']['wall']:.1f}"
        rows.append([entry["path"], f"{entry['num_bytes']:,}", load, memory])
    parts = [f"{runtimes}, {platform.machine()}, threads: {threads}", _aligned(rows)]
    for mode in results[0]["modes"]:
        rows = [[mode, "runs", "CPU ms", "quartiles", "wall ms", "ratio"]]
        for entry in results:
            result = entry["modes"][mode]
            cpu, ratio = result["cpu_ms"], result["ratio"]
            rows.append(
                [
                    entry["path"],
                    str(result["runs"]),
                    f"{cpu['median']:.3f}",
                    f"{cpu['low']:.3f} to {cpu['high']:.3f}",
                    f"{result['wall_ms']['median']:.3f}",
                    "unknown" if ratio is None else f"{ratio:.3f}",
                ]
            )
        parts.append(_aligned(rows))
    parts.append("Times of operators: not given by this runtime.")
    return "\n\n".join(parts)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text: the first column to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
