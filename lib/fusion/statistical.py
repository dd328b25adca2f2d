"""Merging by statistics of the tasks' data: averages in which each task counts where its data says it matters.

The statistics (diagonal Fisher information, Gram matrices of layer inputs) come from the rooms of vision and language;
nothing here sees a model or an image. All three methods work on task vectors, so that equal experts give back exactly
their value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lib.fusion.methods import fusion_method
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import length

NON_DIAGONAL = 0.9  # as Jin et al. take for most models; FusionBench's CLIP configurations take 0.95

GramsAt = Callable[[int, Tensor, tuple[str, ...]], Mapping[str, Tensor]]


@fusion_method("Fisher merging", "Matena and Raffel, 2022", "https://arxiv.org/abs/2111.09832", needs_data=True)
def fisher_merging(
    theta0: Tensor, task_vectors: Tensor, layout: Layout, *, fisher: Tensor, normalise: bool = True, floor: float = 0.0
) -> Tensor:
    """Average the experts, each parameter weighted by its Fisher information (Matena and Raffel, 2022, section 3).

        theta_i = sum_t F_ti theta_ti / sum_t F_ti

    which maximises the product of the experts' posteriors, each approximated by a Gaussian of diagonal precision F_t.
    With `normalise` each F_t is divided by its length |F_t|, as in the authors' code, so that an expert whose gradients
    are large everywhere does not win everywhere. A parameter of which no task has information is plainly averaged.

    FusionBench's rule is floor=1e-6: (F_t + floor) / (|F_t| + floor). It is no default here, because an expert with
    little information then gains the most: the floor outweighs a small F_t, and dividing by a small |F_t| makes it
    large. One whose F_t is 0 everywhere takes nearly all the weight. (The authors' code has a floor for one model only,
    the first of the list.)

    F needs images but no labels, which the model itself predicts: see `lib.vision.diagonal_fisher`.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: names the layer in error messages.
        fisher: diagonal Fisher information of each expert [T, D]; only ratios matter, apart from the floor.
        normalise: whether each task's Fisher information is scaled to the same Euclidean length.
        floor: added to every entry before that; 0 is the paper's rule, 1e-6 FusionBench's.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if `fisher` has the wrong shape, NaN, Inf or a negative entry, or the floor is negative.
    """
    _check_fisher(fisher, task_vectors, layout)
    if not 0 <= floor < float("inf"):
        raise ValueError(f"floor is {floor}, expected a number >= 0; the paper has none, FusionBench takes 1e-6")
    fisher = fisher.to(theta0)
    merged, total = torch.zeros_like(theta0), torch.zeros_like(theta0)
    for own, task_vector in zip(fisher, task_vectors, strict=True):  # one by one: memory does not grow with T
        weight = own + floor
        if normalise:
            weight /= (length(own) + floor).clamp(min=torch.finfo(own.dtype).tiny)
        merged += weight * task_vector
        total += weight
    informed = (fisher.sum(0) > 0) & (total > 0)
    return theta0 + torch.where(informed, merged / total, task_vectors.mean(0))


@fusion_method("RegMean", "Jin et al., 2023", "https://arxiv.org/abs/2212.09849", needs_data=True)
def regmean(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    grams: Mapping[str, Tensor],
    non_diagonal: float = NON_DIAGONAL,
) -> Tensor:
    """Give each linear layer the weights whose outputs are closest to all experts' (Jin et al., 2023).

        W = argmin sum_t |X_t W - X_t W_t|^2 = (sum_t G_t)^-1 (sum_t G_t W_t),   G_t = X_t^T X_t

    (W of shape [in, out] as in the paper; torch's weights [out, in] are its transpose). The entries of G_t off the
    diagonal are scaled by `non_diagonal`, a regularisation towards the diagonal. Layers without a Gram matrix (norms,
    biases, convolutions, embeddings) are averaged. Needs unlabelled data only.

    Where sum_t G_t is singular (features that are always zero, or fewer inputs than features with non_diagonal = 1)
    the data leaves directions of W open, and there W is the experts' average: what is solved for is the deviation from
    it, by a symmetric pseudo-inverse in float64 that drops what rounding of the Gram matrices could have made.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: where each layer lies.
        grams: layer name -> Gram matrices of its inputs [T, in, in], as `lib.vision.input_grams` makes them.
        non_diagonal: factor of the entries off the diagonal, in [0, 1]; 1 is least squares.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if there is no Gram matrix, one does not fit its layer (named), or non_diagonal is out of range.
    """
    _check_non_diagonal(non_diagonal)
    if not grams:
        raise ValueError("no Gram matrices given: RegMean without any is weight averaging; use weight_averaging")
    merged = theta0 + task_vectors.mean(0)
    _regress(merged, task_vectors, layout, grams, non_diagonal)
    return merged


@fusion_method("RegMean++", "Nguyen et al., 2025", "https://arxiv.org/abs/2508.03121", needs_data=True)
def regmean_plus_plus(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    groups: Sequence[Sequence[str]],
    grams_at: GramsAt,
    non_diagonal: float = NON_DIAGONAL,
) -> Tensor:
    """RegMean group by group, on what each group reads from the groups merged before it (Nguyen et al., 2025).

    RegMean takes all inputs X_t from the experts, but the merged layer will read what the merged layers before it
    write. So: merge what lies in no group (embedding, norms, convolutions) by averaging; then, for each group (a
    transformer block) from the input on, take the Gram matrices of task t from a model whose earlier groups are the
    merged ones and whose present group is expert t's, as in the published code, and merge the group by RegMean.
    Unlike here, that code leaves what follows the last block (final norm) pre-trained. Needs unlabelled data only.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: where each layer lies.
        groups: names of the layers of each group, in the order of the forward pass (see `layer_groups`).
        grams_at: `grams_at(task number, theta [D], layer names) -> {layer name: [in, in]}`, the Gram matrices of that
            task's inputs with the model at theta; layers that it leaves out are averaged.
        non_diagonal: as for `regmean`.

    Returns:
        Merged parameters [D].

    Raises:
        ValueError: if there is no group, a group names an unknown layer or one that is in another group too, a Gram
            matrix does not fit its layer, or non_diagonal is out of range.
    """
    _check_non_diagonal(non_diagonal)
    check_groups(groups, layout)
    merged = theta0 + task_vectors.mean(0)
    for group in groups:
        inside = layout.spread(torch.tensor([name in group for name in layout.names], device=theta0.device))
        points = (torch.where(inside, theta0 + task_vector, merged) for task_vector in task_vectors)
        found = [grams_at(task, point, tuple(group)) for task, point in enumerate(points)]
        shared = [name for name in group if all(name in grams for grams in found)]
        _regress(
            merged,
            task_vectors,
            layout,
            {name: torch.stack([grams[name] for grams in found]) for name in shared},
            non_diagonal,
        )
    return merged


def regmean_parts(
    task_vectors: Tensor, layout: Layout, grams: Mapping[str, Tensor], non_diagonal: float = NON_DIAGONAL
) -> Tensor:
    """What each task contributes to RegMean's merged task vector: [T, D] -> [T, D].

    Per layer with Gram matrices, with the mean mu of the task vectors, mu / T + (tau_t - mu) G_t (sum_t G_t)^-1.

    Args:
        task_vectors: [T, D].
        layout: where each layer lies.
        grams: layer name -> [T, in, in], as for `regmean`.
        non_diagonal: likewise.

    Returns:
        The parts, whose sum is the merged task vector.

    Raises:
        ValueError: as `regmean`.
    """
    _check_non_diagonal(non_diagonal)
    parts = (task_vectors.mean(0) / len(task_vectors)).expand_as(task_vectors).clone()
    for name, own in _regressed(task_vectors, layout, grams, non_diagonal, one=False):
        for part, change in zip(parts, own, strict=True):
            layout.views(part)[name].add_(change.to(part))
    return parts


def _regress(
    merged: Tensor, task_vectors: Tensor, layout: Layout, grams: Mapping[str, Tensor], non_diagonal: float
) -> None:
    """Write the RegMean solution of every layer that has Gram matrices into `merged`, which holds the averages."""
    results = layout.views(merged)
    for name, change in _regressed(task_vectors, layout, grams, non_diagonal, one=True):
        results[name].add_(change.to(merged))


def _regressed(
    task_vectors: Tensor, layout: Layout, grams: Mapping[str, Tensor], non_diagonal: float, *, one: bool
) -> Iterator[tuple[str, Tensor]]:
    """Per layer what RegMean adds to the mean, in float64: all tasks' sum [out, in], or of each [T, out, in]."""
    device = "cpu" if task_vectors.device.type == "mps" else task_vectors.device  # Apple GPUs know no float64
    vectors = [layout.views(vector) for vector in task_vectors]
    for name, gram in grams.items():
        if name not in vectors[0]:
            raise ValueError(f"Gram matrices given for '{name}', which is no layer of the layout")
        shape = tuple(vectors[0][name].shape)
        _check_gram(name, gram, len(task_vectors), shape)
        noise = shape[1] ** 0.5 * torch.finfo(gram.dtype).eps  # how far rounding may move an eigenvalue of unit scale
        gram = gram.to(device, torch.float64)
        gram = torch.lerp(torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), gram, non_diagonal)  # [T, in, in]
        weights = torch.stack([views[name] for views in vectors]).to(device, torch.float64)  # [T, out, in]
        right = (weights - weights.mean(0)) @ gram  # [T, out, in]
        total = gram.sum(0)
        scale = total.diagonal().rsqrt().nan_to_num(posinf=0.0)  # to unit diagonal; a dead feature to zero
        inverse = torch.linalg.pinv(scale[:, None] * total * scale, hermitian=True, rtol=noise)
        yield name, ((right.sum(0) if one else right) * scale @ inverse) * scale


