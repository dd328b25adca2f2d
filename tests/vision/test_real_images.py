"""Notebook 15 from its first cell to its last, on a small mirror of random images and a small ViT of timm."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from mirrors import make_mirror

from lib import figures
from lib.study.profiles import get_profile
from lib.study.study import ROOT
from scripts.run_notebook import run_notebook

SMALL = {
    "model": "timm:vit_tiny_patch16_224(patch_size=8, embed_dim=48, depth=2, num_heads=3)", "pretrained": "",
    "image_size": 32, "tasks": "one two", "fine_tuning_steps": 6, "fine_tuning_batch": 4, "kept_steps": "2 4",
    "adaptation_batch": 4, "mask_steps": 2, "adaptation_steps": 2,
}  # fmt: skip


def test_notebook_15_runs_on_any_mirror(tmp_path, monkeypatch):
    for name in ("one", "two"):
        make_mirror(tmp_path / "mirror", name)
    study = tmp_path / "study"  # what runs a copy of lib, files its results beside that
    for folder in ("lib", "data/registry"):
        shutil.copytree(ROOT / folder, study / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "data" / "profiles.toml", study / "data")
    monkeypatch.setenv("PYTHONPATH", str(study))
    given = {**SMALL, "data_root": str(tmp_path / "mirror"), "precision": "fp32"}
    run_notebook(ROOT / "notebooks" / "15_real_images.ipynb", tmp_path / "15.ipynb", given, stream=io.StringIO())
    (results,) = (study / "runs").glob("deit-tiny+*+data=*/seed0")
    weak = pd.read_csv(results / "weak_experts.csv")
    assert sorted(set(weak["after"])) == [2, 4, 6] and len(weak) == 3 * 2 * 2
    table = pd.read_csv(results / "real_images.csv")
    assert {"Zero-shot", "RegMean", "Concrete AdaMerging (layer-wise), IM", "Experts"} <= set(table["method"])
    curves = pd.read_csv(results / "learning_curves.csv")
    assert set(curves["task"]) == {"one", "two"} and curves["step"].max() == 6


def test_weak_experts_are_drawn_with_one_seed_and_with_several():
    rng = np.random.default_rng(0)
    rows = [
        {"after": after, "objective": objective, "task": task, "seed": seed, "start_accuracy": rng.uniform(),
         "accuracy": rng.uniform(), "expert_accuracy": 0.5}
        for after in (10, 100) for objective in ("entropy", "information-maximisation")
        for task in ("one", "two") for seed in (0, 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    for part in (table, table[table["seed"] == 0]):
        left, right = figures.weak_experts(part).axes
        assert len(left.containers) == 2 and len(right.collections) == 4 + 2
        starts = 100 * part.groupby("after")["start_accuracy"].mean()
        labels = [text.get_text() for text in left.get_xticklabels()]
        assert labels == [f"{after}\n50\n{starts[after]:.0f}" for after in (10, 100)]


@pytest.mark.parametrize("steps", ["6", "0", "2 x", "2.5"])
def test_kept_steps_are_numbers_below_those_of_fine_tuning(steps):
    with pytest.raises(
        ValueError, match=r"parameter 'kept_steps' names .*, expected numbers below fine_tuning_steps=6"
    ):
        get_profile("tiny", fine_tuning_steps=6, kept_steps=steps)
