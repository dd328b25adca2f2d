"""Make a run's tables the committed ones, and its outputs those of `notebooks/`: `python -m scripts.publish`.

Only outputs and execution counts travel. The text and the code of a committed notebook stay as they are, and what
papermill adds (the injected parameters, timings, paths of this machine) does not come along. Nothing is written unless
everything fits.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

from lib.runtime.disk import ROOT, atomic_path, written_below
from lib.study.inputs import TOLD, without_data
from lib.study.profiles import family_of, get_profile

Notebook = nbformat.NotebookNode
# A line of `lib.runtime.progress` that is not a loop's last: it says how long the rest will take, or is its first step.
UNFINISHED = re.compile(r"^.+  (?!(\d+)/\1  )\d+/\d+  \d+ %  .*\n?", re.MULTILINE)
TABLES = ("*.csv", "*.png", "about.json")


def with_outputs(source: Notebook, executed: Notebook) -> Notebook:
    """`source` with the outputs of `executed`, which must be a run of the same code.

    Raises:
        ValueError: if the code cells of the two differ (apart from the parameters that papermill injects).
    """
    runs = [cell for cell in _code(executed) if "injected-parameters" not in cell.metadata.get("tags", [])]
    cells = _code(source)
    if [cell.source for cell in cells] != [cell.source for cell in runs]:
        raise ValueError("the notebook's code has changed since that run")
    for count, (cell, run) in enumerate(zip(cells, runs, strict=True), start=1):
        cell.outputs = [output for output in map(finished, run.outputs) if output.get("text") != ""]
        cell.execution_count = count if cell.source.strip() else None  # as if run from top to bottom
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    source.metadata.pop("papermill", None)
    return source


def finished(output: Notebook) -> Notebook:
    """An output without the lines that told how far a loop was; the one that tells its end stays."""
    if output.output_type == "stream":
        output.text = UNFINISHED.sub("", output.text)
    return output


def _code(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def notebooks_with_outputs(executed: Path, notebooks: Path, family: str = "vision") -> dict[Path, Notebook]:
    """Every notebook of a family with the outputs of its executed copy, by its path; nothing is written.

    Raises:
        FileNotFoundError: if `executed` holds no copy of one of the notebooks.
        ValueError: if a notebook's code has changed since its run.
    """
    ready = {}
    for path in sorted(path for path in notebooks.glob("*.ipynb") if family_of(path.name) == family):
        copy = executed / path.name
        if not copy.is_file():
            raise FileNotFoundError(f"{copy} does not exist; run `make study` first")
        try:
            ready[path] = with_outputs(nbformat.read(path, as_version=4), nbformat.read(copy, as_version=4))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; run `make study` again") from error
    return ready


def tables_of(run: Path, seeds: Sequence[int]) -> dict[str, Path]:
    """The files of a run's tables, by their places below the committed folder, such as seed0/fusion.csv.

    Raises:
        FileNotFoundError: if a seed has no tables.
    """
    found = {}
    for seed in seeds:
        files = [path for kind in TABLES for path in sorted((run / f"seed{seed}").glob(kind))]
        if not files:
            raise FileNotFoundError(f"{run} has no tables of seed {seed}; run `make study SEEDS={seed}` first")
        found |= {f"seed{seed}/{path.name}": path for path in files}
    return found


def run_of(root: Path, label: str) -> Path:
    """The folder of a run: of that label or, if there is none, the one run of it on data or a device of the user's.

    Raises:
        FileNotFoundError: if there is none, or more than one.
    """
    runs = written_below(root) / "runs"
    if (run := runs / label).is_dir():
        return run
    found = sorted(path for path in runs.glob("*") if without_data(path.name) == label)
    if len(found) != 1:
        several = f"runs on several data or devices: {', '.join(path.name for path in found)}; name one as the profile"
        raise FileNotFoundError(several if found else f"there is no {run}; run `make study PROFILE={label}` first")
    return found[0]


def publish(root: Path, label: str, seeds: Sequence[int]) -> tuple[list[Path], list[Path]]:
    """Copy the tables of a run to data/results and, of a family's default profile, the outputs of the first seed.

    Other profiles, and runs with changed parameters, leave the notebooks alone, which show the default one.

    Args:
        root: the checkout.
        label: the profile's name, or the name of any folder of runs.
        seeds: whose tables.

    Returns:
        The files of tables, and the notebooks, that were written.

    Raises:
        FileNotFoundError: if the run, a seed of it or the run of one of the notebooks is not there.
        ValueError: for an unknown profile, or if a notebook's code has changed since its run.
    """
    profile = get_profile(without_data(label).partition("+")[0])  # changed parameters: tiny+mask_steps=50
    run, committed = run_of(root, label), root / "data" / "results" / without_data(label)
    shown = without_data(label) == profile.default  # neither another profile nor changed parameters
    ready: Mapping[Path, Notebook] = {}
    if shown:
        ready = notebooks_with_outputs(run / f"seed{seeds[0]}", root / "notebooks", profile.family)
    tables = tables_of(run, seeds)
    for place, path in tables.items():
        with atomic_path(committed / place) as temporary:
            if path.name == "about.json":
                temporary.write_text(_without_paths(path.read_text()))
            else:
                shutil.copyfile(path, temporary)
    for path, notebook in ready.items():
        nbformat.write(notebook, path)
    return [committed / place for place in tables], list(ready)


def _without_paths(about: str) -> str:
    """`about.json` without the folder of this machine that the data were in."""
    noted = json.loads(about)
    noted.get("inputs", {}).pop(TOLD, None)
    return json.dumps(noted, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a profile, or a folder of runs such as tiny+mask_steps=50")
    parser.add_argument("--seeds", default="0", help='whose tables, such as "0 1 2"; outputs are those of the first')
    given = parser.parse_args(arguments)
    try:
        tables, notebooks = publish(ROOT, given.profile, [int(seed) for seed in given.seeds.split()])
    except (FileNotFoundError, ValueError) as error:
        print(f"Nothing published: {error}", file=sys.stderr)
        return 1
    print(f"Published {given.profile}, seeds {given.seeds}: {len(tables)} files in {tables[0].parents[1]}")
    shown = ", ".join(path.name for path in notebooks) or "of no notebook, since they show the default profile"
    print(f"Outputs: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
