"""Named random numbers: every draw is a function of names and numbers, never of what was drawn before.

A resumed or reordered run therefore draws the same numbers as an uninterrupted one: there is no generator state
to carry along, because step 17 of "batches of task mnist, seed 0" always means the same thing.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lib.runtime.names import hash_of


def seed_of(*names: str | int) -> int:
    """A 63-bit seed that depends on all the names, the same on every machine and in every process."""
    return int.from_bytes(hash_of(*names)[:8], "big") >> 1


def generator(*names: str | int) -> torch.Generator:
    """A fresh CPU generator seeded by the names."""
    return torch.Generator().manual_seed(seed_of(*names))


@lru_cache(maxsize=64)
def _epoch_order(count: int, names: tuple[str | int, ...]) -> Tensor:
    return torch.randperm(count, generator=generator("epoch order", *names))


def batch_indices(count: int, batch: int, step: int, *names: str | int) -> Tensor:
    """Which of `count` examples make up the batch of a step: without replacement within an epoch.

    Examples that do not fill the last batch of an epoch are left out of that epoch; a batch larger than the
    set takes the whole set.

    Args:
        count: number of examples, at least 1.
        batch: batch size.
        step: step number from 0.
        names: what the batches are for, e.g. `("fine-tuning", "mnist", 0)`.

    Returns:
        int64 [min(batch, count)].

    Raises:
        ValueError: if there are no examples or the batch size is not positive.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"cannot draw batches of {batch} from {count} examples: both must be at least 1")
    batch = min(batch, count)
    epoch, place = divmod(step, count // batch)
    return _epoch_order(count, (*names, epoch))[place * batch : (place + 1) * batch]
