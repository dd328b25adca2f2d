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

from lib import concrete
from lib.layout import Layout
from lib.objectives import Objective
from lib.progress import progress
from lib.rng import generator
from lib.store import Checkpoint
from lib.task_vectors import check_task_vectors

GRANULARITIES = ("task", "layer", None)
VERSION = 1  # part of every artifact key; raise it when the loop's arithmetic changes


@dataclass(frozen=True)
class Adapted:
    """Outcome of the loop.

    Attributes:
        coefficients: merging coefficients [T] or [T, L] (their initial value when only a mask was learned).
        logits: mask logits [D], or None when no mask was learned.
        curve: one row per step: step, loss (nats, summed over tasks) and mask_mean.
    """

    coefficients: Tensor
    logits: Tensor | None
    curve: pd.DataFrame


def initial_coefficients(tasks: int, layout: Layout, granularity: str | None, value: float) -> Tensor:
    """Coefficients all equal to `value`: [T, L] for "layer", else [T]."""
    return torch.full((tasks, layout.layers) if granularity == "layer" else (tasks,), value)


def adapt(
    objective_at: Callable[[int], Objective],
    theta0: Tensor,
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
) -> Adapted:
    """Minimise the objective over coefficients, mask logits, or both (see the module's table).

    Args:
        objective_at: number of a batch -> objective on that unlabelled batch, which maps theta [D] to (loss, G [D]).
            The two levels of a bi-level step take batches of their own.
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
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
        checkpoint: where to save and from where to continue.

    Returns:
        What was learned, and the curve of the loss.

    Raises:
        ValueError: for arguments that contradict each other, or a loss that is not finite (naming the step).
    """
    check_task_vectors(theta0, task_vectors, layout)
    if coefficients not in GRANULARITIES:
        raise ValueError(f"coefficients={coefficients!r}, expected one of {GRANULARITIES}")
    if learn_mask and rescaled_mask is not None:
        raise ValueError("give either learn_mask=True or a fixed rescaled_mask, not both")
    if not learn_mask and coefficients is None:
        raise ValueError("nothing to learn: set coefficients to 'task' or 'layer', or learn_mask=True")

    start = initial_coefficients(len(task_vectors), layout, coefficients, initial_coefficient).to(theta0)
    current = start.clone()
    logits = torch.zeros_like(theta0) if learn_mask else None
    coefficient_optimiser = torch.optim.Adam([current], lr=learning_rate)
    mask_optimiser = torch.optim.Adam([logits], lr=mask_learning_rate) if learn_mask else None
    optimisers = [optimiser for optimiser in (coefficient_optimiser, mask_optimiser) if optimiser]
    # With coefficients left alone, S never changes: sum it up once, whatever T.
    summed = concrete.weighted_sum(task_vectors, current, layout) if coefficients is None else None
    curve: list[tuple[int, float, float]] = []
    checkpoint = checkpoint or Checkpoint(None)

    def state() -> dict:
        states = [optimiser.state_dict() for optimiser in optimisers]
        return {"current": current, "logits": logits, "optimisers": states, "curve": curve}

    if saved := checkpoint.load():
        current.copy_(saved["current"])
        if logits is not None:
            logits.copy_(saved["logits"])
        for optimiser, values in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        curve = [tuple(row) for row in saved["curve"]]

    def recent_loss() -> str:
        return f"loss {curve[-1][1]:.3f}" if curve else ""

    for step in progress(range(len(curve), steps), label, total=steps - len(curve), postfix=recent_loss):
        if learn_mask:
            uniform = torch.rand(layout.length, generator=generator("mask", seed, step)).to(theta0)
            mask = concrete.sample_mask(logits, temperature, uniform, layout)
            rescaled_mask = concrete.rescale(mask, layout)
        if coefficients is not None:
            if learn_mask:
                current.copy_(start)  # the inner level restarts at every step; Adam's moments are kept, as published
            summed = concrete.weighted_sum(task_vectors, current, layout)
            objective = objective_at(2 * step if learn_mask else step)  # two levels, two batches
            loss, gradient = objective(concrete.merge_sum(theta0, summed, rescaled_mask))
            current.grad = concrete.coefficient_gradient(
                gradient, task_vectors, layout, rescaled_mask, coefficients == "layer"
            )
            coefficient_optimiser.step()
        if learn_mask:
            if coefficients is not None:
                summed = concrete.weighted_sum(task_vectors, current, layout)
            objective = objective_at(step if coefficients is None else 2 * step + 1)
            loss, gradient = objective(concrete.merge_sum(theta0, summed, rescaled_mask))
            logits.grad = concrete.logit_gradient(gradient, summed, mask, temperature, layout)
            mask_optimiser.step()
        if not math.isfinite(loss):
            raise ValueError(f"{label}: the loss is {loss} at step {step}; lower the learning rate")
        density = mask.sum().item() / layout.parameters if learn_mask else float("nan")
        curve.append((step, loss, density))
        checkpoint.save(state)
    if learn_mask and coefficients is not None:
        current.copy_(start)  # what the bi-level phase learns is the mask; the coefficients start anew inside it
    return Adapted(current, logits, pd.DataFrame(curve, columns=["step", "loss", "mask_mean"]))
