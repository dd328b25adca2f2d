"""Figures of what carries over: to unseen tasks, corrupted images, other sets of tasks, and from the paper to here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures.plotting import (
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
    _side_by_side(axes, table, subsets, "subset", "normalised")
    cosine = table.groupby("subset")["cosine"].mean()
    axes.set_xticks(
        range(len(subsets)), [f"{subset}\n(mean cosine {number(cosine[subset], '.3f')})" for subset in subsets]
    )
    percent_axis(axes, "y", "share of the experts'\nmean accuracy (%)")
    axes.axhline(100, ls="--", **REFERENCE)
    axes.set_title(f"What merging keeps of sets of tasks, by their similarity; {seed_count(table)}")
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
