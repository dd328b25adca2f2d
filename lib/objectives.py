r"""What test-time adaptation minimises: the entropy of the merged model's predictions on unlabelled images.

An objective maps a point of R^D to a loss and its gradient, `objective(theta) -> (loss, G)`. That is all an adaptation
loop knows of a model; another model family plugs in by another objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.device import Runtime
from lib.flat_model import FlatModel
from lib.models import Preprocess
from lib.rng import batch_indices

Objective = Callable[[Tensor], tuple[float, Tensor]]


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (nats) of each row's class probabilities: [N, C] -> [N]."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


class PredictionEntropy:
    """Mean prediction entropy per task, summed over tasks (AdaMerging, https://arxiv.org/abs/2310.02575, Eq. 4).

    All tasks share theta, so the rows of all tasks go through the encoder as ONE batch and each task's frozen head
    reads its own rows: one forward and one backward pass, whatever T. There is no argument for labels.

    Args:
        model: image encoder bound to flat vectors.
        heads: frozen classification heads, one [C_t, width] per task.
        images: unlabelled images, one uint8 [N_t, 3, H, W] per task.
        preprocess: pixels to the encoder's input.
        runtime: device and precision.
        batch: images per task and step.
        seed: names the order of the batches.

    Raises:
        ValueError: if heads and image sets differ in number, or a set is empty.
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
    ) -> None:
        if len(heads) != len(images) or not heads:
            raise ValueError(f"{len(heads)} heads and {len(images)} image sets: every task needs one of each")
        for number, (head, pixels) in enumerate(zip(heads, images, strict=True)):
            if pixels.dtype != torch.uint8 or pixels.dim() != 4 or len(pixels) == 0:
                raise ValueError(f"image set {number} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,3,H,W]")
            if head.dim() != 2:
                raise ValueError(f"head {number} has shape {list(head.shape)}, expected [classes, width]")
        self.model, self.preprocess, self.runtime = model, preprocess, runtime
        self.heads = [head.to(runtime.device) for head in heads]
        self.images = list(images)
        self.batch, self.seed = batch, seed

    def rows(self, step: int) -> list[Tensor]:
        """The images of a step, one uint8 [B_t, 3, H, W] per task."""
        return [
            pixels[batch_indices(len(pixels), self.batch, step, "adaptation", task, self.seed)]
            for task, pixels in enumerate(self.images)
        ]

    def __call__(self, step: int) -> Objective:
        """The objective on the batch of a step."""
        rows = self.rows(step)
        pixels = self.preprocess(torch.cat(rows).to(self.runtime.device))

        def objective(theta: Tensor) -> tuple[float, Tensor]:
            encoder = self.model.move_to(theta)
            with self.runtime.autocast():
                features = encoder(pixels)
            features = torch.nn.functional.normalize(features.float(), dim=-1)
            per_task = zip(features.split([len(part) for part in rows]), self.heads, strict=True)
            loss = torch.stack([entropy(own @ head.T).mean() for own, head in per_task]).sum()
            loss.backward()
            return loss.item(), self.model.gradient

        return objective
