"""Figures of the Concrete mask: its distribution, its learning, what it looks like."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.plotting import method_colours, new_figure, percent_axis

Table = pd.DataFrame


def relaxation() -> Figure:
    """The Concrete relaxation: the mask as a function of its noise at several temperatures (the paper's Figure 2)."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    u = np.linspace(1e-4, 1 - 1e-4, 1500)
    noise = np.log(u) - np.log1p(-u)
    grid = np.linspace(0.002, 0.998, 800)
    for number, temperature in enumerate((0.1, 0.5, 1.0, 2.0)):
        style = {"color": f"C{number}", "label": f"{temperature:g}", "ls": ("-", "--", "-.", ":")[number]}
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
    for number, (axes, temperature) in enumerate(zip(panels, temperatures, strict=True)):
        rows = table[table["temperature"] == temperature]
        width = 1 / len(rows)
        axes.bar(rows["mask"], rows["share"], width=width, color=f"C{number}", alpha=0.55, label="samples")
        axes.plot(rows["mask"], rows["theory"], color="0.15", lw=1.2, label="theory")
        axes.set(xlabel="mask m", title=f"temperature {temperature:g}", xlim=(0, 1))
    panels[0].set_ylabel(f"share of samples per bin of {width:g}")
    panels[1].legend(frameon=False, loc="upper left")
    return figure


def convergence(table: Table) -> Figure:
    """Distance between the Concrete and the Bernoulli distribution against the temperature."""
    figure, axes = new_figure(7, 3.8)
    axes.plot(table["temperature"], table["total_variation"], "o", color="C0", label="total variation, measured")
    axes.plot(table["temperature"], table["theory"], color="C0", lw=1, label="total variation, theory")
    axes.plot(table["temperature"], table["wasserstein"], "s--", color="C1", label="Wasserstein-1, measured")
    axes.plot(table["temperature"], table["ks_to_theory"], "^:", color="C2", label="KS distance of samples to theory")
    axes.axvline(0.5, color="0.6", lw=1, ls="--")
    axes.annotate("paper's 0.5", (0.5, axes.get_ylim()[0]), (4, 6), textcoords="offset points", color="0.4")
    axes.set(xscale="log", yscale="log", xlabel="temperature", ylabel="distance")
    axes.set_title("The relaxed mask becomes a coin flip as the temperature falls")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def planted(table: Table) -> Figure:
    """Precision and recall of the learned mask against the planted one, and what the tasks lose, over steps."""
    figure, (left, right) = new_figure(10, 3.6, columns=2)
    learned = table[table["mask"] == "learned"]
    for number, column in enumerate(("precision", "recall")):
        by_step = learned.groupby("step")[column]
        mean, spread = by_step.mean(), by_step.std(ddof=1)
        left.plot(mean.index, 100 * mean, color=f"C{number}", ls=("-", "--")[number], label=column)
        left.fill_between(
            mean.index, 100 * (mean - spread), 100 * (mean + spread), color=f"C{number}", alpha=0.25, lw=0
        )
    percent_axis(left, "y", "share of coordinates (%)")
    left.set(xlabel="step", title="The learned mask finds the planted subspace")
    left.legend(frameon=False, loc="lower right")
    final = table.groupby(["mask", "seed"], sort=False)["loss"].last().groupby("mask", sort=False)
    mean, spread = final.mean().sort_values(ascending=False), final.std(ddof=1)
    for height, name in enumerate(mean.index):
        right.errorbar(mean[name], height, xerr=spread[name], fmt="o", ms=8, capsize=4, color=f"C{height}")
        right.annotate(f"{mean[name]:.2g}", (mean[name], height), (0, 8), textcoords="offset points", ha="center")
    right.set_yticks(range(len(mean)), mean.index)
    right.set_ylim(-0.5, len(mean) - 0.4)
    right.set(xscale="log", xlabel="loss per parameter, mean over tasks", title="What merging costs")
    return figure


def mask_curve(table: Table) -> Figure:
    """Entropy while a mask is learned, per learned mask."""
    return _curves(table, "Learning the mask")


def adaptation_curve(table: Table) -> Figure:
    """Entropy during test-time adaptation, per method."""
    return _curves(table, "Test-time adaptation")


def _curves(table: Table, title: str) -> Figure:
    figure, axes = new_figure(7.5, 3.6)
    colours = method_colours(table["method"].unique())
    for method, rows in table.groupby("method", sort=False):
        smooth = rows["loss"].rolling(10, min_periods=1).mean()
        axes.plot(rows["step"], rows["loss"], color=colours[method], alpha=0.2, lw=0.8)
        axes.plot(rows["step"], smooth, color=colours[method], label=method)
    axes.set(xlabel="step", ylabel="prediction entropy,\nsummed over tasks (nats)", title=title)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def density(table: Table) -> Figure:
    """Expected share of ones of the learned mask, per layer."""
    figure, axes = new_figure(9.5, 3.6)
    sns.scatterplot(table, x="position", y="density", hue="kind", style="kind", ax=axes, palette="colorblind", s=35)
    axes.axhline(0.5, color="0.6", lw=1, ls="--")
    axes.set(xlabel="layer, from the image to the embedding", ylabel="mean of sigmoid(logits)")
    axes.set_title("Which layers the learned mask keeps (it starts at 0.5)")
    axes.legend(title="", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
