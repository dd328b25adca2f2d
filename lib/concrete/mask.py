r"""The Concrete mask and merging inside the subspace it spans, with closed-form gradients.

Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion",
https://arxiv.org/abs/2312.06173; the relaxation is Maddison et al. 2017, https://arxiv.org/abs/1611.00712.

    m = sigmoid((log u - log(1 - u) + x) / temperature)        a sample of the mask, u ~ U(0, 1)
    m_hat = m / mean_l(m)                                      rescaled per layer l
    theta = theta0 + m_hat * S,   S = sum_t lambda_{t,l} tau_t merged in the subspace

The mask is shared by all tasks, so it factors out of the sum: one masked vector [D] instead of T of them. With
G = dLoss/dtheta from one ordinary backward pass through the model, the chain rule through the merge is short enough to
write down, and no autograd graph of size T x D is ever built. This module is the plain, readable reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.concrete.noise import uniform
from lib.runtime.rng import seed_of
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import alike

FINAL_MASKS = ("sample", "binary", "expected", "hard")
SMALLEST_MEAN = 1e-6  # a layer whose mask has (numerically) vanished is divided by this instead of by zero


def check_temperature(temperature: float) -> None:
    """A temperature must be a positive number.

    Raises:
        ValueError: if it is not.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a positive number; the paper uses 0.5")


def sample_mask(logits: Tensor, temperature: float, noise: Tensor, layout: Layout) -> Tensor:
    """Draw a relaxed mask from its logits (paper Eq. 4-5): m = sigmoid((logit(u) + x) / temperature).

    Args:
        logits: x [D]; sigmoid(x) is the probability of a one as the temperature goes to zero.
        temperature: > 0; small values give nearly binary samples.
        noise: u ~ U(0, 1), [D]; 0 and 1 themselves are moved inside by one rounding step.
        layout: the padding gets mask 0.

    Returns:
        m in (0, 1), [D].

    Raises:
        ValueError: if the temperature is not positive.
    """
    check_temperature(temperature)
    u = noise.clamp(torch.finfo(noise.dtype).tiny, 1 - torch.finfo(noise.dtype).eps / 2)
    return torch.sigmoid((torch.log(u) - torch.log1p(-u) + logits) / temperature) * layout.inside(logits.device)


def expected_mask(logits: Tensor, layout: Layout) -> Tensor:
    """The mask's mean in the limit of temperature 0: sigmoid(x), [D] -> [D]; 0 in the padding."""
    return torch.sigmoid(logits) * layout.inside(logits.device)


def layer_means(mask: Tensor, layout: Layout) -> Tensor:
    """Mean of the mask over each layer, mu_l: [D] -> [L]; not below `SMALLEST_MEAN`."""
    return (layout.layer_sums(mask) / layout.counts(mask)).clamp(min=SMALLEST_MEAN)


def rescale(mask: Tensor, layout: Layout) -> Tensor:
    """Divide each layer of the mask by its mean, so that a masked task vector keeps its expected size: [D] -> [D]."""
    return mask / layout.spread(layer_means(mask, layout))


