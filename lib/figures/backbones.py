"""Figures of notebook 14: what merging keeps of a ConvNet and of a ViT, and what BatchNorm needs afterwards."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures.plotting import (
    BROWN,
    GREY,
    INK,
    PALETTE,
    REFERENCE,
    SKY,
    band,
    in_order,
    method_colours,
    method_rows,
    new_figure,
    percent_axis,
    rows_legend,
    same_limits,
    seed_count,
)

Table = pd.DataFrame

MARKERS = "oDs^v"
RULES = (PALETTE[GREY], PALETTE[SKY], PALETTE[BROWN], INK)  # where statistics come from


def architectures(table: Table) -> Figure:
    """Held-out accuracy of every method, a panel per architecture."""
    kinds, methods = list(table["architecture"].unique()), in_order(table["method"].unique())
    figure, panels = new_figure(5.4 * len(kinds) + 1, 0.42 * len(methods) + 1.6, columns=len(kinds))
    colours = method_colours(methods)
    for axes, kind in zip(np.atleast_1d(panels), kinds, strict=True):
        rows = table[table["architecture"] == kind]
        wide = rows.pivot_table(index=["seed", "task"], columns="method", values="accuracy")[methods]
        method_rows(axes, 100 * wide, colours)
        percent_axis(axes, "x", "held-out accuracy (%)")
        axes.set_title(f"{kind}; {seed_count(rows)}")
        axes.tick_params(axis="y", labelleft=axes is np.atleast_1d(panels)[0])
    same_limits(np.atleast_1d(panels), "x")
    rows_legend(figure, table["seed"].nunique() > 1)
    return figure


def running_statistics(table: Table) -> Figure:
    """The ConvNet's held-out accuracy along Task Arithmetic, by where its BatchNorm statistics come from."""
    figure, axes = new_figure(7.5, 3.8)
    rules = table["statistics"].unique()
    for rule, colour, mark in zip(rules, cycle(RULES), cycle(MARKERS), strict=False):
        rows = table[table["statistics"] == rule]
        by_seed = 100 * rows.groupby(["scaling_factor", "seed"])["accuracy"].mean()
        factors = by_seed.groupby("scaling_factor")
        style = {"color": colour, "marker": mark, "label": rule}
        band(axes, factors.mean(), factors.std(), **style)
    percent_axis(axes, "y", "held-out accuracy (%)")
    axes.set(
        xlabel="scaling factor", title=f"One merged ConvNet, BatchNorm statistics from four places; {seed_count(table)}"
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title="statistics")
    return figure


def activation_variance(table: Table) -> Figure:
    """Variance of a merged ConvNet's activations relative to the experts', BatchNorm layer by layer."""
    figure, axes = new_figure(6.5, 3.6)
    methods = in_order(table["method"].unique())
    colours = method_colours(methods)
    for method, line, mark in zip(methods, cycle(("-", "--", ":")), cycle(MARKERS), strict=False):
        by_seed = table[table["method"] == method].groupby(["position", "seed"])["share"].mean()
        layers = by_seed.groupby("position")
        band(
            axes,
            layers.mean(),
            layers.std(),
            color=colours[method],
            ls=line,
            marker=mark,
            ms=5,
            label=method,
        )
    axes.axhline(1, ls="--", **REFERENCE)
    axes.set_ylabel("variance, relative to the experts'")
    axes.set_xlabel("BatchNorm layer, from input to output")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(f"Variance of activations in the merged model; {seed_count(table)}")
    return figure
