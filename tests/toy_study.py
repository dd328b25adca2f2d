"""A study whose notebooks do next to nothing, below the real Snakefile: the second fails the first time it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from lib.runtime.disk import ROOT
from lib.study.inputs import label_of, without_data
from lib.study.profiles import get_profile

FIRST, SECOND = "01_fine_tuning", "02_task_vectors"
TABLES = {FIRST: ("learning_curves", "cross_evaluation"), SECOND: ("norms", "similarity")}
CHANGED = {"mask_steps": 7, "experts": "/a place/{task}/finetuned.pt"}  # a value that shells could take apart
LABEL = label_of(get_profile("tiny", **CHANGED))  # the experts, which are not there, count as ones on the hub
PARAMETERS = "profile, seed, mask_steps, experts = '', -1, 0, ''"
WRITE = """
from pathlib import Path
folder = Path("runs") / {label!r} / f"seed{{seed}}"
folder.mkdir(parents=True, exist_ok=True)
for table in {tables!r}:
    (folder / f"{{table}}.csv").write_text(f"{{profile}};{{seed}};{{mask_steps}};{{experts}}")
print("tables written")
"""
FAIL_ONCE = """
from pathlib import Path
half = Path("half.txt")
if not half.exists():
    half.write_text("the first half")
    raise RuntimeError("the node went down")
print("continues after", half.read_text())
"""


def make_toy_study(root: Path) -> None:
    """Put the Snakefile and a toy for each of its notebooks into a folder."""
    text = (ROOT / "Snakefile").read_text()
    (root / "Snakefile").write_text(text)
    (root / "notebooks").mkdir()
    for name in re.findall(r'^    "(\d\d_\w+)": \(', text, re.MULTILINE):
        cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        cells += [new_code_cell(FAIL_ONCE)] if name == SECOND else []
        cells += [new_code_cell(WRITE.format(label=LABEL, tables=TABLES.get(name, ())))]
        nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


def executed(name: str) -> str:
    """The result of a notebook, as the Snakefile names it."""
    return f"runs/{LABEL}/seed3/{name}.ipynb"


def run_toy_study(root: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """Run the first two notebooks with Snakemake, as `make study` calls it; `variables` are for the environment."""
    params = " ".join(f"{name}='{value}'" for name, value in CHANGED.items())
    command = [
        sys.executable, "-m", "snakemake", executed(SECOND), "--nolock", "--rerun-incomplete",
        "--quiet", "host", "reason", "rules", "progress", *options,
        "--config", "profile=tiny", "seeds=3", "data_root=", "tasks=", f"params={params}",
    ]  # fmt: skip
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": paths, **variables}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)


def check_toy_study(root: Path, run: subprocess.CompletedProcess, attempts: int) -> None:
    """Both notebooks ran, the second as often as said; each log lies beside the executed notebook."""
    assert run.returncode == 0, run.stdout + run.stderr
    wanted = f"tiny;3;7;{CHANGED['experts']}"
    for name, tables in TABLES.items():
        assert (root / executed(name)).is_file()
        for table in tables:
            assert (root / "runs" / LABEL / "seed3" / f"{table}.csv").read_text() == wanted
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == [
        "Snakefile", "half.txt", "notebooks", "runs",
    ], "a run writes below runs/ only"  # fmt: skip
    assert f"there are no committed tables of profile '{without_data(LABEL)}', seed 3" in run.stdout
    first, second = ((root / executed(name)).with_suffix(".log").read_text() for name in TABLES)
    assert first.count("tables written") == 1
    assert second.count("4 cells with") == attempts
    assert second.count("RuntimeError: the node went down") == 1
    assert second.index("the node went down") < second.index("continues after the first half")
