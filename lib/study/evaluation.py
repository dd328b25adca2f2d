"""Scores as tidy tables: one row per method, task and split."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from lib.files.lineages import one_lineage, tagged
from lib.language.registry import GRADED

COLUMNS = ("method", "task", "split", "seed", "accuracy", "loss", "n")
# The saved tables that hold the methods' scores, and the beginnings of the names of methods that learn something at
# test time, so that their scores depend on the budget.
TABLES = ("cross_evaluation", "fusion", "concrete_task_arithmetic", "adaptation", "concrete_adamerging")
ADAPTIVE = ("Concrete", "AdaMerging")


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a mean may be taken of: without graded tasks, whose Spearman's rho is no accuracy.

    A table of graded tasks alone stays as it is.
    """
    graded = table["task"].isin(GRADED)
    return table if graded.all() else table[~graded]


def methods_by_tasks(table: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Percentages, one row per method (in order of appearance), one column per task and their mean, one decimal.

    A graded task has its column, with rho times 100, and no part in the mean.

    Raises:
        ValueError: as everything below that compares methods, if the table mixes experts of several lineages.
    """
    one_lineage(table)
    chosen = table[table["split"] == split]
    wide = chosen.pivot_table(index="method", columns="task", values="accuracy", sort=False) * 100
    return wide.assign(mean=wide[_counted(wide)].mean(axis=1)).round(1)


def _counted(wide: pd.DataFrame) -> list[str]:
    """The columns, one per task, that a mean is taken of."""
    return list(accuracies(pd.DataFrame({"task": wide.columns}))["task"])


def gather(tables: Mapping[int, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Put the tables of several seeds into one, with the methods named as in the results.

    Args:
        tables: seed -> name of a saved table -> the table: `TABLES`; those that are not there are left out.

    Returns:
        Rows (method, task, split, seed, accuracy, loss, n); of a method in two tables the first one's, and no row of
        what is no method of its own: the experts on other tasks, and controls. If the experts are published ones, also
        the column `lineage`.

    Raises:
        ValueError: if the tables are of experts of several lineages.
    """
    lineage = one_lineage(*(table for by_name in tables.values() for table in by_name.values()))
    parts = []
    for by_name in tables.values():
        cross = by_name[TABLES[0]]
        rows = cross[cross["method"] == "pre-trained"].assign(method="Zero-shot")
        for name in TABLES[1:]:
            table = by_name.get(name, cross[:0])
            known = table["method"].isin(rows["method"]) | table["method"].str.endswith("(control)")
            rows = pd.concat([rows, table[~known]])
        parts += [rows, cross[cross["method"] == cross["task"]].assign(method="Experts")]
    return tagged(pd.concat(parts, ignore_index=True)[list(COLUMNS)], lineage)


def main_table(results: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks: held-out percentages averaged over seeds, with three summary columns.

    Returns:
        One row per method in order of appearance; a column per task, `mean` over tasks, `std` of that mean over seeds
        (NaN with one seed), and `adapted on`, the mean on the adaptation split.
    """
    wide = methods_by_tasks(results)
    counted = accuracies(results)
    by_seed = counted[counted["split"] == "test"].groupby(["method", "seed"])["accuracy"].mean() * 100
    seen = counted[counted["split"] == "adaptation"].groupby("method")["accuracy"].mean() * 100
    return wide.assign(std=by_seed.groupby("method").std().round(2), **{"adapted on": seen.round(1)})


def plus_minus(groups: DataFrameGroupBy) -> pd.DataFrame:
    """Every group of percentages as text, "mean ± std" with one decimal; the mean alone where a group is one row."""
    spread = groups.std().map(lambda std: "" if pd.isna(std) else f" ± {std:.1f}")
    return groups.mean().map("{:.1f}".format) + spread


def with_spread(results: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Methods by tasks and their mean as text, "mean ± std" in percent over seeds (with one seed the number alone)."""
    one_lineage(results)
    by_task = results[results["split"] == split].groupby(["method", "task", "seed"], sort=False)["accuracy"].mean()
    wide = 100 * by_task.unstack("task")[list(results["task"].unique())]
    return plus_minus(wide.assign(mean=wide[_counted(wide)].mean(axis=1)).groupby("method", sort=False))


def mean_by_seed(results: pd.DataFrame) -> pd.DataFrame:
    """Mean held-out accuracy over tasks in percent, no rho among them: methods (in order of appearance) by seeds."""
    one_lineage(results)
    held_out = accuracies(results[results["split"] == "test"])
    return 100 * held_out.groupby(["method", "seed"], sort=False)["accuracy"].mean().unstack("seed").sort_index(axis=1)


def compare_with_full(
    live: pd.DataFrame, full: pd.DataFrame, *, exact: float = 0.5, adapted: float = 4.0
) -> pd.DataFrame:
    """Compare one seed of a short run with the full run, method by method, on mean held-out accuracy.

    What is not learned at test time does not depend on the budget, so it must agree with the *same seed* of the full
    run. What is learned had fewer steps, so it must come near the *mean* of the full run. A seed that the full run
    does not have has experts of its own: all its methods are compared with the mean.

    Args:
        live: rows (method, task, split, seed, accuracy) of one seed.
        full: the same of all seeds of the full run.
        exact: tolerance in points against the same seed.
        adapted: tolerance in points against the mean.

    Returns:
        A row per method of both runs: live and full accuracy in percent, std of the full run over seeds, difference,
        against what ("same seed" or "mean"), tolerance, and whether it is within.

    Raises:
        ValueError: if `live` holds more than one seed, or the runs are on experts of different lineages.
    """
    one_lineage(live, full)
    here, there = mean_by_seed(live), mean_by_seed(full)
    if here.shape[1] != 1:
        raise ValueError(f"the live run must be one seed, its table has seeds {', '.join(map(str, here.columns))}")
    seed, rows = here.columns[0], {}
    for method in (name for name in here.index if name in there.index):
        same = seed in there.columns and not method.startswith(ADAPTIVE)
        scores = {"live": here.loc[method, seed], "full": there.loc[method].mean(), "std": there.loc[method].std()}
        difference = scores["live"] - (there.loc[method, seed] if same else scores["full"])
        limit = exact if same else adapted
        rows[method] = scores | {
            "difference": difference,
            "against": "same seed" if same else "mean",
            "tolerance": limit,
            "within": abs(difference) <= limit,
        }
    return pd.DataFrame(rows).T.infer_objects().round({"live": 1, "full": 1, "std": 2, "difference": 2})
