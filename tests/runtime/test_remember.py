"""Results are made once, kept whole, found again by everything that determines them, and come back as they were."""

import importlib
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib.adaptation.loop import Adapted
from lib.runtime import keys
from lib.runtime.disk import ROOT
from lib.runtime.store import NotMade, Store, only_looking
from lib.vectors.fine_tuning import Expert

CALLS = []  # a global of this module is no part of a key, a closure would be


@pytest.fixture
def store(tmp_path):
    CALLS.clear()
    return Store(tmp_path)


def same(one, other):
    """Whether two results are the same to the last bit and in their types."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
        return True
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Expert | Adapted):
        return same(vars(one), vars(other))
    return one == other or (math.isnan(one) and math.isnan(other))


TABLE = pd.DataFrame({"step": [0, 1], "loss": [0.1, float("nan")], "task": ["a", "b"], "done": [True, False]})
VECTOR = torch.arange(6.0)
RESULTS = {
    "nothing": None,
    "plain values": {"a": [1, (2.5, None, "x", True)], "b": (), "c": {}, "d": float("inf"), "e": float("nan")},
    "whole numbers as names": {1: "one", 2: {3: "three"}},
    "tensor": torch.tensor([[1.0, float("nan")]]).nan_to_num(),
    "other types": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float64, torch.int32, torch.bool)],
    "shapes": (torch.tensor(3.0), torch.zeros(0, 4), torch.arange(12.0).view(3, 4).T),
    "views of one vector": {"whole": VECTOR, "again": VECTOR, "part": VECTOR[2:4]},
    "needs a gradient": torch.ones(2, requires_grad=True).detach(),
    "table": TABLE,
    "table with an index": TABLE.set_index("task"),
    "tables": {"a": TABLE, "b": {"c": TABLE[:1]}},
    "expert": Expert(VECTOR, {"1.running_mean": VECTOR}, TABLE, {300: Expert(VECTOR + 1), 600: Expert(VECTOR + 2)}),
    "adapted": [Adapted(VECTOR, None, TABLE), Adapted(VECTOR, VECTOR + 1, TABLE)],
}


def result(name):
    CALLS.append(name)
    return RESULTS[name]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_as_it_was_and_is_made_once(store, name):
    for _ in range(3):
        assert same(store.remember(result)(name), RESULTS[name])
    assert same(Store(store.root).remember(result)(name), RESULTS[name])
    assert len(CALLS) == 1


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(store):
    def makes(what):
        return {"a": what}

    with pytest.raises(ValueError, match=r"a set in a result cannot be kept: return tensors, tables or plain values"):
        store.remember(lambda: {"a": {1, 2}})()
    assert not list(store.root.rglob("about.json"))
    with pytest.raises(ValueError, match="a key cannot tell what determines"):
        store.remember(makes)(sys.stdout)


def spread(values, *, scale=1.0, label="", checkpoint=None, backend="auto"):
    CALLS.append((values, scale))
    return scale * max(values)


def test_arguments_count_and_how_they_are_given_does_not(store):
    remembered = store.remember(spread)
    found = [remembered([1, 2]), remembered(values=[1, 2]), remembered(scale=1.0, values=[1, 2])]
    found += [remembered([1, 2], label="loud"), remembered([1, 2], checkpoint=None, backend="eager")]
    assert set(found) == {2.0}
    assert len(CALLS) == 1
    assert remembered([1, 2], scale=2.0) == 4.0
    assert remembered([1, 3]) == 3.0
    assert len(CALLS) == 3
    with pytest.raises(TypeError, match="scle"):
        remembered([1, 2], scle=2.0)


def test_the_wrapped_routine_looks_like_itself(store):
    assert store.remember(spread).__name__ == "spread"
    (folder,) = [remembered.parent for remembered in store.root.rglob("about.json")] or [None]
    assert folder is None, "nothing is made before it is called"
    store.remember(spread)([1])
    (about,) = store.root.glob("spread/*/about.json")
    told = json.loads(about.read_text())
    assert told["routine"].endswith("test_remember.spread")
    assert told["arguments"] == {"values": [1], "scale": 1.0}
    assert {"seconds", "torch", "peak_memory_mib", "threads"} <= set(told)


def counting(steps, checkpoint=None):
    """A loop that dies once, in the middle."""
    checkpoint.every = 0
    state = checkpoint.load() or {"step": 0}
    CALLS.append(state["step"])
    for step in range(state["step"], steps):
        checkpoint.save(lambda step=step: {"step": step + 1})
        if step == 4 and len(CALLS) == 1:
            raise KeyboardInterrupt
    return {"steps": torch.tensor(steps)}


def test_a_killed_call_continues_where_it_was(store):
    with pytest.raises(KeyboardInterrupt):
        store.remember(counting)(9)
    assert not list(store.root.rglob("about.json")), "unfinished"
    assert store.remember(counting)(9)["steps"] == 9
    assert CALLS == [0, 5]
    assert not list(store.root.rglob("checkpoint.pt")), "no longer needed"


def test_one_that_only_looks_makes_nothing(store):
    with only_looking(), pytest.raises(NotMade, match="spread has not been called with these arguments"):
        store.remember(spread)([1, 2])
    assert not CALLS
    store.remember(spread)([1, 2])
    with only_looking():
        assert store.remember(spread)([1, 2]) == 2.0
        with pytest.raises(NotMade):
            store.remember(spread)([1, 3])
    assert store.remember(spread)([1, 3]) == 3.0


def vectors():
    return {"theta": torch.ones(2), "parts": [torch.zeros(1)]}


def test_tensors_come_to_the_device_that_is_wanted(store):
    store.remember(vectors)()
    found = Store(store.root, "meta").remember(vectors)()
    assert found["theta"].device.type == found["parts"][0].device.type == "meta"


# --- what a routine says


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Writes the modules `toy.routine` and `toy.settings` of a package that takes the place of this study."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keys, "OURS", ("toy.",))
    monkeypatch.setattr(keys, "STARTED", float("inf"))  # each test edits what it has imported
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").touch()

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "toy"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        keys.code_of.cache_clear()
        keys._source.cache_clear()

    def write(routine, settings="RATE = 1"):
        forget()
        (tmp_path / "toy" / "routine.py").write_text(textwrap.dedent(routine))
        (tmp_path / "toy" / "settings.py").write_text(settings)
        return importlib.import_module("toy.routine").routine

    yield write
    forget()


ROUTINE = """
from toy.settings import RATE

