"""Scores of a head on features of images."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.vision.heads import minimise


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


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int, penalty: float = 1e-4
) -> dict[str, float]:
    """Logistic regression on frozen normalised features (L-BFGS), scored like `score`.

    Args:
        train: features to fit on [N, width].
        train_labels: int64 [N].
        test: features to score on [M, width].
        test_labels: int64 [M].
        classes: C.
        penalty: weight of the squared norm of the weights.
    """
    weight = torch.zeros(train.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    scale = 20.0  # features have length 1: without it the weights would have to grow far against the penalty

    def loss_at() -> Tensor:
        fit = torch.nn.functional.cross_entropy(scale * train @ weight + bias, train_labels)
        return fit + penalty * weight.square().sum()

    minimise(loss_at, weight, bias)
    with torch.no_grad():
        logits = scale * test @ weight + bias
    return {
        "accuracy": (logits.argmax(-1) == test_labels).double().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, test_labels).item(),
        "n": len(test_labels),
    }
