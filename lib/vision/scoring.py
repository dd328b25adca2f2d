"""From images to features, and from features to scores of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from lib.runtime.device import Runtime
from lib.vision.batches import upload
from lib.vision.models import Preprocess


def features_of(encoder: nn.Module, inputs: Tensor, runtime: Runtime) -> Tensor:
    """Features of preprocessed images as the encoder gives them: float32 [N, width]."""
    with runtime.autocast():
        return encoder(inputs).float()


def logits_of(features: Tensor, head: Tensor) -> Tensor:
    """What a head says of features as the encoder gives them: [N, width] -> [N, C].

    Args:
        features: [N, width].
        head: [C, width] reads them brought to length 1; [C, width + 1], a classifier that came with an expert, reads
            them as they are, and its last column are the biases.
    """
    plain = features.shape[-1] == head.shape[-1]
    return (normalize(features, dim=-1) if plain else pad(features, (0, 1), value=1.0)) @ head.T


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
    """The same brought to length 1, as the study's own heads read them."""
    return normalize(raw_features(encoder, pixels, preprocess, runtime, batch), dim=-1)


def score(features: Tensor, head: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) of a head on features [N, width]: see `logits_of`."""
    logits = logits_of(features, head.cpu())
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        "n": len(labels),
    }