def final_mask(
    logits: Tensor,
    layout: Layout,
    kind: str = "sample",
    *,
    temperature: float = 0.5,
    seed: int = 0,
    rescaled: bool = True,
) -> Tensor:
    """The one mask that stays after learning.

    Args:
        logits: x [D].
        layout: where the layers lie.
        kind: one more "sample" (the paper's); a "binary" one, drawn too: 1 with probability sigmoid(x), which is what a
            sample becomes as the temperature goes to zero; the "expected" one, sigmoid(x); or the "hard" mask x > 0,
            which draws nothing, so that logits near 0 become all or nothing.
        temperature: of the sample.
        seed: names the noise of a sample and of a binary mask.
        rescaled: divide it by its mean in each layer.

    Returns:
        m_hat [D], or m.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind in ("sample", "binary"):
        noise = uniform(layout, seed_of("final mask", seed), 0, logits.dtype, logits.device)
    if kind == "sample":
        mask = sample_mask(logits, temperature, noise, layout)
    elif kind == "binary":
        mask = (noise > torch.sigmoid(-logits)).to(logits.dtype) * layout.inside(logits.device)
    elif kind == "expected":
        mask = expected_mask(logits, layout)
    elif kind == "hard":
        mask = (logits > 0).to(logits.dtype) * layout.inside(logits.device)
    else:
        raise ValueError(f"final_mask={kind!r}, expected one of {', '.join(map(repr, FINAL_MASKS))}")
    return rescale(mask, layout) if rescaled else mask


def weighted_sum(task_vectors: Tensor, coefficients: Tensor, layout: Layout) -> Tensor:
    """S = sum_t lambda_{t,l} tau_t.

    Args:
        task_vectors: [T, D].
        coefficients: task-wise [T] or layer-wise [T, L].
        layout: which element belongs to which layer.

    Returns:
        S [D], of the coefficients' type and device.
    """
    if not alike(task_vectors, coefficients):  # one at a time, so that no second stack is made
        total = coefficients.new_zeros(task_vectors.shape[1])
        for vector, own in zip(task_vectors, coefficients, strict=True):
            total += weighted_sum(vector.to(coefficients)[None], own[None], layout)
        return total
    blocks = task_vectors.unflatten(1, (-1, layout.block))  # [T, D / block, block], a view
    if coefficients.dim() == 1:
        return torch.einsum("tnb,t->nb", blocks, coefficients).flatten()
    per_block = coefficients[:, layout.layer_of_block(coefficients.device)]  # [T, D / block]
    return torch.einsum("tnb,tn->nb", blocks, per_block).flatten()


def merge(
    theta0: Tensor, task_vectors: Tensor, coefficients: Tensor, layout: Layout, rescaled_mask: Tensor | None = None
) -> Tensor:
    """Merge inside the subspace of a mask (paper Eq. 6-8): theta = theta0 + m_hat * S.

    Args:
        theta0: [D].
        task_vectors: [T, D].
        coefficients: [T] or [T, L].
        layout: where the layers lie.
        rescaled_mask: m_hat [D]; None merges in the whole space (AdaMerging, Task Arithmetic).

    Returns:
        theta [D].
    """
    return merge_sum(theta0, weighted_sum(task_vectors, coefficients, layout), rescaled_mask)


def merge_sum(theta0: Tensor, summed: Tensor, rescaled_mask: Tensor | None) -> Tensor:
    """`merge` with S [D] already summed up: theta0 + m_hat * S, or theta0 + S without a mask."""
    return theta0 + (summed if rescaled_mask is None else rescaled_mask * summed)


def coefficient_gradient(
    gradient: Tensor, task_vectors: Tensor, layout: Layout, rescaled_mask: Tensor | None, layer_wise: bool
) -> Tensor:
    """dLoss/dlambda_{t,l} = sum_{i in l} G_i m_hat_i tau_{t,i}.

    Args:
        gradient: G = dLoss/dtheta [D].
        task_vectors: [T, D].
        layout: where the layers lie.
        rescaled_mask: m_hat [D] or None.
        layer_wise: one number per task and layer, or one per task.

    Returns:
        [T, L] if layer-wise, else [T].
    """
    if not alike(task_vectors, gradient):
        given = layout, rescaled_mask, layer_wise
        return torch.cat([coefficient_gradient(gradient, row.to(gradient)[None], *given) for row in task_vectors])
    seen = gradient if rescaled_mask is None else gradient * rescaled_mask
    blocks = task_vectors.unflatten(1, (-1, layout.block))
    found = layout.add_blocks(torch.einsum("tnb,nb->tn", blocks, seen.unflatten(0, (-1, layout.block))))
    return found if layer_wise else found.sum(1)


def logit_gradient(gradient: Tensor, summed: Tensor, mask: Tensor, temperature: float, layout: Layout) -> Tensor:
    """dLoss/dx through sampling, rescaling and merging, in closed form.

    dLoss/dm_i = G_i S_i / mu_l - (sum_{j in l} G_j S_j m_j) / (mu_l^2 n_l), and
    dLoss/dx_i = dLoss/dm_i * m_i (1 - m_i) / temperature.

    Args:
        gradient: G = dLoss/dtheta [D].
        summed: S = sum_t lambda_{t,l} tau_t [D].
        mask: the sample m [D] (before rescaling) that theta was merged with.
        temperature: the temperature it was drawn at.
        layout: where the layers lie.

    Returns:
        [D].
    """
    pull = gradient * summed  # [D]
    mean = layer_means(mask, layout)  # [L]
    common = layout.layer_sums(pull * mask) / (mean.square() * layout.counts(mask))  # [L]
    mask_gradient = pull / layout.spread(mean) - layout.spread(common)
    return mask_gradient * mask * (1 - mask) / temperature


def shuffle_within_layers(mask: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
    """The same mask values in random places of their own layers (a control): [D] -> [D]."""
    shuffled = torch.zeros_like(mask)
    for start, size in zip(layout.offsets, layout.sizes, strict=False):
        order = torch.randperm(size, generator=generator).to(mask.device)
        shuffled[start : start + size] = mask[start : start + size][order]
    return shuffled
