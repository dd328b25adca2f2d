"""Notebooks and methods in several processes that torchrun starts: what one process finds, and one readable error."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from test_memory_plan import VIT
from toy_study import make_toy_study

from lib.adaptation.memory_plan import plan
from lib.files.lineages import tagged
from lib.runtime.device import choose_runtime
from lib.runtime.launch import Launch
from lib.study.profiles import get_profile
from lib.study.recipes import merge_by_name
from lib.study.study import ROOT, Study
from lib.study.tables import load_table
from lib.study.vision import VisionWorkspace
from scripts.run_notebook import patience

PROGRAM = Path(__file__).parents[1] / "together_program.py"
CHANGED = {
    "tasks": "textures land_cover", "fine_tuning_steps": 2, "mask_steps": 2, "adaptation_steps": 2, "evaluate_every": 1,
    "adaptation_batch": 4, "train_images": 20, "validation_images": 20, "adaptation_images": 40, "test_images": 20,
    "curve_images": 10,
}  # fmt: skip
STUDY = """
import dataclasses
from pathlib import Path
from lib.study import VisionWorkspace, merge_by_name, open_study

study = dataclasses.replace(open_study(globals()), root=Path("."))
workspace = VisionWorkspace(study)
"""
MERGE = """
learned = merge_by_name(workspace, "Concrete AdaMerging (layer-wise)", curves=True)
study.save(learned.curve, "curve")
scores = study.save(workspace.evaluate(learned.theta, "merged"), "scores")
print(len(scores), "scores")
"""


def run(*command, folder, ranks=2, **variables):
    """Run a Python program in a folder, in several processes if `ranks` is more than one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = (
        os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        | variables
    )
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip


def run_notebook(folder, *cells, ranks=2, parameters=(), **variables):
    """Run a notebook made of some cells as README says."""
    names = "\n".join(f"{name} = None" for name in parameters)
    cells = [new_code_cell(names, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=cells), folder / "07_toy.ipynb")
    given = [part for name in parameters for part in ("-p", name, parameters[name])]
    command = [
        "-m",
        "scripts.run_notebook",
        "07_toy.ipynb",
        "out/07_toy.ipynb",
        "--with-log",
        "--with-parent",
        *given,
    ]
    return run(*command, folder=folder, ranks=ranks, **variables)


def test_three_processes_find_what_one_finds(tmp_path):
    for ranks in (3, 1):  # the second continues the run that the first has broken off
        done = run(PROGRAM, tmp_path, folder=tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stderr
    together, alone = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (3, 1))
    assert together.keys() == alone.keys()
    for name, tensors in together.items():
        for found, wanted in zip(tensors, alone[name], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    assert all(map(torch.equal, together["whole"], together["continued"]))
    assert all(map(torch.equal, together["exact"], alone["exact"])), "the first process does that alone"
    made = [
        {folder.name for folder in (tmp_path / f"root{ranks}/data/cache/results/adapt").iterdir()} for ranks in (3, 1)
    ]
    assert len(made[0] & made[1]) >= 5, "results are kept under the same keys"


def test_a_notebook_in_two_processes_leaves_what_one_process_leaves(tmp_path):
    done = run_notebook(tmp_path, STUDY, MERGE, parameters=CHANGED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 scores") == 1, "only the first process shows what it does"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["07_toy.ipynb", "07_toy.log"]

    study = Study(get_profile("tiny", **CHANGED), root=tmp_path)
    store, results = study.store.root, study.results
    together = {name: load_table(results / f"{name}.csv") for name in ("curve", "scores")}
    experts = sorted((store / "fine_tune").iterdir())
    assert len(experts) == 2
    assert len(list((store / "adapt").iterdir())) == 2
    (store / "adapt").rename(store / "made by two")
    workspace = VisionWorkspace(study)
    learned = merge_by_name(workspace, "Concrete AdaMerging (layer-wise)", curves=True)
    assert sorted((store / "fine_tune").iterdir()) == experts, "one process finds the experts of two"
    pd.testing.assert_frame_equal(together["curve"], learned.curve, rtol=1e-4, check_dtype=False)
    scores = tagged(workspace.evaluate(learned.theta, "merged"), study.profile.lineage)
    pd.testing.assert_frame_equal(together["scores"], scores, rtol=1e-4, check_dtype=False)


OPEN = "from lib.runtime import ranks\nfrom lib.study.study import open_study\n\nopen_study(globals())"


def test_one_process_that_fails_ends_all_and_says_why(tmp_path):
    fail = "\nif ranks.number() == 1:\n    raise ValueError('the second GPU is tired')\nranks.everyone('waits')"
    done = run_notebook(tmp_path, OPEN, "print(1 + 1, 'are two')" + fail)
    assert done.returncode != 0
    assert "Process 1 of 0 to 1: 07_toy stopped in cell 2 of 2" in done.stderr
    assert done.stderr.count("ValueError: the second GPU is tired") == 1
    assert "Connection closed" not in done.stderr
    assert not (tmp_path / "out" / "07_toy.ipynb").exists()
    log = (tmp_path / "out" / "07_toy.log").read_text()
    assert "the second GPU is tired" in log
    assert log.count("2 are two") == 2, "what the failed process printed is in the log"
    assert "tired" in (tmp_path / "out" / "07_toy.process1.partial.ipynb").read_text()


def test_an_error_of_all_processes_is_said_once(tmp_path):
    done = run_notebook(tmp_path, OPEN, parameters={"mask_stps": 3})
    assert done.returncode != 0
    assert done.stderr.count("unknown parameter 'mask_stps'") == 1, done.stderr


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_runtime().device == "cuda"
    monkeypatch.setattr("lib.runtime.device.launched", lambda: Launch(1, 2, 1, 2))
    assert choose_runtime().device == "cuda:1"
    assert choose_runtime("cpu").device == "cpu"
    with pytest.raises(ValueError, match=r"device 'cuda:0' is one device for 2 processes; use device='auto'"):
        choose_runtime("cuda:0")
    monkeypatch.setattr("lib.runtime.device.launched", lambda: Launch(1, 4, 1, 4))
    with pytest.raises(ValueError, match=r"4 processes were started, but torch sees 2 GPUs here.*make study GPUS=2"):
        choose_runtime()


def test_who_tells_an_error():
    plain, lost = "ValueError: too hot", "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    assert patience(Launch(), lost) == patience(Launch(0, 2), plain) == 0
    assert patience(Launch(0, 2), lost) > patience(Launch(7, 8), plain) > patience(Launch(1, 8), plain) > 0


@pytest.mark.parametrize(("gpus", "started"), [("1", False), ("4", True)])
def test_gpus_of_make_study_reach_torchrun(tmp_path, gpus, started):
    make_toy_study(tmp_path)
    command = ["-m", "snakemake", "--dry-run", "--printshellcmds", "--cores", "8", "--nolock", "--config"]
    done = run(*command, "profile=tiny", f"gpus={gpus}", folder=tmp_path, ranks=1)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"exec (.*) -m scripts.run_notebook", done.stdout + done.stderr)
    assert commands
    assert all(("torch.distributed.run --standalone --nproc-per-node 4" in line) == started for line in commands)
    assert all(line.startswith("env OMP_NUM_THREADS=2 ") == started for line in commands)


def test_memory_is_planned_for_a_part():
    whole, quarter = plan(VIT), plan(replace(VIT, processes=4))
    for name in ("task vectors", "mask logits and moments"):
        assert quarter[name] == pytest.approx(whole[name] / 4)
    assert quarter["theta0, merged model and gradient"] == whole["theta0, merged model and gradient"]
