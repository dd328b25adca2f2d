"""Merging layer by layer in the singular vectors of the task vectors, instead of entry by entry.

Only layers of two dimensions are matrices here: linear layers, projections, tables of embeddings. For every other
layer (biases, norms, convolution kernels of four dimensions) these methods take the mean of the task vectors. That is
the rule of the published codes, which do not flatten kernels into matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lib.fusion.methods import fusion_method
from lib.vectors.layout import Layout


def _layer_by_layer(task_vectors: Tensor, layout: Layout, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """Merge the matrices by `merge`: [T, m, n] -> [m, n], everything else by its mean: [T, D] -> [D]."""
    merged = task_vectors.mean(0)
    for view, start, size in zip(layout.views(merged).values(), layout.offsets, layout.sizes, strict=False):
        if view.dim() == 2:
            view.copy_(merge(task_vectors[:, start : start + size].unflatten(1, view.shape)))
    return merged


def _parts_by_layer(task_vectors: Tensor, layout: Layout, split: Callable[[Tensor], Tensor]) -> Tensor:
    """The same as one part per task: matrices by `split`, [T, m, n] -> [T, m, n], the rest as its share of the mean."""
    parts = task_vectors / len(task_vectors)
    for shape, start, size in zip(layout.shapes, layout.offsets, layout.sizes, strict=False):
        if len(shape) == 2:
            matrices = task_vectors[:, start : start + size].unflatten(1, shape)
            parts[:, start : start + size] = split(matrices).flatten(1)
    return parts


def thin_svd(matrix: Tensor, part_of: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition without the null directions: U [m, r], s [r], V^T [r, n], r the rank.

    Where a singular value is zero its vectors are any basis of what is left, another one in every LAPACK: directions
    that no task asked for. In floating point such values are not 0 but rounding noise, so the rank is NumPy's and
    MATLAB's: what exceeds max(m, n) * eps * (largest singular value) counts. A LoRA adapter as a change of weights has
    as many directions as its rank, and hundreds of noise.

    Args:
        matrix: [m, n].
        part_of: the matrix [m, n] that this one is what is left of, whose rounding errors it has; by default itself.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    largest = s[:1] if part_of is None else torch.linalg.matrix_norm(part_of, 2)
    rank = int((s > max(matrix.shape) * torch.finfo(s.dtype).eps * largest).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows), U V^T: the orthogonal Procrustes problem."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@fusion_method("TSV-M", "Gargiulo et al., 2025", "https://arxiv.org/abs/2412.00081")
def tsv_m(theta0: Tensor, task_vectors: Tensor, layout: Layout, *, scaling_factor: float = 1.0) -> Tensor:
    """Task Singular Vectors, merged: a share of the rank for each task, made orthogonal (Gargiulo et al., 2025).

    Per matrix of rank at most r = min(m, n), with SVD tau_t = U_t S_t V_t^T:

    1. keep of each task its k = r // T largest singular values with their vectors;
    2. put them side by side, U = [U_1 ... U_T], V = [V_1 ... V_T], and replace both by the nearest matrices with
       orthonormal columns, so that tasks do not interfere;
    3. tau = U_orthogonal diag(S_1, ..., S_T) V_orthogonal^T.

    As in the published code, a layer with r < T leaves no direction to any task and keeps theta0, and step 2 is not
    unique where directions of tasks are linearly dependent. One task with scaling factor 1 gives the expert.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells which layers are matrices; the others get the mean of the task vectors.
        scaling_factor: factor of the merged task vector; the paper's is 1.

    Returns:
        Merged parameters [D].
    """

    def merge(matrices: Tensor) -> Tensor:
        left, values, right = _orthogonal_factors(matrices)
        return (torch.cat(left, 1) * torch.cat(values)) @ torch.cat(right)

    return theta0 + scaling_factor * _layer_by_layer(task_vectors, layout, merge)


def _orthogonal_factors(matrices: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Steps 1 and 2 of TSV-M: of each task U [m, k], singular values [k] and V^T [k, n], orthogonal to the others'."""
    rank = min(matrices.shape[1:]) // len(matrices)
    u, s, vh = zip(*((u[:, :rank], s[:rank], vh[:rank]) for u, s, vh in map(thin_svd, matrices)), strict=True)
    sizes = [len(own) for own in s]  # a task of low rank has fewer than its share
    left, right = _orthogonal(torch.cat(u, 1)), _orthogonal(torch.cat(vh, 0))
    return left.split(sizes, 1), s, right.split(sizes)


def tsv_m_parts(task_vectors: Tensor, layout: Layout) -> Tensor:
    """What each task contributes to TSV-M's merged task vector: U_t diag(S_t) V_t^T after step 2, [T, D] -> [T, D]."""

    def split(matrices: Tensor) -> Tensor:
        factors = zip(*_orthogonal_factors(matrices), strict=True)
        return torch.stack([(left * values) @ right for left, values, right in factors])

    return _parts_by_layer(task_vectors, layout, split)


