"""What the Snakefile plans and refuses; with toys for notebooks, nothing of the study runs."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from toy_study import FIRST, LABEL, SECOND, TABLES, check_toy_study, executed, make_toy_study, run_toy_study

from lib.adaptation import needs
from lib.runtime.disk import ROOT, exclusive
from lib.study.profiles import family_of, get_profile


def toy(root):
    """The Snakefile with an empty notebook for each that it knows; gives their names."""
    text = (ROOT / "Snakefile").read_text()
    (root / "Snakefile").write_text(text)
    (root / "notebooks").mkdir()
    names = re.findall(r'^    "(\d\d_\w+)": \(', text, re.MULTILINE)
    for name in names:
        nbformat.write(new_notebook(cells=[new_code_cell("1")]), root / "notebooks" / f"{name}.ipynb")
    return names


def plan(root, *config):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--config", *config]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("profile", "seeds", "params"),
    [
        ("tiny", "3", "mask_steps=50"),
        ("tiny", "0 1 2", "experts=~/clip/{task}/finetuned.pt"),
        ("tiny-t5", "3", "adapters=~/experts/{task}"),
        ("tiny", "0 1 2 3 4", "mask_steps=50"),
        ("tiny-t5", "0 1 2", "mask_steps=50"),
        ("deit-tiny", "0", "mask_steps=50"),
        ("deit-tiny", "0 1", "mask_steps=50"),
    ],
)
def test_the_graph_of_the_study(tmp_path, profile, seeds, params):
    """The Snakefile plans every notebook of a family once per seed (some once for all), with no results there yet."""
    names, text = toy(tmp_path), (ROOT / "Snakefile").read_text()
    once = re.findall(r'"(\d\d_\w+)"', text.split("ONCE = ")[1].split("\n")[0])
    assert sorted(names) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert set(once) < set(names)
    names = [name for name in names if family_of(name) == get_profile(profile).family]
    run = plan(tmp_path, f"params={params}", f"seeds={seeds}", f"profile={profile}")
    shown = (run.stdout + run.stderr).splitlines()
    planned = [line.split()[1].rstrip(":") for line in shown if line.startswith(("rule ", "localrule "))]
    # Where only one notebook can run it has all cores; otherwise one, which Snakemake does not mention.
    assert ("    threads: 2" in shown) == (len(names) == 1 and len(seeds.split()) == 1)
    first, *more = seeds.split()
    fewer = tuple(re.findall(r'"(\d\d)"', text.split("FEWER = ")[1].split("\n")[0]))

    def of(name):
        """The seeds of a notebook: one, three where it is an ablation, else all."""
        return [first] if name in once else [first, *more][: 3 if name.startswith(fewer) else None]

    wanted = [f"{name}_seed{seed}" for name in names for seed in of(name)]
    assert sorted(planned) == sorted([*(wanted if more else names), "figures", "all"]), run.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("params=seed=3", "params: 'seed' has a variable of its own; say SEED=3"),
        ("params=mask_steps=3 profile=tiny-full", "params: 'profile' has a variable of its own; say PROFILE=tiny-full"),
        ("params=name=x", "unknown parameter 'name'"),
        ("params=temperature=inf", "parameter 'temperature' is inf, expected a finite number"),
        ("params=device=3 precision=fp32 mask_stepz=1", "unknown parameter 'mask_stepz' (did you mean 'mask_steps'?)"),
        ("seeds=abc", "seeds: 'abc' are no different whole numbers, as in SEEDS="),
        ("seeds=0,1", "seeds: '0,1' are no different whole numbers"),
        ("seeds=1.0", "seeds: '1.0' are no different whole numbers"),
        ("seeds=0 0", "seeds: '0 0' are no different whole numbers"),
        ("ablation_seeds=some", "ablation_seeds: 'some' is no number of seeds, as in ABLATION_SEEDS=5"),
        ("tasks=['scenes scenes']", "parameter 'tasks' is 'scenes scenes': name at least one task, none of them twice"),
        ("gpus=['two']", "gpus: 'two' is no number of GPUs"),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, config, message):
    toy(tmp_path)
    run = plan(tmp_path, config)
    assert run.returncode != 0
    assert message in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def planned(root, *config):
    """The folder of results and the arguments of a notebook."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--cores", "2", "--config", *config]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    (line,) = {line for line in run.stdout.splitlines() if "scripts.run_notebook notebooks/03" in line}
    return re.search(r"runs/(.*)/seed", line)[1], line


