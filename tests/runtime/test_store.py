"""What is written is whole or not there, and opening it runs no code."""

import os
import pickle

import pandas as pd
import pytest
import torch

from lib.runtime.checkpoint import Checkpoint, SharedCheckpoint
from lib.runtime.disk import atomic_path
from lib.runtime.keys import key_of
from lib.study.tables import load_table, save_table


def test_the_key_depends_on_values_not_on_their_order():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="plain values"):
        key_of({"a": object()})


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = save_table(pd.DataFrame({"a": [1]}), tmp_path / "table.csv")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert load_table(path)["a"].tolist() == [1]
    assert os.listdir(tmp_path) == ["table.csv"]
    with pytest.raises(FileNotFoundError, match="make study"):
        load_table(tmp_path / "other.csv")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


def test_a_checkpoint_of_a_gpu_is_read_on_a_machine_without_one(tmp_path, monkeypatch):
    """torch notes the device of each tensor, and asks for it when reading, unless it is told another."""
    path, tag = tmp_path / "checkpoint.pt", torch.serialization.location_tag
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"theta": torch.arange(3.0)}, path)
    monkeypatch.setattr(torch.serialization, "location_tag", tag)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    assert torch.equal(Checkpoint(path).load()["theta"], torch.arange(3.0))


def test_a_hostile_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(Hostile()))
    assert Checkpoint(path).load() is None
    torch.save({"x": Hostile()}, path)
    assert Checkpoint(path).load() is None
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_damaged_checkpoint_is_named_and_set_aside(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    Checkpoint(path, every=0).save(lambda: {"step": 3})
    path.write_bytes(path.read_bytes()[:100])
    assert Checkpoint(path).load() is None
    assert f"{path} is damaged (" in capsys.readouterr().out
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pt.damaged1"]
    Checkpoint(path, every=0).save(lambda: {"step": 4})
    assert Checkpoint(path).load() == {"step": 4}


@pytest.mark.parametrize("kind", [Checkpoint, SharedCheckpoint])
def test_the_longer_saving_takes_the_rarer_it_is_done(tmp_path, monkeypatch, kind):
    now, saved = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def state(seconds):
        now[0] += seconds
        return saved.append(now[0]) or {"x": 1}

    checkpoint = kind(tmp_path / "checkpoint.pt")
    now[0] += 10
    for cost, wait in ((30.0, 600), (0.1, 10), (0.1, 10)):  # seconds that a save takes -> pause after it
        checkpoint.save(lambda cost=cost: state(cost))
        count = len(saved)
        now[0] += wait - 0.5
        checkpoint.save(lambda: state(0))
        assert len(saved) == count, f"a save of {cost} s must be followed by {wait} s of work"
        now[0] += 0.5
    assert len(saved) == 3
