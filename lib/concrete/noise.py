r"""Counter-based uniform noise: u is a function of (seed, step, element index) and of nothing else.

There is no generator state, so a CPU and a GPU, compiled and eager code, one process and many draw the same bits, and
any of them may draw only the part it needs, twice if that is cheaper than keeping it. The index of an element is its
block (see `lib.vectors.layout`) and its lane within the block:

    key_b = splitmix64(seed, step, b)                64 bits per block: few, so they may cost something
    h     = two rounds of multiply-xorshift of the lane, keyed by both halves of key_b       32 bits per element
    u     = (2 k + 1) / 2^24,   k = the upper 23 bits of h

The element's part is a handful of 32-bit integer operations that every vector unit has. u is exact in float32, lies in
[2^-24, 1 - 2^-24] symmetrically about 1/2, and never reaches 0 or 1: no clamping is needed before a logarithm.

The mixers are SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) and the low-bias 32-bit
constants of Wellons (2018); `tests/concrete/test_noise.py` checks the distribution and the independence of neighbours,
steps and seeds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.vectors.layout import Layout

STEPS = 2**24  # u is an odd multiple of 1 / STEPS


def _signed(bits: int, width: int) -> int:
    """The two's complement reading of a constant: torch has no unsigned arithmetic."""
    return bits - (1 << width) if bits >> (width - 1) else bits


GOLDEN_64 = _signed(0x9E3779B97F4A7C15, 64)
GOLDEN_32 = _signed(0x9E3779B9, 32)
MIX_32 = (_signed(0x7FEB352D, 32), _signed(0x846CA68B, 32))


def _shift(bits: Tensor, by: int, width: int) -> Tensor:
    """Logical shift to the right: the arithmetic one, without the copies of the sign bit."""
    return (bits >> by) & ((1 << (width - by)) - 1)


def splitmix64(bits: Tensor) -> Tensor:
    """Scramble int64 numbers so that each output bit depends on each input bit."""
    bits = (bits ^ _shift(bits, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    bits = (bits ^ _shift(bits, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    return bits ^ _shift(bits, 31, 64)


def block_keys(blocks: int, seed: int, step: int, *, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The keys of some consecutive blocks.

    Args:
        blocks: how many.
        seed: any 63-bit number, e.g. from `lib.runtime.rng.seed_of`.
        step: number of the step.
        first: number of the first block (not 0 when a rank draws only its own part).
        device: where to.

    Returns:
        int32 [2, blocks, 1].
    """
    base = splitmix64(splitmix64(torch.tensor(seed)) + step).item()  # on the host: a GPU is given a plain number
    numbers = torch.arange(first + 1, first + 1 + blocks, device=device)
    keys = splitmix64(numbers * GOLDEN_64 + base)
    return torch.stack([keys & 0xFFFFFFFF, keys >> 32]).to(torch.int32).unsqueeze(-1)


def odd_numbers(keys: Tensor, lanes: Tensor) -> Tensor:
    """2 k + 1 for every element of the keyed blocks; divide by `STEPS` for u.

    Args:
        keys: int32 [2, n, 1].
        lanes: int32 [block]: 0, 1, 2, ...

    Returns:
        Odd numbers in [1, 2^24), int32 [n, block].
    """
    bits = lanes * GOLDEN_32 + keys[0]
    bits = (bits ^ _shift(bits, 16, 32)) * MIX_32[0]
    bits = bits ^ keys[1]
    bits = (bits ^ _shift(bits, 15, 32)) * MIX_32[1]
    bits = bits ^ _shift(bits, 16, 32)
    return _shift(bits, 8, 32) | 1


def uniform(
    layout: Layout, seed: int, step: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw u ~ U(0, 1) for every element of a flat vector: [D], the same bits on every device."""
    keys = block_keys(layout.length // layout.block, seed, step, device=device)
    lanes = torch.arange(layout.block, dtype=torch.int32, device=device)
    return (odd_numbers(keys, lanes).to(dtype) / STEPS).flatten()
