"""Scores: exact match, invalid answers, ranks with ties, and what cannot be read or compared."""

import math

import pytest

from lib.language.registry import DRAWN, GLUE
from lib.language.scoring import score, spearman

MNLI, STSB = GLUE["mnli"], GLUE["stsb"]


def test_accuracy_is_the_share_of_exact_matches():
    answers = [" entailment", "neutral\n", "contradiction", "contradiction"]
    targets = ["entailment", "neutral", "contradiction", "neutral"]
    assert score(MNLI, answers, targets) == {"accuracy": 0.75, "invalid": 0.0, "n": 4}


def test_an_answer_that_is_no_label_word_is_wrong_and_counted():
    answers = ["yes", "", "Entailment", "entailment.", "neutral", "entailment entailment", "entail", "neutral"]
    assert score(MNLI, answers, ["entailment"] * 8) == {"accuracy": 0.0, "invalid": 0.75, "n": 8}


def test_label_words_of_another_task_are_invalid():
    assert score(GLUE["rte"], ["entailment", "yes"], ["yes", "yes"]) == {"accuracy": 0.5, "invalid": 0.5, "n": 2}
    assert score(DRAWN["sentiment"], ["positive"], ["positive"])["accuracy"] == 1


def test_rho_by_hand():
    targets = ["0.0", "1.0", "2.0", "3.0"]
    assert score(STSB, ["0.1", "0.2", "3.4", "5.0"], targets) == {"accuracy": 1.0, "invalid": 0.0, "n": 4}
    assert score(STSB, ["4", "3", "2", "1"], targets)["accuracy"] == -1
    # 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert score(STSB, ["0", "2", "1", "3"], targets)["accuracy"] == pytest.approx(0.8)


def test_ties_share_their_average_rank():
    # ranks 1.5 1.5 3.5 3.5 against 1 2 3 4: covariance 4 / sqrt(4 * 5)
    assert spearman([0, 0, 1, 1], [0, 1, 2, 3]) == pytest.approx(4 / math.sqrt(20))
    assert spearman([0, 0, 1, 1], [1, 1, 0, 0]) == pytest.approx(-1)


@pytest.mark.parametrize("answer", ["", "nan", "inf", "-inf", "1e999", "3.4.1", "4,2", "very similar", "yes"])
def test_an_unparsable_grade_counts_as_zero_and_as_invalid(answer):
    targets = ["0.0", "1.0", "2.0", "3.0"]
    found = score(STSB, ["1.0", "2.0", "3.0", answer], targets)
    assert found == {
        "accuracy": score(STSB, ["1.0", "2.0", "3.0", "0.0"], targets)["accuracy"],
        "invalid": 0.25,
        "n": 4,
    }
    assert found["accuracy"] == pytest.approx(-0.2)


def test_grades_outside_the_scale_still_rank():
    assert score(STSB, ["-1", "2", " 7.5 "], ["0.0", "2.0", "5.0"]) == {"accuracy": 1.0, "invalid": 0.0, "n": 3}


def test_equal_answers_rank_nothing():
    targets = ["0.0", "1.0", "2.0"]
    assert score(STSB, ["3.0"] * 3, targets) == {"accuracy": 0.0, "invalid": 0.0, "n": 3}
    assert score(STSB, ["yes", "no", ""], targets) == {"accuracy": 0.0, "invalid": 1.0, "n": 3}
    assert score(STSB, ["yes", "0.0", "-0.0"], targets)["accuracy"] == 0


def test_grades_to_compare_with_must_differ():
    with pytest.raises(ValueError, match="targets that differ; all are the same"):
        score(STSB, ["1.0", "2.0"], ["3.0", "3.0"])
    with pytest.raises(ValueError, match="targets that differ"):
        score(STSB, ["1.0"], ["3.0"])


def test_answers_and_targets_must_belong_together():
    with pytest.raises(ValueError, match="mnli: 1 answers to 2 targets; expected one per target"):
        score(MNLI, ["neutral"], ["neutral", "neutral"])
    with pytest.raises(ValueError, match="0 answers to 0 targets"):
        score(MNLI, [], [])
    with pytest.raises(ValueError, match="mnli: target 'yes' is none of the task's"):
        score(MNLI, ["neutral"], ["yes"])
    with pytest.raises(ValueError, match="stsb: target 'neutral' is none of the task's"):
        score(STSB, ["3.0"], ["neutral"])
