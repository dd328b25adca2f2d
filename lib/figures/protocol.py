"""Figures of notebook 12: choices of the protocol, and the gradient that the first-order rule leaves out."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.figures.plotting import new_figure

Table = pd.DataFrame

PHASES = ("after the mask", "after adaptation")


def differences(table: Table) -> Table:
    """What changing one choice does to accuracy, in points, within each seed: mean and std over seeds.

    Args:
        table: columns choice, value, phase, accuracy (0 to 1), density, seed; the unchanged protocol is choice "base".

    Returns:
        Columns choice, value, phase, difference, std (0 with one seed), density, in order of appearance.
    """
    base = table[table["choice"] == "base"].set_index(["phase", "seed"])["accuracy"]
    here = pd.MultiIndex.from_frame(table[["phase", "seed"]])
    points = table.assign(difference=100 * (table["accuracy"].to_numpy() - base.reindex(here).to_numpy()))
    grouped = points.groupby(["choice", "value", "phase"], sort=False)
    means = grouped[["difference", "density"]].mean()
    return means.assign(std=grouped["difference"].std(ddof=1).fillna(0)).reset_index()


def protocol(table: Table) -> Figure:
    """Difference to the base protocol when one choice is changed, and the mean density of the final mask.

    Dots are means over seeds of the difference within a seed, bars one standard deviation.
    """
    rows = differences(table)
    rows["name"] = [f"{c} = {v}" if c != "base" else "base" for c, v in zip(rows["choice"], rows["value"], strict=True)]
    names = list(rows["name"].unique())[::-1]
    figure, (left, right) = new_figure(10.5, 0.36 * len(names) + 1.4, columns=2)
    palette = sns.color_palette("colorblind")
    for number, phase in enumerate(PHASES):
        own = rows[(rows["phase"] == phase) & (rows["choice"] != "base")]
        heights = [names.index(name) + 0.12 - 0.24 * number for name in own["name"]]
        style = {"color": palette[number], "marker": "os"[number], "label": phase, "ms": 6, "capsize": 3, "ls": ""}
        left.errorbar(own["difference"], heights, xerr=own["std"], **style)
    left.axvline(0, color="0.6", lw=1, zorder=0)
    means = 100 * table[table["choice"] == "base"].groupby("phase")["accuracy"].mean()
    told = ", ".join(f"{means[phase]:.1f} % {phase}" for phase in PHASES)
    left.set(xlabel="held-out accuracy, difference to the base (points)", title=f"base: {told}")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(-0.6, len(names) - 0.4)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower left", ncols=2)
    density = rows[rows["phase"] == PHASES[0]].set_index("name")["density"]
    right.plot(density[names], range(len(names)), "D", color=palette[2], ms=6)
    right.set(xlabel="mean of the final mask before rescaling", xlim=(0, 1), title="Density", ylim=left.get_ylim())
    right.set_yticks(range(len(names)), [""] * len(names))
    for axes in (left, right):
        axes.grid(axis="y", color="0.92")
    return figure


def hypergradient(table: Table) -> Figure:
    """The exact gradient of the mask beside the first-order one: cosine, and size of what is left out, over steps.

    Lines are medians over seeds, bands go from the smallest to the largest: now and then a coefficient whose gradient
    is about zero makes the derivative of Adam's step, and so the left-out term, enormous.
    """
    figure, panels = new_figure(10.5, 3.6, columns=2)
    palette = sns.color_palette("colorblind")
    for number, (name, rows) in enumerate(table.groupby("inner_optimiser", sort=False)):
        look = {"color": palette[number], "ls": ("-", "--", "-.", ":")[number % 4], "marker": "osD^v"[number % 5]}
        for axes, column in zip(panels, ("cosine", "relative_size"), strict=True):
            by_step = rows.groupby("step")[column]
            middle = by_step.median()
            axes.plot(middle.index, middle, label=name, ms=5, **look)
            axes.fill_between(middle.index, by_step.min(), by_step.max(), color=palette[number], alpha=0.2, lw=0)
    panels[0].set(ylabel="cosine", title="First-order and exact gradient of the logits")
    panels[1].set(ylabel="size relative to the first-order gradient", yscale="log", title="What is left out")
    for axes in panels:
        axes.set_xlabel("step of the inner optimiser")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].legend(title="inner optimiser", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
