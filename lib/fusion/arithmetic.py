"""Merging by arithmetic on task vectors: averages, sums, and sums of what trimming or dropping leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.fusion.methods import fusion_method
from lib.runtime.rng import generator
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import sum_of


@fusion_method("Weight averaging", "Wortsman et al., 2022", "https://arxiv.org/abs/2203.05482", sums_only=True)
def weight_averaging(theta0: Tensor, task_vectors: Tensor, layout: Layout) -> Tensor:
    """The mean of the experts: theta = theta0 + (1/T) sum_t tau_t (Wortsman et al., 2022).

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused; every method takes the same arguments.

    Returns:
        Merged parameters [D].
    """
    return theta0 + sum_of(task_vectors, theta0) / len(task_vectors)


@fusion_method("Task Arithmetic", "Ilharco et al., 2023", "https://arxiv.org/abs/2212.04089", sums_only=True)
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
    return theta0 + scaling_factor * sum_of(task_vectors, theta0)


# Scaling factor that belongs to each rule of the disjoint merge, unless another is given.
TIES_RULES = {"sum": 0.3, "mean": 1.0}
SLICE = 1 << 16  # entries merged at once: T times as many are the only temporaries, and they stay in the cache


@fusion_method("Ties-Merging", "Yadav et al., 2023", "https://arxiv.org/abs/2306.01708")
def ties_merging(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    scaling_factor: float | None = None,
    density: float = 0.2,
    rule: str = "sum",
) -> Tensor:
    """Trim, elect sign, disjoint merge (Yadav et al., 2023, Algorithm 1).

    1. trim: keep each task vector's `density` largest entries by magnitude, zero the others; entries exactly as large
       as the smallest one kept are kept too, so that the result does not depend on where an entry lies;
    2. elect: per parameter, the sign with the larger total magnitude, sign(sum_t tau_t); where the two sides cancel
       exactly nobody is elected and the parameter keeps theta0;
    3. disjoint merge: the entries that carry the elected sign, by `rule`.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells how many entries are parameters (padding does not count towards the density).
        scaling_factor: factor of the merged task vector; by default the one that belongs to the rule.
        density: share of entries that survives trimming, in (0, 1].
        rule: "sum" is what the codes behind the published eight-task numbers do, scaled by 0.3; "mean" is the paper's
            disjoint mean over the tasks that carry the elected sign, scaled by 1.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if the density is out of range or the rule unknown.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}, expected a share in (0, 1]; the paper keeps 0.2")
    if rule not in TIES_RULES:
        raise ValueError(f"rule is '{rule}', expected one of: {', '.join(TIES_RULES)}")
    scaling_factor = TIES_RULES[rule] if scaling_factor is None else scaling_factor
    smallest, merged = _smallest_kept(task_vectors, layout, density), torch.empty_like(theta0)
    for rows, out in zip(task_vectors.split(SLICE, 1), merged.split(SLICE), strict=True):
        elected, agreeing = _elect(rows, smallest)
        total = agreeing.sum(0).mul_(elected)
        out.copy_(total / agreeing.count_nonzero(0).clamp_(min=1) if rule == "mean" else total)
    return theta0 + scaling_factor * merged


def _smallest_kept(task_vectors: Tensor, layout: Layout, density: float) -> Tensor:
    """The smallest magnitude that trimming keeps of each task vector: [T, D] -> [T, 1]."""
    place = layout.length - max(1, int(density * layout.parameters)) + 1
    # one task at a time: selecting copies the row and its places, 12 bytes an entry
    return torch.stack([row.abs().kthvalue(place).values for row in task_vectors])[:, None]


def _elect(rows: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """Steps 1 and 2 on some entries [T, N]: the elected signs [N], the magnitudes of what carries them [T, N]."""
    trimmed = torch.where(rows.abs() >= smallest, rows, 0)
    elected = trimmed.sum(0).sign()
    return elected, (trimmed * elected).clamp_(min=0)


def ties_parts(task_vectors: Tensor, layout: Layout, density: float = 0.2) -> Tensor:
    """What each task contributes to the sum of Ties-Merging, its entries of the elected sign: [T, D] -> [T, D]."""
    smallest, parts = _smallest_kept(task_vectors, layout, density), torch.empty_like(task_vectors)
    for rows, out in zip(task_vectors.split(SLICE, 1), parts.split(SLICE, 1), strict=True):
        elected, agreeing = _elect(rows, smallest)
        torch.mul(agreeing, elected, out=out)
    return parts


@fusion_method("DARE", "Yu et al., 2024", "https://arxiv.org/abs/2311.03099")
def dare(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    scaling_factor: float = 0.3,
    drop_rate: float = 0.5,
    seed: int = 0,
    kept: Tensor | None = None,
) -> Tensor:
    """Drop entries at random, rescale the rest, then Task Arithmetic (Yu et al., 2024).

    m_t ~ Bernoulli(1 - p) per entry,  theta = theta0 + scaling_factor * sum_t m_t tau_t / (1 - p), so every entry keeps
    its expectation.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: unused.
        scaling_factor: factor of the sum, as in Task Arithmetic.
        drop_rate: p, the share of entries dropped, in [0, 1). The paper drops 0.9 of large language models; small
            models bear less.
        seed: of the random masks. The mask belongs to the row: another order of the tasks draws another result.
        kept: boolean [T, D], which entries to keep, instead of drawing; p still sets the rescaling.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if the drop rate is out of range, or `kept` is not boolean or has another shape.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate is {drop_rate}, expected a share in [0, 1): something must be left to rescale")
    if kept is not None and (kept.dtype != torch.bool or kept.shape != task_vectors.shape):
        wanted = f"expected torch.bool {list(task_vectors.shape)} like the task vectors"
        raise ValueError(f"kept is {kept.dtype} {list(kept.shape)}, {wanted}")
    total = torch.zeros_like(theta0)
    for task, row in enumerate(task_vectors):  # one at a time: random numbers for all would not fit beside them
        if kept is None:
            keep = torch.rand(len(row), generator=generator("DARE", seed, task)) >= drop_rate
        else:
            keep = kept[task]
        total.add_(torch.where(keep.to(row.device), row, 0))
    return theta0 + scaling_factor / (1 - drop_rate) * total
