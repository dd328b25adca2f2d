#!/bin/sh
# Set-up of the study, called by make:  setup.sh PYTHON VENV
# Virtual environment -> pip installs uv and setuptools (by hash) -> uv installs everything (by hash) -> where the project lies.
# Whenever it is stopped, the next call goes on, or begins again where that is needed.
# pip alone would do, but takes several times as long. Without build isolation nothing unpinned is fetched for a build.
set -eu
python=$1
venv=$2

fail() {
    printf '\nSet-up stopped: %s\n' "$1" >&2
    exit 1
}
recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
# A set-up that was stopped while it made the environment leaves one with Python and without a pip that works.
usable() {
    recent_enough "$1" && { "$1" -m pip --version || { "$1" -m ensurepip --upgrade && "$1" -m pip --version; }; }
}

# The project itself is found where it lies: nothing is built, and nothing is written into the checkout. In ASCII, since
# Python reads such a file by the locale and does not start at all where it cannot. An environment inside the checkout says
# it as seen from there: of a copy of both, opened by an editor, it is the copy.
tell_where() {
    "$venv/bin/python" -c 'import os, pathlib, sys, sysconfig as s
inside = os.path.relpath(*map(os.path.realpath, (os.getcwd(), sys.prefix)))
place = f"os.path.join(sys.prefix, {inside!a})" if set(inside.split(os.sep)) == {".."} else ascii(os.getcwd())
line = f"import os, sys; sys.path.append(os.path.abspath({place}))\n"
pathlib.Path(s.get_path("purelib"), "concrete_subspace_study.pth").write_text(line)' ||
        fail "$venv cannot be written to (message above)"
}

if [ -d "$venv/conda-meta" ]; then
    # conda has installed the same lock already (environment.yml); only the project itself is missing.
    "$venv/bin/python" -c 'import papermill, snakemake, torch' ||
        fail "$venv is a conda environment without the study's packages; run: conda env update -f environment.yml"
    tell_where
    exit 0
fi

# A set-up that was stopped while it installed may have left half of a package that looks whole to uv and pip, so the
# environment is made anew; what was downloaded lies in their caches. What says that it is one goes last.
installing="$venv/.study-installing"
if [ -e "$installing" ]; then
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name pyvenv.cfg ! -name .study-installing -exec rm -rf {} +
    rm -f "$installing"
fi

if ! usable "$venv/bin/python" >/dev/null 2>&1; then
    command -v "$python" >/dev/null 2>&1 ||
        fail "there is no '$python' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"
    recent_enough "$python" ||
        fail "'$python' is $("$python" --version 2>&1), the study needs 3.11 or newer; name one: make PYTHON=python3.12"
    if [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(find "$venv/" -type f 2>/dev/null | head -n 1)" ]; then
        fail "$venv exists and is no virtual environment; name another folder: make VENV=..."
    fi
    echo "Creating the virtual environment $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        fail "'$python -m venv' failed; on Debian and Ubuntu it needs: apt install python3-venv"
fi

echo "Installing the pinned packages into $venv (a few minutes the first time; later calls skip this)"
: >"$installing" || fail "$venv cannot be written to (message above)"
bootstrap() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes "$@" -r bootstrap.lock
}
{ bootstrap && { "$venv/bin/uv" --version >/dev/null 2>&1 || bootstrap --force-reinstall; }; } ||
    fail "pip could not install uv (message above); is the package index reachable?"
"$venv/bin/uv" pip install --python "$venv/bin/python" --no-build-isolation --require-hashes \
    -r requirements.lock ||
    fail "uv could not install requirements.lock (message above); the same command continues with what is downloaded"
tell_where
rm -f "$installing"
