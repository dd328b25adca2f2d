"""Figures of notebook 15: merging on real images, and adaptation that starts from weak experts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.failures import GAIN, gains, zero_and_labels
from lib.figures.merging import results
from lib.figures.plotting import REFERENCE, clean, new_figure, objective_look, seed_count

Table = pd.DataFrame


def real_images(table: Table) -> Figure:
    """Held-out accuracy on real images of every method, against zero-shot and the experts."""
    return results(table)


def weak_experts(table: Table) -> Figure:
    """What adaptation gains over its start, over checkpoints of the experts' training: in the mean, and task by task.

    Args:
        table: columns after (steps of fine-tuning), objective, task, classes, seed, accuracy, start_accuracy,
            expert_accuracy; accuracies from 0 to 1.
    """
    figure, (left, right) = new_figure(11, 4.2, columns=2)
    _over_checkpoints(left, table)
    _task_by_task(right, table)
    figure.suptitle(f"Layer-wise AdaMerging against its own start; {seed_count(table)}")
    return figure


def _over_checkpoints(axes: Axes, table: Table) -> None:
    """A line per objective through the checkpoints, each named by its steps and how good experts and start are."""
    for objective, rows in gains(table, "objective", "after").groupby("objective", sort=False):
        axes.errorbar(rows["after"], rows["gain"], rows["std"], lw=1, **objective_look(objective))
    means = 100 * table.groupby("after")[["expert_accuracy", "start_accuracy"]].mean()
    labels = [f"{after:g}\n{row.expert_accuracy:.0f}\n{row.start_accuracy:.0f}" for after, row in means.iterrows()]
    axes.set(xscale="log", ylabel=GAIN, title="Gain by the length of fine-tuning, mean over tasks")
    axes.set_xticks(means.index, labels)
    axes.minorticks_off()
    axes.set_xlabel("steps of fine-tuning; below: accuracy of the experts\nand of Task Arithmetic, the start (%)")
    axes.axhline(0, **REFERENCE)
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _task_by_task(axes: Axes, table: Table) -> None:
    """The same, a point per task and checkpoint; the larger the point, the longer the experts were trained."""
    points = gains(table, "objective", "after", "task")
    stages = sorted(points["after"].unique())
    for (objective, after), rows in points.groupby(["objective", "after"], sort=False):
        size = 14 + 18 * stages.index(after)
        style = {name: objective_look(objective)[name] for name in ("color", "marker")}
        axes.scatter(rows["start"], rows["gain"], s=size, alpha=0.65, lw=0, **style)
    for stage in (stages[0], stages[-1]):
        size = 14 + 18 * stages.index(stage)
        axes.scatter([], [], s=size, color="0.5", marker="o", lw=0, label=f"{stage:g} steps")
    zero_and_labels(axes, "the task's accuracy at the start (%)", "Gain task by task")
    last = points[points["after"] == stages[-1]].sort_values("gain")
    for row in (last.iloc[-1], last.iloc[0], last.loc[last["start"].idxmin()]):  # the tasks that make the mean
        place = {"textcoords": "offset points", "ha": "right" if row["start"] > 50 else "left", "fontsize": 9}
        axes.annotate(clean(row["task"]), (row["start"], row["gain"]), (-9 if row["start"] > 50 else 9, -3), **place)
    axes.legend(frameon=False, fontsize=9, loc="best")
