"""Learning rates and numbers of steps, chosen without labels: one rule for every method that learns.

A fifth of the unlabelled inputs of each task is held back. A method runs on the rest at each of some rates, and the
objective itself, on what was held back, says which rate and how many steps to take. The run that counts then takes all
inputs. What the rule is worth depends on the objective: it can only be as good a stand-in for accuracy as that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from torch import Tensor

from lib.adaptation.objectives import BatchObjective, PredictionObjective
from lib.runtime.rng import batch_indices
from lib.study.recipes import RECIPES, merge_by_name
from lib.study.setting import Setting
from lib.study.workspace import Workspace

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SHARE = 0.2  # of the inputs, held back


@dataclass(frozen=True)
class HeldBack:
    """Scores the points of a run by their loss on inputs that it does not adapt on.

    Attributes:
        objective: that of the held-back inputs, all in one batch.
    """

    objective: PredictionObjective

    @cached_property
    def _all(self) -> BatchObjective:
        return self.objective(0)

    def __call__(self, theta: Tensor) -> dict[str, float]:
        """One column of the curve: the loss (nats, summed over tasks)."""
        return {"held_back": self._all.value(theta)}


@dataclass(frozen=True)
class Chosen:
    """What the rule found.

    Attributes:
        changed: the profile's fields to change, for `merge_by_name(..., **chosen.changed)`.
        tried: rows (field, rate, step, held_back), all that was compared.
    """

    changed: Mapping[str, float]
    tried: pd.DataFrame


def hold_back(setting: Setting, seed: int, share: float = SHARE) -> tuple[Setting, Setting]:
    """The setting on most of its inputs, and on the others: disjoint, drawn by task and seed.

    Raises:
        ValueError: if a task has too few inputs to divide.
    """
    kept, others = {}, {}
    for task, inputs in setting.inputs.items():
        count = round(share * len(inputs))
        if not 0 < count < len(inputs):
            raise ValueError(f"task '{task}' has {len(inputs)} inputs: too few to hold back {share:.0%} of them")
        order = batch_indices(len(inputs), len(inputs), 0, "held back", task, seed)
        others[task], kept[task] = inputs[order[:count].sort().values], inputs[order[count:].sort().values]
    most = max(map(len, others.values()))
    return replace(setting, inputs=kept), replace(setting, inputs=others, batch=most)


def choose_rates(
    workspace: Workspace,
    method: str,
    setting: Setting | None = None,
    *,
    rates: Sequence[float] = RATES,
    **options: object,
) -> Chosen:
    """Choose a method's learning rates and numbers of steps by the objective on held-back inputs.

    First the coefficients' rate, without a mask; of a method with a mask then the mask's, while the coefficients learn
    at the rate found, in the inner level too.

    Args:
        workspace: an open study.
        method: a name from `RECIPES`.
        setting: what is merged, and on which inputs; by default all tasks, with entropy.
        rates: those that are tried.
        options: `base`, `protocol` and changed fields of the profile, as for `merge_by_name`. Losses are compared every
            `evaluate_every` steps.

    Returns:
        The choice and all that was tried.

    Raises:
        ValueError: if a task has too few inputs.
    """
    kept, others = hold_back(setting or workspace.setting(), workspace.study.seed)
    judge, recipe = HeldBack(workspace.objective(others)), RECIPES[method]
    changed: dict[str, float] = {}
    tried: list[pd.DataFrame] = []

    def search(name: str, by: str, **fixed: float) -> None:
        """Run `by` at every rate of a level ("adaptation" or "mask"), and take what ends lowest."""
        found = []
        for rate in rates:
            given = {**options, **fixed, f"{name}_rate": rate}
            run = merge_by_name(workspace, by, kept, evaluate=judge, label=f"{by}, {name}_rate={rate:g}", **given)
            curve = run.mask_curve if name == "mask" and run.curve is None else run.curve
            found.append(curve[["step", "held_back"]].dropna().assign(field=f"{name}_rate", rate=rate))
        table = pd.concat(found, ignore_index=True).assign(step=lambda rows: rows["step"] + 1)
        best = table.loc[table["held_back"].idxmin()]
        changed[f"{name}_rate"] = float(best["rate"])
        if name == "adaptation" or recipe.coefficients is None:
            changed[f"{name}_steps"] = int(best["step"])
        tried.append(table)

    if recipe.coefficients:
        search("adaptation", f"AdaMerging ({recipe.coefficients}-wise)")
    if recipe.mask:
        rate = changed.get("adaptation_rate")
        search("mask", method, **({"adaptation_rate": rate, "inner_rate": rate} if rate else {}))
        changed |= {"inner_rate": rate} if rate else {}
    return Chosen(changed, pd.concat(tried, ignore_index=True)[["field", "rate", "step", "held_back"]])
