"""Features as an encoder gives them, before they are brought to length 1: what a surgery reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.runtime.device import Runtime
from lib.vectors.batch_norm import Statistics, load_statistics
from lib.vectors.flat_model import FlatModel
from lib.vision.batches import upload
from lib.vision.models import Preprocess


@torch.no_grad()
def raw_features(
    encoder: nn.Module, pixels: Tensor, preprocess: Preprocess, runtime: Runtime, batch: int = 256
) -> Tensor:
    """Features of uint8 images, not normalised: [N, 3, H, W] -> float32 [N, width] on the CPU.

    Brought to length 1 they are those of `lib.vision.scoring.image_features`.
    """
    encoder.eval()

    def features(rows: Tensor) -> Tensor:
        with runtime.autocast():
            return encoder(preprocess(upload(rows, runtime.device)))

    return torch.cat([features(rows).float() for rows in pixels.split(batch)]).cpu()  # a GPU is waited for once


def features_at(
    model: FlatModel,
    theta: Tensor,
    pixels: Tensor,
    preprocess: Preprocess,
    runtime: Runtime,
    statistics: Statistics | None = None,
) -> Tensor:
    """The same of the model at a point of R^D: float32 [N, width] on the CPU.

    Args:
        model: the image encoder; it is moved.
        theta: an expert's parameters, or merged ones [D].
        pixels: uint8 [N, 3, H, W].
        preprocess: pixels to input.
        runtime: device and precision.
        statistics: BatchNorm's running statistics to use; None for the model's present ones.
    """
    encoder = model.move_to(theta)
    if statistics:
        load_statistics(encoder, statistics)
    return raw_features(encoder, pixels, preprocess, runtime)
