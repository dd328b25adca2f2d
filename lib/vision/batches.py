"""Batches of images: from sets that may be larger than memory onto the device, and the one augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.runtime.rng import generator


def gather(sets: Sequence[Tensor], rows: Sequence[Tensor], device: str) -> Tensor:
    """Some rows of each of some sets, one after the other, as one batch on a device.

    Every row is copied once, by `index_select`: indexing with [] takes six times as long on rows of this length. For a
    GPU the rows go into pinned memory, see `upload`.

    Args:
        sets: T tensors [N_t, ...] of one type and row shape, all on one device; maybe views of a file.
        rows: which rows of each, int64 [B_t].
        device: where the batch is wanted.

    Returns:
        [sum of B_t, ...].
    """
    first, count = sets[0], sum(len(own) for own in rows)
    batch = first.new_empty((count, *first.shape[1:]), pin_memory=_pinned(first, device))
    parts = batch.split([len(own) for own in rows])
    for images, own, part in zip(sets, rows, parts, strict=True):
        torch.index_select(images, 0, own.to(images.device), out=part)
    return upload(batch, device)


def upload(rows: Tensor, device: str) -> Tensor:
    """Some rows on a device; a GPU fetches them from pinned memory while this process goes on."""
    return (rows.pin_memory() if _pinned(rows, device) else rows).to(device, non_blocking=True)


def _pinned(rows: Tensor, device: str) -> bool:
    return device.startswith("cuda") and rows.device.type == "cpu"


def shifted(pixels: Tensor, reach: int, *names: str | int) -> Tensor:
    """Move every image by up to `reach` pixels in each direction (edges repeated): the only augmentation.

    Args:
        pixels: uint8 [N, 3, H, W].
        reach: largest shift; 0 leaves the images alone.
        names: what the shift is for, as in `rng.generator`.
    """
    if reach == 0:
        return pixels
    count, _, height, width = pixels.shape
    moves = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator("shift", *names))
    padded = pixels.new_empty(count, 3, height + 2 * reach, width + 2 * reach)
    inner = padded[:, :, reach:-reach]
    inner[..., reach:-reach] = pixels
    inner[..., :reach], inner[..., -reach:] = pixels[..., :1], pixels[..., -1:]
    padded[:, :, :reach], padded[:, :, -reach:] = inner[:, :, :1], inner[:, :, -1:]
    # Windows copied one by one: on large images thirty times as fast as one indexing by four index tensors.
    places = moves.flatten(1).T.tolist()
    shown = zip(padded, places, strict=True)
    return torch.stack([image[:, down : down + height, right : right + width] for image, (down, right) in shown])
