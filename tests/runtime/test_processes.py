"""One function on many items side by side: what travels, what comes back, what a worker is like."""

import json
import os

import pytest
from notebook_function import notebook

from lib.runtime.processes import side_by_side

WRITES = """
import json, os, sys
from pathlib import Path
import torch
import lib.runtime.progress as progress

FACTOR = 3

def times(x):
    return FACTOR * x

def f(item):
    for _ in progress.progress(range(2), "counted elsewhere"):
        pass
    print("nobody sees this")
    said = {"found": times(item), "process": os.getpid(), "threads": torch.get_num_threads(), "given": more}
    (Path(folder) / f"{item}.json").write_text(json.dumps(said))
"""


def test_a_function_of_a_notebook_travels_with_what_it_uses(tmp_path, capfd):
    function = notebook(WRITES, folder=str(tmp_path), more={"a": [1, 2]})
    side_by_side(function, [5, 6, 7], "three side by side", steps=2)
    said = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {item: own["found"] for item, own in said.items()} == {"5": 15, "6": 18, "7": 21}
    assert {own["threads"] for own in said.values()} == {1}
    assert os.getpid() not in {own["process"] for own in said.values()}
    assert all(own["given"] == {"a": [1, 2]} for own in said.values())
    shown = capfd.readouterr().out
    assert "three side by side  6/6  100 %" in shown, "the steps of all loops are counted together"
    assert "nobody sees this" not in shown
    assert "counted elsewhere" not in shown


def test_what_stops_a_worker_reaches_the_caller(tmp_path):
    function = notebook(
        """
        from pathlib import Path

        def f(item):
            if item == 1:
                raise ValueError(f"the data of {item} are not there")
            (Path(folder) / str(item)).touch()
        """,
        folder=str(tmp_path),
    )
    with pytest.raises(ValueError, match="the data of 1 are not there"):
        side_by_side(function, [0, 1], "two side by side")
    assert not (tmp_path / "1").exists()
