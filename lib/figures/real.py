"""Figures of notebook 15: merging on real images, and adaptation that starts from weak experts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.failures import gains, look, zero_and_labels
from lib.figures.merging import results
from lib.figures.plotting import new_figure, seed_count

Table = pd.DataFrame


def real_images(table: Table) -> Figure:
    """Held-out accuracy on real images of every method, against zero-shot and the experts."""
    return results(table)


def weak_experts(table: Table) -> Figure:
    """What adaptation gains against the accuracy it starts from, over checkpoints of the experts' training.

    Args:
        table: columns after (steps of fine-tuning), objective, task, classes, seed, accuracy, start_accuracy,
            expert_accuracy; accuracies from 0 to 1.
    """
    figure, (left, right) = new_figure(11, 4.2, columns=2)
    _over_checkpoints(left, table)
    _task_by_task(right, table)
    figure.suptitle(f"Layer-wise AdaMerging against its own start; {seed_count(table)}", fontsize=11)
    return figure


def _over_checkpoints(axes: Axes, table: Table) -> None:
    """A line per objective through the checkpoints, each named by its steps and how good its experts are."""
    points = gains(table, "objective", "after")
    for objective, rows in points.groupby("objective", sort=False):
        axes.errorbar(rows["start"], rows["gain"], rows["std"], lw=1, **look(objective))
    experts = 100 * table.groupby("after")["expert_accuracy"].mean()
    for after, rows in points.groupby("after"):
        place = rows["start"].mean(), (rows["gain"] + rows["std"]).max()
        text = f"{after:g} steps\nexperts {experts[after]:.0f} %"
        axes.annotate(text, place, (0, 7), textcoords="offset points", ha="center", fontsize=8, color="0.3")
    axes.margins(x=0.14, y=0.25)
    zero_and_labels(axes, "accuracy of Task Arithmetic, the start (%)", "Mean over tasks")
    axes.legend(frameon=False, fontsize=8, loc="best")


def _task_by_task(axes: Axes, table: Table) -> None:
    """The same, a point per task and checkpoint; the larger the point, the longer the experts were trained."""
    points = gains(table, "objective", "after", "task")
    stages = sorted(points["after"].unique())
    for (objective, after), rows in points.groupby(["objective", "after"], sort=False):
        size = 14 + 18 * stages.index(after)
        style = {name: look(objective)[name] for name in ("color", "marker")}
        axes.scatter(rows["start"], rows["gain"], s=size, alpha=0.65, lw=0, **style)
    for stage in (stages[0], stages[-1]):
        size = 14 + 18 * stages.index(stage)
        axes.scatter([], [], s=size, color="0.5", marker="o", lw=0, label=f"{stage:g} steps")
    zero_and_labels(axes, "the task's accuracy at the start (%)", "Task by task")
    axes.legend(frameon=False, fontsize=8, loc="best")
