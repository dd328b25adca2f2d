"""Corrupted images, for scores under distribution shift, after ImageNet-C.

Hendrycks & Dietterich, 2019 (https://arxiv.org/abs/1903.12261) corrupt test images in many ways at five severities;
the paper (https://arxiv.org/abs/2312.06173) adapts and scores on seven of them. They are written anew here for batches
of tensors, which needs neither OpenCV nor ImageMagick, so single pixels differ from the published ones.

*Lengths are shares of the image's shorter side*, so streaks, blocks and drops look alike at every size: published
constants are in pixels, one table for 224 and one for 32. Noise has a grain of one pixel and JPEG blocks of eight at
any size. *Severities share their random numbers*: at a higher severity the same specks, streaks and drops grow.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib.runtime.parameters import closest
from lib.runtime.rng import generator

BLOCK = 64  # images per random stream: image i draws from stream i // 64, so it does not matter how many images follow

# What a severity means, 1 to 5. Where nothing else is said the values are those of CIFAR-10-C, ImageNet-C's table for
# 32 pixels, which FusionBench applies too: a small picture has few pixels to spare, so they are milder than at 224.
STRENGTHS: dict[str, tuple[float, ...]] = {
    # Standard deviation of the streak as a share of the side. The published streak is half a Gaussian of 1 to 2.5
    # pixels of 32, whose standard deviation is 0.6 of that: 0.6, 0.9, 1.2, 1.2, 1.5. The last two are longer here,
    # because the published third and fourth differ by little more than where they are cut off.
    "motion_blur": (0.6 / 32, 0.9 / 32, 1.2 / 32, 1.6 / 32, 2.0 / 32),
    # Share of the colour values that are lost, half of them to 0 and half to 255.
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    # Standard deviation, white being 1.
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    # Blocks along the shorter side. The published 30, 28, 27, 24, 20 of 32 merge one row in five at severity 3, which a
    # person does not see; here two rows become one there, and three become one at the end.
    "pixelate": (24, 20, 16, 12, 10),
    # Share of the image that is wet, rims included. The published thresholds give 2, 8, 32, 16 and 30 percent, faint
    # water at the third and thick mud at the fourth; here drops are equally thick at all severities.
    "spatter": (0.05, 0.10, 0.15, 0.22, 0.30),
    # What is left of each pixel's distance to the mean colour.
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    # Quality, as PIL counts it. The published 80, 65, 58, 50, 40 cost the tiny experts 2 points at most, whatever the
    # severity; these go on to where ImageNet-C ends (7).
    "jpeg_quality": (60, 40, 25, 15, 8),
}
CORRUPTIONS = tuple(STRENGTHS)  # in the order of the paper's tables

STEEPEST = 45.0  # degrees between a streak and the horizontal, at most (as published)
WATER, MUD = (175, 238, 238), (63, 42, 20)  # pale turquoise and brown (as published)
OPACITY = 0.8  # of the middle of a drop
DROP = 1 / 32  # radius over which a drop is smooth, as a share of the side (published: 0.7 to 1 pixel of 32)
RIM = 0.5  # how far above the waterline, in standard deviations of its field, a drop is thick


def _draw(function: Callable[..., Tensor], count: int, *shape: int, stream: torch.Generator) -> Tensor:
    """The first `count` of a whole block of draws [count, *shape]: a short last block draws like a full one."""
    return function(BLOCK, *shape, generator=stream)[:count]


def _motion_blur(images: Tensor, spread: float, stream: torch.Generator) -> Tensor:
    """A camera that moved in a direction of each image's own: the mean along a line, with Gaussian weights.

    The line is a pixel wide and fades linearly to both sides, so that no direction has to be rounded to the pixel grid.
    By Fourier transform, which is as fast for a long line as for a short one.
    """
    height, width = images.shape[-2:]
    deviation = spread * min(height, width)
    margin = int(3 * deviation) + 1
    padded = F.pad(images, (margin,) * 4, mode="replicate")  # else the left edge would bleed into the right one
    size = padded.shape[-2:]
    angle = torch.deg2rad(STEEPEST * (2 * _draw(torch.rand, len(images), 1, 1, 1, stream=stream) - 1))
    rows, columns = (torch.fft.fftfreq(length, 1 / length) for length in size)  # 0, 1, ..., -1: places in pixels
    along = torch.cos(angle) * columns + torch.sin(angle) * rows[:, None]
    across = torch.cos(angle) * rows[:, None] - torch.sin(angle) * columns
    line = torch.exp(-0.5 * (along / deviation) ** 2) * (1 - across.abs()).clamp(min=0) * (along.abs() <= margin)
    line = line / line.sum((-2, -1), keepdim=True)
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.fft.rfft2(line), s=size)
    return blurred[..., margin : margin + height, margin : margin + width]


def _impulse_noise(images: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Salt and pepper, in every colour by itself."""
    lot = _draw(torch.rand, *images.shape, stream=stream)
    return images.masked_fill(lot < share / 2, 0.0).masked_fill(lot >= 1 - share / 2, 255.0)


