"""Figures of what carries over: to unseen tasks, corrupted images, other sets of tasks, and from the paper to here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures.plotting import (
    INK,
    REFERENCE,
    clean,
    in_order,
    method_colours,
    method_rows,
    new_figure,
    number,
    percent_axis,
    rows_legend,
    same_limits,
    seed_count,
    spread,
)

Table = pd.DataFrame

MARKERS = "oDs^vPX"
ORACLE = "Best single expert"


def _side_by_side(axes: Axes, table: Table, groups: Sequence[str], by: str, column: str) -> None:
    """A dot per method in every group, with its spread over seeds, side by side; values are drawn as percentages."""
    methods = in_order(table["method"].unique())
    colours, width = method_colours(methods), 0.7 / len(methods)
    for nth, method in enumerate(methods):
        by_seed = 100 * table[table["method"] == method].groupby([by, "seed"])[column].mean()
        present = [group for group in groups if group in by_seed.index]
        places = [groups.index(group) + (nth - (len(methods) - 1) / 2) * width for group in present]
        means, spreads = ([statistic(by_seed[group]) for group in present] for statistic in (pd.Series.mean, spread))
        style = {"color": colours[method], "fmt": MARKERS[nth % len(MARKERS)], "ms": 6, "capsize": 3}
        axes.errorbar(places, means, [deviation or 0 for deviation in spreads], label=method, **style)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, **REFERENCE | {"color": "0.92"})
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def unseen_tasks(table: Table) -> Figure:
    """Held-out accuracy on the tasks that were merged and on those that were not; a panel row per experiment."""
    experiments, methods = list(table["experiment"].unique()), in_order(table["method"].unique())
    figure, panels = new_figure(11, (0.42 * len(methods) + 1.2) * len(experiments) + 0.4, len(experiments), 2)
    colours = method_colours(methods)
    for row, experiment in zip(np.atleast_2d(panels), experiments, strict=True):
        for axes, seen in zip(row, (True, False), strict=True):
            rows = table[(table["experiment"] == experiment) & (table["seen"] == seen)]
            values = rows.pivot_table(index=["seed", "task"], columns="method", values="accuracy")
            values = values.reindex(columns=methods)  # of one task alone none is left unmerged
            method_rows(axes, 100 * values, colours)
            tasks = list(rows["task"].unique())
            names = ", ".join(map(clean, tasks)) if not seen else f"{len(tasks)} tasks"
            axes.set_title(f"{experiment}: {'merged' if seen else 'not merged'} ({names})")
            axes.tick_params(axis="y", labelleft=seen)
            percent_axis(axes, "x", "held-out accuracy (%)")
    same_limits(np.ravel(panels), "x")
    rows_legend(figure, table["seed"].nunique() > 1)
    return figure


def corruptions(table: Table) -> Figure:
    """Held-out accuracy on clean and on corrupted images, each method adapted on images of the same kind."""
    kinds = list(table["corruption"].unique())
    figure, axes = new_figure(4 + 0.9 * len(kinds), 3.8)
    _side_by_side(axes, table, kinds, "corruption", "accuracy")
    axes.set_xlabel("corruption")
    axes.set_xticks(range(len(kinds)), [clean(kind).replace(" ", "\n") for kind in kinds])
    percent_axis(axes, "y", "held-out accuracy (%),\nmean over tasks")
    axes.set_title(f"Adapted and scored on corrupted images; {seed_count(table)}")
    return figure


def similar_tasks(table: Table) -> Figure:
    """What merging few tasks keeps of their experts, for sets of tasks whose task vectors are more or less alike."""
    subsets = list(table.groupby("subset")["cosine"].mean().sort_values().index)
    figure, axes = new_figure(4.5 + 1.5 * len(subsets), 3.8)
    _side_by_side(axes, table, subsets, "subset", "share")
    cosine = table.groupby("subset")["cosine"].mean()
    axes.set_xticks(
        range(len(subsets)), [f"{subset}\n(mean cosine {number(cosine[subset], '.3f')})" for subset in subsets]
    )
    percent_axis(axes, "y", "share of the gap between\nzero-shot and experts (%)")
    axes.axhline(100, ls="--", **REFERENCE)
    axes.set_title(f"What merging keeps of sets of tasks, by their similarity; {seed_count(table)}")
    return figure


def unseen_pairs(table: Table) -> Figure:
    """Every pair of tasks left out of the merge: what the merged model gains on a task that it was not merged from.

    Args:
        table: pair (names of the tasks left out), task (one of them), method, accuracy, seed; methods "Zero-shot",
            `ORACLE` (of the tasks merged, chosen by these very scores) and those that merge.
    """
    keys = ["task", "pair", "seed"]
    wide = 100 * table.pivot_table(index=keys, columns="method", values="accuracy", sort=False)
    gain = wide.drop(columns="Zero-shot").sub(wide["Zero-shot"], axis=0)
    tasks = list(gain.groupby("task")["Task Arithmetic"].mean().sort_values().index)
    figure, axes = new_figure(9, 0.5 * len(tasks) + 1.6)
    colours = method_colours(gain.columns) | {ORACLE: method_colours(["Experts"])["Experts"]}
    for place, method in enumerate(gain.columns):
        shift = 0.22 * (1 - place)
        for height, task in enumerate(tasks):
            values, style = gain.loc[task, method], {"color": colours[method], "ls": ""}
            by_pair = values.groupby("pair").mean()
            axes.plot(by_pair, [height + shift] * len(by_pair), marker="|", ms=7, alpha=0.6, **style)
            label = method if height == 0 else None
            axes.plot(by_pair.mean(), height + shift, marker=MARKERS[place], ms=7, label=label, **style)
    axes.axvline(0, **REFERENCE)
    axes.set_yticks(range(len(tasks)), list(map(clean, tasks)))
    axes.set_xlabel("accuracy on the task left out, minus zero-shot (points)")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_title(f"Tasks that were not merged: a tick per pair left out, a mark for the mean ({seed_count(table)})")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


def triples(table: Table) -> Figure:
    """Every set of three tasks: the share of the gap that Task Arithmetic closes, against how alike the vectors are.

    Args:
        table: tasks (three names), cosine (mean over its pairs), share (0 to 1), same_classes (whether two of its tasks
            have the same classes), seed.
    """
    found = table.groupby(["tasks", "same_classes"])[["cosine", "share"]].agg(["mean", "std"]).reset_index()
    figure, axes = new_figure(7.5, 4.4)
    for same, marker, face in ((False, "o", INK), (True, "D", "white")):
        rows = found[found["same_classes"] == same]
        if rows.empty:
            continue
        label = "with two tasks of the same classes" if same else "no two tasks of the same classes"
        style = {"color": INK, "mfc": face, "marker": marker, "ls": "", "ms": 6, "elinewidth": 0.7, "label": label}
        error = 100 * rows["share", "std"].fillna(0)
        axes.errorbar(rows["cosine", "mean"], 100 * rows["share", "mean"], error, **style)
    axes.set_xlabel("mean cosine of the three pairs of task vectors")
    percent_axis(axes, "y", "share of the gap between\nzero-shot and experts (%)")
    axes.set_title(f"{len(found)} sets of three tasks, merged by Task Arithmetic ({seed_count(table)})")
    axes.legend(frameon=False)
    return figure


def against_the_paper(table: Table) -> Figure:
    """Share of the experts' accuracy that each method keeps, here and in print, on one lineage of checkpoints.

    Of experts on which nothing is published, for which the table is empty, it says that.

    Raises:
        ValueError: if the table mixes lineages or models.
    """
    if table.empty:
        figure, axes = new_figure(9, 1.5)
        axes.set_axis_off()
        axes.set_title("Nothing is published on these experts")
        return figure
    sources = table[["lineage", "model"]].drop_duplicates()
    if len(sources) > 1:
        mixed = "; ".join(" ".join(row) for row in sources.to_numpy())
        raise ValueError(f"a comparison needs one lineage and one model, the table has {mixed}: choose one")
    here = table.groupby(["method", "seed"])["here"].mean()
    printed = table.groupby("method")["published"].first().sort_values()
    figure, axes = new_figure(9, 0.36 * len(printed) + 1.5)
    colours = method_colours(printed.index)
    for height, (method, published) in enumerate(printed.items()):
        own, style = here[method].mean(), {"color": colours[method], "ms": 7}
        axes.plot([own, published], [height] * 2, color="0.85", lw=3, zorder=0)
        axes.errorbar(own, height, xerr=spread(here[method]), fmt="o", capsize=4, **style)
        axes.plot(published, height, "D", mfc="white", **style)
    axes.set_yticks(range(len(printed)), list(printed.index))
    axes.axvline(100, ls="--", **REFERENCE)
    percent_axis(axes, "x", "share of the experts' mean accuracy (%)")
    lineage, model = sources.iloc[0]
    labels = ("this study", f"published ({model},\n{lineage} checkpoints)")
    handles = [
        Line2D([], [], color="0.4", marker=marker, mfc=face, ls="", label=label)
        for marker, face, label in zip("oD", ("0.4", "white"), labels, strict=True)
    ]
    axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("What merging keeps, in the published order")
    axes.grid(axis="x", color="0.92")
    return figure
