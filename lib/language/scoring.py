"""Scores of generated answers: exact match of the label word, or Spearman's rho of grades."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from lib.language.registry import TextTask


def score(task: TextTask, answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Compare generated answers with the targets, both stripped of surrounding white space.

    Classes: an answer is right when it is the target, letter by letter. One that is none of the task's label words is
    wrong and counted as invalid.

    Grades: Spearman's rho of the answers read as numbers. One that is no finite number counts as 0.0, as in the
    authors' code (`evaluate_spearman_rho` of FusionBench), and as invalid. When all answers are equal, rho is not
    defined; it is reported as 0, for such answers rank nothing.

    Returns:
        "accuracy": share of right answers, 0..1, or rho, -1..1; "invalid": share of invalid answers; "n": answers.

    Raises:
        ValueError: if there are no answers or not one per target, a target is not one of the task's, or all grades to
            compare with are equal.
    """
    if not targets or len(answers) != len(targets):
        raise ValueError(f"{task.name}: {len(answers)} answers to {len(targets)} targets; expected one per target")
    answers, targets = [text.strip() for text in answers], [text.strip() for text in targets]
    for target in targets:
        if not is_answer(task, target):
            raise ValueError(f"{task.name}: target '{target}' is none of the task's; score answers of this task only")
    valid = [is_answer(task, answer) for answer in answers]
    if task.words:
        accuracy = sum(answer == target for answer, target in zip(answers, targets, strict=True)) / len(targets)
    else:
        numbers = [float(answer) if is_valid else 0.0 for answer, is_valid in zip(answers, valid, strict=True)]
        accuracy = spearman(numbers, [float(target) for target in targets])
    return {"accuracy": accuracy, "invalid": valid.count(False) / len(valid), "n": len(valid)}


def is_answer(task: TextTask, text: str) -> bool:
    """Whether a text is one of the task's label words or, if it is graded, a finite number."""
    if task.words:
        return text in task.words
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def spearman(predictions: Sequence[float], targets: Sequence[float]) -> float:
    """Spearman's rho: the correlation of ranks, equal values sharing their average rank; 0 for equal predictions.

    Raises:
        ValueError: if all targets are equal, or there is only one.
    """
    if len(set(targets)) < 2:
        raise ValueError("Spearman's rho needs targets that differ; all are the same; score more examples")
    if len(set(predictions)) < 2:
        return 0.0
    return float(pd.Series(predictions).rank().corr(pd.Series(targets).rank()))
