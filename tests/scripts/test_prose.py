"""How the pages' sentences are put, and how methods are chosen for them."""

import numpy as np
import pandas as pd

from lib.runtime.disk import ROOT
from scripts.prose.evidence import Evidence, best, gap_closed, mean, reached, seeds, using
from scripts.prose.words import brief, on_each, one, paragraph, parts, points, said
from scripts.takeaways import committed_only

ROW = pd.Series(
    {"difference": 2.4, "low": -0.04, "high": 3.6, "up": 7, "tasks": 8, "verdict": "no difference shown"}, dtype=object
)


def scores(**methods):
    """Scores of two tasks and two seeds, a mean for each method."""
    rows = [
        (method, task, "test", seed, value + shift)
        for method, value in methods.items()
        for seed in (0, 1)
        for task, shift in (("a", -0.1), ("b", 0.1))
    ]
    return pd.DataFrame(rows, columns=["method", "task", "split", "seed", "accuracy"]).replace("Zero", "Zero-shot")


def test_comparisons_in_words():
    assert brief(ROW) == "2.4 (0.0 to 3.6; 7 of 8 tasks up: no difference shown)"
    assert brief(ROW, bare=True) == "0.0 to 3.6; 7 of 8 tasks up: no difference shown"
    assert one(-0.04) == "0.0"
    assert parts("Task Arithmetic") == "the task vectors" and parts("TSV-M") == "TSV-M's parts"


def test_on_which_bases_a_gain_is_shown():
    verdicts = pd.DataFrame({"verdict": ["higher", "higher", "higher"]}, index=["Task Arithmetic", "TSV-M", "RegMean"])
    assert on_each(verdicts) == "higher on each"
    assert on_each(verdicts.replace("higher", "lower")) == "no difference shown on any"
    verdicts.loc["RegMean"] = "no difference shown"
    assert on_each(verdicts) == "higher on all but RegMean's parts"


def test_a_sentence_that_does_not_hold_is_marked_where_it_stands():
    told = said("One.", ("Two is -2.", False), ("Three.", True))
    assert told == "One. **These tables do not show this:** Two is −2. Three."


def test_lines_never_part_a_number_from_its_sign_and_never_begin_like_a_list():
    for length in range(110, 151):
        told = paragraph(
            f"{'x' * length} 12.5 ± 0.1 % of 8. Then - and 3) and more words, so that a line ends somewhere."
        )
        lines = told.splitlines()
        assert max(map(len, lines)) <= 150
        assert not [line for line in lines if line.split()[0] in ("±", "%", "8.", "-", "3)", "0.1")]
        assert not [line for line in lines[:-1] if line.endswith("±")]


def test_lists():
    assert points(["A.", ("B.", True)], ["C."]) == "- A. B.\n- C.\n"
    assert points(["A."], ["C."], numbered=True) == "1. A.\n2. C.\n"
    long = points([" ".join(["word"] * 40)])
    assert long.splitlines()[1].startswith("  word")


def test_means_of_methods():
    table = scores(Zero=0.2, A=0.5, B=0.6, Experts=1.0)
    assert np.isclose(mean(table, "A"), 50) and reached(table, "B") == "60.0 ± 0.0"
    assert best(table) == "B" and best(table, ["A"]) == "A"
    assert gap_closed(table, "B") == "50 %"
    assert seeds(table) == "two seeds" and seeds(table[table["seed"] == 0]) == "one seed"


def test_methods_by_what_they_may_use():
    names = ["TSV-M", "TSV-M (tuned)", "RegMean", "AdaMerging (layer-wise), IM"]
    assert using(names, "nothing but the experts", "some labelled inputs") == ["TSV-M", "TSV-M (tuned)"]


def test_evidence_has_no_score_twice():
    with committed_only(ROOT) as folder:
        on = Evidence(folder)
        for table in (on.drawn, on.text, on.real, on.few):
            assert not table.duplicated(["method", "task", "split", "seed"]).any()
            assert set(table["split"]) == {"test"}
