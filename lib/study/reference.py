"""Published figures to put beside the study's own: `data/reference/published.csv`, one checkpoint lineage at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.files.lineages import GIVEN, OWN, one_lineage
from lib.runtime.disk import ROOT
from lib.runtime.parameters import closest
from lib.study.evaluation import accuracies

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
        lineage: "task-vectors" or "lora-16" (the paper's), "hugging-face", "unstated"; see data/reference/README.md.
        model: "ViT-B/32" or "ViT-L/14", "Flan-T5-base" or "Flan-T5-large".
        experiment: "eight tasks", "unseen tasks A", "unseen tasks B" or "robustness".
        path: the table.

    Returns:
        Rows (lineage, model, experiment, corruption, method, task, score, source); scores in percent.

    Raises:
        ValueError: for a name that the table does not have, by itself or together with the names before it; says what
            it has.
    """
    chosen, before = pd.read_csv(path), ""
    for column, name in (("lineage", lineage), ("model", model), ("experiment", experiment)):
        known = tuple(chosen[column].unique())
        if name not in known:
            near = closest(str(name), known)
            raise ValueError(f"no published scores of {column} '{name}'{before}{near}; known: {', '.join(known)}")
        chosen, before = chosen[chosen[column] == name], f"{before or ' for'} {column} '{name}'"
    return chosen.reset_index(drop=True)


def model_like(name: str) -> str:
    """The published model to compare a profile's model with: its own scores where there are any, else ViT-B/32's."""
    return {"ViT-L-14": "ViT-L/14", "ViT-L-14-quickgelu": "ViT-L/14"}.get(name, "ViT-B/32")


def standing_in(sets: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """The study's tasks in the place of data sets of the paper.

    Args:
        sets: the paper's data sets, keys of `PLACES`.
        tasks: the study's tasks.

    Returns:
        For each set itself if it is a task, else its counterpart; for a set with neither the last task that is still
        free. Fewer than asked for if there are no more tasks.
    """
    found = {name: next((task for task in (name, *PLACES[name]) if task in tasks), None) for name in sets}
    free = [task for task in tasks if task not in found.values()]
    places = (found[name] or (free.pop() if free else None) for name in sets)
    return tuple(task for task in places if task)


def beside_published(
    results: pd.DataFrame, *, lineage: str = "", model: str = "ViT-B/32", path: Path = PUBLISHED
) -> pd.DataFrame:
    """The methods that the study and the paper share, each as a share of its own experts' accuracy.

    Accuracies on other images from another model say little beside each other; what a method keeps of its experts does.

    Args:
        results: rows (method, task, split, seed, accuracy) of one or more seeds, see `evaluation.gather`.
        lineage: of the published checkpoints; by default that of the results' experts, of own ones "task-vectors".
        model: theirs.
        path: the published table.

    Returns:
        Rows (method, seed, here, published, lineage, model), in the published order: mean held-out accuracy divided by
        the experts' mean, and the published mean divided by the published experts', both in percent. A method without
        a score here or there is left out, and so are the experts themselves; so of "given" experts no row is left.

    Raises:
        ValueError: if no experts are published on that lineage, an unknown one is asked for, or the results are from
            published experts of another.
    """
    columns, here = ["method", "seed", "here", "published"], one_lineage(results)
    if GIVEN in (here, lineage):
        return pd.DataFrame(columns=[*columns, "lineage", "model"]).astype({"here": float, "published": float})
    lineage = lineage or ("task-vectors" if here == OWN else here)
    if here not in (OWN, lineage):
        raise ValueError(f"the results are from experts of lineage '{here}', not '{lineage}': compare with their own")
    there = published(lineage=lineage, model=model, experiment="eight tasks", path=path)
    single = accuracies(there[~there["task"].str.startswith("mean")])
    whole = there[there["task"] == "mean"].set_index("method")["score"]
    if single["task"].nunique() < there["task"].nunique() - 1:  # the printed mean counts a rho in
        whole = single.groupby("method", sort=False)["score"].mean().reindex(whole.index).dropna()
    there = whole
    if "Experts" not in there:
        raise ValueError(f"no published experts of lineage '{lineage}', {model}: a share of them cannot be taken")
    held_out = accuracies(results[results["split"] == "test"])
    by_seed = held_out.groupby(["method", "seed"])["accuracy"].mean().unstack("seed")
    kept = 100 * by_seed / by_seed.loc["Experts"]
    rows = [
        {"method": method, "seed": seed, "here": here, "published": 100 * score / there["Experts"]}
        for method, score in there.items()
        if method in kept.index and method != "Experts"
        for seed, here in kept.loc[method].dropna().items()
    ]
    return pd.DataFrame(rows, columns=columns).assign(lineage=lineage, model=model)
