"""How two methods are compared: one protocol for every notebook (docs/statistics.md).

A claim about a method generalises over **tasks**; seeds draw experts and adaptation anew; test images are a sample
inside their task, so their sampling error is part of what differs from task to task. With d_ts the difference in task t
and seed s, tasks and seeds are crossed random effects, d_ts = mu + a_t + b_s + e_ts.

- Interval: tasks and seeds are drawn with replacement, independently (the pigeonhole bootstrap, Owen 2007,
  https://arxiv.org/abs/0712.1111); its percentiles are stretched as a t-interval's are, since few tasks and seeds make
  them too narrow (Hesterberg 2015, https://arxiv.org/abs/1411.5279).
- p: a t-test of mu = 0 with the same variance, (MS_tasks + MS_seeds) / (T S), and Satterthwaite's degrees of freedom.
  It counts e_ts twice and so errs on the side of no verdict. Where seeds matter most, two or three of them make these
  degrees of freedom too many, so p is never below that of the seeds' means alone. Holm's correction covers all
  comparisons of one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from lib.files.lineages import one_lineage
from lib.runtime.rng import seed_of
from lib.study.evaluation import accuracies

LEVEL = 0.05  # of false verdicts, over all comparisons of one call together
DRAWS = 20_000  # so that the ends of an interval are certain to about a tenth of a point
HIGHER, LOWER, NOT_SHOWN = "higher", "lower", "no difference shown"
NOT_TESTED = "not tested (one seed or one task)"


def compare_methods(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Compare pairs of methods on the held-out scores of the same tasks and seeds.

    Args:
        scores: rows (method, task, seed, accuracy); where there is a column `split`, those of "test" count.
            Graded tasks do not: rho is no accuracy.
        pairs: a method and what it is compared with.

    Returns:
        A row per pair, in points (percent): method, against, `difference`, the 95 % interval from `low` to `high`, in
        how many tasks the mean over seeds is `up` and `down`, `p` by Holm, `verdict`, tasks and seeds. One seed or one
        task has neither interval nor p.

    Raises:
        ValueError: naming a method without scores, or a pair that shares no seed in which all its tasks were scored.
    """
    table = compared(scores, pairs)
    judge([table])
    numbers = ["difference", "low", "high"]
    columns = ["method", "against", *numbers, "up", "down", "p", "verdict", "tasks", "seeds"]
    return table.round(dict.fromkeys(numbers, 2))[columns]


def compared(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The same without `p` and `verdict`: the p of each comparison `alone`, for `judge` to correct."""
    one_lineage(scores)
    held_out = accuracies(scores[scores["split"] == "test"] if "split" in scores else scores)
    wide = 100 * held_out.pivot_table(index=["method", "seed"], columns="task", values="accuracy")
    known, rows = list(held_out["method"].unique()), []
    for method, against in pairs:
        if missing := [name for name in (method, against) if name not in known]:
            raise ValueError(f"no scores of method '{missing[0]}'; there are those of {', '.join(known)}")
        gaps = (wide.loc[method] - wide.loc[against]).dropna(how="all").dropna(axis=1)
        if gaps.empty:
            raise ValueError(f"'{method}' and '{against}' share no seed with the same tasks: run both on one")
        means = gaps.mean()
        rows.append(
            {"method": method, "against": against, **difference_of(gaps.to_numpy().T)}
            | {"up": int((means > 0).sum()), "down": int((means < 0).sum())}
        )
    return pd.DataFrame(rows).rename(columns={"p": "alone"})


def judge(tables: Sequence[pd.DataFrame]) -> None:
    """Give comparisons their `p` and `verdict`, in place: Holm's correction covers all rows of all tables.

    Args:
        tables: as `compared` gives them, with the p of each comparison `alone`.
    """
    corrected = holm(np.concatenate([table["alone"].to_numpy() for table in tables]))
    ends = np.cumsum([len(table) for table in tables])
    for table, p in zip(tables, np.split(corrected, ends[:-1]), strict=True):
        table["p"] = p.round(4)
        table["verdict"] = [verdict(*row) for row in zip(table["difference"], p, strict=True)]


def difference_of(gaps: np.ndarray) -> dict[str, float | int]:
    """Mean difference with its 95 % interval and the p of one comparison alone.

    Args:
        gaps: differences [T, S], a row per task, a column per seed.

    Returns:
        difference, low, high, p, tasks, seeds; the middle three NaN for one task or one seed.
    """
    tasks, seeds = gaps.shape
    mean = float(gaps.mean())
    told = {"difference": mean, "low": np.nan, "high": np.nan, "p": np.nan, "tasks": tasks, "seeds": seeds}
    if min(tasks, seeds) < 2:
        return told
    parts = np.array([gaps.mean(1).var(ddof=1) / tasks, gaps.mean(0).var(ddof=1) / seeds])
    variance = parts.sum()
    if variance == 0:  # the same difference everywhere: nothing varies
        return told | {"low": mean, "high": mean, "p": float(mean == 0)}
    freedom = variance**2 / (parts**2 / (tasks - 1, seeds - 1)).sum()
    some_tasks, some_seeds = _resampled(tasks, seeds)
    means = ((some_tasks @ gaps) * some_seeds).sum(1)
    stretch = stats.t.isf(LEVEL / 2, freedom) / stats.norm.isf(LEVEL / 2)
    low, high = mean + stretch * (np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2)) - mean)
    p = 2 * stats.t.sf(abs(mean) / variance**0.5, freedom)
    if parts[1] > 0:
        p = max(p, 2 * stats.t.sf(abs(mean) / parts[1] ** 0.5, seeds - 1))
    return told | {"low": float(low), "high": float(high), "p": float(p)}


@cache
def _resampled(tasks: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of every task [draws, T] and of every seed [draws, S] in samples drawn with replacement."""
    generator = np.random.default_rng(seed_of("bootstrap", tasks, seeds))
    return tuple(generator.multinomial(count, np.full(count, 1 / count), DRAWS) / count for count in (tasks, seeds))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down correction of p-values [n]; NaN stays NaN and is not counted."""
    corrected = np.full(len(p), np.nan)
    order = [place for place in np.argsort(p) if not np.isnan(p[place])]
    steps = [(len(order) - rank) * p[place] for rank, place in enumerate(order)]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if steps else []
    return corrected


def verdict(difference: float, p: float) -> str:
    """What a comparison shows: "higher", "lower", "no difference shown", or "not tested (one seed or one task)"."""
    if np.isnan(p):
        return NOT_TESTED
    if p >= LEVEL:
        return NOT_SHOWN
    return HIGHER if difference > 0 else LOWER
