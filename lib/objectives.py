r"""What test-time adaptation minimises on unlabelled images: prediction entropy, or information maximisation.

An objective maps a point of R^D to a loss and its gradient, `objective(theta) -> (loss, G)`. That is all an adaptation
loop knows of a model; another model family plugs in by another objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.models import Preprocess
from lib.rng import batch_indices

Objective = Callable[[Tensor], tuple[float, Tensor]]
OBJECTIVES = ("entropy", "information-maximisation")
CPU_PIXELS = 1_000_000  # pixels per pass on a CPU: 20 images of 224 x 224; what lies between layers then stays small


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (nats) of each row's class probabilities: [N, C] -> [N]."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def entropy_of_mean(mean: Tensor) -> Tensor:
    """Shannon entropy (nats) of a mean prediction, class probabilities [C] -> []."""
    return -torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()


class PredictionObjective:
    r"""Entropy of the predictions per task, summed over tasks; optionally minus the entropy of their mean.

    - "entropy" (AdaMerging, https://arxiv.org/abs/2310.02575, Eq. 4; the paper's): mean_i H(p_i). It can be lowered by
      predicting one class for everything.
    - "information-maximisation" (Krause et al. 2010; SHOT, https://arxiv.org/abs/2002.08546, Eq. 3-4):
      mean_i H(p_i) - diversity * H(mean_i p_i). Sure about each image, undecided about the mixture: it assumes
      classes of roughly equal frequency.

    All tasks share theta, so the rows of all tasks go through the encoder as ONE batch and each task's frozen head
    reads its own rows: one forward and one backward pass, whatever T. There is no argument for labels.

    Where a task has more classes C than its batch has images B, the mean over the batch cannot be even. The mean
    prediction is then a running average over about C images: B / C of this batch, the rest as it was before.

    A task's loss depends on no other task's rows, so where memory or cache is short some tasks at a time go through the
    encoder, forward and backward, and their gradients add up to the same G. One batch is best on an accelerator and for
    small images; on a CPU many large ones are slower together than apart (`make benchmark`).

    Args:
        model: image encoder bound to flat vectors.
        heads: frozen classification heads, one [C_t, width] per task.
        images: unlabelled images, one uint8 [N_t, 3, H, W] per task.
        preprocess: pixels to the encoder's input.
        runtime: device and precision.
        batch: images per task and step.
        seed: names the order of the batches.
        objective: one of `OBJECTIVES`.
        diversity: weight of the mean prediction's entropy in information maximisation.
        rows_at_once: at most so many rows per pass through the encoder, but at least one task's; 0 chooses.

    Attributes:
        report: of the last evaluation: `entropy`, mean over tasks, and `marginal_entropy`, that of the mean prediction
            in the task where it is lowest; both as a share of their largest possible value, log C.

    Raises:
        ValueError: if heads and image sets differ in number, a set is empty, or the objective is unknown.
    """

    def __init__(
        self,
        model: FlatModel,
        heads: Sequence[Tensor],
        images: Sequence[Tensor],
        preprocess: Preprocess,
        runtime: Runtime,
        *,
        batch: int,
        seed: int,
        objective: str = "entropy",
        diversity: float = 1.0,
        rows_at_once: int = 0,
    ) -> None:
        if len(heads) != len(images) or not heads:
            raise ValueError(f"{len(heads)} heads and {len(images)} image sets: every task needs one of each")
        for number, (head, pixels) in enumerate(zip(heads, images, strict=True)):
            if pixels.dtype != torch.uint8 or pixels.dim() != 4 or len(pixels) == 0:
                raise ValueError(f"image set {number} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,3,H,W]")
            if head.dim() != 2:
                raise ValueError(f"head {number} has shape {list(head.shape)}, expected [classes, width]")
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective '{objective}'; known: {', '.join(OBJECTIVES)}")
        self.model, self.preprocess, self.runtime = model, preprocess, runtime
        self.heads = [head.to(runtime.device) for head in heads]
        self.images = list(images)
        self.batch, self.seed, self.rows_at_once = batch, seed, rows_at_once
        self.diversity = diversity if objective == "information-maximisation" else 0.0
        self.report: dict[str, float] = {}
        self._running: list[Tensor | None] = [None] * len(heads)

    def rows(self, step: int) -> list[Tensor]:
        """The images of a step, one uint8 [B_t, 3, H, W] per task."""
        return [
            pixels[batch_indices(len(pixels), self.batch, step, "adaptation", task, self.seed)]
            for task, pixels in enumerate(self.images)
        ]

    def __call__(self, step: int) -> Objective:
        """The objective on the batch of a step."""
        rows, before, first = self.rows(step), list(self._running), True
        groups = self._groups(rows)
        pixels = [self.preprocess(torch.cat(rows[group]).to(self.runtime.device)) for group in groups]

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            nonlocal first
            encoder = self.model.move_to(theta)
            parts = []
            for group, own in zip(groups, pixels, strict=True):
                features = self._features(encoder, own).split([len(part) for part in rows[group]])
                parts += map(self._loss, features, self.heads[group], before[group])
                torch.stack([loss for loss, *_ in parts[group]]).sum().backward()
            losses, means, shares = zip(*parts, strict=True)
            single, marginal = torch.stack(shares).T
            self.report = {"entropy": single.mean().item(), "marginal_entropy": marginal.min().item()}
            if first:  # a second look at the same batch is no new evidence
                self._running, first = list(means), False
            return torch.stack(losses).detach().sum().item(), self.model.gradient

        return objective

    def _groups(self, rows: Sequence[Tensor]) -> list[slice]:
        """Runs of tasks that go through the encoder together."""
        most = max(map(len, rows))
        limit = self.rows_at_once
        if not limit:
            limit = sum(map(len, rows)) if self.runtime.device != "cpu" else CPU_PIXELS // rows[0][0, 0].numel()
        tasks = max(1, limit // most)
        return [slice(start, start + tasks) for start in range(0, len(rows), tasks)]

    def _features(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        with self.runtime.autocast():
            features = encoder(pixels)
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def _loss(self, features: Tensor, head: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A task's loss, its mean prediction [C], and what `report` says of it [2]."""
        logits, classes = features @ head.T, len(head)
        single, mean = entropy(logits).mean(), logits.softmax(-1).mean(0)
        new = min(1.0, len(features) / classes)
        if before is not None and new < 1:
            mean = new * mean + (1 - new) * before
        marginal = entropy_of_mean(mean)
        loss = single - self.diversity * marginal if self.diversity else single
        share = torch.stack([single, marginal]).detach() / math.log(max(classes, 2))
        return loss, mean.detach(), share

    def state(self) -> list[Tensor | None]:
        """What a checkpoint must hold: the running mean predictions."""
        return list(self._running)

    def load_state(self, state: list[Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self._running = list(state)
