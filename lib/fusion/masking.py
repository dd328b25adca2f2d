"""Merging by masks: entries that several tasks use, entries of middling size; and layers as far as the tasks agree."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.fusion.methods import fusion_method
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import cosine_similarity

# Wang et al. choose each task's lambda among 0.2, 0.3, ..., 0.6 on validation images; FusionBench is configured to 0.6.
MASK_LAMBDA = 0.6


def tall_mask(task_vector: Tensor, total: Tensor, mask_lambda: float) -> Tensor:
    """Where a task finds its own entries in the sum: |tau_t| >= lambda |sum_s tau_s - tau_t| (Wang et al., 2024).

    Args:
        task_vector: tau_t [D].
        total: the sum over the tasks [D].
        mask_lambda: how far the other tasks may move an entry, relative to the task itself; a larger one selects less.

    Returns:
        Boolean mask [D]. It is true in the padding, where the sum is zero.

    Raises:
        ValueError: if lambda is negative or not finite.
    """
    if not 0 <= mask_lambda < float("inf"):
        raise ValueError(f"mask_lambda is {mask_lambda}, expected a number >= 0; the paper takes 0.2 to 0.6")
    return task_vector.abs() >= (total - task_vector).abs_().mul_(mask_lambda)


@fusion_method("Consensus Task Arithmetic", "Wang et al., 2024", "https://arxiv.org/abs/2405.07813")
def consensus_task_arithmetic(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    scaling_factor: float = 0.3,
    mask_lambda: float = MASK_LAMBDA,
    min_tasks: int = 2,
) -> Tensor:
    """Task Arithmetic on the entries that several tasks use (Wang et al., 2024).

        m_t = |tau_t| >= lambda |tau_MTL - tau_t|,   tau_MTL = sum_t tau_t,
        theta = theta0 + scaling_factor * (sum_t m_t >= k) tau_MTL

    Entries that one task selects ("selfish") or none ("catastrophic") keep theta0. So with k = 2 one task gives theta0,
    as in the authors' code, and with k = 0 this is Task Arithmetic. FusionBench has no such method.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused; every method takes the same arguments.
        scaling_factor: of what is left; 0.3 as for Task Arithmetic, the authors choose it on validation data.
        mask_lambda: lambda, the same for all tasks; a larger one selects less.
        min_tasks: k, how many tasks must select an entry; 2 is the default of the authors' code.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if lambda or k is negative.
    """
    if min_tasks < 0:
        raise ValueError(f"min_tasks is {min_tasks}, expected a number of tasks >= 0; the authors take 2")
    total = task_vectors.sum(0)
    votes = torch.zeros_like(total, dtype=torch.int32)
    for row in task_vectors:  # one at a time: masks of all tasks are never needed together
        votes += tall_mask(row, total, mask_lambda)
    return theta0 + scaling_factor * torch.where(votes >= min_tasks, total, 0)


@fusion_method("Model Breadcrumbs", "Davari and Belilovsky, 2023", "https://arxiv.org/abs/2312.06795")
def model_breadcrumbs(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    scaling_factor: float = 0.2,
    density: float = 0.15,
    outliers: float = 0.006,
) -> Tensor:
    """Sum what is neither large nor small in its layer (Davari and Belilovsky, 2023).

    Of each layer of each task, drop the share `outliers` of the largest entries by magnitude, keep the share `density`
    that follows, and drop the rest; then theta = theta0 + scaling_factor * sum_t m_t tau_t. The defaults are the point
    at which the search of the authors' code starts. That code counts in each row of a matrix, the paper and mergekit in
    each layer. FusionBench has no such method. Entries as large as the largest or the smallest one kept are kept too,
    so that the result does not depend on where an entry lies. A layer keeps at least one entry.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: where each layer lies.
        scaling_factor: alpha, factor of the sum.
        density: share of a layer's entries that is kept, in (0, 1]; the paper's beta is 1 - density - outliers.
        outliers: gamma, the share of the largest entries that is dropped, in [0, 1).

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if a share is out of range, or they add up to more than 1.
    """
    if not (0 < density <= 1 and 0 <= outliers < 1 and density + outliers <= 1):
        raise ValueError(f"density is {density} and outliers {outliers}: expected shares in (0, 1] and [0, 1) that "
                         "add up to at most 1; the authors start from 0.15 and 0.006")  # fmt: skip
    merged = torch.zeros_like(theta0)
    for row in task_vectors:
        for start, size in zip(layout.offsets, layout.sizes, strict=False):
            layer = row[start : start + size]
            magnitudes = layer.abs()
            kept = max(1, int(density * size))
            below = size - min(int(outliers * size), size - kept)  # how many are not outliers
            largest = magnitudes.kthvalue(below).values
            smallest = magnitudes.kthvalue(below - kept + 1).values
            middle = (magnitudes >= smallest) & (magnitudes <= largest)
            merged[start : start + size] += torch.where(middle, layer, 0)
    return theta0 + scaling_factor * merged


@fusion_method("Model Stock", "Jang et al., 2024", "https://arxiv.org/abs/2403.19522")
def model_stock(theta0: Tensor, task_vectors: Tensor, layout: Layout) -> Tensor:
    """The mean of the experts, drawn back to theta0 in each layer as far as they disagree (Jang et al., 2024).

        theta = theta0 + t mean_t tau_t,   t = T c / (1 + (T - 1) c),

    with c the mean cosine of the angles between the layer's task vectors. If they scatter around one centre at equal
    angles, this is the point nearest to that centre. It was made for experts of one task; those of different tasks are
    close to orthogonal, so that t is small. There is nothing to choose.

    One task has no angle and gives the expert. Where c is negative there is no such centre and the layer keeps theta0,
    so that t stays in [0, 1]; FusionBench and mergekit go backwards there, without limit as c approaches -1 / (T - 1).
    FusionBench averages the angles instead of their cosines.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: where each layer lies.

    Returns:
        Merged parameters [D].
    """
    tasks = len(task_vectors)
    merged = task_vectors.mean(0)
    for start, size in zip(layout.offsets, layout.sizes, strict=False):
        if tasks > 1:
            cosines = cosine_similarity(task_vectors[:, start : start + size])
            cosine = cosines.triu(1).sum().clamp(min=0) / (tasks * (tasks - 1) / 2)
            merged[start : start + size] *= tasks * cosine / (1 + (tasks - 1) * cosine)
    return theta0 + merged
