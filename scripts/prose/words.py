"""How the pages' sentences are put: comparisons in words, paragraphs, lists and tables as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd

from lib.study.findings import Bullet, Findings, listed
from lib.study.profiles import get_profile
from lib.study.statistics import HIGHER
from lib.study.study import Study

WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LIST = re.compile(r" (?=(?:\d+[.)]|[-+*#>])(?: |$))")  # a line that begins so would be an item of a list


def parts(base: str) -> str:
    """A base in a sentence: "the task vectors", "TSV-M's parts"."""
    return "the task vectors" if base == "Task Arithmetic" else f"{base}'s parts"


def brackets(row: pd.Series) -> str:
    """The interval of a comparison alone, as it stands in brackets: "−1.1 to 4.1"."""
    return f"{one(row['low'])} to {one(row['high'])}"


def one(value: float) -> str:
    """A number with one decimal, without a sign where it is rounded to zero."""
    return f"{value:z.1f}"


def tasks_up(row: pd.Series) -> str:
    """A comparison without its size: "6 of 8 tasks up: no difference shown"."""
    return f"{row['up']} of {row['tasks']} tasks up: {row['verdict'].partition(' (')[0]}"


def brief(row: pd.Series, *, bare: bool = False) -> str:
    """A comparison behind one that was quoted in full: "2.4 (1.1 to 3.6; 7 of 8 tasks up: higher)".

    Args:
        row: of `Findings.compare`.
        bare: without the difference and the brackets.
    """
    inside = "; ".join([brackets(row), tasks_up(row)])
    return inside if bare else f"{one(row['difference'])} ({inside})"


def on_each(rows: pd.DataFrame) -> str:
    """On which of some bases a gain is shown: "higher on all but RegMean's parts"."""
    without = [parts(base) for base in rows.index[rows["verdict"] != HIGHER]]
    if not without:
        return "higher on each"
    return "no difference shown on any" if len(without) == len(rows) else f"higher on all but {listed(without)}"


def verdicts(rows: Iterable[pd.Series]) -> list[str]:
    """The verdicts of some comparisons."""
    return [row["verdict"] for row in rows]


def said(*sentences: Bullet) -> str:
    """A paragraph of sentences, each alone or with whether the tables bear it out; one that is not is marked."""
    lines = Findings(Study(get_profile("tiny"))).say(*sentences).data.split("\n")[2:]
    return " ".join(line.removeprefix("- ") for line in lines)


def paragraph(*sentences: Bullet) -> str:
    """A paragraph as Markdown, in lines."""
    return _wrapped(said(*sentences))


def points(*items: Sequence[Bullet], numbered: bool = False) -> str:
    """A list as Markdown, in lines; an item is several sentences."""
    marks = [f"{number}. " if numbered else "- " for number in range(1, len(items) + 1)]
    return "".join(_wrapped(said(*item), mark) for mark, item in zip(marks, items, strict=True))


def _wrapped(text: str, mark: str = "") -> str:
    """Lines of at most 150 characters; no number is parted from its sign, and no line begins like an item."""
    text = _LIST.sub("\0", text.replace(" ± ", "\0±\0").replace(" %", "\0%"))
    lines = textwrap.wrap(
        text, 150, initial_indent=mark, subsequent_indent=" " * len(mark), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines).replace("\0", " ") + "\n"
