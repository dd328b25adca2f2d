# The study as a graph: which notebook needs which, and what each leaves behind.
#
# `make study` calls this; it can be called directly too, also on a cluster:
#   python -m snakemake --cores 2 --config profile=tiny seed=1
#   python -m snakemake --executor slurm --jobs 3 --config profile=clip-vit-b-32     (docs/clusters.md)
#   python -m snakemake --cores 8 --config profile=clip-vit-l-14 gpus=4              several GPUs for each notebook
import atexit
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

try:
    from lib.adaptation.needs import FLOAT, Needs, plan
    from lib.runtime.disk import exclusive
    from lib.runtime.parameters import checked, typed
    from lib.study.inputs import label_of
    from lib.study.profiles import PROFILES, SETTINGS, Settings, family_of, get_profile, text_names
except ValueError as error:  # data/profiles.toml cannot be read
    raise WorkflowError(str(error)) from None

# One row per notebook: the notebooks whose results it needs, the tables it writes.
NOTEBOOKS = {
    "00_pretraining": ([], ["pretraining", "probe"]),
    "01_fine_tuning": ([], ["learning_curves", "cross_evaluation"]),
    "02_task_vectors": (["01_fine_tuning"], ["norms", "similarity"]),
    "03_fusion_baselines": (["02_task_vectors"], ["fusion", "scaling", "baselines", "per_task"]),
    "04_concrete_mask": (["02_task_vectors"], ["mask_samples", "convergence", "planted"]),
    "05_test_time_adaptation": (["02_task_vectors"], ["adaptation", "adaptation_curve", "coefficients"]),
    "06_concrete_task_arithmetic": (["02_task_vectors"], ["concrete_task_arithmetic", "mask_curve", "masked_experts"]),
    "07_concrete_adamerging": (
        ["05_test_time_adaptation"],
        ["concrete_adamerging", "phases", "concrete_coefficients", "density", "mask_agreement"],
    ),
    "08_when_adaptation_fails": (["02_task_vectors"], ["failures", "objectives"]),
    "09_concrete_on_any_base": (
        ["02_task_vectors"],
        ["rates", "any_base", "few_coefficients", "directions", "per_task_adapted", "controls"],
    ),
    "10_ablation_temperature": (
        ["02_task_vectors"],
        ["temperature", "gradient_noise", "temperature_curve", "temperature_taught"],
    ),
    # These three take the learning rates that notebook 09 has chosen, from the store.
    "11_ablation_task_count": (["09_concrete_on_any_base"], ["task_count", "every_subset", "mask_gain", "step_cost"]),
    "12_ablation_protocol": (["09_concrete_on_any_base"], ["protocol", "protocol_taught", "hypergradient"]),
    "13_generalisation": (
        ["09_concrete_on_any_base"],
        ["unseen_tasks", "unseen_pairs", "corruptions", "triples", "similar_tasks"],
    ),
    "14_architectures": ([], ["activation_variance", "running_statistics", "architectures"]),
    "15_real_images": ([], ["learning_curves", "real_images", "weak_experts"]),
    "17_unlabelled_data": (["02_task_vectors"], ["unlabelled_data"]),
    "20_language_fine_tuning": ([], ["learning_curves", "cross_evaluation", "similarity", "adapter_spaces"]),
    "21_language_fusion": (["20_language_fine_tuning"], ["fusion", "scaling", "baselines"]),
    "22_language_concrete": (
        ["20_language_fine_tuning"],
        ["concrete_task_arithmetic", "adaptation", "concrete_adamerging", "adaptation_curve", "mask_curve", "density",
         "first_token", "against_the_paper"],
    ),
    "30_merge_your_own": ([], ["before_and_after"]),
    "90_results": (
        ["03_fusion_baselines", "05_test_time_adaptation", "06_concrete_task_arithmetic", "07_concrete_adamerging",
         "09_concrete_on_any_base"],
        ["results", "against_the_paper", "which_method"],
    ),
}
ONCE = ("00_pretraining", "04_concrete_mask")  # of several seeds, the first runs these for all
FEWER = ("08", "09", "10", "11", "12", "13", "14", "17")  # ablations: of many seeds, the first few (ablation_seeds)


