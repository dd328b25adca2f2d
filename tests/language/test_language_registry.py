"""The text tasks as data: prompts letter by letter, label words, counterparts, names."""

import math
from string import Formatter

import pytest

from lib.language.registry import DRAWN, GLUE, text_task
from lib.study.profiles import DRAWN_TEXT_TASKS, GLUE_TASKS

EVERY = [*GLUE.values(), *DRAWN.values()]


def test_the_tasks_are_those_of_the_profiles_in_their_order():
    assert list(GLUE) == GLUE_TASKS.split()
    assert list(DRAWN) == DRAWN_TEXT_TASKS.split()
    assert all(text_task(task.name) is task for task in EVERY)


def test_a_drawn_task_has_the_form_of_its_counterpart():
    for drawn, real in zip(DRAWN.values(), GLUE.values(), strict=True):
        assert (drawn.columns, drawn.words, drawn.metric) == (real.columns, real.words, real.metric)
        assert not drawn.glue and real.glue == real.name
        assert len(drawn.prompt) < len(real.prompt) / 2


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_a_prompt_names_each_column_once(task):
    fields = [field for _, field, _, _ in Formatter().parse(task.prompt) if field is not None]
    assert sorted(fields) == sorted(task.columns)


def test_prompts_of_drawn_tasks_differ_before_the_text():
    assert len({task.prompt.split("{")[0] for task in DRAWN.values()}) == 8


def test_a_prompt_is_the_authors_letter_by_letter():
    row = {"premise": "It {rains}.", "hypothesis": "It's wet."}
    assert GLUE["mnli"].prompt.format(**row) == (
        "Does the premise: 'It {rains}.' logically imply, contradict, or is neutral to the hypothesis: 'It's wet.'? "
        "Answere with 'entailment', 'contradiction', or 'neutral'."
    )
    assert GLUE["cola"].prompt.format(sentence="Go.") == (
        'Indicate if the following sentence is grammatically correct or not: "Go.". '
        "Answere 'acceptable' or 'unacceptable'."
    )


def test_targets_follow_the_official_classes():
    for name, classes in {"rte": ("entailment", "not_entailment"), "qnli": ("entailment", "not_entailment")}.items():
        assert GLUE[name].classes == classes and GLUE[name].words == ("yes", "no")
    for name, classes in {"mrpc": ("not_equivalent", "equivalent"), "qqp": ("not_duplicate", "duplicate")}.items():
        assert GLUE[name].classes == classes and GLUE[name].words == ("no", "yes")
    for name in ("cola", "mnli", "sst2"):
        assert GLUE[name].classes == GLUE[name].words
    assert [task.name for task in EVERY if not task.words] == ["stsb", "similarity"]
    assert [task.name for task in EVERY if task.metric == "Spearman's rho"] == ["stsb", "similarity"]


def test_official_counts_are_those_of_the_hub():
    assert sum(task.train for task in GLUE.values()) == 949_098
    assert sum(task.test for task in GLUE.values()) == 59_808
    assert [task.name for task in GLUE.values() if task.held_out != "validation"] == ["mnli"]


@pytest.mark.parametrize(("label", "target"), [(0, "0.0"), (2.7999999, "2.8"), (3.25, "3.2"), (5.0, "5.0")])
def test_a_grade_has_one_decimal(label, target):
    assert GLUE["stsb"].target(label) == target


@pytest.mark.parametrize("label", [-0.1, 5.01, math.nan, math.inf, None, "3.0"])
def test_a_label_that_is_no_grade_is_refused(label):
    with pytest.raises(ValueError, match=r"label .* is no number from 0 to 5"):
        GLUE["stsb"].target(label)


@pytest.mark.parametrize("label", [-1, 3, 0.5, math.nan, None, "neutral"])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match=r"is not one of the 3 classes \(0 to 2\)"):
        GLUE["mnli"].target(label)


def test_an_unknown_task_is_answered_with_the_closest():
    with pytest.raises(
        ValueError, match=r"unknown task 'sst-2' \(did you mean 'sst2'\?\); drawn: .*; GLUE: cola, mnli"
    ):
        text_task("sst-2")
    with pytest.raises(ValueError, match=r"unknown task 'mnist'"):
        text_task("mnist")
