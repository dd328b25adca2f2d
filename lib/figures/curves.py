"""Figures of the loop: what follows what in it, and its curves."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lib.figures.plotting import (
    BLUE,
    OBJECTIVE_COLOURS,
    OBJECTIVE_NAMES,
    PALETTE,
    RED,
    REFERENCE,
    band,
    method_colours,
    new_figure,
    percent_axis,
    same_limits,
    seed_count,
)

Table = pd.DataFrame

SMOOTH = 10  # steps: each step's loss is that of another batch
CONTROL_GREY = (0.4, 0.4, 0.4)


def bilevel() -> Figure:
    """The two phases of Concrete AdaMerging as boxes and arrows: the bi-level loop, then adaptation inside the mask."""
    figure, axes = new_figure(10.5, 4.4)
    axes.set(xlim=(0, 10.5), ylim=(0, 4.4))
    axes.axis("off")

    def box(
        left: float, bottom: float, width: float, height: float, text: str, colour: object, **style: object
    ) -> None:
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
    box(3.9, 2.35, 2.7, 1.3, inner, PALETTE[BLUE], lw=2)
    outer = "upper level, $\\lambda^+$ held fixed\n$x \\leftarrow x - $step$(\\nabla_x \\mathcal{L})$\non another batch"
    box(3.9, 0.45, 2.7, 1.3, outer, PALETTE[RED], lw=2)
    box(7.55, 2.35, 2.6, 1.3, "keep one mask $\\hat m$,\nstart again at $\\lambda_0$", "0.4")
    box(
        7.55,
        0.45,
        2.6,
        1.3,
        "AdaMerging\n$\\lambda \\leftarrow \\lambda - $step$(\\nabla_\\lambda \\mathcal{L})$",
        PALETTE[BLUE],
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
    return _entropy_and_accuracy(table, "Entropy while the mask is learned")


def adaptation_curve(table: Table) -> Figure:
    """Entropy and held-out accuracy during test-time adaptation, per method."""
    return _entropy_and_accuracy(table, "Entropy during test-time adaptation")


def _entropy_and_accuracy(table: Table, title: str) -> Figure:
    figure, (left, right) = new_figure(10.5, 4.3, columns=2)
    methods = list(table["method"].unique())
    _losses(left, table, methods)
    _accuracies(right, table, methods)
    _reference(right, table)
    left.set(xlabel="optimiser step", title=title)
    right.set(xlabel="optimiser step", title=f"Accuracy meanwhile; {seed_count(table)}")
    figure.legend(handles=right.lines, loc="outside lower center", ncols=2, frameon=False)
    return figure


def phases(table: Table) -> Figure:
    """Held-out accuracy and entropy against optimiser steps, over both phases (the paper's Figure 3).

    Methods that maximise information have a row of panels of their own: their loss is on another scale.
    """
    other = table["method"].str.contains(", IM")
    drawn = [(_accuracies, table[~other], "entropy: "), (_losses, table[~other], "")]
    renamed = table[other].assign(method=table["method"].str.replace(", IM", ""))
    drawn += [(_accuracies, renamed, "information maximisation: ")] if other.any() else []
    figure, panels = new_figure(10.5, 2.7 * len(drawn) + 0.9, rows=len(drawn), columns=2)
    titles = {"mask": "phase 1, the mask", "adaptation": "phase 2, the coefficients"}
    for row, (draw, rows, objective) in zip(panels, drawn, strict=True):
        for axes, (phase, title) in zip(row, titles.items(), strict=True):
            draw(axes, rows[rows["phase"] == phase], list(rows["method"].unique()))
            axes.set_title((objective + title).capitalize() if objective else "")
        same_limits(row, "y")
        row[1].set_ylabel("")
    for axes in panels[-1]:
        axes.set_xlabel("optimiser step of this phase")
    lines = {line.get_label(): line for axes in panels[0] for line in axes.lines}
    order = [method for method in table["method"].unique() if method in lines]
    figure.legend([lines[name] for name in order], order, loc="outside lower center", ncols=2, frameon=False)
    return figure


def mask_steps(table: Table) -> Figure:
    """What a mask gains over its start against the number of steps it was learned for, by objective.

    Args:
        table: columns method, phase, step, seed, accuracy (0 to 1) of `phases`; only the phase of the mask is drawn.
    """
    rows = table[(table["phase"] == "mask") & ~table["method"].str.contains("task-wise")].dropna(subset="accuracy")
    figure, axes = new_figure(7.5, 3.8)
    for method, own in rows.groupby("method", sort=False):
        wide = 100 * own.pivot_table(index="step", columns="seed", values="accuracy")
        gain = wide - wide.iloc[0]
        name = "information-maximisation" if ", IM" in method else "entropy"
        style = {"color": OBJECTIVE_COLOURS[name], "lw": 2, "marker": "o", "ms": 5, "label": OBJECTIVE_NAMES[name]}
        band(axes, gain.mean(axis=1), gain.std(axis=1, ddof=1), **style)
    axes.axhline(0, **REFERENCE)
    axes.set(
        xlabel="optimiser steps of the mask", ylabel="gain over no mask, on a sample\nof held-out examples (points)"
    )
    axes.set_title(f"What the mask alone gains, step by step; {seed_count(rows)}")
    axes.legend(frameon=False, title="objective")
    return figure


def entropy_against_accuracy(table: Table) -> Figure:
    """Where runs go in the plane of entropy and accuracy, a path per method from a ring to a dot, mean over seeds.

    Args:
        table: columns method, step, seed, loss (entropy, nats), accuracy (0 to 1), and phase where there are two;
            methods with another objective than entropy are left out.
    """
    rows = table[~table["method"].str.contains(", IM")]
    methods = list(rows["method"].unique())
    figure, axes = new_figure(7.5, 5.4)
    colours = colours_of(methods)
    for method in methods:
        path = _path(rows[rows["method"] == method])
        style = {"color": colours[method], "ls": line_style(method), "lw": 1.8}
        axes.plot(path["loss"], 100 * path["accuracy"], marker="o", ms=3, label=method, **style)
        for place, face in ((0, "white"), (-1, colours[method])):
            axes.plot(path["loss"].iloc[place], 100 * path["accuracy"].iloc[place], "o", ms=9, mfc=face, **style)
    axes.invert_xaxis()
    percent_axis(axes, "y", "mean held-out accuracy (%)")
    axes.set_xlabel(f"entropy, summed over tasks (nats, mean of {SMOOTH} steps); lower to the right")
    axes.set_title(f"Entropy against accuracy, from ring to dot; {seed_count(rows)}")
    axes.legend(handles=[line for line in axes.lines if not line.get_label().startswith("_")], frameon=False,
                loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)  # fmt: skip
    return figure


def _path(rows: Table) -> Table:
    """Smoothed entropy at the steps that were scored, mean over seeds, the phases one after the other."""
    parts = []
    for phase in ("mask", "adaptation"):
        own = rows[rows["phase"] == phase] if "phase" in rows else rows[: len(rows) * (phase == "adaptation")]
        if len(own):
            by_step = own.groupby(["seed", "step"])[["loss", "accuracy"]].mean()
            smooth = (
                by_step["loss"]
                .groupby("seed")
                .transform(lambda loss: loss.rolling(SMOOTH, min_periods=1).mean().bfill(limit=1))
            )  # the model has no loss at step 0: that of the first batch is its own
            parts.append(by_step.assign(loss=smooth).dropna().groupby("step").mean())
    return pd.concat(parts)


def colours_of(methods: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """Colours of methods; controls are grey."""
    methods = list(methods)
    shown = method_colours(method for method in methods if not method.endswith("(control)"))
    return {method: shown.get(method, CONTROL_GREY) for method in methods}


def line_style(method: str) -> str:
    """Layer-wise methods are drawn solid, task-wise ones dashed, controls dotted."""
    return ":" if method.endswith("(control)") else "--" if "task-wise" in method else "-"


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
    percent_axis(axes, "y", "accuracy on a sample of\nheld-out examples (%)")


def _reference(axes: Axes, table: Table) -> None:
    """Where the runs started (Task Arithmetic) and what plain averaging has, on the same images."""
    start, averaging = table.loc[table["step"] == 0, "accuracy"], table["averaging"].dropna()
    for values, label, style in ((start, "Task Arithmetic", "--"), (averaging, "Weight averaging", ":")):
        axes.axhline(100 * values.mean(), ls=style, label=label, **REFERENCE)
