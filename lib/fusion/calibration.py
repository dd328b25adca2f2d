"""Calibrating a merged model: layer by layer, in closed form, towards what the experts' own layers give.

As in `lib.fusion.statistical`, statistics of the tasks' inputs come from the rooms of vision and language; nothing here
sees a model or an image. Everything is solved as a deviation from the start, so that where there is nothing to
calibrate the start comes back exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lib.fusion.arithmetic import task_arithmetic
from lib.fusion.methods import fusion_method
from lib.fusion.statistical import check_groups
from lib.vectors.layout import Layout

MomentsAt = Callable[[int, Tensor, Tensor, tuple[str, ...]], Mapping[str, Tensor]]


@fusion_method("FeatCal", "Gu et al., 2026", "https://arxiv.org/abs/2605.13030", needs_data=True)
def featcal(
    theta0: Tensor,
    task_vectors: Tensor,
    layout: Layout,
    *,
    groups: Sequence[Sequence[str]],
    moments_at: MomentsAt,
    start: Tensor | None = None,
    ridge: float = 0.05,
    anchor: float = 2.0,
    expert_share: float = 0.3,
) -> Tensor:
    """Calibrate a merged model on features, group by group from the input on (FeatCal, Gu et al., 2026).

    A merged layer reads X_t, what the calibrated layers before it write on inputs of task t; the expert's own layer
    reads Y_t there. The layer shall give on X_t what the expert's gives on inputs between the two, and stay near an
    anchor on the line from the pre-trained model through the start:

        W = argmin sum_t s_t |X_t W - Z_t W_t|^2 / n_t + ridge |W - A|^2
        b = argmin sum_t s_t |mean(X_t) W + b - mean(Z_t) W_t - b_t|^2 + ridge |b - a|^2
        Z_t = expert_share Y_t + (1 - expert_share) X_t,   s_t = n_t / |X_t^T X_t|
        A = W_0 + anchor (W_start - W_0),   a likewise

    (W of shape [in, out]; torch's weights are its transpose). A LayerNorm with input u, normalised but not yet scaled,
    shall give on u what the expert's scale g_t and shift h_t give on it, each feature by itself:

        g, h = argmin sum_t |u_t g + h - u_t g_t - h_t|^2 / n_t + ridge (|g - anchor's|^2 + |h - anchor's|^2)

    All layers of a group are calibrated at once, on what they read while the group is still at the start. Layers
    without moments, and those in no group (embedding, convolutions, final norm), keep the start. Needs unlabelled data
    only.

    The authors' code weighs the tokens of a CLIP's last block, the class token a hundred times as much as the others;
    here all count the same, as a mean over tokens or a decoder reads them all. It also adds 1e-8 to the ridge.

    Args:
        theta0: pre-trained parameters [D].
        task_vectors: [T, D].
        layout: where each layer lies.
        groups: names of the layers of each group, in the order of the forward pass (see `layer_groups`).
        moments_at: `moments_at(task number, merged [D], expert [D], layer names) -> {layer name: [2, in + 1, in + 1]}`,
            of that task's inputs: see `lib.fusion.activations.read_moments`. Layers that it leaves out keep the start.
        start: the merged model to calibrate [D], of any method; by default Task Arithmetic with factor 0.3, as in
            the paper.
        ridge: lambda, the weight of the anchor.
        anchor: rho, how far out it lies; 1 is the start. The paper's 2.0; the authors' script takes 2.2.
        expert_share: alpha, of the expert's inputs in Z; in [0, 1]. The paper's 0.3; the authors' script takes 0.25.

    Returns:
        Calibrated parameters [D].

    Raises:
        ValueError: if the start is no finite vector [D], there is no group, a group names an unknown layer or one that
            is in another group too, moments do not fit their layer, or an option is out of range.
    """
    _check_options(ridge, anchor, expert_share)
    check_groups(groups, layout)
    if start is None:
        start = task_arithmetic(theta0, task_vectors, layout, scaling_factor=0.3)
    if start.shape != theta0.shape or not torch.isfinite(start).all():
        raise ValueError(f"start has shape {list(start.shape)}, expected a finite merged point [D] = "
                         f"{list(theta0.shape)}")  # fmt: skip
    merged = start.to(theta0, copy=True)
    views = [layout.views(vector) for vector in (theta0, merged, *task_vectors)]
    for group in groups:
        experts = (theta0 + task_vector for task_vector in task_vectors)
        found = [moments_at(task, merged, expert, tuple(group)) for task, expert in enumerate(experts)]
        for name in group:
            if all(name in own for own in found):
                moments = torch.stack([own[name] for own in found])
                _check_moments(name, moments, len(task_vectors), tuple(views[0][name].shape))
                _calibrate(name, views, moments, ridge, anchor, expert_share)
    return merged


def _calibrate(
    name: str, views: Sequence[Mapping[str, Tensor]], moments: Tensor, ridge: float, anchor: float, expert_share: float
) -> None:
    """Move one layer, and its bias if it has one, from the start to the solution, in place.

    Args:
        name: of the layer.
        views: the layers of the pre-trained model, of the merged one, which is written to, and of each task vector.
        moments: of what the layer reads [T, 2, in + 1, in + 1].
        ridge: as for `featcal`, like the others.
        anchor: how far out it lies.
        expert_share: of the expert's inputs.
    """
    origin, merged, *vectors = views
    bias = name.removesuffix("weight") + "bias"
    parts = [name, bias] if name.endswith("weight") and bias in origin else [name]
    device = merged[name].device
    kind = {"device": "cpu" if device.type == "mps" else device, "dtype": torch.float64}  # Apple GPUs know no float64
    first = [origin[part].to(**kind) for part in parts]
    moved = [merged[part].to(**kind) - own for part, own in zip(parts, first, strict=True)]  # by the start
    changes = [torch.stack([own[part] for own in vectors]).to(**kind) for part in parts]
    gaps = [change - step for change, step in zip(changes, moved, strict=True)]  # from the start to each expert
    pulls = [ridge * (anchor - 1) * step for step in moved]
    gram, cross = moments.to(**kind)[..., :-1, :-1].unbind(1)  # [T, in, in] each
    means = moments[:, 0, :-1, -1].to(**kind), moments[:, 1, -1, :-1].to(**kind)  # of X and Y, [T, in]
    if first[0].dim() == 1:
        steps = _norm(gram.diagonal(dim1=1, dim2=2), means[0], gaps, pulls, ridge)
    else:
        drift = expert_share * (cross - gram).mT, expert_share * (means[1] - means[0])  # from X to Z
        steps = _linear(gram, means[0], drift, first[0] + moved[0], gaps, pulls, ridge)
    for part, step in zip(parts, steps, strict=True):
        merged[part].add_(step.to(merged[part]))


def _linear(
    gram: Tensor,
    mean: Tensor,
    drift: tuple[Tensor, Tensor],
    start: Tensor,
    gaps: Sequence[Tensor],
    pulls: Sequence[Tensor],
    ridge: float,
) -> list[Tensor]:
    """Steps of a weight [out, in] from the start and, if gaps and pulls have a second entry, of its bias [out]."""
    share = 1 / torch.linalg.matrix_norm(gram).clamp(min=1e-8)  # s_t, [T]
    weights = start + gaps[0]  # the experts', [T, out, in]
    left = torch.einsum("t,tij->ij", share, gram) + ridge * torch.eye(gram.shape[-1]).to(gram)
    right = torch.einsum("t,toi->oi", share, gaps[0] @ gram + weights @ drift[0]) + pulls[0]
    step = torch.linalg.solve(left, right, left=False)
    if len(gaps) == 1:
        return [step]
    missing = gaps[1] + ((gaps[0] - step) @ mean[..., None] + weights @ drift[1][..., None]).squeeze(-1)  # [T, out]
    return [step, (share @ missing + pulls[1]) / (share.sum() + ridge)]


def _norm(square: Tensor, mean: Tensor, gaps: Sequence[Tensor], pulls: Sequence[Tensor], ridge: float) -> list[Tensor]:
    """Steps of a norm's scale and, as above, of its shift [width], from mean squares and means [T, width]."""
    ours, both, count = square.sum(0) + ridge, mean.sum(0), len(mean) + ridge
    if len(gaps) == 1:
        return [((square * gaps[0]).sum(0) + pulls[0]) / ours]
    one = (square * gaps[0] + mean * gaps[1]).sum(0) + pulls[0]
    other = (mean * gaps[0] + gaps[1]).sum(0) + pulls[1]
    determinant = ours * count - both.square()  # > 0: a mean square is at least the square of the mean
    return [(count * one - both * other) / determinant, (ours * other - both * one) / determinant]


def _check_moments(name: str, moments: Tensor, tasks: int, shape: tuple[int, ...]) -> None:
    if len(shape) not in (1, 2):
        raise ValueError(f"moments given for layer '{name}' of shape {list(shape)}: it must be [out, in] or [width]")
    expected = (tasks, 2, shape[-1] + 1, shape[-1] + 1)
    if tuple(moments.shape) != expected:
        raise ValueError(f"moments of layer '{name}' have shape {list(moments.shape)}, expected "
                         f"[T, 2, in + 1, in + 1] = {list(expected)}")  # fmt: skip
    if not torch.isfinite(moments).all():
        raise ValueError(f"moments of layer '{name}' hold NaN or Inf: check the inputs and the expert")


def _check_options(ridge: float, anchor: float, expert_share: float) -> None:
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}, expected a number > 0: features that are always zero need it")
    if not abs(anchor) < float("inf"):
        raise ValueError(f"anchor is {anchor}, expected a finite number; 1 is the start, the paper takes 2.0")
    if not 0 <= expert_share <= 1:
        raise ValueError(f"expert_share is {expert_share}, expected a share in [0, 1]; the paper takes 0.3")
