"""Figures of notebook 09: learning rates chosen without labels, and what coefficients and a mask add to each base."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.plotting import (
    OBJECTIVE_COLOURS,
    OBJECTIVE_NAMES,
    PALETTE,
    RED,
    REFERENCE,
    method_colours,
    new_figure,
    percent_axis,
    same_limits,
    seed_count,
    spread,
)

Table = pd.DataFrame

ADAPTED, MASKED = method_colours(["AdaMerging (layer-wise)", "Concrete AdaMerging (layer-wise)"]).values()
# The arms of the comparison: colour, marker, whether it is filled.
ARMS = {
    "start": ("0.55", "|", True),
    "coefficients": (ADAPTED, "o", True),
    "coefficients, as many gradients": (ADAPTED, "o", False),
    "mask and coefficients": (MASKED, "D", True),
    "shuffled mask": (MASKED, "D", False),
}
KINDS = ("one, fixed", "one per task", "one per layer and task")  # of coefficients


def rates(table: Table) -> Figure:
    """The objective on held-back inputs chooses a learning rate; beside it the accuracy, which it never sees.

    Args:
        table: columns objective, rate, held_back (nats), accuracy (0 to 1), seed.
    """
    kinds = [name for name in OBJECTIVE_NAMES if name in set(table["objective"])]
    figure, panels = new_figure(3.4 * len(kinds) + 1.2, 5, rows=2, columns=len(kinds))
    panels = np.reshape(panels, (2, len(kinds)))
    for column, kind in zip(panels.T, kinds, strict=True):
        rows = table[table["objective"] == kind]
        for axes, value, factor in zip(column, ("held_back", "accuracy"), (1, 100), strict=True):
            by_rate = factor * rows.groupby("rate")[value].mean()
            axes.plot(by_rate.index, by_rate, "o-", color=OBJECTIVE_COLOURS[kind])
            chosen = rows.groupby("rate")["held_back"].mean().idxmin()
            axes.plot(chosen, by_rate[chosen], "o", ms=12, mfc="none", color=PALETTE[RED], mew=1.5)
            axes.set_xscale("log")
            axes.set_xticks(by_rate.index, [f"{rate:g}" for rate in by_rate.index])
            axes.minorticks_off()
            axes.margins(0.15)
        column[0].set_title(OBJECTIVE_NAMES[kind])
        column[1].set_xlabel("learning rate")
    panels[0][0].set_ylabel("held-back objective (nats)")
    for axes in panels[1]:
        percent_axis(axes, "y", "")
    panels[1][0].set_ylabel("held-out accuracy (%)")
    figure.suptitle(f"The lowest objective (ringed) chooses the rate; {seed_count(table)}", fontsize=11)
    return figure


def any_base(table: Table) -> Figure:
    """Held-out accuracy on each base: where it starts, what coefficients add, and what the mask adds to them.

    Args:
        table: columns objective, base, arm (of `ARMS`), task, seed, accuracy (0 to 1).
    """
    kinds = [name for name in OBJECTIVE_NAMES if name in set(table["objective"])]
    counts = [table.loc[table["objective"] == kind, "base"].nunique() for kind in kinds]
    figure, panels = new_figure(7.5, 0.62 * sum(counts) + 1.1 * len(kinds) + 0.5, rows=len(kinds))
    for axes, kind in zip(np.atleast_1d(panels), kinds, strict=True):
        _bases(axes, table[table["objective"] == kind])
        axes.set_title(OBJECTIVE_NAMES[kind], loc="left")
    first = np.atleast_1d(panels)[0]
    first.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    same_limits(np.atleast_1d(panels), "x")
    for axes in np.atleast_1d(panels):
        percent_axis(axes, "x", "")
    axes.set_xlabel("held-out accuracy (%), mean over tasks")
    figure.suptitle(f"What coefficients and a mask add to each base; {seed_count(table)}", fontsize=11)
    return figure


def _bases(axes: Axes, rows: Table) -> None:
    """A row per base, a mark per arm; bars are standard deviations over seeds."""
    names = list(rows["base"].unique())
    for number, (arm, (colour, marker, filled)) in enumerate(ARMS.items()):
        for height, name in enumerate(reversed(names)):
            own = rows[(rows["base"] == name) & (rows["arm"] == arm)]
            by_seed = 100 * own.groupby("seed")["accuracy"].mean()
            style = {
                "color": colour,
                "mfc": colour if filled else "white",
                "ms": 12 if marker == "|" else 7,
                "capsize": 3,
            }
            label = arm if height == 0 else None
            axes.errorbar(
                by_seed.mean(), height + 0.12 * (2 - number), xerr=spread(by_seed), fmt=marker, label=label, **style
            )
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def few_coefficients(table: Table) -> Figure:
    """What a mask adds to one fixed coefficient, to one per task, and to one per layer and task.

    Args:
        table: columns coefficients, mask ("mask" or "no mask"), task, seed, accuracy (0 to 1).
    """
    kinds = [name for name in KINDS if name in set(table["coefficients"])]
    figure, axes = new_figure(7.5, 0.75 * len(kinds) + 1.1)
    colours = (ADAPTED, MASKED)
    for height, kind in enumerate(reversed(kinds)):
        rows = 100 * table[table["coefficients"] == kind].groupby(["mask", "seed"])["accuracy"].mean()
        pair = [rows[mask] for mask in ("no mask", "mask")]
        axes.plot([by_seed.mean() for by_seed in pair], [height] * 2, color="0.7", lw=3, zorder=0)
        for by_seed, colour, marker, label in zip(pair, colours, "oD", ("without", "with the mask"), strict=True):
            style = {"fmt": marker, "color": colour, "ms": 8, "capsize": 3, "label": None if height else label}
            axes.errorbar(by_seed.mean(), height, xerr=spread(by_seed), **style)
        difference = pair[1].mean() - pair[0].mean()
        middle = (pair[0].mean() + pair[1].mean()) / 2
        axes.text(middle, height + 0.15, f"{difference:+.1f}".replace("-", "−"), ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(kinds)), list(reversed(kinds)))
    axes.set_ylim(-0.5, len(kinds) - 0.4)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("What the mask adds to few coefficients and to many", loc="left")
    percent_axis(axes, "x", f"held-out accuracy (%), mean over tasks; {seed_count(table)}")
    return figure


def unlabelled_data(table: Table) -> Figure:
    """Held-out accuracy after adaptation, by how many unlabelled inputs there were, from where, and of which classes.

    Args:
        table: columns experiment ("amount" or "mixture"), objective, source, images (per task), task, seed, accuracy,
            start_accuracy (0 to 1).
    """
    figure, (left, middle, right) = new_figure(12.5, 4.2, columns=3)
    amount, mixture = (table[table["experiment"] == name] for name in ("amount", "mixture"))
    _amounts(left, amount)
    _kinds(middle, amount[amount["images"] == amount["images"].max()], "by where they come from")
    _kinds(right, mixture, "by their mixture of classes")
    for axes in (left, middle, right):
        axes.axhline(100 * table["start_accuracy"].mean(), **REFERENCE)
    same_limits((left, middle, right), "y")
    for axes in (left, middle, right):
        percent_axis(axes, "y", "held-out accuracy (%)" if axes is left else "")
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(f"Layer-wise AdaMerging; grey: its start, Task Arithmetic; {seed_count(table)}", fontsize=11)
    return figure


def _amounts(axes: Axes, rows: Table) -> None:
    """A curve per objective; dashed on training images."""
    for (objective, source), own in rows.groupby(["objective", "source"], sort=False):
        if own["images"].nunique() < 2:
            continue
        by_count = 100 * own.groupby(["images", "seed"])["accuracy"].mean()
        mean, deviation = (getattr(by_count.groupby("images"), name)() for name in ("mean", "std"))
        first = source == "adaptation split"
        style = {
            "ls": "-" if first else "--",
            "marker": "o",
            "ms": 5,
            "mfc": OBJECTIVE_COLOURS[objective] if first else "white",
        }
        label = f"{OBJECTIVE_NAMES[objective]}{'' if first else ', training images'}"
        axes.errorbar(
            mean.index, mean, deviation.fillna(0), color=OBJECTIVE_COLOURS[objective], label=label, capsize=3, **style
        )
    axes.set_xscale("log", base=2)
    counts = sorted(rows["images"].unique())
    axes.set_xticks(counts, counts)
    axes.set(xlabel="unlabelled images per task", title="By the number of images")


def _kinds(axes: Axes, rows: Table, title: str) -> None:
    """A group per source, a mark per objective."""
    sources = list(rows["source"].unique())
    shown = [name for name in OBJECTIVE_NAMES if name in set(rows["objective"])]
    for number, objective in enumerate(shown):
        own = 100 * rows[rows["objective"] == objective].groupby(["source", "seed"])["accuracy"].mean()
        for place, source in enumerate(sources):
            values = own[source]
            style = {"fmt": "o", "color": OBJECTIVE_COLOURS[objective], "capsize": 3, "ms": 7}
            axes.errorbar(place + 0.15 * (number - (len(shown) - 1) / 2), values.mean(), spread(values), **style)
    axes.set_xticks(range(len(sources)), [fill(source, 14) for source in sources], fontsize=9)
    axes.set_xlim(-0.5, len(sources) - 0.5)
    axes.set_title(title[0].upper() + title[1:])