def told(name):
    """What --config says, as text; make says it in a list, since Snakemake takes a bare 007 for a number."""
    value = config.get(name)
    value = value[0] if isinstance(value, list) else value
    return "" if value is None else str(value)


# With several GPUs torchrun starts each notebook as many times, and the processes share its work (lib/runtime/ranks.py).
try:
    GPUS = int(told("gpus") or 1)
except ValueError:
    GPUS = 0
if GPUS < 1:
    raise WorkflowError(f"gpus: '{told('gpus')}' is no number of GPUs, as in gpus=4")

# Everything that a run leaves is below the working directory: the checkout, or STUDY_OUT (`--directory`), where that
# cannot be written. What is read lies beside this file.
HERE = Path(os.path.relpath(workflow.basedir))
if HERE != Path():
    os.environ["STUDY_OUT"] = os.getcwd()
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")]))

# A model this small does not keep the cores busy, and starting a notebook is single-threaded work, so on a CPU two
# notebooks that do not need each other run side by side, each with half of the cores. An accelerator they would share.
# Nothing runs beside the one notebook of a cluster's job.
ALONE = workflow.remote_exec or GPUS > 1 or shutil.which("nvidia-smi") or sys.platform == "darwin"
AT_ONCE = 1 if ALONE else 2
CORES = workflow.resource_settings.cores or 1  # of this machine; a cluster's scheduler is told by cpus_per_task

