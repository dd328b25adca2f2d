"""An objective that several processes evaluate together: each lets its own tasks through the model.

A task's loss depends on no other task's inputs, so the sum of the processes' losses and gradients is that of one
process up to rounding, in information maximisation too. (Shares of a batch would not do: the entropy of a mean is not
the mean of entropies. Nor can a model with BatchNorm take part, whose statistics are those of all tasks.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.ranks import everyone
from lib.sharding import Shard

if TYPE_CHECKING:
    from lib.objectives import Objective, PredictionObjective


class SharedObjective:
    """This process's part of an objective, for `adapt(..., shard=shard)`.

    Args:
        objective: the whole one; from now on it sees this process's tasks alone: every ranks-th, so that they differ by
            one task at most.
        shard: this process's part of the vectors.

    Attributes:
        report: as the whole objective's, of all tasks.
    """

    def __init__(self, objective: PredictionObjective, shard: Shard) -> None:
        self.objective, self.shard = objective, shard
        objective.mine = range(shard.rank, len(objective.counts), shard.ranks)
        self.report: dict[str, float] = {}

    def __call__(self, step: int) -> Objective:
        """The objective on the batch of a step: theta [D] -> this process's loss, and its gradient [D]."""
        own, length = self.objective(step), len(self.objective.model.gradient)

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            loss, gradient = own(theta[:length])
            shares = {task: share.cpu() for task, share in self.objective.shares.items()}
            self.report = self.objective.summary(_joined(everyone(shares)))
            lacking = self.shard.layout.length - length  # empty blocks of a layout in parts
            return loss, torch.nn.functional.pad(gradient, (0, lacking)) if lacking else gradient

        return objective

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: that of all processes, as of one."""
        running = self.objective.state()
        own = {task: running[task].cpu() for task in self.objective.mine if running[task] is not None}
        every = _joined(everyone(own))
        return [every.get(task) for task in range(len(running))]

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.objective.load_state(state)


def _joined(parts: list[dict[int, Tensor]]) -> dict[int, Tensor]:
    """What all processes know of their tasks in one dictionary."""
    return {task: value for part in parts for task, value in part.items()}
