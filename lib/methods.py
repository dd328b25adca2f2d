"""The methods of the paper as recipes over the one loop, and what they are run on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from lib import adaptation, concrete, fusion, memory_plan, ranks
from lib.batch_norm import batch_norms
from lib.objectives import PredictionObjective
from lib.protocol import Protocol
from lib.sharding import Shard
from lib.store import Checkpoint, digest
from lib.together import SharedObjective

if TYPE_CHECKING:
    from lib.base_workspace import BaseWorkspace


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
SMALL = 10_000_000  # parameters of a model that fits into any computer's memory: no plan is made for it on a CPU
# Baselines without data, as functions of (theta0, task_vectors, layout) and the profile's scaling factor.
BASELINES: dict[str, Callable[..., Tensor]] = {
    "Weight averaging": lambda *point, scaling_factor: fusion.weight_averaging(*point),
    "Task Arithmetic": fusion.task_arithmetic,
    "Ties-Merging": fusion.ties_merging,
}


@dataclass(frozen=True)
class Setting:
    """What is merged, and what adaptation may look at.

    Attributes:
        tasks: names of the tasks.
        task_vectors: theirs [T, D], as the profile's `task_vector_dtype` says.
        inputs: the unlabelled inputs of each: images, uint8 [N, 3, H, W], or tokens, int32 [N, length].
        objective: "entropy" or "information-maximisation".
        diversity: of information maximisation.
        batch: inputs per task and step.
        corruption: what was done to images, "" for nothing.
    """

    tasks: tuple[str, ...]
    task_vectors: Tensor
    inputs: Mapping[str, Tensor]
    objective: str
    diversity: float
    batch: int
    corruption: str = ""


@dataclass(frozen=True)
class Merged:
    """A merged model and how it came about.

    Attributes:
        theta: merged parameters [D].
        coefficients: [T] or [T, L]; None for a baseline.
        mask: the rescaled mask m_hat [D] it was merged inside, or None.
        logits: the mask's logits [D], or None.
        mask_curve: of mask learning (columns as in `adaptation.Adapted`), or None.
        curve: of test-time adaptation, or None.
    """

    theta: Tensor
    coefficients: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
    mask_curve: pd.DataFrame | None = None
    curve: pd.DataFrame | None = None


def setting(
    workspace: BaseWorkspace,
    tasks: Sequence[str] = (),
    *,
    corruption: str = "",
    inputs: Mapping[str, Tensor] | None = None,
    scale: float = 1.0,
    objective: str = "entropy",
    diversity: float = 1.0,
    batch: int = 0,
) -> Setting:
    """Describe what is merged.

    Args:
        workspace: an open study.
        tasks: names, in any order; () for all.
        corruption: of adaptation images, see `lib.corruptions`.
        inputs: other unlabelled inputs, by task; by default the adaptation split.
        scale: factor on the task vectors.
        objective: "entropy" (the paper's) or "information-maximisation".
        diversity: its weight.
        batch: inputs per task and step; 0 for the profile's.

    Raises:
        ValueError: for an unknown task.
    """
    known = list(workspace.tasks)
    if unknown := [name for name in tasks if name not in known]:
        raise ValueError(f"unknown task '{unknown[0]}'; known: {', '.join(known)}")
    chosen = tuple(tasks) or tuple(known)
    vectors = workspace.stored_vectors
    if chosen != tuple(known):
        vectors = vectors[[known.index(name) for name in chosen]]
    if inputs is None:
        inputs = {name: workspace.inputs("adaptation", name, corruption) for name in chosen}
    return Setting(
        chosen,
        vectors if scale == 1 else scale * vectors,
        {name: inputs[name] for name in chosen},
        objective,
        diversity,
        batch or workspace.study.profile.adaptation_batch,
        corruption,
    )


def merge(
    workspace: BaseWorkspace,
    method: str,
    setting: Setting,
    *,
    protocol: Protocol | None = None,
    mask: Tensor | None = None,
    curves: bool = False,
    label: str = "",
    **changed: float | str,
) -> Merged:
    """Merge by a method; what it learns is cached under everything that determines it.

    Args:
        workspace: an open study.
        method: a name from `RECIPES` or `BASELINES`.
        setting: what is merged, and on which inputs adaptation runs.
        protocol: by default the paper's, with the profile's final mask.
        mask: a given rescaled mask [D] to adapt inside, in place of a learned one (a control).
        curves: score the merged model every `evaluate_every` steps on held-out examples.
        label: shown with the progress; by default the method's name.
        changed: fields of the profile to change, such as mask_steps=80 or temperature=0.1.

    Raises:
        ValueError: for an unknown method or field.
    """
    budget = dataclasses.replace(workspace.study.profile, **changed)
    point = (workspace.theta0, setting.task_vectors, workspace.layout)
    if method in BASELINES:
        whole = (workspace.theta0, setting.task_vectors.to(workspace.theta0), workspace.layout)
        return Merged(BASELINES[method](*whole, scaling_factor=budget.scaling_factor))
    if method not in RECIPES:
        raise ValueError(f"unknown method '{method}'; known: {', '.join((*BASELINES, *RECIPES))}")
    recipe, label = RECIPES[method], label or method
    protocol = protocol or Protocol(final_mask=budget.final_mask)
    common = {
        "coefficients": recipe.coefficients,
        "initial_coefficient": budget.scaling_factor,
        "temperature": budget.temperature,
        "protocol": protocol,
        "evaluate_every": budget.evaluate_every if curves else 0,
    }
    logits = mask_curve = None
    if recipe.mask and mask is None:
        phase = run(
            workspace, setting, f"{label}, mask",
            learn_mask=True, steps=budget.mask_steps, mask_learning_rate=budget.mask_rate,
            learning_rate=budget.inner_rate, **common,
        )  # fmt: skip
        logits, mask_curve, coefficients = phase.logits, phase.curve, phase.coefficients
        mask = concrete.final_mask(
            logits, workspace.layout, protocol.final_mask,
            temperature=budget.temperature, seed=workspace.study.seed, rescaled=protocol.rescale,
        )  # fmt: skip
    curve = None
    if recipe.coefficients:
        inside = run(
            workspace, setting, label,
            rescaled_mask=mask, steps=budget.adaptation_steps, learning_rate=budget.adaptation_rate, **common,
        )  # fmt: skip
        coefficients, curve = inside.coefficients, inside.curve
    elif logits is None:  # a given mask and nothing to adapt
        coefficients = workspace.theta0.new_full((len(setting.tasks),), budget.scaling_factor)
    theta = concrete.merge(*point[:2], coefficients, workspace.layout, mask)
    return Merged(theta, coefficients, mask, logits, mask_curve, curve)


def objective_on(workspace: BaseWorkspace, setting: Setting) -> PredictionObjective:
    """The objective of a setting, by number of a batch."""
    most = workspace.study.profile.micro_batch
    return workspace.objective(
        setting,
        **({"rows_at_once": most} if most else {}),
        batch=setting.batch,
        seed=workspace.study.seed,
        objective=setting.objective,
        diversity=setting.diversity,
    )


def run(
    workspace: BaseWorkspace, setting: Setting, label: str, *, rescaled_mask: Tensor | None = None, **options: object
) -> adaptation.Adapted:
    """One phase: `adaptation.adapt` on a setting, or the stored result of the same.

    Processes that run the notebook together share it (`lib.ranks`): each lets its own tasks through the model and holds
    its own part of mask and moments, and of task vectors that are mapped. The exact hypergradient and models with
    BatchNorm are for the first process alone. Results are kept under the same key whatever number of processes made
    them; they differ by rounding, as between devices.

    Args:
        workspace: an open study.
        setting: what is merged and on what.
        label: shown with the progress.
        rescaled_mask: a fixed mask m_hat [D].
        options: the keyword arguments of `adaptation.adapt`.
    """
    study, objective = workspace.study, objective_on(workspace, setting)
    scored = {"images": study.profile.curve_size, "corruption": setting.corruption}
    determines = {
        "version": adaptation.VERSION,
        "seed": study.seed,
        "point": digest(workspace.theta0, setting.task_vectors),
        "mask": digest(rescaled_mask) if rescaled_mask is not None else None,
        **objective.fingerprint(),
        "batch": setting.batch,
        "objective": [setting.objective, objective.diversity],
        "precision": study.runtime.precision,
        "scored": scored if options.get("evaluate_every") else None,
        **options,
        "protocol": dataclasses.asdict(options["protocol"]),
    }
    determines = ranks.of_first(determines)  # a sum on a GPU may differ in its last bit, and so would the key
    exact = options["protocol"].hypergradient == "exact"
    together = ranks.count() > 1 and not exact and not batch_norms(objective.model.module)

    def accuracy(theta: Tensor) -> float:
        limit = study.profile.curve_size
        where = {"tasks": setting.tasks, "corruption": setting.corruption, "limit": limit}
        return workspace.evaluate(theta[: workspace.layout.length], "", "test", **where)["accuracy"].mean()

    def make(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], pd.DataFrame]:
        loss_at, shard, evaluate = objective, Shard(workspace.layout), None
        if together:
            shard = Shard.mine(dataclasses.replace(workspace.layout, parts=ranks.count()))
            loss_at = SharedObjective(objective, shard)
        vectors = shard.part(setting.task_vectors)
        if options.get("evaluate_every"):
            whole = setting.task_vectors.to(workspace.theta0)
            averaging = accuracy(fusion.weight_averaging(workspace.theta0, whole, workspace.layout))

            def evaluate(theta: Tensor) -> dict[str, float]:
                return {"accuracy": accuracy(theta), "averaging": averaging}

        if study.runtime.device != "cpu" or workspace.layout.length > SMALL:
            flags = {
                "learn_mask": options.get("learn_mask", False),
                "coefficients": options["coefficients"] is not None,
                "fixed_mask": rescaled_mask is not None,
                "exact": exact,
                "processes": shard.ranks,
            }
            point = (workspace.theta0, vectors)
            print(memory_plan.check(label, objective, *point, frozen_bytes=workspace.frozen_bytes, **flags))
        done = adaptation.adapt(
            loss_at,
            shard.part(workspace.theta0),
            vectors.to(study.runtime.device) if together else vectors,
            shard.layout,
            rescaled_mask=None if rescaled_mask is None else shard.part(rescaled_mask),
            seed=study.seed,
            label=label,
            checkpoint=checkpoint,
            evaluate=evaluate,
            shard=shard,
            **options,
        )
        tensors = {"coefficients": done.coefficients}
        if done.logits is not None:
            tensors["logits"] = done.logits[: workspace.layout.length]
        return tensors, done.curve

    made = study.store.get("adaptation", determines, make, maker=None if together else 0)
    tensors = {name: tensor.to(study.runtime.device) for name, tensor in made.tensors.items()}
    return adaptation.Adapted(tensors["coefficients"], tensors.get("logits"), made.table)
