r"""What test-time adaptation minimises on unlabelled images: prediction entropy, or information maximisation.

An objective maps a point of R^D to a loss and its gradient, `objective(theta) -> (loss, G)`. That is all an adaptation
loop knows of a model; another model family plugs in by another objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices
from lib.vectors.flat_model import FlatModel, Objective

Inputs = TypeVar("Inputs")
OBJECTIVES = ("entropy", "information-maximisation")


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (nats) of each row's class probabilities: [N, C] -> [N]."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def entropy_of_mean(mean: Tensor) -> Tensor:
    """Shannon entropy (nats) of a mean prediction, class probabilities [C] -> []."""
    return -torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()


class PredictionObjective(ABC, Generic[Inputs]):
    r"""Entropy of the predictions per task, summed over tasks; optionally minus the entropy of their mean.

    - "entropy" (AdaMerging, https://arxiv.org/abs/2310.02575, Eq. 4; the paper's): mean_i H(p_i). It can be lowered by
      predicting one class for everything.
    - "information-maximisation" (Krause et al. 2010; SHOT, https://arxiv.org/abs/2002.08546, Eq. 3-4):
      mean_i H(p_i) - diversity * H(mean_i p_i). Sure about each example, undecided about the mixture: it assumes
      classes of roughly equal frequency.

    All tasks share theta, so the rows of all tasks go through the model as ONE batch: one forward and one backward
    pass, whatever T. There is no argument for labels.

    Where a task has more classes C than its batch has rows B, the mean over the batch cannot be even. The mean
    prediction is then a running average over about C rows: B / C of this batch, the rest as it was before.

    A task's loss depends on no other task's rows, so where memory or cache is short some tasks at a time go through the
    model, forward and backward, and their gradients add up to the same G.

    What a row is and how the model reads it is said by a subclass.

    Args:
        model: the model bound to flat vectors.
        runtime: device and precision.
        counts: how many unlabelled rows each task has.
        classes: how many classes each task has.
        batch: rows per task and step.
        seed: names the order of the batches.
        objective: one of `OBJECTIVES`.
        diversity: weight of the mean prediction's entropy in information maximisation.
        rows_at_once: at most so many rows per pass through the model, but at least one task's; 0 for all.
        frozen_bytes: what the frozen parts of the model take on the device, for the memory plan.

    Attributes:
        mine: which tasks go through the model in this process; the others are for other ones (see `together`).
        shares: of the last evaluation, per task of `mine`: mean entropy, and entropy of the mean prediction, as a share
            of their largest possible value.

    Raises:
        ValueError: if the objective is unknown.
    """

    NOT_IN_KEYS = ("mine", "shares", "_running", "rows_at_once", "frozen_bytes")

    def __init__(
        self,
        model: FlatModel,
        runtime: Runtime,
        counts: Sequence[int],
        classes: Sequence[int],
        *,
        batch: int,
        seed: int,
        objective: str = "entropy",
        diversity: float = 1.0,
        rows_at_once: int = 0,
        frozen_bytes: int = 0,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective '{objective}'; known: {', '.join(OBJECTIVES)}")
        self.model, self.runtime = model, runtime
        self.counts, self.classes = list(counts), list(classes)
        self.batch, self.seed, self.rows_at_once, self.frozen_bytes = batch, seed, rows_at_once, frozen_bytes
        self.diversity = diversity if objective == "information-maximisation" else 0.0
        self.mine: Collection[int] = range(len(self.counts))
        self.reset()

    @abstractmethod
    def inputs(self, rows: Mapping[int, Tensor]) -> Inputs:
        """What the model reads for some rows of some tasks, task -> int64 [B_t], on the device."""

    @abstractmethod
    def logits(self, module: nn.Module, inputs: Inputs, rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """The predictions on those rows: one [B_t, C_t] per task."""

    def rows(self, step: int) -> dict[int, Tensor]:
        """Which rows of each task a step sees: task -> int64 [B_t]."""
        return {
            task: batch_indices(count, self.batch, step, "adaptation", task, self.seed)
            for task, count in enumerate(self.counts)
        }

    def tasks_together(self) -> int:
        """How many tasks go through the model at a time."""
        limit, most = self.rows_at_once or sum(self.counts), max(min(self.batch, count) for count in self.counts)
        return min(len(self.counts), max(1, limit // most))

    def rows_together(self) -> int:
        """How many rows go through the model at a time, at most."""
        return self.tasks_together() * max(min(self.batch, count) for count in self.counts)

    def __call__(self, step: int) -> Objective:
        """The objective on the batch of a step."""
        rows = [(task, own) for task, own in self.rows(step).items() if task in self.mine]
        at_once = self.tasks_together()
        groups = [dict(rows[first : first + at_once]) for first in range(0, len(rows), at_once)]
        inputs, before, first = [self.inputs(group) for group in groups], list(self._running), True

        def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal first
            module, losses = self.model.move_to(theta), []
            for group, own in zip(groups, inputs, strict=True):
                logits = self.logits(module, own, group)
                parts = [self._loss(task, part, before[task]) for task, part in zip(group, logits, strict=True)]
                torch.stack([loss for loss, *_ in parts]).sum().backward()
                for task, (loss, mean, share) in zip(group, parts, strict=True):
                    losses.append(loss.detach())
                    self.shares[task] = share
                    if first:  # a second look at the same batch is no new evidence
                        self._running[task] = mean
            first = False
            gradient = self.model.gradient
            return torch.stack(losses).sum() if losses else gradient.new_zeros(()), gradient

        return objective

    def report(self, shares: Mapping[int, Tensor] | None = None) -> dict[str, Tensor]:
        """Of the last evaluation: `entropy`, mean over tasks, and `marginal_entropy`, the lowest of a mean prediction.

        Args:
            shares: those of all tasks, where other processes know some of them; by default this one's.
        """
        shares = self.shares if shares is None else shares
        if not shares:
            return {}
        single, marginal = torch.stack([shares[task] for task in sorted(shares)]).T
        return {"entropy": single.mean(), "marginal_entropy": marginal.min()}

    def _loss(self, task: int, logits: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A task's loss, its mean prediction [C], and what `report` says of it [2]."""
        single, mean = entropy(logits).mean(), logits.softmax(-1).mean(0)
        new = min(1.0, len(logits) / self.classes[task])
        if before is not None and new < 1:
            mean = new * mean + (1 - new) * before
        marginal = entropy_of_mean(mean)
        loss = single - self.diversity * marginal if self.diversity else single
        share = torch.stack([single, marginal]).detach() / math.log(max(self.classes[task], 2))
        return loss, mean.detach(), share

    def reset(self) -> None:
        """Forget what earlier batches have told: the running mean predictions."""
        self.shares: dict[int, Tensor] = {}
        self._running: list[Tensor | None] = [None] * len(self.counts)

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: the running mean predictions."""
        return list(self._running)

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self._running = [None if mean is None else mean.to(self.runtime.device) for mean in state]
