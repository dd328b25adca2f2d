"""Counter-based noise: the same everywhere, uniform, and independent between neighbours, steps and seeds."""

import pytest
import torch

from lib.concrete.noise import STEPS, block_keys, odd_numbers, uniform
from lib.vectors.layout import Layout

LAYOUT = Layout.of({"a": torch.zeros(700, 1024), "b": torch.zeros(324, 1024)})  # 2^20 elements, no padding


def correlation(left, right):
    return torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1].abs().item()


def test_known_numbers():
    """Written down once: they must never change, on no machine and in no version."""
    lanes = torch.arange(4, dtype=torch.int32)
    assert odd_numbers(block_keys(2, 0, 0), lanes).tolist() == [
        [11222127, 7441305, 11486485, 16599357],
        [8581513, 5921575, 3081833, 14191559],
    ]


def test_noise_depends_on_the_element_alone_not_on_who_draws_it():
    whole = odd_numbers(block_keys(1024, 5, 3), torch.arange(1024, dtype=torch.int32))
    part = odd_numbers(block_keys(100, 5, 3, first=300), torch.arange(1024, dtype=torch.int32))
    assert torch.equal(whole[300:400], part)
    compiled = torch.compile(odd_numbers, dynamic=True)(block_keys(1024, 5, 3), torch.arange(1024, dtype=torch.int32))
    assert torch.equal(whole, compiled)


def test_noise_lies_strictly_between_zero_and_one_and_is_symmetric():
    u = uniform(LAYOUT, 1, 2)
    assert u.min() >= 1 / STEPS
    assert u.max() <= 1 - 1 / STEPS
    assert ((1 - u) + u == 1).all()  # 1 - u is exact, so neither tail is favoured


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_noise_is_uniform(seed):
    u = uniform(LAYOUT, seed, 11).double()
    n = len(u)
    distance = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 1.95 / n**0.5  # Kolmogorov-Smirnov, 0.1 % level
    counts = torch.histc(u, 1024, 0, 1)
    chi_squared = ((counts - n / 1024) ** 2 / (n / 1024)).sum()
    assert abs(chi_squared - 1023) < 4 * (2 * 1023) ** 0.5


def test_every_bit_is_fair():
    numbers = odd_numbers(block_keys(1024, 3, 4), torch.arange(1024, dtype=torch.int32)).flatten()
    for bit in range(1, 24):
        assert abs(((numbers >> bit) & 1).double().mean() - 0.5) < 4 * 0.5 / 1024, bit


def test_neighbours_blocks_steps_and_seeds_are_independent():
    limit = 4.5 / 1024  # standard deviations of a correlation over 2^20 pairs
    u = uniform(LAYOUT, 0, 0).double()
    for lag in (1, 2, 16, 1023, 1024, 2048):
        assert correlation(u[:-lag], u[lag:]) < limit, lag
    for other in (uniform(LAYOUT, 0, 1), uniform(LAYOUT, 1, 0), uniform(LAYOUT, 1, 1)):
        assert correlation(u, other.double()) < limit
        assert correlation((u - 0.5).abs(), (other.double() - 0.5).abs()) < limit
    assert correlation((u[:-1] - 0.5).abs(), (u[1:] - 0.5).abs()) < limit


def test_over_many_steps_one_element_is_uniform_too():
    lanes = torch.arange(1024, dtype=torch.int32)
    u = torch.stack([odd_numbers(block_keys(1, 0, step), lanes)[0] for step in range(2000)]).double() / STEPS
    means = u.mean(0)  # of each of 1024 elements over 2000 steps
    assert (means - 0.5).abs().max() < 5 * (1 / 12 / 2000) ** 0.5
    assert correlation(u[:-1], u[1:]) < 4.5 / (2000 * 1024) ** 0.5


def test_keys_do_not_repeat():
    keys = torch.cat([block_keys(4096, seed, step) for seed in range(4) for step in range(4)], 1).squeeze(-1)
    pairs = keys[0].to(torch.int64) * 2**32 + keys[1]
    assert len(pairs.unique()) == len(pairs)
