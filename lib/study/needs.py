"""Which method when: what each method may look at, what it costs, and how far it gets from zero-shot to the experts."""

from __future__ import annotations

import pandas as pd

from lib import fusion
from lib.study.profiles import Profile
from lib.study.recipes import RECIPES, Recipe

# What a method may use, from nothing but the experts to most.
NOTHING = "nothing but the experts"
LABELS = "some labelled inputs"
INPUTS = "unlabelled inputs"
GRADIENTS = "unlabelled inputs, gradients"
TEACHERS = "unlabelled inputs, gradients, the experts' predictions"
NEEDS = (NOTHING, LABELS, INPUTS, GRADIENTS, TEACHERS)
TUNED, TAUGHT = " (tuned)", ", experts"  # how the tables name what was chosen with labels, and what experts taught
ALONE = "nothing"  # what is kept of a task beside one merged model, where that is so

ARMS = {  # of notebook 09, that are methods and no controls
    "coefficients": "AdaMerging (layer-wise)",
    "coefficients, as many gradients": "AdaMerging (layer-wise), as many gradients",
    "mask and coefficients": "Concrete AdaMerging (layer-wise)",
}


def needed(method: str) -> str:
    """What a method of the results' tables may use: one of `NEEDS`.

    Raises:
        ValueError: for a method that is in no table of methods.
    """
    if method.endswith(TUNED):
        return LABELS
    if method.endswith(TAUGHT):
        return TEACHERS
    if _recipe(method):
        return GRADIENTS
    known = {entry.name: entry for entry in (fusion.METHODS | fusion.PER_TASK).values()}
    name = method if method in known else method.partition(" (")[0]  # "Ties-Merging (mean rule)"
    if name not in known:
        raise ValueError(f"nothing is known of what '{method}' needs: register it by lib.fusion.fusion_method")
    return INPUTS if known[name].needs_data else NOTHING


def gradients(method: str, budget: Profile) -> int:
    """How many gradients of all tasks a method of the results' tables takes with a profile's budgets.

    A step of the bi-level algorithm takes two, one per level; a step of a mask alone takes one.
    """
    recipe = _recipe(method)
    if recipe is None:
        return 0
    mask = budget.mask_steps * (2 if recipe.coefficients else 1) if recipe.mask else 0
    return mask + (budget.adaptation_steps if recipe.coefficients else 0)


def which_method(
    results: pd.DataFrame, per_task: pd.DataFrame, any_base: pd.DataFrame, adapted: pd.DataFrame, budget: Profile
) -> pd.DataFrame:
    """Every method of the study by what it may use, with the share of the way from zero-shot to the experts.

    Args:
        results: the main table (method, task, split, seed, accuracy), with Zero-shot and Experts.
        per_task: notebook 03's table of methods that keep something per task (also column keeps).
        any_base: notebook 09's (objective, base, arm, task, seed, accuracy, gradients).
        adapted: notebook 09's of methods that learn something per task (keeps, gradients).
        budget: the profile that the main table was made with.

    Returns:
        Rows (uses, method, keeps, gradients, seed, accuracy, share), accuracy a mean over tasks; share from 0 to 1.
    """
    held_out, alone = (table[table["split"] == "test"] for table in (results, per_task))
    named = held_out[~held_out["method"].isin(("Zero-shot", "Experts"))]
    named, alone = (table.assign(uses=table["method"].map(needed), gradients=0) for table in (named, alone))
    named = named.assign(gradients=[gradients(method, budget) for method in named["method"]], keeps=ALONE)
    taught = any_base[(any_base["objective"] == "expert-kl") & any_base["arm"].isin(ARMS)]
    where = taught["base"].map(lambda base: "" if base == "Task Arithmetic" else f" on {base}")
    taught = taught.assign(method=taught["arm"].map(ARMS) + where + TAUGHT, uses=TEACHERS, keeps=ALONE)
    learned = adapted[adapted["keeps"] != ALONE].assign(uses=TEACHERS)
    learned = learned.assign(method=learned["method"].replace(r"^coefficients\b", ARMS["coefficients"], regex=True))
    columns = ["uses", "method", "keeps", "gradients", "seed"]
    rows = pd.concat([named, alone, taught, learned]).groupby(columns, sort=False)["accuracy"].mean().reset_index()
    ends = held_out.groupby(["method", "seed"])["accuracy"].mean()
    zero, expert = (rows["seed"].map(ends[name]) for name in ("Zero-shot", "Experts"))
    return rows.assign(share=(rows["accuracy"] - zero) / (expert - zero))


def _recipe(method: str) -> Recipe | None:
    """The recipe that a method's name begins with, as "AdaMerging (layer-wise), IM" does."""
    return RECIPES.get(method.partition(",")[0])