def routine(x):
    return {"found": RATE * x}
"""


def test_a_changed_routine_makes_its_result_anew(store, toy):
    assert store.remember(toy(ROUTINE))(3) == {"found": 3}
    assert store.remember(toy(ROUTINE.replace("RATE * x", "RATE + x")))(3) == {"found": 4}
    assert store.remember(toy(ROUTINE, "RATE = 7"))(3) == {"found": 21}
    commented = ROUTINE.replace("return", '"""Multiply."""\n    return')
    before = len(list(store.root.rglob("about.json")))
    assert store.remember(toy(commented))(3) == {"found": 3}
    assert len(list(store.root.rglob("about.json"))) == before == 3, "a docstring changes no result"


def test_so_does_a_changed_routine_of_a_notebook(store):
    def defined(source):
        namespace = {"__name__": "__main__"}
        exec(source, namespace)
        return namespace["routine"]

    source = "RATE = 1\ndef routine(x):\n    return RATE * x"
    assert store.remember(defined(source))(3) == 3
    assert store.remember(defined(source.replace("*", "+")))(3) == 4
    assert store.remember(defined(source.replace("RATE = 1", "RATE = 7")))(3) == 21
    assert store.remember(defined(source))(3) == 3
    assert len(list(store.root.rglob("about.json"))) == 3


# --- what may lie there


def keep_and_change(store, change):
    """Keep an expert, and then change what `about.json` says."""
    store.remember(result)("expert")
    (about,) = store.root.rglob("about.json")
    about.write_text(change(about.read_text()))
    return lambda: store.remember(result)("expert")


def made_again(store, read, capsys, told):
    """It is made once more, with one line, and what lay there is kept."""
    assert same(read(), RESULTS["expert"])
    assert told in (shown := capsys.readouterr().out)
    assert shown.count("made again") == 1
    assert same(read(), RESULTS["expert"])
    assert capsys.readouterr().out == ""
    assert len(CALLS) == 2
    assert len(list(store.root.glob("*/*.damaged1"))) == 1


@pytest.mark.parametrize("place", ["os:system", "lib.runtime.disk:exclusive", "library.of.others:Expert"])
def test_a_class_that_is_none_of_this_study_is_refused(store, place, capsys):
    read = keep_and_change(store, lambda text: text.replace("lib.vectors.fine_tuning:Expert", place))
    made_again(store, read, capsys, f"damaged ('{place}' is no dataclass of this study)")


@pytest.mark.parametrize(
    "change", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: text.replace("result.theta", "x")]
)
def test_a_damaged_result_is_named_set_aside_and_made_again(store, change, capsys):
    read = keep_and_change(store, change)
    made_again(store, read, capsys, f"the result in {store.root}")


@pytest.mark.parametrize("name", ["tensors.safetensors", "result.curve.parquet"])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:40]), Path.unlink])
def test_so_is_one_with_a_damaged_file(store, name, change, capsys):
    read = keep_and_change(store, lambda text: text)
    (path,) = store.root.rglob(name)
    change(path)
    made_again(store, read, capsys, "is damaged (")


def test_who_only_looks_for_a_damaged_result_finds_none(store):
    read = keep_and_change(store, lambda text: "")
    with pytest.raises(NotMade), only_looking():
        read()


@pytest.mark.parametrize("error", [MemoryError("full"), PermissionError(13, "not yours"), RuntimeError("CUDA is gone")])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(store, monkeypatch, error):
    read = keep_and_change(store, lambda text: text)
    monkeypatch.setattr("lib.runtime.store.load_file", lambda path: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=rf"the result in {store.root}.* cannot be read \(.*\); delete it"):
        read()
    assert not list(store.root.rglob("*.damaged*"))


# --- several processes

WANTED_TWICE = """
import sys, time
from pathlib import Path
import torch
from lib.runtime.store import Store

def thing(a):
    print("made", flush=True)
    time.sleep(1)
    return {"x": torch.ones(2)}

print(Store(Path(sys.argv[1])).remember(thing)(1)["x"].sum().item())
"""


def test_what_two_processes_want_at_once_is_made_once(tmp_path):
    command = [sys.executable, "-c", WANTED_TWICE, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(said) == [["2.0"], ["made", "2.0"]]
