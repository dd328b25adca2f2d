"""The protocol of comparisons: what it computes, how often it errs, what it can find."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.study.statistics import HIGHER, LOWER, NOT_SHOWN, NOT_TESTED, compare_methods, difference_of, holm, verdict

TRIALS = 1000


def drawn(trials, tasks, seeds, between_tasks, between_seeds, rest, seed=0):
    """Differences [trials, T, S] without an effect: tasks and seeds are crossed and normal."""
    rng = np.random.default_rng(seed)
    return (
        between_tasks * rng.standard_normal((trials, tasks, 1))
        + between_seeds * rng.standard_normal((trials, 1, seeds))
        + rest * rng.standard_normal((trials, tasks, seeds))
    )


def table(gaps, method="new", base="old"):
    """Scores of two methods that differ by the given points [T, S]."""
    rows = []
    for task, by_seed in enumerate(gaps):
        for seed, gap in enumerate(by_seed):
            for name, accuracy in ((base, 0.5 + 0.01 * task), (method, 0.5 + 0.01 * task + gap / 100)):
                rows.append({"method": name, "task": f"t{task}", "seed": seed, "split": "test", "accuracy": accuracy})
    return pd.DataFrame(rows)


# tasks, seeds; standard deviations of tasks, of seeds, and of the rest
WORLDS = [(8, 3, 1, 0.25, 0.5), (8, 5, 1, 0.5, 0.5), (8, 3, 0, 1, 0.5), (8, 3, 0, 0, 1)]


@pytest.mark.parametrize("sizes", WORLDS)
def test_without_an_effect_at_most_five_percent_of_verdicts_are_false(sizes):
    found = [difference_of(gaps) for gaps in drawn(TRIALS, *sizes)]
    allowed = stats.binom.isf(0.01, TRIALS, 0.05)  # five percent, and the luck of a thousand trials
    assert sum(one["p"] < 0.05 for one in found) <= allowed
    assert sum(not one["low"] <= 0 <= one["high"] for one in found) <= 2 * allowed, "the interval covers about as often"


@pytest.mark.parametrize(("seeds", "power"), [(3, 0.8), (5, 0.9)])
def test_an_effect_of_one_and_a_half_deviations_between_tasks_is_found(seeds, power):
    """The power that docs/statistics.md states, for eight tasks."""
    found = [difference_of(gaps + 1.5) for gaps in drawn(TRIALS // 2, 8, seeds, 1.0, 0.25, 0.5, seed=1)]
    assert np.mean([one["p"] < 0.05 for one in found]) >= power


def test_the_p_is_that_of_the_t_test_over_tasks_where_seeds_do_not_matter():
    by_task = np.array([1.0, 2.0, 0.5, -0.5, 1.5])
    gaps = np.repeat(by_task[:, None], 4, 1)  # every seed the same
    assert difference_of(gaps)["p"] == pytest.approx(stats.ttest_1samp(by_task, 0).pvalue)
    found = difference_of(gaps)
    low, high = stats.t.interval(0.95, 4, by_task.mean(), stats.sem(by_task))
    assert abs(found["low"] - low) < 0.5 and abs(found["high"] - high) < 0.5, "the bootstrap is near the t-interval"


def test_gains_in_two_of_eight_tasks_are_no_finding_though_every_seed_agrees():
    """The old rule, |mean| above its standard deviation over seeds, called this one."""
    gaps = np.array([12.9, 12.9, 2.4, 2.5, -3.8, -0.9, -0.5, -0.8])[:, None] + np.array([0.3, -0.3, 0.0])
    (row,) = compare_methods(table(gaps), [("new", "old")]).itertuples()
    assert gaps.mean() > gaps.mean(0).std(ddof=1)
    assert (row.up, row.down, row.verdict) == (4, 4, NOT_SHOWN)
    assert row.low < 0 < row.high


def test_a_gain_everywhere_is_higher_and_a_loss_lower():
    gaps = 2 + drawn(1, 8, 3, 0.3, 0.1, 0.2)[0]
    both = pd.concat([table(gaps), table(-gaps, "worse", "old").query("method == 'worse'")])
    found = compare_methods(both, [("new", "old"), ("worse", "old")])
    assert found["verdict"].tolist() == [HIGHER, LOWER]
    assert found["difference"].tolist() == pytest.approx([gaps.mean(), -gaps.mean()], abs=0.006)
    assert (found["low"] < found["difference"]).all() and (found["difference"] < found["high"]).all()
    assert compare_methods(both, [("new", "old")]).equals(compare_methods(both, [("new", "old")])), "nothing is random"


def test_holm_is_the_step_down_correction():
    assert holm(np.array([0.01, 0.04, 0.03, np.nan])) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_many_comparisons_need_more_evidence():
    gaps = 1 + drawn(1, 8, 3, 1.0, 0.1, 0.3, seed=3)[0]
    alone = compare_methods(table(gaps), [("new", "old")])
    many = compare_methods(table(gaps), [("new", "old")] * 20)
    assert many["p"].iloc[0] == pytest.approx(min(1, 20 * alone["p"].iloc[0]), abs=0.002)


def test_one_seed_or_one_task_is_not_tested():
    for gaps in (np.ones((8, 1)), np.ones((1, 3))):
        (row,) = compare_methods(table(gaps), [("new", "old")]).itertuples()
        assert row.difference == 1.0 and np.isnan(row.low) and np.isnan(row.p)
        assert verdict(row.difference, row.p) == NOT_TESTED


def test_only_what_both_have_is_compared():
    full = table(np.ones((4, 3)))
    (row,) = compare_methods(full[(full["method"] == "old") | (full["seed"] < 2)], [("new", "old")]).itertuples()
    assert (row.tasks, row.seeds) == (4, 2)
    with pytest.raises(ValueError, match="no scores of method 'TSV-M'; there are those of old, new"):
        compare_methods(full, [("TSV-M", "old")])
    apart = full[(full["method"] == "old") == (full["seed"] == 0)]
    with pytest.raises(ValueError, match="'new' and 'old' share no seed with the same tasks"):
        compare_methods(apart, [("new", "old")])
