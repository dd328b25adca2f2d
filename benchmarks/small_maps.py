"""A training step of the tiny CLIP with and without `lib.vision.small_maps`: `python -m benchmarks.small_maps`."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from lib.vision.models import load_clip
from lib.vision.small_maps import SmallMapConv2d

REPEATS = 20


def seconds(encoder: nn.Module, pixels: Tensor) -> float:
    """The fastest of some steps, forward and backward."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        encoder.zero_grad()
        encoder(pixels).square().sum().backward()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Print milliseconds per step for a batch of fine-tuning and one of adaptation."""
    torch.set_num_threads(1)
    encoder = load_clip().encoder.train()
    own = [part for part in encoder.modules() if isinstance(part, SmallMapConv2d)]
    for batch in (64, 128):
        pixels = torch.randn(batch, 3, 32, 32)
        times = {}
        for name, kind in (("torch", nn.Conv2d), ("small maps", SmallMapConv2d)):
            for part in own:
                part.__class__ = kind
            times[name] = seconds(encoder, pixels)
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in times.items())
        print(f"batch {batch}: {shown}, {times['torch'] / times['small maps']:.1f} times faster")


if __name__ == "__main__":
    main()
