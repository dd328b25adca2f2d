"""What fine-tuning minimises on images, and what scores it on the way.

Apart from what adaptation does, so that an edit there does not make other experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.runtime.device import Runtime
from lib.runtime.rng import batch_indices
from lib.vision.batches import gather, shifted
from lib.vision.models import Preprocess
from lib.vision.scoring import features_of, logits_of, raw_features, score


def image_loss(
    head: Tensor,
    train: tuple[Tensor, Tensor],
    preprocess: Preprocess,
    runtime: Runtime,
    *,
    task: str,
    batch: int,
    seed: int,
) -> Callable[[nn.Module, int], Tensor]:
    """Cross-entropy of an image encoder under a frozen head, on the `batch` images of a step.

    Images are uint8 [N, 3, H, W], labels int64 [N]; task and seed name the order of the batches and the shifts.
    """
    images, labels = train
    head = head.to(runtime.device)

    def loss_at(encoder: nn.Module, step: int) -> Tensor:
        rows = batch_indices(len(images), batch, step, "fine-tuning", task, seed)
        pixels = preprocess(shifted(gather([images], [rows], runtime.device), 2, task, seed, step))
        logits = logits_of(features_of(encoder, pixels, runtime), head)
        return torch.nn.functional.cross_entropy(logits, labels[rows].to(runtime.device))

    return loss_at


def image_accuracy(
    head: Tensor, held_out: tuple[Tensor, Tensor], preprocess: Preprocess, runtime: Runtime
) -> Callable[[nn.Module], float]:
    """What scores an image encoder on the way, on uint8 [N, 3, H, W] and int64 labels [N], for its learning curve."""
    images, labels = held_out

    def accuracy(encoder: nn.Module) -> float:
        return score(raw_features(encoder, images, preprocess, runtime), head, labels)["accuracy"]

    return accuracy
