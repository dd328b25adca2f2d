"""What the notebooks find is what the committed tables say; a number typed by hand is noticed, wherever it stands."""

import shutil

import nbformat
import pandas as pd
import pytest

from lib.runtime.disk import ROOT
from scripts.takeaways import places_of, shown_in, takeaways_of, typed_numbers, with_takeaways

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ONE = ROOT / "notebooks" / "05_test_time_adaptation.ipynb"


def source_of(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cells[place].source for place in places_of(cells))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_takeaways_are_what_the_committed_tables_say(path):
    told = takeaways_of(path)
    assert told is not None, "a notebook without takeaways"
    assert told.findings.false == [], "reword what the tables do not show"
    cell = nbformat.read(path, as_version=4).cells[told.cell]
    assert shown_in(cell) == told.markdown, "run `make report`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_number_of_the_takeaways_is_typed(path):
    assert typed_numbers(source_of(path)) == []


def test_a_wrong_number_in_the_output_is_noticed_and_written_anew(tmp_path):
    notebook = nbformat.read(ONE, as_version=4)
    cell = notebook.cells[places_of(notebook.cells)[-1]]
    right = shown_in(cell)
    assert "70.1 ± " in right or "%" in right
    cell.outputs[0].data["text/markdown"] = right.replace("± 0", "± 1", 1)
    nbformat.write(notebook, tmp_path / ONE.name)
    renewed, differs = with_takeaways(tmp_path / ONE.name)
    assert differs
    assert shown_in(renewed.cells[places_of(renewed.cells)[-1]]) == right


def test_a_number_typed_into_a_sentence_is_noticed():
    source = source_of(ONE)
    assert typed_numbers(source.replace("gain most", "gain 17 points")) == ["17"]
    assert typed_numbers('found.say("(notebook 08), $0.5$, `x=3` and [this](a1.md) of 2023 at 95 %: phase 1")') == []


def test_a_sentence_that_the_tables_do_not_bear_out_says_so(tmp_path):
    """The same notebook on tables in which layer-wise adaptation gains nothing."""
    shutil.copytree(ROOT / "data" / "results" / "tiny-full", tmp_path / "data" / "results" / "tiny-full")
    for path in tmp_path.rglob("adaptation.csv"):
        table = pd.read_csv(path)
        table.loc[table["method"] == "AdaMerging (layer-wise)", "accuracy"] = 0.5
        table.to_csv(path, index=False)
    told = takeaways_of(ONE, tmp_path)
    assert len(told.findings.false) == 1
    assert "**These tables do not show this:** Layer-wise coefficients can say" in told.markdown
    assert "50.0 ± 0.0 %" in told.markdown
