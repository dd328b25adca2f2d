"""Figures of the ablations of temperature and number of tasks: means, with standard deviations over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.plotting import band, in_order, method_colours, new_figure, percent_axis, seed_count

Table = pd.DataFrame
PAPER_TEMPERATURE = 0.5
NO_MASK = "none"  # value of `final_mask` in the row of plain Task Arithmetic
FINAL_MASKS = ("expected", "sample", "binary", "hard")
MARKERS = dict(zip(FINAL_MASKS, "os^D", strict=True))
MEASURES = {
    "cosine": "mean cosine between task vectors",
    "sign_conflict": "share of sign conflicts,\nweighted by magnitude (%)",
    "cancelled": "share of the movement that\ncancels in the sum (%)",
}
PARTS = {"encoder": "encoder, forward and backward", "rest": "everything else: draw, merge, pull, update"}


def mean_and_std(table: Table, by: str, value: str) -> Table:
    """Mean and standard deviation of a column for every value of another; the latter is 0 where there is one row.

    Returns:
        Columns `mean` and `std`, sorted by `by`.
    """
    return table.groupby(by)[value].agg(mean="mean", std=lambda values: values.std(ddof=1)).fillna({"std": 0.0})


def _bars(axes: Axes, rows: Table, *, factor: float = 1.0, **style: object) -> None:
    axes.errorbar(rows.index, factor * rows["mean"], yerr=factor * rows["std"], capsize=3, **style)


def _temperature_axis(axes: Axes, temperatures: pd.Series) -> None:
    axes.set(xlabel="temperature", xscale="log")
    axes.set_xticks(sorted(temperatures.dropna().unique()))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.axvline(PAPER_TEMPERATURE, color="0.8", lw=1, ls="--", zorder=0)


def temperature(table: Table) -> Figure:
    """Accuracy with each kind of final mask against the temperature, what the mask looks like, and what a kind costs.

    Args:
        table: temperature, final_mask, accuracy, density, hard_share, undecided_share, seed; without a temperature the
            row of no mask.
    """
    figure, (left, middle, right) = new_figure(12, 3.6, columns=3)
    masked = table[table["final_mask"].isin(FINAL_MASKS)]
    for number, kind in enumerate(FINAL_MASKS):
        rows = mean_and_std(masked[masked["final_mask"] == kind], "temperature", "accuracy")
        _bars(left, rows, factor=100, color=f"C{number}", marker=MARKERS[kind], label=kind)
    without = table.loc[table["final_mask"] == NO_MASK, "accuracy"]
    if len(without):
        left.axhline(100 * without.mean(), color="0.3", lw=1, ls=":", label="no mask")
    percent_axis(left, "y", "mean held-out accuracy (%)")
    left.set_title(f"The mask that stays ({seed_count(table)})")
    left.legend(frameon=False, title="final mask")

    once = masked[masked["final_mask"] == FINAL_MASKS[0]].assign(decided=lambda rows: 1 - rows["undecided_share"])
    columns = {
        "density": "density, mean of sigmoid(x)",
        "hard_share": "share of ones, x > 0",
        "decided": "nearly binary in a sample",
    }
    for number, (column, label) in enumerate(columns.items()):
        rows = mean_and_std(once, "temperature", column)
        _bars(middle, rows, factor=100, color=f"C{number + 4}", marker="vXP"[number], label=label)
    percent_axis(middle, "y", "share of entries (%)")
    middle.set(title="The mask that was learned", ylim=(0, 105))
    middle.legend(frameon=False)

    wide = masked.pivot_table(index=["temperature", "seed"], columns="final_mask", values="accuracy").reset_index()
    for number, kind in enumerate(FINAL_MASKS[1:], start=1):
        rows = mean_and_std(wide.assign(gap=wide["expected"] - wide[kind]), "temperature", "gap")
        _bars(right, rows, factor=100, color=f"C{number}", marker=MARKERS[kind], label=f"expected - {kind}")
    right.axhline(0, color="0.5", lw=1)
    right.set(ylabel="accuracy lost (points, within a seed)", title="Against the expected mask")
    right.legend(frameon=False)
    for axes in (left, middle, right):
        _temperature_axis(axes, masked["temperature"])
    return figure


def gradient_noise(table: Table) -> Figure:
    """Relative variance of the logits' gradient over draws of the mask, and how many entries have one.

    Args:
        table: temperature, relative_variance, theory_variance, gradient_share, theory_share, seed.
    """
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    for axes, (measured, theory), factor in (
        (left, ("relative_variance", "theory_variance"), 1),
        (right, ("gradient_share", "theory_share"), 100),
    ):
        _bars(
            axes, mean_and_std(table, "temperature", measured), factor=factor, color="C0", marker="o", label="measured"
        )
        line = factor * table.groupby("temperature")[theory].mean()
        style = {"color": "C1", "ls": "--", "marker": "s", "ms": 9, "mfc": "none"}
        axes.plot(line.index, line, label="theory, slope of the mask alone", **style)
        _temperature_axis(axes, table["temperature"])
    left.set(yscale="log", ylabel="variance / squared mean", title=f"Noise of the gradient ({seed_count(table)})")
    right.set(title="Entries whose slope is over 1 % of the largest", ylim=(0, 105))
    percent_axis(right, "y", "share of entries (%)")
    left.legend(frameon=False)
    return figure


def temperature_curve(table: Table) -> Figure:
    """Entropy while the mask is learned, a line per temperature: running mean, averaged over seeds.

    Args:
        table: temperature, step, loss, seed.
    """
    figure, axes = new_figure(7.5, 3.6)
    temperatures = sorted(table["temperature"].unique())
    colours = sns.color_palette("viridis", len(temperatures))  # temperatures have an order, so their colours have too
    window = max(1, (table["step"].max() + 1) // 8)
    for colour, value in zip(colours, temperatures, strict=True):
        rows = table[table["temperature"] == value].sort_values("step")
        smooth = rows.groupby("seed")["loss"].transform(lambda loss: loss.rolling(window, min_periods=1).mean())
        found = mean_and_std(rows.assign(loss=smooth), "step", "loss")
        band(axes, found["mean"], found["std"], color=colour, label=f"{value:g}")
    axes.set(xlabel="step", ylabel="prediction entropy,\nsummed over tasks (nats)")
    axes.set_title(f"Entropy of merged samples, running mean of {window} steps ({seed_count(table)})")
    axes.legend(title="temperature", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def task_count(table: Table) -> Figure:
    """Normalised accuracy against the number of merged tasks, a line per method, a band over subsets and seeds.

    Args:
        table: count, subset, method, accuracy, normalised, seed.
    """
    figure, axes = new_figure(9, 4.2)
    methods = in_order(table["method"].unique())
    colours, seen = method_colours(methods), []
    for method in methods:
        colour = colours[method]
        style = ("-", "--", ":", "-.")[seen.count(colour) % 4]  # baselines of one kind share their colour
        marker = "osD^"[seen.count(colour) % 4]
        seen.append(colour)
        rows = 100 * mean_and_std(table[table["method"] == method], "count", "normalised")
        band(axes, rows["mean"], rows["std"], color=colour, ls=style, marker=marker, ms=5, label=method)
    axes.axhline(100, color="0.5", lw=1, ls="--")
    axes.annotate("experts", (table["count"].max(), 100), (0, -11), textcoords="offset points", ha="right", color="0.4")
    percent_axis(axes, "y", "held-out accuracy, % of the experts'")
    axes.set(xlabel="number of merged tasks", xticks=sorted(table["count"].unique()))
    groups = table.groupby(["count", "subset", "seed"]).ngroups
    axes.set_title(f"What is left of the experts ({groups} subsets, {seed_count(table)})")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def mask_gain(table: Table) -> Figure:
    """What the mask adds to a method, against three measures of interference: a mark per subset and seed.

    Args:
        table: count, subset, cosine, sign_conflict, cancelled, method, gain, seed.
    """
    figure, panels = new_figure(12, 3.8, columns=len(MEASURES))
    colours = method_colours(table["method"].unique())
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        factor = 100 if "%" in label else 1
        for number, (method, rows) in enumerate(table.groupby("method", sort=False)):
            style = {"color": colours[method], "marker": "os"[number % 2], "alpha": 0.75, "label": method}
            axes.scatter(factor * rows[measure], 100 * rows["gain"], s=7 * rows["count"], ec="white", lw=0.4, **style)
        axes.axhline(0, color="0.5", lw=1)
        axes.set_xlabel(label)
        axes.sharey(panels[0])
    panels[0].set_ylabel("gain by the mask (points)")
    panels[1].set_title(f"Gain against interference; larger marks: more tasks ({seed_count(table)})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
    return figure


def step_cost(table: Table) -> Figure:
    """Time of one step of Concrete Task Arithmetic against the number of tasks, by part.

    Args:
        table: count, part ("encoder" or "rest"), milliseconds, seed.
    """
    figure, axes = new_figure(7.5, 3.6)
    for number, (part, label) in enumerate(PARTS.items()):
        rows = mean_and_std(table[table["part"] == part], "count", "milliseconds")
        _bars(axes, rows, color=f"C{number}", marker="os"[number], label=label)
    axes.set(xlabel="number of merged tasks", ylabel="milliseconds per step", xticks=np.unique(table["count"]))
    axes.set_ylim(bottom=0)
    axes.set_title(f"One step of Concrete Task Arithmetic ({seed_count(table)})")
    axes.legend(frameon=False, loc="upper left")
    return figure
