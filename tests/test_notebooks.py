"""The notebooks as documents, and the figures drawn from saved tables."""

import ast
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib import figures
from lib.study.evaluation import gather, main_table
from lib.study.profiles import FAMILIES, family_of, get_profile
from lib.study.statistics import compare_methods
from lib.study.study import ROOT, open_study

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [
        "00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "17", "20",
        "21", "22", "30", "90",
    ]  # fmt: skip


def test_the_first_code_cell_holds_parameters_that_the_study_knows(notebook):
    number = notebook.cells[0].source.removeprefix("# ")
    family = FAMILIES[family_of(number)]
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code_cells(notebook)[:1]
    namespace = {}
    exec(tagged[0].source, namespace)
    del namespace["__builtins__"]
    assert open_study(namespace, family).profile.name == family.default


def test_cells_are_short_and_prose_frames_them(notebook):
    told = [cell for cell in code_cells(notebook) if "takeaways" in cell.metadata.get("tags", [])]
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook) if cell not in told]
    assert np.median(lengths) <= 10
    assert max(lengths) <= 25
    assert max(len(cell.source.splitlines()) for cell in told) <= 55, "takeaways are sentences, the longest there are"
    assert len(notebook.cells) <= 60
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("What you will learn", "Runtime", "## Takeaways", "## Exercises"):
        assert part in prose


def test_outputs_are_committed_without_errors_and_the_notebook_asserts_its_claims(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        assert cell.execution_count == number, "outputs are not from one run from top to bottom"
        assert not any(output.output_type == "error" for output in cell.outputs)
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(ast.parse(cell.source))]
    assert any(isinstance(node, ast.Assert) for node in nodes)
    assert any("NBVAL_CHECK_OUTPUT" in cell.source for cell in code_cells(notebook))


def test_no_notebook_shows_a_path_of_the_machine_it_ran_on(notebook):
    assert not re.findall(r"/(?:work|home|root|tmp|Users)/\w+", nbformat.writes(notebook))


@pytest.mark.parametrize("profile", ["tiny-full", "tiny-t5-full", "deit-tiny"])
def test_every_figure_is_drawn_from_the_committed_tables(tmp_path, profile):
    written = figures.draw_all(ROOT / "data" / "results" / profile, tmp_path)
    committed = sorted(path.name for path in (ROOT / "figures" / profile).glob("*.png"))
    assert sorted(path.name for path in written) == committed
    for path in written:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[0] > 200
        assert pixels.std() > 5, f"{path.name} is blank"


def test_benchmark_figures_are_drawn_from_the_saved_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `make benchmark` first"):
        figures.draw_benchmarks(tmp_path)
    (tmp_path / "data" / "benchmarks").mkdir(parents=True)
    table = pd.read_csv(ROOT / "data" / "benchmarks" / "merge_step.csv")
    table.to_csv(tmp_path / "data" / "benchmarks" / "merge_step.csv", index=False)
    written = figures.draw_benchmarks(tmp_path)
    assert [path.name for path in written[:2]] == ["merge_step.png", "merge_step_size.png"]
    assert all(np.asarray(Image.open(path).convert("L")).std() > 5 for path in written)


def test_figures_of_a_profile_without_tables_say_what_to_run(capsys):
    with pytest.raises(FileNotFoundError, match=r"no saved tables of seed 0 in .*tiny-real: run `make study` first"):
        figures.draw_all(Path("/nonexistent/tiny-real"), Path("/nonexistent"))


def rows(method, values, split="test", seed=0):
    return pd.DataFrame(
        [
            {"method": method, "task": task, "split": split, "seed": seed, "accuracy": value, "loss": 1.0, "n": 10}
            for task, value in values.items()
        ]
    )


def test_results_put_the_seeds_together():
    tables = {
        seed: {
            "cross_evaluation": pd.concat(
                [
                    rows("pre-trained", {"a": 0.2, "b": 0.4}, seed=seed),
                    rows("a", {"a": 0.9, "b": 0.1}, seed=seed),
                    rows("b", {"a": 0.1, "b": 0.8}, seed=seed),
                ]
            ),
            "fusion": rows("Task Arithmetic", {"a": 0.5, "b": 0.6 + seed / 10}, seed=seed),
            "concrete_task_arithmetic": pd.concat(
                [
                    rows("Task Arithmetic", {"a": 0, "b": 0}, seed=seed),
                    rows("Concrete Task Arithmetic", {"a": 0.6, "b": 0.7}, seed=seed),
                ]
            ),
            "adaptation": rows("AdaMerging (layer-wise)", {"a": 0.8, "b": 0.7}, seed=seed),
        }
        for seed in (0, 1)
    }
    results = gather(tables)
    assert results.groupby(["method", "task", "split", "seed"]).size().eq(1).all()
    table = main_table(results)
    assert table.loc["Experts", ["a", "b", "mean"]].tolist() == [90.0, 80.0, 85.0]
    assert table.loc["Task Arithmetic", "b"] == 65.0
    assert table.loc["Task Arithmetic", "std"] == pytest.approx(np.std([55, 60], ddof=1), abs=0.01)
    (difference,) = compare_methods(results, [("AdaMerging (layer-wise)", "Task Arithmetic")]).itertuples()
    assert (difference.difference, difference.tasks, difference.seeds) == (17.5, 2, 2)


def test_a_committed_table_is_of_its_own_seed_alone():
    """Else it holds what the other seeds had saved when it was made, and nobody sees when they change."""
    tables = sorted((ROOT / "data" / "results").glob("*/seed*/*.csv"))
    seeds = {table: pd.read_csv(table).get("seed", pd.Series(dtype=int)).dropna().unique() for table in tables}
    own = {table: int(table.parent.name.removeprefix("seed")) for table in tables}
    # notebook 04 plants three worlds in every run
    mixed = [table for table in tables if set(seeds[table]) - {own[table]} and table.stem != "planted"]
    assert len(tables) > 100, "they are found"
    assert not mixed


def test_one_task_alone_is_a_set_of_one():
    """Where notebooks compare or choose several tasks: what they compute of a single one."""
    tau = torch.ones(1, 4)
    study = SimpleNamespace(seed=0, profile=get_profile("tiny", tasks="scenes"))
    tasks = {"scenes": SimpleNamespace(class_names=("city", "beach"))}
    workspace = SimpleNamespace(tasks=tasks, setting=lambda subset: SimpleNamespace(task_vectors=tau))
    known = {"study": study, "budget": study.profile, "workspace": workspace, "names": ["scenes"], "whole": False}
    known |= {"pd": pd, "tau": tau, "by_expert": pd.DataFrame({"scenes": {"scenes": 0.9}})}

    def after(number, *words):
        """What the cells of a notebook with these words leave behind."""
        (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
        names = known | {"combinations": itertools.combinations}
        for word in words:
            source = next(cell.source for cell in code_cells(nbformat.read(path, 4)) if word in cell.source)
            exec(source.partition("\nrows = []")[0], names)  # not the merging that follows
        return names

    names = after("11", "counts =", "def draw_subset", "def sets_of", "def interference")
    assert names["subsets"] == [("scenes",)] and list(names["measured"]) == ["scenes"]
    assert names["measured"]["scenes"]["cancelled"] == 0
    assert names["sets_of"](1, 5) == [("scenes",)]
    names = after("13", "held_out =", "def alike", "ranked =", "chosen_sets =")
    assert names["held_out"] in ({"A": ()}, {"A": []})
    assert names["chosen_sets"] == {"least alike": ("scenes",), "most alike": ("scenes",)}
