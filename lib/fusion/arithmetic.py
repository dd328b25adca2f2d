"""Merging by arithmetic on task vectors: averages, sums, and sums of what trimming or dropping leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.fusion.methods import fusion_method
from lib.layout import Layout


@fusion_method("Weight averaging", "Wortsman et al., 2022", "https://arxiv.org/abs/2203.05482")
def weight_averaging(theta0: Tensor, task_vectors: Tensor, layout: Layout) -> Tensor:
    """The mean of the experts: theta = theta0 + (1/T) sum_t tau_t (Wortsman et al., 2022).

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused; every method takes the same arguments.

    Returns:
        Merged parameters [D].
    """
    return theta0 + task_vectors.mean(0)


@fusion_method("Task Arithmetic", "Ilharco et al., 2023", "https://arxiv.org/abs/2212.04089")
def task_arithmetic(theta0: Tensor, task_vectors: Tensor, layout: Layout, *, scaling_factor: float = 0.3) -> Tensor:
    """The scaled sum of task vectors: theta = theta0 + scaling_factor * sum_t tau_t (Ilharco et al., 2023).

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused.
        scaling_factor: the one factor for all tasks; 0.3 is the paper's choice for eight tasks.

    Returns:
        Merged parameters [D].
    """
    return theta0 + scaling_factor * task_vectors.sum(0)


@fusion_method("Ties-Merging", "Yadav et al., 2023", "https://arxiv.org/abs/2306.01708")
def ties_merging(
    theta0: Tensor, task_vectors: Tensor, layout: Layout, *, scaling_factor: float = 0.3, density: float = 0.2
) -> Tensor:
    """Trim, elect sign, disjoint merge (Yadav et al., 2023, Algorithm 1), then sum as published codes do.

    1. trim: keep each task vector's `density` largest entries by magnitude, zero the others;
    2. elect: per parameter, the sign with the larger total magnitude, sign(sum_t tau_t);
    3. disjoint merge: sum only the entries that carry the elected sign.

    The paper's step 3 takes the mean of these entries and scales it by about 1; the codes behind the published
    eight-task numbers take their sum and scale it by 0.3, which is the rule here.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells how many entries are parameters (padding does not count towards the density).
        scaling_factor: factor of the merged task vector.
        density: share of entries that survives trimming, in (0, 1].

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if the density is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}, expected a share in (0, 1]; the paper keeps 0.2")
    keep = max(1, int(density * layout.parameters))
    threshold = torch.topk(task_vectors.abs(), keep, dim=1).values[:, -1:]
    trimmed = torch.where(task_vectors.abs() >= threshold, task_vectors, 0)
    elected = torch.sign(trimmed.sum(0))
    merged = torch.where(torch.sign(trimmed) == elected, trimmed, 0).sum(0)
    return theta0 + scaling_factor * merged
