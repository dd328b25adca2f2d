"""Corrupted images are kept for one corruption at a time: at 224 pixels they are gigabytes."""

import gc
import weakref
from types import SimpleNamespace

import torch

from lib.study.profiles import get_profile
from lib.study.study import Study
from lib.study.vision import VisionWorkspace


def test_images_of_the_last_corruption_alone_are_kept(tmp_path):
    workspace = VisionWorkspace(Study(get_profile("tiny"), root=tmp_path))
    for split in ("test", "adaptation"):
        images = {name: torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8) for name in ("one", "two")}
        workspace._splits[split] = {name: SimpleNamespace(images=own) for name, own in images.items()}
    places = [(split, task) for split in ("test", "adaptation") for task in ("one", "two")]
    noisy = [workspace.inputs(*place, "impulse_noise") for place in places]
    assert all(workspace.inputs(*place, "impulse_noise") is own for place, own in zip(places, noisy, strict=True))
    saved, kept = noisy[0].clone(), [weakref.ref(own) for own in noisy]
    del noisy
    workspace.inputs("test", "one"), workspace.inputs("test", "one", "contrast")
    gc.collect()
    assert not any(ref() is not None for ref in kept)
    assert torch.equal(workspace.inputs("test", "one", "impulse_noise"), saved), "made again, they are the same"
