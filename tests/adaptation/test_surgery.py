"""Representation Surgery: its gradients in closed form, where it starts, and what it can and cannot repair."""

import inspect

import pandas as pd
import pytest
import torch
from stopping import dies_at
from torch import nn

from lib.adaptation.surgery import Operation, Surgery, surgery
from lib.runtime.checkpoint import Checkpoint
from lib.runtime.store import Store


def features(rows=60, width=12, dtype=torch.float32, seed=0):
    """Of a merged model and of an expert, which differ by a bias along few directions."""
    torch.manual_seed(seed)
    merged = torch.randn(rows, width, dtype=dtype)
    bias = torch.relu(merged @ torch.randn(width, 3, dtype=dtype)) @ torch.randn(3, width, dtype=dtype)
    return merged, merged - 0.3 * bias


def test_it_is_the_module_of_the_authors_code():
    """Two linear maps without bias around a ReLU, subtracted."""
    down, up = nn.Linear(12, 4, bias=False), nn.Linear(4, 12, bias=False)
    found, (merged, _) = Surgery(down.weight.detach(), up.weight.detach()), features()
    torch.testing.assert_close(found(merged), (merged - up(torch.relu(down(merged)))).detach())
    assert found(merged.double()).dtype == torch.float64


def test_gradients_are_those_of_the_closed_form():
    merged, expert = features(dtype=torch.float64)
    operation = Operation(merged, expert, rank=5, learning_rate=0.1, batch=8, seed=0)
    operation.up.values = torch.randn(12, 5, dtype=torch.float64)
    down, up = operation.down.values, operation.up.values
    rows = torch.tensor([3, 1, 40, 41, 59])
    loss, (by_down, by_up) = operation.gradients(rows)
    z, inner = merged[rows], merged[rows] @ down.T
    hidden = inner.clamp(min=0)
    difference = z - hidden @ up.T - expert[rows]
    signs = difference.sign() / difference.numel()
    assert loss.item() == pytest.approx(difference.abs().sum().item() / (5 * 12), abs=1e-14)
    torch.testing.assert_close(by_up, -signs.T @ hidden, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(by_down, ((-signs @ up) * (inner > 0)).T @ z, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 16])
def test_it_starts_at_the_merged_model_s_own_features(rank):
    merged, expert = features()
    found = surgery(merged, expert, rank=rank, steps=0)
    assert torch.equal(found(merged), merged)
    assert found.down.shape == (rank, 12)
    assert found.up.shape == (12, rank)
    assert 0 < found.down.abs().max() <= 12**-0.5, "kaiming_uniform_ with a = sqrt(5)"
    assert found.down.std() > 0
    assert not torch.equal(found.down, surgery(merged, expert, rank=rank, steps=0, seed=1).down)


def test_it_brings_features_of_other_inputs_near_the_expert_s():
    merged, expert = features(rows=600)
    found = surgery(merged[:400], expert[:400], steps=1500, learning_rate=1e-2)
    before, after = ((own - expert[400:]).abs().mean() for own in (merged[400:], found(merged[400:])))
    assert after < 0.5 * before
    assert found.curve["loss"].iloc[-50:].mean() < 0.5 * found.curve["loss"].iloc[0]
    assert list(found.curve.columns) == ["step", "loss"]


def test_where_the_merged_model_is_the_expert_it_moves_nothing():
    """The sign of 0 is 0: no gradient."""
    merged, _ = features()
    assert torch.equal(surgery(merged, merged, steps=20)(merged), merged)


def test_it_sees_features_alone_and_leaves_them_as_they_are():
    merged, expert = features()
    before = merged.clone(), expert.clone()
    surgery(merged, expert, steps=3)
    assert torch.equal(merged, before[0])
    assert torch.equal(expert, before[1])
    given = set(inspect.signature(surgery).parameters)
    assert given == {
        "merged_features", "expert_features", "rank", "steps", "learning_rate", "batch", "seed", "label", "checkpoint"
    }  # fmt: skip


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path, monkeypatch):
    merged, expert = features()
    whole = surgery(merged, expert, steps=30)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", every=0)
    monkeypatch.setattr(Operation, "one_step", dies_at(17, Operation.one_step))
    with pytest.raises(KeyboardInterrupt):
        surgery(merged, expert, steps=30, checkpoint=checkpoint)
    monkeypatch.undo()
    assert len(checkpoint.load()["curve"]) == 17
    resumed = surgery(merged, expert, steps=30, checkpoint=checkpoint)
    assert torch.equal(whole.down, resumed.down)
    assert torch.equal(whole.up, resumed.up)
    pd.testing.assert_frame_equal(whole.curve, resumed.curve, check_exact=True)


def test_the_store_keeps_it(tmp_path):
    remembered, given = Store(tmp_path).remember(surgery), features()
    made, read = remembered(*given, steps=5, label="one"), remembered(*given, steps=5, label="other")
    assert len(list((tmp_path / "surgery").glob("*/about.json"))) == 1
    assert torch.equal(made(given[0]), read(given[0]))
    pd.testing.assert_frame_equal(made.curve, read.curve)


def test_what_does_not_fit_is_refused():
    merged, expert = features()
    for one, other in (
        (merged, expert[:-1]),
        (merged[:, :5], expert),
        (merged[0], expert[0]),
        (merged[:0], expert[:0]),
    ):
        with pytest.raises(ValueError, match="features have shapes"):
            surgery(one, other)
    with pytest.raises(ValueError, match="rank is 0"):
        surgery(merged, expert, rank=0)
    with pytest.raises(ValueError, match="batches of 0"):
        surgery(merged, expert, batch=0, steps=1)
    expert[3, 3] = float("nan")
    with pytest.raises(ValueError, match="Surgery: the loss is nan at step 0"):
        surgery(merged, expert, batch=60, steps=1)