def _gaussian_noise(images: Tensor, deviation: float, stream: torch.Generator) -> Tensor:
    """Noise of a sensor in poor light."""
    return images + 255 * deviation * _draw(torch.randn, *images.shape, stream=stream)


def _pixelate(images: Tensor, blocks: float, stream: torch.Generator) -> Tensor:
    """The picture in fewer pixels, each the mean of the pixels whose centres lie in it."""
    share = min(1.0, blocks / min(images.shape[-2:]))
    averages = []
    for length in images.shape[-2:]:
        block = ((torch.arange(length) + 0.5) * round(share * length) / length).long()
        together = (block[:, None] == block).float()
        averages.append(together / together.sum(1, keepdim=True))
    return averages[0] @ images @ averages[1].T


def _spatter(images: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Drops on the lens, of water on one image and of mud on another.

    A smooth Gaussian field of mean 0 and variance 1 is wet above its quantile of 1 - share. ImageNet-C has water at low
    severities and mud at high ones; with that, a dark picture would change less at severity 4 than at 3.
    """
    count, _, height, width = images.shape
    deviation = DROP * min(height, width)
    reach = min(int(3 * deviation) + 1, height, width)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()  # the sum of squares is 1, so the variance stays 1
    field = _draw(torch.randn, count, 1, height, width, stream=stream)
    field = F.pad(field, (reach,) * 4, mode="circular")  # every pixel gets the same variance, those at the edge too
    field = F.conv2d(F.conv2d(field, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    waterline = NormalDist().inv_cdf(1 - share)
    wet = OPACITY * ((field - waterline) / RIM).clamp(0, 1)
    liquids = torch.tensor([WATER, MUD], dtype=images.dtype)
    liquid = liquids[(_draw(torch.rand, count, stream=stream) < 0.5).long()].view(count, 3, 1, 1)
    return images + wet * (liquid - images)


def _contrast(images: Tensor, left: float, stream: torch.Generator) -> Tensor:
    """Every pixel drawn towards the image's mean colour."""
    mean = images.mean(dim=(-2, -1), keepdim=True)
    return mean + left * (images - mean)


def _jpeg_quality(images: Tensor, quality: float, stream: torch.Generator) -> Tensor:
    """Each image saved as JPEG and read again."""
    pictures = []
    for picture in images.to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
        pictures.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


_KINDS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "motion_blur": _motion_blur,
    "impulse_noise": _impulse_noise,
    "gaussian_noise": _gaussian_noise,
    "pixelate": _pixelate,
    "spatter": _spatter,
    "contrast": _contrast,
    "jpeg_quality": _jpeg_quality,
}


def corrupt(images: Tensor, kind: str, *, severity: int = 3, seed: int = 0) -> Tensor:
    """Corrupt images in one of the ways of `CORRUPTIONS`.

    What happens to image i follows from (kind, severity, seed, i) and the image alone: it does not matter how many
    images come after it, but one that is moved to another place in the batch meets other accidents.

    Args:
        images: uint8 [N, 3, H, W], any size; they are left as they are.
        kind: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5 (severe); see `STRENGTHS`.
        seed: another seed, other streaks, specks and drops.

    Returns:
        uint8 [N, 3, H, W] on the device of `images`; computed on the CPU, so that no device draws numbers of its own.

    Raises:
        ValueError: for an unknown kind, a severity that is not 1, 2, 3, 4 or 5, or images of another type or shape.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"unknown corruption '{kind}'{closest(kind, CORRUPTIONS)}; known: {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity is {severity}, expected 1 (mild), 2, 3, 4 or 5 (severe)")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [N, 3, H, W]")
    strength = STRENGTHS[kind][int(severity) - 1]
    corrupted = torch.empty(images.shape, dtype=torch.uint8)
    for number, block in enumerate(images.cpu().split(BLOCK) if len(images) else ()):
        stream = generator("corruption", kind, seed, number)
        result = _KINDS[kind](block.float(), strength, stream)
        corrupted[number * BLOCK : number * BLOCK + len(block)] = result.round().clamp(0, 255)
    return corrupted.to(images.device)
