"""Result tables: gathering, spread over seeds, the claimed ordering, the committed live run against the full one."""

import pandas as pd
import pytest

from lib.runtime.disk import ROOT
from lib.study.evaluation import (
    TABLES,
    compare_with_full,
    gather,
    main_table,
    mean_by_seed,
    methods_by_tasks,
    with_spread,
)
from lib.study.statistics import compare_methods
from lib.study.tables import load_seeds, seed_folders


def scores(by_method, tasks=("a", "b"), split="test"):
    """A table from method -> accuracy by seed; task "b" is 0.1 better than "a", the mean is what is given."""
    return pd.DataFrame(
        {
            "method": method,
            "task": task,
            "split": split,
            "seed": seed,
            "accuracy": value + 0.1 * number - 0.05 * (len(tasks) - 1),
            "loss": 1.0,
            "n": 10,
        }
        for method, by_seed in by_method.items()
        for seed, value in dict(enumerate(by_seed) if isinstance(by_seed, tuple) else by_seed).items()
        for number, task in enumerate(tasks)
    )


FULL = scores(
    {
        "Zero-shot": (0.5, 0.5, 0.5),
        "Task Arithmetic": (0.60, 0.62, 0.64),
        "Concrete Task Arithmetic": (0.61, 0.61, 0.67),
        "AdaMerging (layer-wise)": (0.70, 0.71, 0.72),
        "Concrete AdaMerging (layer-wise)": (0.69, 0.70, 0.70),
        "Experts": (0.9, 0.9, 0.9),
    }
)


def test_gather_takes_every_method_once_from_the_first_table_that_has_it():
    cross = scores({"pre-trained": (0.4,), "a": (0.9,), "b": (0.8,)})
    tables = {
        "cross_evaluation": cross,
        "fusion": scores({"Task Arithmetic": (0.6,), "DARE": (0.5,)}),
        "concrete_task_arithmetic": scores(
            {"Task Arithmetic": (0.1,), "Concrete Task Arithmetic": (0.65,), "Shuffled mask (control)": (0.2,)}
        ),
        "concrete_adamerging": scores({"Concrete AdaMerging (layer-wise)": (0.7,), "Hard mask (control)": (0.3,)}),
    }
    results = gather({0: tables})
    methods = list(results["method"].unique())
    assert methods == [
        "Zero-shot", "Task Arithmetic", "DARE", "Concrete Task Arithmetic", "Concrete AdaMerging (layer-wise)",
        "Experts",
    ]  # fmt: skip
    assert results.groupby(["method", "task"]).size().eq(1).all()
    mean = results.groupby("method")["accuracy"].mean()
    assert mean["Task Arithmetic"] == pytest.approx(0.6)
    assert mean["Experts"] == pytest.approx((0.9 - 0.05 + 0.8 + 0.05) / 2)  # each on its own task
    assert set(tables) < set(TABLES)


def test_spread_and_share_of_the_experts():
    printed = with_spread(FULL)
    assert printed.loc["Task Arithmetic"].to_dict() == {"a": "57.0 ± 2.0", "b": "67.0 ± 2.0", "mean": "62.0 ± 2.0"}
    assert with_spread(FULL[FULL["seed"] == 0]).loc["Task Arithmetic", "mean"] == "60.0"
    assert list(printed.index) == list(FULL["method"].unique())
    assert main_table(FULL).loc["Task Arithmetic", ["mean", "std"]].tolist() == [62.0, 2.0]


def test_a_live_run_is_held_against_the_same_seed_or_the_mean():
    live = {"Zero-shot": {1: 0.5}, "Task Arithmetic": {1: 0.624}, "Concrete Task Arithmetic": {1: 0.595},
            "Only here": {1: 0.1}}  # fmt: skip
    table = compare_with_full(scores(live), FULL)
    assert list(table.index) == ["Zero-shot", "Task Arithmetic", "Concrete Task Arithmetic"]
    assert table["within"].all()
    assert table["against"].tolist() == ["same seed", "same seed", "mean"]
    assert table["difference"].tolist() == pytest.approx([0, 0.4, -3.5])
    worse = scores(live | {"Task Arithmetic": {1: 0.626}, "Concrete Task Arithmetic": {1: 0.589}})
    assert compare_with_full(worse, FULL)["within"].tolist() == [True, False, False]
    other = compare_with_full(scores({"Task Arithmetic": {7: 0.65}}), FULL)  # a seed that the full run does not have
    assert other[["against", "tolerance", "within"]].iloc[0].tolist() == ["mean", 4.0, True]
    with pytest.raises(ValueError, match="must be one seed, its table has seeds 0, 1, 2"):
        compare_with_full(FULL, FULL)


def test_the_committed_live_seed_agrees_with_the_committed_full_run():
    """What `make study` gives in minutes must tell the same story as what `make reproduce` gives in hours."""
    results = ROOT / "data" / "results"
    full, live = (load_seeds(seed_folders(results / profile, *TABLES), *TABLES) for profile in ("tiny-full", "tiny"))
    assert set(full) >= {0, 1, 2}, "the committed full run has lost a table of a seed"
    assert 0 in live, "the committed live run has lost a table"
    here, there = gather({0: live[0]}), gather(full)
    only_in_full = {method for method in there["method"].unique() if method.endswith(", IM")}
    assert set(here["method"]) >= set(there["method"]) - only_in_full  # a newer method waits for the next full run
    assert only_in_full, "the full run compares with information maximisation"
    # The two are of two processors, so of other experts: what is tuned or optimised differs by up to 3 points.
    table = compare_with_full(here, there, exact=3.0)  # on one machine 0.5 holds
    assert table["within"].all(), f"outside the tolerance:\n{table[~table['within'].astype(bool)]}"


def test_rho_is_never_averaged_with_accuracies():
    """A graded task has its column, and no part in any mean, spread or comparison."""
    rows = [
        {"method": method, "task": task, "split": "test", "seed": seed, "accuracy": value + 0.01 * seed}
        for method, values in {
            "Task Arithmetic": {"sentiment": 0.5, "inference": 0.7, "similarity": -0.2},
            "Experts": {"sentiment": 0.9, "inference": 0.9, "similarity": 0.9},
        }.items()
        for task, value in values.items()
        for seed in (0, 1)
    ]
    scores = pd.DataFrame(rows)
    assert methods_by_tasks(scores).loc["Task Arithmetic", ["similarity", "mean"]].tolist() == [-19.5, 60.5]
    assert main_table(scores).loc["Task Arithmetic", ["mean", "std"]].tolist() == [60.5, 0.71]
    assert with_spread(scores).loc["Task Arithmetic", "mean"] == "60.5 ± 0.7"
    assert mean_by_seed(scores).loc["Task Arithmetic"].tolist() == pytest.approx([60, 61])
    (row,) = compare_methods(scores, [("Experts", "Task Arithmetic")]).itertuples()
    assert (row.difference, row.tasks, row.up) == (30, 2, 2)
    assert methods_by_tasks(scores[scores["task"] == "similarity"]).loc["Experts", "mean"] == 90.5
