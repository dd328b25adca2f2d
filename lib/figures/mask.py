"""Figures of the Concrete mask: its distribution, its learning, what it looks like."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.plotting import method_colours, new_figure

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
