"""A training step of the tiny CLIP with and without `lib.vision.small_maps`: `python -m benchmarks.small_maps`."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lib.vision.models import load_clip
from lib.vision.small_maps import SmallMapConv2d

ROUNDS = 15


def step(encoder: nn.Module, pixels: Tensor) -> None:
    """Forward and backward."""
    encoder.zero_grad()
    encoder(pixels).square().sum().backward()


def main() -> None:
    """Print milliseconds per step for a batch of fine-tuning and one of adaptation: medians of alternating rounds."""
    encoder = load_clip().encoder.train()
    own = [part for part in encoder.modules() if isinstance(part, SmallMapConv2d)]
    for batch in (64, 128):
        given = {"step": step, "encoder": encoder, "pixels": torch.randn(batch, 3, 32, 32)}
        timer, times = Timer("step(encoder, pixels)", globals=given), {nn.Conv2d: [], SmallMapConv2d: []}
        for kind in ROUNDS * list(times):
            for part in own:
                part.__class__ = kind
            times[kind].append(timer.timeit(3).mean)
        theirs, ours = map(median, times.values())
        shown = f"torch {1000 * theirs:.0f} ms, small maps {1000 * ours:.0f} ms"
        print(f"batch {batch}: {shown}, {theirs / ours:.1f} times faster")


if __name__ == "__main__":
    main()