def test_texts_stay_texts_and_all_that_is_chosen_is_in_the_name(tmp_path):
    toy(tmp_path)
    real = ["tasks=['007']", "profile=tiny-real"]
    label, line = planned(tmp_path, "params=kept_steps=60 precision=bf16 device=cpu", *real)
    assert label == "tiny-real+tasks=007+kept_steps=60+precision=bf16+device=cpu"
    assert "-r tasks 007" in line
    assert "-r kept_steps 60" in line
    (tmp_path / "data" / "007").mkdir(parents=True)
    (tmp_path / "data" / "007" / "train.parquet").write_bytes(b"one")
    label, _ = planned(tmp_path, "params=data_root=data", *real)
    assert re.fullmatch(r"tiny-real\+tasks=007\+data=\w{8}", label)
    (tmp_path / "data" / "007" / "train.parquet").write_bytes(b"two")
    other, _ = planned(tmp_path, "data_root=data", *real)
    assert other != label, "mended data run again"


def test_a_checkout_that_is_not_written_to(tmp_path):
    root, out = tmp_path / "a study, größer", tmp_path / "out"
    root.mkdir()
    make_toy_study(root)
    before = sorted(path for path in root.rglob("*"))
    options = ["--cores", "1", "--retries", "1", "--snakefile", str(root / "Snakefile"), "--directory", str(out)]
    run = run_toy_study(root, *options)
    assert run.returncode == 0, run.stderr
    assert sorted(path for path in root.rglob("*")) == before
    for name in (FIRST, SECOND):
        assert (out / executed(name)).is_file()
        assert all((out / "runs" / LABEL / "seed3" / f"{table}.csv").is_file() for table in TABLES[name])


def test_a_bare_machine_is_enough(tmp_path):
    """Neither ps nor git nor nproc, locale C, and a folder whose name is a hard one."""
    root = tmp_path / "größe of it"
    (tmp_path / "bin").mkdir()
    root.mkdir()
    for tool in ("bash", "sh"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    make_toy_study(root)
    bare = {"PATH": str(tmp_path / "bin"), "LC_ALL": "C", "HOME": str(tmp_path / "home")}
    check_toy_study(root, run_toy_study(root, "--cores", "1", "--retries", "1", **bare), attempts=2)


NO_LOCKS = """
import fcntl
def flock(*_):
    raise OSError(38, "Function not implemented")
fcntl.flock = flock
"""


def test_a_second_study_in_one_folder_is_refused_also_without_file_locks(tmp_path):
    make_toy_study(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_LOCKS)
    without = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    with exclusive(tmp_path / ".snakemake"):
        run = run_toy_study(tmp_path, "--cores", "1")
    assert "another `make study` is running in this folder; wait for it" in run.stdout + run.stderr
    (tmp_path / ".snakemake" / ".lock.held").write_text(f"{os.getpid()}\n{os.uname().nodename}\n")
    run = run_toy_study(tmp_path, "--cores", "1", **without)
    assert "another `make study` is running in this folder" in run.stdout + run.stderr
    assert "no file locks here ([Errno 38]" in run.stdout + run.stderr
    (tmp_path / ".snakemake" / ".lock.held").unlink()
    run = run_toy_study(tmp_path, "--cores", "1", "--retries", "1", **without)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / ".snakemake" / ".lock.held").exists()


