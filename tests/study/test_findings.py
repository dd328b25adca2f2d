"""Takeaways: numbers from committed tables, sentences with conditions, one correction for all comparisons."""

import numpy as np
import pandas as pd
import pytest

from lib.study.findings import Findings, interval, judged, listed, mean_std
from lib.study.profiles import get_profile
from lib.study.statistics import holm
from lib.study.study import Study


@pytest.fixture
def found(tmp_path):
    """A checkout with two seeds of one committed table of the full run."""
    for seed, value in ((0, 0.5), (1, 0.75)):
        folder = tmp_path / "data" / "results" / "tiny-full" / f"seed{seed}"
        folder.mkdir(parents=True)
        pd.DataFrame({"task": ["a"], "accuracy": [value]}).to_csv(folder / "scores.csv", index=False)
    return Findings(Study(get_profile("tiny"), root=tmp_path))


def scores(gaps):
    rows = []
    for task, by_seed in enumerate(gaps):
        for seed, gap in enumerate(by_seed):
            rows.append({"method": "old", "task": f"t{task}", "seed": seed, "accuracy": 0.5})
            rows.append({"method": "new", "task": f"t{task}", "seed": seed, "accuracy": 0.5 + gap / 100})
    return pd.DataFrame(rows)


def test_tables_are_the_committed_ones_of_the_full_run_whatever_the_run(found, tmp_path):
    live = tmp_path / "runs" / "tiny" / "seed0"
    live.mkdir(parents=True)
    pd.DataFrame({"task": ["a"], "accuracy": [0.0]}).to_csv(live / "scores.csv", index=False)
    assert found.table("scores")["accuracy"].tolist() == [0.5, 0.75]
    other = Findings(Study(get_profile("clip-vit-b-32"), root=tmp_path))
    assert other.table("scores")["seed"].tolist() == [0, 1]
    told = found.say("A sentence.").data
    assert told.splitlines() == [
        "*Numbers: the committed tables (profile tiny-full, seeds 0, 1), not this run.*", "", "- A sentence.",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"no seed has a saved table nothing\.csv"):
        found.table("nothing")


def test_what_the_tables_do_not_bear_out_is_marked(found):
    told = found.say(("It rises by -1.5 points,\n        and (a -2) x-3.", False), ("It holds.", True)).data
    assert "- **These tables do not show this:** It rises by −1.5 points, and (a −2) x-3." in told
    assert told.endswith("- It holds.")
    assert len(found.false) == 1


def test_the_correction_covers_all_comparisons_of_a_notebook_in_however_many_calls(found):
    gaps = np.random.default_rng(0).normal(2, 2, (2, 8, 3))
    first = found.compare(scores(gaps[0]), [("new", "old")])
    alone = first["p"].tolist()
    second = found.compare(scores(gaps[1]), [("new", "old")])
    both = holm(np.array([*first["alone"], *second["alone"]]))
    assert [*first["p"], *second["p"]] == pytest.approx(both, abs=1e-4)
    assert first["p"].tolist() >= alone
    assert found.comparisons[0] is first


def test_comparisons_in_words(found):
    row = found.compare(scores(np.random.default_rng(1).normal(5, 1, (8, 3))), [("new", "old")]).loc["new", "old"]
    assert interval(row).startswith(f"{row['difference']:.1f} points (95 % interval ")
    assert judged(row).endswith("; 8 of 8 tasks up: higher)")
    one_seed = found.compare(scores([[1.0], [-2.0]]), [("new", "old")]).loc["new", "old"]
    assert judged(one_seed) == "-0.5 points (1 of 2 tasks up: not tested)"


def test_names_and_spreads():
    assert listed(["land_cover", "sun397", "textures"]) == "land cover, SUN397 and textures"
    assert listed([]) == "none"
    assert mean_std(pd.Series([1.0, 2.0, 3.0])) == "2.0 ± 1.0"
    assert mean_std(pd.Series([1.25])) == "1.2"
