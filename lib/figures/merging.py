"""Figures of merged models: scaling factors, coefficients, scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures.curves import colours_of
from lib.plotting import ORDER, heat_map, method_colours, new_figure, percent_axis

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
        axes.set(xlabel="layer, from the image to the embedding", ylabel="", title=method)
        axes.set_xticks(np.arange(0, wide.shape[1], 10) + 0.5, np.arange(0, wide.shape[1], 10), rotation=0)
    return figure


def concrete_coefficients(table: Table) -> Figure:
    """Layer-wise coefficients inside the learned mask, mean over seeds, beside those of AdaMerging without a mask."""
    return coefficients(table)


def adaptation(table: Table) -> Figure:
    """What adapted coefficients gain over Task Arithmetic, per method and task."""
    return gains(table, "Task Arithmetic")


def concrete_task_arithmetic(table: Table) -> Figure:
    """What a learned mask gains over Task Arithmetic, with the controls."""
    return gains(table, "Task Arithmetic")


def concrete_adamerging(table: Table) -> Figure:
    """What adapting inside a mask gains over layer-wise AdaMerging without one, with the control."""
    return gains(table, "AdaMerging (layer-wise)")


def gains(table: Table, base: str) -> Figure:
    """Held-out accuracy minus that of a base method, within each seed.

    A tick is a task (mean over seeds), a dot the mean over tasks and seeds, its bar the standard deviation over seeds.
    """
    held_out = table[table["split"] == "test"]
    wide = 100 * held_out.pivot_table(index=["seed", "task"], columns="method", values="accuracy", sort=False)
    difference = wide.drop(columns=base).sub(wide[base], axis=0)
    figure, axes = new_figure(8.5, 0.55 * difference.shape[1] + 1.3)
    colours = colours_of(difference.columns)
    for height, method in enumerate(reversed(difference.columns)):
        by_task, by_seed = (difference[method].groupby(level).mean() for level in ("task", "seed"))
        axes.plot(by_task, [height] * len(by_task), "|", color=colours[method], ms=10, alpha=0.7)
        axes.errorbar(by_seed.mean(), height, xerr=by_seed.std(ddof=1) if len(by_seed) > 1 else None, fmt="o", ms=8,
                      capsize=4, color=colours[method])  # fmt: skip
        axes.annotate(f"{by_seed.mean():+.1f}", (by_seed.mean(), height), (0, 8), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    axes.axvline(0, color="0.6", lw=1, ls="--")
    axes.set_yticks(range(difference.shape[1]), list(reversed(difference.columns)))
    axes.set_ylim(-0.5, difference.shape[1] - 0.4)
    seeds = held_out["seed"].nunique()
    axes.set(xlabel=f"held-out accuracy minus that of {base} (points)")
    axes.set_title(f"Mean (dots) and single tasks (ticks); {seeds} seed{'s' if seeds > 1 else ''}")
    axes.grid(axis="x", color="0.92")
    return figure


def results(table: Table) -> Figure:
    """Held-out accuracy of every method: a tick per task, a dot for the mean over tasks and seeds.

    A ring is the same method with its scaling factor chosen on validation images.
    """
    held_out = table[table["split"] == "test"]
    present = [method for method in ORDER if method in set(held_out["method"])]
    figure, axes = new_figure(8, 0.42 * len(present) + 1.3)
    colours = method_colours(present)
    for height, method in enumerate(reversed(present)):
        rows = held_out[held_out["method"] == method]
        by_task = 100 * rows.groupby("task")["accuracy"].mean()
        by_seed = 100 * rows.groupby("seed")["accuracy"].mean()
        axes.plot(by_task, [height] * len(by_task), "|", color=colours[method], ms=9, alpha=0.6)
        axes.errorbar(by_seed.mean(), height, xerr=by_seed.std(ddof=1) if len(by_seed) > 1 else None, fmt="o", ms=8,
                      capsize=4, color=colours[method])  # fmt: skip
        axes.annotate(f"{by_seed.mean():.1f}", (by_seed.mean(), height), (0, 8), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
        tuned = 100 * held_out.loc[held_out["method"] == f"{method} (tuned)", "accuracy"].mean()
        axes.plot(tuned, height, "o", ms=8, mfc="none", mec=colours[method])
    axes.set_yticks(range(len(present)), list(reversed(present)))
    percent_axis(axes, "x", "held-out accuracy (%)")
    seeds = held_out["seed"].nunique()
    axes.set_title(
        f"Mean (dots), with a tuned factor (rings), single tasks (ticks); {seeds} seed{'s' if seeds > 1 else ''}"
    )
    axes.grid(axis="x", color="0.92")
    return figure
