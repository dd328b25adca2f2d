# Every command of the study. `make help` lists them; each does the set-up first if it is needed.
#
#   make study                                     the tiny profile, offline, on any CPU
#   make study PROFILE=tiny-real DATA_ROOT=~/data  the same line on real images
#   make reproduce                                 five seeds, full budgets, as the committed tables were made
#   make study SEED=1 PARAMS="mask_steps=50"       another seed; any parameter of the notebooks
#   make study PROFILE=clip-vit-l-14 GPUS=4        several GPUs share the work of each notebook
#   make study VENV=$CONDA_PREFIX                  inside the conda environment of environment.yml
#   make study STUDY_OUT=~/study                   everything that is written goes there; the checkout may be read-only

PYTHON ?= python3
# Where everything goes that is written, instead of the checkout: runs, the cache and, if the checkout has none, .venv.
STUDY_OUT ?=
override STUDY_OUT := $(patsubst ~/%,$(HOME)/%,$(STUDY_OUT))
ifneq ($(STUDY_OUT),)
override STUDY_OUT := $(if $(filter /%,$(STUDY_OUT)),,$(CURDIR)/)$(STUDY_OUT)
endif
VENV ?= $(if $(wildcard .venv/.study-ready),,$(if $(STUDY_OUT),$(STUDY_OUT)/)).venv
PROFILE ?= tiny
SEED ?= 0
SEEDS ?= $(SEED)
# How many of them run the ablations (notebooks 08 to 14 and 17), the first ones.
ABLATION_SEEDS ?= 3
DATA_ROOT ?=
TASKS ?=
PARAMS ?=
# Processes that share each notebook, with a GPU each (without any, cores). The results are the same up to rounding.
GPUS ?= 1
# Anything else for Snakemake, for example FLAGS=--dry-run or FLAGS="--executor slurm".
FLAGS ?=
# All cores that this process may use; on a CPU two notebooks run side by side, each with half of them.
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

PY := $(VENV)/bin/python
READY := $(VENV)/.study-ready
PEERS := $(VENV)/.study-peers-ready
# Wheels of some hundred megabytes take longer than uv's 30 seconds on a slow line.
export UV_HTTP_TIMEOUT ?= 300
# This checkout's `lib`, also where it was moved or copied with its environment; what else is set belongs to other things.
export PYTHONPATH := $(CURDIR)
# Files and what is printed are UTF-8, whatever the locale.
export PYTHONUTF8 := 1
# One place holds the set-up of this project: a virtual environment that happens to be active must not get in.
unexport VIRTUAL_ENV PYTHONHOME
# Without bytecode every process compiles all that it imports anew: ten seconds for each notebook.
unexport PYTHONDONTWRITEBYTECODE
ifneq ($(STUDY_OUT),)
export STUDY_OUT
export PYTHONPYCACHEPREFIX := $(STUDY_OUT)/data/cache/bytecode
endif
# Snakemake, Jupyter and others want a home: where there is none that can be written to, one in the cache.
ifneq ($(shell [ -n "$$HOME" ] && [ -d "$$HOME" ] && [ -w "$$HOME" ] && echo is),is)
export HOME := $(or $(STUDY_OUT),$(CURDIR))/data/cache/home
$(shell mkdir -p "$(HOME)")
endif
# A text as one word of the shell, and within that as YAML's list of one text: Snakemake makes a number of a bare 007, and
# cuts what follows a #.
text = '$(subst ','\'',['$(subst ','',$(1))'])'

# One process per core for the tests, with one thread each.
ONE_THREAD = OMP_NUM_THREADS=1

# The tests of notebooks, the longest first, so that none of them is left for one core at the end. Notebook 15 needs images
# and weights that nothing here ships; tests/vision/test_real_images.py runs it on a small mirror.
LONG = 22_language_concrete 07_concrete_adamerging 14_architectures 21_language_fusion 03_fusion_baselines \
  09_concrete_on_any_base 20_language_fine_tuning 12_ablation_protocol 13_generalisation 08_when_adaptation_fails \
  30_merge_your_own
