r"""Bases: what coefficients weigh and a mask covers, when it is not the task vectors themselves.

A shared mask factors out of the sum, so theta = theta0 + m_hat * sum_t lambda_t P_t works for any parts P [T, D]. A
base splits the merged task vector of a fusion method into one part per task:

    theta0 + lambda_0 * sum_t P_t   is what the method merges,

so adaptation on a base starts where the method ends. `adapt` is given P in place of the task vectors and lambda_0 as
the initial coefficient; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.fusion.arithmetic import ties_parts
from lib.fusion.calibration import featcal
from lib.fusion.spectral import iso_c_parts, tsv_m_parts, wudi_merging
from lib.fusion.statistical import regmean_parts
from lib.runtime.rng import generator
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import sum_of


@dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
        parts: `parts(task_vectors [T, D], layout, **needs) -> P [T, D]`.
        coefficient: lambda_0; None for the scaling factor of Task Arithmetic and Ties-Merging, whatever it is set to.
        needs: names of what else it is given: "theta0" [D], "grams" of the tasks' unlabelled inputs (see `regmean`),
            "groups" and "moments_at" (see `featcal`), or "seed".
    """

    parts: Callable[..., Tensor]
    coefficient: float | None = 1.0
    needs: tuple[str, ...] = ()


def task_vectors_themselves(task_vectors: Tensor, layout: Layout) -> Tensor:
    """The parts of Task Arithmetic."""
    return task_vectors


def with_the_rest(task_vectors: Tensor, merged: Tensor) -> Tensor:
    """Parts of a merged task vector [D] that no method divides: scaled task vectors, and equal shares of the rest.

    The task vectors' sum is scaled as it comes nearest to the merged one: [T, D] -> [T, D].
    """
    total = sum_of(task_vectors, merged)
    factor = (merged @ total) / (total @ total).clamp(min=torch.finfo(total.dtype).tiny)
    return factor * task_vectors + (merged - factor * total) / len(task_vectors)


def wudi_parts(task_vectors: Tensor, layout: Layout) -> Tensor:
    """The parts of WUDI-Merging: see `with_the_rest`."""
    zero = task_vectors.new_zeros(layout.length)
    return with_the_rest(task_vectors, wudi_merging(zero, task_vectors, layout))


def featcal_parts(task_vectors: Tensor, layout: Layout, theta0: Tensor, **statistics: object) -> Tensor:
    """The parts of FeatCal, see `with_the_rest`; `statistics` as for `featcal`."""
    return with_the_rest(task_vectors, featcal(theta0, task_vectors, layout, **statistics) - theta0)


BASES: Mapping[str, Base] = {
    "Task Arithmetic": Base(task_vectors_themselves, None),
    "Ties-Merging": Base(ties_parts, None),
    "TSV-M": Base(tsv_m_parts),
    "Iso-C": Base(iso_c_parts),
    "WUDI-Merging": Base(wudi_parts),
    "RegMean": Base(regmean_parts, needs=("grams",)),
    "FeatCal": Base(featcal_parts, needs=("theta0", "groups", "moments_at")),
}


def random_directions(task_vectors: Tensor, layout: Layout, seed: int) -> Tensor:
    """Random vectors as long as the task vectors in every layer, [T, D] -> [T, D]: as many numbers, no knowledge."""
    found = torch.empty_like(task_vectors)
    for task, (out, vector) in enumerate(zip(found, task_vectors, strict=True)):
        draw = torch.randn(layout.length, generator=generator("random directions", seed, task)).to(vector)
        draw *= layout.inside(vector.device).to(vector)
        size = (layout.layer_sums(vector.square()) / layout.layer_sums(draw.square())).sqrt()
        torch.mul(draw, layout.spread(size), out=out)
    return found


def pretrained_pieces(task_vectors: Tensor, layout: Layout, theta0: Tensor, seed: int) -> Tensor:
    """The pre-trained parameters dealt out to T parts at random, [T, D]: as many numbers to adapt theta0 by itself."""
    owner = torch.randint(0, len(task_vectors), (layout.length,), generator=generator("pieces", seed))
    owner = owner.to(theta0.device)
    return torch.stack([torch.where(owner == part, theta0, 0) for part in range(len(task_vectors))])


# Bases that know nothing of the experts, and start from the pre-trained model: what adaptation gains without merging.
CONTROLS: Mapping[str, Base] = {
    "Random directions (control)": Base(random_directions, 0.0, ("seed",)),
    "Pre-trained weights (control)": Base(pretrained_pieces, 0.0, ("theta0", "seed")),
}
