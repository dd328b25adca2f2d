"""Artifacts: made once, keyed by what determines them, never half-written, never running code on loading."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib.runtime.checkpoint import Checkpoint
from lib.runtime.disk import atomic_path
from lib.runtime.keys import key_of
from lib.runtime.store import Store
from lib.study.tables import load_table, save_table

ROOT = Path(__file__).resolve().parents[1]


def test_an_artifact_is_made_once_and_read_back(tmp_path):
    store, calls = Store(tmp_path), []

    def make(checkpoint):
        calls.append(1)
        checkpoint.save(lambda: {"step": 1}, force=True)
        return {"x": torch.arange(3.0)}, pd.DataFrame({"step": [1], "loss": [0.1]})

    for _ in range(2):
        artifact = store.get("kind", {"seed": 0, "task": "a"}, make)
        assert torch.equal(artifact.tensors["x"], torch.arange(3.0))
        assert artifact.table["loss"].tolist() == [0.1]
    assert calls == [1]
    assert artifact.about["task"] == "a"
    assert {"seconds", "torch", "peak_memory_mib"} <= set(artifact.about)
    assert not (store.folder("kind", {"task": "a", "seed": 0}) / "checkpoint.pt").exists()
    store.get("kind", {"seed": 1, "task": "a"}, make)
    assert calls == [1, 1]


def test_a_failure_while_making_leaves_no_artifact_but_keeps_the_checkpoint(tmp_path):
    store = Store(tmp_path)

    def fails(checkpoint):
        checkpoint.save(lambda: {"step": 5}, force=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("kind", {"seed": 0}, fails)
    artifact = store.get("kind", {"seed": 0}, lambda c: ({"step": torch.tensor(c.load()["step"])}, None))
    assert artifact.tensors["step"] == 5
    assert artifact.table is None


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


def test_a_hostile_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="cannot be read"):
        Checkpoint(path).load()
    torch.save({"x": Hostile()}, path)
    with pytest.raises(ValueError, match="delete it to start afresh"):
        Checkpoint(path).load()
    assert not (tmp_path / "hostile_was_here").exists()


WANTED_TWICE = """
import sys, time
from pathlib import Path
import torch
from lib.runtime.store import Store

def make(checkpoint):
    print("made", flush=True)
    time.sleep(1)
    return {"x": torch.ones(2)}, None

print(Store(Path(sys.argv[1])).get("thing", {"a": 1}, make).tensors["x"].sum().item())
"""


def test_what_two_processes_want_at_once_is_made_once(tmp_path):
    command = [sys.executable, "-c", WANTED_TWICE, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(said) == [["2.0"], ["made", "2.0"]]