LONG_FIRST = $(LONG:%=notebooks/%.ipynb) \
  $(filter-out $(LONG:%=notebooks/%.ipynb) notebooks/15_real_images.ipynb,$(sort $(wildcard notebooks/*.ipynb)))

.DEFAULT_GOAL := help
.PHONY: help setup study language real merge reproduce test scale test-peers benchmark figures report lab publish pretrain lint format lock clean distclean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create the environment (every command below does it by itself)

# The stamp lies inside the environment, so deleting the environment deletes it too. It says for which checkout it is: an
# environment that was moved or copied along, or whose Python is gone, is set up again.
ifneq ($(shell [ "$$(cat "$(READY)" 2>/dev/null)" = "$(CURDIR)" ] && $(PY) -ISc "print('runs')" 2>/dev/null),runs)
$(READY): again
endif
.PHONY: again
again:
$(READY): bootstrap.lock requirements.lock pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh "$(PYTHON)" "$(VENV)"
	@printf '%s\n' "$(CURDIR)" > $@

# Everything that a run leaves is below runs/, which git ignores; only `make publish` writes what is committed.
study: $(READY) ## Run the notebooks in order and draw the figures; continues where it stopped (GPUS=4: on several)
	@$(if $(STUDY_OUT),mkdir -p "$(STUDY_OUT)" &&) \
	$(PY) -m snakemake --cores $(CORES) --nolock --rerun-incomplete --quiet host reason rules progress \
	  $(if $(STUDY_OUT),--directory "$(STUDY_OUT)") $(FLAGS) \
	  --config profile=$(call text,$(PROFILE)) seeds=$(call text,$(SEEDS)) data_root=$(call text,$(DATA_ROOT)) \
	  tasks=$(call text,$(TASKS)) gpus=$(call text,$(GPUS)) params=$(call text,$(PARAMS)) \
	  ablation_seeds=$(call text,$(ABLATION_SEEDS))

language: $(READY) ## Run the notebooks on language (20 to 22) in order; PROFILE=flan-t5-base for the paper's models
	@$(MAKE) --no-print-directory study PROFILE=$(if $(filter file,$(origin PROFILE)),tiny-t5,$(PROFILE))

real: $(READY) ## Run notebook 15 on real images (hours on a CPU; DATA_ROOT=folder of a mirror, else from the hub)
	@$(MAKE) --no-print-directory study PROFILE=$(if $(filter file,$(origin PROFILE)),deit-tiny,$(PROFILE))

merge: $(READY) ## Run notebook 30 on your own experts: DATA_ROOT, TASKS, PARAMS="model=... pretrained=... experts='...{task}'"
	@$(MAKE) --no-print-directory study PROFILE=$(if $(filter file,$(origin PROFILE)),your-own,$(PROFILE))

# The profiles "tiny" and "tiny-t5" have their full budgets in "tiny-full" and "tiny-t5-full"; every other is full as it is.
reproduce: $(READY) ## Run all seeds with full budgets; continues where it stopped (five, ablations with three; SEEDS, ABLATION_SEEDS)
	@$(MAKE) --no-print-directory study PROFILE=$(patsubst tiny-t5,tiny-t5-full,$(patsubst tiny,tiny-full,$(PROFILE))) SEEDS="$(if $(filter file,$(origin SEEDS)),$(if $(filter file,$(origin SEED)),0 1 2 3 4,$(SEED)),$(SEEDS))"

test: $(READY) ## Run all tests: unit and property tests, then every notebook
	@$(ONE_THREAD) $(PY) -m pytest -n $(CORES) --dist loadfile
	@$(ONE_THREAD) $(PY) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env $(LONG_FIRST)

test-peers: $(PEERS) ## Compare the fusion methods with FusionBench, PEFT and mergekit (installs them first)
	@$(PY) -m pytest tests/peers

scale: $(READY) ## Run the paper's path on a stand-in for the hub, at its full size (8 GB disk, 10 GB memory), and what else is slow
	@$(PY) -m pytest -m scale

# On top of the study's own packages, of which it changes none: peers.lock is constrained by requirements.lock.
$(PEERS): $(READY) peers.lock
	@echo "Installing the libraries to compare with into $(VENV)"
	@test -x $(VENV)/bin/uv || { echo "There is no uv in $(VENV) (a conda environment?); run: make test-peers VENV=.venv"; exit 1; }
	@$(VENV)/bin/uv pip install --python $(PY) --no-build-isolation --require-hashes -r peers.lock
	@touch $@

benchmark: $(PEERS) ## Time merging and whole adaptation steps against FusionBench (25 minutes; keep the machine quiet)
	@$(PY) -m benchmarks.merge_step
	@$(PY) -m benchmarks.adaptation
	@$(PY) -m lib.figures --benchmarks

# Without a PROFILE all committed sets: vision, language, real images.
figures: $(READY) ## Redraw the committed figures from the committed tables; runs no model
	@for profile in $(if $(filter file,$(origin PROFILE)),tiny-full tiny-t5-full deit-tiny,$(PROFILE)); do \
	  $(PY) -m lib.figures --profile $$profile --seed "$(SEED)" || exit 1; done

lab: $(READY) ## Open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks

report: $(READY) ## Write what README, docs and takeaways say of results from the committed tables
	@$(PY) -m scripts.report

publish: $(READY) ## Make a run's tables (PROFILE, SEEDS), outputs and figures the committed ones, ready to commit
	@$(PY) -m scripts.publish --profile "$(PROFILE)" --seeds "$(SEEDS)"
	@$(PY) -m lib.figures --profile "$(PROFILE)" --seed "$(firstword $(SEEDS))"
	@$(PY) -m scripts.report

pretrain: $(READY) ## Train the shipped models again: tiny CLIP, ConvNet and ViT, tiny T5 (up to an hour)
	@$(PY) -m worlds.training.tiny_clip
	@$(PY) -m worlds.training.backbones
	@$(PY) -m worlds.training.tiny_t5

lint: $(READY) ## Check style and format of code and notebooks, and which room imports which
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'

format: $(READY) ## Fix style and format where that is automatic
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# `--universal` and `fewest`: one version of everything for every Python >= 3.11 and every platform. bootstrap.lock holds
# what the set-up needs before it can read the other: uv, and the setuptools that builds the few source packages.
# The compile command is replaced by a neutral comment, so that no lock ever names an index.
COMPILE = $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

lock: $(READY) ## Choose versions anew and write the locks
	@$(COMPILE) --fork-strategy fewest --extra test pyproject.toml -o requirements.lock
	@$(COMPILE) --fork-strategy fewest --extra peers --constraint requirements.lock pyproject.toml -o peers.lock
	@printf 'uv>=0.9,<1\nsetuptools\n' | $(COMPILE) --constraint requirements.lock - -o bootstrap.lock
	@echo "Wrote requirements.lock, peers.lock and bootstrap.lock; the next command installs them."

clean: ## Remove what was generated (not .venv, not the committed results)
	rm -rf runs data/cache .snakemake .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find lib worlds scripts benchmarks tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean ## The same, and the virtual environment .venv
	rm -rf .venv
