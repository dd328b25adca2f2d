"""From images to features, and from features to scores of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.runtime.device import Runtime
from lib.vision.batches import upload
from lib.vision.models import Preprocess


def features_of(encoder: nn.Module, inputs: Tensor, runtime: Runtime) -> Tensor:
    """Features of preprocessed images as the encoder gives them: float32 [N, width]."""
    with runtime.autocast():
        return encoder(inputs).float()


def unit_features(encoder: nn.Module, inputs: Tensor, runtime: Runtime) -> Tensor:
    """The same brought to length 1, as heads read them."""
    return normalize(features_of(encoder, inputs, runtime), dim=-1)


@torch.no_grad()
def raw_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """Features of uint8 images as the encoder gives them: [N, 3, H, W] -> float32 [N, width] on the CPU."""
    encoder.eval()
    inputs = (preprocess(upload(rows, runtime.device)) for rows in pixels.split(batch))
    return torch.cat([features_of(encoder, own, runtime) for own in inputs]).cpu()  # a GPU is waited for once


def image_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """The same brought to length 1, as heads read them."""
    return normalize(raw_features(encoder, pixels, preprocess, runtime, batch), dim=-1)


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
