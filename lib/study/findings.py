"""What a notebook finds: sentences whose numbers come from saved tables, each with the condition that makes it true.

A notebook *pins* what must hold in every run (`Study.claim`). What it *finds* stands in its takeaways: they read the
tables of the full run, so their numbers are never typed, and a sentence that the tables do not bear out says so.
`make report` writes them anew from the committed tables, and a test fails where a notebook shows anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO

import pandas as pd
from IPython.display import Markdown

from lib.study.statistics import compare_methods
from lib.study.study import Study
from lib.vision.registry import REGISTRY

Bullet = str | tuple[str, bool]
_NEGATIVE = re.compile(r"(?<![\w)$\-])-(?=\d)")


@dataclass(frozen=True)
class Findings:
    """The tables that a notebook's takeaways are about, and the comparisons that they rest on.

    Attributes:
        study: an open study.
        comparisons: those made so far, as `lib.study.compare_methods` gives them.
        false: the sentences that the tables did not bear out.
    """

    study: Study
    comparisons: list[pd.DataFrame] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    _runs: dict[str, None] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the full run, all its seeds, as `Study.full` gives it.

        Raises:
            FileNotFoundError: if there is none; names the command that makes it.
        """
        with redirect_stdout(StringIO()) as told:
            table = self.study.full(name)
        self._runs[told.getvalue().strip().removeprefix("shown: ")] = None
        return table

    def compare(self, scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """Compare pairs of methods, see `lib.study.compare_methods`, a row per pair: `found.loc[method, against]`."""
        compared = compare_methods(scores, pairs)
        self.comparisons.append(compared)
        return compared.set_index(["method", "against"])

    def say(self, *bullets: Bullet) -> Markdown:
        """The takeaways as a list.

        Args:
            bullets: a sentence or more in Markdown each, alone or with whether the tables bear it out.

        Returns:
            What the notebook shows: the run that the numbers are of, and the list. A sentence that is not borne out
            is marked.
        """
        lines = []
        for bullet in bullets:
            text, holds = (bullet, True) if isinstance(bullet, str) else bullet
            text = " ".join(_NEGATIVE.sub("−", text).split())
            if not holds:
                self.false.append(text)
            lines.append(f"- {text}" if holds else f"- **These tables do not show this:** {text}")
        shorter = "; this run's budgets are too short to show them" if self.study.profile.full else ""
        return Markdown("\n".join([f"*Numbers: {'; '.join(self._runs)}{shorter}.*", "", *lines]))


def interval(row: pd.Series) -> str:
    """A comparison in words: "2.4 points (95 % interval 1.1 to 3.6)"; of one seed or one task without interval."""
    told = f"{row['difference']:.1f} points"
    return told if pd.isna(row["low"]) else f"{told} (95 % interval {row['low']:.1f} to {row['high']:.1f})"


def judged(row: pd.Series) -> str:
    """The same with tasks and verdict: "2.4 points (95 % interval 1.1 to 3.6; 7 of 8 tasks up: higher)"."""
    tasks = f"{row['up']} of {row['tasks']} tasks up: {row['verdict']}"
    told = interval(row)
    return f"{told[:-1]}; {tasks})" if told.endswith(")") else f"{told} ({tasks})"


def mean_std(by_seed: pd.Series) -> str:
    """Values of several seeds as "mean ± standard deviation", one decimal; of one seed its value."""
    return f"{by_seed.mean():.1f}" + (f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else "")


def listed(names: Iterable[str]) -> str:
    """Names of tasks or methods in a sentence: "scenes, aerial and land cover"; "none" of none."""
    titles = (REGISTRY[name].title if name in REGISTRY else name.replace("_", " ") for name in names)
    *others, last = list(titles) or ["none"]
    return f"{', '.join(others)} and {last}" if others else last
