"""What README and docs say of results is what the committed tables say, and a wrong or typed number is noticed."""

import re
import shutil

import pandas as pd
import pytest

from lib.runtime.disk import ROOT
from scripts.report import BLOCK, PAGES, TABLES, TEXTS, rendered
from scripts.tables import by_task, markdown, mean_of

NOT_SHOWN = "These tables do not show this"
# What looks like a measured number: a percentage, a spread, points, or anything with decimals.
MEASURED = re.compile(
    r"\d[\d.,]*\s*%|±\s*\d|\b(?:\d[\d.]*|one|two|three|four|five|six|seven|eight|nine|ten)\s+points?\b|"
    r"(?<![\w.])\d+\.\d+(?!\.?\w)"
)
# What is none: code, mathematics, links; the level of the intervals; versions, sizes of models and numbers of papers;
# the standard error that follows from the number of real images; a share of a model's weights.
ALLOWED = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$?[^$]*\$\$?|\]\([^)]*\)|95\s+%\s+interval|\b100\s+%|\b3\.1\d\b|"
    r"\d\.\d\s+million|arXiv\s+\d{4}\.\d{5}|standard\s+error\s+of\s+a\s+mean\s+is\s+about\s+one\s+point|"
    r"2\.7\s+%\s+of\s+the\s+weights",
    re.DOTALL,
)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def typed(text):
    """The measured numbers that stand outside of the blocks."""
    return MEASURED.findall(ALLOWED.sub(" ", BLOCK.sub(" ", text)))


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_the_pages_are_what_the_committed_tables_say(page):
    text = text_of(page)
    assert BLOCK.search(text)
    assert rendered(text, ROOT) == text, "run `make report`"


@pytest.mark.parametrize("page", PAGES)
def test_a_wrong_number_is_noticed_in_every_block(page):
    def next_digit(digit):
        return str((int(digit.group()) + 1) % 10)

    def spoilt(block):
        wrong, changed = re.subn(r"\d(?=\.\d)", next_digit, block.group(), count=1)
        return wrong if changed else re.sub(r"\d", next_digit, block.group(), count=1)

    text = text_of(page)
    wrong = BLOCK.sub(spoilt, text)
    for before, after in zip(BLOCK.finditer(text), BLOCK.finditer(wrong), strict=True):
        assert before.group() != after.group()
    assert rendered(wrong, ROOT) == text


def test_a_wrong_number_planted_in_a_copy_of_readme_is_caught(tmp_path):
    right, copy = text_of("README.md"), tmp_path / "README.md"
    begin, _, name, _ = BLOCK.search(right).groups()
    assert name == "findings"
    prose = right.index(begin)
    copy.write_text(right[:prose] + re.sub(r"\d\d\.\d ± \d", "99.9 ± 0", right[prose:], count=1), encoding="utf-8")
    planted = copy.read_text(encoding="utf-8")
    assert planted != right
    assert rendered(planted, ROOT) == right


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed(page):
    assert typed(text_of(page)) == []


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("The mask gains 4.1 points.", ["4.1 points"]),
        ("It gains about three points.", ["three points"]),
        ("It reaches 88 % of the experts.", ["88 %"]),
        ("It has 70 ± 0.4 there.", ["± 0"]),
        ("TSV-M has 73.4.", ["73.4"]),
        ("A 95 % interval at $0.5$, `x=0.3`, [this](a1.5.md), Python 3.11 to 3.14, 1.2 million, 100 % of it.", []),
    ],
)
def test_a_number_typed_into_a_page_is_noticed(sentence, found):
    assert [number.strip() for number in typed(f"{text_of('README.md')}\n{sentence}\n")] == found


@pytest.mark.parametrize("page", PAGES)
def test_every_sentence_is_borne_out(page):
    assert NOT_SHOWN not in text_of(page), "reword what the tables do not show"


def test_a_sentence_that_the_tables_do_not_bear_out_says_so(tmp_path):
    """README on tables in which the mask adds nothing with the experts as teachers."""
    for profile in ("tiny-full", "tiny-t5-full", "deit-tiny"):
        shutil.copytree(ROOT / "data" / "results" / profile, tmp_path / "data" / "results" / profile)
    for path in tmp_path.rglob("any_base.csv"):
        table = pd.read_csv(path)
        table.loc[table["arm"] == "mask and coefficients", "accuracy"] = 0.5
        table.to_csv(path, index=False)
    told = rendered("<!-- text: findings -->\n<!-- end -->", tmp_path)
    assert f"5. **{NOT_SHOWN}:** **With these teachers the mask pays, most" in told
    assert told.count(NOT_SHOWN) == 1


@pytest.mark.parametrize(("kind", "known"), [("table", "vision, "), ("text", "findings, ")])
def test_a_page_that_names_an_unknown_block(kind, known):
    with pytest.raises(ValueError, match=f"there is no {kind} 'visions'; known: {known}"):
        rendered(f"<!-- {kind}: visions -->\n| a |\n<!-- end -->", ROOT)


def test_every_block_stands_on_a_page():
    shown = {(kind, name) for page in PAGES for _, kind, name, _ in BLOCK.findall(text_of(page))}
    assert shown == {("table", name) for name in TABLES} | {("text", name) for name in TEXTS}


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
