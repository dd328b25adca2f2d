"""The methods by name: one table of recipes over `adapt`, for tables that run them all, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
from torch import Tensor

from lib import fusion
from lib.adaptation.loop import adapt
from lib.adaptation.protocol import Protocol
from lib.concrete import mask as masks
from lib.runtime.parameters import refuse_unknown
from lib.study.profiles import field_names
from lib.study.setting import Setting
from lib.study.workspace import Workspace


@dataclass(frozen=True)
class Recipe:
    """An adaptive method: which coefficients it learns, and whether it learns a mask first."""

    coefficients: str | None
    mask: bool


RECIPES = {
    "AdaMerging (task-wise)": Recipe("task", mask=False),
    "AdaMerging (layer-wise)": Recipe("layer", mask=False),
    "Concrete Task Arithmetic": Recipe(None, mask=True),
    "Concrete AdaMerging (task-wise)": Recipe("task", mask=True),
    "Concrete AdaMerging (layer-wise)": Recipe("layer", mask=True),
}
# Baselines without data, as functions of (theta0, task_vectors, layout) and the profile's scaling factor.
BASELINES: dict[str, Callable[..., Tensor]] = {
    "Weight averaging": lambda *point, scaling_factor: fusion.weight_averaging(*point),
    "Task Arithmetic": fusion.task_arithmetic,
    "Ties-Merging": fusion.ties_merging,
}


@dataclass(frozen=True)
class Merged:
    """A merged model and how it came about.

    Attributes:
        theta: merged parameters [D].
        coefficients: [T] or [T, L]; None for a baseline.
        mask: the rescaled mask m_hat [D] it was merged inside, or None.
        logits: the mask's logits [D], or None.
        mask_curve: of mask learning (columns as in `lib.adaptation.Adapted`), or None.
        curve: of test-time adaptation, or None.
    """

    theta: Tensor
    coefficients: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
    mask_curve: pd.DataFrame | None = None
    curve: pd.DataFrame | None = None


def merge_by_name(
    workspace: Workspace,
    method: str,
    setting: Setting | None = None,
    *,
    protocol: Protocol | None = None,
    base: str = "Task Arithmetic",
    mask: Tensor | None = None,
    curves: bool = False,
    evaluate: Callable[[Tensor], dict[str, float]] | None = None,
    label: str = "",
    **changed: float | str,
) -> Merged:
    """Merge by a method; what it learns is kept in the store.

    Args:
        workspace: an open study.
        method: a name from `RECIPES` or `BASELINES`.
        setting: what is merged, and on which inputs adaptation runs; by default all tasks, with entropy.
        protocol: by default the paper's, with the profile's final mask.
        base: a name from `lib.fusion.BASES` or `CONTROLS`: whose parts the coefficients weigh and the mask covers.
        mask: a given rescaled mask [D] to adapt inside, in place of a learned one (a control).
        curves: score the merged model every `evaluate_every` steps on held-out examples.
        evaluate: called as often with the merged parameters, in place of that: see `adapt`.
        label: shown with the progress; by default the method's name.
        changed: fields of the profile to change, such as mask_steps=80 or temperature=0.1.

    Raises:
        ValueError: for an unknown method or field.
    """
    profile, setting = workspace.study.profile, setting or workspace.setting()
    refuse_unknown(changed, field_names(type(profile)))
    budget = replace(profile, **changed)
    theta0, vectors, layout = workspace.theta0, setting.task_vectors, workspace.layout
    if method in BASELINES and base != "Task Arithmetic":
        raise ValueError(f"'{method}' is a method of its own: leave base='{base}' out, or choose one that learns")
    if method in BASELINES:
        return Merged(BASELINES[method](theta0, vectors, layout, scaling_factor=budget.scaling_factor))
    if method not in RECIPES:
        raise ValueError(f"unknown method '{method}'; known: {', '.join((*BASELINES, *RECIPES))}")
    vectors, initial = parts_of(workspace, setting, base, budget.scaling_factor)
    recipe, label = RECIPES[method], label or method
    evaluate = evaluate or (workspace.held_out(setting) if curves else None)
    protocol = protocol or Protocol(final_mask=budget.final_mask)
    options = {"temperature": budget.temperature, "seed": workspace.study.seed}
    run = partial(
        workspace.study.remember(adapt), workspace.objective(setting), theta0, vectors, layout,
        coefficients=recipe.coefficients, initial_coefficient=initial, protocol=protocol,
        evaluate=evaluate, evaluate_every=budget.evaluate_every if evaluate else 0, **options,
    )  # fmt: skip
    logits = mask_curve = curve = None
    if recipe.mask and mask is None:
        phase = run(
            label=f"{label}, mask", learn_mask=True, steps=budget.mask_steps,
            mask_learning_rate=budget.mask_rate, learning_rate=budget.inner_rate,
        )  # fmt: skip
        logits, mask_curve, coefficients = phase.logits, phase.curve, phase.coefficients
        mask = masks.final_mask(logits, layout, protocol.final_mask, rescaled=protocol.rescale, **options)
    if recipe.coefficients:
        steps, rate = budget.adaptation_steps, budget.adaptation_rate
        inside = run(label=label, rescaled_mask=mask, steps=steps, learning_rate=rate)
        coefficients, curve = inside.coefficients, inside.curve
    elif logits is None:  # a given mask and nothing to adapt
        coefficients = theta0.new_full((len(setting.tasks),), initial)
    theta = masks.merge(theta0, vectors, coefficients, layout, mask)
    return Merged(theta, coefficients, mask, logits, mask_curve, curve)


def parts_of(workspace: Workspace, setting: Setting, base: str, scaling_factor: float) -> tuple[Tensor, float]:
    """The parts [T, D] of a base in a setting, and the coefficient to start from.

    Raises:
        ValueError: for an unknown base.
    """
    known = fusion.BASES | fusion.CONTROLS
    if base not in known:
        raise ValueError(f"unknown base '{base}'; known: {', '.join(known)}")
    chosen = known[base]
    coefficient = scaling_factor if chosen.coefficient is None else chosen.coefficient
    if base == "Task Arithmetic":  # as they lie there: in half precision, or mapped
        return setting.task_vectors, coefficient
    given = {"theta0": workspace.theta0, "seed": workspace.study.seed}
    if "grams" in chosen.needs:
        rows = [list(workspace.tasks).index(task) for task in setting.tasks]
        given["grams"] = {name: own[rows] for name, own in workspace.grams().items()}
    if "moments_at" in chosen.needs:
        given |= workspace.calibration(setting.tasks)
    make, vectors = workspace.study.remember(chosen.parts), setting.task_vectors.to(workspace.theta0)
    found = make(vectors, workspace.layout, **{name: given[name] for name in chosen.needs})
    return found.to(workspace.theta0), coefficient
