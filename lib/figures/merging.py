"""Figures of merged models: scaling factors, coefficients, scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.curves import colours_of
from lib.figures.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    heat_map,
    in_order,
    method_colours,
    method_rows,
    new_figure,
    percent_axis,
    seed_count,
    spread,
)
from lib.files.lineages import one_lineage

Table = pd.DataFrame


def scaling(table: Table) -> Figure:
    """Validation accuracy against the scaling factor (the paper's Figure 5, our version)."""
    figure, axes = new_figure(7, 3.8)
    mean = table.groupby(["method", "scaling_factor"], sort=False, as_index=False)["accuracy"].mean()
    for number, (method, rows) in enumerate(mean.groupby("method", sort=False)):
        style = {"color": f"C{number}", "marker": "osD^v"[number % 5], "label": method}
        axes.plot(rows["scaling_factor"], 100 * rows["accuracy"], **style)
        best = rows.loc[rows["accuracy"].idxmax()]
        axes.plot(best["scaling_factor"], 100 * best["accuracy"], "o", ms=13, mfc="none", mec=f"C{number}")
    axes.axvline(0.3, color="0.6", lw=1, ls="--")
    axes.annotate("paper's 0.3", (0.3, axes.get_ylim()[0]), (4, 6), textcoords="offset points", color="0.4")
    percent_axis(axes, "y", "mean validation accuracy (%)")
    axes.set(xlabel="scaling factor", xscale="log", title="The one hyperparameter of the baselines")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def baselines(table: Table) -> Figure:
    """Held-out accuracy of everything that merges without training, against zero-shot and the experts."""
    return results(table)


def coefficients(table: Table) -> Figure:
    """Merging coefficients after adaptation, mean over seeds, tasks by layers, one panel per method."""
    methods = list(table["method"].unique())
    means = table.groupby(["method", "task", "position"])["coefficient"].mean()
    scale = {"cmap": "vlag", "center": 0.3, "vmin": means.min(), "vmax": means.max()}  # one for all panels
    figure, panels = new_figure(11, 2.5 * len(methods) + 0.4, rows=len(methods))
    for axes, method in zip(np.atleast_1d(panels), methods, strict=True):
        rows = table[table["method"] == method]
        wide = rows.pivot_table(index="task", columns="position", values="coefficient", sort=False)
        heat_map(axes, wide, "coefficient", **scale)
        axes.set(xlabel="layer, from input to output", ylabel="", title=method)
        axes.set_xticks(np.arange(0, wide.shape[1], 10) + 0.5, np.arange(0, wide.shape[1], 10), rotation=0)
    return figure


def concrete_coefficients(table: Table) -> Figure:
    """Layer-wise coefficients inside the learned mask, mean over seeds, beside those of AdaMerging without a mask."""
    return coefficients(table)


def adaptation(table: Table) -> Figure:
    """What adapted coefficients gain over Task Arithmetic, per method and task."""
    return _gains(table, "Task Arithmetic")


def concrete_task_arithmetic(table: Table) -> Figure:
    """What a learned mask gains over Task Arithmetic, with the controls."""
    return _gains(table, "Task Arithmetic")


def concrete_adamerging(table: Table) -> Figure:
    """What adapting inside a mask gains over layer-wise AdaMerging without one, with the control."""
    return _gains(table, "AdaMerging (layer-wise)")


def _gains(table: Table, base: str) -> Figure:
    """Held-out accuracy minus that of a base method, within each seed."""
    one_lineage(table)
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index=["seed", "task"], columns="method", values="accuracy", sort=False)
    difference = wide.drop(columns=base).sub(wide[base], axis=0)
    figure, axes = new_figure(8.5, 0.55 * difference.shape[1] + 1.3)
    method_rows(axes, difference, colours_of(difference.columns), "+.1f")
    axes.axvline(0, color="0.6", lw=1, ls="--")
    axes.set(xlabel=f"held-out accuracy minus that of {base} (points)")
    axes.set_title(f"Mean (dots) and single tasks (ticks); {seed_count(held_out)}")
    return figure


def results(table: Table) -> Figure:
    """Held-out accuracy of every method: a tick per task, a dot for the mean over tasks and seeds.

    A ring is the same method with its scaling factor chosen on validation images.

    Raises:
        ValueError: if the table mixes experts of several lineages.
    """
    one_lineage(table)
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index=["seed", "task"], columns="method", values="accuracy", sort=False)
    present = in_order(method for method in wide if not method.endswith(" (tuned)"))
    figure, axes = new_figure(8, 0.42 * len(present) + 1.3)
    colours = method_colours(present)
    method_rows(axes, wide[present], colours)
    for height, method in enumerate(reversed(present)):
        if f"{method} (tuned)" in wide:
            axes.plot(wide[f"{method} (tuned)"].mean(), height, "o", ms=8, mfc="none", mec=colours[method])
    percent_axis(axes, "x", "held-out accuracy (%)")
    axes.set_title(f"Mean (dots), with a tuned factor (rings), single tasks (ticks); {seed_count(held_out)}")
    return figure


def which_method(table: Table) -> Figure:
    """Every method by what it may use, its share of the way from zero-shot to the experts, and its gradients (size).

    Hollow marks keep something of each task, and so must be told the task of every input.

    Args:
        table: columns uses, method, keeps, gradients, seed, share (0 to 1); of `lib.study.needs.which_method`.
    """
    groups = [(uses, rows) for uses, rows in table.groupby("uses", sort=False)]
    counts = [rows["method"].nunique() for _, rows in groups]
    figure, panels = new_figure(9.5, 0.27 * sum(counts) + 0.45 * len(groups) + 1.0, rows=len(groups))
    panels = np.atleast_1d(panels)
    panels[0].get_gridspec().set_height_ratios([count + 0.6 for count in counts])
    low, high = 100 * table["share"].min(), max(100, 100 * table["share"].max())
    palette = sns.color_palette("colorblind", 10)
    for axes, (uses, rows), colour in zip(panels, groups, (GREY, PINK, ORANGE, BLUE, GREEN), strict=False):
        _shares(axes, rows, palette[colour])
        axes.set_title(uses[0].upper() + uses[1:], loc="left", fontsize=10)
        axes.set_xlim(low - 3, high + 3)
        axes.axvline(100, color="0.6", lw=1, ls="--", zorder=0)
        percent_axis(axes, "x", "")
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel(f"share of the gap between zero-shot and experts (%); {seed_count(table)}")
    for steps in (100, 1000, 10000):
        panels[0].plot([], [], "o", color="0.5", ms=_size(steps), label=f"{steps:,} gradients")
    panels[0].plot([], [], "o", color="0.5", mfc="white", ms=_size(0), label="keeps something per task")
    panels[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _shares(axes: Axes, rows: Table, colour: tuple[float, float, float]) -> None:
    """A line per method, the best on top."""
    order = rows.groupby("method")["share"].mean().sort_values().index
    for height, method in enumerate(order):
        own = rows[rows["method"] == method]
        kept, share = own["keeps"].iloc[0] != "nothing", 100 * own["share"]
        style = {"color": colour, "mfc": "white" if kept else colour, "ms": _size(own["gradients"].iloc[0])}
        axes.errorbar(share.mean(), height, xerr=spread(share), fmt="o", capsize=3, **style)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _size(gradients: int) -> float:
    """The diameter of a mark, in points."""
    return 5 + 2 * np.log10(1 + gradients / 10)
