"""Merging somebody's own experts: which method for what is given (docs/which-method.md), and running it by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from lib.concrete import expected_mask
from lib.fusion import METHODS
from lib.study.card import losers
from lib.study.profiles import LanguageProfile
from lib.study.rates import choose_rates
from lib.study.recipes import merge_by_name
from lib.study.workspace import Workspace

# Names of methods that learn -> (recipe, base for images, base for texts); the objective is "expert-kl".
LEARNING = {
    "adamerging": ("AdaMerging (layer-wise)", "Task Arithmetic", "Task Arithmetic"),
    "concrete-task-arithmetic": ("Concrete Task Arithmetic", "Task Arithmetic", "Task Arithmetic"),
    "concrete-adamerging": ("Concrete AdaMerging (layer-wise)", "FeatCal", "TSV-M"),
}
FREE = {name.replace("_", "-"): own for name, own in METHODS.items()}
NAMES = ("auto", *FREE, *LEARNING)
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # times TSV-M's own, of which labels choose one
RATES = (1e-2, 3e-2)  # of which the objective chooses, without labels


@dataclass(frozen=True)
class Choice:
    """A method and why it was taken.

    Attributes:
        method: one of `NAMES`.
        why: a sentence.
        labels: whether its scaling factor is chosen by labelled validation examples.
    """

    method: str
    why: str
    labels: bool = False


def choose_method(method: str = "auto", *, data: bool, gradients: bool = True, labels: bool = False) -> Choice:
    """The method for what is given, by the measurements of docs/which-method.md; or the one that is named.

    Args:
        method: a name from `NAMES`.
        data: whether there are unlabelled examples of every task.
        gradients: whether the merged model may be trained on them.
        labels: whether labelled validation examples may choose a scaling factor.

    Raises:
        ValueError: for an unknown method, or one that needs what is not given.
    """
    if method not in NAMES:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(NAMES)}")
    if method != "auto":
        if not data and (method in LEARNING or FREE[method].needs_data):
            raise ValueError(f"method '{method}' needs examples of every task: give data, or take tsv-m")
        return Choice(method, "it was asked for", labels and method == "tsv-m")
    if data and gradients:
        why = "unlabelled examples, gradients and the experts' predictions are there: the highest row of the table"
        return Choice("concrete-adamerging", why)
    if data and labels:
        return Choice("tsv-m", "labelled validation examples choose its scaling factor; no gradients are wanted", True)
    if data:
        return Choice("featcal", "unlabelled examples are there, and no gradients are wanted")
    return Choice("tsv-m", "nothing is given but the experts: the best of the methods that need no data")


@dataclass(frozen=True)
class OwnMerge:
    """A merged model, and what its card says of how it came about.

    Attributes:
        theta: merged parameters [D].
        told: name of a fact -> fact.
    """

    theta: Tensor
    told: dict[str, object]


def merge_own(workspace: Workspace, choice: Choice, *, scaling_factor: float | None = None) -> OwnMerge:
    """Merge the experts of a study by a chosen method; what is learned is kept, so a killed call goes on.

    Args:
        workspace: an open study; its profile's `mask_steps` and `adaptation_steps` are the most that a rule without
            labels takes, see `choose_rates`.
        choice: of `choose_method`.
        scaling_factor: of a method that has one; by default its own.
    """
    told: dict[str, object] = {"method": choice.method, "why": choice.why}
    if choice.method in LEARNING:
        return _learn(workspace, choice.method, told)
    point, chosen = (workspace.theta0, workspace.task_vectors, workspace.layout), FREE[choice.method]
    given = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    if choice.labels:
        tried = {factor: _validation(workspace, chosen.merge(*point, scaling_factor=factor)) for factor in FACTORS}
        given = {"scaling_factor": max(tried, key=tried.get)}
        told["validation accuracy by factor"] = {str(factor): f"{100 * score:.1f} %" for factor, score in tried.items()}
    theta = chosen.merge(*point, **given, **_statistics(workspace, choice.method))
    return OwnMerge(theta, told | given | {"paper": chosen.paper})


def _learn(workspace: Workspace, method: str, told: dict[str, object]) -> OwnMerge:
    recipe, for_images, for_texts = LEARNING[method]
    text = isinstance(workspace.study.profile, LanguageProfile)
    base = for_texts if text else for_images
    setting = workspace.setting(objective="expert-kl", whole_answers=text)
    rates = choose_rates(workspace, recipe, setting, base=base, rates=RATES).changed
    merged = merge_by_name(workspace, recipe, setting, base=base, label=method, **rates)
    learned = "one fixed"
    if merged.coefficients is not None:
        low, high = merged.coefficients.min().item(), merged.coefficients.max().item()
        learned = f"{merged.coefficients.numel()}, from {low:.2f} to {high:.2f}"
    told |= {"recipe": recipe, "base of the parts": base, "objective": "expert-kl (no labels)"}
    told |= {"chosen without labels": {name: f"{value:g}" for name, value in rates.items()}, "coefficients": learned}
    if merged.logits is not None:
        kept = expected_mask(merged.logits, workspace.layout).sum().item() / workspace.layout.parameters
        told["density of the mask"] = f"{kept:.2f}"
    return OwnMerge(merged.theta, told)


def _validation(workspace: Workspace, theta: Tensor) -> float:
    return workspace.evaluate(theta, "", "validation")["accuracy"].mean()


def _statistics(workspace: Workspace, method: str) -> dict[str, object]:
    """What a method needs of the data."""
    if method == "fisher-merging":
        return {"fisher": workspace.fisher()}
    if method == "regmean":
        return {"grams": workspace.grams()}
    if method == "featcal":
        return workspace.calibration()
    if method != "regmean-plus-plus":
        return {}
    if isinstance(workspace.study.profile, LanguageProfile):
        raise ValueError("method 'regmean-plus-plus' is there for images only: take featcal or regmean")
    return workspace.merged_inputs()


def before_and_after(workspace: Workspace, theta: Tensor) -> pd.DataFrame:
    """Held-out scores of the pre-trained model, of every expert on its own task, and of the merged model.

    Returns:
        Rows of `workspace.evaluate`, with the methods "Pre-trained", "Experts" and "Merged", and the `metric`.
    """
    tables = [workspace.evaluate(workspace.theta0, "Pre-trained")]
    for task, expert in workspace.points():
        tables.append(workspace.evaluate(expert, "Experts", tasks=[task], **workspace.own_buffers(task)))
    scores = pd.concat([*tables, workspace.evaluate(theta, "Merged")], ignore_index=True)
    metrics = {name: getattr(task, "metric", "accuracy") for name, task in workspace.tasks.items()}
    return scores.assign(metric=scores["task"].map(metrics))


def warnings_of(scores: pd.DataFrame) -> Iterator[str]:
    """Sentences on what a user should know of held-out scores: tasks that lose, experts that are no better."""
    for task in losers(scores, "Merged", "Pre-trained"):
        yield f"'{task}' is worse than before any fine-tuning: leave it out, or keep its own expert."
    for task in losers(scores, "Experts", "Pre-trained"):
        yield f"The expert of '{task}' is worse than the pre-trained model: is it the right file?"
    if lost := losers(scores, "Merged", "Experts"):
        yield f"Below their own expert, beyond the sampling of images: {', '.join(lost)}."
