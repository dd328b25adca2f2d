"""Publishing: outputs travel into notebooks, tables into data/results, and nothing moves unless all of it fits."""

import io
import json
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from scripts.publish import publish, run_of, tables_of, with_outputs
from scripts.run_notebook import run_notebook

PARAMETERS = new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
SOURCE = new_notebook(cells=[PARAMETERS, new_code_cell("print(seed)")])
ABOUT = '{"seed": 0, "inputs": {"data_root": "/home/me/mirror", "mnist": "1a"}}'


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executed")
    nbformat.write(SOURCE, folder / "source.ipynb")
    return run_notebook(folder / "source.ipynb", folder / "07_toy.ipynb", {"seed": 3}, io.StringIO())


@pytest.fixture
def root(tmp_path, executed):
    """A checkout with one notebook of each of two families, and two runs of the first with tables of two seeds."""
    (tmp_path / "notebooks").mkdir()
    for name in ("07_toy.ipynb", "20_language.ipynb"):
        nbformat.write(SOURCE, tmp_path / "notebooks" / name)
    for label in ("tiny", "tiny-full"):
        for seed in (0, 1):
            folder = tmp_path / "runs" / label / f"seed{seed}"
            folder.mkdir(parents=True)
            shutil.copy(executed, folder)
            (folder / "fusion.csv").write_text(f"{label} {seed}\n")
            (folder / "contact_sheet.png").write_bytes(b"picture")
            (folder / "about.json").write_text(ABOUT)
    return tmp_path


def test_outputs_and_tables_of_a_run_become_the_committed_ones(root):
    before = nbformat.read(root / "notebooks" / "07_toy.ipynb", as_version=4)
    tables, notebooks = publish(root, "tiny", [0])
    assert notebooks == [root / "notebooks" / "07_toy.ipynb"], "the other family needs no run"
    published = nbformat.read(notebooks[0], as_version=4)
    assert [cell.source for cell in published.cells] == [cell.source for cell in before.cells]
    assert published.cells[-1].outputs[0].text == "3\n"
    assert "papermill" not in json.dumps(published)
    committed = root / "data" / "results" / "tiny" / "seed0"
    assert sorted(tables) == sorted(committed.iterdir())
    assert (committed / "fusion.csv").read_text() == "tiny 0\n"
    assert json.loads((committed / "about.json").read_text()) == {"seed": 0, "inputs": {"mnist": "1a"}}
    assert [path.name for path in (committed / "..").resolve().iterdir()] == ["seed0"], "only the seeds asked for"


def test_a_profile_that_no_notebook_shows_publishes_tables_alone(root):
    before = (root / "notebooks" / "07_toy.ipynb").read_bytes()
    _, notebooks = publish(root, "tiny-full", [0, 1])
    assert notebooks == []
    assert (root / "notebooks" / "07_toy.ipynb").read_bytes() == before
    assert (root / "data" / "results" / "tiny-full" / "seed1" / "fusion.csv").read_text() == "tiny-full 1\n"


def test_a_run_with_changed_parameters_leaves_the_notebooks_alone(root):
    before = (root / "notebooks" / "07_toy.ipynb").read_bytes()
    (root / "runs" / "tiny").rename(root / "runs" / "tiny+mask_steps=50")
    _, notebooks = publish(root, "tiny+mask_steps=50", [0])
    assert notebooks == []
    assert (root / "notebooks" / "07_toy.ipynb").read_bytes() == before
    assert (root / "data" / "results" / "tiny+mask_steps=50" / "seed0" / "fusion.csv").is_file()


def test_a_run_on_the_users_data_is_published_under_the_profiles_name(root):
    (root / "runs" / "tiny-full").rename(root / "runs" / "tiny-full+data=11112222")
    publish(root, "tiny-full", [0])
    assert (root / "data" / "results" / "tiny-full" / "seed0" / "fusion.csv").is_file()
    (root / "runs" / "tiny-full+data=33334444").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"several data or devices: .*=11112222, tiny-full\+data=33334444; name"
    ):
        publish(root, "tiny-full", [0])
    publish(root, "tiny-full+data=11112222", [1])
    (root / "runs" / "tiny-full+data=33334444").rename(root / "runs" / "tiny-full+precision=bf16+data=33334444")
    assert run_of(root, "tiny-full+precision=bf16+data=33334444").is_dir()
    assert [path.name for path in (root / "data" / "results").iterdir()] == ["tiny-full"]
    assert (root / "data" / "results" / "tiny-full" / "seed1").is_dir()


@pytest.mark.parametrize(
    ("label", "seeds", "message"),
    [
        ("tiny", [0, 7], "no tables of seed 7; run `make study SEEDS=7`"),
        ("tiny", [7], r"seed7/07_toy.ipynb does not exist; run `make study` first"),
        ("tiny-real", [0], "there is no .*runs/tiny-real; run `make study PROFILE=tiny-real` first"),
        ("tny", [0], "unknown profile 'tny'"),
    ],
)
def test_without_a_whole_run_nothing_is_published(root, label, seeds, message):
    before = (root / "notebooks" / "07_toy.ipynb").read_bytes()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        publish(root, label, seeds)
    assert not (root / "data").exists()
    assert (root / "notebooks" / "07_toy.ipynb").read_bytes() == before


def test_publishing_refuses_a_run_of_other_code(root):
    source = new_notebook(cells=[new_code_cell("1 + 1")])
    run = new_notebook(cells=[new_code_cell("1 + 2", outputs=[new_output("stream", text="3")])])
    with pytest.raises(ValueError, match="changed since"):
        with_outputs(source, run)
    nbformat.write(source, root / "notebooks" / "07_toy.ipynb")
    with pytest.raises(ValueError, match=r"07_toy.ipynb: .* changed since that run; run `make study` again"):
        publish(root, "tiny", [0])
    assert not (root / "data").exists()


def test_logs_and_notebooks_are_no_tables(root):
    (root / "runs" / "tiny" / "seed0" / "07_toy.log").touch()
    assert list(tables_of(root / "runs" / "tiny", [0])) == [
        "seed0/fusion.csv", "seed0/contact_sheet.png", "seed0/about.json",
    ]  # fmt: skip


def test_of_a_loops_progress_only_the_end_is_published():
    cell = new_code_cell("adapt()")
    lines = [
        "mask  30/80  38 %  5.1 s, about 8.6 s left  loss 3.9\n",
        "mask  80/80  100 %  9 s  loss 2\nkept 3/4 of it\n",
    ]
    run = new_code_cell("adapt()", outputs=[new_output("stream", text=text) for text in (lines[0], "".join(lines))])
    (published,) = with_outputs(new_notebook(cells=[cell]), new_notebook(cells=[run])).cells
    assert [output.text for output in published.outputs] == [lines[1]]
