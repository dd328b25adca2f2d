"""Copy the outputs of executed notebooks back into `notebooks/`, ready to commit: `python -m lib.study.publish`.

Only outputs and execution counts travel. The text and the code of a committed notebook stay as they are, and what
papermill adds (the injected parameters, timings, paths of this machine) does not come along.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

from lib.runtime.disk import ROOT
from lib.study.profiles import family_of, get_profile

Notebook = nbformat.NotebookNode


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
        cell.outputs = run.outputs
        cell.execution_count = count if cell.source.strip() else None  # as if run from top to bottom
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    source.metadata.pop("papermill", None)
    return source


def publish(executed_folder: Path, notebook_folder: Path, family: str = "vision") -> list[Path]:
    """Give every notebook of a family the outputs of its executed copy; nothing is written unless all fit.

    Returns:
        The notebooks that were written.

    Raises:
        FileNotFoundError: if `executed_folder` holds no copy of one of the notebooks.
        ValueError: if a notebook's code has changed since its run.
    """
    ready = {}
    for path in sorted(path for path in notebook_folder.glob("*.ipynb") if family_of(path.name) == family):
        copy = executed_folder / path.name
        if not copy.is_file():
            raise FileNotFoundError(f"{copy} does not exist; run `make study` first")
        try:
            ready[path] = with_outputs(nbformat.read(path, as_version=4), nbformat.read(copy, as_version=4))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; run `make study` again") from error
    for path, notebook in ready.items():
        nbformat.write(notebook, path)
    return list(ready)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.study.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        family = get_profile(given.profile.split("+")[0]).family  # changed parameters: tiny+mask_steps=50
        written = publish(ROOT / "runs" / given.profile / f"seed{given.seed}", ROOT / "notebooks", family)
    except (FileNotFoundError, ValueError) as error:
        print(f"Nothing published: {error}", file=sys.stderr)
        return 1
    print(f"Outputs of {given.profile}, seed {given.seed}, are now in: " + ", ".join(path.name for path in written))
    return 0


def _code(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
    sys.exit(main())
