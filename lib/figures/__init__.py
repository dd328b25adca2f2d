"""Every figure of the study, drawn from saved tables alone: `python -m lib.figures --profile tiny-full`.

A notebook shows a figure by the same function that this command calls, so what is committed below `figures/` is
what the notebook shows. Colours are seaborn's colour-blind-safe palette; heat maps use perceptually uniform maps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from lib.figures.ablations import (
    gradient_noise,
    temperature,
    temperature_curve,
    temperature_taught,
)
from lib.figures.backbones import activation_variance, architectures, running_statistics
from lib.figures.bases import any_base, few_coefficients, rates, unlabelled_data
from lib.figures.benchmarks import adaptation_benchmark, merge_step, merge_step_size
from lib.figures.counts import every_subset, mask_gain, step_cost, task_count
from lib.figures.curves import (
    adaptation_curve,
    bilevel,
    entropy_against_accuracy,
    mask_curve,
    mask_steps,
    phases,
)
from lib.figures.experts import (
    contact_sheet,
    cross_evaluation,
    learning_curves,
    norms,
    pretraining,
    probe,
    similarity,
)
from lib.figures.failures import objectives
from lib.figures.generalisation import (
    against_the_paper,
    corruptions,
    similar_tasks,
    triples,
    unseen_pairs,
    unseen_tasks,
)
from lib.figures.language import adapter_spaces, first_token
from lib.figures.mask import (
    convergence,
    density,
    mask_agreement,
    mask_samples,
    masked_experts,
    planted,
    relaxation,
)
from lib.figures.merging import (
    adaptation,
    baselines,
    by_task,
    coefficients,
    concrete_adamerging,
    concrete_coefficients,
    concrete_task_arithmetic,
    results,
    scaling,
    which_method,
)
from lib.figures.method import method
from lib.figures.own import before_and_after
from lib.figures.protocol import hypergradient, protocol, protocol_taught
from lib.figures.real import real_images, weak_experts
from lib.runtime.disk import ROOT, atomic_path
from lib.study.tables import all_seeds, load_table, seed_folders

Table = pd.DataFrame

# The figures that are drawn from the one table of their name: that of one seed, or mean and spread over all of them.
ONE_SEED = (
    pretraining, probe, learning_curves, cross_evaluation, norms, similarity, scaling, mask_samples,
    convergence, planted, before_and_after,
)  # fmt: skip
ALL_SEEDS = (
    adaptation_curve, coefficients, adaptation, mask_curve, concrete_task_arithmetic, masked_experts, phases,
    concrete_coefficients, concrete_adamerging, density, mask_agreement, results, unseen_tasks, corruptions,
    similar_tasks, against_the_paper, baselines, temperature, temperature_taught, gradient_noise, temperature_curve,
    task_count, every_subset, mask_gain, step_cost, unseen_pairs, triples,
    objectives, protocol, protocol_taught, hypergradient, adapter_spaces, first_token, architectures,
    running_statistics, activation_variance, real_images, weak_experts, rates, any_base, few_coefficients,
    unlabelled_data, which_method,
)  # fmt: skip
FIGURES: dict[str, Callable[[Table], Figure]] = {drawn.__name__: drawn for drawn in (*ONE_SEED, *ALL_SEEDS)}

# The figures that show a table again, from another side; the first of the tables that is there.
AGAIN: dict[Callable[[Table], Figure], tuple[str, ...]] = {
    entropy_against_accuracy: ("phases",),
    mask_steps: ("phases",),
    by_task: ("results", "real_images", "concrete_adamerging"),
}

# The figures that are drawn from no table, and a table of the notebook that shows them.
FORMULAS: dict[Callable[[], Figure], str] = {
    method: "mask_samples",
    relaxation: "mask_samples",
    bilevel: "phases",
}

# The figures of `make benchmark`, and the tables they are drawn from.
BENCHMARKS: dict[Callable[[Table], Figure], str] = {
    merge_step: "merge_step",
    merge_step_size: "merge_step",
    adaptation_benchmark: "adaptation",
}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically and without a date, so that an unchanged figure is an unchanged file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return path


def draw_all(results: Path, out: Path, seed: int = 0) -> list[Path]:
    """Draw every figure whose table is there.

    Args:
        results: folder with the tables of each seed, such as data/results/tiny-full or runs/tiny.
        out: where the figures go (of seeds other than 0: a folder of their own in it).
        seed: whose tables the figures of one seed are drawn from.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: if there are no tables of that seed.
    """
    tables, out = results / f"seed{seed}", out / f"seed{seed}" if seed else out
    if not list(tables.glob("*.csv")):
        raise FileNotFoundError(f"no saved tables of seed {seed} in {results}: run `make study` first")
    shown = (drawn for drawn, table in FORMULAS.items() if (tables / f"{table}.csv").is_file())
    written = [save(drawn(), out / f"{drawn.__name__}.png") for drawn in shown]
    if (tables / "contact_sheet.png").is_file():
        rows = list(load_table(tables / "learning_curves.csv")["task"].unique())
        sheet = Image.open(tables / "contact_sheet.png")
        written.append(save(contact_sheet(sheet, rows), out / "contact_sheet.png"))
    for name, drawn in FIGURES.items():
        if (tables / f"{name}.csv").is_file():
            several = drawn in ALL_SEEDS
            table = all_seeds(seed_folders(results, name), name) if several else load_table(tables / f"{name}.csv")
            written.append(save(drawn(table), out / f"{name}.png"))
    for drawn, names in AGAIN.items():
        name = next((name for name in names if (tables / f"{name}.csv").is_file()), "")
        if name:
            table = all_seeds(seed_folders(results, name), name)
            written.append(save(drawn(table), out / f"{drawn.__name__}.png"))
    return written


def draw_benchmarks(root: Path = ROOT) -> list[Path]:
    """Draw the benchmarks' figures into `figures/benchmarks/`, one set per machine in the table.

    Raises:
        FileNotFoundError: if nothing was measured yet.
    """
    folder, written = root / "data" / "benchmarks", []
    for drawn, name in BENCHMARKS.items():
        if not (folder / f"{name}.csv").is_file():
            continue
        machines = load_table(folder / f"{name}.csv").groupby("machine", sort=False)
        for number, (machine, table) in enumerate(machines):
            ending = "" if not number else "_" + "".join(letter if letter.isalnum() else "-" for letter in str(machine))
            written.append(save(drawn(table), root / "figures" / "benchmarks" / f"{drawn.__name__}{ending}.png"))
    if not written:
        raise FileNotFoundError("no tables in data/benchmarks: run `make benchmark` first")
    return written
