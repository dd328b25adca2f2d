"""Depthwise convolutions on small maps: equal to torch's convolution, in value and in both gradients."""

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

from lib.vision.backbones import load_backbone
from lib.vision.small_maps import LARGEST, SmallMapConv2d, depthwise, with_small_maps


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (1, 3), (4, 4), (3, 5)])
def test_the_product_is_the_convolution(kernel: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 6, height, width, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(6, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(maps, kernels, padding=kernel // 2, groups=6)
    found = depthwise(maps, kernels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    back = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(out, (maps, kernels), back) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_second_derivatives_exist() -> None:
    maps = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(depthwise, (maps, kernels))


def test_a_loaded_model_computes_what_it_did() -> None:
    """The shipped CLIP, in value and gradient, against the same model with torch's convolutions."""
    encoder = load_backbone().encoder
    swapped = [part for part in encoder.modules() if isinstance(part, SmallMapConv2d)]
    assert len(swapped) == 15  # every depthwise convolution
    pixels = torch.randn(4, 3, 32, 32)
    gradients = []
    for kind in (SmallMapConv2d, nn.Conv2d):
        for part in swapped:
            part.__class__ = kind
        encoder.zero_grad()
        features = encoder(pixels)
        features.square().mean().backward()
        gradients.append([features.detach(), *(p.grad for p in encoder.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}, {"padding_mode": "reflect"}, {"kernel_size": 4}],
)
def test_other_convolutions_are_left_alone(options: dict[str, object]) -> None:
    options = {"kernel_size": 3, "padding": 1, "groups": 8} | options
    assert type(with_small_maps(nn.Conv2d(8, 8, **options))) is nn.Conv2d


def test_padding_that_adapts_is_left_alone() -> None:
    """timm's "same" padding is a class of its own, which pads on one side only where the stride asks for it."""
    adapting = create_conv2d(8, 8, 3, padding="same", stride=2, depthwise=True)
    assert type(adapting) is not nn.Conv2d
    assert not isinstance(with_small_maps(adapting), SmallMapConv2d)


def test_large_maps_and_bias() -> None:
    plain = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    maps = [torch.randn(2, 4, side, side) for side in (LARGEST, LARGEST + 1)]
    expected = [plain(each) for each in maps]
    assert isinstance(with_small_maps(plain), SmallMapConv2d)
    torch.testing.assert_close([plain(each) for each in maps], expected)
