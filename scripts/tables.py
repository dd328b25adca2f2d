"""The tables of README and docs, made from the committed ones: a function for each `<!-- table: NAME -->`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.figures.bases import KINDS
from lib.study.evaluation import TABLES as SAVED
from lib.study.evaluation import accuracies, gather, methods_by_tasks, plus_minus
from lib.study.needs import ALONE
from lib.study.tables import all_seeds, load_seeds, seed_folders
from lib.vision.registry import REGISTRY

SHORT = (
    "Zero-shot", "Task Arithmetic", "TSV-M (tuned)", "RegMean++", "FeatCal", "Concrete Task Arithmetic",
    "AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)", "AdaMerging (layer-wise), IM",
    "Concrete AdaMerging (layer-wise), IM", "Experts",
)  # fmt: skip
REAL_LEFT_OUT = ("DARE", "RegMean", "Iso-CTS", "WUDI-Merging", "Consensus Task Arithmetic", "Model Breadcrumbs",
    "Model Stock", "Task Arithmetic (tuned)")  # fmt: skip
LANGUAGE = (
    "Zero-shot", "Weight averaging", "Task Arithmetic", "Ties-Merging", "TSV-M (tuned)", "RegMean", "FeatCal",
    "Concrete Task Arithmetic", "AdaMerging (task-wise)", "AdaMerging (layer-wise)", "Concrete AdaMerging (task-wise)",
    "Concrete AdaMerging (layer-wise)", "AdaMerging (layer-wise), IM", "Concrete AdaMerging (layer-wise), IM",
    "AdaMerging (layer-wise), experts", "Concrete AdaMerging (layer-wise), experts",
    "AdaMerging (layer-wise) on TSV-M, experts", "Concrete AdaMerging (layer-wise) on TSV-M, experts", "Experts",
)  # fmt: skip


def markdown(table: pd.DataFrame, first: str = "method") -> str:
    """A table of text as Markdown: the index on the left, the columns right-aligned."""
    rows = [[first, *map(str, table.columns)], ["---"] + ["---:"] * table.shape[1]]
    rows += [[str(name), *map(str, row)] for name, *row in table.itertuples()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def title(task: str) -> str:
    """A task as a table's head names it: an official set by its title."""
    return REGISTRY[task].title if task in REGISTRY else task.replace("_", " ")


def mean_of(scores: pd.DataFrame, by: str | Sequence[str] = "method") -> pd.Series:
    """Mean over tasks (not of rho) in percent, bold, with the standard deviation over seeds where there are several."""
    keys = [by] if isinstance(by, str) else list(by)
    by_seed = 100 * accuracies(scores).groupby([*keys, "seed"], sort=False)["accuracy"].mean()
    text = plus_minus(by_seed.to_frame("mean").groupby(level=keys, sort=False))["mean"]
    return text.str.replace(r"^([\d.]+)", r"**\1**", regex=True)


def by_task(scores: pd.DataFrame, methods: Sequence[str], extra: str = "") -> str:
    """Held-out percentages of methods by tasks, with their mean; `extra` is one more column, "adapted on" or a name."""
    scores = scores[scores["method"].isin(methods)]
    held_out = scores[scores["split"] == "test"]
    table = methods_by_tasks(scores).drop(columns="mean").map("{:.1f}".format)
    table = table.rename(columns=title).assign(mean=mean_of(held_out))
    if extra == "adapted on":
        table[extra] = methods_by_tasks(scores, "adaptation")["mean"].map("{:.1f}".format)
    elif extra:
        table[extra] = (100 * held_out.groupby("method")[extra].mean()).map("{:.1f}".format)
    return markdown(table.loc[[name for name in methods if name in table.index]])


def scores_of(root: Path, profile: str) -> pd.DataFrame:
    """Every method's scores of all committed seeds of a profile."""
    tables = load_seeds(seed_folders(root / "data" / "results" / profile, *SAVED), *SAVED)
    scores = gather(tables)  # which leaves the share of invalid answers out
    rows = pd.concat([table for own in tables.values() for table in own.values()], ignore_index=True)
    if "invalid" in rows:
        keys = ["method", "task", "split", "seed"]
        named = rows.replace({"method": {"pre-trained": "Zero-shot"}})
        own = named["method"] == named["task"]
        named = pd.concat([named[~own], named[own].assign(method="Experts")]).drop_duplicates(keys)
        scores = scores.merge(named[[*keys, "invalid"]], on=keys, how="left")
    return scores


def vision(root: Path, methods: Sequence[str] = ()) -> str:
    """The drawn tasks, full budgets: every method, or some."""
    scores = scores_of(root, "tiny-full")
    names = [name for name in scores["method"].unique() if name not in ("Zero-shot", "Experts")]
    return by_task(scores, methods or ["Zero-shot", *names, "Experts"], "adapted on")


def saved(root: Path, name: str) -> pd.DataFrame:
    """A table of all committed seeds of the drawn tasks, full budgets."""
    return all_seeds(seed_folders(root / "data" / "results" / "tiny-full", name), name)


def has(root: Path, name: str) -> bool:
    """Whether some committed seed of the drawn tasks has a table."""
    return bool(seed_folders(root / "data" / "results" / "tiny-full", name))


def per_task(root: Path) -> str:
    """Methods of notebooks 03 and 09 that keep something of each task: mean over tasks, and what they keep."""
    adapted, controls = saved(root, "per_task_adapted"), saved(root, "controls")
    heads = controls[controls["control"] == "Heads only"].assign(method="Heads only, nothing merged", keeps="a head")
    masks = saved(root, "per_task") if has(root, "per_task") else adapted[:0]
    parts = [masks[masks["split"] == "test"], adapted[adapted["keeps"] != ALONE], heads]
    scores = pd.concat([part for part in parts if len(part)], ignore_index=True)
    table = pd.DataFrame({"mean": mean_of(scores), "kept of each task": scores.groupby("method")["keeps"].first()})
    return markdown(table.loc[scores["method"].unique()])


def any_base(root: Path) -> str:
    """Objectives and bases: what coefficients and a mask reach on each."""
    scores = saved(root, "any_base")
    table = mean_of(scores, ("objective", "base", "arm")).unstack("arm").fillna("")
    table = table.loc[list(dict.fromkeys(zip(scores["objective"], scores["base"], strict=True)))]
    table = table[list(scores["arm"].unique())]
    table.index = [f"{objective}, {base}" for objective, base in table.index]
    return markdown(table, "objective, base")


def few(root: Path) -> str:
    """With and without a mask, by how many coefficients there are."""
    scores = saved(root, "few_coefficients")
    table = mean_of(scores, ("coefficients", "mask")).unstack("mask")[["no mask", "mask"]]
    return markdown(table.loc[list(KINDS)], "coefficients")


def real_images(root: Path) -> str:
    """Real images, one seed."""
    scores = pd.read_csv(root / "data" / "results" / "deit-tiny" / "seed0" / "real_images.csv")
    return by_task(scores, [name for name in scores["method"].unique() if name not in REAL_LEFT_OUT])


def language(root: Path) -> str:
    """The drawn text tasks, full budgets."""
    return by_task(scores_of(root, "tiny-t5-full"), LANGUAGE, "invalid")