@pytest.mark.parametrize(
    ("holder", "who"),
    [
        (f"{os.getpid()} {os.uname().nodename}", f" (process {os.getpid()})"),
        (f"{2**22 + 1} {os.uname().nodename}", f" (process {2**22 + 1} is gone, what it started is not)"),
        ("77 node-12", " (process 77 on node-12)"),
    ],
    ids=["there", "gone", "elsewhere"],  # the same in every process of the tests
)
def test_whoever_runs_the_other_study_is_named(tmp_path, holder, who):
    make_toy_study(tmp_path)
    with exclusive(tmp_path / ".snakemake"):
        (tmp_path / ".snakemake" / "running").write_text(holder)
        run = run_toy_study(tmp_path, "--cores", "1")
    assert f"another `make study` is running in this folder{who}; wait for it, or stop" in run.stdout + run.stderr


def test_a_study_leaves_its_process_for_the_next_one_to_name(tmp_path):
    make_toy_study(tmp_path)
    run_toy_study(tmp_path, "--cores", "1")
    pid, machine = (tmp_path / ".snakemake" / "running").read_text().split()
    assert pid.isdecimal() and machine == os.uname().nodename


def asked_memory(root, rule, profile, *options, **config):
    """The mem_mb of a rule, 0 if it asks for none."""
    given = [f"{name}={value}" for name, value in {"profile": profile, **config}.items()]
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", *options, "--config", *given]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    block = re.search(rf"^rule {rule}:\n(?:.+\n)*", run.stdout, re.MULTILINE)[0]
    return int((re.search(r"mem_mb=(\d+)", block) or [0, 0])[1])


def test_a_job_asks_for_the_memory_that_is_planned(tmp_path):
    toy(tmp_path)
    rule, clip = "07_concrete_adamerging", "clip-vit-b-32"
    merged, other, rows = 87_878_656, 63_428_097, 29_993_256
    phase = needs.Needs(merged, 8, 128, 128, rows, frozen_bytes=4 * other, learn_mask=True)
    planned = sum(needs.plan(phase).values()) / 1e6
    assert asked_memory(tmp_path, rule, clip) == pytest.approx(planned + 4000, abs=1)
    assert asked_memory(tmp_path, rule, clip, params="micro_batch=16") < planned + 3500
    assert asked_memory(tmp_path, "12_ablation_protocol", clip) > 1.5 * planned  # the exact hypergradient
    on_gpu = asked_memory(tmp_path, rule, clip, "--default-resources", "gres=gpu:1")
    assert on_gpu == pytest.approx(4000 + 12 * 4 * merged / 1e6, abs=1)
    assert asked_memory(tmp_path, rule, "tiny") < 5000
    assert asked_memory(tmp_path, rule, "tiny-real", params="model=timm:resnet18 pretrained=hub") == 0  # not known


def test_the_users_own_memory_holds(tmp_path):
    toy(tmp_path)
    rule = "07_concrete_adamerging"
    assert asked_memory(tmp_path, rule, "tiny", "--default-resources", "mem_mb=77") == 77
    assert asked_memory(tmp_path, rule, "tiny", "--default-resources", "mem=5GB") == 5000
    assert asked_memory(tmp_path, rule, "tiny", "--set-resources", f"{rule}:mem_mb=78") == 78


@pytest.mark.parametrize(("mode", "threads"), [("default", 2), ("remote", 4)])
def test_a_job_of_a_cluster_has_all_its_cores_and_one_machine_shares_them(tmp_path, mode, threads):
    toy(tmp_path)
    command = [sys.executable, "-m", "snakemake", "runs/tiny/seed0/01_fine_tuning.ipynb", "--dry-run", "--cores", "4"]
    run = subprocess.run([*command, "--mode", mode], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    alone = shutil.which("nvidia-smi") or sys.platform == "darwin"
    assert f"    threads: {4 if alone else threads}" in run.stdout.splitlines()
