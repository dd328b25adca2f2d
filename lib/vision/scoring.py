"""Scores of a head on features of images."""

from __future__ import annotations

import torch
from torch import Tensor


def score(features: Tensor, head: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) of a head on normalised features.

    Args:
        features: [N, width].
        head: [C, width].
        labels: int64 [N].
    """
    logits = features @ head.cpu().T
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        "n": len(labels),
    }
