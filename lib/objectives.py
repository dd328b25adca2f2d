r"""What test-time adaptation minimises on unlabelled images: prediction entropy, or information maximisation.

An objective maps a point of R^D to a loss and its gradient, `objective(theta) -> (loss, G)`. That is all an adaptation
loop knows of a model; another model family plugs in by another objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lib.batch_norm import batch_norms, batch_statistics
from lib.batches import gather
from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.models import Preprocess
from lib.rng import batch_indices
from lib.store import digest

Objective = Callable[[Tensor], tuple[float, Tensor]]
Inputs = TypeVar("Inputs")
OBJECTIVES = ("entropy", "information-maximisation")
CPU_PIXELS = 1_000_000  # pixels per pass on a CPU: 20 images of 224 x 224; what lies between layers then stays small


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

    Attributes:
        mine: which tasks go through the model in this process; the others are for other ones (`lib.together`).
        shares: of the last evaluation, per task of `mine`: mean entropy, and entropy of the mean prediction, as a share
            of their largest possible value.
        report: of the last evaluation: `entropy`, mean over tasks, and `marginal_entropy`, that of the mean prediction
            in the task where it is lowest.

    Raises:
        ValueError: if the objective is unknown.
    """

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
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective '{objective}'; known: {', '.join(OBJECTIVES)}")
        self.model, self.runtime = model, runtime
        self.counts, self.classes = list(counts), list(classes)
        self.batch, self.seed, self.rows_at_once = batch, seed, rows_at_once
        self.diversity = diversity if objective == "information-maximisation" else 0.0
        self.mine: Collection[int] = range(len(self.counts))
        self.shares: dict[int, Tensor] = {}
        self.report: dict[str, float] = {}
        self._running: list[Tensor | None] = [None] * len(self.counts)

    @abstractmethod
    def inputs(self, rows: Mapping[int, Tensor]) -> Inputs:
        """What the model reads for some rows of some tasks, task -> int64 [B_t], on the device."""

    @abstractmethod
    def logits(self, module: nn.Module, inputs: Inputs, rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """The predictions on those rows: one [B_t, C_t] per task."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Hashes of everything that its values depend on beside theta and the options."""

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

        def objective(theta: Tensor) -> tuple[float, Tensor]:
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
            self.report = self.summary(self.shares)
            return torch.stack(losses).sum().item() if losses else 0.0, self.model.gradient

        return objective

    def summary(self, shares: Mapping[int, Tensor]) -> dict[str, float]:
        """What `report` says of the tasks that have `shares`; nothing of none."""
        if not shares:
            return {}
        single, marginal = torch.stack([shares[task] for task in sorted(shares)]).T
        return {"entropy": single.mean().item(), "marginal_entropy": marginal.min().item()}

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

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: the running mean predictions."""
        return list(self._running)

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self._running = [None if mean is None else mean.to(self.runtime.device) for mean in state]


class ImageObjective(PredictionObjective[Tensor]):
    """The objective on images: one encoder for all tasks, each task's frozen head on its own rows.

    One batch is best on an accelerator and for small images; on a CPU many large ones are slower together than apart
    (`make benchmark`). With BatchNorm it is always one batch, whose own mean and variance normalise it: see
    `lib.batch_norm`.

    Args:
        model: image encoder bound to flat vectors.
        heads: frozen classification heads, one [C_t, width] per task.
        images: unlabelled images, one uint8 [N_t, 3, H, W] per task.
        preprocess: pixels to the encoder's input.
        runtime: device and precision.
        rows_at_once: at most so many images per pass through the encoder, but at least one task's; 0 chooses.
        options: `batch`, `seed`, `objective`, `diversity` of `PredictionObjective`.

    Raises:
        ValueError: if heads and image sets differ in number, a set is empty, the objective is unknown, or a model with
            BatchNorm is to see the tasks apart.
    """

    def __init__(
        self,
        model: FlatModel,
        heads: Sequence[Tensor],
        images: Sequence[Tensor],
        preprocess: Preprocess,
        runtime: Runtime,
        *,
        rows_at_once: int = 0,
        **options: object,
    ) -> None:
        if len(heads) != len(images) or not heads:
            raise ValueError(f"{len(heads)} heads and {len(images)} image sets: every task needs one of each")
        for number, (head, pixels) in enumerate(zip(heads, images, strict=True)):
            if pixels.dtype != torch.uint8 or pixels.dim() != 4 or len(pixels) == 0:
                raise ValueError(f"image set {number} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,3,H,W]")
            if head.dim() != 2:
                raise ValueError(f"head {number} has shape {list(head.shape)}, expected [classes, width]")
        mixes = bool(batch_norms(model.module))  # then a row's prediction depends on the other rows
        if mixes and rows_at_once:
            raise ValueError(
                f"rows_at_once is {rows_at_once}, but BatchNorm needs all tasks in one batch: leave it out"
            )
        if not mixes and not rows_at_once and runtime.device == "cpu":
            rows_at_once = max(1, CPU_PIXELS // images[0][0, 0].numel())
        counts, classes = [len(pixels) for pixels in images], [len(head) for head in heads]
        super().__init__(model, runtime, counts, classes, rows_at_once=rows_at_once, **options)
        self.heads, self.images, self.preprocess = [head.to(runtime.device) for head in heads], list(images), preprocess

    def inputs(self, rows: Mapping[int, Tensor]) -> Tensor:
        """Pixels of the rows of all tasks, float32 [B, 3, H, W]."""
        return self.preprocess(gather([self.images[task] for task in rows], list(rows.values()), self.runtime.device))

    def logits(self, module: nn.Module, inputs: Tensor, rows: Mapping[int, Tensor]) -> Sequence[Tensor]:
        """One [B_t, C_t] per task."""
        with self.runtime.autocast(), batch_statistics(module):
            features = module(inputs)
        features = torch.nn.functional.normalize(features.float(), dim=-1).split([len(own) for own in rows.values()])
        return [own @ self.heads[task].T for own, task in zip(features, rows, strict=True)]

    def fingerprint(self) -> dict[str, str]:
        """Hashes of heads and images."""
        return {"heads": digest(*self.heads), "images": digest(*self.images)}
