"""The figure of notebook 30: what merging does to somebody's own tasks."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from lib.figures.curves import colours_of
from lib.figures.plotting import REFERENCE, clean, new_figure, percent_axis

LOOKS = {
    "Pre-trained": ("o", "Zero-shot"),
    "Experts": ("D", "Experts"),
    "Merged": ("s", "Concrete AdaMerging (layer-wise)"),
}


def before_and_after(table: pd.DataFrame) -> Figure:
    """Held-out accuracy of every task before fine-tuning, by its own expert and merged, with 95 % intervals.

    Args:
        table: columns method ("Pre-trained", "Experts", "Merged"), task, accuracy, low, high, all in percent.
    """
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = new_figure(7.5, 0.55 * len(tasks) + 1.6)
    colours = colours_of([look for _, look in LOOKS.values()])
    for place, (method, (marker, look)) in enumerate(LOOKS.items()):
        rows = table[table["method"] == method].set_index("task").reindex(tasks)
        heights = [len(tasks) - 1 - row + 0.22 * (1 - place) for row in range(len(tasks))]
        spread = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
        style = {"fmt": marker, "color": colours[look], "ms": 6, "capsize": 2, "lw": 1}
        axes.errorbar(rows["accuracy"], heights, xerr=spread, label=method, **style)
    for height in range(len(tasks) - 1):
        axes.axhline(height + 0.5, **REFERENCE)
    axes.set_yticks(range(len(tasks)), [clean(task) for task in reversed(tasks)])
    percent_axis(axes, "x", "held-out accuracy (%), with the 95 % interval of the images' sampling")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
    return figure
