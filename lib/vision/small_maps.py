"""Depthwise convolutions on maps of a few pixels, as matrix products: the same numbers in less time.

A backbone made for 224 pixels has maps of 4 x 4, 2 x 2 and 1 x 1 pixels when it sees 32, and slides kernels of up to
9 x 9 over them. On a CPU the gradient of such a kernel goes through all its positions, most of which lie in the
padding: nearly half of a training step of the tiny CLIP. Written out, the convolution is one small matrix per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 4  # side of the largest map that is worth it; at 8 x 8 the convolution is faster


class SmallMapConv2d(nn.Conv2d):
    """A depthwise convolution of stride 1 that keeps the size of the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        if maps.device.type != "cpu" or max(maps.shape[-2:]) > LARGEST:
            return super().forward(maps)
        mixed = depthwise(maps, self.weight)
        return mixed if self.bias is None else mixed + self.bias[:, None, None]


def depthwise(maps: Tensor, kernels: Tensor) -> Tensor:
    """A depthwise convolution with zero padding that keeps the size, as one product per channel.

    out[p] = sum_q kernel[q - p] maps[q] over pixels p, q of the map, so the matrix of a channel is its kernel's entries
    at all differences q - p; those beyond the kernel are 0.

    Args:
        maps: [N, C, H, W].
        kernels: [C, 1, K, K], K odd.
    """
    count, channels, height, width = maps.shape
    if height == width == 1:  # only the centre of a kernel meets a pixel
        return maps * kernels[:, 0, kernels.shape[-2] // 2, kernels.shape[-1] // 2, None, None]
    whole = nn.functional.pad(kernels[:, 0], _margins(width, kernels.shape[-1]) + _margins(height, kernels.shape[-2]))
    rows, columns = (_differences(side, maps.device) for side in (height, width))
    matrices = whole[:, rows][..., columns]  # [C, q's row, p's row, q's column, p's column]
    matrices = matrices.transpose(2, 3).reshape(channels, height * width, height * width)
    mixed = torch.bmm(maps.flatten(2).transpose(0, 1), matrices)
    return mixed.transpose(0, 1).reshape(count, channels, height, width)


def with_small_maps(model: nn.Module) -> nn.Module:
    """Let a model's depthwise convolutions take the short way on small maps. Parameters and their names stay.

    Args:
        model: changed in place, and returned.
    """
    for part in model.modules():
        if type(part) is nn.Conv2d and _keeps_size(part):
            part.__class__ = SmallMapConv2d
    return model


def _keeps_size(part: nn.Conv2d) -> bool:
    depthwise_one = part.groups == part.in_channels == part.out_channels and part.padding_mode == "zeros"
    odd = all(side % 2 for side in part.kernel_size)
    centred = part.padding == tuple(side // 2 for side in part.kernel_size)
    return depthwise_one and odd and centred and part.stride == part.dilation == (1, 1)


def _margins(map_side: int, kernel_side: int) -> list[int]:
    """What to pad (or, negative, cut) on both sides of a kernel so that it has 2 * map_side - 1 entries."""
    return [map_side - 1 - kernel_side // 2] * 2


def _differences(side: int, device: torch.device) -> Tensor:
    """[q, p] -> index of q - p in a kernel that reaches side - 1 pixels to both sides."""
    steps = torch.arange(side, device=device)
    return steps[:, None] - steps + side - 1
