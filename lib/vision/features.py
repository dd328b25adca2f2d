"""Features of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.runtime.device import Runtime
from lib.vision.models import Preprocess


@torch.no_grad()
def image_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """Normalised features of uint8 images: [N, 3, H, W] -> float32 [N, width] on the CPU."""
    encoder.eval()
    parts = []
    for rows in pixels.split(batch):
        with runtime.autocast():
            features = encoder(preprocess(rows.to(runtime.device)))
        parts.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
    return torch.cat(parts)
