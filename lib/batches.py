"""Batches of images from sets that may be larger than memory, on the device that computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather(sets: Sequence[Tensor], rows: Sequence[Tensor], device: str) -> Tensor:
    """Some rows of each of some sets, one after the other, as one batch on a device.

    Every row is copied once, by `index_select`: indexing with [] takes six times as long on rows of this length. For a
    GPU the rows go into pinned memory, from where it fetches them while this process goes on.

    Args:
        sets: T tensors [N_t, ...] of one type and row shape, all on one device; maybe views of a file.
        rows: which rows of each, int64 [B_t].
        device: where the batch is wanted.

    Returns:
        [sum of B_t, ...].
    """
    first, count = sets[0], sum(len(own) for own in rows)
    pinned = device.startswith("cuda") and first.device.type == "cpu"
    batch = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=first.device, pin_memory=pinned)
    parts = batch.split([len(own) for own in rows])
    for images, own, part in zip(sets, rows, parts, strict=True):
        torch.index_select(images, 0, own.to(images.device), out=part)
    return batch.to(device, non_blocking=True)
