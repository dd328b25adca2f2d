"""Write the tables of README and docs, and the notebooks' takeaways, from the saved tables: `make report`.

A block between `<!-- table: NAME -->` and `<!-- end -->` holds the table that `TABLES[NAME]` makes. Nobody types its
numbers; a test fails when a block is not what the committed tables say.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd

from lib.figures.bases import KINDS
from lib.runtime.disk import ROOT, atomic_path
from lib.study.evaluation import TABLES as SAVED
from lib.study.evaluation import gather, methods_by_tasks, plus_minus
from lib.study.tables import all_seeds, load_seeds, seed_folders
from lib.vision.registry import REGISTRY
from scripts.takeaways import with_takeaways

PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- table: ([a-z- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

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
    """Mean over tasks in percent, bold, with the standard deviation over seeds where there are several."""
    keys = [by] if isinstance(by, str) else list(by)
    by_seed = 100 * scores.groupby([*keys, "seed"], sort=False)["accuracy"].mean()
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


def per_task(root: Path) -> str:
    """Methods of notebook 09 that keep something of each task: mean over tasks, and what they keep."""
    adapted, controls = saved(root, "per_task_adapted"), saved(root, "controls")
    heads = controls[controls["control"] == "Heads only"].assign(method="Heads only, nothing merged", keeps="a head")
    scores = pd.concat([adapted[adapted["keeps"] != "nothing"], heads], ignore_index=True)
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


TABLES: dict[str, Callable[[Path], str]] = {
    "vision": vision,
    "vision in short": partial(vision, methods=SHORT),
    "something per task": per_task,
    "any base": any_base,
    "few coefficients": few,
    "real images": real_images,
    "language": language,
}


def rendered(page: str, root: Path) -> str:
    """A page with its blocks made anew from the committed tables.

    Raises:
        ValueError: for a block that names no table.
    """

    def table(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise ValueError(f"there is no table '{name}'; known: {', '.join(TABLES)}")
        return begin + TABLES[name](root) + end

    return BLOCK.sub(table, page)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__.splitlines()[0]).parse_args(arguments)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook, differs = with_takeaways(path)
        if differs:
            nbformat.write(notebook, path)
            print(f"{path.name}: takeaways written")
    for name in PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        if (new := rendered(page, ROOT)) != page:
            with atomic_path(ROOT / name) as temporary:
                temporary.write_text(new, encoding="utf-8")
        print(f"{name}: {len(BLOCK.findall(page))} tables, {'written' if new != page else 'as they were'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
