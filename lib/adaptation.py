r"""Test-time adaptation: ONE loop for AdaMerging, Concrete Task Arithmetic and Concrete AdaMerging.

The loop minimises an objective over merging coefficients, over the logits of a Concrete mask, or over both
(bi-level, Algorithm 1 of https://arxiv.org/abs/2312.06173):

    what is learned        coefficients="task" | "layer" | None     learn_mask      fixed mask
    AdaMerging             "task" or "layer"                        False           None
    Concrete Task Arith.   None                                     True            None
    Concrete AdaMerging    "task" or "layer" (inner level)          True            None
      then adaptation      "task" or "layer"                        False           the learned mask

In the bi-level case each step draws a mask m; starts the coefficients at their initial value and moves them one
step down the loss with m held fixed (inner level); then moves the logits one step down the loss at the new coefficients
(upper level). What the paper leaves open is in `lib.protocol`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor
from tqdm import tqdm

from lib import concrete
from lib.coefficients import Coefficients
from lib.hypergradient import second_order
from lib.layout import Layout
from lib.merge_step import MergeStep
from lib.objectives import Objective
from lib.progress import progress
from lib.protocol import Protocol
from lib.rng import seed_of
from lib.sharding import Shard
from lib.signatures import signatures
from lib.store import Checkpoint
from lib.task_vectors import check_task_vectors

VERSION = 3  # part of every artifact key; raise it when the loop's arithmetic changes
LOOK_EVERY = 25  # steps between two looks for failure signatures
PATIENCE = 100  # steps after which a loss that has not fallen is worth a warning: batches differ more than steps move


@dataclass(frozen=True)
class Adapted:
    """Outcome of the loop.

    Attributes:
        coefficients: merging coefficients [T] or [T, L] (their initial value when only a mask was learned).
        logits: mask logits [D], or None when no mask was learned.
        curve: one row per step: step, loss (nats, summed over tasks), mask_mean, lowest_density, and what the
            objective, `watch` and `evaluate` said.
    """

    coefficients: Tensor
    logits: Tensor | None
    curve: pd.DataFrame


def adapt(
    objective_at: Callable[[int], Objective],
    theta0: Tensor | Callable[[Tensor], None],
    task_vectors: Tensor,
    layout: Layout,
    *,
    steps: int,
    coefficients: str | None = "layer",
    learn_mask: bool = False,
    rescaled_mask: Tensor | None = None,
    initial_coefficient: float = 0.3,
    learning_rate: float = 1e-3,
    mask_learning_rate: float = 1e-3,
    temperature: float = 0.5,
    seed: int = 0,
    label: str = "adaptation",
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    checkpoint: Checkpoint | None = None,
    watch: Callable[[MergeStep], dict[str, float]] | None = None,
    evaluate: Callable[[Tensor], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    backend: str = "auto",
    shard: Shard | None = None,
) -> Adapted:
    """Minimise the objective over coefficients, mask logits, or both (see the module's table).

    Args:
        objective_at: number of a batch -> objective on that unlabelled batch, which maps theta [D] to (loss, G [D]).
            The two levels of a bi-level step take batches of their own. It may have what
            `lib.objectives.ImageObjective` has beside that: `report`, `state` and `load_state`.
        theta0: pre-trained parameters [D], or a function that writes them into a vector (see `lib.merge_step`).
        task_vectors: [T, D], in float32 or half precision, on theta0's device or, mapped, on the CPU; sums of them are
            made in float32. To learn a mask alone, their sum [1, D] says as much (see `lib.streaming`).
        layout: where the layers lie.
        steps: number of steps.
        coefficients: "task", "layer", or None to leave them at their initial value.
        learn_mask: learn mask logits (upper level); coefficients are then the inner level.
        rescaled_mask: a fixed mask m_hat [D] to merge inside.
        initial_coefficient: lambda at the start, and before every inner step (paper: 0.3).
        learning_rate: the coefficients' (paper: 1e-3 in adaptation, 1 in the inner level).
        mask_learning_rate: Adam's for the logits (paper: 1e-3 over 2000 steps).
        temperature: of the mask's samples (paper: 0.5).
        seed: names the mask's noise.
        label: shown with the progress.
        protocol: what the paper and its codes leave open or do differently.
        checkpoint: where to save and from where to continue; of several processes a `SharedCheckpoint`.
        watch: called after every step; the numbers it returns become columns of the curve.
        evaluate: called every `evaluate_every` steps and after the last with the theta [D] that the run would end with
            now; likewise. Nothing it returns reaches the loop, so it may look at labels.
        evaluate_every: 0 for never.
        backend: "compiled", "eager" or "auto", see `lib.merge_step`.
        shard: this process's part under torch.distributed. theta0, task_vectors and rescaled_mask are then that part;
            each process's objective sees its own share of the batch, and losses and gradients add up.

    Returns:
        What was learned, and the curve of the loss.

    Raises:
        ValueError: for arguments that contradict each other, or a loss that is not finite (naming the step).
    """
    shard = shard or Shard(layout)
    whole = shard.ranks == 1 and isinstance(theta0, Tensor)
    if whole:
        check_task_vectors(theta0, task_vectors, layout, half=True)
    if learn_mask and rescaled_mask is not None:
        raise ValueError("give either learn_mask=True or a fixed rescaled_mask, not both")
    if not learn_mask and coefficients is None:
        raise ValueError("nothing to learn: set coefficients to 'task' or 'layer', or learn_mask=True")
    exact = learn_mask and coefficients is not None and protocol.hypergradient == "exact"
    if exact and not whole:
        raise ValueError("hypergradient='exact' needs all of theta0 as a tensor, in one process")
    if evaluate and not isinstance(theta0, Tensor):
        raise ValueError("evaluate needs theta0 as a tensor")

    tasks, like = len(task_vectors), theta0 if isinstance(theta0, Tensor) else task_vectors
    if coefficients is None and tasks > 1:  # with coefficients left alone only the sum matters, whatever T
        if task_vectors.dtype == like.dtype and task_vectors.device == like.device:
            task_vectors = task_vectors.sum(0, keepdim=True)
        else:
            task_vectors = concrete.weighted_sum(task_vectors, like.new_ones(tasks), layout)[None]
    lambdas = Coefficients(
        len(task_vectors), layout, coefficients,
        initial=initial_coefficient, learning_rate=learning_rate, protocol=protocol, like=like,
    )  # fmt: skip
    merging = MergeStep(theta0, task_vectors, layout, rescaled_mask=rescaled_mask, backend=backend, shard=shard)
    if learn_mask:
        merging.learn_mask(
            temperature=temperature, learning_rate=mask_learning_rate, seed=seed_of("mask", seed),
            initial_logits=protocol.initial_logits, rescale=protocol.rescale,
        )  # fmt: skip
    curve: list[dict[str, float]] = []
    checkpoint = checkpoint or Checkpoint(None)

    def state() -> dict:
        mask = merging.state() if learn_mask else None
        batches = getattr(objective_at, "state", dict)()
        return {"coefficients": lambdas.state(), "mask": mask, "objective": batches, "curve": curve}

    if saved := checkpoint.load():
        lambdas.load_state(saved["coefficients"])
        if learn_mask:
            merging.load_state(saved["mask"])
        getattr(objective_at, "load_state", lambda _: None)(saved["objective"])
        curve = saved["curve"]

    def outcome() -> Tensor:
        """Where the run would end now."""
        mask, at = rescaled_mask, lambdas.values
        if learn_mask:
            options = {"temperature": temperature, "seed": seed, "rescaled": protocol.rescale}
            logits, at = shard.gather(merging.logits), lambdas.start
            mask = shard.part(concrete.final_mask(logits, layout, protocol.final_mask, **options))
        if shard.ranks > 1:
            return merging.merge_inside(lambdas.merged(at), mask)
        return concrete.merge(theta0, task_vectors, lambdas.merged(at), layout, mask)

    def recent_loss() -> str:
        return f"loss {curve[-1]['loss']:.3f}" if curve else ""

    fresh, said = protocol.outer_sample == "fresh", set(signatures(curve, PATIENCE))
    for step in progress(range(len(curve), steps), label, total=steps - len(curve), postfix=recent_loss):
        row: dict[str, float] = {"step": step}
        extra = None
        if learn_mask:
            means = merging.draw(2 * step if fresh else step)
            row["mask_mean"] = (means * layout.counts(means)).sum().item() / layout.parameters
            row["lowest_density"] = means.min().item()
        if coefficients is not None:
            at = lambdas.start if learn_mask and protocol.inner_gradient_at == "initial" else lambdas.values
            objective = inner = objective_at(2 * step if learn_mask else step)  # two levels, two batches
            theta = merging.merge(lambdas.merged(at))
            loss, gradient = objective(theta)
            report = dict(getattr(objective_at, "report", {}))
            lambdas.update(merging.coefficient_gradient(gradient), restart=learn_mask)
            if exact:
                theta, inner_gradient = theta.clone(), gradient.clone()
        if learn_mask:
            if fresh:
                merging.draw(2 * step + 1)
            objective = objective_at(step if coefficients is None else 2 * step + 1)
            loss, gradient = objective(merging.merge(lambdas.merged(lambdas.values)))
            report = dict(getattr(objective_at, "report", {}))
            if exact:
                gradient = gradient.clone()  # the same buffer serves the Hessian's differences
                pulled = lambdas.pull(merging.coefficient_gradient(gradient), lambdas.values)
                pushed = lambdas.push(lambdas.through_the_step(pulled), at)
                weighted = concrete.weighted_sum(task_vectors, pushed, layout)
                summed = concrete.weighted_sum(task_vectors, lambdas.merged(at), layout)
                extra = second_order(inner, theta, inner_gradient, merging.rescaled_mask().flatten(), weighted, summed)
            merging.update_mask(gradient, extra)
        row["loss"] = loss = shard.total(loss)
        if not math.isfinite(loss):
            raise ValueError(f"{label}: the loss is {loss} at step {step}; lower the learning rate")
        row |= report | (watch(merging) if watch else {})
        if evaluate and evaluate_every and ((step + 1) % evaluate_every == 0 or step + 1 == steps):
            row |= evaluate(outcome())
        curve.append({name: float(value) for name, value in row.items()} | {"step": step})  # what a checkpoint can hold
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
            for name, sentence in signatures(curve, PATIENCE).items():
                if name not in said:
                    tqdm.write(f"{label}: {sentence}")
                    said.add(name)
        checkpoint.save(state)
    # What the first phase learns is the mask; coefficients start anew inside it.
    found = lambdas.merged(lambdas.start if learn_mask else lambdas.values)
    found = found if coefficients else found.expand(tasks)
    logits = shard.gather(merging.logits) if learn_mask else None
    return Adapted(found.clone(), logits, pd.DataFrame(curve))
