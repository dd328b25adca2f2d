"""Write the notebooks' takeaways anew from the committed tables: part of `python -m scripts.report`, or `make report`.

The cells tagged "takeaways" need nothing but `study`: they read saved tables and put sentences together. So they can be
run without the notebook, and what the last of them shows be compared with what the committed tables say.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from lib.runtime.disk import ROOT
from lib.study.findings import Findings
from lib.study.profiles import FAMILIES, family_of, get_profile
from lib.study.study import Study

TAG = "takeaways"
# What may stand in a sentence as a number although no table has it: mathematics, code and links; names of notebooks,
# models, papers and sections; "95 %", which is the protocol's level.
ALLOWED = re.compile(
    r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|notebooks? \d\d(?:(?:, | and | to )\d\d)*|experiment \d|95 %|ViT-[BL]/\d+|DeiT-\w+|"
    r"\b(?:19|20)\d\d\b|T5|F1|\b[01]\b|phase [12]|[A-Z]\w*-\d+"
)


@dataclass(frozen=True)
class Told:
    """What a notebook finds by the committed tables.

    Attributes:
        cell: place among all cells of the one that shows them.
        markdown: what they say.
        findings: with all comparisons, and the sentences that are not so.
    """

    cell: int
    markdown: str
    findings: Findings


def places_of(cells: Sequence[nbformat.NotebookNode]) -> list[int]:
    """Where the takeaways are among the cells."""
    return [place for place, cell in enumerate(cells) if TAG in cell.metadata.get("tags", [])]


@contextmanager
def committed_only(root: Path) -> Iterator[Path]:
    """A checkout's root."""
    yield root


def takeaways_of(path: Path, root: Path = ROOT) -> Told | None:
    """Run the takeaways of a notebook on the committed tables; None if it has none.

    Raises:
        TypeError: if the cell does not end with what `Findings.say` gives.
    """
    cells = nbformat.read(path, as_version=4).cells
    if not (places := places_of(cells)):
        return None
    source, name = "\n".join(cells[place].source for place in places), f"{path.name}, takeaways"
    profile = get_profile(FAMILIES[family_of(path.name)].default)
    space: dict[str, object] = {"study": Study(profile, root=root)}
    *first, last = ast.parse(source).body
    exec(compile(ast.Module(first, []), name, "exec"), space)
    shown = eval(compile(ast.Expression(getattr(last, "value", last)), name, "eval"), space)
    found = [value for value in space.values() if isinstance(value, Findings)]
    if not found or not hasattr(shown, "data"):
        raise TypeError(f"{path.name}: the takeaways must end with found.say(...)")
    return Told(places[-1], shown.data, found[0])


def shown_in(cell: nbformat.NotebookNode) -> str:
    """The Markdown that a cell's committed output shows."""
    outputs = [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})]
    return "".join(outputs)


def typed_numbers(source: str) -> list[str]:
    """The numbers that a takeaways cell has in the words of its sentences, not from a table."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "say"):
            continue
        # a bullet is a text, or a tuple of a text and its condition
        for text in (bullet.elts[0] if isinstance(bullet, ast.Tuple) else bullet for bullet in node.args):
            filled = [part for part in ast.walk(text) if isinstance(part, ast.FormattedValue)]
            inside = {id(part) for braces in filled for part in ast.walk(braces)}
            for part in ast.walk(text):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in inside:
                    found += re.findall(r"\d+(?:\.\d+)?", ALLOWED.sub(" ", part.value))
    return found


def with_takeaways(path: Path, root: Path = ROOT) -> tuple[nbformat.NotebookNode, bool]:
    """A notebook with its takeaways made anew, and whether they differ from what it showed."""
    notebook, told = nbformat.read(path, as_version=4), takeaways_of(path, root)
    if told is None:
        return notebook, False
    cell = notebook.cells[told.cell]
    if shown_in(cell) == told.markdown:
        return notebook, False
    data = {"text/markdown": told.markdown, "text/plain": "<IPython.core.display.Markdown object>"}
    cell.outputs = [
        nbformat.v4.new_output("execute_result", data=data, metadata={}, execution_count=cell.execution_count)
    ]
    return notebook, True


def comparisons(root: Path = ROOT) -> pd.DataFrame:
    """All comparisons of all takeaways: rows of `compare_methods` with the columns notebook and cell."""
    rows = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if told := takeaways_of(path, root):
            rows += [
                table.reset_index().assign(notebook=path.stem, cell=told.cell) for table in told.findings.comparisons
            ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
