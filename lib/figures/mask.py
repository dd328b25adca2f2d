"""Figures of the Concrete mask: its distribution, a planted one, what a learned one looks like and does to experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures.plotting import (
    BROWN,
    INK,
    MASKS,
    PALETTE,
    RED,
    REFERENCE,
    band,
    by_kind,
    clean,
    new_figure,
    percent_axis,
    same_limits,
    seed_count,
    temperature_colour,
)

Table = pd.DataFrame


def relaxation() -> Figure:
    """The Concrete relaxation: the mask as a function of its noise at several temperatures (the paper's Figure 2)."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    u = np.linspace(1e-4, 1 - 1e-4, 1500)
    noise = np.log(u) - np.log1p(-u)
    grid = np.linspace(0.002, 0.998, 800)
    for temperature, line in zip((0.1, 0.5, 1.0, 2.0), ("-", "--", "-.", ":"), strict=True):
        style = {"color": temperature_colour(temperature), "label": f"{temperature:g}", "ls": line, "lw": 2}
        left.plot(u, 1 / (1 + np.exp(-noise / temperature)), **style)
        # change of variables: density of m = sigmoid(noise / temperature) with logits 0
        density = temperature * (grid * (1 - grid)) ** (-temperature - 1)
        density /= (grid**-temperature + (1 - grid) ** -temperature) ** 2
        right.plot(grid, density, **style)
    left.set(xlabel="uniform noise u", ylabel="mask m", title="One sample at logit 0")
    right.set(xlabel="mask m", ylabel="probability density", ylim=(0, 4), title="Distribution of m at logit 0")
    right.legend(title="temperature", frameon=False, loc="upper center", ncols=2)
    return figure


def mask_samples(table: Table) -> Figure:
    """Histograms of mask samples at several temperatures, with the density that theory gives (logit 1)."""
    temperatures = sorted(table["temperature"].unique(), reverse=True)
    figure, panels = new_figure(2.3 * len(temperatures), 2.7, columns=len(temperatures))
    for axes, temperature in zip(panels, temperatures, strict=True):
        rows = table[table["temperature"] == temperature]
        width = 1 / len(rows)
        axes.bar(rows["mask"], rows["share"], width=width, color="0.75", label="samples")
        axes.plot(rows["mask"], rows["theory"], color=temperature_colour(temperature), lw=2, label="theory")
        axes.set(xlabel="mask m", title=f"temperature {temperature:g}", xlim=(0, 1), xticks=(0, 0.5, 1))
    panels[0].set_ylabel(f"share of samples per bin of {width:g}")
    panels[1].legend(frameon=False, loc="upper left")
    return figure


def convergence(table: Table) -> Figure:
    """Distance between the Concrete and the Bernoulli distribution against the temperature."""
    figure, axes = new_figure(8.5, 3.8)
    axes.plot(table["temperature"], table["total_variation"], "o", color=INK, label="total variation, measured")
    axes.plot(table["temperature"], table["theory"], color=INK, lw=1, label="total variation, theory")
    axes.plot(table["temperature"], table["wasserstein"], "s--", color=PALETTE[BROWN], label="Wasserstein-1, measured")
    axes.axvline(0.5, ls="--", **REFERENCE)
    axes.annotate("paper's 0.5", (0.5, 0), (4, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
                  color="0.4")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="temperature", ylabel="distance to a coin flip")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_title("The lower the temperature, the closer to a coin flip")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def planted(table: Table) -> Figure:
    """Precision and recall of the learned mask against the planted one, and what the tasks lose, over steps."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    learned = table[table["mask"] == "learned"]
    for place, column in enumerate(("precision", "recall")):
        by_step = learned.groupby("step")[column]
        style = {"color": PALETTE[(RED, BROWN)[place]], "ls": ("-", "--")[place], "lw": 2, "label": column}
        band(left, 100 * by_step.mean(), 100 * by_step.std(ddof=1), **style)
    percent_axis(left, "y", "share of coordinates (%)")
    left.set(xlabel="step", title="The learned mask finds the planted subspace")
    left.legend(frameon=False, loc="lower right")
    scored = table.dropna(subset="loss")
    final = scored.groupby(["mask", "seed"], sort=False)["loss"].last().groupby("mask", sort=False)
    mean, spread = final.mean().sort_values(ascending=False), final.std(ddof=1)
    for height, name in enumerate(mean.index):
        right.errorbar(mean[name], height, xerr=spread[name], fmt="o", ms=8, capsize=4, color=PALETTE[RED])
        power = int(np.floor(np.log10(mean[name])))
        words = f"${mean[name] / 10**power:.1f}\\times 10^{{{power}}}$"  # all in one notation
        right.annotate(words, (mean[name], height), (0, 7), textcoords="offset points", ha="center")
    right.set_yticks(range(len(mean)), mean.index)
    right.set_ylim(-0.5, len(mean) - 0.2)
    right.margins(x=0.12)
    right.set(xscale="log", xlabel="loss per parameter, mean over tasks", title="What merging in each mask costs")
    return figure


def density(table: Table) -> Figure:
    """Expected share of ones of the learned mask, per layer: mean over seeds, bars for its standard deviation."""
    figure, axes = new_figure(9.5, 3.6)
    layers = table.groupby(["position", "kind"], as_index=False)["density"].agg(["mean", "std"])
    axes.errorbar(layers["position"], layers["mean"], layers["std"].fillna(0), fmt="none", ecolor="0.8", lw=1, zorder=0)
    axes.axhline(0.5, ls="--", **REFERENCE)
    by_kind(axes, layers, "mean")
    axes.set(ylabel="expected share of ones,\nmean of sigmoid(x)")
    axes.set_title(f"What the learned mask keeps of each layer (dashed: its start, 0.5); {seed_count(table)}")
    return figure


def mask_agreement(table: Table) -> Figure:
    """Mean probability of the learned mask by sign agreement of the task vectors, and by the size of their sum."""
    figure, panels = new_figure(10, 3.7, columns=2)
    labels = {
        "sign agreement": "agreement of signs, |sum of signs| / T",
        "size of the sum": "quantile of |sum of task vectors|",
    }
    for axes, (by, label) in zip(panels, labels.items(), strict=True):
        rows = table[table["by"] == by]
        for column, style, name in (("probability", "o-", "learned mask"), ("by_layer", "s--", "its layers' means")):
            found = rows.groupby("bin")[column].agg(["mean", "std"])
            colour = PALETTE[RED] if column == "probability" else "0.5"
            axes.errorbar(found.index, found["mean"], yerr=found["std"].fillna(0), fmt=style, ms=5, capsize=3,
                          color=colour, label=name)  # fmt: skip
        overall = (rows["probability"] * rows["share"]).sum() / rows["share"].sum()
        axes.axhline(overall, ls=":", label="over all parameters", **REFERENCE)
        axes.set(xlabel=label, xlim=(-0.05, 1.05))
    panels[0].set(ylabel="expected share of ones,\nmean of sigmoid(x)", title="Where tasks agree")
    panels[1].set_title("Where the merged change is large")
    same_limits(panels, "y")
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def masked_experts(table: Table) -> Figure:
    """Accuracy of every expert on its own task, whole and inside masks; bars: standard deviation over seeds."""
    variants, tasks = list(table["method"].unique()), [*table["task"].unique(), "mean"]
    means = table.groupby(["method", "seed"], as_index=False)["accuracy"].mean().assign(task="mean")
    found = 100 * pd.concat([table, means]).groupby(["method", "task"])["accuracy"].agg(["mean", "std"])
    figure, axes = new_figure(8.5, 0.6 * len(tasks) + 1.2)
    for number, variant in enumerate(variants):
        rows = found.loc[variant].loc[tasks]
        height = [-place - 0.12 * (number - (len(variants) - 1) / 2) for place in range(len(tasks))]
        kind = next((name for name in MASKS if name in variant), "sample")  # "the learned mask" is its sample
        colour, mark = ("0.5", "o") if variant == "expert" else MASKS[kind]
        axes.errorbar(rows["mean"], height, xerr=rows["std"].fillna(0), fmt=mark, ms=6, capsize=2, color=colour,
                      mfc="white" if "shuffled" in variant else colour, label=variant)  # fmt: skip
    axes.axhline(1.5 - len(tasks), **REFERENCE)
    axes.set_yticks([-place for place in range(len(tasks))], [clean(task) for task in tasks])
    percent_axis(axes, "x", "held-out accuracy on its own task (%)")
    axes.set_title(f"Every expert in the shared mask, alone; {seed_count(table)}")
    axes.grid(axis="x", color="0.92")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
