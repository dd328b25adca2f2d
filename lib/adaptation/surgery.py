r"""Representation Surgery: a small module per task that brings a merged model's features near those of its expert.

Yang et al., "Representation Surgery for Multi-Task Model Merging", https://arxiv.org/abs/2402.02705.

    z_hat = z - W_up ReLU(W_down z)        of one task, z the features of the merged model
    minimise  mean |z_hat - z_expert|      over W_down [r, d] and W_up [d, r], on unlabelled inputs

The merged model stays as it is, so its features and the expert's are made once, and all that is learned is a function
of these two tensors. What is kept of each task is 2 r d numbers.

Details are those of the authors' code (https://github.com/EnnengYang/RepresentationSurgery). Features are taken as the
encoder gives them, *before* they are brought to length 1: the surgery comes first, and the head normalises what it
leaves. W_up starts at 0, so the first features are the merged model's own. FusionBench's `surgery` does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from lib.adaptation.coefficients import Variable
from lib.adaptation.loop import Row, descend
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.rng import batch_indices, generator


@dataclass(frozen=True)
class Surgery:
    """The module of one task: features [N, d] -> features [N, d], in their type and on their device.

    Attributes:
        down: W_down [r, d].
        up: W_up [d, r].
        curve: of its training, one row per step: step, loss (mean absolute difference); None if it was not trained.
    """

    down: Tensor
    up: Tensor
    curve: pd.DataFrame | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Features of the merged model, not normalised [N, d] -> nearer the expert's [N, d]."""
        return operated(features, self.down.to(features), self.up.to(features))


def operated(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What is left of every row, z - W_up ReLU(W_down z): [N, d], [r, d], [d, r] -> [N, d]."""
    return features - torch.relu(features @ down.T) @ up.T


def surgery(
    merged_features: Tensor,
    expert_features: Tensor,
    *,
    rank: int = 16,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    batch: int = 16,
    seed: int = 0,
    label: str = "Surgery",
    checkpoint: Checkpoint | None = None,
) -> Surgery:
    """Learn the module of one task from features of the same unlabelled inputs under two models.

    Args:
        merged_features: of the merged model, not normalised [N, d].
        expert_features: of the task's expert [N, d].
        rank: r (paper and code: 16).
        steps: number of steps (code: 500 rounds of two batches).
        learning_rate: Adam's (code: 1e-3).
        batch: inputs per step (code: 16).
        seed: names the first W_down, uniform within 1 / sqrt(d) of 0 as in the code, and the order of the batches.
        label: shown with the progress.
        checkpoint: where to save and from where to continue.

    Returns:
        The module, and the curve of its loss.

    Raises:
        ValueError: if the features are no two matrices of one shape with rows, the rank is below 1, the batch is below
            1, or a loss is not finite (naming the step).
    """
    if merged_features.dim() != 2 or merged_features.shape != expert_features.shape or not merged_features.numel():
        found = f"{list(merged_features.shape)} and {list(expert_features.shape)}"
        raise ValueError(f"features have shapes {found}, expected [N, d] of the same inputs under both models")
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    operation = Operation(
        merged_features, expert_features.to(merged_features),
        rank=rank, learning_rate=learning_rate, batch=batch, seed=seed,
    )  # fmt: skip
    curve = descend(operation, operation.one_step, steps, label=label, checkpoint=checkpoint)
    return Surgery(operation.down.values, operation.up.values, curve)


class Operation:
    """What is learned for one task, and one step of learning it. The arguments are those of `surgery`."""

    def __init__(
        self, merged: Tensor, expert: Tensor, *, rank: int, learning_rate: float, batch: int, seed: int
    ) -> None:
        self.merged, self.expert = merged.detach(), expert.detach()
        self.batch, self.seed = batch, seed
        width = merged.shape[1]
        drawn = torch.rand(rank, width, generator=generator("surgery", seed))
        self.down = Variable(((2 * drawn - 1) / width**0.5).to(merged), learning_rate)
        self.up = Variable(merged.new_zeros(width, rank), learning_rate)

    def gradients(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss on some rows, int64 [B], and its gradients by W_down and W_up."""
        rows = rows.to(self.merged.device)
        learned = [own.values.detach().requires_grad_() for own in (self.down, self.up)]
        loss = (operated(self.merged[rows], *learned) - self.expert[rows]).abs().mean()
        return loss.detach(), torch.autograd.grad(loss, learned)

    def one_step(self, step: int) -> Row:
        """Move both matrices one step down the loss; the row is of the module before it."""
        loss, by_matrix = self.gradients(batch_indices(len(self.merged), self.batch, step, "surgery", self.seed))
        for own, gradient in zip((self.down, self.up), by_matrix, strict=True):
            own.step(gradient)
        return {"step": step, "loss": loss}

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        return {"down": self.down.state(), "up": self.up.state()}

    def load_state(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.down.load_state(state["down"])
        self.up.load_state(state["up"])
