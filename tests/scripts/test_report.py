"""The tables of README and docs are the committed ones, and a wrong number is noticed."""

import pandas as pd
import pytest

from lib.runtime.disk import ROOT
from scripts.report import BLOCK, PAGES, TABLES, by_task, markdown, mean_of, rendered


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_the_pages_are_the_committed_ones(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert rendered(text, ROOT) == text, "run `make report`"


@pytest.mark.parametrize("page", PAGES)
def test_a_number_typed_by_hand_is_noticed(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    block = BLOCK.search(text).group()
    wrong = text.replace(block, block.replace("**5", "**6", 1))
    assert wrong != text
    assert rendered(wrong, ROOT) == text


def test_a_page_that_names_an_unknown_table():
    with pytest.raises(ValueError, match="there is no table 'visions'; known: vision, "):
        rendered("<!-- table: visions -->\n| a |\n<!-- end -->", ROOT)


def test_every_table_stands_on_a_page():
    shown = {name for page in PAGES for _, name, _ in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))}
    assert shown == set(TABLES)


def test_scores_by_hand():
    rows = [("A", "one", 0.5, 0), ("A", "two", 0.7, 0), ("A", "one", 0.6, 1), ("A", "two", 0.8, 1), ("B", "one", 1, 0)]
    scores = pd.DataFrame(rows, columns=["method", "task", "accuracy", "seed"]).assign(split="test")
    assert mean_of(scores).to_dict() == {"A": "**65.0** ± 7.1", "B": "**100.0**"}
    assert by_task(scores, ["A"]) == (
        "| method | one | two | mean |\n| --- | ---: | ---: | ---: |\n| A | 55.0 | 75.0 | **65.0** ± 7.1 |\n"
    )


def test_markdown_of_a_table():
    table = pd.DataFrame({"x": ["1.0"], "y": ["2.0"]}, index=["row"])
    assert markdown(table, "what") == "| what | x | y |\n| --- | ---: | ---: |\n| row | 1.0 | 2.0 |\n"
