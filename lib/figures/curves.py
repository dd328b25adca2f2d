"""Figures of the loop: what follows what in it, and its curves."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lib.figures.plotting import band, method_colours, new_figure, percent_axis

Table = pd.DataFrame

SMOOTH = 10  # steps: each step's loss is that of another batch
CONTROL_GREY = (0.4, 0.4, 0.4)


def bilevel() -> Figure:
    """The two phases of Concrete AdaMerging as boxes and arrows: the bi-level loop, then adaptation inside the mask."""
    figure, axes = new_figure(10.5, 4.4)
    axes.set(xlim=(0, 10.5), ylim=(0, 4.4))
    axes.axis("off")

    def box(left: float, bottom: float, width: float, height: float, text: str, colour: str, **style: object) -> None:
        shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0.04", ec=colour, fc="white", **style)
        axes.add_patch(shape)
        axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9, linespacing=1.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
        style = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.3, "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", end, start, arrowprops=style)

    for left, width, title in ((0.1, 6.8, "Phase 1: learn the mask"), (7.3, 3.1, "Phase 2: adapt inside it")):
        box(left, 0.15, width, 3.8, "", "0.75", ls="--")
        axes.text(left + 0.1, 4.15, title, fontsize=11)
    box(0.4, 2.35, 2.0, 1.3, "draw a mask\n$m \\sim$ Concrete$(x)$,\n$\\hat m = m\\,/\\,$mean in layer", "0.4")
    inner = (
        "inner level, $m$ held fixed\n$\\lambda^+ = \\lambda_0 - $step$(\\nabla_\\lambda \\mathcal{L})$\non one batch"
    )
    box(3.9, 2.35, 2.7, 1.3, inner, "C0", lw=2)
    outer = "upper level, $\\lambda^+$ held fixed\n$x \\leftarrow x - $step$(\\nabla_x \\mathcal{L})$\non another batch"
    box(3.9, 0.45, 2.7, 1.3, outer, "C3", lw=2)
    box(7.55, 2.35, 2.6, 1.3, "keep one mask $\\hat m$,\nstart again at $\\lambda_0$", "0.4")
    box(
        7.55,
        0.45,
        2.6,
        1.3,
        "AdaMerging\n$\\lambda \\leftarrow \\lambda - $step$(\\nabla_\\lambda \\mathcal{L})$",
        "C0",
        lw=2,
    )
    arrow((2.45, 3.0), (3.85, 3.0))
    arrow((5.25, 2.3), (5.25, 1.8))
    arrow((3.85, 1.1), (1.4, 2.3), bend=-0.3)
    arrow((8.85, 2.3), (8.85, 1.8))
    axes.text(1.35, 0.75, "next step:\nforget $\\lambda^+$, keep $x$", ha="center", va="center", color="0.3")
    axes.text(3.15, 3.12, "$\\hat m$", ha="center", color="0.3")
    arrow((6.95, 2.05), (7.3, 2.05))
    return figure


def mask_curve(table: Table) -> Figure:
    """Entropy and held-out accuracy while a mask is learned, per learned mask."""
    return _entropy_and_accuracy(table, "Learning the mask")


def adaptation_curve(table: Table) -> Figure:
    """Entropy and held-out accuracy during test-time adaptation, per method."""
    return _entropy_and_accuracy(table, "Test-time adaptation")


def _entropy_and_accuracy(table: Table, title: str) -> Figure:
    figure, (left, right) = new_figure(10.5, 3.7, columns=2)
    methods = list(table["method"].unique())
    _losses(left, table, methods)
    _accuracies(right, table, methods)
    _reference(right, table, methods)
    left.set(xlabel="step", title=title)
    right.set(xlabel="step", title="Held-out examples")
    left.legend(frameon=False)
    right.legend(handles=right.lines[-2:], frameon=False)
    return figure


def phases(table: Table) -> Figure:
    """Held-out accuracy and entropy against optimiser steps, over both phases (the paper's Figure 3)."""
    figure, panels = new_figure(10.5, 6.2, rows=2, columns=2)
    methods = list(table["method"].unique())
    titles = {"mask": "Phase 1: the mask", "adaptation": "Phase 2: the coefficients"}
    for column, (phase, title) in enumerate(titles.items()):
        upper, lower = panels[:, column]
        rows = table[table["phase"] == phase]
        _accuracies(upper, rows, methods)
        _losses(lower, rows[~rows["method"].str.contains(", IM")], methods)  # another objective, another scale
        upper.set_title(title)
        lower.set_xlabel("optimiser steps of this phase")
    for left, right in panels:
        low, high = (pick(left.get_ylim()[end], right.get_ylim()[end]) for end, pick in enumerate((min, max)))
        left.set_ylim(low, high)
        right.set(ylim=(low, high), ylabel="")
    lines = {line.get_label(): line for axes in panels[0] for line in axes.lines}
    order = [method for method in methods if method in lines]
    figure.legend([lines[name] for name in order], order, loc="outside lower center", ncols=2, frameon=False)
    return figure


def colours_of(methods: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """Colours of methods; controls are grey."""
    methods = list(methods)
    shown = method_colours(method for method in methods if not method.endswith("(control)"))
    return {method: shown.get(method, CONTROL_GREY) for method in methods}


def line_style(method: str) -> str:
    """Layer-wise methods are drawn solid, task-wise ones dashed, controls dotted, another objective dash-dotted."""
    if method.endswith("(control)"):
        return ":"
    return "-." if method.endswith(", IM") else "--" if "task-wise" in method else "-"


def _mean_over_seeds(axes: Axes, rows: Table, column: str, scale: float, smooth: int, **style: object) -> None:
    """Mean over seeds against the step, its standard deviation as a band, each seed smoothed before."""
    by_seed = scale * rows.dropna(subset=column).pivot_table(index="step", columns="seed", values=column)
    by_seed = by_seed.rolling(smooth, min_periods=1).mean()
    band(axes, by_seed.mean(axis=1), by_seed.std(axis=1, ddof=1), **style)


def _each(axes: Axes, table: Table, methods: Iterable[str], column: str, scale: float, smooth: int, mark: str) -> None:
    colours = colours_of(methods)
    for method in methods:
        rows = table[table["method"] == method]
        if len(rows):
            style = {
                "color": colours[method],
                "ls": line_style(method),
                "marker": mark,
                "ms": 4,
                "lw": 1.8,
                "label": method,
            }
            _mean_over_seeds(axes, rows, column, scale, smooth, **style)


def _losses(axes: Axes, table: Table, methods: Iterable[str]) -> None:
    _each(axes, table, methods, "loss", 1.0, SMOOTH, "")
    axes.set_ylabel(f"entropy, summed over tasks\n(nats, mean of {SMOOTH} steps)")


def _accuracies(axes: Axes, table: Table, methods: Iterable[str]) -> None:
    _each(axes, table, methods, "accuracy", 100.0, 1, "o")
    percent_axis(axes, "y", "mean held-out accuracy (%)")


def _reference(axes: Axes, table: Table, methods: Iterable[str]) -> None:
    """Where the runs started (Task Arithmetic) and what plain averaging has, on the same images."""
    start, averaging = table.loc[table["step"] == 0, "accuracy"], table["averaging"].dropna()
    for values, label, style in ((start, "Task Arithmetic", "--"), (averaging, "Weight averaging", ":")):
        axes.axhline(100 * values.mean(), color="0.5", lw=1, ls=style, label=label, zorder=0)
