r"""Merges results of the runner into the repository and writes the page.

    python tests/benchmarks/accelerator/report.py --results=OUT
    python tests/benchmarks/accelerator/report.py          # The page only.

Reads what the runner left in the folder (its `--out`, or its `--bundle`, which stays as
it is), checks all of it, and only then writes `results.csv`, `steps.csv` and
`docs/results/paper_scale.md`. A file that is damaged or foreign is named in one line,
and nothing is written. Rehearsals (another scale than 1) are left out.
"""

import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bundle
import result_files
import result_page
from absl import app, flags
from result_files import Measurement, Run

_RESULTS = flags.DEFINE_multi_string(
    "results", [], "Folder of the runner's, its --out or --bundle; may be repeated."
)


def merge_folders(folders: Sequence[pathlib.Path]) -> list[str]:
    """Merges result folders into the CSV files and writes the page.

    Args:
        folders: What the runner got as `--out` or `--bundle`.

    Returns:
        Lines that say what was done.

    Raises:
        ResultError: If a file is damaged or foreign; nothing was written.
        OSError: If a file cannot be read or written.
    """
    runs = result_files.read_csv(result_files.RESULTS, Run)
    steps = result_files.read_csv(result_files.STEPS, Measurement)
    said = []
    for folder in folders:
        new, rehearsals, measured = _read(folder)
        runs = result_files.merge(runs, new)
        steps = result_files.merge(steps, measured)
        finished = sum(run.finished for run in new)
        said.append(
            f"{folder}: {finished} finished and {len(new) - finished} unfinished runs, "
            f"{rehearsals} rehearsals left out, {len(measured)} step times"
        )
    results = result_files.csv_text(runs, Run)
    step_times = result_files.csv_text(steps, Measurement)
    # As it will be read, so that the page is that of the files.
    page = result_page.page_text(runs, steps)
    result_files.write_text(result_files.RESULTS, results)
    result_files.write_text(result_files.STEPS, step_times)
    result_files.write_text(result_page.PAGE, page)
    return [*said, f"wrote {result_page.PAGE}"]


def _read(folder: pathlib.Path) -> tuple[list[Run], int, list[Measurement]]:
    """Returns runs, number of rehearsals, and step times of a folder."""
    parts = list(folder.glob("bundle.tar.*"))
    if parts:
        with tempfile.TemporaryDirectory() as name:
            copies, out = pathlib.Path(name) / "parts", pathlib.Path(name) / "out"
            copies.mkdir()
            for path in parts:
                shutil.copyfile(path, copies / path.name)
            try:
                bundle.unpack(copies, out, pathlib.Path(name) / "state")
            except ValueError as error:
                text = str(error).replace(str(copies), str(folder))
                raise result_files.ResultError(text) from error
            return _read(out)
    if not (folder / "runs").is_dir() and not (folder / "steps.json").is_file():
        raise result_files.ResultError(
            f"{folder} must be a folder that the runner wrote to: it has neither runs/ "
            "nor steps.json nor a bundle."
        )
    return *result_files.read_runs(folder), result_files.read_measurements(folder)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if len(argv) > 1:
        print(f"report: error: unknown argument {argv[1]!r}", file=sys.stderr)
        return 2
    try:
        said = merge_folders([pathlib.Path(folder) for folder in _RESULTS.value])
    except (result_files.ResultError, OSError) as error:
        print(f"report: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
