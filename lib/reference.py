"""Published figures to put beside the study's own: `data/reference/published.csv`, one checkpoint lineage at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from lib.profiles import closest
from lib.study import ROOT

PUBLISHED = ROOT / "data" / "reference" / "published.csv"
# The paper's data sets in the order of its tables, and what stands in the place of each: drawn, or another real set.
PLACES = {
    "sun397": ("scenes",),
    "stanford_cars": ("vehicles",),
    "resisc45": ("aerial",),
    "eurosat": ("land_cover",),
    "svhn": ("street_digits", "cifar10"),
    "gtsrb": ("traffic_signs",),
    "mnist": ("handwritten_digits",),
    "dtd": ("textures",),
}


def published(*, lineage: str, model: str, experiment: str, path: Path = PUBLISHED) -> pd.DataFrame:
    """The published scores of one experiment, on one lineage of checkpoints, with one model.

    All three must be named: two lineages in one table would compare experts instead of methods.

    Args:
        lineage: "task-vectors" (the paper's) or "hugging-face", see `data/reference/README.md`.
        model: "ViT-B/32" or "ViT-L/14".
        experiment: "eight tasks", "unseen tasks A", "unseen tasks B" or "robustness".
        path: the table.

    Returns:
        Rows (lineage, model, experiment, corruption, method, task, score, source); scores in percent.

    Raises:
        ValueError: for a name that is not in the table, or a combination of names; says what is.
    """
    chosen = pd.read_csv(path)
    for column, name in (("lineage", lineage), ("model", model), ("experiment", experiment)):
        known = tuple(chosen[column].unique())
        if name not in known:
            where = ", ".join(repr(value) for value in (lineage, model)[: len(known) and _position(column)])
            raise ValueError(
                f"no published scores of {column} '{name}'{f' with {where}' if where else ''}{closest(name, known)}; "
                f"known: {', '.join(known)}"
            )
        chosen = chosen[chosen[column] == name]
    return chosen.reset_index(drop=True)
