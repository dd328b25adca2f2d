"""Corrupted images: repeatable, stronger with severity, and each kind does what its name says."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from lib.runtime.rng import generator
from worlds.images.corruptions import BLOCK, CORRUPTIONS, OPACITY, STRENGTHS, corrupt

SEVERITIES = (1, 2, 3, 4, 5)
SIZES = [(32, 32), (64, 64), (48, 32), (224, 224)]


def pictures(count=8, height=32, width=32):
    """Smooth pictures with edges, nowhere near black or white: waves of random direction, some pixels stepped up."""
    stream = generator("test pictures", height, width)
    waves, phases = (
        6 * torch.rand(2, count, 3, 1, 1, generator=stream),
        6 * torch.rand(count, 3, 1, 1, generator=stream),
    )
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 3, width)
    values = torch.sin(waves[0] * rows + waves[1] * columns + phases)
    return (128 + 40 * values + 40 * (values > 0.3)).round().to(torch.uint8)


def plain(value, count=8, height=32, width=32):
    return torch.full((count, 3, height, width), value, dtype=torch.uint8)


def distance(images, others):
    return (images.float() - others.float()).abs().mean().item()


def steps(images):
    """Mean squared step between neighbours: what blurring takes away."""
    values = images.float()
    return values.diff(dim=-1).square().mean() + values.diff(dim=-2).square().mean()


def test_kinds_are_the_papers_and_have_five_severities_each():
    names = "motion_blur impulse_noise gaussian_noise pixelate spatter contrast jpeg_quality"
    assert " ".join(CORRUPTIONS) == names
    assert all(len(strengths) == 5 for strengths in STRENGTHS.values())


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pure_repeatable_and_of_the_same_shape(kind, height, width):
    images = pictures(3, height, width)
    before = images.clone()
    torch.manual_seed(1)
    corrupted = corrupt(images, kind)
    torch.manual_seed(2)  # the global generator has no part in it
    assert torch.equal(corrupt(images, kind), corrupted)
    assert corrupted.dtype == torch.uint8
    assert corrupted.shape == images.shape
    assert torch.equal(images, before)
    assert distance(corrupted, images) > 0.5


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_does_not_depend_on_how_many_follow(kind):
    images = pictures(2 * BLOCK + 5)
    whole = corrupt(images, kind)
    for count in (0, 1, BLOCK + 3):
        assert torch.equal(corrupt(images[:count], kind), whole[:count])


@pytest.mark.parametrize("kind", ["motion_blur", "impulse_noise", "gaussian_noise", "spatter"])
def test_images_and_seeds_have_random_numbers_of_their_own(kind):
    detailed = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator("test detail"))
    same = detailed.expand(2 * BLOCK, -1, -1, -1)
    corrupted = corrupt(same, kind)
    assert len(torch.unique(corrupted.flatten(1), dim=0)) == len(same)  # within and across blocks
    assert not torch.equal(corrupt(same, kind, seed=1), corrupted)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("height", "width"), SIZES[:3])
def test_severity_takes_images_further_from_the_clean_ones(kind, height, width):
    images = pictures(24, height, width)
    distances = [distance(corrupt(images, kind, severity=severity), images) for severity in SEVERITIES]
    assert all(later > 1.02 * earlier for earlier, later in pairwise(distances)), distances


def test_kinds_differ():
    images = pictures()
    corrupted = [corrupt(images, kind) for kind in CORRUPTIONS]
    for i, one in enumerate(corrupted):
        assert all(distance(one, other) > 1 for other in corrupted[:i])


@pytest.mark.parametrize("kind", ["motion_blur", "impulse_noise", "spatter", "contrast"])
def test_a_corruption_looks_alike_at_every_size(kind):
    """Lengths are shares of the side: the distance to the clean image does not change with the resolution."""
    small, large = (distance(corrupt(pictures(96, side, side), kind), pictures(96, side, side)) for side in (64, 128))
    assert large == pytest.approx(small, rel=0.15)


def test_motion_blur_keeps_plain_images_and_takes_detail_away_along_the_motion():
    assert torch.equal(corrupt(plain(200), "motion_blur", severity=5), plain(200))
    images = pictures()
    blurred = corrupt(images, "motion_blur")
    assert (blurred.float().mean((-2, -1)) - images.float().mean((-2, -1))).abs().max() < 3
    assert steps(blurred) < 0.7 * steps(images)
    upright = plain(0)
    upright[..., 16:] = 255  # the streaks are within 45 degrees of the horizontal, so they cross this edge
    flat = upright.transpose(-2, -1)
    assert distance(corrupt(upright, "motion_blur"), upright) > 1.2 * distance(corrupt(flat, "motion_blur"), flat)
    dots = plain(0)
    dots[..., 16, 16] = 255  # a dot becomes a streak of the stated spread, centred where the dot was
    streaks = corrupt(dots, "motion_blur", severity=5).double().mean(1)
    places = torch.arange(32.0).double() - 16
    weight = streaks / streaks.sum((-2, -1), keepdim=True)
    centre = torch.stack([(weight * places[:, None]).sum((1, 2)), (weight * places).sum((1, 2))])
    spread = (weight * (places[:, None] ** 2 + places**2)).sum((1, 2))
    assert centre.abs().max() < 0.2
    assert spread.sqrt().mean().item() == pytest.approx(32 * STRENGTHS["motion_blur"][4], rel=0.1)


def test_impulse_noise_sets_the_stated_share_to_black_and_white():
    for severity, share in zip(SEVERITIES, STRENGTHS["impulse_noise"], strict=True):
        noisy = corrupt(plain(100, 64), "impulse_noise", severity=severity)
        assert set(noisy.unique().tolist()) == {0, 100, 255}
        for value in (0, 255):
            assert (noisy == value).float().mean().item() == pytest.approx(share / 2, rel=0.15)


def test_gaussian_noise_has_the_stated_deviation():
    for severity, deviation in zip(SEVERITIES, STRENGTHS["gaussian_noise"], strict=True):
        noisy = corrupt(plain(128), "gaussian_noise", severity=severity).float()
        assert noisy.std().item() == pytest.approx(255 * deviation, rel=0.02)
        assert abs(noisy.mean().item() - 128) < 0.5
    assert corrupt(plain(250), "gaussian_noise").min() > 100  # too bright is white, not black again


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_pixelate_makes_constant_blocks_of_the_mean_colour(scale):
    images = pictures(4, 48 * scale, 32 * scale)
    coarse = corrupt(images, "pixelate")
    blocks = coarse.unfold(2, 2 * scale, 2 * scale).unfold(3, 2 * scale, 2 * scale).flatten(4)
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    means = images.float().unfold(2, 2 * scale, 2 * scale).unfold(3, 2 * scale, 2 * scale).mean((-2, -1))
    assert (blocks[..., 0] - means).abs().max() <= 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pils_box_filter_down_and_up(severity):
    images, blocks = pictures(4), STRENGTHS["pixelate"][severity - 1]
    for image, coarse in zip(images, corrupt(images, "pixelate", severity=severity), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        there_and_back = picture.resize((blocks, blocks), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        other = torch.from_numpy(np.array(there_and_back)).permute(2, 0, 1)
        assert (other.int() - coarse.int()).abs().max() <= 1  # PIL rounds after each direction


def test_spatter_touches_the_stated_share_only_with_water_and_mud():
    grey = plain(128, 256)
    drops = corrupt(grey, "spatter")
    wet = (drops != grey).any(1)
    assert wet.float().mean().item() == pytest.approx(STRENGTHS["spatter"][2], rel=0.15)
    assert wet.flatten(1).float().mean(1).max() < 0.5
    brighter = torch.tensor([(image > 128).any().item() for image in drops])
    assert 0.35 < brighter.float().mean() < 0.65  # one liquid per image, each on half of the images
    assert not (drops[brighter] < 128).any()
    assert drops[~brighter, 2].min() == round(128 + OPACITY * (20 - 128))  # the middle of a drop of mud, in blue
    edge, middle = (wet[:, rows].float().mean().item() for rows in ([0, -1], [15, 16]))
    assert edge == pytest.approx(middle, rel=0.15)  # drops know no border


def test_drops_grow_with_the_image():
    """As many shores on the way across a large image as across a small one."""
    shores = []
    for side in (32, 128):
        grey = plain(128, 64, side, side)
        wet = (corrupt(grey, "spatter") != grey).any(1)
        shores.append((wet[:, :, 1:] ^ wet[:, :, :-1]).float().sum(-1).mean().item())
    assert shores[1] == pytest.approx(shores[0], rel=0.25)


def test_contrast_keeps_the_mean_and_shrinks_the_deviation():
    images = pictures().float()
    for severity, left in zip(SEVERITIES, STRENGTHS["contrast"], strict=True):
        faded = corrupt(images.to(torch.uint8), "contrast", severity=severity).float()
        assert (faded.mean((-2, -1)) - images.mean((-2, -1))).abs().max() < 0.3
        assert torch.allclose(faded.std((-2, -1)), left * images.std((-2, -1)), rtol=0.03)


def test_jpeg_keeps_the_mean_and_plain_images():
    images = pictures()
    assert (corrupt(images, "jpeg_quality").float().mean((1, 2, 3)) - images.float().mean((1, 2, 3))).abs().max() < 3
    assert distance(corrupt(plain(128), "jpeg_quality", severity=5), plain(128)) < 1


@pytest.mark.parametrize("side", [1, 3, 8])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_very_small_images_work(kind, side):
    assert corrupt(pictures(2, side, side), kind, severity=5).shape == (2, 3, side, side)


def test_errors_name_the_thing_and_the_mend():
    images = pictures(2)
    with pytest.raises(ValueError, match=r"'motion_blurr' \(did you mean 'motion_blur'\?\); known: .*jpeg_quality"):
        corrupt(images, "motion_blurr")
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match=f"severity is {severity}"):
            corrupt(images, "contrast", severity=severity)
    for wrong in (images.float(), images[0], images[:, :1]):
        with pytest.raises(ValueError, match=r"expected torch\.uint8 \[N, 3, H, W\]"):
            corrupt(wrong, "contrast")
