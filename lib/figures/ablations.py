"""Figures of the ablation of temperature: means, with standard deviations over seeds."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.plotting import (
    INK,
    MASKS,
    PALETTE,
    RED,
    REFERENCE,
    band,
    new_figure,
    percent_axis,
    seed_count,
    temperature_colour,
)

Table = pd.DataFrame
PAPER_TEMPERATURE = 0.5
NO_MASK = "none"  # value of `final_mask` in the row of plain Task Arithmetic
FINAL_MASKS = tuple(MASKS)
SHUFFLED = "shuffled"  # of `final_mask`: the hard mask, permuted within layers
RATES = plt.get_cmap("viridis")  # rates have an order, so their colours have too


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
    axes.axvline(PAPER_TEMPERATURE, ls="--", **REFERENCE)


def temperature(table: Table) -> Figure:
    """Accuracy with each kind of final mask against the temperature, what the mask looks like, and what a kind costs.

    Args:
        table: temperature, final_mask, accuracy, density, hard_share, undecided_share, seed; without a temperature the
            row of no mask.
    """
    figure, (left, middle, right) = new_figure(12, 3.9, columns=3)
    masked = table[table["final_mask"].isin(FINAL_MASKS)]
    for kind in FINAL_MASKS[:-1]:  # the hard mask is so much worse that it has a panel of its own
        rows = mean_and_std(masked[masked["final_mask"] == kind], "temperature", "accuracy")
        _bars(left, rows, factor=100, color=MASKS[kind][0], marker=MASKS[kind][1], label=kind)
    without = table.loc[table["final_mask"] == NO_MASK, "accuracy"]
    if len(without):
        left.axhline(100 * without.mean(), ls=":", label="no mask", **REFERENCE)
    percent_axis(left, "y", "mean held-out accuracy (%)")
    left.set_title(f"Accuracy, by the mask kept ({seed_count(table)})")
    left.legend(frameon=False, title="mask kept", ncols=2, loc="upper left")
    left.margins(y=0.5)

    once = masked[masked["final_mask"] == FINAL_MASKS[0]].assign(decided=lambda rows: 1 - rows["undecided_share"])
    columns = {
        "density": ("density, mean of sigmoid(x)", "v-", "0.55"),
        "hard_share": ("share of ones, x > 0", "X--", INK),
        "decided": ("nearly binary in a sample", "P:", MASKS["sample"][0]),
    }
    for column, (label, line, colour) in columns.items():
        rows = mean_and_std(once, "temperature", column)
        _bars(middle, rows, factor=100, color=colour, fmt=line, label=label)
    percent_axis(middle, "y", "share of entries (%)")
    middle.set(title="The mask that was learned", ylim=(-2, 119))
    middle.legend(frameon=False, loc="upper right")

    wide = masked.pivot_table(index=["temperature", "seed"], columns="final_mask", values="accuracy").reset_index()
    if "hard" in wide:
        rows = mean_and_std(wide.assign(gap=wide["expected"] - wide["hard"]), "temperature", "gap")
        _bars(right, rows, factor=100, color=MASKS["hard"][0], marker=MASKS["hard"][1])
    right.axhline(0, **REFERENCE)
    right.set(ylabel="expected minus hard mask\n(points, within a seed)", title="What thresholding the mask loses")
    for axes in (left, middle, right):
        _temperature_axis(axes, masked["temperature"])
    return figure


def chosen_rates(table: Table) -> Table:
    """Of the rates that were tried, the one that each temperature and seed takes: that with the lowest late loss.

    Args:
        table: columns temperature, mask_rate, late_loss (nats), seed, and others that are kept.
    """
    masked = table.dropna(subset="temperature")
    losses = masked.groupby(["temperature", "seed", "mask_rate"])["late_loss"].first()
    lowest = losses.groupby(["temperature", "seed"]).idxmin()
    return masked[masked.set_index(["temperature", "seed", "mask_rate"]).index.isin(lowest)]


def temperature_taught(table: Table) -> Figure:
    """With the experts as teachers: accuracy against the temperature by the mask kept, and by the rate; mean |logit|.

    Args:
        table: temperature, mask_rate, late_loss, mean_logit, final_mask ("expected", "sample", "hard", "shuffled", or
            "none" without a temperature), task, accuracy (0 to 1), seed.
    """
    figure, (left, middle, right) = new_figure(12, 3.9, columns=3)
    masked, best = table.dropna(subset="temperature"), chosen_rates(table)
    means = best.groupby(["final_mask", "temperature", "seed"])["accuracy"].mean().reset_index()
    for kind, (colour, marker) in {
        **{name: MASKS[name] for name in ("expected", "sample", "hard")},
        SHUFFLED: ("0.55", "x"),
    }.items():
        rows = mean_and_std(means[means["final_mask"] == kind], "temperature", "accuracy")
        _bars(left, rows, factor=100, color=colour, marker=marker, label=kind)
    left.axhline(
        100 * table.loc[table["final_mask"] == NO_MASK, "accuracy"].mean(), ls=":", label="no mask", **REFERENCE
    )
    left.set_title(f"Accuracy, by the mask kept ({seed_count(table)})")
    sampled = masked[masked["final_mask"] == "sample"]
    for place, (rate, rows) in enumerate(sampled.groupby("mask_rate")):
        style = {"color": RATES(place / 3), "marker": "os^D"[place % 4], "label": f"{rate:g}"}
        by_seed = rows.groupby(["temperature", "seed"])["accuracy"].mean().reset_index()
        _bars(middle, mean_and_std(by_seed, "temperature", "accuracy"), factor=100, **style)
        _bars(right, mean_and_std(rows, "temperature", "mean_logit"), **style)
    middle.set_title("A sample, by the learning rate")
    right.set(title="How far the logits moved", ylabel="mean |logit|")
    for axes in (left, middle):
        percent_axis(axes, "y", "mean held-out accuracy (%)")
    for axes, title in ((left, "mask kept"), (middle, "learning rate"), (right, "learning rate")):
        axes.legend(frameon=False, title=title, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
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
        rows = mean_and_std(table, "temperature", measured)
        _bars(axes, rows, factor=factor, color=PALETTE[RED], marker="o", label="measured")
        line = factor * table.groupby("temperature")[theory].mean()
        style = {"color": INK, "ls": "--", "marker": "s", "ms": 9, "mfc": "none"}
        axes.plot(line.index, line, label="theory, slope of the mask alone", **style)
        _temperature_axis(axes, table["temperature"])
    left.set(yscale="log", ylabel="variance / squared mean", title=f"Noise of the gradient ({seed_count(table)})")
    left.yaxis.set_major_formatter("{x:g}")
    right.set(title="Entries whose slope is over 1 % of the largest", ylim=(0, 104))
    percent_axis(right, "y", "share of entries (%)")
    left.legend(frameon=False)
    return figure


def temperature_curve(table: Table) -> Figure:
    """Entropy while the mask is learned minus that at the temperature nearest to the paper's, within seed and step.

    The temperatures see the same batches, whose noise would hide everything; in the difference it cancels.

    Args:
        table: temperature, step, loss, seed.
    """
    figure, axes = new_figure(8, 3.8)
    window = max(1, (table["step"].max() + 1) // 8)
    wide = table.pivot_table(index=["seed", "step"], columns="temperature", values="loss").sort_index()
    base = min(wide.columns, key=lambda value: abs(value - PAPER_TEMPERATURE))
    others = wide.drop(columns=base).sub(wide[base], axis=0)
    smooth = others.groupby("seed").transform(lambda loss: loss.rolling(window, min_periods=1).mean())
    for value, line in zip(smooth, ("-", "--", "-.", ":") * len(smooth.columns), strict=False):
        found = smooth[value].groupby("step").agg(["mean", "std"])
        band(axes, found["mean"], found["std"], color=temperature_colour(value), ls=line, lw=2, label=f"{value:g}")
    axes.axhline(0, **REFERENCE)
    axes.set(xlabel="optimiser step of the mask", ylabel=f"entropy minus that at {base:g},\nsummed over tasks (nats)")
    axes.set_title(f"Entropy against temperature {base:g}, running mean of {window} steps ({seed_count(table)})")
    axes.legend(title="temperature", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
