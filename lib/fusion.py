"""Merging task vectors without training: pure functions from tensors to a tensor.

Every method has the signature `method(theta0: [D], task_vectors: [T, D], layout, *, hyperparameters) -> [D]` and
carries its paper through the decorator `fusion_method`, from which the notebooks build their table of methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.layout import Layout
from lib.task_vectors import check_task_vectors


@dataclass(frozen=True)
class FusionMethod:
    """A fusion method and where it comes from."""

    name: str
    paper: str
    merge: Callable[..., Tensor]


METHODS: dict[str, FusionMethod] = {}


def fusion_method(name: str, paper: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a merging function under its printed name, with the link of its paper; its inputs are checked."""

    def register(merge: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def checked(theta0: Tensor, task_vectors: Tensor, layout: Layout, **hyperparameters: float) -> Tensor:
            check_task_vectors(theta0, task_vectors, layout)
            return merge(theta0, task_vectors, layout, **hyperparameters)

        checked.__name__, checked.__doc__ = merge.__name__, merge.__doc__
        METHODS[merge.__name__] = FusionMethod(name, paper, checked)
        return checked

    return register


@fusion_method("Weight averaging", "https://arxiv.org/abs/2203.05482")
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


@fusion_method("Task Arithmetic", "https://arxiv.org/abs/2212.04089")
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


@fusion_method("Ties-Merging", "https://arxiv.org/abs/2306.01708")
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
