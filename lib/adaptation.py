r"""Test-time adaptation: ONE loop for AdaMerging, Concrete Task Arithmetic and Concrete AdaMerging.

The loop minimises an objective over merging coefficients, over the logits of a Concrete mask, or over both
(bi-level, Algorithm 1 of https://arxiv.org/abs/2312.06173):

    what is learned        coefficients="task" | "layer" | None     learn_mask      fixed mask
    AdaMerging             "task" or "layer"                        False           None
    Concrete Task Arith.   None                                     True            None
    Concrete AdaMerging    "layer" (inner level)                    True            None
      then adaptation      "layer"                                  False           the learned mask

In the bi-level case each step draws a mask m; starts the coefficients at their initial value and moves them one
step down the loss with m held fixed (inner level); then moves the logits one step down the loss at the new coefficients
(upper level). The coefficients' step is treated as a constant by the upper level (first-order), as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from lib.layout import Layout
from lib.merge_step import MergeStep
from lib.objectives import Objective
from lib.progress import progress
from lib.rng import seed_of
from lib.sharding import Shard
from lib.store import Checkpoint
from lib.task_vectors import check_task_vectors

GRANULARITIES = ("task", "layer", None)
VERSION = 2  # part of every artifact key; raise it when the loop's arithmetic changes


@dataclass(frozen=True)
class Adapted:
    """Outcome of the loop.

    Attributes:
        coefficients: merging coefficients [T] or [T, L] (their initial value when only a mask was learned).
        logits: mask logits [D], or None when no mask was learned.
        curve: one row per step: step, loss (nats, summed over tasks), mask_mean, and what `watch` said.
    """

    coefficients: Tensor
    logits: Tensor | None
    curve: pd.DataFrame


def initial_coefficients(tasks: int, layout: Layout, granularity: str | None, value: float) -> Tensor:
    """Coefficients all equal to `value`: [T, L] for "layer", else [T]."""
    return torch.full((tasks, layout.layers) if granularity == "layer" else (tasks,), value)


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
    checkpoint: Checkpoint | None = None,
    watch: Callable[[MergeStep], dict[str, float]] | None = None,
    backend: str = "auto",
    shard: Shard | None = None,
) -> Adapted:
    """Minimise the objective over coefficients, mask logits, or both (see the module's table).

    Args:
        objective_at: number of a batch -> objective on that unlabelled batch, which maps theta [D] to (loss, G [D]).
            The two levels of a bi-level step take batches of their own.
        theta0: pre-trained parameters [D], or a function that writes them into a vector (see `lib.merge_step`).
        task_vectors: [T, D]. To learn a mask alone, their sum [1, D] says as much (see `lib.streaming`).
        layout: where the layers lie.
        steps: number of steps.
        coefficients: "task", "layer", or None to leave them at their initial value.
        learn_mask: learn mask logits (upper level); coefficients are then the inner level.
        rescaled_mask: a fixed mask m_hat [D] to merge inside.
        initial_coefficient: lambda at the start, and before every inner step (paper: 0.3).
        learning_rate: Adam's for the coefficients (paper: 1e-3 in adaptation, 1 in the inner level).
        mask_learning_rate: Adam's for the logits (paper: 1e-3 over 2000 steps).
        temperature: of the mask's samples (paper: 0.5).
        seed: names the mask's noise.
        label: shown with the progress.
        checkpoint: where to save and from where to continue; under several processes each needs one of its own.
        watch: called after every step; the numbers it returns become columns of the curve.
        backend: "compiled", "eager" or "auto", see `lib.merge_step`.
        shard: this process's part under torch.distributed. theta0, task_vectors and rescaled_mask are then that part;
            each process's objective sees its own share of the batch, and losses and gradients add up.

    Returns:
        What was learned, and the curve of the loss.

    Raises:
        ValueError: for arguments that contradict each other, or a loss that is not finite (naming the step).
    """
    shard = shard or Shard(layout)
    if shard.ranks == 1 and isinstance(theta0, Tensor):
        check_task_vectors(theta0, task_vectors, layout)
    if coefficients not in GRANULARITIES:
        raise ValueError(f"coefficients={coefficients!r}, expected one of {GRANULARITIES}")
    if learn_mask and rescaled_mask is not None:
        raise ValueError("give either learn_mask=True or a fixed rescaled_mask, not both")
    if not learn_mask and coefficients is None:
        raise ValueError("nothing to learn: set coefficients to 'task' or 'layer', or learn_mask=True")

    tasks = len(task_vectors)
    if coefficients is None and tasks > 1:  # with coefficients left alone only the sum matters, whatever T
        task_vectors = task_vectors.sum(0, keepdim=True)
    start = initial_coefficients(len(task_vectors), layout, coefficients, initial_coefficient).to(task_vectors)
    current = start.clone()
    optimiser = torch.optim.Adam([current], lr=learning_rate)
    merging = MergeStep(theta0, task_vectors, layout, rescaled_mask=rescaled_mask, backend=backend, shard=shard)
    if learn_mask:
        merging.learn_mask(temperature=temperature, learning_rate=mask_learning_rate, seed=seed_of("mask", seed))
    curve: list[dict[str, float]] = []
    checkpoint = checkpoint or Checkpoint(None)

    def state() -> dict:
        mask = merging.state() if learn_mask else None
        return {"current": current, "mask": mask, "optimiser": optimiser.state_dict(), "curve": curve}

    if saved := checkpoint.load():
        current.copy_(saved["current"])
        optimiser.load_state_dict(saved["optimiser"])
        if learn_mask:
            merging.load_state(saved["mask"])
        curve = saved["curve"]

    def recent_loss() -> str:
        return f"loss {curve[-1]['loss']:.3f}" if curve else ""

    for step in progress(range(len(curve), steps), label, total=steps - len(curve), postfix=recent_loss):
        density = float("nan")
        if learn_mask:
            means = merging.draw(step)
            density = (means * layout.counts(means)).sum().item() / layout.parameters
        if coefficients is not None:
            if learn_mask:
                current.copy_(start)  # the inner level restarts at every step; Adam's moments are kept, as published
            objective = objective_at(2 * step if learn_mask else step)  # two levels, two batches
            loss, gradient = objective(merging.merge(current))
            by_layer = merging.coefficient_gradient(gradient)
            current.grad = by_layer if coefficients == "layer" else by_layer.sum(1)
            optimiser.step()
        if learn_mask:
            objective = objective_at(step if coefficients is None else 2 * step + 1)
            loss, gradient = objective(merging.merge(current))
            merging.update_mask(gradient)
        loss = shard.total(loss)
        if not math.isfinite(loss):
            raise ValueError(f"{label}: the loss is {loss} at step {step}; lower the learning rate")
        watched = watch(merging) if watch else {}
        curve.append({"step": step, "loss": loss, "mask_mean": density, **watched})
        checkpoint.save(state)
    if learn_mask:  # what this phase learns is the mask; coefficients start anew inside it
        current = initial_coefficients(tasks, layout, coefficients, initial_coefficient).to(task_vectors)
    logits = shard.gather(merging.logits) if learn_mask else None
    return Adapted(current, logits, pd.DataFrame(curve))
