"""From images to features, and from features to scores of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.runtime.device import Runtime
from lib.vision.batches import upload
from lib.vision.models import Preprocess


def unit_features(encoder: nn.Module, inputs: Tensor, runtime: Runtime) -> Tensor:
    """Normalised features of preprocessed images: float32 [N, width]."""
    with runtime.autocast():
        features = encoder(inputs)
    return torch.nn.functional.normalize(features.float(), dim=-1)


@torch.no_grad()
def image_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """Normalised features of uint8 images: [N, 3, H, W] -> float32 [N, width] on the CPU."""
    encoder.eval()
    inputs = (preprocess(upload(rows, runtime.device)) for rows in pixels.split(batch))
    return torch.cat([unit_features(encoder, own, runtime) for own in inputs]).cpu()  # a GPU is waited for once


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
