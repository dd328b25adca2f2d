"""One merged model over several processes: the same bits as one process, and shares that add up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.concrete import kernels
from lib.concrete.noise import block_keys
from lib.concrete.sharding import Shard
from lib.vectors.layout import Layout

PROGRAM = Path(__file__).parents[1] / "sharded_program.py"


def start(ranks, path, backend="eager"):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent.parent)}
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(path), backend], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


def test_two_ranks_learn_the_same_bits_as_one_process(tmp_path):
    alone = start(1, tmp_path / "one.pt")
    together = start(2, tmp_path / "two.pt")
    assert alone["logits"].abs().max() > 0.1  # something was learned
    assert torch.equal(alone["logits"], together["logits"])
    assert alone["density"] == together["density"]
    torch.testing.assert_close(alone["losses"], together["losses"], rtol=1e-6, atol=0)


def test_every_rank_draws_its_part_of_the_whole_mask():
    layout = Layout.of({"a": torch.zeros(70, 41), "b": torch.zeros(5)}, block=64, parts=3)
    lanes = torch.arange(64, dtype=torch.int32)
    logits = torch.randn(layout.length).view(-1, 64)

    def mask(shard):
        own = slice(shard.first, shard.first + shard.blocks)
        keys = block_keys(shard.blocks, 4, 2, first=shard.first)
        return kernels.sample(kernels.Draw(logits[own], keys, layout.valid_in_block()[own], lanes, None, None))

    parts = [mask(Shard(layout, rank, 3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert torch.equal(torch.cat(parts), mask(Shard(layout)))


def test_blocks_that_do_not_divide_are_refused(monkeypatch):
    layout = Layout.of({"a": torch.zeros(3, 64)}, block=64)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"3 blocks cannot be shared equally by 2 processes.*parts=2"):
        Shard.mine(layout)


def test_a_layout_in_parts_is_the_same_model():
    parameters = {"a": torch.randn(3, 64), "b": torch.randn(5)}
    plain, shared = Layout.of(parameters, block=64), Layout.of(parameters, block=64, parts=8)
    assert (plain.length, shared.length) == (4 * 64, 8 * 64)
    flat = shared.flatten(parameters)
    assert torch.equal(flat[: plain.length], plain.flatten(parameters))
    torch.testing.assert_close(shared.layer_sums(flat), plain.layer_sums(plain.flatten(parameters)))
    assert shared.valid_in_block().flatten().tolist() == [64, 64, 64, 5, 0, 0, 0, 0]
