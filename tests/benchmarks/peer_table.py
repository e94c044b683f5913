"""The table of `peers.py`: results of all seeds side by side, in Markdown.

Results are what peer_scripts/harness.py writes. A number that is not there is a dash,
and the list under the table says why.
"""

import os
import pathlib
import platform
import statistics

COLUMNS = (
    "peer",
    "method",
    "accuracy, %",
    "of the file, %",
    "CPU time of a step / float",
    "file, bytes",
)
NONE = "–"


def report(results, description, states):
    """Returns all that is to be told.

    Args:
        results: `{(peer, method): results of all seeds}`, in the order of the rows.
        description: Of the work.
        states: Of the machine, before and after.
    """
    parts = [description, table(results), notes(results), failures(results)]
    versions = sorted(
        {
            f"{name} {version}"
            for rows in results.values()
            for row in rows
            for name, version in row.get("versions", {}).items()
        },
        key=str.lower,
    )
    parts.append("Versions: " + ", ".join(versions) + ".")
    parts.append(f"Machine before: {states[0]}; after: {states[1]}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(results):
    """Returns the rows: mean and, of more than one seed, standard deviation."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for (peer, method), rows in results.items():
        lines.append(
            (
                peer,
                method,
                percent(values(rows, "accuracy")),
                percent(values(rows, "file_accuracy")),
                steps(rows),
                sizes(values(rows, "file_bytes")),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def values(rows, key):
    """Returns what is there of one number."""
    return [row[key] for row in rows if row.get(key) is not None]


def percent(fractions):
    """Returns mean and spread of fractions, as percent."""
    if not fractions:
        return NONE
    text = f"{100 * statistics.mean(fractions):.1f}"
    if len(fractions) > 1:
        text += f" ± {100 * statistics.stdev(fractions):.1f}"
    return text


def steps(rows):
    """Returns the medians over seeds of median and quartiles."""
    found = values(rows, "step_cpu")
    if not found:
        trains = any(row.get("trains", True) for row in rows)
        return NONE if trains else "no training"
    low, middle, high = (statistics.median(x) for x in zip(*found, strict=True))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def sizes(found):
    """Returns the mean number of bytes."""
    return f"{statistics.mean(found):,.0f}" if found else NONE


def collected(results, told):
    """Returns lines of what is told, each once with the seeds that it is true of."""
    lines = {}
    for (peer, method), rows in results.items():
        for row in rows:
            for text in told(row):
                key = f"- {peer}, {method}: {text}"
                lines[key] = lines.get(key, 0) + 1
    return [
        key + (f" ({count} seeds)" if count > 1 else "") for key, count in lines.items()
    ]


def notes(results):
    """Returns the list of what should be known."""
    lines = collected(results, lambda row: [row["notes"]] if row.get("notes") else [])
    return "\n".join(["Notes:", "", *lines]) if lines else ""


def failures(results):
    """Returns the list of what could not be done, with the messages."""
    lines = collected(
        results, lambda row: [f"{k}: {v}" for k, v in row["could_not"].items()]
    )
    title = "What could not be done:" if lines else "All of it could be done."
    return "\n".join([title, "", *lines] if lines else [title])


def state():
    """Returns what the machine is and how busy."""
    load = "unknown"
    if hasattr(os, "getloadavg"):
        load = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    return (
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {load}"
    )


def processor():
    """Returns the name of the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()
