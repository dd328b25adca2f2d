"""The report's tables: every comparison with its place, and what the committed runs cost."""

import json

import nbformat
import pandas as pd

from scripts import claims

COLUMNS = [
    "method", "against", "difference", "low", "high", "up", "down", "p", "verdict", "tasks", "seeds", "notebook",
    "cell",
]  # fmt: skip


def test_every_comparison_has_its_place_interval_and_verdict(monkeypatch, tmp_path):
    rows = pd.DataFrame(
        [
            ("A", "B", -2.04, -3.1, -0.96, 1, 7, 0.0004, "lower", 8, 3, "05_test_time_adaptation", 36),
            ("A", "C", 0.02, float("nan"), float("nan"), 4, 4, float("nan"), "not tested", 8, 1, "17_data", 9),
        ],
        columns=COLUMNS,
    )
    monkeypatch.setattr(claims, "comparisons", lambda root: rows)
    _, _, first, second = claims.claims(tmp_path).splitlines()
    assert first == (
        "| [05](../notebooks/05_test_time_adaptation.ipynb) (36) | A | B | −2.0 | −3.1 to −1.0 | 1, 7 (3 seeds) "
        "| < 0.001 | lower |"
    )
    assert second == "| [17](../notebooks/17_data.ipynb) (9) | A | C | +0.0 |  | 4, 4 (1 seed) |  | not tested |"


def test_a_run_costs_what_its_notebooks_took_each_by_its_last_table(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, saved in {"05_a": ["one", "two"], "06_b": ["three"], "20_text": ["one"]}.items():
        cells = [nbformat.v4.new_code_cell(f'table = study.save(f(x)[columns], "{table}")') for table in saved]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    assert claims.saved_by(folder) == {"one": ["05_a", "20_text"], "two": ["05_a"], "three": ["06_b"]}
    for profile, seconds in {
        "tiny-full": {"one": 60, "two": 120, "three": 240, "gone": 9},
        "tiny-t5-full": {"one": 60},
    }.items():
        run = tmp_path / "data" / "results" / profile / "seed0"
        run.mkdir(parents=True)
        (run / "about.json").write_text(json.dumps({"seconds": seconds, "machine": "a machine", "threads": 1}))
    _, _, vision, text = claims.cost(tmp_path).splitlines()
    assert vision == "| vision (`tiny-full`) | 0 | 2 | 6 | a machine | 1 |"
    assert text == "| text (`tiny-t5-full`) | 0 | 1 | 1 | a machine | 1 |"
