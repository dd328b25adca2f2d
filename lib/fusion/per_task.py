"""Merging that keeps something small of each task: the result is a model per task, made from one shared vector.

They answer another question than a merged model does: whoever runs them must know which task an input belongs to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.fusion.masking import MASK_LAMBDA, tall_mask
from lib.fusion.methods import fusion_method
from lib.vectors.layout import Layout


@fusion_method("TALL masks", "Wang et al., 2024", "https://arxiv.org/abs/2405.07813", keeps="a binary mask")
def tall_masks(theta0: Tensor, task_vectors: Tensor, layout: Layout, *, mask_lambda: float = MASK_LAMBDA) -> Tensor:
    """Each task's own entries of the sum of all task vectors (Wang et al., 2024).

        theta_t = theta0 + m_t tau_MTL,   m_t = |tau_t| >= lambda |tau_MTL - tau_t|,   tau_MTL = sum_t tau_t

    One task gives the expert, and so do tasks that changed different parameters. FusionBench's algorithm compares
    |theta0 - tau_t| with lambda |tau_MTL - tau_t|, a slip: its task vector takes the place of the expert.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused.
        mask_lambda: lambda, the same for all tasks; a larger one selects less. The authors choose one for each task on
            validation data.

    Returns:
        Parameters for each task [T, D].

    Raises:
        ValueError: if lambda is negative.
    """
    total = task_vectors.sum(0)
    points = torch.empty_like(task_vectors)
    for point, row in zip(points, task_vectors, strict=True):
        torch.mul(total, tall_mask(row, total, mask_lambda), out=point)
        point += theta0
    return points


@fusion_method(
    "EMR-Merging", "Huang et al., 2024", "https://arxiv.org/abs/2405.17461", keeps="a binary mask and a factor"
)
def emr_merging(theta0: Tensor, task_vectors: Tensor, layout: Layout) -> Tensor:
    """Elect one vector, mask it by each task's signs, rescale it to each task's size (Huang et al., 2024).

    1. elect: per parameter, the sign of sum_t tau_t and the largest magnitude among the entries that carry it,
       tau = sign * max_t |tau_t|; where the tasks cancel exactly nobody is elected;
    2. mask: m_t = tau_t tau > 0;
    3. rescale: factor_t = sum |tau_t| / sum |m_t tau|, over all parameters; theta_t = theta0 + factor_t m_t tau.

    One task gives the expert, and so do tasks that changed different parameters. A task of which no entry is elected
    keeps theta0. There is nothing to choose. The authors' code and FusionBench's take the sum over layers of each
    layer's mean in step 3, so that a bias counts as much as a matrix, and elect minus where the tasks cancel.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused.

    Returns:
        Parameters for each task [T, D].
    """
    sign = task_vectors.sum(0).sign()
    elected = torch.zeros_like(theta0)
    for row in task_vectors:
        torch.maximum(elected, row * sign, out=elected)
    elected *= sign
    points = torch.empty_like(task_vectors)
    for point, row in zip(points, task_vectors, strict=True):
        torch.mul(elected, row * sign > 0, out=point)
        size = point.abs().sum()
        point *= torch.where(size > 0, row.abs().sum() / size, 0)
        point += theta0
    return points
