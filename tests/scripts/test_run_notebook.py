import io
import os
import re
import subprocess
import sys
from contextlib import suppress
from functools import cached_property

import nbformat
import psutil
import pytest
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.runtime.disk import ROOT
from lib.runtime.parameters import typed
from scripts.run_notebook import NotebookStopped, Report, ThisPython, main, run_notebook


@pytest.fixture
def notebook(tmp_path):
    """Write a small notebook: a parameters cell, then one cell below the heading `Work`."""

    def write(code):
        parameters = new_code_cell("seed = 0\nname = ''", metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell("# Toy"), parameters, new_markdown_cell("## Work\nText."), new_code_cell(code)]
        path = tmp_path / "07_toy.ipynb"
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return write


def test_a_run_shows_its_cells_and_leaves_one_finished_file(notebook, tmp_path):
    shown = io.StringIO()
    source = notebook("import sys\nprint('seed is', seed)\nprint('name is', name, file=sys.stderr)")
    before = source.read_bytes()
    output = run_notebook(source, tmp_path / "runs" / "07_toy.ipynb", {"seed": 3, "name": "x"}, stream=shown)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "[07_toy] 3 cells with seed=3, name='x'"
    assert "[07_toy] cell 3/3  Work: import sys" in lines
    assert "  07  seed is 3" in lines
    assert "  07  name is x" in lines
    assert lines[-1].startswith("[07_toy] finished in ")
    assert [path.name for path in output.parent.iterdir()] == ["07_toy.ipynb"]
    assert source.read_bytes() == before


def test_a_failing_cell_gives_one_clear_message_and_no_output(notebook, tmp_path, capsys):
    output = tmp_path / "out.ipynb"
    output.write_text("an earlier run")
    code = main([str(notebook("print('so far')\nraise ValueError('no profile tinny; known: tiny')")), str(output)])
    captured = capsys.readouterr()
    assert code == 1
    assert "07_toy stopped in cell 2 of 2 (Work: print('so far'))\n    ValueError: no profile tinny; known: tiny" in (
        captured.err
    )
    assert "Traceback" not in captured.err
    assert output.read_text() == "an earlier run"
    assert str(tmp_path / "out.partial.ipynb") in captured.err
    assert "so far" in (tmp_path / "out.partial.ipynb").read_text()


def test_a_kernel_that_dies_is_said_so(notebook, tmp_path):
    with pytest.raises(NotebookStopped, match=r"stopped in cell 2 of 2[^$]*killed, or out of memory"):
        run_notebook(notebook("import os\nos._exit(1)"), tmp_path / "out.ipynb", stream=io.StringIO())
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_ends_with_what_started_it(notebook, tmp_path):
    source = notebook("import time\nprint('begun', flush=True)\ntime.sleep(600)")
    start = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
    command = [
        sys.executable,
        "-m",
        "scripts.run_notebook",
        str(source),
        str(tmp_path / "out.ipynb"),
        "--with-parent",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", start, *command], **pipes) as runner:
        running = psutil.Process(int(runner.stdout.readline()))
        while "begun" not in runner.stdout.readline():
            assert running.is_running()
        runner.kill()  # as when the batch runner is killed: nobody tells the notebook
        with suppress(psutil.NoSuchProcess):
            running.wait(timeout=30)
    assert not (tmp_path / "out.ipynb").exists()


def test_an_unknown_notebook_names_the_known_ones(notebook, tmp_path):
    notebook("1")
    with pytest.raises(NotebookStopped, match=r"no notebook .*08_toy.ipynb; notebooks in that folder: 07_toy.ipynb"):
        run_notebook(tmp_path / "08_toy.ipynb", tmp_path / "out.ipynb")


def test_a_broken_notebook_is_no_traceback(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{ not json")
    with pytest.raises(NotebookStopped, match=r"broken.ipynb is no readable notebook"):
        run_notebook(tmp_path / "broken.ipynb", tmp_path / "out.ipynb")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("1e-3", 0.001),
        ("True", True),
        ("None", None),
        ("tiny", "tiny"),
        ("", ""),
        ("true", "true"),
    ],
)
def test_values_are_read_as_papermill_reads_them(text, value):
    from papermill.cli import _resolve_type

    assert typed(text) == value == _resolve_type(text)
    assert type(typed(text)) is type(value)


def test_printed_text_appears_line_by_line():
    shown = io.StringIO()
    report = Report("nb", new_notebook(), {}, shown)
    report.write("half a ")
    assert shown.getvalue() == ""
    report.write("line\r50 %\n\nrest")
    assert shown.getvalue().splitlines() == ["  nb  half a line", "  nb  50 %"]
    report.flush_line()
    assert shown.getvalue().splitlines()[-1] == "  nb  rest"


def test_the_kernel_is_the_python_that_runs_whatever_kernels_are_installed(notebook, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    shown = io.StringIO()
    run_notebook(notebook("import sys\nprint(sys.executable)"), tmp_path / "out.ipynb", stream=shown)
    assert f"  07  {sys.executable}" in shown.getvalue().splitlines()


def test_a_process_of_torchrun_needs_no_ps(notebook, tmp_path):
    command = [sys.executable, "-m", "scripts.run_notebook", str(notebook("1")), "out.ipynb", "--with-parent"]
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    environment = os.environ | own | {"PATH": str(tmp_path / "empty"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert run.returncode == 0 and (tmp_path / "out.ipynb").is_file(), run.stderr


@pytest.mark.parametrize(("times", "stops"), [(1, False), (2, True)])
def test_a_kernel_that_does_not_start_is_tried_once_more(notebook, tmp_path, monkeypatch, times, stops):
    broken = {"argv": [sys.executable, "-c", "raise SystemExit(3)"], "display_name": "", "language": "python"}
    specs = iter([broken] * times + [get_kernel_dict()])

    class SometimesBroken(ThisPython):
        @cached_property
        def kernel_spec(self):
            return KernelSpec(**next(specs))

    monkeypatch.setattr("scripts.run_notebook.ThisPython", SometimesBroken)
    shown = io.StringIO()
    if stops:
        with pytest.raises(NotebookStopped, match=r"07_toy was not begun: its Python, .*python\S* -m ipykernel"):
            run_notebook(notebook("1"), tmp_path / "out.ipynb", stream=shown)
    else:
        run_notebook(notebook("1"), tmp_path / "out.ipynb", stream=shown)
    assert shown.getvalue().count("once more") == 1
    assert (tmp_path / "out.ipynb").exists() != stops


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"[]", b"{}", b""])
def test_what_is_no_notebook_is_said_in_one_line(tmp_path, capsys, content):
    (tmp_path / "broken.ipynb").write_bytes(content)
    assert main([str(tmp_path / "broken.ipynb"), str(tmp_path / "out.ipynb")]) == 1
    assert "broken.ipynb is no readable notebook" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--with-log"]])
def test_an_output_that_cannot_be_written_is_said_in_one_line(notebook, tmp_path, capsys, options):
    (tmp_path / "file").touch()
    assert main([str(notebook("1")), str(tmp_path / "file" / "out.ipynb"), *options]) == 1
    told = capsys.readouterr().err
    assert re.search("07_toy.* (stopped|was not begun): .*(Not a directory|File exists)", told)
    assert "Traceback" not in told
