"""Figures of the ablation of the number of tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures.ablations import mean_and_std
from lib.figures.plotting import (
    OBJECTIVE_NAMES,
    PALETTE,
    RED,
    REFERENCE,
    in_order,
    method_colours,
    new_figure,
    percent_axis,
    same_limits,
    seed_count,
    shade,
)

Table = pd.DataFrame

NO_OBJECTIVE = "none"  # of methods that learn nothing
PARTS = {"encoder": "encoder, forward and backward", "rest": "everything else: draw, merge, pull, update"}
KINDS = {  # how far the sum of task vectors goes: colour and marker
    "averaging": (*method_colours(["Weight averaging"]).values(), "o"),
    "fixed factor": (*method_colours(["Task Arithmetic"]).values(), "s"),
    "tuned factor": (shade(0, 0.4), "^"),
}


def shares(table: Table) -> Table:
    """The share of the gap between the pre-trained model and the experts that a method closes, of each set of tasks.

    Args:
        table: count, subset, objective, method ("Zero-shot" and "Experts" among them), task, accuracy, seed.

    Returns:
        A row per set, objective, method and seed: accuracy (mean over the set's tasks) and `share`.
    """
    keys = ["count", "subset", "objective", "method", "seed"]
    means = table.groupby(keys, sort=False)["accuracy"].mean()
    low, high = (means.xs(end, level="method").droplevel("objective") for end in ("Zero-shot", "Experts"))
    rows = means.reset_index()
    places = pd.MultiIndex.from_frame(rows[low.index.names])
    low, high = low.reindex(places).to_numpy(), high.reindex(places).to_numpy()
    rows["share"] = (rows["accuracy"] - low) / (high - low)
    return rows[~rows["method"].isin(("Zero-shot", "Experts"))]


def task_count(table: Table) -> Figure:
    """Share of the gap closed against the number of merged tasks, a panel per objective; bars: over subsets and seeds.

    Args:
        table: see `shares`; the rows of objective "none" are in every panel.
    """
    rows = shares(table)
    objectives = [name for name in OBJECTIVE_NAMES if name in set(rows["objective"])]
    figure, panels = new_figure(6 + 4 * (len(objectives) - 1), 4.4, columns=len(objectives))
    panels = np.atleast_1d(panels)
    methods = in_order(rows["method"].unique())
    colours = method_colours(methods)
    for axes, objective in zip(panels, objectives, strict=True):
        shown = rows[rows["objective"].isin((objective, NO_OBJECTIVE))]
        for place, method in enumerate(methods):
            found = 100 * mean_and_std(shown[shown["method"] == method], "count", "share")
            shift = 0.07 * (place - (len(methods) - 1) / 2)  # bars side by side
            style = {"color": colours[method], "ls": ("-", "--", ":", "-.")[place % 4], "marker": "osD^vPX"[place % 7]}
            axes.errorbar(found.index + shift, found["mean"], found["std"], elinewidth=0.8, ms=5, label=method, **style)
        axes.axhline(0, **REFERENCE)
        percent_axis(axes, "y", "share of the gap between\nzero-shot and experts (%)")
        axes.set(xlabel="number of merged tasks", xticks=sorted(table["count"].unique()))
        axes.set_title(f"Adapted by: {OBJECTIVE_NAMES[objective]}")
    same_limits(panels, "y")
    groups = table.groupby(["count", "subset", "seed"]).ngroups
    figure.suptitle(f"What merging keeps of the experts ({groups} subsets, {seed_count(table)})", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


def every_subset(table: Table) -> Figure:
    """Every set of tasks merged without learning: share of the gap, and accuracy lost to the other tasks, by count.

    Args:
        table: count, subset, kind (of `KINDS`), accuracy, alone, zero_shot, expert (means over the set's tasks), seed.
    """
    figure, (left, right) = new_figure(10.5, 4.2, columns=2)
    table = table.assign(
        share=(table["accuracy"] - table["zero_shot"]) / (table["expert"] - table["zero_shot"]),
        lost=table["alone"] - table["accuracy"],
    )
    for place, (kind, (colour, marker)) in enumerate(KINDS.items()):
        rows = table[table["kind"] == kind]
        for axes, column in ((left, "share"), (right, "lost")):
            found = 100 * mean_and_std(rows, "count", column)
            style = {"color": colour, "marker": marker, "label": kind, "ms": 6, "capsize": 3}
            axes.errorbar(found.index + 0.12 * (place - 1), found["mean"], found["std"], **style)
    for axes in (left, right):
        axes.axhline(0, **REFERENCE)
        axes.set(xlabel="number of merged tasks", xticks=sorted(table["count"].unique()))
    percent_axis(left, "y", "share of the gap between\nzero-shot and experts (%)")
    right.set_ylabel("accuracy lost to the other tasks (points)")
    sets = table.groupby(["count", "subset"]).ngroups
    left.set_title(f"What the sum keeps ({sets} sets of tasks, {seed_count(table)})")
    right.set_title("Each task vector alone, minus all together")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


def mask_gain(table: Table) -> Figure:
    """What the mask adds to a method, by the number of tasks: a mark per subset, a line through the means.

    Args:
        table: count, subset, objective, method, gain, seed.
    """
    objectives = [name for name in OBJECTIVE_NAMES if name in set(table["objective"])]
    figure, panels = new_figure(5 + 4 * (len(objectives) - 1), 4.2, columns=len(objectives))
    colours = method_colours(table["method"].unique())
    for axes, objective in zip(np.atleast_1d(panels), objectives, strict=True):
        shown = table[table["objective"] == objective]
        for place, (method, rows) in enumerate(shown.groupby("method", sort=False)):
            shift, style = 0.2 * (place - 0.5), {"color": colours[method], "marker": "os"[place % 2]}
            axes.plot(rows["count"] + shift, 100 * rows["gain"], ls="", ms=4, alpha=0.4, **style)
            means = 100 * rows.groupby("count")["gain"].mean()
            axes.plot(means.index + shift, means, ms=7, lw=1.5, label=method, **style)
        axes.axhline(0, **REFERENCE)
        axes.set(xlabel="number of merged tasks", xticks=sorted(table["count"].unique()))
        axes.set_ylabel("gain by the mask (points)")
        axes.set_title(f"{OBJECTIVE_NAMES[objective]} ({seed_count(shown)})")
    same_limits(figure.axes, "y")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def step_cost(table: Table) -> Figure:
    """Time of one step of Concrete Task Arithmetic against the number of tasks, by part.

    Args:
        table: count, part ("encoder" or "rest"), milliseconds, seed.
    """
    figure, axes = new_figure(7.5, 3.6)
    for (part, label), colour, mark in zip(PARTS.items(), ("0.5", PALETTE[RED]), "os", strict=True):
        rows = mean_and_std(table[table["part"] == part], "count", "milliseconds")
        axes.errorbar(rows.index, rows["mean"], yerr=rows["std"], capsize=3, color=colour, marker=mark, label=label)
    axes.set(xlabel="number of merged tasks", ylabel="milliseconds per step", xticks=np.unique(table["count"]))
    axes.set_ylim(bottom=0)
    axes.set_title(f"One step of Concrete Task Arithmetic ({seed_count(table)})")
    axes.legend(frameon=False, loc="upper left")
    return figure