def _check_fisher(fisher: Tensor, task_vectors: Tensor, layout: Layout) -> None:
    if fisher.shape != task_vectors.shape:
        raise ValueError(f"fisher has shape {list(fisher.shape)}, expected that of the task vectors, [T, D] = "
                         f"{list(task_vectors.shape)}: one row per task, in their order")  # fmt: skip
    for task, own in enumerate(fisher):
        for fault, bad in (("NaN or Inf", ~torch.isfinite(own)), ("a negative entry", own < 0)):
            if bad.any():
                layer = layout.names[int(layout.layer_sums(bad.float()).argmax())]
                raise ValueError(f"the Fisher information of task {task} holds {fault} in layer '{layer}'; "
                                 "it is a mean of squared gradients: compute it anew")  # fmt: skip


def _check_gram(name: str, gram: Tensor, tasks: int, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"Gram matrices given for layer '{name}' of shape {list(shape)}: it must be [out, in]")
    expected = (tasks, shape[1], shape[1])
    if tuple(gram.shape) != expected:
        raise ValueError(f"Gram matrices of layer '{name}' have shape {list(gram.shape)}, expected [T, in, in] = "
                         f"{list(expected)}: one matrix X^T X per task")  # fmt: skip
    if not torch.isfinite(gram).all():
        raise ValueError(f"a Gram matrix of layer '{name}' holds NaN or Inf: check the images and the expert")
    if (gram - gram.mT).abs().max() > 1e-4 * gram.abs().max() or (gram.diagonal(dim1=1, dim2=2) < 0).any():
        raise ValueError(f"a Gram matrix of layer '{name}' is not symmetric with a diagonal >= 0: it must be X^T X")


def _check_non_diagonal(non_diagonal: float) -> None:
    if not 0 <= non_diagonal <= 1:
        raise ValueError(f"non_diagonal is {non_diagonal}, expected a factor in [0, 1]; the paper takes 0.9")


def check_groups(groups: Sequence[Sequence[str]], layout: Layout) -> None:
    """Refuse groups of layers that are empty, name an unknown layer, or name one twice, with a ValueError."""
    names = [name for group in groups for name in group]
    if not names:
        raise ValueError("no groups of layers given: expected the model's blocks in forward order")
    for number, name in enumerate(names):
        if name not in layout.names:
            raise ValueError(f"a group names '{name}', which is no layer of the layout")
        if name in names[:number]:
            raise ValueError(f"layer '{name}' is in more than one place of the groups: each layer is merged once")
