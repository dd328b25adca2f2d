"""What make hands on to Snakemake and to the set-up, seen by stand-ins for Python; nothing is installed or run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.cli import parse_config

from lib.runtime.disk import ROOT

# Shows the arguments and variables of snakemake; everything else is Python's own.
PYTHON = f"""#!/bin/sh
case "$*" in
  *snakemake*) for word in "$@"; do printf '%s\\n' "$word"; done; echo "PYTHONPATH=$PYTHONPATH"; echo "HOME=$HOME" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""

NOTHING = ["make: Nothing to be done for 'setup'."]


@pytest.fixture
def checkout(tmp_path):
    """A Makefile with an environment that is ready, in a folder whose name is a hard one."""
    root = tmp_path / "größe of it"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "scripts").mkdir()
    for name in ("bootstrap.lock", "requirements.lock", "pyproject.toml"):
        (root / name).touch()
    shutil.copy(ROOT / "Makefile", root)
    (root / "scripts" / "setup.sh").write_text('echo "set-up with $1 of $2"; mkdir -p "$2"\n')
    (root / ".venv" / "bin" / "python").write_text(PYTHON)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    (root / ".venv" / ".study-ready").write_text(f"{root}\n")
    return root


def make(root, *arguments, **variables):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "STUDY", "MFLAGS"))
    }
    command = ["make", "-C", str(root), "--no-print-directory", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment | variables, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def config(lines):
    """What Snakemake reads."""
    read = parse_config([line for line in lines[lines.index("--config") + 1 :] if "=[" in line])
    return {name: text for name, (text,) in read.items()}


@pytest.mark.parametrize(
    "value", ["007", "a=\"b c\" d='e'", "~/my data #1", "größe, 日本", "experts=/x/{task}/y.pt", "1e3", "it's"]
)
def test_a_value_arrives_as_it_was_written(checkout, value):
    told = config(make(checkout, "study", f"PARAMS={value}", f"TASKS={value}", f"DATA_ROOT={value}"))
    assert (told["params"], told["tasks"], told["data_root"]) == (value, value, value)
    assert (told["profile"], told["seeds"]) == ("tiny", "0")


@pytest.mark.parametrize(
    ("given", "seeds"), [([], "0 1 2 3 4"), (["SEED=3"], "3"), (["SEEDS=4 5"], "4 5"), (["SEED=3", "SEEDS=4"], "4")]
)
def test_reproduce_takes_the_seed_that_was_named(checkout, given, seeds):
    told = config(make(checkout, "reproduce", *given))
    assert (told["seeds"], told["profile"]) == (seeds, "tiny-full")


def test_everything_can_be_written_elsewhere(checkout, tmp_path):
    lines = make(checkout, "study", f"STUDY_OUT={tmp_path / 'out'}")
    assert lines[lines.index("--directory") + 1] == str(tmp_path / "out")
    assert (tmp_path / "out").is_dir()
    assert "--directory" not in make(checkout, "study")
    lines = make(checkout, "study", "STUDY_OUT=beside it")
    assert lines[lines.index("--directory") + 1] == f"{checkout}/beside it"
    shutil.rmtree(checkout / ".venv")
    assert f"set-up with python3 of {tmp_path}/out/.venv" in make(checkout, "setup", f"STUDY_OUT={tmp_path / 'out'}")


def test_a_moved_checkout_uses_its_own_library_and_is_set_up_again(checkout, tmp_path):
    assert f"PYTHONPATH={checkout}" in make(checkout, "study", PYTHONPATH="/elsewhere")
    assert make(checkout, "setup") == NOTHING
    moved = tmp_path / "moved"
    shutil.copytree(checkout, moved)
    assert make(moved, "setup") == ["set-up with python3 of .venv"]
    assert make(moved, "setup") == NOTHING
    assert f"PYTHONPATH={moved}" in make(moved, "study")


@pytest.mark.parametrize("gone", ["bin/python", ".study-ready"])
def test_an_environment_without_its_python_is_set_up_again(checkout, gone):
    (checkout / ".venv" / gone).unlink()
    assert make(checkout, "setup") == ["set-up with python3 of .venv"]


@pytest.mark.parametrize("home", ["", "/nowhere/to/be/found"])
def test_without_a_home_there_is_one_in_the_cache(checkout, home):
    assert f"HOME={checkout}/data/cache/home" in make(checkout, "study", HOME=home)
    assert f"HOME={checkout.parent}" in make(checkout, "study", HOME=str(checkout.parent))


# --- the set-up: what a run that was stopped has left

STAND_IN = """#!/bin/sh
# A Python that makes an environment of stand-ins and logs what it is asked for.
case "$*" in
  "-m venv --clear "*)
    echo "made anew" >> {log}
    rm -rf "$4"; mkdir -p "$4/bin"; touch "$4/pyvenv.cfg" "$4/pip-is-there"
    cp {me} "$4/bin/python"; printf '#!/bin/sh\\ntrue\\n' > "$4/bin/uv"; chmod +x "$4/bin/uv" ;;
  "-m pip --version") test -e "$(dirname "$0")/../pip-is-there" ;;
  "-m ensurepip --upgrade") test -e {mends} && touch "$(dirname "$0")/../pip-is-there" ;;
  "-m pip install"*) echo "pip$(case "$*" in *--force*) echo " again";; esac)" >> {log}
    case "$*" in *--force*) printf '#!/bin/sh\\ntrue\\n' > "$(dirname "$0")/uv" ;; esac ;;
  --version) echo "Python 3.13.0" ;;
  *) true ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """Run setup.sh with a stand-in; gives what that was asked for."""
    python, log = tmp_path / "python3", tmp_path / "log"
    python.write_text(STAND_IN.format(log=log, me=python, mends=tmp_path / "ensurepip-works"))
    python.chmod(0o755)

    def run():
        log.write_text("")
        command = ["sh", str(ROOT / "scripts" / "setup.sh"), str(python), str(tmp_path / "venv")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        return log.read_text().splitlines() if done.returncode == 0 else done.stderr

    return run


def test_a_set_up_begins_once_and_goes_on(set_up):
    assert set_up() == ["made anew", "pip"]
    assert set_up() == ["pip"]


def test_an_environment_without_pip_is_mended_or_made_anew(set_up, tmp_path):
    set_up()
    (tmp_path / "venv" / "pip-is-there").unlink()
    assert set_up() == ["made anew", "pip"]
    (tmp_path / "venv" / "pip-is-there").unlink()
    (tmp_path / "ensurepip-works").touch()
    assert set_up() == ["pip"]


def test_a_python_that_is_gone_and_a_uv_that_does_not_run(set_up, tmp_path):
    set_up()
    (tmp_path / "venv" / "bin" / "uv").write_text("#!/bin/sh\nexit 1\n")
    assert set_up() == ["pip", "pip again"]
    (tmp_path / "venv" / "bin" / "python").unlink()
    (tmp_path / "venv" / "bin" / "python").symlink_to("/gone/python3")
    assert set_up() == ["made anew", "pip"]


def test_packages_that_may_be_there_by_half_are_installed_anew(set_up, tmp_path):
    set_up()
    whole = (tmp_path / "venv" / "bin" / "uv").read_text()
    (tmp_path / "venv" / "bin" / "uv").write_text('#!/bin/sh\n[ "$1" = --version ] || kill -9 $PPID\n')
    (tmp_path / "venv" / "half").touch()
    set_up()  # is killed by that
    assert set_up() == ["made anew", "pip"]
    assert (tmp_path / "venv" / "bin" / "uv").read_text() == whole and not (tmp_path / "venv" / "half").exists()
    assert set_up() == ["pip"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_environment_knows_where_the_project_lies(tmp_path, locale):
    root, venv = tmp_path / "größe of it", tmp_path / "venv"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "__init__.py").write_text("WHERE = 'here'")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python, plain = str(venv / "bin" / "python"), {"PATH": os.environ["PATH"], "LC_ALL": locale}
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True, env=plain).stdout
    (Path(site.strip()) / "pip.py").touch()
    (venv / "bin" / "uv").write_text("#!/bin/sh\n")
    (venv / "bin" / "uv").chmod(0o755)
    subprocess.run(["sh", str(ROOT / "scripts" / "setup.sh"), "python3", str(venv)], check=True, cwd=root, env=plain)
    found = [python, "-c", "import lib; print(lib.WHERE)"]
    for each in ("C", "C.UTF-8"):
        run = subprocess.run(found, capture_output=True, text=True, cwd=tmp_path, env=plain | {"LC_ALL": each})
        assert run.stdout == "here\n", run.stderr


def test_a_copy_with_its_environment_uses_its_own_library_also_without_make(tmp_path):
    root = tmp_path / "größe of it"
    (root / "lib").mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    python, purelib = root / ".venv" / "bin" / "python", "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-c", purelib], capture_output=True, text=True, check=True).stdout
    (Path(site.strip()) / "pip.py").touch()
    (root / ".venv" / "bin" / "uv").symlink_to(shutil.which("true"))
    subprocess.run(["sh", str(ROOT / "scripts" / "setup.sh"), "python3", ".venv"], check=True, cwd=root)
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    for each in (root, tmp_path / "copy"):
        (each / "lib" / "__init__.py").write_text(f"WHERE = {each.name!r}", encoding="utf-8")
        command = [str(each / ".venv" / "bin" / "python"), "-c", "import lib; print(ascii(lib.WHERE))"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert run.stdout == f"{each.name!a}\n", run.stderr


def test_only_folders_were_made_or_it_is_none(set_up, tmp_path):
    (tmp_path / "venv" / "lib" / "python3.13").mkdir(parents=True)
    (tmp_path / "venv" / "lib64").symlink_to("lib")
    assert set_up() == ["made anew", "pip"]
    (tmp_path / "venv" / "pyvenv.cfg").unlink()
    (tmp_path / "venv" / "pip-is-there").unlink()
    assert "exists and is no virtual environment" in set_up()
