"""What a notebook finds: sentences whose numbers come from saved tables, each with the condition that makes it true.

A notebook *pins* what must hold in every run (`Study.claim`). What it *finds* stands in its takeaways: they read the
committed tables of the full run, so their numbers are never typed, and a sentence that the tables do not bear out says
so. `make report` writes them anew, and a test fails where a notebook shows anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from IPython.display import Markdown

from lib.study.profiles import PROFILES
from lib.study.statistics import compared, judge
from lib.study.study import Study
from lib.study.tables import all_seeds, seed_folders
from lib.vision.registry import REGISTRY

Bullet = str | tuple[str, bool]
_NEGATIVE = re.compile(r"(?<![\w)$\-])-(?=\d)")


@dataclass(frozen=True)
class Findings:
    """The tables that a notebook's takeaways are about, and the comparisons that they rest on.

    Attributes:
        study: an open study.
        comparisons: those made so far.
        false: the sentences that the tables did not bear out.
    """

    study: Study
    comparisons: list[pd.DataFrame] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    _runs: dict[str, None] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A committed table, all its seeds: of the full run of the default profile, which the sentences are about.

        A run with other tasks or budgets shows the same ones, since its own tables need not hold what is told.

        Raises:
            FileNotFoundError: if there is none.
        """
        default = PROFILES[self.study.profile.default]
        full = default.full or default.label
        committed = seed_folders(self.study.root / "data" / "results" / full, name)
        found = committed or self.study.folders(name)  # none yet of a new table: this run's
        of = f"profile {full}" if committed else "this run"
        self._runs[f"{of}, seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"] = None
        return all_seeds(found, name)

    def compare(self, scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """Compare pairs of methods: a row per pair, `found.loc[method, against]`, as `compare_methods` has them.

        Holm's correction covers all comparisons that were made by the time a row is looked up, in one call or several.
        """
        table = compared(scores, pairs).set_index(["method", "against"])
        self.comparisons.append(table)
        judge(self.comparisons)
        return table

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
        runs = "; ".join(self._runs)
        return Markdown("\n".join([f"*Numbers: the committed tables ({runs}), not this run.*", "", *lines]))


def interval(row: pd.Series) -> str:
    """A comparison in words: "2.4 points (95 % interval 1.1 to 3.6)"; of one seed or one task without interval."""
    told = f"{row['difference']:z.1f} points"
    return told if pd.isna(row["low"]) else f"{told} (95 % interval {row['low']:z.1f} to {row['high']:z.1f})"


def judged(row: pd.Series) -> str:
    """The same with tasks and verdict: "2.4 points (95 % interval 1.1 to 3.6; 7 of 8 tasks up: higher)"."""
    tasks = f"{row['up']} of {row['tasks']} tasks up: {row['verdict'].partition(' (')[0]}"
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