@fusion_method("Iso-C", "Marczak et al., 2025", "https://arxiv.org/abs/2502.04959")
def iso_c(theta0: Tensor, task_vectors: Tensor, layout: Layout, *, scaling_factor: float = 1.0) -> Tensor:
    """Isotropic merging in the common subspace: the sum with all singular values equal (Marczak et al., 2025).

    Per matrix, with sum_t tau_t = U diag(s) V^T: tau = mean(s) U V^T, the mean over the singular values that are not
    zero. The spectrum is flattened even for one task, so one task does not give back the expert.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells which layers are matrices; the others get the mean of the task vectors.
        scaling_factor: factor of the merged task vector; the paper chooses it on validation data.

    Returns:
        Merged parameters [D].
    """

    def merge(matrices: Tensor) -> Tensor:
        u, s, vh = thin_svd(matrices.sum(0))
        return s.sum() / max(1, len(s)) * (u @ vh)

    return theta0 + scaling_factor * _layer_by_layer(task_vectors, layout, merge)


def iso_c_parts(task_vectors: Tensor, layout: Layout) -> Tensor:
    """What each task contributes to Iso-C's merged task vector: mean(s) U diag(1 / s) U^T tau_t, [T, D] -> [T, D].

    Added up over tasks that is mean(s) U V^T, as sum_t tau_t = U diag(s) V^T.
    """

    def split(matrices: Tensor) -> Tensor:
        u, s, _ = thin_svd(matrices.sum(0))
        return s.sum() / max(1, len(s)) * ((u / s) @ (u.mT @ matrices))

    return _parts_by_layer(task_vectors, layout, split)


@fusion_method("Iso-CTS", "Marczak et al., 2025", "https://arxiv.org/abs/2502.04959")
def iso_cts(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    scaling_factor: float = 1.0,
    common_space_fraction: float = 0.8,
) -> Tensor:
    """Isotropic merging in common and task-specific subspaces (Marczak et al., 2025, Algorithm 2).

    Iso-C whose weakest directions give way to directions of single tasks. Per matrix, with r = min(m, n):

    1. common: the first r - T k singular vectors U_c, V_c of sum_t tau_t, k = round((r - int(fraction r)) / T);
    2. specific: the first k singular vectors of each tau_t - U_c U_c^T tau_t;
    3. side by side, made orthogonal as in TSV-M, every singular value replaced by their mean.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells which layers are matrices; the others get the mean of the task vectors.
        scaling_factor: factor of the merged task vector; the paper chooses it on validation data.
        common_space_fraction: share of the directions that is common, in [0, 1]; 1 is Iso-C.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if the fraction is out of range.
    """
    if not 0 <= common_space_fraction <= 1:
        raise ValueError(f"common_space_fraction is {common_space_fraction}, expected a share in [0, 1], e.g. 0.8")

    def merge(matrices: Tensor) -> Tensor:
        tasks, rank = len(matrices), min(matrices.shape[1:])
        specific = round((rank - int(rank * common_space_fraction)) / tasks)
        specific = min(specific, rank // tasks)  # rounded up, all tasks together could ask for more than the rank
        common = rank - tasks * specific
        u, s, vh = thin_svd(matrices.sum(0))
        parts = [(u[:, :common], s[:common], vh[:common])]
        basis = parts[0][0]
        for matrix in matrices:
            u, s, vh = thin_svd(matrix - basis @ (basis.mT @ matrix), part_of=matrix)
            parts.append((u[:, :specific], s[:specific], vh[:specific]))
        u, s, vh = zip(*parts, strict=True)
        s = torch.cat(s)
        return s.sum() / max(1, len(s)) * (_orthogonal(torch.cat(u, 1)) @ _orthogonal(torch.cat(vh, 0)))

    return theta0 + scaling_factor * _layer_by_layer(task_vectors, layout, merge)


@fusion_method("WUDI-Merging", "Cheng et al., 2025", "https://arxiv.org/abs/2503.08099")
def wudi_merging(
    theta0: Tensor, task_vectors: Tensor, layout: Layout, *, steps: int = 300, learning_rate: float = 1e-5
) -> Tensor:
    """Move the sum of the task vectors to where it disturbs each task's own inputs least (Cheng et al., 2025).

    A task vector lies in the span of its layer's inputs, so it can stand for them. Per matrix, from tau = sum_t tau_t,
    Adam on

        loss = sum_t ||(tau - tau_t) tau_t^T||_F^2 / ||tau_t||_F^2,
        gradient = 2 (tau G - H),   G = sum_t G_t,   H = sum_t tau_t G_t,   G_t = tau_t^T tau_t / ||tau_t||_F^2.

    G [n, n] and H [m, n] are computed once: a step costs one product of matrices whatever T is. There is no scaling
    factor, but the learning rate has the units of a parameter: 300 steps of 1e-5 move none by much more than 0.003.
    One task is its own optimum and gives the expert.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: tells which layers are matrices [m outputs, n inputs]; the others get the mean of the task vectors.
        steps: Adam steps.
        learning_rate: of Adam.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if the number of steps is negative or the learning rate not positive.
    """
    if steps < 0 or learning_rate <= 0:
        raise ValueError(f"steps is {steps} and learning_rate {learning_rate}: expected at least 0 and more than 0")

    def merge(matrices: Tensor) -> Tensor:
        gram, pull = torch.zeros(()), torch.zeros(())
        for matrix in matrices:
            norm = matrix.square().sum()
            one = matrix.mT @ matrix / torch.where(norm > 0, norm, 1)  # a task that left this layer alone asks nothing
            gram, pull = gram + one, pull + matrix @ one
        merged = matrices.sum(0)
        adam = torch.optim.Adam([merged], lr=learning_rate)
        for _ in range(steps):
            merged.grad = 2 * (merged @ gram - pull)
            adam.step()
        return merged

    return theta0 + _layer_by_layer(task_vectors, layout, merge)