PYTHON = shlex.quote(sys.executable)
START = PYTHON  # how a notebook is started
if GPUS > 1:
    threads_each = max(1, CORES // GPUS)
    START = f"env OMP_NUM_THREADS={threads_each} {PYTHON} -m torch.distributed.run --standalone --nproc-per-node {GPUS}"
SEEDS = (told("seeds") or told("seed") or "0").split()
if not all(seed.isdecimal() for seed in SEEDS) or len(set(SEEDS)) < len(SEEDS):
    raise WorkflowError(f"seeds: '{' '.join(SEEDS)}' are no different whole numbers, as in SEEDS=\"0 1 2\"")
SEEDS = [int(seed) for seed in SEEDS]
if not (told("ablation_seeds") or "3").isdecimal() or told("ablation_seeds") == "0":
    raise WorkflowError(f"ablation_seeds: '{told('ablation_seeds')}' is no number of seeds, as in ABLATION_SEEDS=5")
ABLATION_SEEDS = int(told("ablation_seeds") or 3)
# The notebooks' parameters: only what was set, so that each notebook's own defaults hold otherwise.
TEXTS = {name: told(name) for name in ("data_root", "tasks") if told(name).strip()}
TEXTS["profile"] = told("profile") or "tiny"
PARAMS = {}


def words(text):
    """The words of a parameter, as a shell has them; of a quote at its end Snakemake's command line has robbed it."""
    for lost in ("", "'", '"'):
        try:
            return shlex.split(text + lost)
        except ValueError:
            continue
    raise WorkflowError(f"params: a quote in {text} is not closed")


for pair in words(told("params")):
    name, equals, value = pair.partition("=")
    if not (equals and name.isidentifier()):
        raise WorkflowError(f"params: '{pair}' is not name=value, as in params=\"mask_steps=50 temperature=0.5\"")
    if name in ("seed", "profile") or name in TEXTS:
        raise WorkflowError(f"params: '{name}' has a variable of its own; say {name.upper()}={value}")
    PARAMS[name] = value

# The same check as in the notebooks, before anything runs, and the same name: changed parameters, other data and other
# experts file their results under names of their own.
try:
    kind = PROFILES.get(TEXTS["profile"])
    texts = [*text_names(Settings), *(text_names(type(kind)) if kind else ())]
    TEXTS |= {name: PARAMS.pop(name) for name in texts if name in PARAMS}
    fields = {name: typed(value) for name, value in PARAMS.items()} | TEXTS
    settings = checked(Settings, {name: value for name, value in fields.items() if name in SETTINGS})
    profile = get_profile(TEXTS["profile"], **{k: v for k, v in fields.items() if k not in SETTINGS})
except ValueError as error:
    raise WorkflowError(str(error)) from None
LABEL = label_of(profile, settings.data_root, precision=settings.precision, device=settings.device)
ARGUMENTS = [part for name, value in TEXTS.items() for part in ("-r", name, value)]
ARGUMENTS += [part for name, value in PARAMS.items() for part in ("-p", name, value)]
ARGUMENTS = shlex.join(ARGUMENTS)  # no rule's params: a {task} in it would be taken for a wildcard
# A profile runs the notebooks of its family.
NOTEBOOKS = {name: row for name, row in NOTEBOOKS.items() if family_of(name) == profile.family}
if len(NOTEBOOKS) * len(SEEDS) == 1:  # as for real images: nothing could run beside it
    AT_ONCE = 1
# Main memory that a job of a cluster asks for, from the memory plan, for the models of which this is known: parameters that
# are merged, other ones, and the bytes that autograd keeps for an input (measured by lib.adaptation.memory_plan). What
# the user says holds instead (mem_mb among --default-resources, or --set-resources). See docs/clusters.md.
SIZES = {
    ("vision", ""): (1_304_576, 311_809, 508_504),
    ("vision", "ViT-B-32"): (87_878_656, 63_428_097, 29_993_256),
    ("vision", "ViT-B-16"): (86_221_824, 63_428_097, 118_167_384),
    ("vision", "ViT-L-14"): (303_966_208, 123_650_305, 407_884_696),
}
PROCESS = 4e9  # what a notebook has beside models and vectors: 1.3 GB with the tiny model, more with CUDA's libraries
SAID = {name: value.raw for name, value in (workflow.resource_settings.default_resources or {}).items()}


def memory(exact):
    """A job's mem_mb as a resource of its rule; nothing where the model is not known or the user has said it."""
    if (profile.family, profile.model) not in SIZES or SAID.get("mem_mb") or "mem_mb_per_cpu" in SAID:
        return {}
    merged, other, row = SIZES[profile.family, profile.model]
    tasks = len(profile.task_names)
    vectors = FLOAT * merged * (tasks + 4)  # on an accelerator only what is read before it goes there
    if not any("gpu" in f"{name} {value}" for name, value in SAID.items()):
        own = -(-tasks // GPUS) * profile.adaptation_batch
        needs = Needs(
            merged, tasks, own, max(profile.micro_batch, profile.adaptation_batch) if profile.micro_batch else own, row,
            frozen_bytes=FLOAT * other, learn_mask=True, exact=exact, vectors=profile.task_vector_dtype, processes=GPUS,
        )  # fmt: skip
        # methods that merge without adaptation hold up to three stacks of task vectors
        vectors = max(sum(plan(needs).values()) * GPUS, FLOAT * merged * (3 * tasks + 3))
    return {"mem_mb": round((PROCESS * GPUS + vectors) / 1e6)}


RUNS = f"runs/{LABEL}"  # ignored by git, like everything that a run leaves; only `make publish` writes what is committed


def digest(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def code_of(notebook):
    """The code cells of a notebook, without prose and outputs: `make publish` changes only outputs."""
    cells = json.loads((HERE / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


# A notebook runs again when its code, any module, or what is shipped and read has changed. That is decided by content,
# which goes into the rule's params; times of files say nothing after a clone. Sources are therefore `ancient` inputs.
# A change of lib repeats every notebook: simple, safe, and cheap, because long results are kept by lib's own cache.
READ = ("lib/**/*.py", "worlds/**/*.py", "data/profiles.toml", "data/registry/*", "data/reference/*", "data/tiny_*/*")
SHARED = digest(
    [
        (path.relative_to(HERE).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(path for pattern in READ for path in HERE.glob(pattern))
        if path.is_file()
    ]
)

# Snakemake's own lock is a file that a killed run leaves behind, and then refuses every later run. `make study` turns
# it off (--nolock) and uses this one, which the operating system drops with the process, however that ends.
HOLDER = Path(".snakemake/running")  # which process holds the lock, and where
if workflow.is_main_process and not workflow.dryrun:
    run_lock = exclusive(Path(".snakemake"), wait=False)
    try:
        run_lock.__enter__()
        atexit.register(run_lock.__exit__, None, None, None)
        HOLDER.write_text(f"{os.getpid()} {platform.node()}")
    except BlockingIOError:
        pid, _, machine = HOLDER.read_text().partition(" ") if HOLDER.is_file() else ("", "", "")
        who = f" (process {pid}{f' on {machine}' if machine != platform.node() else ''})" if pid else ""
        if pid and machine == platform.node() and not psutil.pid_exists(int(pid)):
            who = f" (process {pid} is gone, what it started is not)"
        raise WorkflowError(
            f"another `make study` is running in this folder{who}; wait for it, or stop it first"
        ) from None

# What Snakemake says between two notebooks drowns what the notebooks say; so does its echo of an error that the
# notebook has already explained. The whole record is in .snakemake/log.
CHATTER = (
    "Select jobs", "Execute ", "Using shell", "Building DAG", "Touching output", "Complete log", "Elapsed time",
    "RuleException:\nCalledProcessError", "Cannot restore", "Shutting down", "Exiting because",
    "WorkflowError:\nAt least one job",
)  # fmt: skip
logger.addFilter(lambda record: workflow.dryrun or not record.getMessage().lstrip().startswith(CHATTER))


def seeds_of(notebook):
    if notebook in ONCE:
        return SEEDS[:1]
    return SEEDS[:ABLATION_SEEDS] if notebook.startswith(FEWER) else SEEDS


def executed(notebook, seed):
    """The executed copies of a notebook that something of this seed needs."""
    seeds = seeds_of(notebook)
    return f"{RUNS}/seed{seed if seed in seeds else seeds[0]}/{notebook}.ipynb"


ALL = [executed(notebook, seed) for notebook in NOTEBOOKS for seed in seeds_of(notebook)]


rule all:
    default_target: True
    input:
        f"{RUNS}/figures.done",
        ALL,
        [
            f"{RUNS}/seed{seed}/{table}.csv"
            for notebook, (_, tables) in NOTEBOOKS.items()
            for seed in seeds_of(notebook)
            for table in tables
        ],


for notebook, (needs, tables) in NOTEBOOKS.items():
    for number, seed in enumerate(seeds_of(notebook)):

        rule:
            name:
                notebook if len(SEEDS) == 1 else f"{notebook}_seed{seed}"
            input:
                source=ancient(f"{HERE / 'notebooks' / notebook}.ipynb"),
                needs=[executed(need, seed) for need in needs],
            output:
                executed=executed(notebook, seed),
                tables=[f"{RUNS}/seed{seed}/{table}.csv" for table in tables],
            params:
                code=digest(code_of(notebook), SHARED, ARGUMENTS),
                seed=seed,
            # Of two that could run, the one of the earlier seed, then the one with the smaller number.
            priority: 1000 - 100 * number - int(notebook[:2])
            threads: max(1, CORES // AT_ONCE)
            resources:
                **memory(exact=notebook.startswith("12")),
            # --with-log and no `log:`, because Snakemake deletes the log of an attempt that failed when it tries again.
            shell:
                "exec {START} -m scripts.run_notebook {input.source:q} {output.executed:q} --with-log --with-parent"
                " {ARGUMENTS} -p seed {params.seed}"


rule figures:
    localrule: True  # on a cluster, too: it only draws
    input:
        ALL,
    output:
        touch(f"{RUNS}/figures.done"),
    params:
        results=shlex.quote(RUNS),
        seed=SEEDS[0],
    shell:
        "{PYTHON} -m lib.figures --results {params.results} --seed {params.seed}"


onsuccess:
    print(f"\nDone. Executed notebooks and tables: {RUNS}/seed*   figures: {RUNS}/figures", flush=True)
    command = [sys.executable, "-m", "scripts.compare", "--root", str(HERE), "--run", RUNS]
    subprocess.run([*command, "--seeds", " ".join(map(str, SEEDS))])


onerror:
    why = f"the message above, or on a cluster the end of the notebook's log in {RUNS}/seed*, says why"
    print(f"\nThe study stopped; {why}. The same command continues with what is missing.", flush=True)
