"""Figures of notebook 08: entropy against information maximisation, and when either fails."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures.plotting import REFERENCE, new_figure, objective_look, percent_axis, same_limits, seed_count

Table = pd.DataFrame

NAMES = ("entropy", "information-maximisation")
GAIN = "gain over the start (points)"


def gains(table: Table, *by: str) -> Table:
    """Gain in accuracy over the start in points, mean over tasks: mean and std over seeds for every value of `by`.

    Args:
        table: with the columns `accuracy`, `start_accuracy` (0 to 1), `task`, `seed` and those of `by`.
        by: columns.

    Returns:
        Columns `by`, start, gain, std (0 with one seed), in order of appearance.
    """
    points = table.assign(gain=100 * (table["accuracy"] - table["start_accuracy"]), start=100 * table["start_accuracy"])
    by_seed = points.groupby([*by, "seed"], sort=False)[["start", "gain"]].mean()
    grouped = by_seed.groupby(list(by), sort=False)
    return grouped.mean().assign(std=grouped["gain"].std(ddof=1).fillna(0)).reset_index()


def _zero(axes: Axes) -> None:
    axes.axhline(0, **REFERENCE)


def zero_and_labels(axes: Axes, label: str, title: str) -> None:
    """A line at no gain, and what the axes show: an accuracy in percent, and the gain over it."""
    _zero(axes)
    percent_axis(axes, "x", label)
    axes.set(ylabel=GAIN, title=title)


def _categories(axes: Axes, rows: Table, column: str, order: Sequence[object], hollow: bool = False) -> None:
    """One error bar per objective at every category of a column."""
    for nth, objective in enumerate(NAMES):
        own = rows[rows["objective"] == objective]
        places = [order.index(value) + (nth - 0.5) * 0.2 for value in own[column]]
        style = objective_look(objective) | ({"mfc": "white", "label": None} if hollow else {})
        shift = 0.07 if hollow else 0.0
        axes.errorbar([place + shift for place in places], own["gain"], own["std"], ls="", **style)
    labels = [f"{value:g}" if isinstance(value, (int, float)) else textwrap.fill(str(value), 16) for value in order]
    axes.set_xticks(range(len(order)), labels)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_ylabel(GAIN)
    _zero(axes)


def _start(axes: Axes, table: Table) -> None:
    for objective, rows in gains(table, "objective", "scale").groupby("objective", sort=False):
        rows = rows.sort_values("scale")
        axes.errorbar(rows["start"], rows["gain"], rows["std"], ls="", **objective_look(objective))
    for scale, rows in gains(table, "scale", "objective").groupby("scale"):
        top = (rows["gain"] + rows["std"]).max()
        axes.annotate(f"{scale:g}", (rows["start"].mean(), top), (0, 6), textcoords="offset points", ha="center")
    zero_and_labels(axes, "accuracy at the start (%)", "By the start (number: its coefficient)")
    axes.margins(x=0.08, y=0.15)


def _tasks(axes: Axes, table: Table) -> None:
    rows = gains(table, "objective", "scale", "task", "classes")
    shapes = dict(zip(sorted(rows["classes"].unique()), "o^sDvP" * 20, strict=False))
    for (objective, classes), own in rows.groupby(["objective", "classes"], sort=False):
        style = {
            "color": objective_look(objective)["color"],
            "marker": shapes[classes],
            "alpha": 0.85,
            "s": 26,
            "lw": 0,
        }
        axes.scatter(own["start"], own["gain"], **style)
    for classes, shape in shapes.items():
        axes.scatter([], [], color="0.4", marker=shape, s=22, label=f"{classes} classes")
    zero_and_labels(axes, "the task's accuracy at the start (%)", "By the start, task by task")
    axes.legend(frameon=False, fontsize=9)


def _diversity(axes: Axes, table: Table) -> None:
    rows = gains(table, "objective", "diversity")
    _categories(axes, rows, "diversity", sorted(rows["diversity"].unique()))
    axes.set(xlabel="weight of the diversity term (0: entropy)", title="By the weight of diversity")


def _batch(axes: Axes, table: Table) -> None:
    rows = gains(table, "objective", "batch")
    _categories(axes, rows, "batch", sorted(rows["batch"].unique()))
    axes.set(xlabel="images per task and step", title="By the size of the batch")


def _mix(axes: Axes, table: Table) -> None:
    order = list(table["mix"].unique())
    for scored, rows in table.groupby("scored", sort=False):
        _categories(axes, gains(rows, "objective", "mix"), "mix", order, hollow=scored != "held-out")
    axes.plot([], [], "o", color="0.4", label="scored on even classes")
    if table["scored"].nunique() > 1:
        axes.plot([], [], "o", color="0.4", mfc="white", label="scored on the long tail")
    handles, labels = axes.get_legend_handles_labels()
    told = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label.startswith("scored")]
    axes.legend(*zip(*told, strict=True), frameon=False, fontsize=9)
    axes.margins(y=0.2)
    axes.set(xlabel="class mix of the adaptation images", title="By the balance of classes")


def _mask(axes: Axes, table: Table) -> None:
    _categories(axes, gains(table, "objective", "method"), "method", list(table["method"].unique()))
    axes.set(xlabel="what is learned", title="By what is learned")


PANELS = {"start": (_start, _tasks), "diversity": (_diversity,), "batch": (_batch,), "mix": (_mix,), "mask": (_mask,)}


def objectives(table: Table) -> Figure:
    """Gain of adaptation over its own start by entropy and by information maximisation, one panel per experiment.

    Points are means over tasks and seeds, bars one standard deviation over seeds.
    """
    drawn = [
        (draw, table[table["experiment"] == name])
        for name, panels in PANELS.items()
        if name in set(table["experiment"])
        for draw in panels
    ]
    rows = -(-len(drawn) // 3)
    figure, grid = new_figure(12.5, 3.5 * rows + 0.7, rows, 3)
    for axes, (draw, part) in zip(grid.flat, drawn, strict=False):
        draw(axes, part)
    means = [axes for axes, (draw, _) in zip(grid.flat, drawn, strict=False) if draw is not _tasks]
    same_limits(means, "y")  # one quantity in all of them; single tasks are further apart
    styles = [objective_look(name) for name in NAMES]
    marks = [Line2D([], [], ls="", **{part: look[part] for part in ("color", "marker", "ms")}) for look in styles]
    figure.legend(marks, [look["label"] for look in styles], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"What adaptation gains, by objective; {seed_count(table)}")
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    return figure
