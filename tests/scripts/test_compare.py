"""One line says how far a run's tables are from the committed ones."""

import json

import pandas as pd
import pytest

from lib.study.tables import save_table
from scripts.compare import compare, largest_difference, main

FUSION = pd.DataFrame(
    {
        "method": ["TSV-M", "TSV-M", "Ties-Merging"],
        "task": ["scenes", "textures", "scenes"],
        "split": "test",
        "seed": 0,
        "accuracy": [0.5, 0.6, 0.7],
        "loss": [1.0, 2.0, 3.0],
    }
)
NORMS = pd.DataFrame({"layer": ["a", "b"], "norm": [1.0, 2.0]})
COST = pd.DataFrame({"part": ["mask"], "milliseconds": [1.0]})


@pytest.fixture
def study(tmp_path):
    """Save the same tables as a run's and as committed ones; gives a function that replaces one of the run's."""

    def save(folder, seed=0, **tables):
        for name, table in tables.items():
            save_table(table, tmp_path / folder / f"seed{seed}" / f"{name}.csv")

    for folder in ("runs/tiny", "data/results/tiny"):
        save(folder, fusion=FUSION, norms=NORMS, step_cost=COST)
    return save


def line(root, seeds=(0,), label="tiny"):
    return compare(root / "runs" / label, root / "data" / "results" / "tiny", seeds)


def test_equal_tables(study, tmp_path):
    study("runs/tiny", step_cost=COST.assign(milliseconds=2.0), extra=NORMS)
    assert line(tmp_path) == "Compared with our tables: all 2 are equal bit for bit"


def test_the_largest_difference_is_named(study, tmp_path):
    study("runs/tiny", fusion=FUSION.assign(accuracy=[0.504, 0.601, 0.7], loss=9.0))
    assert line(tmp_path) == (
        "Compared with our tables: largest difference 0.4 points, in fusion.csv (method TSV-M, task scenes); "
        "1 of 2 tables are equal bit for bit"
    )
    study("runs/tiny", seed=1, fusion=FUSION.assign(accuracy=[0.5, 0.5, 0.7]))
    study("data/results/tiny", seed=1, fusion=FUSION)
    assert "largest difference 10 points, in seed1/fusion.csv (method TSV-M, task textures); 1 of 3" in (
        line(tmp_path, (0, 1))
    )


def test_differences_that_are_no_accuracies(study, tmp_path):
    study("runs/tiny", norms=NORMS.assign(norm=3.0))
    assert line(tmp_path) == "Compared with our tables: no accuracy differs; 1 of 2 tables are equal bit for bit"
    study("runs/tiny", fusion=FUSION[:2])
    assert line(tmp_path).endswith("no accuracy differs; 0 of 2 tables are equal bit for bit; other rows in fusion.csv")


def test_other_rows_are_no_difference_in_points():
    assert largest_difference(FUSION, FUSION[:2]) is None
    assert largest_difference(FUSION.assign(method="x"), FUSION) is None
    assert largest_difference(FUSION.drop(columns="loss"), FUSION) is None
    points, place = largest_difference(FUSION.assign(accuracy=[0.5, float("nan"), 0.8]), FUSION)
    assert (points, place) == (pytest.approx(10), "method Ties-Merging, task scenes")


def test_nothing_to_compare_with(study, tmp_path, capsys):
    nothing = "Compared with nothing: there are no"
    assert line(tmp_path, (1,)) == f"{nothing} tables in {tmp_path}/runs/tiny of profile 'tiny', seed 1"
    study("runs/tiny", seed=1, fusion=FUSION)
    assert line(tmp_path, (1,)) == f"{nothing} committed tables of profile 'tiny', seed 1"
    study("runs/tiny+mask_steps=7", fusion=FUSION)
    assert main(["--root", str(tmp_path), "--run", str(tmp_path / "runs/tiny+mask_steps=7"), "--seeds", "0 1"]) == 0
    assert capsys.readouterr().out == f"{nothing} committed tables of profile 'tiny+mask_steps=7', seeds 0, 1\n"


def test_other_data_are_mentioned(study, tmp_path, capsys):
    (tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "tiny+data=1a2b3c4d")
    for folder, told in (("data/results/tiny", "old"), ("runs/tiny+data=1a2b3c4d", "new")):
        (tmp_path / folder / "seed0" / "about.json").write_text(json.dumps({"inputs": {"mnist": told}}))
    main(["--root", str(tmp_path), "--run", str(tmp_path / "runs" / "tiny+data=1a2b3c4d")])
    assert capsys.readouterr().out == "Compared with our tables (of other data): all 2 are equal bit for bit\n"
