r"""A small world in which interference is planted, so that it is known which subspace a mask should find.

T quadratic tasks in R^D with curvatures h_{t,i} in {0, 1}:

    L_t(theta) = 1/2 sum_i h_{t,i} (theta_i - theta*_{t,i})^2

Shared coordinates: all tasks want the same change s_i, and all experts have made it. Interference: one task, the
victim, wants no change and is the only one to notice; the experts of the others have drifted there. Each expert is
perfect on its own task. Merged with scaling factor lambda = density / T the shared coordinates alone would give every
task exactly what it wants; the drift of the others spoils that, and cutting it away is what a mask is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.runtime.rng import generator
from lib.vectors.flat_model import Objective
from lib.vectors.layout import Layout


@dataclass(frozen=True)
class Planted:
    """Planted task vectors and what is known of them.

    Attributes:
        layout: a few layers.
        theta0: zeros [D].
        task_vectors: [T, D].
        shared: 1 where the tasks agree, 0 where they interfere and in the padding: [D].
        curvature: h [T, D].
        scaling_factor: density / T.
    """

    layout: Layout
    theta0: Tensor
    task_vectors: Tensor
    shared: Tensor
    curvature: Tensor
    scaling_factor: float

    def losses(self, theta: Tensor) -> Tensor:
        """L_t(theta) of every task, per parameter: [T]."""
        error = self.curvature * (theta - self.task_vectors * self.shared).square()
        return error.sum(1) / 2 / self.layout.parameters

    def objective(self, noise: float, seed: int) -> Callable[[int], Objective]:
        """The sum of all losses, with a gradient as noisy as one from small batches.

        Args:
            noise: standard deviation of the gradient's noise.
            seed: names it.
        """
        weight, target = self.curvature.sum(0), self.task_vectors[0] * self.shared

        def at(step: int) -> Objective:
            def objective(theta: Tensor) -> tuple[float, Tensor]:
                random = torch.randn(len(theta), generator=generator("planted gradient", seed, step))
                gradient = weight * (theta - target) + noise * random * self.layout.inside()
                return self.losses(theta).sum().item(), gradient

            return objective

        return at


def plant(tasks: int = 8, layers: int = 4, size: int = 5000, density: float = 0.5, seed: int = 0) -> Planted:
    """Draw a planted world.

    Args:
        tasks: T, at least 2.
        layers: number of layers.
        size: elements of each.
        density: share of coordinates on which the tasks agree, the same in every layer up to chance.
        seed: names all draws.

    Raises:
        ValueError: for fewer than two tasks (nothing could interfere), or a density outside (0, 1).
    """
    if tasks < 2 or not 0 < density < 1:
        raise ValueError(f"{tasks} tasks at density {density}: planting needs two tasks and a density in (0, 1)")
    layout = Layout(tuple(f"layer {number}" for number in range(layers)), ((size,),) * layers)
    draw = generator("planted", seed)
    inside = layout.inside()
    shared = (torch.rand(layout.length, generator=draw) < density).float() * inside
    skill = torch.randn(layout.length, generator=draw)
    skill = skill.sign() * (0.5 + skill.abs())  # nothing shared is too small to matter
    victim = torch.nn.functional.one_hot(torch.randint(tasks, (layout.length,), generator=draw), tasks).T.float()
    drift = torch.randn(tasks, layout.length, generator=draw) * (1 - victim)
    task_vectors = (shared * skill + (1 - shared) * drift) * inside
    curvature = (shared + (1 - shared) * victim) * inside
    return Planted(layout, torch.zeros(layout.length), task_vectors, shared, curvature, density / tasks)


def precision_and_recall(chosen: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of what is chosen, how much is wanted; of what is wanted, how much is chosen (both [D], 0 or 1)."""
    hits = (chosen * wanted).sum().item()
    return {"precision": hits / max(chosen.sum().item(), 1.0), "recall": hits / max(wanted.sum().item(), 1.0)}
