"""`make study` killed at random moments, also while it is set up: the same command ends with the same tables.

KILLS=10 KILL_SEED=0 are how often and which moments; `pytest -m scale -s tests/test_killed.py` shows them.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from lib.runtime.disk import ROOT
from lib.study.profiles import get_profile

KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("KILL_SEED", "0"))
IN_THE_SET_UP = 2  # of the kills, beside one while packages are installed
SMALL = {
    "tasks": "handwritten_digits textures", "fine_tuning_steps": 30, "fine_tuning_batch": 16, "mask_steps": 6,
    "adaptation_steps": 6, "evaluate_every": 3, "train_images": 120, "validation_images": 20, "adaptation_images": 60,
    "test_images": 60, "curve_images": 20, "ablation_steps": 4,
}  # fmt: skip
NOTEBOOKS = ("05_test_time_adaptation", "06_concrete_task_arithmetic")
RESULTS = Path("runs") / get_profile("tiny", **SMALL).label / "seed0"


def copy(folder):
    """A fresh clone of the working tree."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def start(folder, *arguments):
    """Start make in a process group of its own; its output goes to a file beside the clone."""
    params = " ".join(f"{name}={value}" for name, value in SMALL.items() if name != "tasks")
    flags = f"FLAGS=--until {' '.join(NOTEBOOKS)}"
    wanted = [f"TASKS={SMALL['tasks']}", f"PARAMS={params}", flags, "CORES=2", *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "STUDY", "MFLAGS"))}
    variables.pop("PYTHONPATH", None)
    with folder.with_suffix(".log").open("a") as output:
        return subprocess.Popen(
            ["make", "study", *wanted], cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True
        )


def finish(folder, *arguments):
    """Let the command run to its end; gives the seconds until the set-up was done and until all was."""
    begin, ready, process = time.monotonic(), 0.0, start(folder, *arguments)
    while process.poll() is None:
        time.sleep(0.1)
        if not ready and (folder / ".venv" / ".study-ready").exists():
            ready = time.monotonic() - begin
    assert process.returncode == 0, folder.with_suffix(".log").read_text()[-3000:]
    return ready, time.monotonic() - begin


def kill(folder, seconds, appears="nothing"):
    """Kill the command and all of its group after so many seconds or when a file appears; in which part that was."""
    process, log, begin = start(folder), folder.with_suffix(".log"), time.monotonic()
    while process.poll() is None and time.monotonic() < begin + seconds and not [*folder.glob(appears)]:
        time.sleep(0.02)
    assert process.poll() in (None, 0), log.read_text()[-3000:]
    state, seconds = "done" if process.poll() == 0 else "stopped", time.monotonic() - begin
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    where = "study" if (folder / ".venv" / ".study-ready").exists() else "set-up"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    print(f"{state} after {seconds:5.1f} s in the {where}: {' '.join(last)[:100]}", flush=True)
    return where


def tables(folder):
    """All tables, without columns of seconds, as they are written."""
    found = {path.name: pd.read_csv(path, dtype=str) for path in sorted((folder / RESULTS).glob("*.csv"))}
    return {name: table[[column for column in table if "second" not in column]] for name, table in found.items()}


@pytest.mark.scale
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_tables(tmp_path):
    whole, killed = copy(tmp_path / "undisturbed"), copy(tmp_path / "größe of it, 日本")
    ready, done = finish(whole)
    print(f"undisturbed: set up in {ready:.0f} s, done in {done:.0f} s")
    moments = random.Random(SEED)
    places = [kill(killed, moments.uniform(0.05, 0.6) * ready) for _ in range(IN_THE_SET_UP)]
    assert places.count("set-up") >= 2
    places.append(kill(killed, 600, appears=".venv/lib/*/site-packages/torch"))  # packages are there by half
    while len(places) < KILLS:  # the first of these may still be in the set-up
        places.append(kill(killed, moments.uniform(1, 0.4 * (done - ready) + (places[-1] == "set-up") * ready)))
    finish(killed)
    assert tables(killed).keys() == tables(whole).keys() and len(tables(whole)) > 5
    for name, table in tables(whole).items():
        pd.testing.assert_frame_equal(tables(killed)[name], table, obj=name)
    assert not list((killed / "runs").rglob("*.partial*")), "nothing half-written is left"
    print(f"{len(places)} kills, {places.count('set-up')} in the set-up: {len(tables(whole))} tables are the same")
