"""An objective that several processes evaluate together: each lets its own tasks through the model.

A task's loss depends on no other task's inputs, so the sum of the processes' losses and gradients is that of one
process up to rounding, in information maximisation too. (Shares of a batch would not do: the entropy of a mean is not
the mean of entropies. Nor can a model with BatchNorm take part, whose statistics are those of all tasks.)
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.distributed as distributed
from torch import Tensor

from lib.adaptation.objectives import PredictionObjective
from lib.adaptation.protocol import Protocol
from lib.concrete.sharding import Shard
from lib.runtime import ranks
from lib.vectors.batch_norm import batch_norms
from lib.vectors.flat_model import Objective
from lib.vectors.layout import Layout


def shared_by_processes(*, objective_at: object, protocol: Protocol, shard: Shard | None, **_: object) -> bool:
    """Whether the processes that run a notebook share a run of adaptation; the arguments are those of `adapt`.

    The exact hypergradient and models with BatchNorm are for the first process alone.
    """
    if ranks.count() == 1 or shard is not None or not isinstance(objective_at, PredictionObjective):
        return False
    return protocol.hypergradient != "exact" and not batch_norms(objective_at.model.module)


def divided(
    layout: Layout, objective: PredictionObjective, theta0: Tensor, task_vectors: Tensor, mask: Tensor | None
) -> tuple[Shard, SharedObjective, Tensor, Tensor, Tensor | None]:
    """This process's shard, and its part of everything."""
    shard = Shard.mine(replace(layout, parts=ranks.count()))
    own = shard.part(task_vectors).to(theta0.device)
    return shard, SharedObjective(objective, shard), shard.part(theta0), own, None if mask is None else shard.part(mask)


class SharedObjective:
    """This process's part of an objective, for `adapt(..., shard=shard)`.

    Args:
        objective: the whole one. A copy of it sees this process's tasks alone: every ranks-th, so that the processes'
            numbers of tasks differ by one at most.
        shard: this process's part of the vectors.
    """

    def __init__(self, objective: PredictionObjective, shard: Shard) -> None:
        self.objective, self.shard = copy.copy(objective), shard
        self.objective.mine = range(shard.rank, len(objective.counts), shard.ranks)
        self.reset()

    def __call__(self, step: int) -> Objective:
        """The objective on the batch of a step: theta [D] -> this process's loss, and its gradient [D]."""
        own, length = self.objective(step), len(self.objective.model.gradient)

        def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
            loss, gradient = own(theta[:length])
            lacking = self.shard.layout.length - length  # empty blocks of a layout in parts
            return loss, torch.nn.functional.pad(gradient, (0, lacking)) if lacking else gradient

        return objective

    def report(self) -> dict[str, Tensor]:
        """As the whole objective's, of all tasks; every process must ask. No number leaves the device for it."""
        every = self.objective.model.gradient.new_zeros(len(self.objective.counts), 2)
        for task, share in self.objective.shares.items():
            every[task] = share
        if self.shard.ranks > 1:
            distributed.all_reduce(every)  # each task is one process's own, and zero for the others
        return self.objective.report(dict(enumerate(every)))

    def reset(self) -> None:
        """Forget an earlier run."""
        self.objective.reset()

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: that of all processes, as of one."""
        running = self.objective.state()
        own = {task: running[task].cpu() for task in self.objective.mine if running[task] is not None}
        every = _joined(ranks.everyone(own))
        return [every.get(task) for task in range(len(running))]

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.objective.load_state(state)


def _joined(parts: list[dict[int, Tensor]]) -> dict[int, Tensor]:
    """What all processes know of their tasks in one dictionary."""
    return {task: value for part in parts for task, value in part.items()}
